"""The known datasets: layouts, labels, scenes, Kaggle's mounts, and whole downloads from a local server."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from data_prep import __main__ as command
from data_prep import (
    deepfake_real,
    dogs_vs_cats,
    faces_140k,
    forensynths,
    manifest,
    paths,
    protocol,
    raise_,
    source,
    synthbuster,
)
from data_prep.errors import InputError


def zip_of(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    return buffer.getvalue()


def labels(table) -> dict:
    return (
        table.groupby(["generator", "split"])["label"]
        .agg(["min", "max", "count"])
        .apply(tuple, axis=1)
        .to_dict()
    )


# ---- Synthbuster and RAISE

IDS = [f"r{i * 70_000:07x}t" for i in range(1, 13)]


@pytest.fixture
def synthbuster_files(tmp_path, picture) -> Path:
    base = tmp_path / "published"
    for g, generator in enumerate(("dalle3", "glide")):
        for i, stem in enumerate(IDS):
            picture(base / "synthbuster" / generator / f"{stem}.png", seed=100 * g + i)
    for i, stem in enumerate(IDS):
        picture(base / "real_RAISE_1k" / f"{stem}.png", seed=900 + i)
    (base / "synthbuster" / "prompts.csv").write_text("image name (matching Raise-1k),Prompt\n")
    return base


def test_synthbuster_is_downloaded_checked_unpacked_and_found_again(
    server, synthbuster_files, data_root, tmp_path, caplog
):
    archives = []
    for name, top in (("synthbuster", "synthbuster"), ("real_RAISE_1k", "real_RAISE_1k")):
        shutil.copytree(synthbuster_files / top, tmp_path / f"zip-{name}" / top)
        server.files[f"{name}.zip"] = zip_of(tmp_path / f"zip-{name}")
        md5 = hashlib.md5(server.files[f"{name}.zip"]).hexdigest()
        archives.append(source.Archive(server.url(f"{name}.zip?download=1"), md5=md5))
    server.cut = [900]
    local = replace(synthbuster.SOURCE, archives=tuple(archives))
    table = source.prepare(local)
    assert labels(table) == {
        ("dalle3", ""): (1, 1, 12),
        ("glide", ""): (1, 1, 12),
        ("real", ""): (0, 0, 12),
    }
    assert (table.groupby("group").size() == 3).all()
    shown = [m for m in caplog.messages if "CC BY-NC-SA 4.0" in m]
    assert len(shown) == 1 and "zenodo.org" in shown[0]
    files = {p.name for p in (data_root / "synthbuster" / "files").iterdir() if p.suffix != ".lock"}
    assert files == {"synthbuster", "real_RAISE_1k"}
    asked = len(server.asked)
    assert source.prepare(local).to_csv() == table.to_csv()
    assert len(server.asked) == asked


def test_a_wrong_archive_of_a_dataset_leaves_no_manifest(server, data_root):
    server.files["synthbuster.zip"] = b"something else"
    archives = (
        source.Archive(server.url("synthbuster.zip"), md5=synthbuster.SOURCE.archives[0].md5),
    )
    with pytest.raises(InputError, match="expected 0695bd328e16ea21c5c9cc2ae1d994ff"):
        source.prepare(replace(synthbuster.SOURCE, archives=archives))
    assert not (data_root / "synthbuster" / "manifest.csv").exists()


def test_a_full_raise_of_ones_own_stands_for_the_pairs(synthbuster_files, data_root):
    reals = synthbuster_files / "real_RAISE_1k"
    for file in list(reals.iterdir()):
        with Image.open(file) as image:
            image.save(file.with_suffix(".TIF"))
        file.unlink()
    reals.rename(synthbuster_files / "RAISE")
    table = synthbuster.prepare(synthbuster_files)
    assert set(table.loc[table["label"] == 0, "format"]) == {"TIFF"}
    assert (table.groupby("group").size() == 3).all()


def test_raise_alone_is_a_set_of_reals(synthbuster_files, data_root):
    table = raise_.prepare(synthbuster_files)
    assert (table["label"] == 0).all() and len(table) == 12
    assert paths.describe("raise")["kind"] == "reals"


@given(numbers=st.lists(st.integers(0, 2**28 - 1), unique=True, max_size=30))
def test_bursts_are_runs_of_near_ids(numbers):
    stems = {f"r{n:07x}t": n for n in numbers}
    scenes = raise_.bursts(stems)
    ordered = sorted(stems, key=stems.get)
    for a, b in zip(ordered, ordered[1:], strict=False):
        assert (scenes[a] == scenes[b]) == (stems[b] - stems[a] < raise_.BURST)


def test_bursts_stand_on_one_side_of_the_strict_split(tmp_path, data_root, picture):
    stems = [f"r{i * 70_000 + j:07x}t" for i in range(1, 25) for j in (0, 9)]
    for i, stem in enumerate(stems):
        picture(tmp_path / "real_RAISE_1k" / f"{stem}.png", seed=i)
        picture(tmp_path / "synthbuster" / "glide" / f"{stem}.png", seed=1000 + i)
    table = synthbuster.prepare(tmp_path)
    split = protocol.assign(table, "strict")
    number = table["path"].str.extract(r"r([0-9a-f]{7})t")[0].map(lambda h: int(h, 16) // 70_000)
    assert (split.groupby(number).nunique() == 1).all()


# ---- ForenSynths


@pytest.fixture
def forensynths_files(tmp_path, picture) -> Path:
    base = tmp_path / "published"
    seed = 0
    places = [f"progan_{part}/{c}" for part in ("train", "val") for c in ("person", "cat")]
    places += [
        f"CNN_synth_testset/{g}"
        for g in forensynths.ALL
        if g not in ("progan", "stylegan", "stylegan2", "cyclegan")
    ]
    places += [
        f"CNN_synth_testset/{g}/{c}"
        for g, c in (
            ("progan", "person"),
            ("progan", "cat"),
            ("stylegan", "car"),
            ("stylegan2", "car"),
            ("cyclegan", "horse"),
        )
    ]
    for place in places:
        for kind in ("0_real", "1_fake"):
            for i in range(10 if place.startswith("progan") else 3):
                seed += 1
                suffix = ".bmp" if place.endswith("san") and kind == "0_real" else ".png"
                picture(base / place / kind / f"{i:05d}{suffix}", seed=seed)
    return base


def test_forensynths_trains_on_progan_persons_and_tests_per_generator(forensynths_files, data_root):
    table = forensynths.prepare(forensynths_files)
    found = labels(table)
    assert found[("progan", "train")] == (1, 1, 10) and found[("progan", "val")] == (1, 1, 10)
    assert {g for g, split in found if split == "test"} == {
        "real",
        "progan",
        "stargan",
        "whichfaceisreal",
        "deepfake",
    }
    assert all(low == high == int(g != "real") for (g, _), (low, high, _) in found.items())
    assert not table["path"].str.contains("/cat/").any()
    split = protocol.assign(table, "strict")
    assert (split == table["split"]).all()  # the same number in two folders is not one scene


def test_forensynths_all_is_all_13(forensynths_files, data_root):
    table = forensynths.prepare(forensynths_files, everything=True)
    assert set(table.loc[table["split"] == "test", "generator"]) - {"real"} == set(forensynths.ALL)
    assert table["path"].str.contains("progan_train/cat/").any()
    assert set(table["format"]) == {"PNG", "BMP"}


def test_forensynths_fetches_only_the_human_folders_and_trains_on_what_is_there(
    server, forensynths_files, data_root, tmp_path, caplog
):
    for archive in ("progan_val", "CNN_synth_testset"):
        server.files[f"{archive}.zip"] = zip_of(forensynths_files / archive)
    archives = tuple(
        replace(a, url=server.url(f"{a.name}.zip")) for a in forensynths.SOURCE.archives
    )
    table = source.prepare(replace(forensynths.SOURCE, archives=archives))
    assert set(table["split"]) == {"train", "test"} and "progan_train.7z.001" in caplog.text
    fetched = {p.parent.parent.name for p in (data_root / "forensynths" / "files").rglob("*.png")}
    assert fetched == {"person", "stargan", "whichfaceisreal", "deepfake"}
    split = protocol.assign(table, "strict")
    assert set(split) == {"train", "val", "test"}


def test_a_folder_of_forensynths_that_is_missing_is_named(forensynths_files, data_root):
    shutil.rmtree(forensynths_files / "CNN_synth_testset" / "stargan")
    with pytest.raises(InputError, match=r"forensynths: .*stargan is missing"):
        forensynths.prepare(forensynths_files)


# ---- Kaggle


@pytest.fixture
def mounts(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(source, "KAGGLE", tmp_path / "input")
    monkeypatch.setattr(dogs_vs_cats, "KAGGLE", tmp_path / "input")
    return tmp_path / "input"


@pytest.mark.parametrize("mount", ["slug", "datasets/owner/slug"])
def test_kaggle_sets_are_found_in_both_mount_styles_by_structure(mounts, mount, data_root, tree):
    tree(mounts / "another", {"train/a": 1, "train/b": 1})
    tree(
        mounts / mount / "real_vs_fake/real-vs-fake",
        {f"{s}/{k}": 2 for s in ("train", "valid", "test") for k in ("real", "fake")},
    )
    tree(
        mounts / mount / "Dataset",
        {f"{s}/{k}": 2 for s in ("Train", "Validation", "Test") for k in ("Real", "Fake")},
    )
    for made, generator in (
        (faces_140k.prepare(), "stylegan"),
        (deepfake_real.prepare(), "deepfake"),
    ):
        assert labels(made) == {
            (g, s): (y, y, 2)
            for g, y in (("real", 0), (generator, 1))
            for s in ("train", "val", "test")
        }
    mounts.chmod(0o555)


def test_input_folders_that_are_read_only_are_only_read(mounts, data_root, tree):
    tree(
        mounts / "x", {f"{s}/{k}": 2 for s in ("train", "valid", "test") for k in ("real", "fake")}
    )
    before = sorted(mounts.rglob("*"))
    for folder in [p for p in before if p.is_dir()]:
        folder.chmod(0o555)
    try:
        assert len(faces_140k.prepare()) == 12
        assert sorted(mounts.rglob("*")) == before
    finally:
        for folder in [p for p in before if p.is_dir()]:
            folder.chmod(0o755)


DOGS = {("cats", ""): (0, 0, 3), ("dogs", ""): (1, 1, 3)}


def test_dogs_vs_cats_as_microsoft_publishes_it(tmp_path, data_root, picture):
    for i in range(60):
        for k, kind in enumerate(("Cat", "Dog")):
            picture(tmp_path / "PetImages" / kind / f"{i}.jpg", seed=2 * i + k)
    (tmp_path / "PetImages" / "Cat" / "666.jpg").write_bytes(b"")
    (tmp_path / "PetImages" / "Cat" / "Thumbs.db").write_bytes(b"junk")
    table = dogs_vs_cats.prepare(tmp_path)
    assert labels(table) == {("cats", ""): (0, 0, 61), ("dogs", ""): (1, 1, 60)}
    assert table["group"].is_unique  # Cat/1.jpg and Dog/1.jpg show two animals
    assert table.loc[table["status"] != "ok", "path"].tolist() == ["PetImages/Cat/666.jpg"]


def test_dogs_vs_cats_as_the_competition_mounts_it(mounts, tmp_path, data_root, picture):
    for i in range(3):
        for k, kind in enumerate(("cat", "dog")):
            picture(tmp_path / "c" / "train" / f"{kind}.{i}.jpg", seed=2 * i + k)
    (mounts / "dogs-vs-cats").mkdir(parents=True)
    (mounts / "dogs-vs-cats" / "train.zip").write_bytes(zip_of(tmp_path / "c"))
    (mounts / "dogs-vs-cats" / "test1.zip").write_bytes(b"not looked at")
    assert labels(dogs_vs_cats.prepare()) == DOGS
    assert labels(dogs_vs_cats.prepare(tmp_path / "c", name="unpacked")) == DOGS
    picture(tmp_path / "c" / "train" / "cow.0.jpg")
    with pytest.raises(InputError, match="cow.0.jpg: no label in its name"):
        dogs_vs_cats.prepare(tmp_path / "c", name="unpacked")


# ---- command line


def test_list_tells_of_each_set_whether_it_is_here(data_root, synthbuster_files, caplog):
    synthbuster.prepare(synthbuster_files)
    manifest.load("synthbuster")
    shown = CliRunner().invoke(command.app, ["list"]).output
    assert all(name in shown for name in paths.HOW_TO_GET)
    for text in (
        "real: 12 (none given)",
        "dalle3: 12",
        "CC BY-NC-SA 4.0",
        "12.4 GB",
        "zenodo.org",
        "--from FOLDER",
    ):
        assert text in shown, text


def test_every_source_has_a_command_and_a_way_to_get_it():
    assert set(command.SOURCES) == set(paths.HOW_TO_GET) - {"demo", "demo-source"}
    registered = {c.name or c.callback.__name__ for c in command.app.registered_commands}
    assert set(command.SOURCES) <= registered
    for known in command.SOURCES.values():
        assert (
            known.licence and known.address.startswith("http") and (known.archives or known.by_hand)
        )


def test_the_synthbuster_layout_of_real_files(real_data, data_root, caplog):
    caplog.set_level(logging.INFO)
    table = synthbuster.prepare(real_data)
    assert (table.groupby("generator").size() == 220).all() and table["generator"].nunique() == 3
    assert (table.groupby("group").size() == 3).all()
