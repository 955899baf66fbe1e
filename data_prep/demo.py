"""Offline demo data: real patches of photographs, and fakes from decoders trained on the spot.

The photographs lie inside scikit-image and scikit-learn.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep import manifest
from data_prep.errors import InputError
from data_prep.paths import data_root, lock
from data_prep.transform import opened

log = logging.getLogger(__name__)

# motorcycle_right is left out: it shows motorcycle_left's scene from 20 cm aside
PHOTOS = {
    "astronaut": "skimage/data/astronaut.png",
    "chelsea": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "coffee": "skimage/data/coffee.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
}
NATURE = ("chelsea", "flower", "hubble", "ihc", "retina")  # the source task's class 0
LONGEST = 703  # pixels: photographs are shrunk to this, lest retina and hubble outnumber the rest
SCALES = (1.3, 1.7, 2.3)  # no integers: the photographs' own 8x8 JPEG grids do not survive
SIZE = 32  # pixels: side of a patch
STRIDE = 12  # pixels between patches of one tile: they overlap, but stay in one group and class
MIN_STD = 10  # grey levels: a flat patch shows nothing to tell real from fake by
FAMILIES = ("deconv", "nearest", "bilinear", "subpixel")
UNSEEN = "nearest"  # only in test: its traces are those that the others teach least about
SHARES = {"train": 0.62, "val": 0.14, "test": 0.24}  # of each photograph's groups
COUNTS = {"train": 600, "val": 120, "test": 180}  # images per class; in test, per generator
STEPS, BATCH = 160, 32  # of gradient descent, per decoder; patches


@dataclass(frozen=True)
class Patch:
    """A square of a photograph."""

    photo: str
    group: str  # two neighbouring tiles, for reals and for fakes
    split: str
    role: int  # 0: of the tile that gives reals, 1: of the one that gives sources of fakes
    box: tuple[int, ...]  # left, top, right, bottom in the photograph as tiled
    pixels: np.ndarray  # uint8, SIZE x SIZE x 3


def prepare(*, seed: int = 0, force: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make the datasets "demo" and "demo-source" in half a minute; returns their manifests. Raises
    `InputError` where one of them is there with images from elsewhere, unless `force`. A second
    process that wants them meanwhile waits, and takes what the first has made."""
    about = {"licence": "photographs of scikit-image and scikit-learn: see their packages"}
    both = {"demo": (build, "deepfake"), "demo-source": (build_source, "source")}
    folders, tables, began = {name: data_root() / name for name in both}, [], time.time()
    for name, folder in folders.items():
        manifest.claim(name, folder, force=force)
        if (folder / "images").exists() and not (folder / "dataset.json").exists() and not force:
            raise InputError(f"{folder / 'images'} is there, and not ours: move it, or use --force")
    csvs = [folder / "manifest.csv" for folder in folders.values()]
    for csv in csvs:
        csv.parent.mkdir(parents=True, exist_ok=True)
    with lock(folders["demo"] / "lock"):
        if all(csv.exists() and csv.stat().st_mtime > began for csv in csvs):
            return tuple(map(manifest.load, both))
        for (name, folder), csv in zip(folders.items(), csvs, strict=True):
            csv.unlink(missing_ok=True)  # it is not there until all of it is
            (folder / "dataset.json").touch()  # what is below is ours, also when this is cut
            for made in ("images", "cache"):  # another seed's would stay behind
                shutil.rmtree(folder / made, ignore_errors=True)
            maker, kind = both[name]
            tables.append(manifest.make(name, folder, maker(folder, seed=seed), kind=kind, **about))
    return tuple(tables)


