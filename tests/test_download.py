"""Downloads from a local server that cuts connections or knows no ranges; harmful archives."""

import functools
import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import download
from data_prep.errors import InputError

DATA = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(DATA).hexdigest()


@pytest.fixture
def fetched(server, tmp_path):
    """fetched(**checksums): the bytes of the server's set.zip after `fetch` into tmp_path."""
    get = lambda **sums: download.fetch(server.url("set.zip"), tmp_path / "set.zip", **sums)
    return lambda **sums: get(**sums).read_bytes()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


@pytest.mark.parametrize(
    ("cut", "ranges", "part", "asked"),
    [
        ([100_000, 50_000, 7], True, b"", ["", "bytes=100000-", "bytes=150000-", "bytes=150007-"]),
        ([100_000], False, b"", ["", "bytes=100000-"]),  # the answer is all of it
        ([], True, DATA, ["bytes=300000-"]),  # nothing is missing
    ],
)
def test_a_download_goes_on_where_it_was(server, fetched, tmp_path, cut, ranges, part, asked):
    server.files["set.zip"], server.cut, server.ranges = DATA, [*cut], ranges
    if part:
        (tmp_path / "set.zip.part").write_bytes(part)
    for _ in range(2):  # what is here is not asked for again
        assert fetched(md5=MD5) == DATA and server.asked == asked
    assert left(tmp_path) == ["set.zip"]


def test_a_call_that_gave_up_leaves_its_part_to_the_next(server, fetched, monkeypatch):
    server.files["set.zip"], server.cut = DATA, [123_456] + [0] * 20
    monkeypatch.setattr(download, "TRIES", 2)
    with pytest.raises(InputError, match="does not answer; the same command goes on"):
        fetched(md5=MD5)
    server.cut, server.asked = [], []
    assert fetched(md5=MD5) == DATA
    assert server.asked == ["bytes=123456-"]


@pytest.mark.parametrize("busy", [408, 429, 503])
def test_a_server_that_is_busy_is_asked_again(server, fetched, busy, monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.01)
    server.files["set.zip"], server.busy = DATA, [busy, busy]
    assert fetched(md5=MD5) == DATA and len(server.asked) == 3


def test_a_wrong_checksum_is_refused(server, fetched, tmp_path):
    server.files["set.zip"] = DATA + b"!"
    with pytest.raises(InputError, match=rf"md5 is \w+, expected {MD5}: try again"):
        fetched(md5=MD5)
    assert left(tmp_path) == []
    server.files["set.zip"] = DATA
    assert fetched(md5=MD5) == DATA


def test_an_address_that_is_gone_and_a_full_disk_are_said_at_once(
    server, fetched, tmp_path, monkeypatch
):
    with pytest.raises(InputError, match="answers 404"):
        fetched()
    with pytest.raises(InputError, match="404 Client Error"):
        download.fetch_members(server.url("no.zip"), tmp_path / "set", below=["a"])
    server.files["set.zip"] = DATA
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(DATA)))
    with pytest.raises(InputError, match="GB are free below"):
        fetched()
    assert left(tmp_path) == []


def zipped(members: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name) if isinstance(name, str) else name, data)
    return buffer.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    "name",
    ["/etc/x", "../x", "a/../../x", "a\\..\\..\\x", "C:\\x", "C:x", "\\\\host\\x", link("a/link")],
)
def test_an_archive_that_reaches_outside_is_refused_whole(server, tmp_path, name):
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    archive.write_bytes(zipped({"good.png": b"good", name: b"bad"}))
    server.files["a.zip"] = archive.read_bytes()
    with pytest.raises(InputError, match="refused, nothing unpacked"):
        download.unpack(archive, out)
    with pytest.raises(InputError, match="refused, nothing unpacked"):
        download.fetch_members(server.url("a.zip"), out, below=["good"])
    assert left(tmp_path) == ["a.zip"]


def encrypted() -> bytes:
    """A zip whose second member claims to be so."""
    whole = bytearray(zipped({"a/1.png": DATA[:5000], "a/2.png": DATA[:5000]}))
    for head, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.rindex(head) + flags] |= 1
    return bytes(whole)


ODD = {
    "encrypted": encrypted(),
    "cut": zipped({"a.png": DATA[:5000]})[:3000],
    "damaged": zipped({"a.png": DATA[:5000]}).replace(DATA[:4], b"XXXX"),
    "a file as folder": zipped({"a": b"x", "a/b": b"x"}),
    "a long name": zipped({"x" * 300: b"x"}),
    "empty": b"",
    "of no files": zipped({}),
    "no zip": DATA[:3000],
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_archive_is_one_message_and_leaves_nothing(server, tmp_path, kind):
    (tmp_path / "a.zip").write_bytes(ODD[kind])
    with pytest.raises(InputError, match="cannot be unpacked .* unpack it yourself"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert left(tmp_path) == ["a.zip"]


@pytest.mark.parametrize(("content", "ranges"), [(encrypted(), True), (zipped({}), False)])
def test_a_remote_archive_that_cannot_be_read_in_parts(server, tmp_path, content, ranges):
    server.files["a.zip"], server.ranges = content, ranges
    with pytest.raises(InputError, match="cannot be read in parts .* unpack it yourself"):
        download.fetch_members(server.url("a.zip"), tmp_path / "out", below=["a"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_zip_whatever_its_bytes_ends_in_a_traceback_or_leaves_anything(tmp_path, edits):
    whole, out = bytearray(zipped({f"{i}/{i}.png": DATA[:900] for i in range(4)})), tmp_path / "out"
    for place, value in edits:
        whole[place % len(whole)] = value
    (tmp_path / "a.zip").write_bytes(whole)
    try:
        download.unpack(tmp_path / "a.zip", out)
        shutil.rmtree(out)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    assert left(tmp_path) == ["a.zip"]


PLACES = ("wanted", "other/wanted", "w")
MEMBERS = {f"top/{f}/{i}.bin": DATA[i * 1000 :][:20_000] for i in range(10) for f in PLACES}
WANTED = {name: data for name, data in MEMBERS.items() if name.startswith("top/wanted/")}


def test_a_cut_fetch_of_members_goes_on_with_the_missing_ones(server, tmp_path, monkeypatch):
    server.files["big.zip"] = zipped(MEMBERS)
    small = functools.partial(download.RemoteZip, initial_buffer_size=4096)
    monkeypatch.setattr(download, "_remote", small)

    def members() -> dict[str, bytes]:
        out = download.fetch_members(server.url("big.zip"), tmp_path / "set", below=["wanted"])
        files = [p for p in out.rglob("*") if p.is_file()]
        return {p.relative_to(out).as_posix(): p.read_bytes() for p in files}

    server.cut = [10**9, 10**9, 10**9, 10**9, 9000, 10**9, 10**9, 100]
    assert members() == WANTED
    assert server.cut == []
    (tmp_path / "set/top/wanted/3.bin").unlink()
    server.asked = []
    assert members() == WANTED
    assert len(server.asked) <= 6  # the list twice, and one member
