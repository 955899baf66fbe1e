"""What the explorer shows, as data: comparable runs, cards, flips, costs of errors, one uploaded image, a rate made on the spot. No widgets here."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from data_prep.errors import InputError
from dflib import metrics
from dflib.show.plots import in_order, run_label
from dflib.study import runs

SAME = (
    "dataset",
    "protocol",
    "size",
    "mode",
    "limit",
    "target_images",
    "seed",
)  # of runs that can be compared
UPLOAD_BYTES, UPLOAD_PIXELS = 8_000_000, 40_000_000
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
SHOWN = 6  # test images on a page


@dataclass(frozen=True)
class Study:
    """Runs on the same images at one seed, and the BL that they are measured against. rows: as `runs.results`, with `name` and `label`."""

    title: str
    rows: pd.DataFrame
    made: list[dict] = field(
        default_factory=list
    )  # on the spot, in a folder that goes with this process

    @property
    def table(self) -> pd.DataFrame:
        return (
            _labelled(pd.concat([self.rows, pd.DataFrame(self.made)])) if self.made else self.rows
        )

    @property
    def base(self) -> pd.Series:
        return self.rows[self.rows["method"] == "BL"].iloc[0]

    def row(self, run_id: str) -> pd.Series:
        table = self.table
        return table[table["run_id"] == run_id].iloc[0]

    def of(self, method: str) -> pd.DataFrame:
        """The runs of a method, by rate."""
        table = self.table
        return table[table["method"] == method].sort_values("rate", kind="stable")

    @cached_property
    def settings(self) -> dict:
        """The settings that its runs were made with, as far as they read them."""
        found = [runs.read(folder)["params"] for folder in self.rows["folder"]]
        return {k: v for params in reversed(found) for k, v in params.items()}

    def spec(self, method: str, rate: float | None, **changes) -> runs.Spec:
        """The request that would make such a run within this study; raises `InputError` as `runs.spec` does."""
        from data_prep import paths

        base, sources = self.base, self.rows["source"].dropna().tolist()
        sources += [name for name in paths.present() if paths.describe(name)["kind"] == "source"]
        return runs.spec(
            method,
            preset=base["preset"],
            dataset=base["dataset"],
            protocol=base["protocol"],
            seed=int(base["seed"]),
            rate=rate,
            source=sources[0] if sources else None,
            settings=self.settings | changes,
        )

    def missing(self, method: str, rate: float | None) -> str:
        """The command that makes a run which is not there."""
        return self.spec(method, rate).command()

    @cached_property
    def data(self):
        """The dataset as its runs saw it; raises `InputError` where the images are gone."""
        from dflib import data

        b = self.base
        limit = None if pd.isna(b["limit"]) else int(b["limit"])
        return data.open(
            b["dataset"], size=int(b["size"]), protocol=b["protocol"], mode=b["mode"], limit=limit
        )


def studies(dataset: str = "", protocol: str = "") -> list[Study]:
    """All finished runs in groups that can be compared, each with its BL; runs that no BL goes with are left out.

    Those of `dataset` and `protocol` come first, and of them those with most runs.
    """
    rows = runs.results()
    if rows.empty:
        return []
    known = rows.set_index("run_id")
    rows["base"] = [
        _baseline(known, run_id, dataset)
        for run_id, dataset in zip(rows["run_id"], rows["dataset"], strict=True)
    ]
    found = []
    for _, group in rows.groupby(list(SAME), dropna=False, sort=True):
        bases = group.loc[group["method"] == "BL", "run_id"].tolist()
        for base in bases:
            mine = group[group["base"].isin([base]) | group["base"].isna()]
            first = mine.iloc[0]
            title = f"{first['dataset']} · {first['protocol']} · {first['size']} px · seed {first['seed']}"
            title += f" · {first['limit']:g} images" if pd.notna(first["limit"]) else ""
            title += (
                f" · {first['target_images']:g} to train on"
                if pd.notna(first["target_images"])
                else ""
            )
            found.append(
                Study(
                    title + (f" · {base.rpartition('-')[2]}" if len(bases) > 1 else ""),
                    _labelled(mine),
                )
            )
    place = lambda s: (s.base["dataset"] != dataset, s.base["protocol"] != protocol, -len(s.rows))
    return sorted(found, key=place)


def _baseline(known: pd.DataFrame, run_id: str, dataset: str) -> str | None:
    """The BL on its own dataset that a run descends from."""
    if run_id not in known.index:
        return None
    row = known.loc[run_id]
    if row["method"] == "BL":
        return run_id if row["dataset"] == dataset else None
    return next((b for p in row["parents"].split(",") if (b := _baseline(known, p, dataset))), None)


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """With `name` ("CPF 90%") and `label` (a rate, for the slider); what several runs share gets their hashes."""
    rows = in_order(rows)
    rows["name"] = [run_label(m, r) for m, r in zip(rows["method"], rows["rate"], strict=True)]
    rows["label"] = ["no rate" if pd.isna(r) else f"{100 * r:g} %" for r in rows["rate"]]
    twice = rows.duplicated(["method", "rate"], keep=False)
    rows.loc[twice, ["name", "label"]] += (
        " · " + rows.loc[twice, ["run_id"]].iloc[:, [0, 0]].map(lambda i: i[-4:]).to_numpy()
    )
    return rows


# --- cards


@dataclass(frozen=True)
class Card:
    """One figure of a run: its text, and what it is against BL. better: None where nothing is shown."""

    title: str
    value: str
    against: str
    better: bool | None = None


def cards(study: Study, run_id: str) -> list[Card]:
    """Parameters, operations, size, latency, accuracy and AUROC of a run, each against BL (differences paired, on the same images)."""
    run, base = study.row(run_id), study.base
    own = run_id == base["run_id"]
    found = []
    for title, column, unit, form, less, more in (
        ("Parameters", "params", 1, "{:,.0f}", "fewer", "more"),
        ("Not zero", "nonzero", 1, "{:,.0f}", "fewer", "more"),
        ("Multiply-adds", "macs", 1e6, "{:,.1f} M", "fewer", "more"),
        ("File", "file_bytes", 1e6, "{:.2f} MB", "smaller", "larger"),
        ("Latency, median", "latency_p50_ms", 1, "{:.2f} ms", "faster", "slower"),
    ):
        ratio = float(base[column] / run[column])
        near = 0.95 < ratio < 1.05
        text = (
            "as BL"
            if near
            else f"{ratio:.1f} times {less}"
            if ratio > 1
            else f"{1 / ratio:.1f} times {more}"
        )
        found.append(
            Card(
                title,
                form.format(run[column] / unit),
                "" if own else text,
                None if own or near else ratio > 1,
            )
        )
    for title, metric in (("Accuracy", "accuracy"), ("AUROC", "auroc")):
        value, low, high = (run.get(metric + end) for end in ("", "_low", "_high"))
        text = f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if pd.notna(low) else "")
        found.append(
            Card(title, text, *(("", None) if own else _difference(study, run_id, metric)))
        )
    return found


def _difference(study: Study, run_id: str, metric: str) -> tuple[str, bool | None]:
    try:
        found = _paired(study.base["folder"], study.row(run_id)["folder"])[metric]
    except InputError as error:
        return str(error), None
    text = f"{found['difference']:+.3f} against BL"
    if not found["ci95"]:
        return text.replace("-", "−"), None
    low, high = found["ci95"]
    shown = None if low <= 0 <= high else low > 0
    verdict = {None: "no difference shown", True: "better", False: "worse"}[shown]
    return f"{text} [{low:+.3f}, {high:+.3f}]: {verdict}".replace("-", "−"), shown


def warm_up(studies: list[Study]) -> None:
    """Load what finds the commands of missing runs, and compare all runs with their BL, before anyone waits for it."""
    for study in studies:
        with contextlib.suppress(InputError):
            study.missing("CPF-S", 0.5)
        for run_id in study.rows["run_id"]:
            cards(study, run_id)


@lru_cache(maxsize=512)
def _paired(base: str, folder: str) -> dict:
    a, b = predictions(base), predictions(folder)
    if not a["path"].equals(b["path"]):
        raise InputError("tested on other images than BL")
    thresholds = {
        f"threshold_{k}": runs.read(f)["threshold"] for k, f in (("a", base), ("b", folder))
    }
    return metrics.paired(
        a["label"], a["score"], b["score"], groups=a["group"], draws=400, **thresholds
    )


@lru_cache(maxsize=512)
def predictions(folder: str) -> pd.DataFrame:
    """The scores of a run on every test image; raises `InputError` where the file is missing or damaged."""
    try:
        return pd.read_parquet(Path(folder) / "predictions.parquet")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{Path(folder).name} has no predictions that can be read: make the run again"
        ) from error


# --- test images


def compared(study: Study, run_id: str) -> pd.DataFrame:
    """Each test image under BL and a run: path, generator, label, base_score, score, base_right, right, flip (the decisions differ)."""
    a, b = predictions(study.base["folder"]), predictions(study.row(run_id)["folder"])
    if not a["path"].equals(b["path"]):
        raise InputError(f"{run_id} was tested on other images than BL")
    before, after = (
        a["score"] >= study.base["threshold"],
        b["score"] >= study.row(run_id)["threshold"],
    )
    table = a[["path", "generator", "label"]].assign(
        base_score=a["score"], score=b["score"], base_fake=before, fake=after
    )
    return table.assign(
        base_right=before == a["label"], right=after == a["label"], flip=before != after
    )


CHOICES = {  # what can be shown -> the images' positions in a table of `compared`, the most telling first
    "decisions that flipped": lambda t: t[t["flip"]].assign(
        by=(t["score"] - t["base_score"]).abs()
    ),
    "got worse (BL was right)": lambda t: t[t["base_right"] & ~t["right"]].assign(
        by=(t["score"] - t["base_score"]).abs()
    ),
    "got better (BL was wrong)": lambda t: t[~t["base_right"] & t["right"]].assign(
        by=(t["score"] - t["base_score"]).abs()
    ),
    "wrong under both": lambda t: t[~t["base_right"] & ~t["right"]].assign(
        by=(t["score"] - t["label"]).abs()
    ),
    "probabilities furthest apart": lambda t: t.assign(by=(t["score"] - t["base_score"]).abs()),
    "one of each generator": lambda t: t.assign(by=-t.groupby("generator").cumcount()),
}


def chosen(table: pd.DataFrame, choice: str) -> list[int]:
    """Positions of the test images that a choice of `CHOICES` shows, in order."""
    return CHOICES[choice](table).sort_values("by", ascending=False, kind="stable").index.tolist()


@lru_cache(maxsize=16)
def model(folder: str):
    """A run's network (of an int8 run: the float weights that were rounded)."""
    from dflib import models

    return models.load(Path(folder) / "model.safetensors")


