"""Runs: a folder per method, rate, seed, dataset and settings. The same request finds it again.

In a notebook: `run = engine.start("CPF", rate=0.9)`, `run.parent()`, `run.fit(…)`, `run.finish(…)`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from data_prep import paths
from data_prep.errors import InputError, check_rate, choose
from data_prep.manifest import fingerprint_of
from data_prep.paths import attached_roots, dataset_folder, outputs_root, write_text
from data_prep.protocol import PROTOCOLS
from dflib.study import methods
from dflib.study.settings import DEFAULTS, MEASURES

if TYPE_CHECKING:
    from torch import nn

    from dflib.data import Dataset
    from dflib.train import Recipe

log = logging.getLogger(__name__)
_parsed = lru_cache(maxsize=64)(json.loads)  # thousands of runs ask for the same notebooks
TIMINGS = ("train_s", "compress_s", "transfer_s")
NOTEBOOKS = paths.PROJECT / "notebooks"
LIBRARIES = ("torch", "torchvision", "onnxruntime", "onnx", "numpy", "scikit-learn", "papermill")


@dataclass(frozen=True)
class Spec:
    """A request. Its id is readable, and ends in a hash of everything that decides the result."""

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
        whole = {key: DEFAULTS[key] for key in ("target_images", *methods.FOLDS.values())}
        there = {"dataset": self.source, "settings": self.settings | whole}  # with all its images
        found = []
        for code, _, at in (name.partition("@") for name in methods.method(self.method).parents):
            row, changed = methods.method(code), there if at == "source" else {}
            rate, source = self.rate if row.rated else None, self.source if row.transfers else ""
            found.append(replace(self, method=code, rate=rate, source=source, **changed))
        return tuple(found)

    @cached_property
    def run_id(self) -> str:
        values = methods.relevant(self.method, self.settings)
        decides = {
            "request": [self.method, self.rate, self.seed, self.dataset, self.protocol],
            "settings": {key: values[key] for key in values if key not in MEASURES},
            "parents": [parent.run_id for parent in self.parents],
            "code and data": [code_hash(self.notebook), fingerprint_of(self.dataset)],
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        rate = "" if self.rate is None else f"-r{100 * self.rate:g}"
        return f"{self.method}{rate}-s{self.seed}-{self.settings['size']}px-{digest}"

    @property
    def folder(self) -> Path:
        """Where it is finished, here or attached (`attached_roots`); else where it will be made."""
        place = Path(self.dataset, self.protocol, self.method, self.run_id)
        places = [root / place for root in (outputs_root(), *attached_roots())]
        return next((f for f in places if (f / "result.json").exists()), places[0])

    def finished(self) -> bool:
        return (self.folder / "result.json").exists()

    def failure(self) -> dict | None:
        return None if self.finished() else failure(self.folder)

    def parameters(self) -> dict:
        """The notebook's parameters; `settings` holds only what differs from the preset."""
        usual = methods.settings(self.preset)
        given = {key: getattr(self, key) for key in ("preset", "dataset", "protocol", "seed")}
        given |= {"source": self.source} if self.source else {}
        given |= {"rate": self.rate} if self.rate is not None else {}
        given |= {"method": self.method} if len(methods.made_by(self.notebook.stem)) > 1 else {}
        return given | {"settings": {k: v for k, v in self.settings.items() if usual[k] != v}}

    def command(self) -> str:
        """The command line that makes this run."""
        given = self.parameters() | {"method": self.method}
        changed = [("set", f"{key}={value}") for key, value in given.pop("settings").items()]
        option = {"method": "methods", "rate": "rates", "seed": "seeds"}
        pairs = [(option.get(key, key), str(value)) for key, value in given.items()] + changed
        words = [word for key, value in pairs for word in (f"--{key}", value)]
        return f"python -m dflib study {shlex.join(words)}"


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
    """The request, checked; what is not given comes from the preset. source: of transfers alone.

    Raises `InputError` for an unknown name, a setting or a rate that does not fit, or a source
    that is the dataset itself.

    >>> spec("CPF", rate=0.9).run_id                                # doctest: +SKIP
    'CPF-r90-s0-32px-1f0c9a2b'
    """
    row, values = methods.method(method), methods.settings(preset, settings)
    usual = methods.preset(preset)
    choose("protocol", protocol, PROTOCOLS)
    dataset = dataset or usual.dataset
    dataset_folder(dataset)
    fold = {key: values[key] for key in methods.FOLDS.values()}
    if any(fold.values()):
        from dflib.data import trained_on

        trained_on(dataset, protocol=protocol, **fold)
    if row.rated and rate is None:
        raise InputError(f"{method} needs a rate: the share of parameters removed, e.g. 0.9")
    rate = float(check_rate(rate)) if row.rated else None
    source = (source or usual.source) if row.transfers else ""
    if source == dataset:
        raise InputError(f"source {source!r} is the dataset itself: a transfer needs another one")
    if source:
        dataset_folder(source)
        _check_layers(method, values, rate)
    return Spec(method, dataset, protocol, preset, rate, int(seed), values, source)


