"""Files put where the user asked: all or none of them, and only over what was written here."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.errors import InputError
from dflib.export import MARK

STAMP = re.compile(rf"{MARK} [0-9a-f]{{64}}")


def stamped(text: str) -> str:
    """A text with its own hash in the place of <MARK>: whoever edits it makes it his own.

    >>> is_ours(stamped("# <MARK>").encode()), is_ours(stamped("# <MARK>").encode() + b"!")
    (True, False)
    """
    return text.replace("<MARK>", f"{MARK} {hashlib.sha256(text.encode()).hexdigest()}")


def is_ours(content: bytes) -> bool:
    """Whether a file was written here: a stamped text, or a binary file that holds the mark."""
    if found := STAMP.search(text := content.decode("utf-8", "replace")):
        return stamped(text.replace(found[0], "<MARK>")) == text
    return b"\0" in content and MARK.encode() in content


@contextmanager
def replacing(folder: Path, names: Sequence[str], *, force: bool = False) -> Iterator[Path]:
    """A new folder to write files of these names in; they go to `folder` when all went well.

    Raises `InputError` where `folder` cannot be written to, or a file of such a name is there and
    not ours (unless `force`).

    >>> with replacing(Path("edge"), ["detector.onnx"]) as new:  # doctest: +SKIP
    ...     to_onnx(model, new / "detector.onnx")
    """
    for path in (Path(folder) / name for name in names):
        if path.is_dir():
            raise InputError(f"{path} is a folder: give another --out")
        taken = path.exists() or path.is_symlink()
        if taken and not force and not (path.is_file() and is_ours(path.read_bytes())):
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
