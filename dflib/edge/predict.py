"""One image or a folder of images through any finished run or model file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_prep.cache import fit
from data_prep.errors import InputError
from data_prep.folder import walk
from data_prep.integrity import BadImage, open_image, to_rgb
from dflib import export, models
from dflib.study import runs
from dflib.train import pixels


class Predictor:
    """A detector ready for single images. Calls return {"probability", "label", "threshold", "error"}; a bad image is an error, not an exception.

    run: a run id, a run folder, or a `.safetensors` or `.onnx` file (then the threshold is 0.5 and images are squashed to the square).
    The image is taken as it is: what makes the classes of a set alike (protocol strict) needs the set, and a single image has none.
    Raises `InputError` when it is none of these.

    >>> Predictor("outputs/demo/strict/BL/…")(Path("photo.jpg"))    # doctest: +SKIP
    """

    def __init__(self, run: str | Path) -> None:
        path = Path(run)
        self.threshold, self.mode, self.classes = 0.5, "resize", ("real", "fake")
        if path.suffix not in (".onnx", ".safetensors"):
            folder = runs.find(str(run))
            result = runs.read(folder)
            self.threshold, self.mode = result["threshold"], result["params"]["mode"]
            self.classes = tuple(result["classes"])
            path = folder / result["deployed"]
        self.name = path.parent.name if path.name.startswith("model") else path.name
        if path.suffix == ".onnx":
            self.forward = export.OnnxModel(path)
            self.size = self.forward.size
        else:
            model = models.load(path)
            self.forward, self.size = models.fused(model), model.arch.size

    def __call__(self, image: Path | bytes) -> dict:
        try:
            probability = self.probability(to_rgb(open_image(image)))
        except BadImage as error:
            return {
                "probability": None,
                "label": None,
                "threshold": self.threshold,
                "error": str(error),
            }
        label = self.classes[int(probability >= self.threshold)]
        return {
            "probability": probability,
            "label": label,
            "threshold": self.threshold,
            "error": None,
        }

    def probability(self, image: Image.Image) -> float:
        """P(fake) of one RGB image."""
        return float(self.probabilities(fit(image, size=self.size, mode=self.mode)[None])[0])

    def probabilities(self, arrays: np.ndarray) -> np.ndarray:
        """P(fake) of decoded images, uint8 N x size x size x 3 -> N."""
        return self.logits(arrays).softmax(1)[:, 1].numpy()

    def logits(self, arrays: np.ndarray) -> Tensor:
        """Logits of decoded images, uint8 N x size x size x 3 -> N x 2."""
        with torch.inference_mode():
            return self.forward(
                pixels(torch.from_numpy(np.array(arrays)).permute(0, 3, 1, 2))
            ).double()


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those in the folders named; raises `InputError` for a path that is not there, or an empty folder."""
    for path in map(Path, paths):
        if path.is_dir():
            found = list(walk(path))
            if not found:
                raise InputError(f"{path} holds no files: give images or folders of images")
            yield from found
        elif path.exists():
            yield path
        else:
            raise InputError(f"{path} is not there: give images or folders of images")