@dataclass(frozen=True)
class Look:
    """One image as its viewers see it: itself, its residual, and a heat map for each model; all uint8, H x W x 3."""

    image: np.ndarray
    residual: np.ndarray
    heat: list[np.ndarray]


def looks(images: np.ndarray, folders: list[str]) -> list[Look]:
    """Residual (grey 128 +- 8 times the level) and Grad-CAM for "fake" under each run: images are uint8, N x H x W x 3."""
    import torch
    from matplotlib import colormaps

    from dflib import explain

    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    grey = np.clip(128 + 8 * explain.residual(batch), 0, 255).astype(np.uint8)
    shown = []
    for folder in folders:
        maps = explain.gradcam(model(folder), batch)[..., None]
        plain = images.mean(3, keepdims=True) * 0.7
        shown.append(
            (
                (1 - 0.75 * maps) * plain
                + 0.75 * maps * 255 * colormaps["inferno"](maps[..., 0])[..., :3]
            ).astype(np.uint8)
        )
    return [
        Look(image, np.repeat(grey[i][..., None], 3, 2), [s[i] for s in shown])
        for i, image in enumerate(images)
    ]


# --- threshold


def confusion(table: pd.DataFrame, column: str, threshold: float) -> dict[str, int]:
    """Counts at a threshold (a score that reaches it is called fake): tp and fn of the fakes, tn and fp of the reals."""
    called, fake = table[column].to_numpy() >= threshold, table["label"].to_numpy() == 1
    return {
        "tp": int((called & fake).sum()),
        "fn": int((~called & fake).sum()),
        "fp": int((called & ~fake).sum()),
        "tn": int((~called & ~fake).sum()),
    }