def _check_layers(code: str, values: dict, rate: float | None) -> None:
    """Raise `InputError` for a layer that a transfer's model will not have: before it is made."""
    if (backbone := values["backbone"]) != "vgg":
        raise InputError(f"{code} with backbone {backbone}: transfers name layers of the vgg")
    if all(values[key] == DEFAULTS[key] for key in ("trainable", "adapter_after")):
        return
    import torch

    from dflib import adapters, models

    full = models.architecture("BL", size=values["size"])
    for row in map(methods.method, methods.lineage(code)):
        if "trainable" in row.keys:
            with torch.device("meta"):
                adapters.select(models.Detector(full), values["trainable"])
        if "adapter_after" in row.keys:
            arch = models.student(rate, size=values["size"]) if "TL+KD" in row.parents else full
            adapters.place(arch, values["adapter_after"])


@dataclass
class Run:
    """A run in the making, or a finished one: its folder, data and settings, and what it writes."""

    spec: Spec
    started: float = field(default_factory=time.perf_counter)
    timings: dict = field(default_factory=lambda: dict.fromkeys(TIMINGS, 0.0))
    trainable: int = 0  # parameters that were trained

    folder = property(lambda self: self.spec.folder)
    settings = property(lambda self: self.spec.settings)
    finished = property(lambda self: self.spec.finished())
    result = property(lambda self: read(self.folder))

    @cached_property
    def data(self) -> Dataset:
        from dflib import data

        keys = ("size", "mode", "limit", *methods.FOLDS.values())
        options = {key: self.settings[key] for key in keys}
        whole = data.open(self.spec.dataset, protocol=self.spec.protocol, **options)
        images = self.settings["target_images"]
        return data.few(whole, images) if images else whole

    def recipe(self, **changes) -> Recipe:
        """The settings as a training recipe, with `changes` on top."""
        from dflib.train import Recipe

        own = {k: v for k, v in self.settings.items() if k in Recipe.__dataclass_fields__}
        return Recipe(**(own | {"seed": self.spec.seed} | changes))

    def parent(self, code: str | None = None) -> Run:
        """The finished run of a parent method (the first, unless named)."""
        parents = {parent.method: parent for parent in self.spec.parents}
        found = parents[choose("parent", code or next(iter(parents)), parents)]
        if not found.finished():
            needs = f"{self.spec.run_id} starts from {found.run_id}, which is not there yet"
            raise InputError(f"{needs}: {found.command()}")
        return Run(found)

    def model(self) -> nn.Module:
        """The finished run's model."""
        from dflib.models import load

        return load(self.folder / "model.safetensors")

    def fit(
        self, model: nn.Module, recipe: Recipe, *, as_timing="train_s", stage="", **options
    ) -> pd.DataFrame:
        """`train.fit` of the model behind the run's `front`; returns the history (`history.csv`).

        A finished run's weights and history are loaded instead; an interrupted one goes on.
        as_timing: where its seconds are added. stage: a name for each training but the last.
        Raises `InputError` when the finished run's model has another shape.
        """
        from dflib import train

        model.set_front(self.settings["front"])
        if self.finished:
            try:
                model.load_state_dict(self.model().state_dict())
            except RuntimeError as error:
                done = f"{self.spec.run_id} is finished with a model of another shape"
                raise InputError(f"{done}: take run.model(), or change a setting") from error
            return pd.read_csv(self.folder / "history.csv")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        checkpoint = self.folder / f"checkpoint{stage}.pt"
        history = train.fit(model, self.data, recipe, checkpoint=checkpoint, **options)
        write_text(self.folder / f"history{stage}.csv", history.to_csv(index=False))
        self.timings[as_timing] += float(history["seconds"].sum())
        return history

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file `name` of the run's folder; `make(path)` writes it, unless it is there already.

        Its seconds go to `compress_s`, but for those that `fit` counts inside.
        """
        path = self.folder / name
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            started, counted = time.perf_counter(), sum(self.timings.values())
            make(path)
            inside = sum(self.timings.values()) - counted
            self.timings["compress_s"] += time.perf_counter() - started - inside
        return path

    def finish(
        self, model: nn.Module, *, deployed: Path | None = None, base: nn.Module | None = None
    ) -> dict:
        """Export, evaluate and measure the model; a finished run is left as it is. The result.

        deployed: the file that is evaluated and timed, if not `model.onnx`: an int8 one, say.
        base: a model that the receiver has; only what differs is shipped (`delta.safetensors`).
        """
        if not self.finished:
            self.folder.mkdir(parents=True, exist_ok=True)
            result = self._request() | self._evaluated(model, deployed, base)
            result["timings"] = self.timings | {"total_s": time.perf_counter() - self.started}
            write_text(self.folder / "result.json", json.dumps(result, indent=1))
            for leftover in (*self.folder.glob("checkpoint*.pt"), self.folder / "failed.json"):
                leftover.unlink(missing_ok=True)
        return self.result

    def _request(self) -> dict:
        """What was asked for, of which data and libraries."""
        s, train = self.spec, self.data.train
        asked = {key: value for key, value in asdict(s).items() if key != "settings"}
        return {"schema": 1, "run_id": s.run_id, **asked, "source": s.source or None} | {
            "params": methods.relevant(s.method, s.settings),
            "parents": [parent.run_id for parent in s.parents],
            "data_fingerprint": fingerprint_of(s.dataset),
            "classes": self.data.class_names,
            "train_images": len(train),
            "train_generators": sorted({*train.generators} - {"real"}),
            "versions": {"python": platform.python_version()} | {n: version(n) for n in LIBRARIES},
            "command": s.command(),
            "status": "done",
        }

    def _evaluated(self, model: nn.Module, deployed: Path | None, base: nn.Module | None) -> dict:
        """Write the model, its ONNX file and the predictions; what they tell, and what it costs."""
        import torch

        from dflib import adapters, export, measure, metrics, models, train

        s, here, val, test = self.spec, self.folder, self.data.val, self.data.test
        device, name = train.best_device(), torch.cuda.get_device_name
        model.to(device).eval()
        models.save(model, here / "model.safetensors")
        onnx = export.to_onnx(model, here / "model.onnx")
        forward, file = export.OnnxModel(deployed) if deployed else model, deployed or onnx
        known, scores = train.predict(forward, val), train.predict(forward, test)
        for what, part, score in (("validation", val, known), ("predictions", test, scores)):
            columns = {"generator": part.generators, "label": part.labels, "score": score}
            table = part.table[["path"]].assign(**columns, group=part.groups, testset=part.testsets)
            table.to_parquet(here / f"{what}.parquet", index=False)
        threshold = 0.5 if s.protocol == "paper" else metrics.best_threshold(val.labels, known)
        same = export.parity(model, export.OnnxModel(onnx), test, threshold=threshold, limit=256)
        export.judged(same)  # time and bytes are the file's, so its scores must be the model's
        options = {"threshold": threshold, "groups": test.groups, "draws": s.settings["draws"]}
        options["testsets"] = test.testsets
        shipped = adapters.save_delta(model, base, here / "delta.safetensors") if base else file
        cost = measure.cost(model, file, runs=s.settings["latency_runs"])
        cost |= {"trainable_params": self.trainable, "shipped_bytes": shipped.stat().st_size}
        return {
            "metrics": metrics.evaluate(test.labels, scores, test.generators, **options),
            "threshold": threshold,
            "deployed": file.name,
            "parity": same,
            "device": name(device) if device.type == "cuda" else measure.cpu_name(),
            "cost": cost,
        }


def asked(method: str, **request) -> Run:
    """The run of a request (as for `spec`), finished or not; nothing is made for it."""
    return Run(spec(method, **request))


def predictions(folder: Path) -> pd.DataFrame:
    """A finished run's test images: path, generator, label, score (P(fake)), group (scene)."""
    try:
        return pd.read_parquet(Path(folder) / "predictions.parquet")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no predictions to read: make the run again") from error


