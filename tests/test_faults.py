"""What breaks while a study runs: the finished runs stand, and the same study makes the rest."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from made import python
from test_study import command, kernels_below, tiny, wait_for

from dflib.study import engine, forks, runs

CODES = ("BL", "CQ")
SAME = ("accuracy", "f1", "recall", "tnr", "ap", "auroc", "eer", "ece", "brier", "threshold")
SAME += ("params", "nonzero")


@pytest.fixture(scope="module")
def undisturbed(tiny_dataset, tmp_path_factory) -> Path:
    """The outputs of a study of BL and CQ that nothing disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(root))
        assert {engine.execute(s)["status"] for s in tiny(tiny_dataset, *CODES)} == {"done"}
    return root


@pytest.fixture
def outputs(undisturbed, tmp_path, monkeypatch) -> Path:
    """Outputs in which CQ is still to be made."""
    root = tmp_path / "outputs"
    shutil.copytree(undisturbed, root, ignore=shutil.ignore_patterns("CQ", "report.html"))
    monkeypatch.setenv("DFLIB_OUTPUTS", str(root))
    return root


@pytest.fixture
def disk(outputs, tmp_path, monkeypatch) -> Iterator[Path]:
    """The same outputs on a disk of which 2 MB are free; skips where no mount is allowed."""
    used = sum(p.stat().st_size for p in outputs.rglob("*") if p.is_file())
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={used + 2_000_000}", "tmpfs", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount needs root: {done.stderr.strip()}")
    shutil.copytree(outputs, place, dirs_exist_ok=True)
    monkeypatch.setenv("DFLIB_OUTPUTS", str(place))
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def table(root: Path) -> pd.DataFrame:
    """The metrics of all finished runs below an outputs root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(root))
        return runs.results().set_index("run_id")[list(SAME)]


def stamps(root: Path) -> dict[str, int]:
    """When each file of the baseline was last written, where it is finished."""
    finished = [p.parent for p in root.glob("*/*/BL/*/result.json")]
    files = [p for folder in finished for p in folder.iterdir() if p.name != "lock"]
    return {p.name: p.stat().st_mtime_ns for p in files}


def completes(name: str, outputs: Path, undisturbed: Path, **options) -> None:
    """The same study makes the rest, and ends like the one that nothing disturbed."""
    before = stamps(outputs)
    assert {engine.execute(s, **options)["status"] for s in tiny(name, *CODES)} == {"done"}
    assert stamps(outputs).items() >= before.items()
    pd.testing.assert_frame_equal(table(outputs), table(undisturbed), check_exact=True)
    assert not [
        p for p in outputs.rglob("*") if p.suffix in (".new", ".pt") or p.name == "failed.json"
    ]


def study(name: str) -> subprocess.Popen:
    """The command, at work."""
    words = [sys.executable, *command(name, "--methods", "BL,CQ")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(words, text=True, **streams)


def running(s: runs.Spec) -> bool:
    """Whether the run's notebook has come to its first cell."""
    book = s.folder / "notebook.new.ipynb"
    return book.exists() and '"running"' in book.read_text()


def broken(
    s: runs.Spec, strike: Callable[[psutil.Process], None], *, when=lambda: True, **options
) -> dict:
    """The outcome of a run whose kernel is struck once it is there and `when()` is true."""
    outcome: dict = {}
    worker = threading.Thread(target=lambda: outcome.update(engine.execute(s, **options)))
    worker.start()
    (kernel,) = wait_for(lambda: kernels_below(os.getpid()), 900)
    wait_for(when, 900)
    strike(kernel)
    worker.join(600)
    assert outcome["status"] in ("failed", "left") and not s.finished()
    return outcome


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux")


@pytest.mark.parametrize("struck", ["kernel", pytest.param("server", marks=LINUX)])
def test_a_killed_kernel_or_server_of_kernels(tiny_dataset, undisturbed, outputs, struck):
    s = tiny(tiny_dataset, *CODES)[-1]
    kill = lambda kernel: (kernel if struck == "kernel" else kernel.parent()).kill()
    with forks.server() if struck == "server" else nullcontext():
        outcome = broken(s, kill, when=lambda: running(s))
        assert s.failure()["kind"] == "died", outcome
        assert struck == "server" or "killed" in outcome["error"]
        completes(tiny_dataset, outputs, undisturbed)
    assert not kernels_below(os.getpid())


def test_a_notebook_that_hangs_is_stopped_at_the_end_of_the_budget(tiny_dataset, outputs):
    s = tiny(tiny_dataset, *CODES)[-1]
    outcome = broken(s, psutil.Process.suspend, when=lambda: running(s), budget=12)
    assert outcome["status"] == "left" and s.failure() is None
    assert not kernels_below(os.getpid())


def test_two_studies_at_once_on_the_same_outputs(tiny_dataset, undisturbed, outputs):
    both = [study(tiny_dataset) for _ in range(2)]
    said = [study_.communicate(timeout=900)[0] for study_ in both]
    assert [study_.returncode for study_ in both] == [0, 0], said
    assert all("2 of 2 done" in text for text in said)
    completes(tiny_dataset, outputs, undisturbed)


