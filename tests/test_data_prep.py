"""Scanning, checking and splitting: with files as they come, whole and broken."""

import csv
import hashlib
import logging
import os
import shutil
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from made import noise, python
from PIL import Image

from data_prep import cache, errors, folder, integrity, manifest, paths, protocol, sources
from data_prep.errors import InputError
from data_prep.scenes import stem
from data_prep.transform import coded as encoded
from dflib import data

COLUMNS = (
    "path,label,generator,split,group,testset,width,height,mode,format,jpeg_quality,coding,bytes,"
    "sha256,phash,status"
)


# ---- layouts and labels


def test_manifest_has_the_columns_of_the_design(tmp_path, data_root, tree):
    made = folder.prepare(tree(tmp_path / "set", {"real": 3, "fake/gan": 3}), name="mine")
    assert (data_root / "mine" / "manifest.csv").read_text().splitlines()[0] == COLUMNS
    read = manifest.load("mine")
    assert ",".join(made.columns) == ",".join(read.columns) == COLUMNS
    first = (tmp_path / "set" / "fake" / "gan" / "fake-gan-000.png").read_bytes()
    row = read.iloc[0].to_dict()
    about = ("path", "width", "height", "mode", "format", "status")
    assert [row[k] for k in about] == ["fake/gan/fake-gan-000.png", 12, 9, "RGB", "PNG", "ok"]
    assert (row["bytes"], row["sha256"]) == (len(first), hashlib.sha256(first).hexdigest())
    assert np.isnan(row["jpeg_quality"])


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a,", "-a", "a\n"]
)
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path, data_root, tree, name):
    tree(tmp_path / "set", {"train/real": 1, "train/fake": 1, "valid/real": 1, "test/real": 1})
    for prepare in (folder.prepare, partial(sources.prepare, "faces-140k")):
        with pytest.raises(InputError, match="cannot be a dataset's name"):
            prepare(tmp_path / "set", name=name)
    assert not data_root.exists()


# ---- broken and odd files


BROKEN = {
    "empty.jpg": (b"", "zero-byte"),
    "text.jpg": (b"not a picture at all\n" * 9, "not an image"),
    "cut.jpg": (encoded(noise(64, 64), "JPEG")[:1500], "truncated"),
    "cut.png": (encoded(noise(64, 64), "PNG")[:4000], "truncated"),
    "page.png": (b"<!DOCTYPE html><html></html>", "not an image"),
}


def test_broken_files_are_quarantined_with_their_reason_and_the_rest_goes_on(
    tmp_path, data_root, tree, caplog
):
    root = tree(tmp_path / "set", {"real": 10, "fake/gan": 160})
    for name, (content, _) in BROKEN.items():
        (root / "fake" / "gan" / name).write_bytes(content)
    (root / "fake" / "gan" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "fake" / "lost").mkdir()  # a generator of nothing but broken files
    (root / "fake" / "lost" / "x.png").write_bytes(b"")
    made = folder.prepare(root, name="mine")
    table = made.set_index("path")
    for name, (content, reason) in BROKEN.items():
        row = table.loc[f"fake/gan/{name}"]
        assert row["status"].startswith(reason), (name, row["status"])
        assert row["bytes"] == len(content)
        assert f"fake/gan/{name}" in caplog.text or reason in caplog.text
    assert table.loc["fake/gan/gone.png", "status"] == "unreadable: No such file or directory"
    assert (table["status"] == "ok").sum() == 170
    images, rows = cache.build("mine", size=32)
    assert len(images) == len(rows) == 170
    counts = manifest.counts(made)
    assert counts.loc[(1, "gan")].to_dict() == {"(none given)": 160, "quarantined": 6}
    assert counts.loc[(1, "lost")].to_dict() == {"(none given)": 0, "quarantined": 1}
    (tmp_path / "nowhere.png").write_bytes(encoded(noise(9, 9), "PNG"))  # now it can be read
    again = folder.prepare(root, name="mine").set_index("path")
    assert again.loc["fake/gan/gone.png", "status"] == "ok"


@pytest.mark.parametrize(("broken", "stops"), [(2, False), (3, True)])  # 5 % is allowed, not more
def test_more_than_five_percent_of_a_class_stops(tmp_path, data_root, tree, broken, stops):
    root = tree(tmp_path / "set", {"real": 40 - broken, "fake/gan": 60})
    for i in range(broken):
        (root / "real" / f"broken{i}.png").write_bytes(b"")
    if not stops:
        assert len(folder.prepare(root, name="mine")) == 100
        return
    message = r"3 of 40 images with label 0 cannot be used \(more than 5%\): \{'zero-byte': 3\}"
    with pytest.raises(InputError, match=message):
        folder.prepare(root, name="mine")
    assert (manifest.load("mine")["status"] == "zero-byte").sum() == 3
    with pytest.raises(InputError, match="cannot be used"):
        cache.build("mine", size=32)


