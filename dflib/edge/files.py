"""A finished run as files for another machine: the model in a runtime's format, checked against the run, and a script that needs no dflib."""

from __future__ import annotations

import inspect
import logging
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor

from data_prep import cache, integrity
from data_prep.errors import InputError, choose
from data_prep.paths import write_text
from dflib import data, export, models, quantize, train
from dflib.study import runs

log = logging.getLogger(__name__)

FORMATS = {"onnx": ".onnx", "onnx-int8": ".onnx", "executorch": ".pte"}
SAME_LOGITS = 1e-3  # what an fp32 file may differ by; int8 differs by more, and must decide alike
SAME_SCORE = 1e-6  # of a probability: on the threshold itself, rounding alone decides
SAME_DECISIONS = 0.98  # of an int8 file: below, it is flagged


def export_run(run: str | Path, *, format: str, out: Path) -> dict:  # noqa: A002 (the command's name)
    """Write a finished run's model to `out`, and for ONNX a `predict.py` beside it; returns {"file", "bytes", "parity", "flag"}.

    format: onnx | onnx-int8 (static; the run's own file where it has one) | executorch (XNNPACK, batch 1). parity: the file against the
    run's float model on the whole test set. An fp32 file that differs by more than 0.001 in a logit, or in one decision, is refused; an
    int8 file that decides otherwise on more than 2 % of the images is flagged. Nothing is written when something fails.
    Raises `InputError` for an unknown run or format, a file name with another suffix, or a missing ExecuTorch.

    >>> export_run("CKD-r90-s0-32px-1f0c9a2b", format="onnx", out=Path("edge/detector.onnx"))  # doctest: +SKIP
    """
    choose("format", format, FORMATS)
    out, folder = Path(out), runs.find(str(run))
    if out.suffix != FORMATS[format]:
        raise InputError(
            f"--out {out}: the name of a file of format {format} ends in {FORMATS[format]}, e.g. {out.stem}{FORMATS[format]}"
        )
    result = runs.read(folder)
    p, model = result["params"], models.load(folder / "model.safetensors")
    images = data.open(
        result["dataset"],
        size=p["size"],
        protocol=result["protocol"],
        mode=p["mode"],
        limit=p["limit"],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f"{out.stem}.new{out.suffix}")
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
        same = compare(model, session, images.test, threshold=result["threshold"])
        flag = _judged(same, exact=format != "onnx-int8")
        if format != "executorch":
            write_text(out.with_name("predict.py"), script(out.name, result))
        new.replace(out)
    finally:
        new.unlink(missing_ok=True)
    return {"file": str(out), "bytes": out.stat().st_size, "parity": same, "flag": flag}


def compare(model: models.Detector, session, part: data.Part, *, threshold: float) -> dict:
    """Largest difference in logits, and share of equal decisions at the threshold, between a model and its file on all images of a part."""
    pairs = []
    with torch.inference_mode():
        for images, _ in part.batches(64):
            x = train.pixels(images)
            pairs.append((model(x), session(x)))
    ours, theirs = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    mine, other = ours.softmax(1)[:, 1], theirs.softmax(1)[:, 1]
    same = ((mine >= threshold) == (other >= threshold)) | ((mine - other).abs() < SAME_SCORE)
    return {
        "max_logit_difference": (ours - theirs).abs().max().item(),
        "same_decisions": same.float().mean().item(),
        "images": len(ours),
    }


def to_executorch(model: models.Detector, path: Path) -> Path:
    """Write a `.pte` for ExecuTorch's XNNPACK backend: pixels, float32 in [0, 1], 1 x 3 x size x size -> logits, 1 x 2."""
    need_executorch()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its internals
        program = torch.export.export(
            model.cpu().eval(), (torch.rand(1, 3, model.arch.size, model.arch.size),)
        )
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()]
        ).to_executorch()
    Path(path).write_bytes(lowered.buffer)
    return Path(path)


class ExecutorchModel:
    """A `.pte` file as `train.predict` takes it. Raises `InputError` when ExecuTorch is missing or cannot load it."""

    def __init__(self, path: Path) -> None:
        need_executorch()
        from executorch.runtime import Runtime

        try:
            self.method = Runtime.get().load_program(Path(path)).load_method("forward")
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"ExecuTorch cannot load {path}: {str(error).splitlines()[0]}"
            ) from error

    def __call__(self, images: Tensor) -> Tensor:
        one = images.contiguous().split(1)
        return torch.cat([self.method.execute([image])[0].clone() for image in one])


def script(name: str, result: dict) -> str:
    """`predict.py`: needs onnxruntime, numpy and pillow; prepares images with the very functions that prepared the training images."""
    used = (integrity.to_rgb, integrity._upright, cache.at_least, cache.centre_crop)
    used += (cache.fit, cache._richest_tile)
    facts = {"MODEL": name, "SIZE": result["params"]["size"], "MODE": result["params"]["mode"]}
    facts |= {"THRESHOLD": result["threshold"], "CLASSES": tuple(result["classes"])}
    constants = "\n".join(f"{key} = {value!r}" for key, value in facts.items())
    sources = "\n\n".join(inspect.getsource(function) for function in used)
    return f"{_HEAD.format(run=result['run_id'])}\n{constants}\n\n\n{sources}\n\n{_MAIN}"


def _judged(same: dict, *, exact: bool) -> str | None:
    text = f"logits differ by up to {same['max_logit_difference']:.2g}, {same['same_decisions']:.2%} of {same['images']} decisions are the same"
    if exact and (same["max_logit_difference"] > SAME_LOGITS or same["same_decisions"] < 1):
        raise InputError(
            f"refused: the exported file does not compute what the run's model does ({text})"
        )
    return f"check before use: {text}" if same["same_decisions"] < SAME_DECISIONS else None


def need_executorch() -> None:
    """Raises `InputError` when ExecuTorch is missing."""
    try:
        import executorch.runtime  # noqa: F401
    except ImportError as error:
        raise InputError('ExecuTorch is not installed: pip install -e ".[executorch]"') from error


_HEAD = '''"""Real or fake? {run}. Needs: pip install onnxruntime numpy pillow. Usage: python predict.py IMAGE …"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import
import onnxruntime
from PIL import Image, ImageOps
'''

_MAIN = """def main(paths: list[str]) -> None:
    session = onnxruntime.InferenceSession(str(Path(__file__).with_name(MODEL)), providers=["CPUExecutionProvider"])
    for path in paths:
        pixels = fit(to_rgb(Image.open(path)), size=SIZE, mode=MODE)
        x = pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255
        real, fake = session.run(None, {"pixels": x})[0][0].astype(float)
        probability = 1 / (1 + np.exp(real - fake))
        print(f"{path}\\t{probability:.6f}\\t{CLASSES[int(probability >= THRESHOLD)]}")


if __name__ == "__main__":
    main(sys.argv[1:])
"""