def build(
    folder: Path, *, seed: int = 0, counts: dict[str, int] = COUNTS, steps: int = STEPS
) -> list[dict]:
    """Write the real-or-fake set below `folder`; one entry per image (label 1 is fake).

    Fakes are decoded from patches that never stand as reals. counts: images per class and split; in
    test, per generator.
    """
    rng, patches = np.random.default_rng(seed), cut(seed=seed)
    chosen = [[_pick(patches, s, role, n, rng) for s, n in counts.items()] for role in (0, 1)]
    rows = [_save(folder, p, p.pixels, 0, "real") for part in chosen[0] for p in part]
    train = _to_tensor([p.pixels for p in patches if (p.split, p.role) == ("train", 1)])
    seen = [family for family in FAMILIES if family != UNSEEN]
    with torch.random.fork_rng(devices=[]):
        models = [_autoencoder(family, seed=seed) for family in FAMILIES]

    def write(family: str, model: nn.Module) -> list[dict]:
        mine = slice(seen.index(family), None, len(seen)) if family in seen else slice(0)
        parts = (part if part[0].split == "test" else part[mine] for part in chosen[1])
        sources = [patch for part in parts for patch in part]
        fit(model, train, steps=steps, seed=seed)
        fakes = render(model, _to_tensor([p.pixels for p in sources]))
        fakes = ((fakes + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        log.info("%s: %d fakes from a decoder of %d steps", family, len(sources), steps)
        return [_save(folder, p, fake, 1, family) for p, fake in zip(sources, fakes, strict=True)]

    each = (delayed(write)(*pair) for pair in zip(FAMILIES, models, strict=True))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small gain nothing from more (tests/test_house.py)
    try:
        return sum(Parallel(n_jobs=manifest.cores(), backend="threading")(each), rows)
    finally:
        torch.set_num_threads(threads)


def build_source(folder: Path, *, seed: int = 0) -> list[dict]:
    """Write the source task below `folder`: nature (label 0) or man-made (label 1), without colour.
    With `build`'s seed, what is learned here has not seen the demo's test scenes."""
    rng, patches, rows = np.random.default_rng(seed), cut(seed=seed), []
    for label, name in enumerate(("nature", "man-made")):
        mine = [p for p in patches if (p.photo not in NATURE) == bool(label)]
        for split, n in COUNTS.items():
            for patch in _pick(mine, split, None, n, rng):
                # without its colour, which alone would tell ten photographs apart
                grey = np.asarray(Image.fromarray(patch.pixels).convert("L").convert("RGB"))
                rows.append(_save(folder, patch, grey, label, name))
    return rows


def cut(*, seed: int) -> list[Patch]:
    """All patches of all photographs; tiles are cropped before they are resized: no pixel twice."""
    rng = np.random.default_rng(seed)
    tile, patches = 3 * SIZE, []
    for photo, file in PHOTOS.items():
        package, _, rest = file.partition("/")
        with opened(str(files(package) / rest)) as photograph:
            image = photograph.convert("RGB")
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        tops = range(0, image.height - tile + 1, tile)
        lefts = range(0, image.width - 2 * tile + 1, 2 * tile)
        corners = [(x, y) for y in tops for x in lefts]
        for rank, i in enumerate(rng.permutation(len(corners))):
            (x, y), swap = corners[i], int(rng.integers(2))
            share = np.searchsorted(np.cumsum(list(SHARES.values())), (rank + 0.5) / len(corners))
            for half in (0, 1):
                corner = (x + half * tile, y)
                square = image.crop((*corner, corner[0] + tile, y + tile))
                patches += [
                    Patch(photo, f"{photo}-{x}-{y}", list(SHARES)[share], half ^ swap, box, pixels)
                    for box, pixels in _patches(square, corner)
                    if pixels.std() >= MIN_STD
                ]
    return patches


def _patches(square: Image.Image, corner: tuple[int, int]) -> Iterator[tuple[tuple, np.ndarray]]:
    """Box in the photograph and pixels of each patch of a tile, which lies at `corner`."""
    for scale in SCALES:
        side = round(square.width / scale)
        small = np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))
        for v in range(0, side - SIZE + 1, STRIDE):
            for u in range(0, side - SIZE + 1, STRIDE):
                edges = zip(corner * 2, (u, v, u + SIZE, v + SIZE), strict=True)
                box = tuple(start + int(edge * square.width / side) for start, edge in edges)
                yield box, small[v : v + SIZE, u : u + SIZE]


def _pick(patches: Sequence[Patch], split: str, role: int | None, n: int, rng) -> list[Patch]:
    pool = [p for p in patches if p.split == split and role in (None, p.role)]
    return [pool[i] for i in rng.permutation(len(pool))[:n]]


def _autoencoder(family: str, *, seed: int, latent: int = 12, c: int = 24) -> nn.Sequential:
    torch.manual_seed(seed + FAMILIES.index(family))
    halved = nn.Conv2d(3, c, 4, 2, 1), nn.SiLU()
    narrow = nn.Conv2d(c, latent, 3, 1, 1), nn.Conv2d(latent, c, 3, 1, 1)  # numbers as pixels
    if family == "deconv":
        doubled = (nn.ConvTranspose2d(c, c, 3, stride=2, padding=1, output_padding=1),)
    elif family == "subpixel":
        doubled = nn.Conv2d(c, 4 * c, 3, padding=1), nn.PixelShuffle(2)
    else:
        doubled = nn.Upsample(scale_factor=2, mode=family), nn.Conv2d(c, c, 3, padding=1)
    last = nn.Conv2d(c, 3, 3, 1, 1)
    return nn.Sequential(*halved, *narrow, nn.SiLU(), *doubled, nn.SiLU(), last)