ORIENTATIONS = {  # EXIF: where the stored 0th row and column belong; what a viewer does to undo it
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_exif_rotation_is_undone(orientation, format_):
    exif, stored = Image.Exif(), noise(5, 3)
    exif[0x0112] = orientation
    opened = integrity.open_image(encoded(stored, format_, exif=exif))
    upright = ORIENTATIONS[orientation](np.asarray(stored))
    assert np.array_equal(integrity.to_rgb(opened), upright)


def test_damaged_exif_is_no_reason_to_lose_an_image():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    data = encoded(noise(16, 8), "JPEG", exif=exif)
    start = data.index(b"II*\0") if b"II*\0" in data else data.index(b"MM\0*")
    whole = integrity.to_rgb(integrity.open_image(data))
    assert whole.size == (8, 16)
    for damage in (b"XX\0\0", b"MM\x06\0"):
        opened = integrity.open_image(data[:start] + damage + data[start + 4 :])
        assert np.array_equal(integrity.to_rgb(opened), np.rot90(np.asarray(whole)))


BLACK, WHITE = [0] * 3, [255] * 3
TYPES = {"I;16": np.uint16, "F": np.float32}


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("L", [0, 7, 255], [BLACK, [7] * 3, WHITE]),
        # without a profile: 255 - min(255, ink + black)
        ("CMYK", [[0, 0, 0, 0], [255, 0, 0, 0]], [WHITE, [0, 255, 255]]),
        ("CMYK", [[0, 255, 0, 0], [0, 0, 0, 255]], [[255, 0, 255], BLACK]),
        ("RGBA", [[10, 20, 30, 255], [10, 20, 30, 0]], [[10, 20, 30], WHITE]),
        ("RGBA", [[0, 100, 255, 51]], [[204, 224, 255]]),  # on white: a * c + (1 - a) * 255
        ("LA", [[50, 255], [50, 0]], [[50] * 3, WHITE]),
        # 16 bits keep the high eight, also in dark images
        ("I;16", [0, 257, 25_700, 65_535], [BLACK, [1] * 3, [100] * 3, WHITE]),
        ("I;16", [0, 200], [BLACK, [1] * 3]),
        # floats go by their range
        ("F", [0, 0.5, 1], [BLACK, [128] * 3, WHITE]),
        ("F", [0, 0.5, 255], [BLACK, BLACK, WHITE]),
        ("F", [0, 0.5, 65_535], [BLACK, BLACK, WHITE]),
    ],
)
def test_modes_become_the_right_rgb(mode, values, expected):
    data = np.array([values], dtype=TYPES.get(mode, np.uint8))
    image = Image.frombytes(mode, (len(values), 1), data.tobytes())
    opened = integrity.open_image(encoded(image, "TIFF" if mode in ("CMYK", "F") else "PNG"))
    assert np.asarray(integrity.to_rgb(opened))[0].tolist() == expected


def test_palettes_keep_their_colours_and_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 1, 2, 3])
    image.putdata([0, 1, 2])
    for format_, options, last in (
        ("PNG", {}, [1, 2, 3]),
        ("GIF", {}, [1, 2, 3]),
        ("PNG", {"transparency": 2}, WHITE),
    ):
        opened = integrity.to_rgb(integrity.open_image(encoded(image, format_, **options)))
        assert np.asarray(opened)[0].tolist() == [[255, 0, 0], [0, 255, 0], last]


@settings(max_examples=60)
@given(
    quality=st.integers(1, 100), grey=st.booleans(), side=st.integers(1, 40), optimize=st.booleans()
)
def test_jpeg_quality_is_found_from_the_tables(quality, grey, side, optimize):
    image = noise(side, side).convert("L" if grey else "RGB")
    opened = integrity.open_image(encoded(image, "JPEG", quality=quality, optimize=optimize))
    assert integrity.jpeg_quality(opened) == quality
    assert integrity.jpeg_quality(integrity.open_image(encoded(image, "PNG"))) is None


EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
SEEDS = [
    encoded(noise(24, 24), format_)
    for format_ in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")
    if format_ in Image.SAVE  # AVIF: since Pillow 11.3
] + [encoded(noise(24, 24), "JPEG", exif=EXIF)]


@settings(max_examples=400)
@given(
    data=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(st.integers(0, 5000), st.binary(max_size=4), st.integers(0, 9)), max_size=6
    ),
)
def test_no_file_whatever_its_bytes_breaks_a_scan(tmp_path_factory, data, edits):
    mangled = bytearray(data)
    for place, new, remove in edits:
        mangled[place % len(data) : place % len(data) + remove] = new
    path = tmp_path_factory.getbasetemp() / "mangled"
    path.write_bytes(mangled)
    facts = integrity.inspect_file(path)
    assert facts["bytes"] == len(mangled)
    if facts["status"] == "ok":
        assert integrity.to_rgb(integrity.open_image(bytes(mangled))).mode == "RGB"
        assert facts["width"] >= 1
        assert len(facts["phash"]) == 16
    else:
        assert facts["phash"] is None
        assert len(facts["status"].splitlines()) == 1


# as a file system takes them: no slash, no NUL, at most 255 bytes, whatever else
ANY_NAME = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1),
    st.text(st.sampled_from("a\r\n\t\"'`,;[]{}<>&$%#=\\ .:-\x1b\x7f\u202e\u2028é🙂"), min_size=1),
    st.sampled_from(["Icon\r", "photo [edited]", "[red]", "a[/b]", "-rf", ":smile:", "\udce9"]),
    st.integers(1, 250).map(lambda n: n * "x"),
).filter(lambda name: len(os.fsencode(name.encode("utf-8", "replace"))) < 240)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(ANY_NAME, min_size=1, max_size=5, unique=True))
def test_any_names_come_back_from_the_manifest_as_they_were(data_root, names):
    def entry(path: str) -> dict:
        known = {"label": len(path) % 2, "generator": "gan" if len(path) % 2 else "real"}
        return known | {"path": path, "split": "", "group": stem(path)}

    data_root.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "check", lambda *_: None)  # of files, and none of these is there
        made = manifest.make("mine", data_root, map(entry, names), force=True)
    read = manifest.load("mine")
    assert read["path"].tolist() == made["path"].tolist()
    assert read["group"].tolist() == made["group"].tolist()
    whole = [name for name in names if paths.as_text(name) == name]
    assert set(whole) <= set(read["path"]) and len(read) == len(names)
    odd = read[~read["path"].isin(whole)]
    assert (odd["status"] == "name is not UTF-8: rename it").all()
    with (data_root / "mine" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == read["path"].tolist()


ODD = ["Icon\r", "photo [edited].jpg", "[red].png", ":smile:.png", "two\nlines", "\x1b[31m.png"]
ODD += ["-dash.png", "q\"uote'.png", 250 * "x", os.fsdecode(b"caf\xe9.png"), "\u202egnp.exe"]


def test_odd_names_are_told_whole_in_tables_pages_and_logs(tmp_path, data_root, outputs_root, tree):
    """All commands, on files of all odd names and folders with markup in theirs."""
    root = tree(tmp_path / "set", {"real": 100, "fake/[red]": 100, "fake/a[b": 100}, size=(40, 40))
    for i, name in enumerate(ODD):
        place = root / ("real", "fake/[red]", "fake/a[b")[i % 3] / name
        shutil.copy(root / "real" / f"real-{i:03d}.png", place)

    done = python("-m", "data_prep", "folder", root, "--name", "mine")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert "[red]" in done.stdout and "a[b" in done.stdout
    assert python("-m", "data_prep", "audit", "mine", "--sample", "20").returncode == 0
    page = (outputs_root / "audit-mine.html").read_text()
    assert "[red]" in page and "a[b" in page
    assert {*map(paths.as_text, ODD)} <= {*manifest.load("mine")["path"].str.split("/").str[-1]}


# ---- scanning again


@pytest.fixture
def mine(tmp_path, data_root, tree) -> Path:
    """A dataset "mine" of two reals and two fakes; returns the folder of its files."""
    root = tree(tmp_path / "set", {"real": 2, "fake/gan": 2}, suffix=".bmp")  # all of one size
    folder.prepare(root, name="mine")
    return root


def test_a_second_scan_reads_only_what_changed(tmp_path, data_root, tree, picture, caplog):
    root = tree(tmp_path / "set", {"real": 30, "fake/gan": 20}, suffix=".jpg")
    (root / "real" / "broken.jpg").write_bytes(b"x")
    caplog.set_level(logging.INFO)
    first = folder.prepare(root, name="mine")
    assert "51 files: 51 read, 0 unchanged" in caplog.text
    second = folder.prepare(root, name="mine")
    assert "51 files: 0 read, 51 unchanged" in caplog.text
    assert second.to_csv() == first.to_csv()
    prints = {manifest.fingerprint(t) for t in (first, second, manifest.load("mine"))}
    assert prints == {manifest.fingerprint_of("mine")}
    picture(root / "real" / "real-000.jpg", seed=999)
    third = folder.prepare(root, name="mine")
    assert "51 files: 1 read, 50 unchanged" in caplog.text
    changed = first.set_index("path")["sha256"] != third.set_index("path")["sha256"]
    assert changed[changed].index.tolist() == ["real/real-000.jpg"]
    assert manifest.fingerprint(third) == manifest.fingerprint_of("mine") not in prints


@pytest.mark.parametrize("damage", ["bytes", "other version"])
def test_a_record_of_a_scan_that_is_damaged_or_old_is_not_trusted(
    mine, data_root, caplog, monkeypatch, damage
):
    record, first = data_root / "mine" / "scan.parquet", manifest.load("mine")
    if damage == "bytes":
        record.write_bytes(b"damaged")
    else:
        monkeypatch.setattr(manifest, "_SCAN", manifest._SCAN + 1)
    caplog.set_level(logging.INFO)
    folder.prepare(mine, name="mine")
    assert manifest.load("mine").to_csv() == first.to_csv()
    assert "4 files: 4 read, 0 unchanged" in caplog.text


def test_no_set_takes_anothers_name_in_silence(tmp_path, mine, data_root, tree):
    """Not a folder, not a published set, not the demo; and what is refused leaves all as it was."""
    before = {p: p.read_bytes() for p in data_root.rglob("*") if p.is_file()}
    sources_ = {"train/cats": 2, "train/dogs": 2, "test/cats": 2, "test/dogs": 2}
    other, pets = tree(tmp_path / "two", {"real": 2}), tree(tmp_path / "pets", sources_)
    for prepare in (
        lambda: folder.prepare(other, name="mine"),
        lambda: folder.prepare(mine.parent, name="mine"),  # above it is another folder, too
        lambda: sources.prepare("dogs-vs-cats", pets, name="mine"),
        lambda: sources.prepare("synthbuster", name="mine"),  # would be downloaded
    ):
        with pytest.raises(InputError, match=f"'mine' is there already, made from {mine}"):
            prepare()
    assert {p: p.read_bytes() for p in data_root.rglob("*") if p.is_file()} == before
    folder.prepare(mine, name="mine")
    (tmp_path / "link").symlink_to(mine)
    folder.prepare(tmp_path / "link", name="mine")  # the same folder
    (data_root / "mine" / "dataset.json").write_text("{")
    folder.prepare(mine, name="mine")  # is mended
    assert set(sources.prepare("dogs-vs-cats", pets, name="mine", force=True)["label"]) == {0, 1}


@pytest.mark.parametrize("name", ["demo", "demo-source"])
def test_the_demo_replaces_no_other_set(mine, data_root, name):
    (data_root / "mine").rename(data_root / name)
    own = data_root / name / "images" / "own.png"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    done = python("-m", "data_prep", "demo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: '{name}' is there already, made from {mine}")
    assert own.read_bytes() == b"mine" and len(manifest.load(name)) == 4
    assert sorted(p.name for p in data_root.iterdir()) == [name]
    for file in ("manifest.csv", "dataset.json"):  # images of somebody's, and no set
        (data_root / name / file).unlink()
    for words, told in ((), "is there, and not ours"), (("--seed", "-1"), "--seed"):
        done = python("-m", "data_prep", "demo", *words)
        assert done.returncode == 2 and told in done.stderr and own.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name",
    ["real", "Real", "all", "macro", "seen", "unseen", "sd,xl", " sd", "sd ", "s\nd", "s\x1bd"],
)
def test_a_generator_whose_name_means_something_else_is_refused_at_once(
    tmp_path, data_root, tree, name
):
    root = tree(tmp_path / "set", {"real": 2, f"fake/{name}": 2, "fake/gan": 2})
    message = r"cannot be a generator's name.*Rename its folder"
    with pytest.raises(InputError, match=message) as told:
        folder.prepare(root, name="mine")
    assert f"fake/{errors.shown(name)}/" in str(told.value) and not data_root.exists()


