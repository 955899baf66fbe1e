"""Runs: one finished folder per method, rate, seed, dataset and settings. The same request finds the finished run again.

What a notebook calls: `run = start("CPF", rate=0.9, …)`, `run.parent()`, `run.fit(…)`, `run.finish(model)`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import re
import shutil
import time
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import InputError, check_rate, choose
from data_prep.paths import PROJECT, attached_roots, images_root, outputs_root, write_text
from dflib.study import methods

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import pandas as pd
    from torch import nn

    from dflib.data import Dataset
    from dflib.train import Recipe

log = logging.getLogger(__name__)

SCHEMA = 1
NOTEBOOKS = PROJECT / "notebooks"
LIBRARIES = ("torch", "torchvision", "onnxruntime", "onnx", "numpy", "scikit-learn", "papermill")


@dataclass(frozen=True)
class Spec:
    """Everything that decides a run's result. Its id is readable and ends in a hash of all of it."""

    method: str
    dataset: str
    protocol: str
    preset: str
    rate: float | None
    seed: int
    settings: dict  # all of them; only those that the method reads count
    source: str = ""  # the dataset that a transfer starts from; "" for other methods

    @property
    def notebook(self) -> Path:
        return NOTEBOOKS / f"{methods.method(self.method).notebook}.ipynb"

    @cached_property
    def parents(self) -> tuple[Spec, ...]:
        own = (self._parent(*name.split("@")) for name in methods.method(self.method).parents)
        return tuple(own)

    def _parent(self, code: str, at: str = "target") -> Spec:
        row, other = methods.method(code), {}
        if at == "source":  # the same settings on the source dataset, with all its images
            other = {
                "dataset": self.source,
                "settings": self.settings
                | {"target_images": None, "train_generators": "", "hold_out": ""},
            }
        rate, source = self.rate if row.rated else None, self.source if row.transfers else ""
        return replace(self, method=code, rate=rate, source=source, **other)

    @cached_property
    def fingerprint(self) -> str:
        from data_prep.manifest import fingerprint_of

        return fingerprint_of(self.dataset)

    @cached_property
    def run_id(self) -> str:
        decides = {
            "method": self.method,
            "rate": self.rate,
            "seed": self.seed,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "settings": methods.relevant(self.method, self.settings),
            "parents": [p.run_id for p in self.parents],
            "data": self.fingerprint,
            "notebook": code_hash(self.notebook),
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        rate = "" if self.rate is None else f"-r{100 * self.rate:g}"
        return f"{self.method}{rate}-s{self.seed}-{self.settings['size']}px-{digest}"

    @property
    def folder(self) -> Path:
        """Below the outputs root; a finished run's may also be below an attached one (`paths.attached_roots`)."""
        return self._finished or outputs_root() / self._place

    @cached_property
    def _place(self) -> str:
        return "/".join((self.dataset, self.protocol, self.method, self.run_id))

    @property
    def _finished(self) -> Path | None:
        places = (root / self._place for root in (outputs_root(), *attached_roots()))
        return next((f for f in places if (f / "result.json").exists()), None)

    def finished(self) -> bool:
        return self._finished is not None

    def failure(self) -> dict | None:
        """The record of a failed attempt, if there is one that can be read."""
        return None if self.finished() else failure(self.folder)

    def parameters(self) -> dict:
        """The notebook's parameters for papermill: only what differs from the preset goes into `settings`."""
        usual = methods.settings(self.preset)
        values = {
            "preset": self.preset,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "seed": self.seed,
        }
        values |= {"source": self.source} if self.source else {}
        values["settings"] = {k: v for k, v in self.settings.items() if usual[k] != v}
        if len(methods.made_by(self.notebook.stem)) > 1:
            values["method"] = self.method
        return values | ({"rate": self.rate} if self.rate is not None else {})

    def command(self) -> str:
        """The command line that makes this run."""
        text = f"python -m dflib study --preset {self.preset} --dataset {self.dataset} --protocol {self.protocol} --methods {self.method} --seeds {self.seed}"
        text += f" --source {self.source}" if self.source else ""
        text += f" --rates {self.rate}" if self.rate is not None else ""
        return text + "".join(f" --set {k}={v}" for k, v in self.parameters()["settings"].items())


def spec(
    method: str,
    *,
    preset: str = "demo",
    dataset: str | None = None,
    source: str | None = None,
    protocol: str = "strict",
    rate: float | None = None,
    seed: int = 0,
    settings: dict | None = None,
) -> Spec:
    """Check the request and return its `Spec`. What is not given comes from the preset; `source` counts for transfers alone.

    Raises `InputError` for an unknown method, preset, protocol, dataset, layer or setting, a source that is the dataset itself, or a rate that
    is missing or impossible.

    >>> spec("CPF", rate=0.9).run_id                                # doctest: +SKIP
    'CPF-r90-s0-32px-1f0c9a2b'
    """
    from data_prep.paths import dataset_folder
    from data_prep.protocol import PROTOCOLS

    row = methods.method(method)
    values = methods.settings(preset, settings)
    choose("protocol", protocol, PROTOCOLS)
    dataset = dataset or methods.preset(preset).dataset
    dataset_folder(dataset)
    if values["train_generators"] or values["hold_out"]:
        from dflib.data import trained_on

        trained_on(
            dataset,
            protocol=protocol,
            train_generators=values["train_generators"],
            hold_out=values["hold_out"],
        )
    if row.rated:
        if rate is None:
            raise InputError(f"{method} needs a rate: the share of parameters removed, e.g. 0.9")
        check_rate(rate)
    source = (source or methods.preset(preset).source) if row.transfers else ""
    if source:
        if values["backbone"] != "vgg":
            raise InputError(
                f"{method} with backbone {values['backbone']}: transfers name layers of the vgg; leave the backbone out, or take BL, CPF-S, CKD or CQ-S"
            )
        _check_source(source, dataset)
        for code in methods.lineage(method):
            _check_layers(methods.method(code), values, rate)
    return Spec(
        method,
        dataset,
        protocol,
        preset,
        float(rate) if row.rated else None,
        int(seed),
        values,
        source,
    )


def _check_source(source: str, dataset: str) -> None:
    from data_prep.paths import dataset_folder

    if source == dataset:
        raise InputError(
            f"source {source!r} is the dataset itself: a transfer needs another one to start from, --source NAME"
        )
    dataset_folder(source)


def _check_layers(row: methods.Method, values: dict, rate: float | None) -> None:
    """Raise `InputError` for a layer that the run's model will not have: before its source is trained."""
    if all(
        values[key] == methods.DEFAULTS[key] for key in ("backbone", "trainable", "adapter_after")
    ):
        return  # BL has these
    import torch

    from dflib import adapters, models

    size, keys = values["size"], row.keys
    full = models.architecture("BL", size=size)
    if "trainable" in keys:
        with torch.device("meta"):
            adapters.select(models.Detector(full), values["trainable"])
    if "adapter_after" in keys:
        arch = models.student(rate, size=size) if "TL+KD" in row.parents else full
        adapters.place(arch, values["adapter_after"])


@dataclass
class Run:
    """A run in the making, or a finished one: the folder, the data, the settings, and what is written at the end."""

    spec: Spec
    started: float = field(default_factory=time.perf_counter)
    timings: dict = field(
        default_factory=lambda: {"train_s": 0.0, "compress_s": 0.0, "transfer_s": 0.0}
    )
    history: pd.DataFrame | None = None
    trainable: int = 0  # parameters that were trained

    @property
    def folder(self) -> Path:
        return self.spec.folder

    @property
    def settings(self) -> dict:
        return self.spec.settings

    @property
    def finished(self) -> bool:
        return self.spec.finished()

    @property
    def result(self) -> dict:
        return read(self.folder)

    @cached_property
    def data(self) -> Dataset:
        from dflib import data

        s = self.settings
        whole = data.open(
            self.spec.dataset,
            size=s["size"],
            protocol=self.spec.protocol,
            mode=s["mode"],
            limit=s["limit"],
            train_generators=s["train_generators"],
            hold_out=s["hold_out"],
        )
        return data.few(whole, s["target_images"]) if s["target_images"] else whole

    def recipe(self, **changes) -> Recipe:
        """The settings as a training recipe, with `changes` on top."""
        from dflib.train import Recipe

        fields = {k: v for k, v in self.settings.items() if k in Recipe.__dataclass_fields__}
        return Recipe(**(fields | {"seed": self.spec.seed} | changes))

    def parent(self, code: str | None = None) -> Run:
        """The finished run of a parent method (the only one, unless named)."""
        wanted = choose(
            "parent", code or self.spec.parents[0].method, [p.method for p in self.spec.parents]
        )
        return self._finished(next(p for p in self.spec.parents if p.method == wanted))

    def _finished(self, found: Spec) -> Run:
        if not found.finished():
            raise InputError(
                f"{self.spec.run_id} starts from {found.run_id}, which is not there yet: {found.command()}"
            )
        return Run(found)

    def model(self) -> nn.Module:
        """The finished run's model."""
        from dflib.models import load

        return load(self.folder / "model.safetensors")

    def fit(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        as_timing: str = "train_s",
        stage: str = "",
        **options,
    ) -> pd.DataFrame:
        """`train.fit` with a checkpoint in the run's folder; a finished run's weights and history are loaded instead.

        as_timing: which entry of `timings` the seconds belong to. stage: a name for each training but the last, where a run has several.
        The run's `front` end is put before the model first. Returns the history (also `history.csv`). Raises `InputError` when the finished run's model has another shape.
        """
        import pandas as pd

        from dflib import train

        model.set_front(self.settings["front"])
        if self.finished:
            try:
                model.load_state_dict(self.model().state_dict())
            except RuntimeError as error:
                raise InputError(
                    f"{self.spec.run_id} is finished with a model of another shape: load it with run.model(), or change a setting for a new run"
                ) from error
            self.history = pd.read_csv(self.folder / "history.csv")
            return self.history
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.history = train.fit(
            model,
            self.data,
            recipe,
            checkpoint=self.folder / f"checkpoint{stage}.pt",
            **options,
        )
        write_text(self.folder / f"history{stage}.csv", self.history.to_csv(index=False))
        self.timings[as_timing] += float(self.history["seconds"].sum())
        return self.history

    def once(
        self, name: str, make: Callable[[Path], object], *, as_timing: str = "compress_s"
    ) -> Path:
        """The file `name` of the run's folder; `make(path)` writes it, timed, unless it is there (from before an interruption, say)."""
        path = self.folder / name
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            started, counted = (
                time.perf_counter(),
                sum(self.timings.values()),
            )  # what `fit` counts inside is counted once
            make(path)
            self.timings[as_timing] += (
                time.perf_counter() - started - (sum(self.timings.values()) - counted)
            )
        return path

    def finish(
        self, model: nn.Module, *, deployed: Path | None = None, base: nn.Module | None = None
    ) -> dict:
        """Export, evaluate and measure the model, and write the run's files; `result.json` last. Returns the result.

        deployed: the file to evaluate and to time when it is not `model.onnx` (an int8 file: it decides accuracy *and* speed).
        base: the model that who gets this one has already: `delta.safetensors` holds what differs, and is all that must be shipped.
        A finished run is not touched: its result is returned as it is.
        """
        if not self.finished:
            self.folder.mkdir(parents=True, exist_ok=True)
            result = self._evaluate(model, deployed, base)
            write_text(self.folder / "result.json", json.dumps(result, indent=1))
            for leftover in (*self.folder.glob("checkpoint*.pt"), self.folder / "failed.json"):
                leftover.unlink(missing_ok=True)
        return self.result

    def _evaluate(self, model: nn.Module, deployed: Path | None, base: nn.Module | None) -> dict:
        from dflib import adapters, export, measure, metrics, models, train

        device = train.best_device()
        model.to(device).eval()
        checkpoint = models.save(model, self.folder / "model.safetensors")
        onnx = export.to_onnx(model, self.folder / "model.onnx")
        same = export.parity(model, export.OnnxModel(onnx), self.data.test, limit=256)
        forward = model if deployed is None else export.OnnxModel(deployed)
        val, test = self.data.val, self.data.test
        known, scores = train.predict(forward, val), train.predict(forward, test)
        threshold = (
            metrics.best_threshold(val.labels, known) if self.spec.protocol == "strict" else 0.5
        )
        _predictions(val, known).to_parquet(self.folder / "validation.parquet", index=False)
        _predictions(test, scores).to_parquet(self.folder / "predictions.parquet", index=False)
        evaluated = metrics.evaluate(
            test.labels,
            scores,
            test.generators,
            threshold=threshold,
            groups=test.groups,
            draws=self.settings["draws"],
        )
        cost = measure.cost(
            model,
            deployed or onnx,
            checkpoint=None if deployed else checkpoint,
            runs=self.settings["latency_runs"],
        )
        shipped = (
            adapters.save_delta(model, base, self.folder / "delta.safetensors")
            if base
            else deployed or onnx
        )
        cost |= {"trainable_params": self.trainable, "shipped_bytes": Path(shipped).stat().st_size}
        cost["preprocess_ms"] = self._preprocess_ms()
        s = self.spec
        return {
            "schema": SCHEMA,
            "run_id": s.run_id,
            "method": s.method,
            "rate": s.rate,
            "seed": s.seed,
            "dataset": s.dataset,
            "source": s.source or None,
            "protocol": s.protocol,
            "preset": s.preset,
            "params": methods.relevant(s.method, s.settings),
            "parents": [p.run_id for p in s.parents],
            "data_fingerprint": s.fingerprint,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in LIBRARIES},
            "device": _device_name(device),
            "timings": self.timings | {"total_s": time.perf_counter() - self.started},
            "cost": cost,
            "metrics": evaluated,
            "threshold": threshold,
            "status": "done",
            "deployed": Path(deployed or onnx).name,
            "classes": self.data.class_names,
            "train_images": len(self.data.train),
            "train_generators": sorted(set(self.data.train.generators) - {"real"}),
            "parity": same,
            "command": s.command(),
        }

    def _preprocess_ms(self) -> dict | None:
        """Of some test images; None when their files are gone (training needs only the decoded ones)."""
        from dflib.measure import preprocessing

        paths = [images_root(self.spec.dataset) / p for p in self.data.test.table["path"].iloc[:32]]
        if not all(path.is_file() for path in paths):
            return None
        return preprocessing(paths, size=self.settings["size"], mode=self.settings["mode"])


