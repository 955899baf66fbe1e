"""Runs: a folder per method, rate, seed, dataset and settings. The same request finds it again.

In a notebook: `run = engine.start("CPF", rate=0.9)`, `run.parent()`, `run.fit(…)`, `run.finish(…)`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import BaseFileLock, Timeout

from data_prep import paths
from data_prep.errors import InputError, check_rate, choose
from data_prep.manifest import fingerprint_of
from data_prep.paths import dataset_folder, lock, outputs_root, write_text, written
from data_prep.protocol import PROTOCOLS
from dflib.study import feasible, methods, records
from dflib.study.records import failure, find, flat, folders, predictions, read, results
from dflib.study.settings import DEFAULTS, MEASURES
from dflib.study.spent import Spent, clocks

if TYPE_CHECKING:
    from torch import nn

    from dflib.data import Dataset
    from dflib.train import Recipe

__all__ = ["Run", "Spec", "asked", "code_hash", "failure", "find", "flat", "folders"]
__all__ += ["predictions", "read", "results", "spec"]  # of `records`, too: one door
LOCKS: dict[Path, BaseFileLock] = {}  # of the runs that are made here, by hand
_parsed = lru_cache(maxsize=64)(json.loads)  # thousands of runs ask for the same notebooks
HELD = "DFLIB_HELD"  # in a kernel's environment: the folder that the engine has locked for it
SEEDS = 2**32  # what NumPy takes
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
        there = {"dataset": self.source}  # with all its images
        if self.source == feasible.WEIGHTS:  # the network as it was published, never trained here
            whole, there = whole | {"epochs": 0, "finetune_epochs": 0}, {}
        there["settings"] = self.settings | whole
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
            "versions": methods.versions(self.method),
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        rate = "" if self.rate is None else f"-r{100 * self.rate:g}"
        return f"{self.method}{rate}-s{self.seed}-{self.settings['size']}px-{digest}"

    @property
    def folder(self) -> Path:
        return outputs_root() / self.dataset / self.protocol / self.method / self.run_id

    def finished(self) -> bool:
        """Whether it is done, and not damaged."""
        return records.whole(self.folder)

    def failure(self) -> dict | None:
        return None if self.finished() else failure(self.folder)

    def parameters(self) -> dict:
        """The notebook's parameters; `settings` holds only what differs from the preset."""
        network = {key: self.settings[key] for key in ("backbone", "pretrained")}
        usual = methods.settings(self.preset, network) | {key: DEFAULTS[key] for key in network}
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
    """The request, checked (`InputError`); what is not given comes from the preset. source: of
    transfers alone, a dataset, or "imagenet" for the weights that `pretrained` names.

    >>> spec("CPF", rate=0.9).run_id                                # doctest: +SKIP
    'CPF-r90-s0-32px-1f0c9a2b'
    """
    row, values = methods.method(method), methods.settings(preset, settings)
    usual = methods.preset(preset)
    choose("protocol", protocol, PROTOCOLS)
    dataset = dataset or usual.dataset
    dataset_folder(dataset)
    if not 0 <= seed < SEEDS:
        raise InputError(f"seed {records.short(seed)}: expected a whole number from 0 below 2^32")
    fold = {key: values[key] for key in methods.FOLDS.values()}
    if any(fold.values()):
        from dflib.data import trained_on

        trained_on(dataset, protocol=protocol, **fold)
    if row.rated and rate is None:
        raise InputError(f"{method} needs a rate: the share of parameters removed, e.g. 0.9")
    rate = check_rate(round(float(rate), 12)) if row.rated else None  # 0.1 + 0.2 is 0.3
    source = (source or usual.source) if row.transfers else ""
    if source == dataset:
        raise InputError(f"source {source!r} is the dataset itself: a transfer needs another one")
    if source and source != feasible.WEIGHTS:
        dataset_folder(source)
    values = feasible.settled(values, source)
    feasible.check(row, rate, values, source)
    return Spec(method, dataset, protocol, preset, rate, int(seed), values, source)