@pytest.mark.parametrize("name", ["1", "NA", "[red]", "sd xl", "a'b", "-x", "真", "fake", "real2"])
def test_other_names_of_generators_are_taken_and_can_be_held_out(tmp_path, data_root, tree, name):
    root = tree(tmp_path / "set", {"real": 40, f"fake/{name}": 40, "fake/gan": 40})
    folder.prepare(root, name="mine")
    assert data.trained_on("mine", hold_out="gan") == [name]
    assert data.trained_on("mine", train_generators=f"gan, {name}") == sorted(["gan", name])


BAD = {"manifest.csv": (b"", b"\xff\xfe\0", b"path,label\nx,1\n", b"a,b\n1\n2,3,4,5\n")}
BAD |= {"dataset.json": (None, b"", b"{")}


@pytest.mark.parametrize(("file", "contents"), [(f, c) for f, each in BAD.items() for c in each])
def test_a_damaged_file_of_a_dataset_is_named(mine, data_root, file, contents):
    damaged = data_root / "mine" / file
    damaged.unlink() if contents is None else damaged.write_bytes(contents)
    message = {"manifest.csv": "", "dataset.json": r"dataset\.json is missing or damaged.*"}[file]
    with pytest.raises(InputError, match=f"{message}again with python -m data_prep"):
        cache.build("mine", size=32)