def error_cost(
    table: pd.DataFrame, column: str, thresholds: np.ndarray, *, miss: float, share: float
) -> np.ndarray:
    """Expected cost of 100 images at each threshold: a false alarm costs 1, a missed fake `miss`; a `share` of them is fake.

    >>> table = pd.DataFrame({"label": [0, 0, 1, 1], "score": [.1, .6, .4, .9]})
    >>> error_cost(table, "score", np.array([0, .5, 1]), miss=10, share=.5)
    array([ 50., 275., 500.])
    """
    score, fake = table[column].to_numpy(), table["label"].to_numpy() == 1
    reals, fakes = np.sort(score[~fake]), np.sort(score[fake])
    alarms = 1 - np.searchsorted(reals, thresholds) / len(reals)
    missed = np.searchsorted(fakes, thresholds) / len(fakes)
    return 100 * ((1 - share) * alarms + share * miss * missed)


# --- one's own image


def check_upload(data: bytes) -> Image.Image:
    """An uploaded image as upright RGB, decoded in memory; raises `InputError` for a file too large, of another kind, or damaged.

    The kind is read from the content, never from the name; size and pixels are checked before anything is decoded.
    """
    from data_prep.integrity import BadImage, open_image, to_rgb

    if len(data) > UPLOAD_BYTES:
        raise InputError(
            f"the file has {len(data) / 1e6:.1f} MB: at most {UPLOAD_BYTES / 1e6:.0f} MB can be uploaded"
        )
    kinds = ", ".join(UPLOAD_FORMATS)
    try:
        with Image.open(
            io.BytesIO(data), formats=UPLOAD_FORMATS
        ) as header:  # reads the header only
            width, height = header.size
        if width * height > UPLOAD_PIXELS:
            raise InputError(
                f"the image has {width} x {height} pixels: at most {UPLOAD_PIXELS / 1e6:.0f} million can be uploaded"
            )
        return to_rgb(open_image(data))
    except InputError:
        raise
    except BadImage as error:
        raise InputError(f"the file cannot be used ({error}): take another one") from error
    except Exception as error:  # Pillow's headers have their own kinds
        raise InputError(
            f"the file is not an image of a kind that is taken here: {kinds}"
        ) from error


