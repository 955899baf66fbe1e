"""What the techniques do to networks of others: `python tests/tried.py [timm/NAME …]`.

Trains nothing; the table of the gallery's page is made so (some minutes).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data_prep.errors import InputError
from dflib import export, lowrank, measure, models, prune, quantize
from dflib.data import Part

TRIED = (  # of timm: 20 convolutional networks, 5 transformers
    "resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 lcnet_050 mobilenetv2_100 "
    "mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv4_conv_small efficientnet_b0 "
    "tf_efficientnet_lite0 tf_efficientnetv2_b0 mnasnet_100 ghostnet_100 regnetx_004 regnety_004 "
    "convnext_atto repvgg_a0 xception41 vit_tiny_patch16_224 deit_tiny_patch16_224 "
    "deit_tiny_distilled_patch16_224 swin_tiny_patch4_window7_224 efficientformer_l1"
)
IMAGES = 16  # of noise, to calibrate int8 and to compare


def row(backbone: str, *, size: int = 224) -> dict:
    """What holds for an untrained network: its size, each technique ("holds", or why it does not),
    and the largest difference of the ONNX file's logits from the network's."""
    found = {"network": backbone}
    try:
        model = models.Detector(models.architecture("BL", size=size, backbone=backbone)).eval()
        gmacs = round(measure.macs(model) / 1e9, 2)
    except InputError as error:
        return found | {"parameters": f"refused: {error}"}
    found |= {"parameters": models.parameters(model), "GMACs": gmacs}
    for rate in (0.5, 0.9):
        found[f"prune {rate:.0%}"] = _told(partial(_pruned, model, rate))
    found["low rank 50%"] = _told(partial(_thin, model, 0.5))
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
    rows = pd.DataFrame({"row": np.arange(IMAGES), "label": np.arange(IMAGES) % 2})
    part = Part(noise, rows)
    with tempfile.TemporaryDirectory() as folder:
        file, int8 = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        found["export"] = _told(partial(export.to_onnx, model, file))
        if found["export"] == "holds":
            same = export.parity(model, export.OnnxModel(file), part)
            found["logits differ by"] = f"{same['max_logit_difference']:.0e}"
            found["int8"] = _told(partial(quantize.static_int8, file, int8, part, images=IMAGES))
    return found


def _told(technique: Callable[[], object]) -> str:
    try:
        technique()
    except InputError as error:
        return f"refused: {error}"
    return "holds"


def _pruned(model: models.Detector, rate: float) -> None:
    """Prune, and come back from the architecture that is saved."""
    small = prune.structured(model, rate=rate)
    models.Detector(small.arch).load_state_dict(small.state_dict())


def _thin(model: models.Detector, rate: float) -> None:
    small = lowrank.factorise(model, lowrank.choose_ranks(model, rate=rate))
    with torch.inference_mode():
        small(torch.rand(1, 3, model.arch.size, model.arch.size))


if __name__ == "__main__":
    names = sys.argv[1:] or [f"timm/{name}" for name in TRIED.split()]
    print(pd.DataFrame(map(row, names)).astype(object).fillna("").to_string())