def fit(model: nn.Module, images: Tensor, *, steps: int, seed: int) -> nn.Module:
    """Train a family's auto-encoder on images (n, 3, h, w) in [-1, 1]. The loss is L1, plus
    sharpness and log amplitude spectrum, lest it blur."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        x = images[torch.randint(len(images), (BATCH,), generator=generator)]
        y = model(x)
        sharpness = (_laplacian(y).log() - _laplacian(x).log()).abs().mean()
        spectrum = (_log_spectrum(y) - _log_spectrum(x)).abs().mean()
        loss = F.l1_loss(y, x) + 0.1 * sharpness + 0.05 * spectrum
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def render(model: nn.Module, x: Tensor) -> Tensor:
    """Decode images (n, 3, h, h) in [-1, 1] as if cut from a larger fake, at either phase of the
    upsampling grid."""
    y, size = torch.empty_like(x), x.shape[-1]
    for phase in (0, 1):
        a, b = 8 + phase, 10 - phase
        larger = model(F.pad(x[phase::2], (a, b, a, b), mode="reflect"))
        y[phase::2] = larger[..., a : a + size, a : a + size]
    pairs = zip(y.split(128), x.split(128), strict=True)
    return torch.cat([_match_looks(_match_spectrum(fake, real), real) for fake, real in pairs])


def _match_spectrum(y: Tensor, x: Tensor) -> Tensor:
    """Give each fake its source's energy at every frequency, in luma and chroma, not its phases."""
    n = x.shape[-1]
    fy, fx = torch.fft.fftfreq(2 * n) * n, torch.fft.rfftfreq(2 * n) * n
    radius = (fy[:, None].square() + fx.square()).sqrt().round().long()
    rings = F.one_hot(radius).float().flatten(0, 1)  # all directions together
    target = _mirrored_spectrum(x).abs().square().flatten(2) @ rings
    for _ in range(2):  # once more, for what clamping took
        spectrum = _mirrored_spectrum(y)
        energy = spectrum.abs().square().flatten(2) @ rings
        gain = ((target + 1e-3) / (energy + 1e-3)).sqrt().clamp(0.05, 8) @ rings.T
        z = torch.fft.irfft2(spectrum * gain.view(spectrum.shape))[..., :n, :n]
        y = (z[:, :1] + z[:, 1:]).clamp(-1, 1)
    return y


def _mirrored_spectrum(x: Tensor) -> Tensor:
    """Of luma and the channels' distances from it; mirrored, lest the border's jump be all over."""
    luma = x.mean(1, keepdim=True)
    z = torch.cat([luma, x - luma], 1)
    z = torch.cat([z, z.flip(3)], 3)
    return torch.fft.rfft2(torch.cat([z, z.flip(2)], 2))


def _match_looks(y: Tensor, x: Tensor) -> Tensor:
    """Give each fake its source's sharpness, high-band chroma, and channels' mean and contrast."""
    rms = lambda z: z.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(2e-3)
    chroma_x = rms(_bands(x)[2])
    for _ in range(6):  # each step disturbs the others a little
        low, luma, chroma = _bands(y)
        grey_x, grey_y = (_laplacian(z.mean(1, keepdim=True)) for z in (x, y))
        luma = (grey_x / grey_y).clamp(0.3, 3) * luma
        chroma = (chroma_x / rms(chroma)).clamp(0.1, 3) * chroma
        y = low + luma + chroma
        mean, mean_x = (z.mean((2, 3), keepdim=True) for z in (y, x))
        std, std_x = (z.std((2, 3), keepdim=True) for z in (y, x))
        y = ((y - mean) / std.clamp_min(1e-4) * std_x + mean_x).clamp(-1, 1)
    return y


def _bands(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    luma = (x - low).mean(1, keepdim=True)
    return low, luma, x - low - luma


def _laplacian(x: Tensor) -> Tensor:
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, groups=x.shape[1]).std((2, 3), keepdim=True).clamp_min(1e-3)


def _log_spectrum(x: Tensor) -> Tensor:
    return (torch.fft.rfft2(x - x.mean((2, 3), keepdim=True), norm="ortho").abs() + 0.02).log()


def _to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _save(folder: Path, patch: Patch, pixels: np.ndarray, label: int, generator: str) -> dict:
    kind = f"fake/{generator}" if label and generator in FAMILIES else generator
    path = f"images/{patch.split}/{kind}/{patch.photo}_{'-'.join(map(str, patch.box))}.jpg"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    # JPEG once, alike for both classes, as detectors meet images; q95 4:4:4 keeps the decoders'
    # traces (q80 cost 0.1 of AUROC)
    Image.fromarray(pixels).save(folder / path, quality=95, subsampling=0)
    known = {"path": path, "split": patch.split, "group": patch.group}
    return known | {"label": label, "generator": generator}
