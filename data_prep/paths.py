"""Where data live: `$DFLIB_DATA`, else `data/` in the project (without one: in this folder)."""

import json
import logging
import os
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from filelock import BaseFileLock, FileLock

from data_prep.errors import InputError, choose, shown

log = logging.getLogger(__name__)

JUNK = ("__macosx", "$recycle.bin", "@eadir", "system volume information")  # no one's images
KAGGLE = Path("/kaggle/input")  # holds <slug>/… or {datasets,notebooks}/<owner>/<slug>/…
DEPTH = 6  # of a search by structure: Kaggle's four folders, and an archive's own
_PACKAGE_PARENT = Path(__file__).resolve().parents[1]
PROJECT = _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").exists() else Path.cwd()

PUBLISHED = tomllib.loads(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))

CSV = {"index": False, "lineterminator": "\r\n"}  # for `to_csv`: quotes a CR in a name, too

# name -> the command that makes, finds or downloads it
HOW_TO_GET = dict.fromkeys(("demo", "demo-source"), "python -m data_prep demo") | {
    name: f"python -m data_prep {name}{'' if {'archives', 'hub'} & {*row} else ' --from FOLDER'}"
    for name, row in PUBLISHED.items()
}


def _settle() -> None:
    """Make the folders of the environment absolute: kernels inherit it, and work in other ones."""
    for variable in ("DFLIB_DATA", "DFLIB_OUTPUTS"):
        if given := os.environ.get(variable):
            os.environ[variable] = str(Path(given).expanduser().absolute())


_settle()


def data_root() -> Path:
    """Folder that holds one subfolder per dataset: absolute, also where `$DFLIB_DATA` is not."""
    _settle()  # it may have been set since
    return Path(os.environ.get("DFLIB_DATA") or PROJECT / "data")


def outputs_root() -> Path:
    """Folder of all runs and reports: `$DFLIB_OUTPUTS`, else `outputs/` in the project."""
    _settle()
    return Path(os.environ.get("DFLIB_OUTPUTS") or PROJECT / "outputs")


def by_structure(base: Path, is_one: Callable[[Path], object]) -> Path | None:
    """The nearest folder at or below `base` that `is_one` knows."""
    level = [base] if base.is_dir() else []
    for _ in range(DEPTH + 1):
        for folder in level:
            if is_one(folder):
                return folder
        level = [below for folder in level for below in subfolders(folder)]
    return None


def subfolders(folder: Path) -> list[Path]:
    """Folders directly below without junk, sorted; a folder that cannot be read is told."""

    def unreadable(error: OSError) -> None:
        log.warning("%s cannot be read (%s): left out", shown(folder), error.strerror)

    _, names, _ = next(os.walk(folder, onerror=unreadable), ("", [], []))
    return sorted(folder / name for name in names if not is_junk(name))


def is_junk(folder: str) -> bool:
    """Whether a folder of this name is hidden (.ipynb_checkpoints) or a system's own (`JUNK`)."""
    return folder.startswith(".") or folder.lower() in JUNK


def present() -> list[str]:
    """Names of the datasets that have a manifest, sorted."""
    return sorted(p.parent.name for p in data_root().glob("*/manifest.csv"))


def dataset_folder(name: str) -> Path:
    """Folder of a prepared dataset; `InputError` that tells how to get it, or the nearest name."""
    folder = data_root() / name
    if Path(name).name != name or not (folder / "manifest.csv").exists():
        hint = "For your own images: python -m data_prep folder PATH --name NAME"
        choose("dataset", name, sorted({*present(), *HOW_TO_GET}), hint=hint)
        where = f"looked for {folder / 'manifest.csv'}"
        raise InputError(f"dataset {name!r} is missing: {where}. Get it with: {HOW_TO_GET[name]}")
    return folder


def describe(name: str) -> dict:
    """The dataset's `dataset.json`: name, kind, root of the images, licence."""
    path = dataset_folder(name) / "dataset.json"
    try:
        return json.loads(regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        again = "make it again with python -m data_prep"
        raise InputError(f"{path} is missing or damaged ({error}): {again}") from error


def images_root(name: str) -> Path:
    """Folder that the paths of a dataset's manifest start from."""
    return Path(os.path.normpath(dataset_folder(name) / describe(name)["root"]))


def lock(file: Path, *, timeout: float = -1) -> BaseFileLock:
    """A lock on a file, taken, waited for at most `timeout` seconds (else `filelock.Timeout`);
    `InputError` on a file system without locks, where others wait for ever."""
    if os.name == "posix":  # Windows has its own
        import fcntl

        with file.open("a") as probe:
            try:
                fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # held by another
                pass
            except OSError as error:
                where = f"{file.parent} is on a file system without locks ({error.strerror})"
                how = "set $DFLIB_DATA or $DFLIB_OUTPUTS to a local folder"
                raise InputError(f"{where}: {how}") from error
    found = FileLock(file, timeout=timeout)
    found.acquire()
    return found


def usable(folder: Path) -> Path:
    """A folder, made, in which files can be written and locked; else `InputError` says why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".usable-") as file:
            file.write(b"x")
            file.flush()
            lock(Path(file.name)).release()
    except OSError as error:
        hint = "free some room, or set $DFLIB_OUTPUTS to another folder"
        raise InputError(f"{folder} cannot be written to: {error.strerror}: {hint}") from error
    return folder


@contextmanager
def written(path: Path, prefix: str = "") -> Iterator[Path]:
    """A new file that becomes `path` when all went well, and only once the disk has it whole.
    prefix: of the new file's name, where its ending has to stay."""
    new = path.with_name(f"{prefix}{path.name}" if prefix else f"{path.name}.new")
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def regular(file: Path, most: int = 10**8) -> Path:
    """A file that can be read whole, no pipe or device, which may never end; else `OSError`."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "not a regular file", str(file))
    if found.st_size > most:
        raise OSError(0, f"too large: more than {most // 1_000_000} MB", str(file))
    return file


def as_text(path: Path | str) -> str:
    r"""A path as text that any file can hold; bytes that are no UTF-8 as escapes such as \udce9."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, as `written` does."""
    with written(path) as new:
        new.write_text(text, encoding="utf-8", newline="")


def need_room(needed: int, folder: Path, what: str, hint="free some, or set $DFLIB_DATA") -> None:
    """Raises `InputError` where a disk would be (almost) full with so many bytes more."""
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        room = f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free below {folder}"
        raise InputError(f"{what} needs {room}: {hint}")
