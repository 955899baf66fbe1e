"""The Kaggle and Colab badges in the notebooks' first cells: `make address
URL=https://github.com/you/name` fills in the repository.

Until then the badges lead to the README, which tells how to open a notebook there.
"""

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
PLACEHOLDER = "REPOSITORY_URL"
KNOWN = re.compile(r"welcome\?src=(https://github\.com/[\w.-]+/[\w.-]+)/blob/")
LINE = re.compile(r"\[!\[Open in Kaggle\][^\"\n\\]*")


def line(stem: str, address: str = PLACEHOLDER) -> str:
    """The badges of one notebook, and once the repository has an address, what to run first on a
    machine that has not seen it."""
    kaggle = colab = "../README.md#on-kaggle-with-two-t4s"
    first = ""
    if address != PLACEHOLDER:
        kaggle = (
            f"https://kaggle.com/kernels/welcome?src={address}/blob/main/notebooks/{stem}.ipynb"
        )
        place = address.removeprefix("https://").replace(".com", "", 1)
        colab = f"https://colab.research.google.com/{place}/blob/main/notebooks/{stem}.ipynb"
        first = (
            f" There, first run `!git clone {address} workbook`, `%cd workbook`, `%pip install "
            f"-q -r requirements.txt`."
        )
    return (
        f"[![Open in Kaggle](badges/kaggle.svg)]({kaggle}) [![Open in "
        f"Colab](badges/colab.svg)]({colab}){first}"
    )


def address(text: str) -> str:
    """The repository that a notebook's badges lead to; the placeholder where none is filled in."""
    found = KNOWN.search(text)
    return found[1] if found else PLACEHOLDER


def fill(root: Path, new: str) -> None:
    """Put the repository's address into the notebooks and the README below `root`, in place of the
    placeholder or an older one."""
    old = PLACEHOLDER
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        old = address(text)
        path.write_text(LINE.sub(line(path.stem, new), text, count=1), encoding="utf-8")
    readme = root / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch(
        rf"{PLACEHOLDER}|https://github\.com/[\w.-]+/[\w.-]+", sys.argv[1]
    ):
        sys.exit(
            "the address of the repository, please: make address URL=https://github.com/you/name"
        )
    fill(FOLDER.parent, sys.argv[1])
