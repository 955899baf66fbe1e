"""Scanning, checking, splitting and decoding: with files as they come, whole and broken."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import cache, dogs_vs_cats, faces_140k, folder, integrity, manifest, paths, protocol
from data_prep.errors import InputError, choose

COLUMNS = "path,label,generator,split,group,width,height,mode,format,jpeg_quality,bytes,sha256,phash,status"  # design.md


def encoded(image: Image.Image, format_: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 60 bytes whose header promises 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


# ---- layouts and labels


def rows_of(table: pd.DataFrame) -> dict[str, tuple]:
    return {r.path: (r.label, r.generator, r.split, r.group) for r in table.itertuples()}


def test_folder_without_splits(tmp_path, data_root, picture):
    for i, path in enumerate(
        [
            "real/a.png",
            "real/deep/er/b.png",
            "fake/gan/c.png",
            "fake/diffusion/x/d.png",
            "fake/e.png",
        ]
    ):
        picture(tmp_path / "set" / path, seed=i)
    assert rows_of(folder.prepare(tmp_path / "set", name="mine")) == {
        "real/a.png": (0, "real", "", "a"),
        "real/deep/er/b.png": (0, "real", "", "b"),
        "fake/gan/c.png": (1, "gan", "", "c"),
        "fake/diffusion/x/d.png": (1, "diffusion", "", "d"),
        "fake/e.png": (1, "fake", "", "e"),
    }


def test_folder_with_splits_under_their_many_names(tmp_path, data_root, picture):
    for i, part in enumerate(["Train", "val", "valid", "validation", "TEST"]):
        picture(tmp_path / "set" / part / "Real" / f"r{i}.png", seed=2 * i)
        picture(tmp_path / "set" / part / "fake" / "gan" / f"f{i}.png", seed=2 * i + 1)
    table = folder.prepare(tmp_path / "set", name="mine")
    by_top = (
        table.groupby(table["path"].str.split("/").str[0])["split"].unique().map(list).to_dict()
    )
    assert by_top == {
        "Train": ["train"],
        "val": ["val"],
        "valid": ["val"],
        "validation": ["val"],
        "TEST": ["test"],
    }
    assert sorted(table["label"]) == [0] * 5 + [1] * 5


def test_manifest_has_the_columns_of_the_design(tmp_path, data_root, tree):
    made = folder.prepare(tree(tmp_path / "set", {"real": 3, "fake/gan": 3}), name="mine")
    assert (data_root / "mine" / "manifest.csv").read_text().splitlines()[0] == COLUMNS
    read = manifest.load("mine")
    assert ",".join(made.columns) == ",".join(read.columns) == COLUMNS
    first = tmp_path / "set" / "fake" / "gan" / "fake-gan-000.png"
    row = read.iloc[0]
    assert (row.path, row.width, row.height, row["mode"], row.format, row.status) == (
        "fake/gan/fake-gan-000.png",
        12,
        9,
        "RGB",
        "PNG",
        "ok",
    )
    assert row.bytes == first.stat().st_size
    assert row.sha256 == hashlib.sha256(first.read_bytes()).hexdigest()
    assert np.isnan(row.jpeg_quality)


def solid(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (34, 34), (grey,) * 3).save(path)


def test_fake_is_1_in_the_140k_layout_whatever_the_alphabet_says(tmp_path, data_root):
    for split in ("train", "valid", "test"):
        for i in range(3):
            solid(
                tmp_path / "input" / "real_vs_fake" / "real-vs-fake" / split / "real" / f"{i}.png",
                255,
            )
            solid(
                tmp_path / "input" / "real_vs_fake" / "real-vs-fake" / split / "fake" / f"{i}.png",
                i,
            )
    table = faces_140k.prepare(tmp_path / "input")
    assert set(
        zip(table["path"].str.split("/").str[1], table["label"], table["generator"], strict=True)
    ) == {
        ("real", 0, "real"),
        ("fake", 1, "stylegan"),
    }
    assert table.groupby("split").size().to_dict() == {"test": 6, "train": 6, "val": 6}
    images, rows = cache.build("faces-140k", size=32)
    assert (images[np.flatnonzero(rows["label"] == 0)] == 255).all()
    assert images[np.flatnonzero(rows["label"] == 1)].max() <= 2


def test_dogs_vs_cats_is_a_source_task_with_cats_0(tmp_path, data_root):
    for split in ("train", "test"):
        for i in range(2):
            solid(tmp_path / "a" / "b" / split / "cats" / f"cat.{i}.jpg", 10)
            solid(tmp_path / "a" / "b" / split / "dogs" / f"dog.{i}.jpg", 200)
    table = dogs_vs_cats.prepare(tmp_path)
    assert set(zip(table["generator"], table["label"], strict=True)) == {("cats", 0), ("dogs", 1)}
    assert set(table["split"]) == {"train", "test"}
    about = paths.describe("dogs-vs-cats")
    assert (about["kind"], about["classes"]) == ("source", {"0": ["cats"], "1": ["dogs"]})


@pytest.mark.parametrize(
    ("maker", "kaggle"),
    [(faces_140k, "xhlulu/140k-real-and-fake-faces"), (dogs_vs_cats, "salader/dogs-vs-cats")],
)
def test_a_layout_that_is_not_there_tells_how_to_get_it(tmp_path, data_root, maker, kaggle):
    with pytest.raises(InputError) as caught:
        maker.prepare(tmp_path)
    assert kaggle in str(caught.value)
    assert f"python -m data_prep {maker.SOURCE.name} --from FOLDER" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert not data_root.exists()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("real", "fakes"),
            "unknown class folder 'fakes', did you mean 'fake'? Valid: real, fake.",
        ),
        (("reel", "fake"), "unknown class folder 'reel', did you mean 'real'?"),
        (
            ("train/real", "train/fake", "tset/real"),
            "unknown split folder 'tset', did you mean 'test'?",
        ),
        (("train/real", "train/fak"), "unknown class folder 'fak', did you mean 'fake'?"),
        ((".",), "images stand directly in the folder"),
        (("real",), "no image with label 1; both classes are needed"),
        ((), "no files found below"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused(tmp_path, data_root, picture, folders, message):
    (tmp_path / "set").mkdir()
    for i, where in enumerate(folders):
        picture(tmp_path / "set" / where / "x.png", seed=i)
    with pytest.raises(InputError) as caught:
        folder.prepare(tmp_path / "set", name="mine")
    assert message in str(caught.value)
    if "unknown" in message:
        assert not data_root.exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", ".hidden", "two words", "comma,", "-dash", "line\n"]
)
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path, data_root, tree, name):
    tree(tmp_path / "set", {"train/real": 1, "train/fake": 1, "valid/real": 1, "test/real": 1})
    for prepare in (folder.prepare, faces_140k.prepare):
        with pytest.raises(InputError, match="cannot be a dataset's name"):
            prepare(tmp_path / "set", name=name)
    assert not data_root.exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        folder.prepare(tmp_path / "nowhere", name="mine")


def test_choose_names_the_nearest_and_all():
    assert choose("method", "CPF", ["BL", "CPF"]) == "CPF"
    with pytest.raises(
        InputError, match=r"^unknown method 'cpf', did you mean 'CPF'\? Valid: BL, CPF\. Look\.$"
    ):
        choose("method", "cpf", ["BL", "CPF"], hint="Look.")
    with pytest.raises(InputError, match=r"^unknown method 'zzz'; Valid: none yet\.$"):
        choose("method", "zzz", [])


# ---- broken and odd files


BROKEN = {
    "empty.jpg": (b"", "zero-byte"),
    "text.jpg": (b"not a picture at all\n" * 9, "not an image"),
    "cut.jpg": (encoded(noise(64, 64), "JPEG")[:1500], "truncated"),
    "cut.png": (encoded(noise(64, 64), "PNG")[:4000], "truncated"),
    "bomb.png": (bomb(), "bomb: more than 89 megapixels"),
    "page.png": (b"<!DOCTYPE html><html></html>", "not an image"),
}


def test_broken_files_are_quarantined_with_their_reason_and_the_rest_goes_on(
    tmp_path, data_root, tree, caplog
):
    root = tree(tmp_path / "set", {"real": 10, "fake/gan": 140})
    for name, (data, _) in BROKEN.items():
        (root / "fake" / "gan" / name).write_bytes(data)
    (root / "fake" / "gan" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    table = folder.prepare(root, name="mine").set_index("path")
    for name, (data, reason) in BROKEN.items():
        row = table.loc[f"fake/gan/{name}"]
        assert row["status"].startswith(reason), (name, row["status"])
        assert row["bytes"] == len(data)
        assert f"fake/gan/{name}" in caplog.text or reason in caplog.text
    assert table.loc["fake/gan/gone.png", "status"] == "unreadable: No such file or directory"
    assert (table["status"] == "ok").sum() == 150
    images, rows = cache.build("mine", size=32)
    assert len(images) == len(rows) == 150
    pd.testing.assert_frame_equal(
        manifest.load("mine")[["path", "status"]], table.reset_index()[["path", "status"]]
    )
    counts = manifest.counts(table.reset_index())
    assert counts.loc[(1, "gan")].to_dict() == {"(none given)": 140, "quarantined": 7}


def test_a_generator_of_nothing_but_broken_files_is_counted(tmp_path, data_root, tree):
    root = tree(tmp_path / "set", {"real": 2, "fake/gan": 40})
    (root / "fake" / "lost").mkdir()
    (root / "fake" / "lost" / "x.png").write_bytes(b"")
    counts = manifest.counts(folder.prepare(root, name="mine"))
    assert counts.loc[(1, "lost"), "quarantined"] == 1
    assert counts["quarantined"].sum() == 1


@pytest.mark.parametrize(
    ("broken", "stops"), [(2, False), (3, True)]
)  # of 40 and a few: 5 % is allowed, more is not
def test_more_than_five_percent_of_a_class_stops(tmp_path, data_root, tree, broken, stops):
    root = tree(tmp_path / "set", {"real": 40 - broken, "fake/gan": 60})
    for i in range(broken):
        (root / "real" / f"broken{i}.png").write_bytes(b"")
    if not stops:
        assert len(folder.prepare(root, name="mine")) == 100
        return
    with pytest.raises(
        InputError,
        match=r"3 of 40 images with label 0 cannot be used \(more than 5%\): \{'zero-byte': 3\}",
    ):
        folder.prepare(root, name="mine")
    assert (manifest.load("mine")["status"] == "zero-byte").sum() == 3
    with pytest.raises(InputError, match="cannot be used"):
        cache.build("mine", size=32)


ORIENTATIONS = {  # EXIF: where the 0th row and 0th column of the stored image belong; what a viewer does to undo it
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
def test_exif_rotation_is_undone(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = noise(5, 3)
    for format_, options in (("PNG", {}), ("TIFF", {})):
        opened = integrity.open_image(encoded(stored, format_, exif=exif, **options))
        assert np.array_equal(
            integrity.to_rgb(opened), ORIENTATIONS[orientation](np.asarray(stored))
        )


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


def rgb(values, mode: str) -> list:
    """What `to_rgb` makes of a 1 x n image that went through a lossless file of this mode."""
    array = np.array([values])
    image = (
        Image.fromarray(array)
        if mode in ("I;16", "F")
        else Image.frombytes(mode, (len(values), 1), array.astype(np.uint8).tobytes())
    )
    opened = integrity.open_image(encoded(image, "TIFF" if mode in ("CMYK", "F") else "PNG"))
    return np.asarray(integrity.to_rgb(opened))[0].tolist()


def test_modes_become_the_right_rgb():
    assert rgb([0, 7, 255], "L") == [[0] * 3, [7] * 3, [255] * 3]
    # CMYK without a profile: 255 - min(255, ink + black)
    assert rgb([[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 255]], "CMYK") == [
        [255] * 3,
        [0, 255, 255],
        [255, 0, 255],
        [0] * 3,
    ]
    # transparency lies on white: a * c + (1 - a) * 255
    assert rgb([[10, 20, 30, 255], [10, 20, 30, 0]], "RGBA") == [[10, 20, 30], [255, 255, 255]]
    ((r, g, b),) = rgb([[0, 100, 255, 51]], "RGBA")  # a = 0.2
    assert np.allclose([r, g, b], [204, 224, 255], atol=1)
    assert rgb([[50, 255], [50, 0]], "LA") == [[50] * 3, [255] * 3]


def test_sixteen_bits_keep_the_high_eight_also_in_dark_images():
    values = np.array([0, 128, 257, 25_700, 65_535], dtype=np.uint16)
    assert rgb(values, "I;16") == [[v] * 3 for v in np.round(values / 257).astype(int).tolist()]
    assert rgb(np.array([0, 200], dtype=np.uint16), "I;16") == [[0] * 3, [1] * 3]


def test_palettes_keep_their_colours_and_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 1, 2, 3])
    image.putdata([0, 1, 2])
    for format_ in ("PNG", "GIF"):
        assert np.asarray(integrity.to_rgb(integrity.open_image(encoded(image, format_))))[
            0
        ].tolist() == [
            [255, 0, 0],
            [0, 255, 0],
            [1, 2, 3],
        ]
    clear = integrity.open_image(encoded(image, "PNG", transparency=2))
    assert np.asarray(integrity.to_rgb(clear))[0].tolist() == [
        [255, 0, 0],
        [0, 255, 0],
        [255, 255, 255],
    ]


def test_odd_modes_go_through_the_whole_way(tmp_path, data_root, picture):
    makes = {
        "cmyk.jpg": "CMYK",
        "grey.jpg": "L",
        "grey.png": "L",
        "palette.png": "P",
        "palette.gif": "P",
        "alpha.png": "RGBA",
        "grey-alpha.png": "LA",
        "bits.png": "1",
        "cmyk.tif": "CMYK",
        "rgb.bmp": "RGB",
        "rgb.webp": "RGB",
    }
    for i, (name, mode) in enumerate(makes.items()):
        picture(
            tmp_path / "set" / ("real", "fake/gan")[i % 2] / name, seed=i, size=(40, 40), mode=mode
        )
    table = folder.prepare(tmp_path / "set", name="mine")
    assert (table["status"] == "ok").all()
    found = {Path(r.path).name: r.mode for r in table.itertuples()}
    assert found | {"palette.gif": "P", "rgb.webp": "RGB"} == makes
    assert cache.build("mine", size=32)[0].shape == (len(makes), 32, 32, 3)


@settings(max_examples=60)
@given(
    quality=st.integers(1, 100), grey=st.booleans(), side=st.integers(1, 40), optimize=st.booleans()
)
def test_jpeg_quality_is_found_from_the_tables(quality, grey, side, optimize):
    image = noise(side, side).convert("L" if grey else "RGB")
    opened = integrity.open_image(encoded(image, "JPEG", quality=quality, optimize=optimize))
    assert integrity.jpeg_quality(opened) == quality
    assert integrity.jpeg_quality(integrity.open_image(encoded(image, "PNG"))) is None


SEEDS = [
    encoded(noise(24, 24), f, **o)
    for f, o in [
        ("JPEG", {}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("BMP", {}),
        ("AVIF", {}),
    ]
]
SEEDS.append(
    encoded(
        noise(24, 24),
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    )
)


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
    facts = integrity_of(bytes(mangled), tmp_path_factory)
    assert facts["bytes"] == len(mangled)
    if facts["status"] == "ok":
        assert integrity.to_rgb(integrity.open_image(bytes(mangled))).mode == "RGB"
        assert facts["width"] >= 1
        assert len(facts["phash"]) == 16
    else:
        assert facts["phash"] is None
        assert len(facts["status"].splitlines()) == 1


def integrity_of(data: bytes, factory) -> dict:
    path = factory.getbasetemp() / "mangled"
    path.write_bytes(data)
    return integrity.inspect_file(path)


NAMES = [
    "a b.png",
    "ü-ñ-漢字-🙂.png",
    "many.dots.in.v1.2.name.png",
    'quote".png',
    "comma,semi;.png",
    "two\nlines.png",
    "NA.png",
    "null.png",
    "1.png",
    "01.png",
    "1e5.png",
    "#hash.png",
    "per%20cent.png",
    "-dash.png",
    "trailing .png",
    "'.png",
    "UPPER.PNG",
    "noextension",
]


def test_any_name_survives_the_manifest_and_the_decoding(tmp_path, data_root, picture):
    for i, name in enumerate(NAMES):
        for where, seed in (("real", i), ("fake/my gan, v2", 100 + i)):
            picture(tmp_path / "set" / where / name, seed=seed, size=(32, 32), format="PNG")
    made = folder.prepare(tmp_path / "set", name="mine")
    read = manifest.load("mine")
    assert sorted(read["path"]) == sorted(
        [f"real/{n}" for n in NAMES] + [f"fake/my gan, v2/{n}" for n in NAMES]
    )
    assert read["group"].tolist() == made["group"].tolist() == [Path(p).stem for p in made["path"]]
    images, rows = cache.build("mine", size=32)
    for image, row in zip(images, rows.itertuples(), strict=True):
        name, where = Path(row.path).name, Path(row.path).parts[0]
        assert np.array_equal(image, noise(32, 32, NAMES.index(name) + 100 * (where == "fake")))


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path, data_root, tree):
    root = tree(tmp_path / "set", {"real": 2, "fake/gan": 2})
    source = next((root / "real").iterdir())
    shutil.copy(os.fsencode(source), os.fsencode(root / "real") + b"/caf\xe9.png")
    with pytest.raises(InputError, match=r"file name 'real/caf\\udce9.png' below .* is not UTF-8"):
        folder.prepare(root, name="mine")


def test_links_that_loop_are_walked_once(tmp_path, data_root, tree):
    root = tree(tmp_path / "set", {"real": 4, "fake/gan": 4})
    (root / "real" / "up").symlink_to(root / "real", target_is_directory=True)
    (root / "fake" / "gan" / "self").symlink_to(".", target_is_directory=True)
    (root / "fake" / "above").symlink_to("..", target_is_directory=True)
    table = folder.prepare(root, name="mine")
    assert table["sha256"].is_unique
    assert sorted(table["label"]) == [0] * 4 + [1] * 4


def test_images_behind_a_link_are_found(tmp_path, data_root, tree):
    elsewhere = tree(tmp_path / "elsewhere", {"a": 3, "b": 3})
    root = tmp_path / "set"
    (root / "fake").mkdir(parents=True)
    (root / "real").symlink_to(elsewhere / "a", target_is_directory=True)
    (root / "fake" / "gan").symlink_to(elsewhere / "b", target_is_directory=True)
    assert (folder.prepare(root, name="mine")["status"] == "ok").sum() == 6


def test_stray_files_are_left_out_counted_and_named(tmp_path, data_root, tree, picture, caplog):
    root = tree(
        tmp_path / "set", {"train/real": 2, "train/fake/gan": 2, "test/real": 2, "test/fake/gan": 2}
    )
    for stray in (
        "README.txt",
        "train/README",
        "train/real/checksums.md5",
        "train/.DS_Store",
        "test/fake/Thumbs.db",
    ):
        (root / stray).write_bytes(b"stray")
    picture(root / "test" / "preview.png")
    assert len(folder.prepare(root, name="mine")) == 8
    found = [m for m in caplog.messages if "stray" in m]
    assert [m.split(" below")[0] for m in found] == [
        "1 stray file(s)",
        "2 stray file(s)",
        "3 stray file(s)",
    ]
    assert "(e.g. README.txt)" in found[0] and "preview.png" in found[1] and ".DS_Store" in found[2]
    (root / "train" / "fakes").mkdir()
    picture(root / "train" / "fakes" / "x.png")
    with pytest.raises(InputError, match="unknown class folder 'fakes'"):
        folder.prepare(root, name="mine")


def test_hidden_files_and_windows_own_are_left_out(tmp_path, data_root, tree):
    root = tree(tmp_path / "set", {"real": 2, "fake/gan": 2})
    for junk in (".DS_Store", "Thumbs.db", "desktop.ini", "._real-000.png"):
        (root / "real" / junk).write_bytes(b"junk")
    (root / "real" / ".cache").mkdir()
    (root / "real" / ".cache" / "x.png").write_bytes(b"junk")
    (root / ".git").mkdir()
    assert len(folder.prepare(root, name="mine")) == 4


# ---- scanning again


def test_a_second_scan_reads_only_what_changed(tmp_path, data_root, tree, picture, caplog):
    root = tree(tmp_path / "set", {"real": 30, "fake/gan": 20}, suffix=".jpg")
    (root / "real" / "broken.jpg").write_bytes(b"x")
    caplog.set_level(logging.INFO)
    first = folder.prepare(root, name="mine")
    assert "51 files: 51 read, 0 unchanged" in caplog.text
    caplog.clear()
    second = folder.prepare(root, name="mine")
    assert "51 files: 0 read, 51 unchanged" in caplog.text
    assert second.to_csv() == first.to_csv()
    assert (
        manifest.fingerprint(second)
        == manifest.fingerprint(manifest.load("mine"))
        == manifest.fingerprint(first)
    )
    caplog.clear()
    picture(root / "real" / "real-000.jpg", seed=999)
    third = folder.prepare(root, name="mine")
    assert "51 files: 1 read, 50 unchanged" in caplog.text
    changed = first.set_index("path")["sha256"] != third.set_index("path")["sha256"]
    assert changed[changed].index.tolist() == ["real/real-000.jpg"]
    assert manifest.fingerprint(third) != manifest.fingerprint(first)


def test_a_damaged_record_of_the_last_scan_is_not_trusted(tmp_path, data_root, tree, caplog):
    root = tree(tmp_path / "set", {"real": 2, "fake/gan": 2})
    first = folder.prepare(root, name="mine")
    (data_root / "mine" / "scan.parquet").write_bytes(b"damaged")
    caplog.set_level(logging.INFO)
    assert folder.prepare(root, name="mine").to_csv() == first.to_csv()
    assert "4 read" in caplog.text


def test_a_scan_of_another_version_is_not_trusted(tmp_path, data_root, tree, caplog, monkeypatch):
    root = tree(tmp_path / "set", {"real": 2, "fake/gan": 2})
    folder.prepare(root, name="mine")
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(manifest, "_SCAN", manifest._SCAN + 1)
    folder.prepare(root, name="mine")
    assert "4 files: 4 read, 0 unchanged" in caplog.text
    record = pd.read_parquet(data_root / "mine" / "scan.parquet")
    del record.attrs["version"]
    record.to_parquet(data_root / "mine" / "scan.parquet")  # as before there were versions
    caplog.clear()
    folder.prepare(root, name="mine")
    assert "4 files: 4 read, 0 unchanged" in caplog.text


def test_a_removed_or_moved_file_is_noticed(tmp_path, data_root, tree, caplog):
    root = tree(tmp_path / "set", {"real": 3, "fake/gan": 3})
    folder.prepare(root, name="mine")
    (root / "real" / "real-001.png").unlink()
    (root / "fake" / "gan").rename(root / "fake" / "other")
    caplog.set_level(logging.INFO)
    table = folder.prepare(root, name="mine")
    assert "5 files: 3 read, 2 unchanged" in caplog.text
    assert "real/real-001.png" not in set(table["path"]) and set(table["generator"]) == {
        "real",
        "other",
    }
    assert manifest.load("mine")["path"].tolist() == table["path"].tolist()


def test_the_same_size_at_another_time_is_read_again(tmp_path, data_root, tree, caplog):
    root = tree(tmp_path / "set", {"real": 2, "fake/gan": 2}, suffix=".bmp")  # all of one size
    before = folder.prepare(root, name="mine").set_index("path")
    file, other = root / "real" / "real-000.bmp", root / "real" / "real-001.bmp"
    then = file.stat().st_mtime_ns
    file.write_bytes(other.read_bytes())
    os.utime(file, ns=(then + 1, then + 1))
    after = folder.prepare(root, name="mine").set_index("path")
    assert after.loc["real/real-000.bmp", "sha256"] == before.loc["real/real-001.bmp", "sha256"]


def test_an_unchanged_folder_writes_no_manifest_but_mends_a_damaged_one(tmp_path, data_root, tree):
    root = tree(tmp_path / "set", {"real": 2, "fake/gan": 2})
    folder.prepare(root, name="mine")
    csv = data_root / "mine" / "manifest.csv"
    before = (csv.stat().st_ino, csv.read_bytes())
    folder.prepare(root, name="mine")
    assert (csv.stat().st_ino, csv.read_bytes()) == before
    csv.write_bytes(b"damaged")
    folder.prepare(root, name="mine")
    assert csv.read_bytes() == before[1]


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, data_root, tree, monkeypatch):
    root = tree(tmp_path / "set", {"real": 30, "fake/gan": 2})
    read = Path.read_bytes
    locked = root / "real" / "real-000.png"
    denied = lambda self: (
        (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        if self == locked.resolve()
        else read(self)
    )
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", denied)  # chmod does not stop root
        table = folder.prepare(root, name="mine").set_index("path")
    assert table.loc["real/real-000.png", "status"] == "unreadable: Permission denied"
    assert (folder.prepare(root, name="mine")["status"] == "ok").all()


def test_the_same_name_for_another_folder_is_scanned_anew(tmp_path, data_root, tree):
    folder.prepare(tree(tmp_path / "one", {"real": 2, "fake/gan": 2}), name="mine")
    other = tree(tmp_path / "two", {"fake/gan": 2, "real": 2})  # the same names, other contents
    for file in folder.walk(other):
        os.utime(file, ns=((tmp_path / "one" / file.relative_to(other)).stat().st_mtime_ns,) * 2)
    table = folder.prepare(other, name="mine").set_index("path")
    assert (
        table.loc["real/real-000.png", "sha256"]
        == integrity.inspect_file(other / "real" / "real-000.png")["sha256"]
    )


def test_many_processes_find_what_one_finds(tmp_path, tree):
    root = tree(tmp_path / "set", {"real": 20, "fake/gan": 20}, suffix=".jpg")
    (root / "real" / "broken.jpg").write_bytes(b"x")
    files = list(folder.walk(root))
    serial = manifest.parallel(integrity.inspect_file, files, desc="one", workers=1)
    assert (
        manifest.parallel(integrity.inspect_file, files, desc="two", workers=2, serial=1) == serial
    )
    assert [f["status"] for f in serial].count("ok") == 40


@pytest.mark.parametrize(
    "contents", [b"", b"\xff\xfe\0", b"path,label\nx,1\n", b"a,b\n1\n2,3,4,5\n"]
)
def test_a_damaged_manifest_is_named(tmp_path, data_root, tree, contents):
    folder.prepare(tree(tmp_path / "set", {"real": 2, "fake/gan": 2}), name="mine")
    (data_root / "mine" / "manifest.csv").write_bytes(contents)
    with pytest.raises(InputError, match="again with python -m data_prep"):
        manifest.load("mine")


@pytest.mark.parametrize("contents", [None, b"", b"{"])
def test_a_damaged_description_is_named(tmp_path, data_root, tree, contents):
    folder.prepare(tree(tmp_path / "set", {"real": 2, "fake/gan": 2}), name="mine")
    file = data_root / "mine" / "dataset.json"
    file.unlink() if contents is None else file.write_bytes(contents)
    with pytest.raises(InputError, match=r"dataset\.json is missing or damaged"):
        cache.build("mine", size=32)


def test_a_dataset_that_is_not_there_tells_how_to_get_it(data_root):
    with pytest.raises(
        InputError,
        match=r"'faces-140k' is missing: looked for .*manifest\.csv\. Get it with: python -m data_prep faces-140k",
    ):
        paths.dataset_folder("faces-140k")
    with pytest.raises(
        InputError,
        match=r"unknown dataset 'faces-140', did you mean 'faces-140k'\?.*python -m data_prep folder PATH --name NAME",
    ):
        paths.dataset_folder("faces-140")


# ---- splits


def scenes(sizes: list[tuple[int, int]], split: str = "") -> pd.DataFrame:
    """One scene per entry, with so many real and fake images."""
    rows = [
        (f"g{g}", label)
        for g, pair in enumerate(sizes)
        for label in (0, 1)
        for _ in range(pair[label])
    ]
    table = pd.DataFrame(rows, columns=["group", "label"]).assign(split=split, status="ok")
    return table.assign(
        generator=np.where(table["label"], "gan", "real"), path=[str(i) for i in range(len(table))]
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60),
    seed=st.integers(0, 5),
)
def test_strict_never_cuts_a_scene(sizes, seed):
    table = scenes(sizes)
    assume(len(table))
    try:
        split = protocol.assign(table, "strict", seed=seed)
    except InputError as error:
        assert any(reason in str(error) for reason in ("too few", "both classes are needed"))
        assume(False)
    assert (split.groupby(table["group"]).nunique() == 1).all()
    assert {(s, label) for s, label in zip(split, table["label"], strict=True)} == {
        (s, x) for s in ("train", "val", "test") for x in (0, 1)
    }
    assert split.equals(protocol.assign(table, "strict", seed=seed))


@settings(max_examples=30)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=40, max_size=80),
    seed=st.integers(0, 5),
)
def test_strict_always_finds_a_split_of_many_scenes_near_60_10_30(sizes, seed):
    table = scenes(sizes)
    share = protocol.assign(table, "strict", seed=seed).value_counts(normalize=True)
    assert share["train"] == pytest.approx(0.6, abs=0.06)
    assert share["val"] == pytest.approx(0.1, abs=0.06)
    assert share["test"] == pytest.approx(0.3, abs=0.06)


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


def test_strict_splits_single_images_where_no_scene_repeats():
    table = scenes([(1, 0), (0, 1)] * 50)
    split = protocol.assign(table, "strict")
    assert split.value_counts().to_dict() == {"train": 60, "test": 30, "val": 10}


def test_splits_that_the_dataset_gives_are_kept():
    table = pd.concat(
        [
            scenes([(1, 1)] * 12, s).assign(group=lambda t, s=s: s + t["group"])
            for s in ("train", "val", "test")
        ],
        ignore_index=True,
    )
    for name in protocol.PROTOCOLS:
        assert protocol.assign(table, name).tolist() == table["split"].tolist()


def test_a_missing_validation_part_is_carved_out_of_train():
    table = pd.concat(
        [
            scenes([(1, 1)] * 100, "train"),
            scenes([(1, 1)] * 20, "test").assign(group=lambda t: "t" + t["group"]),
        ],
        ignore_index=True,
    )
    split = protocol.assign(table, "strict")
    assert (split[table["split"] == "test"] == "test").all()
    assert (split == "val").sum() == 20
    assert (split.groupby(table["group"]).nunique() == 1).all()


def test_a_scene_on_both_sides_of_given_splits_is_refused_under_strict_only():
    table = pd.concat(
        [scenes([(1, 1)] * 12, s) for s in ("train", "val", "test")], ignore_index=True
    )
    with pytest.raises(
        InputError,
        match=r"12 scenes stand in more than one split \(e\.g\. 'g0'\): a leak\..*--protocol paper",
    ):
        protocol.assign(table, "strict")
    assert protocol.assign(table, "paper").tolist() == table["split"].tolist()


def test_quarantined_rows_belong_nowhere():
    table = scenes([(1, 1)] * 40)
    table.loc[[0, 41], "status"] = "zero-byte"
    split = protocol.assign(table, "strict")
    assert split[[0, 41]].tolist() == ["", ""]
    assert (split != "").sum() == 78


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


def test_unknown_protocol():
    with pytest.raises(InputError, match=r"unknown protocol 'strikt', did you mean 'strict'\?"):
        protocol.assign(scenes([(1, 1)]), "strikt")


# ---- decoding once


@settings(max_examples=40)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    mode=st.sampled_from(cache.MODES),
    size=st.sampled_from([32, 64]),
)
def test_every_mode_gives_squares_of_any_image(width, height, mode, size):
    result = cache.fit(noise(width, height), size=size, mode=mode)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.uint8


def test_resize_squashes_the_whole_image():
    wide = np.zeros((32, 128, 3), dtype=np.uint8)
    wide[:, 64:] = 255
    result = cache.fit(Image.fromarray(wide), size=32, mode="resize")
    assert (result[:, :14] == 0).all()
    assert (result[:, 18:] == 255).all()


@settings(max_examples=30)
@given(width=st.integers(32, 100), height=st.integers(32, 100))
def test_centre_crop_takes_the_middle_unscaled(width, height):
    image = noise(width, height)
    top, left = (height - 32) // 2, (width - 32) // 2
    assert np.array_equal(
        cache.fit(image, size=32, mode="center_crop"),
        np.asarray(image)[top : top + 32, left : left + 32],
    )


def test_small_images_are_scaled_up_with_their_proportions():
    halves = np.zeros((16, 32, 3), dtype=np.uint8)
    halves[:8] = 255
    result = cache.fit(Image.fromarray(halves), size=32, mode="center_crop")
    assert (result[:14] == 255).all()
    assert (result[18:] == 0).all()


@settings(max_examples=60)
@given(
    width=st.integers(40, 140),
    height=st.integers(40, 140),
    right=st.booleans(),
    bottom=st.booleans(),
)
def test_texture_crop_finds_the_textured_corner(width, height, right, bottom):
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    top, left = (height - 32) * bottom, (width - 32) * right
    image[top : top + 32, left : left + 32] = np.asarray(noise(32, 32))
    crop = cache.fit(Image.fromarray(image), size=32, mode="texture_crop")
    assert (crop != 128).any(
        axis=2
    ).mean() > 0.9  # all of it, but for a row or column where the next tile is as rich


@pytest.fixture
def small(tmp_path, data_root, tree) -> Path:
    """A dataset "small" of 24 JPEGs of 40 x 36 pixels; returns the folder of its files."""
    root = tree(tmp_path / "set", {"real": 12, "fake/gan": 12}, suffix=".jpg", size=(40, 36))
    folder.prepare(root, name="small")
    return root


def directly(root: Path, path: str) -> np.ndarray:
    with Image.open(root / path) as image:
        return np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))


def caches(data_root: Path) -> list[str]:
    return sorted(p.name for p in (data_root / "small" / "cache").iterdir() if p.suffix != ".lock")


def test_the_memory_map_holds_what_direct_decoding_gives(small, data_root):
    images, rows = cache.build("small", size=32)
    assert isinstance(images, np.memmap)
    assert (images.shape, images.dtype, len(rows)) == ((24, 32, 32, 3), np.uint8, 24)
    for i, path in enumerate(rows["path"]):
        assert np.array_equal(images[i], directly(small, path))
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
    assert len(caches(data_root)) == 1
    shutil.rmtree(small)  # the second call reads no file of the dataset
    assert np.array_equal(cache.build("small", size=32)[0], images)


def test_two_processes_fill_one_map(small):
    direct = np.stack([directly(small, p) for p in manifest.load("small")["path"]])
    before = cache._CHUNK
    try:
        cache._CHUNK = 5
        images, _ = cache.build("small", size=32, workers=2)
    finally:
        cache._CHUNK = before
    assert np.array_equal(images, direct)


def test_a_cache_has_a_name_that_depends_on_contents_size_and_mode_alone(
    small, data_root, tmp_path, monkeypatch, picture
):
    cache.build("small", size=32)
    (first,) = caches(data_root)
    cache.build("small", size=64)
    cache.build("small", size=32, mode="center_crop")
    assert len(caches(data_root)) == 3
    monkeypatch.setenv("DFLIB_DATA", str(tmp_path / "elsewhere"))
    shutil.copytree(small, tmp_path / "moved")
    folder.prepare(tmp_path / "moved", name="small")
    cache.build("small", size=32)
    assert caches(tmp_path / "elsewhere") == [first]
    picture(tmp_path / "moved" / "real" / "real-000.jpg", seed=77)
    folder.prepare(tmp_path / "moved", name="small")
    cache.build("small", size=32)
    assert len(caches(tmp_path / "elsewhere")) == 2


BUILD = "from data_prep import cache; cache.build('small', size=32)"


def test_a_killed_build_goes_on_where_it_was(small, data_root):
    rows = manifest.load("small")["path"].tolist()
    direct = np.stack([directly(small, p) for p in rows])
    last = small / rows[-1]
    last.rename(small.parent / "kept.jpg")
    os.mkfifo(last)  # reading it waits for ever: there the build is killed
    builder = subprocess.Popen([sys.executable, "-c", BUILD])
    try:
        end = time.monotonic() + 60
        while (
            not (done := list(data_root.glob("small/cache/*.partial/done.npy")))
            or np.load(done[0]).sum() < len(rows) - 1
        ):
            assert builder.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    last.unlink()
    (small.parent / "kept.jpg").rename(last)
    for path in rows[:-1]:
        (small / path).unlink()  # a build that began anew would miss them
    assert np.array_equal(cache.build("small", size=32)[0], direct)
    assert not [
        name for name in caches(data_root) if not name.startswith("resize-32-") or "." in name
    ]


def test_a_build_killed_in_its_very_last_step_is_whole(small, data_root):
    images = np.array(cache.build("small", size=32)[0])
    (name,) = caches(data_root)
    folder_ = data_root / "small" / "cache" / name
    np.save(folder_ / "done.npy", np.ones(24, dtype=bool))
    folder_.rename(folder_.with_suffix(".partial"))  # all is decoded, nothing renamed
    (
        folder_.with_suffix(".new")
    ).mkdir()  # and a still earlier attempt died while it laid out the file
    assert np.array_equal(cache.build("small", size=32)[0], images)
    assert caches(data_root) in ([name], [name, f"{name}.new"])


def test_what_a_killed_build_of_other_contents_left_is_removed(small, data_root, picture):
    cache.build("small", size=32)
    (old,) = caches(data_root)
    parent = data_root / "small" / "cache"
    (parent / old).rename(parent / f"{old}.partial")  # killed before its end,
    shutil.copytree(parent / f"{old}.partial", parent / f"{old.replace('-32-', '-64-')}.partial")
    picture(small / "real" / "real-000.jpg", seed=5, size=(40, 36))  # and then the data changed
    folder.prepare(small, name="small")
    with FileLock(
        parent / f"{old.replace('-32-', '-64-')}.lock"
    ):  # but this one is still being built
        cache.build("small", size=32)
        assert [n for n in caches(data_root) if n.endswith(".partial")] == [
            f"{old.replace('-32-', '-64-')}.partial"
        ]
    cache.build("small", size=64)
    assert not [n for n in caches(data_root) if n.endswith(".partial")]


def test_two_builds_at_once_make_one_good_cache(small, data_root):
    both = [
        subprocess.Popen([sys.executable, "-c", BUILD], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[1] for p in both] == ["", ""]
    assert [p.returncode for p in both] == [0, 0]
    assert len(caches(data_root)) == 1
    images, rows = cache.build("small", size=32)
    assert np.array_equal(images, np.stack([directly(small, p) for p in rows["path"]]))


@pytest.mark.parametrize("change", ["removed", "damaged", "replaced"])
def test_files_that_changed_since_the_scan_are_an_error_until_scanned_again(small, picture, change):
    path = small / "real" / "real-003.jpg"
    path.unlink()
    if change == "damaged":
        path.write_bytes(b"damaged")
    elif change == "replaced":
        picture(path, seed=1234, size=(40, 36))
    with pytest.raises(
        InputError,
        match=r"1 images of 'small' changed since they were scanned \(e\.g\. .*real-003\.jpg.*scan again",
    ):
        cache.build("small", size=32)
    if change == "replaced":
        folder.prepare(small, name="small")
        images, rows = cache.build("small", size=32)
        place = rows["path"].tolist().index("real/real-003.jpg")
        assert np.array_equal(images[place], directly(small, "real/real-003.jpg"))


@pytest.mark.parametrize(
    ("size", "near"), [(33, 32), (100, 96), (0, 32), (-32, 32), (31, 32), (225, 224)]
)
def test_a_size_that_is_no_multiple_of_32_is_refused(small, data_root, size, near):
    with pytest.raises(
        InputError, match=rf"image size {size} is not a multiple of 32 .*: try {near}"
    ):
        cache.build("small", size=size)
    assert not (data_root / "small" / "cache").exists()


def test_unknown_input_mode(small):
    with pytest.raises(
        InputError, match=r"unknown input mode 'centre_crop', did you mean 'center_crop'\?"
    ):
        cache.build("small", size=32, mode="centre_crop")


def test_a_full_disk_is_seen_before_anything_is_written(small, data_root, monkeypatch):
    usage = shutil.disk_usage(data_root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=24 * 32 * 32 * 3))
    with pytest.raises(
        InputError, match=r"decoding 'small' at 32 px needs 0\.0 GB, 0\.0 GB are free"
    ):
        cache.build("small", size=32)
    assert caches(data_root) == []
    monkeypatch.undo()


# ---- real images


def test_real_140k_subset(real_data, data_root):
    table = faces_140k.prepare(real_data / "140k-real-and-fake-faces")
    counts = table.groupby(["label", "split"]).size().to_dict()
    assert counts == {
        (0, "test"): 160,
        (0, "train"): 560,
        (0, "val"): 80,
        (1, "test"): 160,
        (1, "train"): 560,
        (1, "val"): 80,
    }
    assert (table["status"] == "ok").all()
    assert set(table["jpeg_quality"]) == {75}
    assert (table["path"].str.contains("/fake/") == (table["label"] == 1)).all()
    assert (protocol.assign(table, "strict") == table["split"]).all()


def test_real_dogs_and_cats(real_data, data_root):
    table = dogs_vs_cats.prepare(real_data / "dogs-vs-cats")
    assert table.groupby(["generator", "split"]).size().to_dict() == {
        ("cats", "test"): 150,
        ("cats", "train"): 700,
        ("dogs", "test"): 150,
        ("dogs", "train"): 700,
    }
    assert set(table["jpeg_quality"]) == {88}
    assert json.loads((data_root / "dogs-vs-cats" / "dataset.json").read_text())["root"] == str(
        (real_data / "dogs-vs-cats").resolve()
    )
