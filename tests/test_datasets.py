"""The published datasets: layouts, labels, scenes, mounts, and downloads from a local server."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_download import zipped
from typer.testing import CliRunner

from data_prep import __main__ as command
from data_prep import paths, protocol, sources
from data_prep.sources import SOURCES
from dflib import data, metrics


def zip_of(folder: Path) -> bytes:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return zipped({f.relative_to(folder).as_posix(): f.read_bytes() for f in files})


def labels(table: pd.DataFrame) -> dict:
    """(generator, split) -> the only label, number of images."""
    kinds = table.groupby(["generator", "split"])["label"]
    assert (kinds.nunique() == 1).all()
    return kinds.agg(["min", "count"]).apply(tuple, axis=1).to_dict()


# ---- Synthbuster and RAISE

IDS = [f"r{i * 70_000:07x}t" for i in range(1, 13)]


@pytest.fixture
def synthbuster_files(tmp_path, picture) -> Path:
    base = tmp_path / "published"
    for g, where in enumerate(("synthbuster/dalle3", "synthbuster/glide", "real_RAISE_1k")):
        for i, stem in enumerate(IDS):
            picture(base / where / f"{stem}.png", seed=100 * g + i)
    (base / "synthbuster" / "prompts.csv").write_text("image name (matching Raise-1k),Prompt\n")
    return base


def test_synthbuster_is_downloaded_checked_unpacked_and_found_again(
    server, synthbuster_files, data_root, tmp_path, caplog
):
    archives = []
    for name in ("synthbuster", "real_RAISE_1k"):
        shutil.copytree(synthbuster_files / name, tmp_path / f"zip-{name}" / name)
        server.files[f"{name}.zip"] = zip_of(tmp_path / f"zip-{name}")
        md5 = hashlib.md5(server.files[f"{name}.zip"]).hexdigest()
        archives.append({"url": server.url(f"{name}.zip?download=1"), "md5": md5})
    server.cut = [900]
    local = replace(SOURCES["synthbuster"], archives=archives)
    table = sources.prepare(local)
    assert "CC BY-NC-SA 4.0" in CliRunner().invoke(command.app, ["list"]).output
    expected = {("dalle3", ""): (1, 12), ("glide", ""): (1, 12), ("real", ""): (0, 12)}
    assert labels(table) == expected
    assert (table.groupby("group").size() == 3).all()
    (shown,) = [m for m in caplog.messages if "CC BY-NC-SA 4.0" in m]
    assert "zenodo.org" in shown
    files = {p.name for p in (data_root / "synthbuster" / "files").iterdir() if p.suffix != ".lock"}
    assert files == {"synthbuster", "real_RAISE_1k"}
    asked = len(server.asked)
    assert sources.prepare(local).to_csv() == table.to_csv()
    assert len(server.asked) == asked


def test_a_full_raise_of_ones_own_stands_for_the_pairs_and_for_itself(synthbuster_files, data_root):
    reals = synthbuster_files / "real_RAISE_1k"
    for file in list(reals.iterdir()):
        with Image.open(file) as image:
            image.save(file.with_suffix(".TIF"))
        file.unlink()
    reals.rename(synthbuster_files / "RAISE")
    table = sources.prepare("synthbuster", synthbuster_files)
    assert set(table.loc[table["label"] == 0, "format"]) == {"TIFF"}
    assert (table.groupby("group").size() == 3).all()
    table = sources.prepare("raise", synthbuster_files)
    assert (table["label"] == 0).all() and len(table) == 12


def test_bursts_stand_on_one_side_of_the_strict_split(tmp_path, data_root, picture):
    ids = [f"r{i * 70_000 + j:07x}t" for i in range(1, 25) for j in (0, 9)]
    for i, each in enumerate(ids):
        picture(tmp_path / "real_RAISE_1k" / f"{each}.png", seed=i)
        picture(tmp_path / "synthbuster" / "glide" / f"{each}.png", seed=1000 + i)
    table = sources.prepare("synthbuster", tmp_path)
    split = protocol.assign(table, "strict")
    number = table["path"].str.extract(r"r([0-9a-f]{7})t")[0].map(lambda h: int(h, 16) // 70_000)
    assert (split.groupby(number).nunique() == 1).all()


# ---- ForenSynths

GENERATORS = "progan stylegan stylegan2 cyclegan biggan stargan gaugan crn imle seeingdark san "
GENERATORS = (GENERATORS + "deepfake whichfaceisreal").split()


@pytest.fixture
def forensynths_files(tmp_path, picture) -> Path:
    base, seed = tmp_path / "published", 0
    by_class = {"progan": ("person", "cat"), "stylegan": ("car",), "stylegan2": ("car",)}
    by_class["cyclegan"] = ("horse",)
    places = [f"progan_{part}/{c}" for part in ("train", "val") for c in ("person", "cat")]
    for generator in GENERATORS:
        for name in by_class.get(generator, ("",)):
            places.append(f"CNN_synth_testset/{generator}/{name}")
    for place in places:
        for kind in ("0_real", "1_fake"):
            for i in range(10 if place.startswith("progan") else 3):
                seed += 1
                suffix = ".bmp" if place.endswith("/san/") and kind == "0_real" else ".png"
                picture(base / place / kind / f"{i:05d}{suffix}", seed=seed)
    return base


def test_forensynths_generators_are_scored_against_their_own_reals(forensynths_files, data_root):
    """A score that is perfect in each test set, at another level in each: AUROC 1 for everyone."""
    table = sources.prepare("forensynths", forensynths_files)
    found = labels(table)
    assert found[("progan", "train")] == (1, 20) == found[("progan", "val")]
    assert {g for g, split in found if split == "test"} == {"real", *GENERATORS}
    assert (protocol.assign(table, "strict") == table["split"]).all()
    tested = table["split"] == "test"
    own = table["path"].str.split("/").str[1]
    assert (table["testset"] == own.where(tested, "")).all() and table["testset"].nunique() == 14
    test = data.open("forensynths", size=32).test
    level = dict(zip(sorted(GENERATORS), np.linspace(0.04, 0.9, 13), strict=True))
    scores = np.array([level[t] for t in test.testsets]) + 0.05 * test.labels
    how = {"threshold": 0.5, "groups": test.groups, "draws": 20}
    found = metrics.evaluate(test.labels, scores, test.generators, testsets=test.testsets, **how)
    together = metrics.evaluate(test.labels, scores, test.generators, **how)
    for generator in GENERATORS:
        n = int((test.generators == generator).sum())
        numbers = {key: found[generator][key] for key in ("auroc", "n_real", "n_fake")}
        assert numbers == {"auroc": 1.0, "n_real": n, "n_fake": n}
    assert found["macro"]["auroc"] == 1 and found["all"] == together["all"]
    assert min(together[g]["auroc"] for g in GENERATORS) < 0.1  # what it is without a test set


def test_forensynths_fetches_only_the_human_folders_and_trains_on_what_is_there(
    server, forensynths_files, data_root, caplog
):
    known, archives = SOURCES["forensynths"], []
    for archive in known.archives:
        file = archive["url"].rpartition("/")[2]
        server.files[file] = zip_of(forensynths_files / file.removesuffix(".zip"))
        archives.append(archive | {"url": server.url(file)})
    table = sources.prepare(replace(known, archives=archives))
    assert set(table["split"]) == {"train", "test"} and "no train part" in caplog.text
    fetched = {p.parent.parent.name for p in (data_root / "forensynths" / "files").rglob("*.png")}
    assert fetched == {"person", "stargan", "whichfaceisreal", "deepfake"}
    assert set(protocol.assign(table, "strict")) == {"train", "val", "test"}


# ---- Kaggle


@pytest.mark.parametrize("mount", ["slug", "datasets/owner/slug"])
def test_kaggle_sets_are_found_by_structure_and_only_read(
    tmp_path, monkeypatch, mount, data_root, tree
):
    mounts = tmp_path / "input"
    monkeypatch.setattr(sources, "KAGGLE", mounts)
    tree(mounts / "another", {"train/a": 1, "train/b": 1})
    place = mounts / mount
    for split in ("train", "valid", "test"):
        tree(place / "real_vs_fake/real-vs-fake" / split, {"real": 2, "fake": 2})
    for split in ("Train", "Validation", "Test"):
        tree(place / "Dataset" / split, {"Real": 2, "Fake": 2})
    for split in ("train", "test"):
        tree(place / "dogs" / split, {"cats": 2, "dogs": 2})
    before = sorted(mounts.rglob("*"))
    folders = [mounts, *(p for p in before if p.is_dir())]
    for place in folders:
        place.chmod(0o555)
    try:
        names = ("faces-140k", "deepfake-real", "dogs-vs-cats")
        made = {name: labels(sources.prepare(name)) for name in names}
        assert sorted(mounts.rglob("*")) == before
    finally:
        for place in folders:
            place.chmod(0o755)
    for name, fake in (("faces-140k", "stylegan"), ("deepfake-real", "deepfake")):
        kinds = (("real", 0), (fake, 1))
        assert made[name] == {(g, s): (y, 2) for g, y in kinds for s in ("train", "val", "test")}
    kinds = (("cats", 0), ("dogs", 1))
    assert made["dogs-vs-cats"] == {(g, s): (y, 2) for g, y in kinds for s in ("train", "test")}
    about = paths.describe("dogs-vs-cats")
    assert about["kind"] == "source"


# ---- today's sets, in small archives of their published layouts

TODAY = {
    "genimage": {
        "BigGAN/imagenet_ai_0419_biggan/train/ai/1.png": (1, "imagenet_ai_0419_biggan", "train"),
        "BigGAN/imagenet_ai_0419_biggan/train/nature/1.JPEG": (0, "real", "train"),
        "ADM/imagenet_ai_0508_adm/val/ai/2.PNG": (1, "imagenet_ai_0508_adm", "val"),
        "ADM/imagenet_ai_0508_adm/val/nature/3.JPEG": (0, "real", "val"),
    },
    "df40": {
        "DF40/simswap/ff/frames/071_054/000.png": (1, "simswap", ""),
        "DF40/simswap/ff/frames/071_054/001.png": (1, "simswap", ""),
        "DF40/heygen/real/v1/000.png": (0, "real", ""),
        "DF40/heygen/fake/v1/000.png": (1, "heygen", ""),
        "FaceForensics++/original_sequences/youtube/c23/frames/071/000.png": (0, "real", ""),
        "Celeb-DF-v2/Celeb-real/frames/id0_0000/000.png": (0, "real", ""),
    },
    "truefake": {
        "PreSocial/Real/FFHQ/1.png": (0, "real", ""),
        "PreSocial/Fake/FLUX.1/faces/1.png": (1, "FLUX.1", ""),
        "Facebook/Fake/FLUX.1/faces/1.jpg": (1, "FLUX.1", ""),
        "Telegram/Real/FFHQ/1.jpg": (0, "real", ""),
    },
}
SCENES = {"genimage": 4, "df40": 4, "truefake": 2}


@pytest.mark.parametrize("name", TODAY)
def test_a_set_of_today_is_read_in_its_published_layout(tmp_path, data_root, picture, name):
    for i, path in enumerate(TODAY[name]):
        picture(tmp_path / "downloads" / "x" / path, seed=i, format="PNG")
    picture(tmp_path / "downloads" / "other" / "real" / "1.png")
    table = sources.prepare(name, tmp_path / "downloads")
    told = table[["label", "generator", "split"]].itertuples(index=False, name=None)
    assert dict(zip(table["path"], told, strict=True)) == TODAY[name]
    assert table["group"].nunique() == SCENES[name]
    assert paths.describe(name)["licence"] == SOURCES[name].licence


HUB = {  # columns of image and generator, labels, a generator
    "community-forensics": ("image_data", "architecture", [0, 1], "LatDiff"),
    "openfake": ("image", "model", ["real", "fake"], "flux"),
}


@pytest.mark.parametrize("name", HUB)
def test_a_set_of_the_hub_is_read_in_its_published_columns(
    tmp_path, data_root, picture, monkeypatch, name
):
    pytest.importorskip("datasets", reason='pip install -e ".[datasets]"')
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
    image, generator, kinds, fake = HUB[name]
    files = [picture(tmp_path / f"{i}.png", seed=i) for i in range(2)]
    images = [file.read_bytes() for file in files]
    if name == "openfake":
        images = [{"bytes": b, "path": f.name} for b, f in zip(images, files, strict=True)]
    (tmp_path / "hub").mkdir()
    rows = pd.DataFrame({image: images, "label": kinds, generator: ["", fake]})
    rows.to_parquet(tmp_path / "hub" / "train.parquet")
    done = CliRunner().invoke(command.app, [name, "--from", str(tmp_path / "hub")])
    assert done.exit_code == 0, done.output
    found = command.manifest.load(name)[["label", "generator", "status"]]
    assert sorted(found.itertuples(index=False, name=None)) == [(0, "real", "ok"), (1, fake, "ok")]


# ---- command line


def test_every_source_has_a_command_and_a_way_to_get_it():
    assert set(SOURCES) == set(paths.HOW_TO_GET) - {"demo", "demo-source"}
    registered = {c.name or c.callback.__name__ for c in command.app.registered_commands}
    assert set(SOURCES) <= registered
    for known in SOURCES.values():
        assert known.licence and known.address.startswith("http")
        assert known.archives or known.by_hand or known.hub