@dataclass
class Run:
    """A run in the making, or a finished one: its folder, data and settings, and what it writes."""

    spec: Spec
    started: tuple[float, float] = field(default_factory=clocks)
    trainable: int = 0  # parameters that were trained

    folder = property(lambda self: self.spec.folder)
    settings = property(lambda self: self.spec.settings)
    finished = property(lambda self: self.spec.finished())
    result = property(lambda self: read(self.folder))

    @cached_property
    def spent(self) -> Spent:
        return Spent(self.folder / "unfinished.json", began=self.started)

    def _begin(self) -> None:
        """Take the run's lock (the engine has it where it made this kernel), until it is finished
        or this process ends; `InputError` where another process has it. Clear what is damaged."""
        if os.environ.get(HELD) == str(self.folder) or self.folder in LOCKS:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            LOCKS[self.folder] = lock(self.folder / "lock", timeout=0)
        except Timeout as error:
            wait = "wait for it, or end it (a notebook by its kernel)"
            text = f"{self.spec.run_id} is being made by another process: {wait}"
            raise InputError(text) from error
        records.clear(self.folder)

    @cached_property
    def data(self) -> Dataset:
        from dflib import data

        keys = ("size", "mode", "limit", *methods.FOLDS.values())
        options = {key: self.settings[key] for key in keys}
        whole = data.open(self.spec.dataset, protocol=self.spec.protocol, **options)
        return data.few(whole, self.settings["target_images"], seed=self.spec.seed)

    def recipe(self, **changes) -> Recipe:
        """The settings as a training recipe, with `changes` on top."""
        from dflib.train import Recipe

        read = methods.relevant(self.spec.method, self.settings)
        own = {k: v for k, v in read.items() if k in Recipe.__dataclass_fields__}
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

    def teacher(self) -> nn.Module:
        """The model that teaches here: BL's, or what the setting `teacher` names."""
        from dflib.models import load

        name = self.settings["teacher"]
        if name in ("", "transferred"):
            return self.parent("TL+FT" if name else "BL").model()
        return load(find(name) / "model.safetensors")

    def fit(
        self, model: nn.Module, recipe: Recipe, *, as_timing="train_s", stage="", **options
    ) -> pd.DataFrame:
        """`train.fit` of the model behind the run's `front`; returns the history (`history.csv`).

        A finished run's weights and history are loaded instead; an interrupted one goes on.
        as_timing: where its seconds are added. stage: a name for each training but the last.
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
        self._begin()
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        checkpoint, watch = self.folder / f"checkpoint{stage}.pt", options.pop("on_epoch", None)

        def on_epoch(history: pd.DataFrame) -> None:
            took = history["seconds"].sum(), history["cpu_seconds"].sum()
            self.spent.keep(f"fit{stage}", as_timing, took)
            if watch:
                watch(history)

        options |= {"checkpoint": checkpoint, "on_epoch": on_epoch}
        history = train.fit(model, self.data, recipe, **options)
        write_text(self.folder / f"history{stage}.csv", history.to_csv(index=False))
        return history

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file `name` of the run's folder; `make(path)` writes it, unless it is there already:
        its seconds go to `compress_s`, but for those that `fit` counts inside."""
        path = self.folder / name
        if self.spent.has(path) or (self.finished and path.exists()):
            return path
        self._begin()
        began, inside = clocks(), self.spent.steps()
        with written(path, "new-") as new:
            make(new)
        took = zip(clocks(), began, self.spent.steps(), inside, strict=True)
        own = [now - then - (steps - before) for now, then, steps, before in took]
        self.spent.keep(name, "compress_s", own, path)
        return path

    def finish(
        self, model: nn.Module, *, deployed: Path | None = None, base: nn.Module | None = None
    ) -> dict:
        """Export, evaluate and measure the model; a finished run is left as it is. The result.

        deployed: the file that is evaluated and timed, if not `model.onnx`: an int8 one, say.
        base: a model that the receiver has; only what differs is shipped (`delta.safetensors`).
        """
        if not self.finished:
            self._begin()
            result = self._request() | self._evaluated(model, deployed, base)
            self.spent.keep()
            result |= {"timings": self.spent.timings(), "threads": self.spent.threads}
            names = ("model.safetensors", "predictions.parquet", result["deployed"])
            for name in names:  # safe on the disk before they are said to be
                with (self.folder / name).open("rb+") as file:
                    os.fsync(file.fileno())
            result["files"] = {name: records.stamp(self.folder / name) for name in names}
            write_text(self.folder / "result.json", json.dumps(result, indent=1))
            # the notebook is an earlier attempt's: this one's comes when it has ended
            names = ("checkpoint*.pt", "failed.json", "unfinished.json", "notebook.ipynb")
            for leftover in (file for name in names for file in self.folder.glob(name)):
                leftover.unlink(missing_ok=True)
            if self.folder in LOCKS:
                LOCKS.pop(self.folder).release()
        return self.result

    def _request(self) -> dict:
        """What was asked for, of which data and libraries."""
        s, train = self.spec, self.data.train
        asked = {"schema": 2, "run_id": s.run_id} | asdict(s) | {"source": s.source or None}
        del asked["settings"]
        return asked | {
            "params": methods.relevant(s.method, s.settings),
            "parents": [parent.run_id for parent in s.parents],
            "data_fingerprint": fingerprint_of(s.dataset),
            "classes": self.data.class_names,
            "train_images": len(train),
            "train_generators": sorted({*train.generators} - {"real"}),
            "code": methods.versions(s.method),
            "commit": commit(),
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
        scored = test.labels, scores, test.generators
        return {
            "metrics": metrics.evaluate(*scored, **options),
            "per_scene": metrics.per_scene(*scored, **options),
            "threshold": threshold,
            "deployed": file.name,
            "parity": same,
            "device": name(device) if device.type == "cuda" else measure.cpu_name(),
            "cost": cost,
        }


@lru_cache(maxsize=1)
def commit() -> str:
    """The commit of the package's own repository, "-dirty" behind it where files differ."""
    if not (paths.PROJECT / ".git").exists():
        return "unknown"
    words = ["git", "-C", str(paths.PROJECT), "describe", "--always", "--dirty"]
    quiet = {"env": os.environ | {"GIT_OPTIONAL_LOCKS": "0"}, "stderr": subprocess.DEVNULL}
    try:
        return subprocess.check_output(words, text=True, timeout=30, **quiet).strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def asked(method: str, **request) -> Run:
    """The run of a request (as for `spec`), finished or not; nothing is made for it."""
    return Run(spec(method, **request))


def code_hash(notebook: Path) -> str:
    """Hash of the cells tagged `result`: prose and figures make no finished run stale."""
    try:
        cells = _parsed(notebook.read_bytes())["cells"]
        tags = [c["metadata"].get("tags", ()) for c in cells]
        code = ["".join(c["source"]) for c, of in zip(cells, tags, strict=True) if "result" in of]
    except OSError as error:
        raise InputError(f"notebook {notebook} is not there") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"notebook {notebook} is damaged: git checkout -- {notebook}") from error
    if lost := {"parameters", "result"} - {*chain.from_iterable(tags)}:
        what = f"notebook {notebook} has lost its cell tags ({', '.join(sorted(lost))})"
        hint = f"Colab and some cleaners drop them: git checkout -- notebooks/{notebook.name}"
        raise InputError(f"{what}. {hint}")
    return hashlib.sha256("\n".join(cell.rstrip() for cell in code).encode()).hexdigest()[:12]