# ---- where it is all kept


def test_relative_roots_are_made_absolute_once(tmp_path, monkeypatch):
    """Whoever starts from here, and in whatever folder it works, means the same folders."""
    monkeypatch.chdir(tmp_path)
    given = {"DFLIB_DATA": "some/data", "DFLIB_OUTPUTS": "./out"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    here = [paths.data_root(), paths.outputs_root()]
    monkeypatch.chdir("/")
    assert here == [tmp_path / "some/data", tmp_path / "out"]
    assert here == [paths.data_root(), paths.outputs_root()]
    expected = [f"{tmp_path}/some/data", f"{tmp_path}/out"]
    assert [os.environ[name] for name in given] == expected  # what a process started here inherits


# a file may not grow beyond 200 bytes: as a disk that is full while the manifest is written
FULL = """
import resource, signal, sys
from data_prep.__main__ import app, command_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
command_line(app)
"""


def test_a_full_disk_is_one_line(tmp_path, data_root, tree):
    root = tree(tmp_path / "set", {"real": 20, "fake/gan": 20})
    done = python("-c", FULL, "folder", root, "--name", "mine")
    assert done.returncode == 2 and done.stderr.endswith("error: File too large\n"), done.stderr
    assert not (data_root / "mine" / "manifest.csv").exists()


# ---- splits


def scenes(sizes: list[tuple[int, int]], split: str = "", name: str = "g") -> pd.DataFrame:
    """One scene per entry, with so many real and fake images."""
    each = [(f"{name}{g}", y, pair[y]) for g, pair in enumerate(sizes) for y in (0, 1)]
    rows = [(group, label) for group, label, n in each for _ in range(n)]
    table = pd.DataFrame(rows, columns=["group", "label"]).assign(split=split, status="ok")
    generator = np.where(table["label"], "gan", "real")
    named = [f"{split}{name}-{i}" for i in range(len(table))]
    rng = np.random.default_rng(zlib.crc32(f"{split}{name}".encode()))
    phash = [f"{h:016x}" for h in rng.integers(0, 2**63, len(table))]
    return table.assign(generator=generator, path=named, sha256=named, phash=phash)


@settings(max_examples=20)
@given(pairs=st.integers(20, 300), seed=st.integers(0, 5))
def test_paper_takes_40_percent_of_single_images_and_a_tenth_of_the_rest(pairs, seed):
    table = scenes([(pairs, pairs)])  # one single scene: `paper` does not look
    split = protocol.assign(table, "paper", seed=seed)
    for label in (0, 1):
        number = split[table["label"] == label].value_counts()
        assert abs(number["test"] - 0.4 * pairs) <= 4  # ten folds, each off by less than one
        assert abs(number["val"] - 0.06 * pairs) <= 1.5
        assert number.sum() == pairs
    assert not split.equals(protocol.assign(table, "paper", seed=seed + 1))


def test_splits_that_the_dataset_gives_are_kept():
    parts = ("train", "val", "test")
    table = pd.concat((scenes([(1, 1)] * 12, part, part) for part in parts), ignore_index=True)
    for name in protocol.PROTOCOLS:
        assert protocol.assign(table, name).tolist() == table["split"].tolist()
    # the same scenes in each
    table = pd.concat((scenes([(1, 1)] * 12, part) for part in parts), ignore_index=True)
    table = table.assign(sha256=table["path"] + table.index.astype(str))
    message = r"12 scenes stand in more than one split \(e\.g\. train.*: a leak\..*--protocol paper"
    with pytest.raises(InputError, match=message):
        protocol.assign(table, "strict")
    assert protocol.assign(table, "paper").tolist() == table["split"].tolist()


@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=30, max_size=60),
    copies=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), max_size=40),
    seed=st.integers(0, 5),
)
def test_strict_never_parts_a_file_from_its_copy(sizes, copies, seed):
    table = scenes(sizes)
    assume(len(table))
    sha256 = table["sha256"].tolist()
    for i, j in copies:
        sha256[i % len(table)] = sha256[j % len(table)]
    table = table.assign(sha256=sha256)
    try:
        split = protocol.assign(table, "strict", seed=seed)
    except InputError as error:
        assert any(reason in str(error) for reason in ("too few", "both classes are needed"))
        assume(False)
    for column in ("group", "sha256"):
        assert (split.groupby(table[column]).nunique() == 1).all()


