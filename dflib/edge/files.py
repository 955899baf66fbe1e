"""A finished run as files for another machine: the model in a runtime's format, checked against it,
and a script that needs no dflib.
"""

from __future__ import annotations

import inspect
import shutil
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from data_prep import cache, integrity
from data_prep.errors import InputError, choose
from data_prep.paths import write_text
from dflib import data, export, measure, models, quantize
from dflib.study import runs

FORMATS = {"onnx": ".onnx", "onnx-int8": ".onnx", "executorch": ".pte"}


def export_run(run: str | Path, *, format: str, out: Path) -> dict:  # noqa: A002 (the command's)
    """Write a finished run's model to `out`, and for ONNX a `predict.py` beside it.

    format: onnx | onnx-int8 (static; the run's own file where it has one) | executorch (XNNPACK).
    Returns {"file", "bytes", "parity", "flag"}; parity: with the run's float model, on the whole
    test set. An fp32 file that differs by more than 0.001 in a logit, or in one decision, is
    refused; an int8 file that decides otherwise on more than 2 % of the images is flagged.
    Nothing is written when something fails.
    Raises `InputError` for an unknown run or format, another suffix, or a missing ExecuTorch.

    >>> export_run("CKD-r90-s0-32px-1f0c9a2b", format="onnx", out="edge/it.onnx")  # doctest: +SKIP
    """
    choose("format", format, FORMATS)
    out, folder, suffix = Path(out), runs.find(str(run)), FORMATS[format]
    if out.suffix != suffix:
        hint = f"ends in {suffix}, e.g. {out.stem}{suffix}"
        raise InputError(f"--out {out}: the name of a file of format {format} {hint}")
    result = runs.read(folder)
    model, wanted = models.load(folder / "model.safetensors"), ("size", "mode", "limit")
    options = {key: result["params"][key] for key in wanted}
    images = data.open(result["dataset"], protocol=result["protocol"], **options)
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f"{out.stem}.new{suffix}")
    try:
        if format == "executorch":
            to_executorch(model, new)
        elif format == "onnx":
            export.to_onnx(model, new)
        elif "int8" in result["deployed"]:
            shutil.copyfile(folder / result["deployed"], new)
        else:
            quantize.static_int8(folder / "model.onnx", new, images.train)
        session = ExecutorchModel(new) if format == "executorch" else export.OnnxModel(new)
        same = export.parity(model, session, images.test, threshold=result["threshold"])
        flag = export.judged(same, exact=format != "onnx-int8")
        if format != "executorch":
            write_text(out.with_name("predict.py"), script(out.name, result))
        new.replace(out)
    finally:
        new.unlink(missing_ok=True)
    return {"file": str(out), "bytes": out.stat().st_size, "parity": same, "flag": flag}


def to_executorch(model: models.Detector, path: Path) -> Path:
    """Write a `.pte` for ExecuTorch's XNNPACK backend: pixels, 1 x 3 x size x size -> logits."""
    need_executorch()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    image = torch.rand(1, 3, model.arch.size, model.arch.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its internals
        program = torch.export.export(model.cpu().eval(), (image,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        Path(path).write_bytes(lowered.to_executorch().buffer)
    return Path(path)


class ExecutorchModel:
    """A `.pte` file as `train.predict` takes it; `InputError` where it cannot be loaded."""

    def __init__(self, path: Path) -> None:
        need_executorch()
        from executorch.runtime import Runtime

        try:
            self.method = Runtime.get().load_program(Path(path)).load_method("forward")
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"ExecuTorch cannot load {path}: {reason}") from error

    def __call__(self, images: Tensor) -> Tensor:
        one = images.contiguous().split(1)
        return torch.cat([self.method.execute([image])[0].clone() for image in one])


def script(name: str, result: dict) -> str:
    """`predict.py`: prepares images with the very functions that prepared the training images."""
    facts = {"MODEL": name, "SIZE": result["params"]["size"], "MODE": result["params"]["mode"]}
    facts |= {"THRESHOLD": result["threshold"], "CLASSES": tuple(result["classes"])}
    constants = "\n".join(f"{key} = {value!r}" for key, value in facts.items())
    functions = "\n\n".join(map(inspect.getsource, _called(integrity.to_rgb, cache.fit))).rstrip()
    text = (files("dflib.edge") / "templates" / "predict.txt").read_text(encoding="utf-8")
    text = text.replace("<RUN>", result["run_id"]).replace("<FACTS>", constants)
    return text.replace("<FUNCTIONS>", functions)


def _called(*functions: Callable) -> list[Callable]:
    """The functions, and all of data_prep that they call."""
    found = list(functions)
    for function in found:  # grows meanwhile
        names = (function.__globals__.get(name) for name in function.__code__.co_names)
        found += [f for f in names if inspect.isfunction(f) and f not in found]
    return found


def need_executorch() -> None:
    """Raises `InputError` when ExecuTorch is missing."""
    try:
        import executorch.runtime  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise InputError('ExecuTorch is not installed: pip install -e ".[executorch]"') from error


def _executorch(path: Path, threads: int) -> measure.Runner:
    need_executorch()
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(threads)  # safe while no program is loaded
    model = ExecutorchModel(path)
    shape = list(model.method.metadata.input_tensor_meta(0).sizes())[1:]
    return (lambda x: model(torch.from_numpy(x))), shape, f"executorch {version('executorch')}"


measure.RUNNERS[".pte"] = _executorch

if __name__ == "__main__":
    measure.main()
