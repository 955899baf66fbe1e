"""Downloads that can be trusted: resumed after a cut, checked, unpacked only where it is safe."""

import hashlib
import logging
import shutil
import stat
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import requests
from remotezip import RangeNotSupported, RemoteIOError, RemoteZip
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError

from data_prep.errors import InputError
from data_prep.paths import lock, need_room

log = logging.getLogger(__name__)

TRIES = 20
WAIT = 1.0  # seconds before the second try; doubles with each, up to a minute
TIMEOUT = 30  # seconds without an answer
_BLOCK = 1 << 20
_BREAKS = (requests.RequestException, HTTPError, RemoteIOError, BadZipFile, zlib.error)
_bar = partial(tqdm, leave=False, disable=None)
_remote = partial(RemoteZip, initial_buffer_size=_BLOCK, timeout=TIMEOUT)


def fetch(url: str, target: Path, *, md5: str | None = None) -> Path:
    """Download `url` to the file `target`, which exists only once it is whole and right.

    Goes on where an earlier attempt was cut. Raises `InputError` for an address that does not
    answer, a disk too full (before anything is written), or a wrong checksum (the file is set
    aside).

    >>> fetch("https://example.org/set.zip", Path("set.zip"), md5="0695bd…")   # doctest: +SKIP
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(_beside(target, ".lock")):
        if not target.exists():
            part = _beside(target, ".part")
            _retried(partial(_receive, url, part), url)
            if md5:
                _check(part, url, md5)
            part.replace(target)
    return target


def unpack(
    archive: Path, folder: Path, *, wanted: Callable[[str], bool] = lambda name: True
) -> Path:
    """Unpack the wanted members of a zip into `folder`, which appears only with all of them there.

    Raises `InputError`, with nothing left of it, for a damaged or encrypted archive, a member with
    an absolute path, `..` or a link, or a disk too full.
    """
    if folder.exists():
        return folder
    fresh = _beside(folder, ".new")
    shutil.rmtree(fresh, ignore_errors=True)  # of an earlier attempt that was cut
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ZipFile(archive) as opened:
            members = _members(opened, str(archive), wanted)
            need_room(sum(m.file_size for m in members), folder.parent, str(archive))
            for member in _bar(members, desc=f"unpacking {archive.name}"):
                opened.extract(member, fresh)
    except Exception as error:  # as many kinds as there are ways to damage a zip
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, InputError):
            raise
        why = f"({error}): remove it and download it again"
        raise InputError(f"{archive} cannot be unpacked {why}") from error
    fresh.rename(folder)
    return folder


def fetch_members(
    url: str, folder: Path, *, wanted: Callable[[str], bool], threads: int = 8
) -> Path:
    """Fetch only the wanted members of a zip on a server into `folder`, by range requests.

    Each is checked by its CRC-32 and written in one step; a cut call goes on with the missing ones.
    A server without ranges gives the whole archive. Raises `InputError` as `fetch` and `unpack` do.

    >>> fetch_members(url, Path("set"), wanted=names_below("person"))   # doctest: +SKIP
    """

    def listed() -> list[ZipInfo]:
        with _remote(url) as remote:
            return _members(remote, url, wanted)

    try:
        members = _retried(listed, url)
    except RangeNotSupported:
        log.warning("%s does not support ranges: the whole archive is downloaded", url)
        return unpack(fetch(url, _beside(folder, ".zip")), folder, wanted=wanted)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [m for m in members if _size(folder / m.filename) != m.file_size]
    need_room(sum(m.file_size for m in missing), folder, url)
    shares = [share for i in range(threads) if (share := missing[i::threads])]
    with ThreadPoolExecutor(threads) as pool, _bar(total=len(missing), desc=folder.name) as bar:
        steps = [partial(_fetch_some, url, folder, share, bar.update) for share in shares]
        list(pool.map(lambda step: _retried(step, url), steps))
    return folder


def names_below(*prefixes: str) -> Callable[[str], bool]:
    """Whether a member lies in one of these folders of an archive, or one folder further down.

    >>> names_below("progan/person")("CNN_synth_testset/progan/person/0_real/1.png")
    True
    """
    folders = tuple(prefix.strip("/") + "/" for prefix in prefixes)
    return lambda name: name.startswith(folders) or name.partition("/")[2].startswith(folders)


def _retried(step: Callable, url: str):
    """The step's result, after at most `TRIES` broken connections; what came is kept each time."""
    for attempt in range(TRIES):
        try:
            return step()
        except _BREAKS as error:
            if " Client Error" in str(error):  # 404 and its kind: no use in asking again
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


def _check(part: Path, url: str, md5: str) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        aside = part.replace(part.with_suffix(".wrong"))
        raise InputError(
            f"{url}: md5 is {found}, expected {md5}. The file is set aside as {aside}: "
            "remove it and try again; if that gives the same, the publisher changed the file"
        )


def _members(opened: ZipFile, where: str, wanted: Callable[[str], bool]) -> list[ZipInfo]:
    """The wanted files of an archive; one unsafe or unreadable member anywhere refuses it all."""
    for member in opened.infolist():
        name, link = member.filename, stat.S_ISLNK(member.external_attr >> 16)
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
        if absolute or link or ".." in PureWindowsPath(name).parts:
            what = "would be written outside the folder, or is a link: refused, nothing unpacked"
            raise InputError(f"{where}: member {name!r} {what}")
        packed = member.compress_type not in (ZIP_STORED, ZIP_DEFLATED)
        if packed or member.flag_bits & 0x1:
            what = "packed in a rare way" if packed else "encrypted"
            how = "unpack it yourself, then give the folder with --from"
            raise InputError(f"{where}: member {name!r} is {what}: {how}")
    return [m for m in opened.infolist() if not m.is_dir() and wanted(m.filename)]


def _fetch_some(
    url: str, folder: Path, members: list[ZipInfo], advance: Callable[[], object]
) -> None:
    """Those of the members that are not there yet, over one connection."""
    with _remote(url) as remote:
        for member in members:
            file = folder / member.filename
            if _size(file) != member.file_size:
                file.parent.mkdir(parents=True, exist_ok=True)
                new = _beside(file, ".new")
                new.write_bytes(remote.read(member.filename))
                new.replace(file)
                advance()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
