"""Small copies of each notebook's key figure, in the cell tagged `key`, for the gallery:
`make figures` takes them from the notebooks that `make book` executed."""

import base64
import io
import sys
from pathlib import Path

import nbformat
from PIL import Image

from data_prep.transform import opened

WIDTH = 640  # pixels


def figure(path: Path) -> Image.Image | None:
    """The last picture of the executed notebook's cell tagged `key`."""
    book = nbformat.read(path, as_version=4)
    cells = [c for c in book.cells if "key" in c.metadata.get("tags", ())]
    data = [output.get("data", {}) for cell in cells for output in cell.outputs]
    found = [each["image/png"] for each in data if "image/png" in each]
    return opened(io.BytesIO(base64.b64decode(found[-1]))) if found else None


def main(executed: Path, gallery: Path) -> None:
    gallery.mkdir(parents=True, exist_ok=True)
    for path in sorted(executed.glob("[0-9]*.ipynb")):
        if image := figure(path):
            image.thumbnail((WIDTH, 2 * WIDTH))
            image.convert("P", palette=Image.Palette.ADAPTIVE).save(gallery / f"{path.stem}.png")
        else:
            sys.stdout.write(f"{path.stem}: no cell tagged `key` drew anything\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
