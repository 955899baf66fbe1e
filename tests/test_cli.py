"""Both command lines as a user meets them: one line for an error, and nothing written."""

import shutil
import sys
from pathlib import Path

import pytest
from made import python

from data_prep import folder
from data_prep.__main__ import app as data_prep_app
from data_prep.errors import command_line
from data_prep.paths import HOW_TO_GET
from dflib.__main__ import app as dflib_app


def everything(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*"))


DOORS = {"dflib": dflib_app, "data_prep": data_prep_app}


@pytest.fixture
def place(tmp_path, data_root, outputs_root, tree, monkeypatch) -> Path:
    """A folder to work in: images, a data root with one prepared dataset "mine", no outputs."""
    monkeypatch.chdir(tmp_path)
    folder.prepare(tree(tmp_path / "images", {"real": 40, "fake/gan": 40}), name="mine")
    return tmp_path


STUDY = ("study", "--preset", "tiny", "--dataset", "mine")
KNOWN = "Get it with: python -m data_prep"
SET = {  # --set: what is said of it
    "epoch=3": "unknown setting 'epoch', did you mean 'epochs'?",
    "epochs": "--set 'epochs': expected KEY=VALUE",
    "epochs=1.5": "setting epochs='1.5': expected a whole number from 0",
    "limit=1": "setting limit='1': expected a whole number from 8",
    "target_images=3": "setting target_images='3': expected a whole number from 8",
    "hold_out=1": "unknown generator '1'",
    "hold_out= , ": "setting hold_out=' , ': expected text: names, commas between",
    "lr=1e308": "setting lr='1e308': expected a number above 0 up to 100",
    f"epochs={'[' * 100_000}": "setting epochs='[[[",
    "[" * 100_000: "--set '[[[",
    "backbone=" + "x" * 90_000: "unknown backbone 'xxx",
    "backbone=timm/nope": "unknown timm network 'nope'",
}
OPTIONS = {  # other options of study: what is said of them
    ("--dataset", "mien"): "unknown dataset 'mien', did you mean 'mine'?",
    ("--dataset", "faces-140k"): f"{KNOWN} faces-140k --from FOLDER",
    ("--preset", "tinny"): "unknown preset 'tinny', did you mean 'tiny'?",
    ("--methods", "BL,CPX"): "unknown method 'CPX', did you mean 'CPF'? Valid: BL, CPF, CPF-S, ",
    ("--protocol", "strickt"): "unknown protocol 'strickt', did you mean 'strict'?",
    ("--methods", "CPF", "--rates", "95"): "rate 95 is outside (0, 1), did you mean 0.95?",
    ("--methods", "CKD", "--rates", "0.99999"): "rate 0.99999 cannot be met",
    ("--rates", "0.6,nine"): "--rates '0.6,nine' is no list of numbers",
    ("--budget", "2"): "--budget '2': expected a number with its unit, e.g. 90s, 30m, 8.5h",
    ("--seeds=-1",): "seed -1: expected a whole number from 0 below 2^32",
    ("--seeds=99999999999999999999",): "seed 99999999999999999999: expected a whole",
    ("--seeds=",): "'--seeds=' is empty: give a value, or leave it out",
    ("--methods=,",): "'--methods=,' is empty",
    ("--preset", " "): "' ' is empty",
    ("--methods", "BL", "--set", "temperature=2"): "unknown setting 'temperature'",
    ("--methods", "CQ-S", "--set", "keep_float=nope"): "unknown layer 'nope'",
    ("--methods", "TL+FT", "--source", "mine"): "source 'mine' is the dataset itself",
    ("--methods", "TL+FT", "--source", "dogs-vs-cats"): f"{KNOWN} dogs-vs-cats --from FOLDER",
    ("--methods", "chain", "--set", "steps=" + "int8," * 50_000): "steps 'int8,int8,int8",
    ("--grid", "n" * 300): "File name too long",
    ("--grid", "n" * 90_000): "File name too long",
    ("--methods", "CPF", "--rates", "1e-13"): "rate 0 is outside (0, 1)",
    ("--methods", "CPF", "--rates", "0.9999999999999"): "rate 1 is outside (0, 1)",
}
OTHERS = {  # other commands
    ("dflib", "study", "--methods", "CPX"): "unknown method 'CPX'",  # no demo data are made for it
    ("dflib", "study", "--preset", "paper"): f"{KNOWN} faces-140k --from FOLDER",
    ("dflib", "predict", "", "--run", "BL"): "'' is empty",
    ("dflib", "predict", "images/real", "--run", "BL-s0"): "unknown run 'BL-s0'; Valid: none yet.",
    ("dflib", "predict", "x.png", "--run", "best"): "unknown run 'best'; Valid: none yet.",
    ("dflib", "predict", "x.png", "--run", "nowhere.onnx"): "nowhere.onnx is not there",
    ("dflib", "predict", "x.png", "--run", "no.safetensors"): "no.safetensors is not there",
    ("dflib", "predict", "n" * 300, "--run", "r" * 9000): "File name too long",
    ("dflib", "results", "--dataset", "mien"): "unknown dataset 'mien', did you mean 'mine'?",
    ("dflib", "results", "--csv", "images/real/real-000.png/x.csv"): "--csv 'images/real/real",
    ("dflib", "results", "--csv", "images/real/real-000.png"): "is there, and no .csv: give",
    ("dflib", "results", "--html", "images/real/real-001.png"): "is there, and no .html: give",
    ("dflib", "results", "--html", "images"): "--html 'images' cannot be written: Is a directory",
    ("dflib", "leak", "mine", "--seeds=0,-1"): "seeds (0, -1): expected whole numbers from 0",
    ("dflib", "adopt", "x.onnx", "--dataset", "mine", "--name", "/x/y"): "'/x/y' cannot be a",
    ("dflib", "adopt", "x.onnx", "--dataset", "mine", "--mean", "a,b,c"): "--mean 'a,b,c' is no",
    ("data_prep", "folder", "images", "--name", "../new"): "'../new' cannot be a dataset's name",
    ("data_prep", "folder", "images", "--name", "n" * 9000): "cannot be a dataset's name",
    ("data_prep", "folder", "images/fake", "--name", "new"): "(there: gan): images have no label",
    ("data_prep", "faces-140k", "--from", "images"): "https://www.kaggle.com/datasets/xhlulu/140k",
}
BAD = [(("dflib", *STUDY, "--set", pair), said) for pair, said in SET.items()]
BAD += [(("dflib", *STUDY, *words), said) for words, said in OPTIONS.items()]


@pytest.mark.parametrize(("words", "message"), [*BAD, *OTHERS.items()])
def test_bad_input_is_one_line_and_nothing_is_written(place, monkeypatch, capsys, words, message):
    before = everything(place)
    monkeypatch.setattr(sys, "argv", [*words])
    with pytest.raises(SystemExit) as ended:
        command_line(DOORS[words[0]])
    out, said = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert said.startswith("error: ") and said.endswith("\n") and said.count("\n") == 1
    assert message in said and len(said) < 5000  # neither a value nor a thousand names whole
    assert everything(place) == before


@pytest.mark.parametrize("module", DOORS)
def test_both_commands_end_so_in_a_process_of_their_own(module):
    done = python("-m", module, "")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: '' is empty: give a value, or leave it out\n"


def test_a_dry_run_prints_the_plan_and_writes_nothing(place):
    before = everything(place)
    grid = ("--methods", "CPF,CKD", "--rates", "0.6,0.9", "--seeds", "0,1")
    done = python("-m", "dflib", *STUDY, *grid, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    # two BL, and three methods (CKD brings CKD-0) x two rates x two seeds
    assert "14 runs" in done.stdout and done.stdout.count("to do") == 14
    for start in ("BL-s0-32px-", "BL-s1-32px-", "CPF-r60-s0-32px-", "CKD-r90-s1-32px-"):
        assert start in done.stdout
    assert everything(place) == before


def test_results_without_runs(place):
    before = everything(place)
    done = python("-m", "dflib", "results")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no finished runs yet: python -m dflib study --preset demo" in done.stdout
    assert everything(place) == before


def test_preparing_a_folder_shows_what_was_found_and_ends_with_the_next_command(place):
    (place / "images" / "real" / "broken.png").write_bytes(b"")
    done = python("-m", "data_prep", "folder", str(place / "images"), "--name", "other")
    assert done.returncode == 0, done.stderr
    assert "81 files: 81 read, 0 unchanged" in done.stderr
    assert "1 file(s) of real quarantined: zero-byte (e.g. real/broken.png)" in done.stderr
    table = [line.replace("│", "").split() for line in done.stdout.splitlines() if "│" in line]
    assert table == [["0", "real", "40", "1"], ["1", "gan", "40", "0"]]
    ends = lambda done: done.stdout.splitlines()[-1].removeprefix("next: python -m dflib ")
    assert ends(done) == "study --preset quick --dataset other"
    shutil.copytree(place / "images" / "real", place / "reals" / "real")
    (place / "reals" / "real" / "broken.png").unlink()
    done = python("-m", "data_prep", "folder", str(place / "reals"), "--name", "reals")
    assert ends(done) == "test --run best --dataset reals"
    listed = python("-m", "data_prep", "list", COLUMNS="200")
    assert listed.returncode == 0, listed.stderr
    words = [line.split("│")[1:4] for line in listed.stdout.splitlines() if "│" in line]
    found = {name.strip(): [w.strip() for w in rest] for name, *rest in words if name.strip()}
    assert set(found) == {"mine", "other", "reals"} | set(HOW_TO_GET)
    assert found["mine"] == ["yes", "80"] and found["demo"][0] == "no"
    assert found["other"] == ["yes", "80"]


HEAVY = "torch pandas pydantic matplotlib onnxruntime distributed papermill"
IMPORTS = {"dflib.__main__, data_prep": HEAVY, "dflib.metrics": "torch matplotlib scipy sklearn"}


@pytest.mark.parametrize(("modules", "heavy"), IMPORTS.items())
def test_importing_is_light(modules, heavy):
    done = python("-c", f"import sys, {modules}; print({set(heavy.split())} & set(sys.modules))")
    assert (done.stdout, done.stderr) == ("set()\n", "")