def read(folder: Path) -> dict:
    """A run's `result.json` and `folder`; raises `InputError` where there is no finished run."""
    try:
        return json.loads((Path(folder) / "result.json").read_bytes()) | {"folder": Path(folder)}
    except FileNotFoundError as error:
        wrong = "is no finished run: it has no result.json. python -m dflib results lists them"
        raise InputError(f"{folder} {wrong}") from error
    except ValueError as error:  # not JSON, not UTF-8
        mend = "remove it, and the same study command makes the run again"
        raise InputError(f"{folder}/result.json is damaged ({error}): {mend}") from error


def failure(folder: Path) -> dict | None:
    """The `failed.json` of a run folder; None where there is none that can be read."""
    try:
        record = json.loads((Path(folder) / "failed.json").read_text())
        return record if {"run_id", "kind", "error"} <= record.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def find(name: str) -> Path:
    """The folder of a finished run, by its id or path; raises `InputError` with the nearest id."""
    folder = Path(name)
    if (folder / "result.json").exists():
        return folder
    known = {f.name: f for f in folders()}
    return known[choose("run", folder.name, known, hint="python -m dflib results lists them.")]


def folders() -> list[Path]:
    """All finished runs, here and attached, each once; by dataset, protocol, method and id."""
    found = {}
    for root in (*attached_roots()[::-1], outputs_root()):  # one's own count most
        found |= {f.parent.relative_to(root): f.parent for f in root.glob("*/*/*/*/result.json")}
    return [found[place] for place in sorted(found)]