def given_splits(root: Path, tree) -> Path:
    parts = ("train", "val", "test")
    return tree(root, {f"{p}/{k}": 12 for p in parts for k in ("real", "fake/gan")}, size=(40, 40))


def test_a_file_in_two_given_splits_is_an_error_that_names_both(tmp_path, data_root, tree):
    root = given_splits(tmp_path / "set", tree)
    for name in ("a.png", "b.png"):
        shutil.copy(root / "train" / "real" / "train-real-000.png", root / "train" / "real" / name)
    folder.prepare(root, name="mine")
    assert (data.open("mine", size=32).train.groups == "train/a").sum() == 3  # one scene now
    shutil.copy(root / "train" / "real" / "a.png", root / "test" / "real" / "other name.png")
    fake = root / "val" / "fake" / "gan" / "copied.png"
    shutil.copy(root / "test" / "fake" / "gan" / "test-fake-gan-001.png", fake)
    table = folder.prepare(root, name="mine")
    with pytest.raises(InputError, match="2 files stand in more than one split") as told:
        protocol.assign(table, "strict")
    assert "test/real/other name.png = train/real/a.png" in str(told.value)
    assert "--protocol paper" in str(told.value)
    assert protocol.assign(table, "paper").tolist() == table["split"].tolist()


def test_a_near_copy_in_two_given_splits_is_a_warning_that_names_both(
    tmp_path, data_root, tree, caplog
):
    """Identical files are an error where the split is made; of near ones people are to judge."""
    root = given_splits(tmp_path / "set", tree)
    says = lambda: [m for m in caplog.messages if "nearly alike" in m]
    folder.prepare(root, name="mine")
    assert not says()
    first = sorted((root / "train" / "real").iterdir())
    for i, file in enumerate(first[:3]):  # of its own split: no leak
        with Image.open(file) as image:
            image.resize((44, 44)).save(file.with_name(f"larger-{i}.png"))
    folder.prepare(root, name="mine")
    assert not says()
    with Image.open(first[0]) as image:
        image.resize((36, 36)).save(root / "test" / "real" / "smaller.png")
    for _ in range(2):  # a scan that reads nothing again says it again
        caplog.clear()
        table = folder.prepare(root, name="mine")
        (message,) = says()
        assert message.startswith("mine: 1 picture(s)") and "test/real/smaller.png" in message
        assert f"train/real/{first[0].name}" in message
    assert protocol.assign(table, "strict").tolist() == table["split"].tolist()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (scenes([(5, 5)] * 9), "9 scenes are too few to split: at least 10"),
        (scenes([(1, 0)] * 30 + [(0, 1)] * 9), "9 images in the smallest class are too few"),
        (scenes([(1, 0)] * 10 + [(0, 2)] * 4), "8 images in the smallest class are too few"),
        (scenes([(1, 1)] * 12, "train"), "the test part has no images"),
    ],
)
def test_too_little_to_split_is_said(table, message):
    with pytest.raises(InputError, match=message):
        protocol.assign(table, "strict")


def test_too_little_to_validate_is_said_of_the_part_that_it_is_taken_from():
    told = "6 images in the smallest class of the training part are too few to split"
    with pytest.raises(InputError, match=told):
        protocol.assign(scenes([(1, 1)] * 12), "paper")
