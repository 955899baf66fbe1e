"""What test files share: temporary roots, a small real-or-fake dataset, makers of image files."""

import os
import shutil

# before torch: two files are tested at a time, and more threads than cores wait for one another
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pytest
from local_server import Server, serving
from made import finished, lived_in, noise
from PIL import Image, ImageFilter

from data_prep import download, folder, sources
from dflib import export, models, prune
from dflib.data import Dataset, Part

hypothesis.settings.register_profile("here", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("here")

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
CELL = 48  # pixels: each cell of a photograph gives one patch, real or fake


LONGEST = ("notebooks", "study", "faults", "progress", "chain", "edge", "backbones", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: then two processes end at about the same time."""
    place = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session", autouse=True)
def roots(tmp_path_factory) -> Iterator[Path]:
    """Data and outputs of the session lie in a temporary folder, here and in child processes."""
    base = tmp_path_factory.mktemp("roots")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_DATA", str(base / "data"))
        patch.setenv("DFLIB_OUTPUTS", str(base / "outputs"))
        yield base


@pytest.fixture(scope="session")
def tiny_dataset(roots) -> str:
    """A prepared dataset: 120 patches and 60 "nearest", 60 "blurred" other ones, of 32 to 48 px."""
    base = roots / "images"
    rng = np.random.default_rng(0)
    cells = [(p, x, y) for p in PHOTOGRAPHS for x in range(9) for y in range(6)]
    chosen = [cells[i] for i in rng.permutation(len(cells))[:240]]
    photographs = {
        p: Image.open(str(files("skimage") / "data" / p)).convert("RGB") for p in PHOTOGRAPHS
    }
    for i, (photograph, x, y) in enumerate(chosen):
        side = int(rng.integers(16, 25)) * 2
        patch = photographs[photograph].crop((x * CELL, y * CELL, x * CELL + side, y * CELL + side))
        where = ("real", "fake/nearest", "real", "fake/blurred")[i % 4]
        if where == "fake/nearest":
            half = patch.resize((side // 2,) * 2, Image.Resampling.BOX)
            patch = half.resize((side,) * 2, Image.Resampling.NEAREST)
        elif where == "fake/blurred":
            patch = patch.filter(ImageFilter.GaussianBlur(1.5))
        path = base / where / f"{Path(photograph).stem}-{x}-{y}.{('jpg', 'png')[i // 4 % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        patch.save(path, quality=90)
    folder.prepare(base, name="tiny-set")
    return "tiny-set"


@pytest.fixture(scope="session")
def tiny_source(roots) -> str:
    """A prepared source task: 80 patches of a cat, 80 of a cup, in the layout of dogs vs cats."""
    base = roots / "pets"
    for kind, photograph in (("cats", "chelsea.png"), ("dogs", "coffee.png")):
        image = Image.open(str(files("skimage") / "data" / photograph)).convert("RGB")
        for i in range(80):
            x, y = CELL * (i % 9), 16 * (i // 9)
            path = base / ("test" if i // 9 > 5 else "train") / kind / f"{x}-{y}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.crop((x, y, x + CELL, y + CELL)).save(path)
    sources.prepare("dogs-vs-cats", base, name="tiny-source")
    return "tiny-source"


@pytest.fixture
def data_root(tmp_path, monkeypatch) -> Path:
    """An empty data root of the test's own."""
    monkeypatch.setenv("DFLIB_DATA", str(tmp_path / "data-root"))
    return tmp_path / "data-root"


@pytest.fixture
def outputs_root(tmp_path, monkeypatch) -> Path:
    """An empty outputs root of the test's own."""
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "outputs-root"))
    return tmp_path / "outputs-root"


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    """A local HTTP server (see tests/local_server.py); downloads try again without waiting."""
    monkeypatch.setattr(download, "WAIT", 0.01)
    with serving() as served:
        yield served


