"""Downloads that can be trusted: resumed after a cut, checked against a checksum, unpacked only when every member is safe."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

import requests
import urllib3
from filelock import FileLock
from remotezip import RangeNotSupported, RemoteIOError, RemoteZip
from tqdm.auto import tqdm

from data_prep.errors import InputError

log = logging.getLogger(__name__)

TRIES = 6  # in a row without a byte gained
WAIT = 1.0  # seconds before the second try; doubles with each
TIMEOUT = 30  # seconds without an answer
_BLOCK = 1 << 20
_BREAKS = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)


def fetch(url: str, target: Path, *, md5: str | None = None, sha256: str | None = None) -> Path:
    """Download `url` to the file `target`, going on where an earlier attempt was cut; returns `target`, which exists only once it is whole and right.

    A server that ignores ranges, or whose file has changed meanwhile, is read again from the start. Two calls at once wait for each other.
    Raises `InputError` for an address that does not answer, a disk too full (before anything is written), or a wrong checksum (the file is set aside).

    >>> fetch("https://example.org/set.zip", Path("set.zip"), md5="0695bd…")   # doctest: +SKIP
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if not target.exists():
            part = target.with_name(target.name + ".part")
            _receive_all(url, part)
            _check(part, url, md5=md5, sha256=sha256)
            part.replace(target)
            _etag_file(part).unlink(missing_ok=True)
    return target


def unpack(
    archive: Path, folder: Path, *, wanted: Callable[[str], bool] = lambda name: True
) -> Path:
    """Unpack the wanted members of a zip into `folder`, which appears only when all of them are there; returns it.

    Raises `InputError`, with nothing unpacked, for a damaged archive, a member with an absolute path, `..` or a link, or a disk too full.
    """
    folder = Path(folder)
    if folder.exists():
        return folder
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)  # of an earlier attempt that was cut
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, str(archive), wanted)
            _room(sum(m.file_size for m in members), folder.parent, str(archive))
            for member in tqdm(
                members, desc=f"unpacking {Path(archive).name}", leave=False, disable=None
            ):
                opened.extract(member, fresh)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise InputError(
            f"{archive} cannot be unpacked ({error}): remove it and download it again"
        ) from error
    fresh.rename(folder)
    return folder


def fetch_members(
    url: str, folder: Path, *, wanted: Callable[[str], bool], threads: int = 8
) -> Path:
    """Fetch only the wanted members of a zip on a server into `folder` by range requests; returns it.

    Each member is checked by its CRC-32 and written in one step, so a cut call goes on with the missing ones. Where the server
    ignores ranges, the whole archive is downloaded beside `folder` and unpacked. Raises `InputError` as `fetch` and `unpack` do.
    """
    folder = Path(folder)
    try:
        members = _retried(partial(_list_remote, url, wanted))
    except RangeNotSupported:
        log.warning("%s does not support ranges: the whole archive is downloaded", url)
        archive = fetch(url, folder.with_name(folder.name + ".zip"))
        return unpack(archive, folder, wanted=wanted)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [m for m in members if not _same_size(folder / m.filename, m.file_size)]
    _room(sum(m.file_size for m in missing), folder, url)
    if missing:
        with (
            ThreadPoolExecutor(threads) as pool,
            tqdm(
                total=len(missing), desc=f"fetching {folder.name}", leave=False, disable=None
            ) as bar,
        ):
            for done in [
                pool.submit(_fetch_some, url, folder, missing[i::threads], bar.update)
                for i in range(threads)
            ]:
                done.result()
    return folder


def _receive_all(url: str, part: Path) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            return _receive(url, part)
        except _BREAKS as error:
            failures = 0 if _size(part) > before else failures + 1
            if failures >= TRIES:
                raise InputError(
                    f"{url} does not answer ({error.__class__.__name__}): {_size(part):,} bytes are kept in {part}; the same command goes on from there"
                ) from error
            log.info(
                "connection lost after %d bytes (%s): going on",
                _size(part),
                error.__class__.__name__,
            )
            time.sleep(WAIT * 2**failures / 2)