def paired(before: Run, after: Run, *, draws: int = 1000) -> dict:
    """`metrics.paired` of two finished runs on the same test images, each at its own threshold (after minus before, drawn by scene).

    Raises `InputError` when they were tested on different images.
    """
    import pandas as pd

    from dflib import metrics

    a, b = (pd.read_parquet(run.folder / "predictions.parquet") for run in (before, after))
    if not a["path"].equals(b["path"]):
        raise InputError(
            f"{before.spec.run_id} and {after.spec.run_id} were tested on different images: compare runs on one dataset and protocol"
        )
    options = {
        "threshold_a": before.result["threshold"],
        "threshold_b": after.result["threshold"],
        "groups": a["group"],
    }
    return metrics.paired(a["label"], a["score"], b["score"], draws=draws, **options)


def resampled(
    folder: Path,
    sets: dict[str, Collection[str]] | None = None,
    *,
    scores: Sequence[float] | None = None,
    draws: int = 1000,
) -> dict:
    """`metrics.resample` of a finished run's test images, by scene, at its threshold.

    sets: generators whose fakes count together, such as {"unseen": ["nearest"]}; None: {"all": every fake}.
    scores: others than the run's, of the same images (`robustness`).
    """
    import pandas as pd

    from dflib import metrics

    table = pd.read_parquet(Path(folder) / "predictions.parquet")
    fakes = {
        name: (table["label"] == 1) & table["generator"].isin(list(of))
        for name, of in (sets or {}).items()
    }
    options = {"threshold": read(folder)["threshold"], "groups": table["group"], "draws": draws}
    return metrics.resample(
        table["label"], table["score"] if scores is None else scores, fakes or None, **options
    )