@pytest.fixture(scope="session")
def picture() -> Callable[..., Path]:
    """picture(path, seed=0, size=(12, 9), mode="RGB", **save_options): write an image of noise."""

    def write(path: Path, *, seed: int = 0, size=(12, 9), mode: str = "RGB", **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(*size, seed).convert(mode).save(path, **options)
        return path

    return write


@pytest.fixture(scope="session")
def tree(picture) -> Callable[..., Path]:
    """tree(root, {"real": 10, "fake/gan": 10}, suffix=".png"): different small images."""

    def make(root: Path, counts: dict[str, int], *, suffix: str = ".png", size=(12, 9)) -> Path:
        seed = 0
        for where, n in counts.items():
            for i in range(n):
                seed += 1
                name = f"{where.replace('/', '-')}-{i:03d}{suffix}"
                picture(root / where / name, seed=seed, size=size)
        return root

    return make


@pytest.fixture(scope="session")
def toy() -> Callable[..., Dataset]:
    """toy(n=60, size=32, seed=0): a Dataset in memory, easy to tell apart (fakes are striped)."""

    def make(n: int = 60, *, size: int = 32, seed: int = 0) -> Dataset:
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % 2
        images = rng.integers(0, 200, (n, size, size, 3), dtype=np.uint8)
        images[labels == 1, :, ::2] += 50
        table = pd.DataFrame({"row": np.arange(n), "label": labels})
        table["generator"] = np.where(labels, "stripes", "camera")
        table["path"] = table["group"] = [f"i{i}" for i in range(n)]
        a, b = n * 6 // 10, n * 8 // 10
        pieces = (table[:a], table[a:b], table[b:])
        parts = [Part(images, piece.reset_index(drop=True)) for piece in pieces]
        return Dataset("toy", size, "strict", "resize", *parts, ("real", "fake"))

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> dict:
    """A small detector with lived-in BatchNorms and its files: {"model", "checkpoint", "onnx"}."""
    folder_ = tmp_path_factory.mktemp("exported")
    blocks = [models.Block(8, pool=True)]
    blocks += [models.Block(16, pool=True, separable=True, mid=16, groups=8), models.Block(16)]
    head = (models.Dense(256, 0.5), models.Dense(32, 0.5))
    arch = models.Architecture("t", 32, tuple(blocks), head)
    model = lived_in(arch)
    return {
        "model": model,
        "checkpoint": models.save(model, folder_ / "model.safetensors"),
        "onnx": export.to_onnx(model, folder_ / "model.onnx"),
    }


@pytest.fixture(scope="session")
def explorer_outputs(tiny_dataset, tmp_path_factory) -> Path:
    """An outputs root with finished runs, not trained: BL, CPF at one rate, CPF-S at two."""
    folder_ = tmp_path_factory.mktemp("explorer-outputs")
    own = {"dataset": tiny_dataset, "weight_decay": 0.3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(folder_))
        base = lived_in(models.architecture("BL", size=32))
        finished(base, "BL", **own)
        for rate in (0.6, 0.9):
            finished(prune.structured(base, rate=rate), "CPF-S", rate=rate, **own)
        prune.apply_masks(base, prune.magnitude_masks(base, rate=0.6))
        finished(base, "CPF", rate=0.6, **own)
    return folder_


@pytest.fixture(scope="module")
def shown_outputs(explorer_outputs) -> Iterator[Path]:
    """`explorer_outputs` as the outputs root of a file of tests that only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(explorer_outputs))
        yield explorer_outputs


@pytest.fixture
def own_outputs(explorer_outputs, tmp_path, monkeypatch) -> Path:
    """A copy of `explorer_outputs` that a test may change or damage, as the outputs root."""
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "outputs"))
    return Path(shutil.copytree(explorer_outputs, tmp_path / "outputs"))


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Reports without figures, for tests of the rest."""
    monkeypatch.setattr("dflib.show.report.FIGURES", {})