def _receive(url: str, part: Path) -> None:
    """One attempt: ask for what is missing, append what comes; starts over where the server sends all of it."""
    etag, have = _read_etag(part, url), _size(part)
    headers = {"Accept-Encoding": "identity"}
    if have and etag:
        headers |= {"Range": f"bytes={have}-", "If-Range": etag}
    elif have:
        headers |= {"Range": f"bytes={have}-"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if (
            answer.status_code == 416
        ):  # nothing after what we have: either all is here, or the file became shorter
            if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
            raise requests.ConnectionError("the server's file is shorter than before")
        if answer.status_code >= 500:
            raise requests.ConnectionError(f"status {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise InputError(
                f"{url} answers {answer.status_code} {answer.reason}: see whether the address has changed"
            )
        start = (
            int(re.match(r"bytes (\d+)-", answer.headers["Content-Range"])[1])
            if answer.status_code == 206
            else 0
        )
        if start not in (0, have):
            raise InputError(
                f"{url} answers with bytes from {start} on instead of {have}: remove {part} and try again"
            )
        rest = int(answer.headers.get("Content-Length", 0))
        _room(rest - (have - start), part.parent, url)
        _etag_file(part).write_text(
            json.dumps({"url": url, "etag": answer.headers.get("ETag", "")})
        )
        bar = tqdm(
            total=start + rest,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=part.stem,
            leave=False,
            disable=None,
        )
        with part.open("ab" if start else "wb") as file, bar:
            while block := answer.raw.read1(
                _BLOCK
            ):  # what has come: a whole block would be lost with the connection
                file.write(block)
                bar.update(len(block))


def _check(part: Path, url: str, **checksums: str | None) -> None:
    for kind, expected in checksums.items():
        if expected:
            with part.open("rb") as file:
                found = hashlib.file_digest(file, kind).hexdigest()
            if found != expected.lower():
                aside = part.with_suffix(".wrong")
                part.replace(aside)
                raise InputError(
                    f"{url}: {kind} is {found}, expected {expected}. The file is set aside as {aside}: remove it and try again; if that gives the same, the publisher has changed the file"
                )


def _members(
    opened: zipfile.ZipFile, where: str, wanted: Callable[[str], bool]
) -> list[zipfile.ZipInfo]:
    """The wanted files of an archive; one unsafe member anywhere refuses it all."""
    for member in opened.infolist():
        name, mode = member.filename, member.external_attr >> 16
        unsafe = (
            PurePosixPath(name).is_absolute()
            or PureWindowsPath(name).anchor
            or ".." in re.split(r"[/\\]", name)
        )
        if unsafe or (mode & 0o170000) == 0o120000:
            raise InputError(
                f"{where}: member {name!r} would be written outside the folder, or is a link: refused, nothing unpacked"
            )
    return [m for m in opened.infolist() if not m.is_dir() and wanted(m.filename)]


def _list_remote(url: str, wanted: Callable[[str], bool]) -> list[zipfile.ZipInfo]:
    with RemoteZip(url, initial_buffer_size=_BLOCK, timeout=TIMEOUT) as remote:
        return _members(remote, url, wanted)


def _fetch_some(
    url: str, folder: Path, members: list[zipfile.ZipInfo], advance: Callable[[], object]
) -> None:
    def go_on() -> None:
        with RemoteZip(url, initial_buffer_size=_BLOCK, timeout=TIMEOUT) as remote:
            for member in members:
                file = folder / member.filename
                if not _same_size(file, member.file_size):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    new = file.with_name(file.name + ".new")
                    new.write_bytes(remote.read(member.filename))
                    new.replace(file)
                    advance()

    _retried(go_on)


def _retried(step: Callable):
    """The step's result, tried again after broken connections."""
    for failures in range(TRIES):
        try:
            return step()
        except (RemoteIOError, zipfile.BadZipFile, *_BREAKS, OSError) as error:
            if " Client Error" in str(error):  # 404 and its kind: no use in asking again
                raise InputError(f"{error}: see whether the address has changed") from error
            last = error
            time.sleep(WAIT * 2**failures / 2)
    raise InputError(
        f"download failed after {TRIES} tries ({last}): the same command goes on with what is missing"
    ) from last


def _room(needed: int, folder: Path, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > 0.98 * free:
        raise InputError(
            f"{what} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free below {folder}: free some, or set $DFLIB_DATA"
        )


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_etag(part: Path, url: str) -> str:
    """What the server called the file of which we hold a part; weak tags promise nothing about bytes."""
    try:
        record = json.loads(_etag_file(part).read_text())
    except (OSError, ValueError):
        return ""
    if record["url"] != url:
        part.unlink(missing_ok=True)
        return ""
    return "" if record["etag"].startswith("W/") else record["etag"]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _same_size(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def names_below(*prefixes: str) -> Callable[[str], bool]:
    """Whether a member lies in one of these folders of an archive, with or without one folder above them all.

    >>> names_below("progan/person")("CNN_synth_testset/progan/person/0_real/1.png")
    True
    """
    folders = tuple(prefix.strip("/") + "/" for prefix in prefixes)
    return lambda name: name.startswith(folders) or name.partition("/")[2].startswith(folders)