def test_times_are_those_of_all_sessions(tiny_dataset, outputs, monkeypatch):
    request = {"preset": "tiny", "dataset": tiny_dataset, "methods_": ("CPF-S",), "rates": (0.9,)}
    s = engine.plan(**request, settings={"finetune_epochs": 20, "step_epochs": 2})[-1]
    broken(s, psutil.Process.kill, when=lambda: (s.folder / "checkpoint.pt").exists())
    before = json.loads((s.folder / "unfinished.json").read_text())
    assert before["total"][0] > sum(step[1] for step in before["made"].values()) > 0
    pruned = (s.folder / "pruned.safetensors").stat().st_mtime_ns
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert engine.execute(s)["status"] == "done"
    result = runs.read(s.folder)
    assert (s.folder / "pruned.safetensors").stat().st_mtime_ns == pruned
    histories = pd.concat(map(pd.read_csv, s.folder.glob("history*.csv")))
    trained = histories["seconds"].sum()
    assert len(histories) == 20 + 2 * 2  # of both sessions
    times, of_pruning = result["timings"], before["made"]["pruned.safetensors"]
    assert times["compress_s"] == pytest.approx(trained + of_pruning[1])
    earlier = sum(step[2] for step in before["made"].values())
    assert times["compress_cpu_s"] > earlier > of_pruning[2] > 0
    assert times["total_s"] > before["total"][0] + 1 and times["total_s"] > times["compress_s"]
    assert result["threads"] == [1, 2] and not (s.folder / "unfinished.json").exists()
    row = runs.results().query("method == 'CPF-S'")
    assert row["threads"].tolist() == ["1 and 2"]


@pytest.mark.parametrize("name", ["result.json", "model.safetensors"])
@pytest.mark.parametrize("contents", [b"", b"{", None], ids=["empty", "damaged", "a folder"])
def test_a_damaged_parent_is_made_again_by_the_same_command(
    tiny_dataset, undisturbed, outputs, name, contents
):
    """Also with what else it left damaged: the checkpoint of an attempt that was cut."""
    baseline, s = tiny(tiny_dataset, *CODES)
    file, folder = baseline.folder / name, baseline.folder
    file.unlink()
    file.mkdir() if contents is None else file.write_bytes(contents)
    (folder / "checkpoint.pt").write_bytes(b"PK cut")
    assert not baseline.finished()
    if contents == b"":
        assert {engine.execute(each)["status"] for each in (baseline, s)} == {"done"}
        pd.testing.assert_frame_equal(table(outputs), table(undisturbed), check_exact=True)


def test_an_error_behind_the_result_is_no_failure(tiny_dataset, outputs, monkeypatch, tmp_path):
    books = Path(shutil.copytree(runs.NOTEBOOKS, tmp_path / "notebooks"))
    book = nbformat.read(books / "05_quantize.ipynb", 4)
    book.cells.append(nbformat.v4.new_code_cell("raise ValueError('late')"))
    nbformat.write(book, books / "05_quantize.ipynb")
    monkeypatch.setattr(runs, "NOTEBOOKS", books)
    s = tiny(tiny_dataset, *CODES)[-1]
    (s.folder).mkdir(parents=True)
    (s.folder / "notebook.ipynb").write_text("of an earlier attempt")
    made = engine.execute(s)
    assert made["status"] == "done" and "ValueError: late" in made["error"]
    assert s.finished() and s.failure() is None
    assert "late" in (s.folder / "notebook.ipynb").read_text()


def test_a_full_disk(tiny_dataset, undisturbed, outputs, disk):
    full = python(*command(tiny_dataset, "--methods", "BL,CQ"))
    assert full.returncode == 1 and full.stderr == ""
    assert "No space left on device" in full.stdout
    assert table(disk).index.tolist() == table(outputs).index.tolist()
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
    completes(tiny_dataset, disk, undisturbed)


def test_a_killed_worker_takes_its_kernel_with_it_and_the_run_is_made_elsewhere(
    tiny_dataset, undisturbed, outputs, request
):
    driver = study(tiny_dataset)
    request.addfinalizer(driver.kill)
    (kernel,) = wait_for(lambda: kernels_below(driver.pid), 900)

    wait_for(lambda: running(tiny(tiny_dataset, *CODES)[-1]), 900)
    held = str(tiny(tiny_dataset, *CODES)[-1].folder / "lock")
    below = psutil.Process(driver.pid).children(recursive=True)
    (worker,) = [p for p in below if held in [file.path for file in p.open_files()]]
    kernel.suspend()  # it cannot look for itself whether its parent is there
    worker.kill()
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, 10)
    said, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, said
    completes(tiny_dataset, outputs, undisturbed)


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs two users")
def test_the_server_of_kernels_answers_its_own_user_alone(tmp_path, monkeypatch):
    """Also while another of its clients says nothing; and leaves nothing behind."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    told = {}
    with forks.server(), socket.socket(socket.AF_UNIX) as silent:
        silent.connect("\0" + os.environ[forks.SERVER])
        for half in (b"", b"[["):  # gone before it has asked
            with socket.socket(socket.AF_UNIX) as asker:
                asker.connect("\0" + os.environ[forks.SERVER])
                asker.sendall(half)
        for user in (65534, 0):
            with socket.socket(socket.AF_UNIX) as asker:
                os.seteuid(user)
                try:
                    asker.connect("\0" + os.environ[forks.SERVER])
                finally:
                    os.seteuid(0)
                with suppress(ConnectionError):
                    asker.sendall(b'[[], "/dev/null", {}, "/"]\n')
                    told[user] = int(asker.makefile().readline() or 0)
    assert told[0] > 0 == told.get(65534, 0)
    assert not [*tmp_path.glob("torchinductor*"), *tmp_path.glob("dflib*")]
