"""Downloads from a real local server that cuts connections, knows ranges or ignores them; archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile

import numpy as np
import pytest

from data_prep import download
from data_prep.errors import InputError

DATA = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
MD5, SHA256 = hashlib.md5(DATA).hexdigest(), hashlib.sha256(DATA).hexdigest()


def left(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


@pytest.mark.parametrize("etags", [True, False])
def test_a_download_cut_three_times_goes_on_where_it_was(server, tmp_path, etags):
    server.files["set.zip"], server.cut, server.etags = DATA, [100_000, 50_000, 7], etags
    target = download.fetch(server.url("set.zip"), tmp_path / "set.zip", md5=MD5, sha256=SHA256)
    assert target.read_bytes() == DATA
    assert server.asked == ["", "bytes=100000-", "bytes=150000-", "bytes=150007-"]
    assert left(tmp_path) == ["set.zip"]
    download.fetch(server.url("set.zip"), tmp_path / "set.zip", md5=MD5)
    assert len(server.asked) == 4  # what is here is not asked for again


def test_a_call_that_gave_up_leaves_its_part_to_the_next(server, tmp_path, monkeypatch):
    server.files["set.zip"], server.cut = DATA, [123_456] + [0] * 20
    monkeypatch.setattr(download, "TRIES", 2)
    with pytest.raises(
        InputError, match=r"does not answer .* 123,456 bytes are kept in .*the same command goes on"
    ):
        download.fetch(server.url("set.zip"), tmp_path / "set.zip", md5=MD5)
    server.cut, server.asked = [], []
    assert download.fetch(server.url("set.zip"), tmp_path / "set.zip", md5=MD5).read_bytes() == DATA
    assert server.asked == ["bytes=123456-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    server.files["set.zip"], server.cut, server.ranges = DATA, [100_000], False
    assert download.fetch(server.url("set.zip"), tmp_path / "set.zip").read_bytes() == DATA


def test_a_file_that_changed_between_two_parts_is_read_from_the_start(
    server, tmp_path, monkeypatch
):
    server.files["set.zip"], server.cut = DATA[::-1], [100_000, 0, 0, 0]
    monkeypatch.setattr(download, "TRIES", 2)
    with pytest.raises(InputError, match="does not answer"):
        download.fetch(server.url("set.zip"), tmp_path / "set.zip")
    server.files["set.zip"], server.cut = DATA, []
    assert download.fetch(server.url("set.zip"), tmp_path / "set.zip", md5=MD5).read_bytes() == DATA


def test_a_part_that_is_whole_or_too_long_is_understood(server, tmp_path):
    server.files["set.zip"] = DATA
    for held in (DATA, DATA + b"more"):
        (tmp_path / "set.zip.part").write_bytes(held)
        assert (
            download.fetch(server.url("set.zip"), tmp_path / "set.zip", md5=MD5).read_bytes()
            == DATA
        )
        (tmp_path / "set.zip").unlink()


def test_a_wrong_checksum_is_refused_and_set_aside(server, tmp_path):
    server.files["set.zip"] = DATA + b"!"
    with pytest.raises(
        InputError, match=rf"md5 is \w+, expected {MD5}\. The file is set aside as .*set.zip.wrong"
    ):
        download.fetch(server.url("set.zip"), tmp_path / "set.zip", md5=MD5)
    assert not (tmp_path / "set.zip").exists()
    assert (tmp_path / "set.zip.wrong").read_bytes() == DATA + b"!"
    server.files["set.zip"] = DATA
    assert download.fetch(server.url("set.zip"), tmp_path / "set.zip", md5=MD5).read_bytes() == DATA


def test_an_address_that_is_gone_and_a_full_disk_are_said_at_once(server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="answers 404"):
        download.fetch(server.url("nothing.zip"), tmp_path / "set.zip")
    with pytest.raises(InputError, match="404 Client Error"):
        download.fetch_members(
            server.url("nothing.zip"), tmp_path / "set", wanted=lambda name: True
        )
    server.files["set.zip"] = DATA
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(DATA)))
    with pytest.raises(InputError, match="GB are free below"):
        download.fetch(server.url("set.zip"), tmp_path / "set.zip")
    monkeypatch.undo()
    assert left(tmp_path) == []


def zipped(members: dict[str, bytes]) -> bytes:
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
    (tmp_path / "a.zip").write_bytes(zipped({"good.png": b"good", name: b"bad"}))
    server.files["a.zip"] = (tmp_path / "a.zip").read_bytes()
    with pytest.raises(InputError, match="refused, nothing unpacked"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")
    with pytest.raises(InputError, match="refused, nothing unpacked"):
        download.fetch_members(
            server.url("a.zip"), tmp_path / "out", wanted=lambda name: name == "good.png"
        )
    assert left(tmp_path) == ["a.zip"]


def test_a_damaged_archive_leaves_nothing(tmp_path):
    whole = zipped({f"{i}.bin": DATA[:5000] for i in range(5)})
    for damaged in (whole[:9000], whole[:7000] + b"XXXX" + whole[7004:]):
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be unpacked"):
            download.unpack(tmp_path / "a.zip", tmp_path / "out")
        assert left(tmp_path) == ["a.zip"]


MEMBERS = {
    f"top/{f}/{i}.bin": DATA[i * 1000 :][:20_000]
    for i in range(10)
    for f in ("wanted", "other/wanted", "w")
}


@pytest.mark.parametrize("ranges", [True, False])
def test_only_the_wanted_members_of_a_remote_archive_are_fetched(server, tmp_path, ranges):
    server.files["big.zip"], server.ranges = zipped(MEMBERS), ranges
    wanted = download.names_below("wanted")
    folder = download.fetch_members(
        server.url("big.zip"), tmp_path / "set", wanted=wanted, threads=2
    )
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    assert found == {name: data for name, data in MEMBERS.items() if name.startswith("top/wanted/")}


def test_a_cut_fetch_of_members_goes_on_with_the_missing_ones(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_BLOCK", 4096)
    server.files["big.zip"], server.cut = (
        zipped(MEMBERS),
        [10**9, 10**9, 10**9, 10**9, 9000, 10**9, 10**9, 100],
    )
    wanted = download.names_below("wanted")
    folder = download.fetch_members(
        server.url("big.zip"), tmp_path / "set", wanted=wanted, threads=1
    )
    assert all(
        (folder / n).read_bytes() == d for n, d in MEMBERS.items() if n.startswith("top/wanted/")
    )
    assert server.cut == []
    (folder / "top/wanted/3.bin").unlink()
    server.asked = []
    download.fetch_members(server.url("big.zip"), tmp_path / "set", wanted=wanted, threads=1)
    assert (folder / "top/wanted/3.bin").read_bytes() == MEMBERS["top/wanted/3.bin"]
    assert len(server.asked) <= 6  # the list twice, and one member
