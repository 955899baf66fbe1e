"""One image or a folder of images through any finished run or model file."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from data_prep.cache import fit
from data_prep.errors import InputError
from data_prep.folder import walk
from data_prep.integrity import BadImage, open_image, to_rgb
from dflib import export, models
from dflib.study import runs
from dflib.train import pixels, probabilities


class Predictor:
    """A detector for single images: {"probability", "label", "threshold", "error"} of each.

    run: a run id, a run folder, or a `.safetensors` or `.onnx` file (then with a threshold of 0.5,
    and images squashed to the square); else `InputError`.
    """

    def __init__(self, run: str | Path) -> None:
        path = Path(run)
        self.threshold, self.mode, self.classes = 0.5, "resize", ("real", "fake")
        if path.suffix not in (".onnx", ".safetensors"):
            folder = runs.find(str(run))
            result = runs.read(folder)
            self.threshold, self.mode = result["threshold"], result["params"]["mode"]
            self.classes, path = tuple(result["classes"]), folder / result["deployed"]
        self.name = path.parent.name if path.name.startswith("model") else path.name
        if path.suffix == ".onnx":
            self.forward = export.OnnxModel(path)
            self.size = self.forward.size
        else:
            model = models.load(path)
            self.forward, self.size = models.fused(model), model.arch.size

    def __call__(self, image: Path | bytes) -> dict:
        answer = {"probability": None, "label": None, "threshold": self.threshold, "error": None}
        try:
            array = fit(to_rgb(open_image(image)), size=self.size, mode=self.mode)
            probability = float(self.probabilities(array[None])[0])
        except (BadImage, InputError) as error:
            return answer | {"error": str(error)}
        label = self.classes[int(probability >= self.threshold)]
        return answer | {"probability": probability, "label": label}

    def probabilities(self, arrays: np.ndarray) -> np.ndarray:
        """P(fake) of decoded images, uint8 N x size x size x 3 -> N; see `train.probabilities`."""
        images = torch.from_numpy(np.array(arrays)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return probabilities(self.forward(pixels(images)))


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those in the folders named; `InputError` where there is none."""
    for path in map(Path, paths):
        found = list(walk(path)) if path.is_dir() else [path]
        if not found or not path.exists():
            what = "holds no files" if path.is_dir() else "is not there"
            raise InputError(f"{path} {what}: give images or folders of images")
        yield from found
