"""What the machine has, and a study that is stopped where it would run badly without a word."""

import os
import sys

import numpy as np
import pytest
import torch
from made import python
from typer.testing import CliRunner

from data_prep.errors import InputError
from dflib.__main__ import app
from dflib.study import doctor

T4 = "Tesla T4, 15360 MiB, 470.82.01"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """driver(text): an nvidia-smi that answers so, first on the path."""

    def install(text: str, status: int = 0) -> None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def test_one_row_for_each_thing_and_this_machine_is_fit():
    rows = {row["check"]: row for row in doctor.examine()}
    assert not [row for row in rows.values() if row["state"] == doctor.FAULT]
    assert rows["torch"]["found"] == torch.__version__.split("+")[0]
    assert sys.executable in rows["kernel"]["found"]
    assert all(set(row) == {"check", "found", "state", "to do"} for row in rows.values())


def test_the_command_prints_the_page_and_exits_by_it(tmp_path, monkeypatch):
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0 and "free memory" in done.output
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "file" / "outputs"))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1 and "$DFLIB_OUTPUTS" in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch that sees no card")
@pytest.mark.parametrize("command", [["study", "--preset", "tiny"], ["doctor"]])
def test_a_card_that_torch_cannot_use_stops_a_study(driver, tmp_path, command, monkeypatch):
    driver(T4)
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "outputs"))
    done = python("-m", "dflib", *command, COLUMNS="1000")
    said = done.stdout + done.stderr
    assert done.returncode == (2 if command[0] == "study" else 1)
    for part in ("Tesla T4", "470.82.01", torch.__version__, "--device cpu"):
        assert part in said
    assert not list(tmp_path.glob("outputs/*/*"))


@pytest.mark.parametrize("wish", ["", "-1"])
def test_a_wish_for_the_cpu_overrules(driver, monkeypatch, wish):
    driver(T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wish)
    doctor.need_machine()


@pytest.mark.parametrize(("text", "status"), [("NVIDIA-SMI has failed", 9), ("", 0)])
def test_a_tool_without_a_card_is_no_card(driver, text, status):
    driver(text, status)
    if not torch.cuda.is_available():
        assert doctor.idle_gpu() is None


@pytest.mark.parametrize(
    ("card", "built", "runs"),
    [
        ((6, 0), ["sm_75", "sm_80"], False),  # P100
        ((7, 5), ["sm_75", "sm_80"], True),  # T4
        ((8, 9), ["sm_80", "sm_86"], True),  # the same major number
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["compute_80"], True),  # compiled for the card when it is used
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_100", "sm_120"], True),
    ],
)
def test_kernels_of_a_build_and_cards(card, built, runs):
    assert doctor._has_kernels(*card, built) == runs


def test_another_version_than_the_loaded_one_asks_for_a_restart(monkeypatch):
    monkeypatch.setattr(np, "__version__", "1.0.0")
    rows = {row["check"]: row for row in doctor.examine()}
    assert rows["numpy in this process"]["to do"] == "restart the kernel"


def test_windows_says_so_at_the_start(monkeypatch):
    monkeypatch.setattr(doctor.platform, "system", lambda: "Windows")
    with pytest.raises(InputError, match="use WSL"):
        doctor.need_machine()
    doctor.need_machine(batch=False)