def answer(data: bytes, study: Study, run_ids: list[str]) -> tuple[list[dict], Look]:
    """An uploaded image through some runs' deployed files: {"name", "probability", "label", "threshold"} each, and how it looks to them."""
    from data_prep.cache import fit
    from dflib.edge.predict import Predictor

    image = check_upload(data)
    rows = [study.row(run_id) for run_id in run_ids]
    found = []
    for row in rows:
        predictor = Predictor(row["folder"])
        array = fit(image, size=predictor.size, mode=predictor.mode)
        p = predictor.probability(image)
        label = predictor.classes[int(p >= predictor.threshold)]
        found.append(
            {
                "name": row["name"],
                "probability": p,
                "label": label,
                "threshold": predictor.threshold,
            }
        )
    return found, looks(array[None], [row["folder"] for row in rows])[0]


# --- a rate on the spot


class Job:
    """Structured pruning at a rate with a short fine-tuning, in a process of its own: `for share, what in job.progress(): …`, then `job.row()`.

    What it makes lies in a temporary folder that goes with this object; `keep()` moves it to the finished runs. It is the run that
    notebook 03 makes with the same settings.
    """

    def __init__(self, study: Study, rate: float, *, epochs: int = 2) -> None:
        self.spec = study.spec("CPF-S", rate, finetune_epochs=epochs)
        self.place = tempfile.TemporaryDirectory(
            prefix="dflib-explorer-", ignore_cleanup_errors=True
        )
        parent = Path(self.place.name, *self.spec.parents[0].folder.parts[-4:])
        parent.parent.mkdir(parents=True)
        parent.symlink_to(Path(study.base["folder"]).resolve(), target_is_directory=True)
        request = {
            "rate": rate,
            "settings": self.spec.settings,
            "preset": self.spec.preset,
            "dataset": self.spec.dataset,
            "protocol": self.spec.protocol,
            "seed": self.spec.seed,
        }
        env = os.environ | {
            "DFLIB_OUTPUTS": self.place.name,
            "DFLIB_DATA": str(Path(_data_root()).resolve()),
        }
        env["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(Path(__file__).parents[2]), env.get("PYTHONPATH")])
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dflib.show.explorer", json.dumps(request)],
            env=env,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def progress(self) -> Iterator[tuple[float, str]]:
        """How far it is (0 to 1), and what it does; ends with the process. Raises `InputError` when it failed."""
        last = ""
        with self.process.stdout as lines:
            for line in lines:
                last = line.strip() or last
                if line.startswith("progress "):
                    share, _, what = line[9:].strip().partition(" ")
                    yield float(share), what
        failed = self.process.wait() != 0
        if self.cancelled:
            self.place.cleanup()
        elif failed:
            raise InputError(f"it could not be made: {last[:300]}")

    cancelled = False

    def cancel(self) -> None:
        """End the process and all that it started."""
        self.cancelled = True
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)

    @property
    def folder(self) -> Path:
        kept = self.spec.folder
        return kept if kept.is_dir() else Path(self.place.name, *kept.parts[-4:])

    def row(self) -> dict:
        """The made run, as a row of `runs.results`."""
        return runs.flat(runs.read(self.folder)) | {"folder": str(self.folder)}

    def keep(self) -> Path:
        """Move what was made to the finished runs; returns the folder."""
        target = self.spec.folder
        if not self.spec.finished():
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_name(target.name + ".new")
            shutil.copytree(self.folder, new)
            new.replace(target)
        return target


def _data_root() -> Path:
    from data_prep.paths import data_root

    return data_root()


def _make(request: dict) -> None:
    """What a `Job` does in its process: the calls of notebook 03, with the progress on standard output."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from dflib.study import chain

    run = runs.Run(runs.spec("CPF-S", **request))
    s, done = run.settings, 0
    total = ((s["prune_steps"] - 1) * s["step_epochs"] + s["finetune_epochs"]) * -(
        -len(run.data.train) // s["batch"]
    )

    def tell(*_) -> None:
        nonlocal done
        done += 1
        _say(0.9 * done / total, f"fine-tuning, step {done} of {total}")

    register_optimizer_step_post_hook(tell)
    _say(0, "pruning")
    network = chain.prune_in_steps(run, run.parent("BL").model(), run.spec.rate)
    run.fit(
        network,
        run.recipe(epochs=s["finetune_epochs"], lr=s["finetune_lr"]),
        as_timing="compress_s",
    )
    _say(0.92, "evaluating and measuring")
    run.finish(network)


def _say(share: float, what: str) -> None:
    sys.stdout.write(f"progress {share:.3f} {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _make(json.loads(sys.argv[1]))
