"""Downloads that can be trusted: resumed after a cut, checked, unpacked only where it is safe."""

import hashlib
import logging
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from zipfile import BadZipFile, ZipFile, ZipInfo

import requests
from remotezip import RangeNotSupported, RemoteIOError, RemoteZip
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError

from data_prep.errors import InputError
from data_prep.paths import lock, need_room, written

log = logging.getLogger(__name__)

TRIES = 20
WAIT = 1.0  # seconds before the second try; doubles with each, up to a minute
TIMEOUT = 30  # seconds without an answer
_BLOCK = 1 << 20
_BREAKS = (requests.RequestException, HTTPError, RemoteIOError, BadZipFile, zlib.error)
_bar = partial(tqdm, leave=False, disable=None)
_remote = partial(RemoteZip, initial_buffer_size=_BLOCK, timeout=TIMEOUT)


def fetch(url: str, target: Path, *, md5: str | None = None) -> Path:
    """Download `url` to the file `target`, which exists only once it is whole and right; goes on
    where an earlier attempt was cut.

    Raises `InputError` for an address that does not answer, a full disk, or a wrong checksum.

    >>> fetch("https://example.org/set.zip", Path("set.zip"), md5="0695bd…")   # doctest: +SKIP
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with lock(target.with_name(f"{target.name}.lock")):
        if target.exists():
            return target
        _retried(partial(_receive, url, part), url)
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest() if md5 else None
        if found != md5:
            part.unlink()
            hint = "try again; if that gives the same, the publisher changed the file"
            raise InputError(f"{url}: md5 is {found}, expected {md5}: {hint}")
        part.replace(target)
    return target


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip into `folder`, which appears only with all of the members there. `InputError`,
    with nothing left, for a damaged or encrypted archive, an unsafe member, or a full disk."""
    if folder.exists():
        return folder
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # of an earlier attempt that was cut
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ZipFile(archive) as opened:
            members = _members(opened, str(archive))
            if not members:
                raise ValueError("it holds no files")
            need_room(sum(m.file_size for m in members), folder.parent, str(archive))
            for member in _bar(members, desc=f"unpacking {archive.name}"):
                opened.extract(member, fresh)
    except InputError:
        raise
    except Exception as error:  # as many kinds as there are ways to damage a zip
        shutil.rmtree(fresh, ignore_errors=True)
        how = "download it again, or unpack it yourself and give the folder with --from"
        raise InputError(f"{archive} cannot be unpacked ({error}): {how}") from error
    fresh.rename(folder)
    return folder


def fetch_members(url: str, folder: Path, *, below: Sequence[str]) -> Path:
    """Fetch into `folder`, by range requests, the members of a zip on a server that lie in one of
    the folders `below`, of the archive or of a folder at its top.

    Each is checked by its CRC-32; a cut call goes on with the missing ones.
    """
    starts = tuple(f"{name}/" for name in below)

    def fetched() -> None:
        with _remote(url) as remote:
            missing = []
            for member in _members(remote, url):
                names = member.filename, member.filename.partition("/")[2]
                here = _size(folder / member.filename) == member.file_size
                if any(name.startswith(starts) for name in names) and not here:
                    missing.append(member)
            folder.mkdir(parents=True, exist_ok=True)
            need_room(sum(m.file_size for m in missing), folder, url)
            for member in _bar(missing, desc=folder.name):
                file = folder / member.filename
                file.parent.mkdir(parents=True, exist_ok=True)
                with written(file) as new:
                    new.write_bytes(remote.read(member.filename))

    _retried(fetched, url)
    return folder


def _retried(step: Callable, url: str):
    """The step's result, after at most `TRIES` broken connections; what came is kept each time."""
    for attempt in range(TRIES):
        try:
            return step()
        except (RangeNotSupported, RuntimeError) as error:  # encrypted, or packed in a rare way
            how = "unpack it yourself and give the folder with --from"
            raise InputError(f"{url} cannot be read in parts ({error}): {how}") from error
        except _BREAKS as error:
            code, _, kind = str(error).partition(" ")
            if kind.startswith("Client Error") and code not in ("408", "429"):  # 404: in vain
                what = f"answers {error}: see whether the address has changed"
                raise InputError(f"{url} {what}") from error
            log.info("connection lost (%s): going on", error.__class__.__name__)
            if attempt + 1 < TRIES:
                time.sleep(min(WAIT * 2**attempt, 60 * WAIT))
    raise InputError(f"{url} does not answer; the same command goes on from there")


def _receive(url: str, part: Path) -> None:
    """One attempt: ask for what is missing, append what comes; start over where all of it comes."""
    have = _size(part) or 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing after what we have: the checksum tells the rest
            return
        answer.raise_for_status()
        start = have if answer.status_code == 206 else 0
        rest = int(answer.headers.get("Content-Length", 0))
        need_room(rest - (have - start), part.parent, url)
        progress = {"initial": start, "total": start + rest, "unit": "B", "unit_scale": True}
        with part.open("ab" if start else "wb") as file, _bar(desc=part.stem, **progress) as bar:
            # what has come: a whole block would be lost with the connection
            while block := answer.raw.read1(_BLOCK):
                file.write(block)
                bar.update(len(block))


def _members(opened: ZipFile, where: str) -> list[ZipInfo]:
    """The files of an archive; one that is unsafe refuses it all."""
    for member in opened.infolist():
        name, link = member.filename, stat.S_ISLNK(member.external_attr >> 16)
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
        if absolute or link or ".." in PureWindowsPath(name).parts:
            what = "would be written outside the folder, or is a link: refused, nothing unpacked"
            raise InputError(f"{where}: member {name!r} {what}")
    return [member for member in opened.infolist() if not member.is_dir()]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
