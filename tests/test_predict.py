"""Single images through a run or a file: the numbers of the test set; bad ones are said to be."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_plots import result as result_of

from data_prep.errors import InputError, shown
from data_prep.paths import as_text
from dflib.edge.predict import Predictor, files

THRESHOLD = 0.3


@pytest.fixture
def run(exported, outputs_root) -> Path:
    """The folder of a finished run, as far as prediction reads it."""
    place = outputs_root / "tiny-set" / "strict" / "BL" / "BL-s0-32px-0a1b2c3d"
    place.mkdir(parents=True)
    shutil.copy(exported["onnx"], place / "model.onnx")
    shutil.copy(exported["checkpoint"], place / "model.safetensors")
    result = result_of() | {
        "threshold": THRESHOLD,
        "params": {"mode": "center_crop", "size": 32},
        "deployed": "model.onnx",
        "dataset": "tiny-set",
        "classes": ["real", "fake"],
    }
    (place / "result.json").write_text(json.dumps(result))
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


@pytest.mark.parametrize(
    ("contents", "error"),
    [
        (b"", "zero-byte"),
        (b"text", "not an image"),
        (None, "unreadable: No such file or directory"),
    ],
)
def test_a_bad_image_is_an_answer_not_an_exception(exported, tmp_path, contents, error):
    path = tmp_path / "bad.jpg"
    if contents is not None:
        path.write_bytes(contents)
    nothing = {"probability": None, "label": None, "threshold": 0.5}
    assert Predictor(exported["onnx"])(path) == nothing | {"error": error}


def test_what_is_no_run_is_answered_with_the_nearest(run, tmp_path):
    wrong = run.name[:-1] + "e"
    with pytest.raises(InputError, match=f"unknown run '{wrong}', did you mean '{run.name}'"):
        Predictor(wrong)
    with pytest.raises(InputError, match=r"nowhere\.onnx is not there"):
        Predictor(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
def test_a_damaged_model_is_named(run, suffix):
    file = run / f"model.{suffix}"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=rf"model\.{suffix}"):
        Predictor(file)
    if suffix == "onnx":
        with pytest.raises(InputError, match="ONNX Runtime cannot load"):
            Predictor(run.name)


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


def call(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dflib", "predict", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_predicts_the_good_ones_and_reports_the_bad(run, exported, tmp_path, picture):
    good = [picture(tmp_path / "images" / f"{i}.png", seed=i, size=(40, 40)) for i in range(3)]
    (tmp_path / "images" / "3.png").write_bytes(b"")
    done = call(str(tmp_path / "images"), "--run", run.name, "--csv", str(tmp_path / "out.csv"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "zero-byte" in done.stdout
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["path"].tolist() == [str(p) for p in good] + [str(tmp_path / "images" / "3.png")]
    expected = [by_hand(exported["model"], p, "center_crop") for p in good]
    assert table["probability"][:3].tolist() == pytest.approx(expected, abs=1e-5)
    assert table["error"].tolist()[3] == "zero-byte"
    assert table["label"].isna().tolist() == [False] * 3 + [True]


def test_the_command_fails_where_no_image_could_be_read(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    assert call(str(tmp_path / "bad.png"), "--run", run.name).returncode == 1
    (tmp_path / "empty").mkdir()
    done = call(str(tmp_path / "empty"), "--run", run.name, "--csv", str(tmp_path / "out.csv"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_the_command_tells_of_odd_names_whole(exported, tmp_path, picture):
    names = [
        "Icon\r.png",
        "[red].png",
        "[/b].png",
        ":smile:.png",
        "a\nb.png",
        "-x.png",
        "\x1b[2J.png",
    ]
    names += ['q"u,o;te.png', 240 * "x" + ".png", os.fsdecode(b"caf\xe9.png"), "\u202egnp.png"]
    for name in names:
        picture(tmp_path / "images" / name, format="PNG", size=(40, 40))
    table = tmp_path / "out.csv"
    words = [str(tmp_path / "images"), "--run", str(exported["onnx"]), "--csv", str(table)]
    command = [sys.executable, "-m", "dflib", "predict", *words]
    done = subprocess.run(
        command, capture_output=True, check=False
    )  # as bytes: no line ends change
    told = done.stdout.decode()
    assert done.returncode == 0 and len(told.splitlines()) == 2 + len(names)
    assert all(shown(as_text(name)) in told for name in names)
    assert all(c.isprintable() for line in told.split("\n") for c in line)
    with table.open(newline="", encoding="utf-8") as file:
        read = [row["path"] for row in csv.DictReader(file)]
    assert sorted(read) == sorted(f"{tmp_path}/images/{as_text(name)}" for name in names)
