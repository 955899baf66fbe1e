"""A finished run as files for another machine: the model in a runtime's format, checked against it,
and a script that needs no dflib.
"""

import hashlib
import inspect
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from data_prep import cache, integrity
from data_prep.errors import InputError, choose, shown
from data_prep.paths import regular, write_text
from dflib import data, export, models, quantize
from dflib.edge import page as pages
from dflib.study import runs
from dflib.study.settings import DEFAULTS

STAMP = re.compile(rf"{export.MARK} [0-9a-f]{{64}}")
FORMATS = {"onnx": ".onnx", "onnx-int8": ".onnx", "executorch": ".pte"}


def export_run(
    run: str | Path,
    *,
    format: str,  # noqa: A002 (the command's)
    out: Path,
    page: bool = False,
    force: bool = False,
) -> dict:
    """Write a finished run's model to `out`, and for ONNX a `predict.py` beside it.

    format: of FORMATS; onnx-int8 is the run's own file where it has one. page: and a page for the
    browser. force: also over files that are not ours. Returns {"file", "bytes", "parity" (with the
    run's float model on the whole test set), "flag"}. `InputError` where something fails: nothing
    is written.
    """
    choose("format", format, FORMATS)
    out, folder, suffix = Path(out), runs.find(str(run)), FORMATS[format]
    if out.suffix != suffix:
        hint = f"ends in {suffix}, e.g. {out.stem}{suffix}"
        raise InputError(f"--out {out}: the name of a file of format {format} {hint}")
    result = runs.read(folder)
    if (out.parent / "result.json").exists():  # whose files are marked as ours, too
        raise InputError(f"--out {out}: that folder is a run's own: give another")
    if page and suffix != ".onnx":
        raise InputError("--page needs a format that a browser can run: onnx or onnx-int8")
    if page:
        pages.check(result)
    beside = ["predict.py"] * (suffix == ".onnx") + (pages.names(out.parent) if page else [])
    with replacing(out.parent, [out.name, *beside], force=force) as new:
        same = _made(folder, result, format, file := new / out.name)
        flag = export.judged(same, exact=format != "onnx-int8")
        size = file.stat().st_size
        if suffix == ".onnx":
            write_text(new / "predict.py", script(out.name, result))
        if page:
            write_text(new / "index.html", stamped(pages.make(new, out.name, result)))
    return {"file": str(out), "bytes": size, "parity": same, "flag": flag}


def _made(folder: Path, result: dict, format: str, file: Path) -> dict:  # noqa: A002 (as above)
    """Write the model's file; its parity with the run's model."""
    model, images = models.load(folder / "model.safetensors"), _data(result)
    if format == "executorch":
        to_executorch(model, file)
    elif format == "onnx":
        export.to_onnx(model, file)
    elif "int8" in result["deployed"]:
        shutil.copyfile(folder / result["deployed"], file)
    else:
        quantize.static_int8(folder / "model.onnx", file, images.train)
    session = executorch_model(file) if format == "executorch" else export.OnnxModel(file)
    return export.parity(model, session, images.test, threshold=result["threshold"])


def _data(result: dict) -> data.Dataset:
    """The images that a run saw, its training part as it was: without held-out generators, say."""
    asked = {field.name: result[field.name] for field in fields(runs.Spec) if field.name in result}
    asked |= {"settings": DEFAULTS | result["params"], "source": result["source"] or ""}
    return runs.Run(runs.Spec(**asked)).data


def to_executorch(model: models.Detector, path: Path) -> Path:
    """Write a `.pte` for ExecuTorch's XNNPACK backend: pixels, 1 x 3 x size x size -> logits."""
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise InputError('ExecuTorch is not installed: pip install -e ".[executorch]"') from error
    image = torch.rand(1, 3, model.arch.size, model.arch.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its internals
        program = torch.export.export(model.cpu().eval(), (image,))
        how = {"partitioner": [XnnpackPartitioner()], "constant_methods": {export.MARK: 1}}
        Path(path).write_bytes(to_edge_transform_and_lower(program, **how).to_executorch().buffer)
    return Path(path)


def executorch_model(path: Path) -> Callable[[Tensor], Tensor]:
    """A `.pte` file as `train.predict` takes it."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    run = lambda image: method.execute([image])[0].clone()
    return lambda images: torch.cat([*map(run, images.contiguous().split(1))])


def script(name: str, result: dict) -> str:
    """`predict.py`: prepares images with the very functions that prepared the training images."""
    facts = {"MODEL": name, "SIZE": result["params"]["size"], "MODE": result["params"]["mode"]}
    facts |= {"THRESHOLD": result["threshold"], "CLASSES": tuple(result["classes"])}
    used, constants = _called(integrity.open_image, integrity.to_rgb, cache.fit, shown)
    facts = "\n".join(f"{key} = {value!r}" for key, value in (facts | constants).items())
    functions = "\n\n".join(map(inspect.getsource, used)).rstrip()
    text = (files("dflib.edge") / "templates" / "predict.txt").read_text(encoding="utf-8")
    text = text.replace("<RUN>", result["run_id"]).replace("<FACTS>", facts)
    return stamped(text.replace("<FUNCTIONS>", functions))


def _called(*functions: Callable) -> tuple[list[Callable], dict[str, object]]:
    """The functions, all of data_prep that they use, and the constants among it."""
    found, constants = list(functions), {}
    for function in filter(inspect.isfunction, found):  # grows meanwhile
        known = function.__globals__
        used = {name: known[name] for name in function.__code__.co_names if name in known}
        constants |= {name: value for name, value in used.items() if name.isupper()}
        own = (x for x in used.values() if inspect.isfunction(x) or inspect.isclass(x))
        found += [x for x in own if x.__module__.startswith("data_prep") and x not in found]
    return found, constants


# --- only over what was written here, all or nothing


def stamped(text: str) -> str:
    """A text with its own hash in the place of <MARK>: whoever edits it makes it his own.

    >>> is_ours(stamped("# <MARK>").encode()), is_ours(stamped("# <MARK>").encode() + b"!")
    (True, False)
    """
    return text.replace("<MARK>", f"{export.MARK} {hashlib.sha256(text.encode()).hexdigest()}")


def is_ours(content: bytes) -> bool:
    """Whether a file was written here: a stamped text, or a binary file that holds the mark."""
    if found := STAMP.search(text := content.decode("utf-8", "replace")):
        return stamped(text.replace(found[0], "<MARK>")) == text
    return b"\0" in content and export.MARK.encode() in content


@contextmanager
def replacing(folder: Path, names: Sequence[str], *, force: bool = False) -> Iterator[Path]:
    """A new folder to write files of these names in; they go to `folder` when all went well.

    Raises `InputError` where `folder` cannot be written to, or a file of such a name is there and
    not ours (unless `force`).
    """
    for path in (Path(folder) / name for name in names):
        if path.is_dir():
            raise InputError(f"{path} is a folder: give another --out")
        taken = not force and (path.exists() or path.is_symlink())
        if taken and not (path.is_file() and is_ours(regular(path, 2**31).read_bytes())):
            what = "is there, and is not as `python -m dflib export` wrote it"
            raise InputError(f"{path} {what}: give another --out, or --force to replace it")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=folder) as new:
            yield Path(new)
            for name in names:
                (Path(new) / name).replace(Path(folder) / name)
    except OSError as error:
        raise InputError(f"nothing was written to {folder}: {error}") from error
