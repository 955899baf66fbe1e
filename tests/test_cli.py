"""Both command lines as a user meets them: real processes, exit status, one line for an error, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import folder
from data_prep.paths import HOW_TO_GET


def call(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=120,
    )


def everything(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*"))


def refused(*words: str) -> str:
    """The one line on stderr of a command that must refuse (exit status 2), without its "error: "."""
    done = call(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.strip() == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def place(tmp_path, data_root, outputs_root, tree, monkeypatch) -> Path:
    """A folder with images and, for roots, a data root with one prepared dataset "mine" and no outputs; the process works in it."""
    monkeypatch.chdir(tmp_path)
    folder.prepare(tree(tmp_path / "images", {"real": 40, "fake/gan": 40}), name="mine")
    return tmp_path


STUDY = ("dflib", "study", "--preset", "tiny", "--dataset", "mine")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("dflib", "study", "--preset", "tiny", "--dataset", "mien"),
            "unknown dataset 'mien', did you mean 'mine'?",
        ),
        (
            ("dflib", "study", "--dataset", "faces-140k"),
            "Get it with: python -m data_prep faces-140k --from FOLDER",
        ),
        (
            ("dflib", "study", "--preset", "paper"),
            "Get it with: python -m data_prep faces-140k --from FOLDER",
        ),
        (
            ("dflib", "study", "--preset", "tinny", "--dataset", "mine"),
            "unknown preset 'tinny', did you mean 'tiny'?",
        ),
        (
            (*STUDY, "--methods", "BL,CPX"),
            "unknown method 'CPX', did you mean 'CPF'? Valid: BL, CPF, CPF-S, ",
        ),
        ((*STUDY, "--protocol", "strickt"), "unknown protocol 'strickt', did you mean 'strict'?"),
        (
            (*STUDY, "--methods", "CPF", "--rates", "95"),
            "rate 95 is outside (0, 1), did you mean 0.95?",
        ),
        ((*STUDY, "--methods", "CPF", "--rates", "0.6,nine"), "'0.6,nine' is not a list of floats"),
        ((*STUDY, "--seeds", "0,1.5"), "'0,1.5' is not a list of ints"),
        ((*STUDY, "--set", "epoch=3"), "unknown setting 'epoch', did you mean 'epochs'?"),
        ((*STUDY, "--set", "epochs"), "--set 'epochs': expected KEY=VALUE"),
        ((*STUDY, "--set", "epochs=1.5"), "setting epochs='1.5': expected a whole number from 1"),
        ((*STUDY, "--set", "lr=fast"), "setting lr='fast': expected a number above 0"),
        ((*STUDY, "--methods", "BL", "--set", "temperature=2"), "unknown setting 'temperature'"),
        ((*STUDY, "--set", "size=33"), "a whole number from 32 in multiples of 32 up to 2048"),
        ((*STUDY, "--set", "mode=crop"), "unknown mode 'crop'"),
        ((*STUDY, "--methods", "CPF", "--set", "scope=all"), "unknown scope 'all'"),
        (
            (*STUDY, "--timeout", "2"),
            "--timeout '2': expected a number with its unit, e.g. 90s, 30m, 8.5h",
        ),
        ((*STUDY, "--seeds=-1"), "seed -1: expected a whole number from 0 below 2^32"),
        ((*STUDY, "--seeds=99999999999999999999"), "seed 99999999999999999999: expected a whole"),
        ((*STUDY, "--seeds="), "--seeds '' is empty: leave it out"),
        ((*STUDY, "--methods=,"), "--methods ',' is empty: leave it out"),
        ((*STUDY, "--rates="), "--rates '' is empty"),
        ((*STUDY, "--dataset="), "--dataset '' is empty"),
        ((*STUDY, "--protocol="), "--protocol is empty"),
        ((*STUDY, "--preset", " "), "--preset is empty"),
        ((*STUDY, "--set", "limit=1"), "setting limit='1': expected a whole number from 8"),
        (
            (*STUDY, "--methods", "CQ-S", "--set", "calibration_images=1"),
            "expected a whole number from 16 up to 4096",
        ),
        ((*STUDY, "--methods", "CQ-S", "--set", "keep_float=nope"), "unknown layer 'nope'"),
        (
            (*STUDY, "--methods", "CQ-S", "--set", "target_images=3"),
            "setting target_images=3: CQ-S calibrates on 8 training images of each class or more",
        ),
        ((*STUDY, "--set", "hold_out=1"), "unknown generator '1'"),
        ((*STUDY, "--set", f"epochs={'[' * 100_000}"), "setting epochs='[[["),
        ((*STUDY, "--set", "[" * 100_000), "--set '[[["),
        (("dflib", "predict", "", "--run", "BL"), "an empty name; give images or folders"),
        (("dflib", "predict", "x.png", "--run", ""), "--run is empty"),
        (("dflib", "results", "--dataset="), "--dataset is empty"),
        (
            ("dflib", "results", "--csv", "images/real/real-000.png/x.csv"),
            "--csv 'images/real/real",
        ),
        (("dflib", "results", "--html", "images"), "--html 'images' cannot be written"),
        (("dflib", "results", "--csv", "n" * 300), "cannot be written: File name too long"),
        (("dflib", "predict", "n" * 300, "--run", "r" * 300), "File name too long"),
        ((*STUDY, "--grid", "n" * 300), "File name too long"),
        ((*STUDY, "--set", "ema=1"), "setting ema='1': expected a number from 0 below 1"),
        ((*STUDY, "--methods", "TL+FT", "--source", "mine"), "source 'mine' is the dataset itself"),
        (
            (*STUDY, "--methods", "TL+FT", "--source", "mien"),
            "unknown dataset 'mien', did you mean 'mine'?",
        ),
        (
            (*STUDY, "--methods", "TL+FT", "--source", "dogs-vs-cats"),
            "Get it with: python -m data_prep dogs-vs-cats --from FOLDER",
        ),
        (
            ("dflib", "study", "--methods", "CPX"),
            "unknown method 'CPX'",
        ),  # the demo data are not made for it
        (("dflib", "study", "--set", "epoch=3"), "unknown setting 'epoch'"),
        (("dflib", "results", "--dataset", "mien"), "unknown dataset 'mien', did you mean 'mine'?"),
        (
            ("dflib", "predict", "images/real", "--run", "BL-s0"),
            "unknown run 'BL-s0'; Valid: none yet.",
        ),
        (
            ("dflib", "predict", "x.png", "--run", "nowhere.onnx"),
            "model file nowhere.onnx is not there",
        ),
        (
            ("dflib", "predict", "x.png", "--run", "nowhere.safetensors"),
            "checkpoint nowhere.safetensors is not there",
        ),
        (("data_prep", "folder", "nowhere", "--name", "new"), "nowhere is not a folder"),
        (
            ("data_prep", "folder", "images", "--name", "../new"),
            "'../new' cannot be a dataset's name",
        ),
        (
            ("data_prep", "folder", "images/fake", "--name", "new"),
            "(there: gan): images have no label",
        ),
        (
            ("data_prep", "faces-140k", "--from", "images"),
            "https://www.kaggle.com/datasets/xhlulu/140k-real-and-fake-faces",
        ),
        (
            ("data_prep", "dogs-vs-cats", "--from", "images"),
            "python -m data_prep dogs-vs-cats --from FOLDER",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(place, words, message):
    before = everything(place)
    assert message in refused(*words)
    assert everything(place) == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(place):
    before = everything(place)
    done = call(*STUDY, "--methods", "CPF,CKD", "--rates", "0.6,0.9", "--seeds", "0,1", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "14 runs" in done.stdout
    )  # two BL, and three methods (CKD brings CKD-0) x two rates x two seeds
    assert done.stdout.count("to do") == 14
    for start in ("BL-s0-32px-", "BL-s1-32px-", "CPF-r60-s0-32px-", "CKD-r90-s1-32px-"):
        assert start in done.stdout
    assert everything(place) == before


def test_results_without_runs(place):
    before = everything(place)
    done = call("dflib", "results")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no finished runs yet: python -m dflib study --preset demo" in done.stdout
    assert everything(place) == before


def test_preparing_a_folder_shows_what_was_found(place):
    (place / "images" / "real" / "broken.png").write_bytes(b"")
    done = call("data_prep", "folder", str(place / "images"), "--name", "other")
    assert done.returncode == 0, done.stderr
    assert "81 files: 81 read, 0 unchanged" in done.stderr
    assert "1 file(s) of real quarantined: zero-byte (e.g. real/broken.png)" in done.stderr
    table = [line.split("│")[1:-1] for line in done.stdout.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in table] == [
        ["0", "real", "40", "1"],
        ["1", "gan", "40", "0"],
    ]
    listed = call("data_prep", "list", COLUMNS="200")
    assert listed.returncode == 0, listed.stderr
    words = [line.split("│")[1:4] for line in listed.stdout.splitlines() if "│" in line]
    found = {
        name.strip(): (here.strip(), images.strip()) for name, here, images in words if name.strip()
    }
    assert set(found) == {"mine", "other"} | set(HOW_TO_GET)
    assert found["mine"] == ("yes", "real: 40 (none given)") and found["demo"][0] == "no"
    assert found["other"] == (
        "yes",
        "real: 40 (none given), 1",
    )  # and, on the next line, quarantined


def test_importing_is_light():
    code = "import sys, dflib, data_prep, dflib.__main__; heavy = {'torch', 'pandas', 'pydantic', 'matplotlib', 'onnxruntime', 'distributed', 'papermill'}; sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_the_commands():
    for module, commands in (
        ("dflib", ("study", "results", "predict")),
        ("data_prep", ("demo", "folder", "faces-140k", "dogs-vs-cats", "list")),
    ):
        done = call(module, "--help")
        assert done.returncode == 0
        assert all(command in done.stdout for command in commands)
