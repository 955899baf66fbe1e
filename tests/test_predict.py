"""Single images through a run or a file: the numbers of the test set; bad ones are said to be."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click import Option
from made import python, result, store
from PIL import Image
from typer.testing import CliRunner

from data_prep.errors import InputError, shown
from data_prep.paths import as_text
from dflib.__main__ import _writable, app
from dflib.edge.predict import Predictor, files
from dflib.show import terminal

THRESHOLD = 0.3


@pytest.fixture
def run(exported, outputs_root) -> Path:
    """The folder of a finished run, as far as prediction reads it."""
    about = {"threshold": THRESHOLD, "params": {"mode": "center_crop", "size": 32}}
    about |= {"deployed": "model.onnx", "classes": ["real", "fake"], "run_id": "BL-s0-32px-0a1b"}
    place = store(outputs_root, result() | about)
    shutil.copy(exported["onnx"], place / "model.onnx")
    shutil.copy(exported["checkpoint"], place / "model.safetensors")
    return place


def by_hand(model, path: Path, mode: str) -> float:
    image = Image.open(path).convert("RGB")
    if mode == "resize":
        pixels = np.array(image.resize((32, 32), Image.Resampling.BICUBIC))
    else:
        top, left = (image.height - 32) // 2, (image.width - 32) // 2
        pixels = np.array(image)[top : top + 32, left : left + 32]
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    return logits.double().softmax(1)[0, 1].item()


def test_one_image_by_run_by_folder_and_by_file(run, exported, tmp_path, picture):
    path = picture(tmp_path / "photo.png", seed=5, size=(50, 40))
    asked = [(name, "center_crop", THRESHOLD) for name in (run.name, str(run))]
    asked += [(exported[kind], "resize", 0.5) for kind in ("onnx", "checkpoint")]
    for name, mode, threshold in asked:
        answer, expected = Predictor(name)(path), by_hand(exported["model"], path, mode)
        assert answer["probability"] == pytest.approx(expected, abs=1e-5)
        label = "fake" if answer["probability"] >= threshold else "real"
        assert answer == answer | {"threshold": threshold, "label": label, "error": None}


def test_files_are_those_named_and_those_in_folders(tmp_path, picture):
    named = picture(tmp_path / "one.png")
    inside = [picture(tmp_path / "many" / name) for name in ("a.png", "deep/b.png")]
    (tmp_path / "many" / ".hidden").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert list(files([named, tmp_path / "many"])) == [named, *inside]
    with pytest.raises(InputError, match=r"gone\.png is not there"):
        list(files([named, tmp_path / "gone.png"]))
    with pytest.raises(InputError, match="empty holds no files"):
        list(files([tmp_path / "empty"]))


def test_the_command_predicts_the_good_ones_and_reports_the_bad(run, exported, tmp_path, picture):
    good = [picture(tmp_path / "images" / f"{i}.png", seed=i, size=(40, 40)) for i in range(3)]
    (tmp_path / "images" / "3.png").write_bytes(b"")
    words = ("predict", tmp_path / "images", "--run", run.name, "--csv", tmp_path / "out.csv")
    done = python("-m", "dflib", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "zero-byte" in done.stdout
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["path"].tolist() == [str(p) for p in good] + [str(tmp_path / "images" / "3.png")]
    expected = [by_hand(exported["model"], p, "center_crop") for p in good]
    assert table["probability"][:3].tolist() == pytest.approx(expected, abs=1e-5)
    assert table["error"].tolist()[3] == "zero-byte"
    assert table["label"].isna().tolist() == [False] * 3 + [True]


def test_all_that_is_named_is_there_before_any_of_it_is_scored(
    exported, tmp_path, picture, monkeypatch
):
    scored, call = [], Predictor.__call__
    counted = lambda self, image: scored.append(image) or call(self, image)
    monkeypatch.setattr(Predictor, "__call__", counted)
    words = ["predict", str(picture(tmp_path / "a.png")), str(tmp_path / "b.png")]
    words += ["--run", str(exported["onnx"])]
    with pytest.raises(InputError, match=r"b\.png is not there"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not scored
    assert CliRunner().invoke(app, [words[0], words[1], *words[3:]]).exit_code == 0 and scored


def test_a_table_that_cannot_be_written_whole_leaves_the_old_one(tmp_path):
    table = tmp_path / "table.csv"
    terminal.save(pd.DataFrame({"a": range(5000)}), table)
    before, link = table.read_bytes(), tmp_path / "link.csv"
    link.symlink_to(table)
    odd = pd.DataFrame({"a": [*range(5000), "\udce9"]})  # which UTF-8 has not
    for file in (table, link):
        with pytest.raises(UnicodeEncodeError):
            terminal.save(odd, file)
        assert table.read_bytes() == before
    assert {*tmp_path.iterdir()} == {table, link} and link.is_symlink()
    terminal.save(pd.DataFrame({"a": [1]}), link)
    assert link.is_symlink() and table.read_bytes() == b"a\r\n1\r\n"
    reading, writing = os.pipe()
    terminal.save(pd.DataFrame({"a": [1]}), Path(f"/dev/fd/{writing}"))
    assert os.read(reading, 99) == b"a\r\n1\r\n"
    os.close(reading), os.close(writing)


def test_a_link_that_leads_nowhere_stays_as_it_is(tmp_path):
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "not-yet.csv")
    assert _writable(Option(["--csv"]), link) == link
    assert link.is_symlink() and not link.exists()


def test_the_command_tells_of_odd_names_whole(exported, tmp_path, picture):
    names = ["Icon\r.png", "[red].png", "[/b].png", ":smile:.png", "a\nb.png", "-x.png"]
    names += ["\x1b[2J.png", 'q"u,o;te.png', 240 * "x" + ".png", "\u202egnp.png"]
    names += [os.fsdecode(b"caf\xe9.png")]
    for name in names:
        picture(tmp_path / "images" / name, format="PNG", size=(40, 40))
    table = tmp_path / "out.csv"
    words = ["predict", tmp_path / "images", "--run", exported["onnx"], "--csv", table]
    done = python("-m", "dflib", *words, text=False)  # as bytes: no line ends change
    told = done.stdout.decode()
    assert done.returncode == 0 and len(told.splitlines()) == 2 + len(names)
    assert all(shown(as_text(name)) in told for name in names)
    assert all(c.isprintable() for line in told.split("\n") for c in line)
    with table.open(newline="", encoding="utf-8") as file:
        read = [row["path"] for row in csv.DictReader(file)]
    assert sorted(read) == sorted(f"{tmp_path}/images/{as_text(name)}" for name in names)