def own(folder: Path) -> Path:
    """The run's folder below the outputs root, to write to: an attached run is copied there."""
    here = outputs_root().joinpath(*folder.parts[-4:])
    attached = any(folder.is_relative_to(root) for root in attached_roots())
    if not attached or (here / "result.json").exists():
        return folder
    new = here.with_name(here.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(folder, new)
    shutil.rmtree(here, ignore_errors=True)  # an attempt from before the other was attached
    return new.replace(here)


def results(dataset: str | None = None) -> pd.DataFrame:
    """`rows` as a table, by dataset, protocol and seed."""
    table, by = pd.DataFrame(rows(dataset)), ["dataset", "protocol", "seed"]
    return table if table.empty else table.sort_values(by, kind="stable", ignore_index=True)


def rows(dataset: str | None = None) -> list[dict]:
    """All finished runs, one a row, as `flat` gives it; what is damaged is told, and left out."""
    found = []
    for folder in folders():
        try:
            found.append(flat(read(folder)) | {"folder": str(folder)})
        except (InputError, KeyError, TypeError, AttributeError) as error:
            log.warning("left out: %s is no run of this version (%r)", folder, error)
    return [row for row in found if dataset in (None, row["dataset"])]


def flat(result: dict) -> dict:
    """A result as one row: request, costs, timings, metrics with their intervals."""
    params, cost = result["params"], result["cost"]
    asked = ("run_id", "method", "rate", "seed", "dataset", "protocol", "preset", "command")
    row = {key: result[key] for key in (*asked, "device", "threshold")}
    row |= {key: result.get(key) for key in ("source", "train_images")}
    row |= {key: params.get(key) for key in ("size", "mode", "limit", "target_images")}
    row |= result["timings"] | {"parents": ",".join(result["parents"])}
    row |= {"fold": methods.fold(params), "planned_epochs": methods.planned_epochs(params)}
    sizes = ("params", "nonzero", "trainable_params", "file_bytes", "gzip_bytes", "shipped_bytes")
    row |= {key: cost.get(key) for key in (*sizes, "macs", "peak_rss_mb")}
    row["images_per_s"] = cost.get("throughput", {}).get("images_per_s")
    latency = cost["latency_ms"]
    row |= {f"latency_{key}_ms": latency.get(key) for key in ("p50", "p95", "low", "high")}
    row["latency_busy"] = latency.get("busy")
    known = result.get("train_generators", result["metrics"])
    row["unseen"] = ",".join(sorted({*result["metrics"]} - {"all", "macro", *known}))
    for generator, values in result["metrics"].items():
        prefix = "" if generator == "all" else f"{generator}/"
        numbers = [metric for metric, value in values.items() if isinstance(value, float)]
        if "n_fake" in values:
            row[f"{prefix}fake_share"] = values["n_fake"] / values["n"]
        for metric in numbers if generator == "all" else ("accuracy", "f1", "auroc"):
            row[prefix + metric] = values.get(metric)
            if interval := values.get("ci95", {}).get(metric):
                row[f"{prefix}{metric}_low"], row[f"{prefix}{metric}_high"] = interval
    return row


def code_hash(notebook: Path) -> str:
    """Hash of the cells tagged `result`: prose and figures make no finished run stale."""
    try:
        cells = _parsed(notebook.read_bytes())["cells"]
    except OSError as error:
        raise InputError(f"notebook {notebook} is not there") from error
    code = ["".join(c["source"]) for c in cells if "result" in c["metadata"].get("tags", [])]
    if not code:
        raise InputError(f"notebook {notebook}: no cell is tagged `result`; tag what makes the run")
    return hashlib.sha256("\n".join(cell.rstrip() for cell in code).encode()).hexdigest()[:12]
