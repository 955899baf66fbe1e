"""Decoding once: what the memory map holds, under which name, and after builds that were killed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import noise
from PIL import Image

from data_prep import cache, folder, manifest
from data_prep.errors import InputError

BUILD = [sys.executable, "-c", "from data_prep import cache; cache.build('small', size=32)"]


@settings(max_examples=40)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.sampled_from([32, 64]))
def test_every_mode_gives_squares_of_any_image(width, height, size):
    for mode in cache.MODES:
        result = cache.fit(noise(width, height), size=size, mode=mode)
        assert result.shape == (size, size, 3) and result.dtype == np.uint8


def test_small_images_are_scaled_up_with_their_proportions():
    halves = np.zeros((16, 32, 3), dtype=np.uint8)
    halves[:8] = 255
    result = cache.fit(Image.fromarray(halves), size=32, mode="center_crop")
    assert (result[:14] == 255).all()
    assert (result[18:] == 0).all()


SIDES = st.integers(40, 140)


@settings(max_examples=60)
@given(width=SIDES, height=SIDES, right=st.booleans(), bottom=st.booleans())
def test_texture_crop_finds_the_textured_corner(width, height, right, bottom):
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    top, left = (height - 32) * bottom, (width - 32) * right
    image[top : top + 32, left : left + 32] = np.asarray(noise(32, 32))
    crop = cache.fit(Image.fromarray(image), size=32, mode="texture_crop")
    # all of it, but for a row or column where the next tile is as rich
    assert (crop != 128).any(axis=2).mean() > 0.9


@pytest.fixture
def small(tmp_path, data_root, tree) -> Path:
    """A dataset "small" of 24 JPEGs of 40 x 36 pixels; returns the folder of its files."""
    root = tree(tmp_path / "set", {"real": 12, "fake/gan": 12}, suffix=".jpg", size=(40, 36))
    folder.prepare(root, name="small")
    return root


def directly(root: Path) -> np.ndarray:
    """Every image of "small", decoded and resized by Pillow."""
    images = []
    for path in manifest.load("small")["path"]:
        with Image.open(root / path) as image:
            images.append(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    return np.stack(images)


def caches(data_root: Path) -> list[str]:
    return sorted(p.name for p in (data_root / "small" / "cache").iterdir() if p.suffix != ".lock")


def test_the_memory_map_holds_what_direct_decoding_gives(small, data_root):
    images, rows = cache.build("small", size=32)
    assert isinstance(images, np.memmap)
    assert (images.shape, images.dtype, len(rows)) == ((24, 32, 32, 3), np.uint8, 24)
    assert np.array_equal(images, directly(small))
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
    assert len(caches(data_root)) == 1
    shutil.rmtree(small)  # the second call reads no file of the dataset
    assert np.array_equal(cache.build("small", size=32)[0], images)


def test_two_processes_fill_one_map(small, monkeypatch):
    monkeypatch.setattr(cache, "_CHUNK", 5)
    monkeypatch.setattr(manifest, "cores", lambda: 2)
    assert np.array_equal(cache.build("small", size=32)[0], directly(small))


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


def test_what_a_killed_build_left_is_made_again(small, data_root):
    cache.build("small", size=32)
    (name,) = caches(data_root)
    made = data_root / "small" / "cache" / name
    made.rename(f"{made}.partial")
    with (made.with_name(f"{made.name}.partial") / "images.npy").open("r+b") as file:
        file.truncate(9_000)
    assert np.array_equal(cache.build("small", size=32)[0], directly(small))
    assert caches(data_root) == [made.name]


def test_two_builds_at_once_make_one_good_cache(small, data_root):
    both = [subprocess.Popen(BUILD, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate(timeout=120)[1] for p in both] == ["", ""]
    assert [p.returncode for p in both] == [0, 0]
    assert len(caches(data_root)) == 1
    assert np.array_equal(cache.build("small", size=32)[0], directly(small))


@pytest.mark.parametrize("change", ["removed", "damaged", "replaced", "touched up"])
def test_files_that_changed_since_the_scan_are_an_error_until_scanned_again(
    small, data_root, picture, change
):
    """touched up: with the size and the time that the file had."""
    path = small / "real" / "real-003.jpg"
    before = path.stat(), path.read_bytes()
    path.unlink()
    if change == "damaged":
        path.write_bytes(b"damaged")
    elif change == "replaced":
        picture(path, seed=1234, size=(40, 36))
    elif change == "touched up":
        path.write_bytes(before[1][:-40] + bytes(38) + before[1][-2:])
        os.utime(path, ns=(0, before[0].st_mtime_ns))
    what = r"1 images of 'small' changed since they were scanned"
    with pytest.raises(InputError, match=rf"{what} \(e\.g\. .*real-003\.jpg.*scan again"):
        cache.build("small", size=32)
    assert not [*data_root.rglob("*.partial")]
    if change in ("replaced", "touched up"):
        folder.prepare(small, name="small")
        assert np.array_equal(cache.build("small", size=32)[0], directly(small))


NEAREST = {33: 32, 100: 96, 0: 32, -32: 32, 31: 32, 225: 224}


def test_a_size_or_mode_that_cannot_be_is_refused(small, data_root):
    for size, near in NEAREST.items():
        message = f"image size {size} is not a multiple of 32 .*: try {near}"
        with pytest.raises(InputError, match=message):
            cache.build("small", size=size)
    with pytest.raises(InputError, match="unknown input mode 'centre_crop', did you mean 'center_"):
        cache.build("small", size=32, mode="centre_crop")
    assert not (data_root / "small" / "cache").exists()


def test_a_full_disk_is_seen_before_anything_is_written(small, data_root, monkeypatch):
    usage = shutil.disk_usage(data_root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=24 * 32 * 32 * 3))
    message = r"decoding 'small' at 32 px needs 0\.0 GB, 0\.0 GB are free .*--set size="
    with pytest.raises(InputError, match=message):
        cache.build("small", size=32)
    assert caches(data_root) == []
