"""The gallery's records of real photographs: readable today, of no machine, as its page says."""

import json
import re
import tarfile
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from data_prep.paths import PROJECT
from dflib.study import compare, methods, tables

GALLERY = PROJECT / "outputs" / "gallery" / "real-faces"


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("real")
    for part in sorted(GALLERY.glob("records-*.tar.xz")):
        with tarfile.open(part) as archive:
            archive.extractall(root, filter="data")
    return root / "outputs"


@pytest.fixture
def faces(records, monkeypatch) -> dict[str, dict]:
    monkeypatch.setenv("DFLIB_OUTPUTS", str(records))
    return compare.load("faces", source="dogs-vs-cats")


def test_every_record_is_one_of_this_version_and_names_no_machine(records, faces):
    kept = {path.name for path in records.rglob("*") if path.is_file()}
    assert kept == {"result.json", "predictions.parquet", "validation.parquet"}
    texts = {path: path.read_text() for path in records.glob("faces/*/*/*/result.json")}
    assert len(texts) == len(faces) > 200
    for path, text in texts.items():
        assert not any(place in text for place in ("/root", "/home", "/tmp", "/work", "/var")), path


def test_the_pages_parameters_find_the_records(faces):
    page = (GALLERY / "README.md").read_text()
    preset, dataset = re.search(r'preset = "(\w+)", dataset = "(\w+)"', page).groups()
    settings = json.loads(re.search(r"settings = (\{.+?\})", page)[1])
    assert f"study --preset {preset} --dataset {dataset}" in page
    found = tables.matching(faces.values(), methods.settings(preset, settings))
    assert len(found) > 60  # methods, rates and seeds of the plain recipe
    assert {r["dataset"] for r in found} == {dataset}


def told(row: dict, name: str) -> str:
    ends = [row[f"{name}_{end}"] for end in ("low", "high")]
    return compare.spoken({"mean": row[name], "ci95": ends})


@pytest.mark.parametrize("method", ["CPF-S", "CKD", "CPKDQ"])
def test_the_pages_tables_are_those_of_the_records(faces, method):
    group = [r for r in faces.values() if (r["method"], r["rate"]) == (method, 0.9)]
    group = [r for r in group if r["params"]["size"] == 64]
    group = [r for r in group if not r["params"].get("target_images")]
    plain = [r for r in group if compare.recipe(r["params"]) == "plain"]
    (row,) = tables.over_seeds(plain, faces).to_dict("records")
    page, front = (GALLERY / "README.md").read_text(), (PROJECT / "README.md").read_text()
    difference = told(row, "all/auroc-BL")
    value, low, high = (row[f"all/auroc{end}"] for end in ("", "_low", "_high"))
    assert f"| {value:.3f} [{low:.3f}, {high:.3f}] | {difference} |" in page
    assert f"| {difference} |" in front
    for name in ("front srm", "ema 0.99, front srm"):
        other = [r for r in group if compare.recipe(r["params"]) == name]
        (gap,) = tables.gaps(plain + other).query("recipe != 'plain'").to_dict("records")
        assert told(gap, "gap-plain") in page
    if method == "CKD":  # the one that is told in front
        assert gap["gap-plain_high"] < 0 and told(gap, "gap-plain") in front


BOOKS = sorted((PROJECT / "notebooks").glob("[0-9]*.ipynb"))[1:]  # 00 draws nothing


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_each_notebook_has_a_key_figure(path):
    cells = nbformat.read(path, as_version=4).cells
    assert sum("key" in cell.metadata.get("tags", ()) for cell in cells) == 1
    gallery = GALLERY.parent
    with Image.open(gallery / "notebooks" / f"{path.stem}.png") as picture:
        assert picture.width > 200
    assert f"notebooks/{path.stem}.png" in (gallery / "README.md").read_text()