def read(folder: Path) -> dict:
    """The `result.json` of a run folder; raises `InputError` when the folder holds no finished run."""
    try:
        return _parsed((Path(folder) / "result.json").read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is no finished run: it has no result.json. python -m dflib results lists the finished ones"
        ) from error
    except ValueError as error:  # not JSON, not UTF-8
        raise InputError(
            f"{folder}/result.json is damaged ({error}): remove it, and the same study command makes the run again"
        ) from error


def _parsed(text: bytes) -> dict:
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)  # takes NaN as well


def failure(folder: Path) -> dict | None:
    """The `failed.json` of a run folder; None where there is none, or a damaged one (the run is simply tried again)."""
    try:
        record = json.loads((Path(folder) / "failed.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return (
        record
        if isinstance(record, dict) and {"run_id", "kind", "error"} <= record.keys()
        else None
    )


def find(name: str) -> Path:
    """The folder of a finished run, from its id or its path; raises `InputError` with the nearest id."""
    folder = Path(name)
    if (folder / "result.json").exists():
        return folder
    known = {f.name: f for f in folders()}
    return known[choose("run", folder.name, known, hint="python -m dflib results lists them.")]


def folders() -> list[Path]:
    """Folders of all finished runs below the outputs root and the attached ones, each run once, sorted by dataset, protocol, method and id."""
    found: dict[Path, Path] = {}
    for root in (outputs_root(), *attached_roots()):
        for path in root.glob("*/*/*/*/result.json"):
            found.setdefault(path.parent.relative_to(root), path.parent)
    return [found[place] for place in sorted(found)]


def own(folder: Path) -> Path:
    """The run's folder below the outputs root, to write to: an attached run is copied there."""
    here = outputs_root().joinpath(*folder.parts[-4:])
    if not (here / "result.json").exists() and any(
        folder.is_relative_to(root) for root in attached_roots()
    ):
        new = here.with_name(here.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(folder, new)
        shutil.rmtree(here, ignore_errors=True)  # an attempt from before the other was attached
        new.replace(here)
        return here
    return folder


def results(dataset: str | None = None) -> pd.DataFrame:
    """One row per finished run: the keys of its request, costs, timings, and the metrics over all generators with their intervals.

    A `result.json` that is damaged or not one of ours is named in a warning and left out.
    """
    import pandas as pd

    table = pd.DataFrame(rows(dataset))
    return (
        table
        if table.empty
        else table.sort_values(["dataset", "protocol", "seed"], kind="stable", ignore_index=True)
    )


def rows(dataset: str | None = None) -> list[dict]:
    """The rows of `results`, in the order of `folders`."""
    found = []
    for folder in folders():
        try:
            row = flat(read(folder)) | {"folder": str(folder)}
        except InputError as error:
            log.warning("left out: %s", error)
        except (KeyError, TypeError, AttributeError) as error:
            log.warning("left out: %s/result.json is not one of this version's (%r)", folder, error)
        else:
            found += [row] if dataset in (None, row["dataset"]) else []
    return found


METRICS = (
    "accuracy",
    "balanced_accuracy",
    "f1",
    "precision",
    "recall",
    "tnr",
    "ap",
    "auroc",
    "eer",
    "ece",
    "brier",
)


def flat(result: dict) -> dict:
    """A result as one row of `results`."""
    row = {
        k: result[k]
        for k in (
            "run_id",
            "method",
            "rate",
            "seed",
            "dataset",
            "protocol",
            "preset",
            "device",
            "threshold",
            "command",
        )
    }
    row |= {k: result.get(k) for k in ("source", "train_images")}
    row |= {
        k: result["params"].get(k) for k in ("size", "mode", "limit", "target_images")
    } | result["timings"]
    row |= {"parents": ",".join(result["parents"]), "fold": methods.fold(result["params"])}
    row["planned_epochs"] = methods.planned_epochs(result["params"])
    cost = result["cost"]
    row |= {k: cost[k] for k in ("params", "nonzero", "macs", "file_bytes", "peak_rss_mb")}
    row |= {k: cost.get(k) for k in ("trainable_params", "shipped_bytes")}
    row["gzip_bytes"] = cost.get("gzip_bytes")
    row["images_per_s"] = cost.get("throughput", {}).get("images_per_s")
    row["preprocess_p50_ms"] = (cost.get("preprocess_ms") or {}).get("p50")
    row |= {
        "latency_p50_ms": cost["latency_ms"]["p50"],
        "latency_p95_ms": cost["latency_ms"]["p95"],
    }
    row["latency_torch_p50_ms"] = cost.get("latency_torch_ms", {}).get("p50")
    for generator, values in result["metrics"].items():
        prefix = "" if generator == "all" else f"{generator}/"
        for metric in METRICS if generator == "all" else ("accuracy", "f1", "auroc"):
            row[prefix + metric] = values.get(metric)
            interval = values.get("ci95", {}).get(metric)
            if interval:
                row[f"{prefix}{metric}_low"], row[f"{prefix}{metric}_high"] = interval
    return row


def _predictions(part, scores) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "path": part.table["path"],
            "generator": part.generators,
            "label": part.labels,
            "score": scores,
            "group": part.groups,
        }
    )


def code_hash(notebook: Path) -> str:
    """Hash of the cells tagged `result`: what makes the run. Prose, figures and exercises may change without making finished runs stale."""
    try:
        stat = notebook.stat()
    except OSError as error:
        raise InputError(f"notebook {notebook} is not there") from error
    return _hash_of_code(notebook, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=64)
def _hash_of_code(notebook: Path, _: tuple[int, int, int]) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if "result" in c["metadata"].get("tags", [])]
    if not code:
        raise InputError(
            f"notebook {notebook}: no cell is tagged `result`; tag those that train, compress and finish the run"
        )
    return hashlib.sha256("\n".join(re.sub(r"\s+$", "", c) for c in code).encode()).hexdigest()[:12]


def _device_name(device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    from dflib.measure import cpu_name

    return cpu_name()
