"""The engine with its real parts, and when each of them breaks."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from filelock import FileLock
from made import python

from data_prep.errors import InputError
from data_prep.manifest import cores
from dflib.study import engine, methods, runs
from dflib.study.runs import spec


def tiny(name: str, *methods: str, **settings) -> engine.Plan:
    return engine.plan(preset="tiny", dataset=name, methods_=methods, settings=settings)


def command(name: str, *more: str) -> tuple[str, ...]:
    return ("-m", "dflib", "study", "--preset", "tiny", "--dataset", name, *more)


def wait_for(condition, seconds: float = 120):
    """What `condition` returns once it is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {seconds} s in vain")


def kernels_below(pid: int) -> list[psutil.Process]:
    """Kernel processes started by a process or its children."""
    found = []
    for p in psutil.Process(pid).children(recursive=True):
        try:
            forked = all("f.serve(" in q.cmdline()[-1] for q in (p, p.parent()))
            if forked or "ipykernel_launcher" in " ".join(p.cmdline()):
                found.append(p)
        except psutil.NoSuchProcess:
            continue
    return found


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_plan_makes_the_source_first_and_once(tiny_dataset, tiny_source):
    codes, data = ("TL+KD+A", "TL+P+A", "TL+FT+Q"), {"dataset": tiny_dataset, "source": tiny_source}
    plan = engine.plan(preset="tiny", **data, methods_=codes, rates=(0.6, 0.9))
    told = lambda s: (s.method, s.rate, s.dataset == tiny_source)
    found = {told(s): [told(parent) for parent in s.parents] for s in plan}
    there, tuned = ("BL", None, True), ("TL+FT", None, False)
    expected = {there: [], tuned: [there], ("TL+FT+Q", None, False): [tuned]}
    for rate in (0.6, 0.9):
        pruned = ("CPF", rate, True)
        taught, pruned_tuned = ("TL+KD", rate, False), ("TL+P+FT", rate, False)
        expected |= {pruned: [there], pruned_tuned: [pruned], taught: [there, tuned]}
        expected |= {("TL+P+A", rate, False): [pruned_tuned], ("TL+KD+A", rate, False): [taught]}
    assert found == expected and len(plan) == len(found)
    ids = [s.run_id for s in plan]
    assert all(ids.index(p.run_id) < ids.index(s.run_id) for s in plan for p in s.parents)
    assert {s.source for s in plan if s.method.startswith("TL")} == {tiny_source}


def test_a_setting_of_any_ancestor_is_taken(tiny_dataset, tiny_source):
    request = {"preset": "tiny", "dataset": tiny_dataset, "source": tiny_source}
    request |= {"methods_": ("TL+P+A",)}
    plain, other = (engine.plan(**request, settings=s) for s in ({}, {"scope": "global"}))
    assert plain[-1].run_id != other[-1].run_id  # CPF's, on the source
    with pytest.raises(InputError, match="unknown setting 'alpha'"):
        engine.plan(**request, settings={"alpha": 0.5})


@pytest.mark.parametrize("sign", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_an_interrupted_study_leaves_nothing_and_says_how_it_goes_on(
    tiny_dataset, outputs_root, tmp_path, sign
):
    """In a temporary folder with a path too long for sockets; "python3" is another kernel."""
    place = tmp_path / ("t" * 100)
    spec_ = tmp_path / "jupyter" / "kernels" / "python3"
    spec_.mkdir(parents=True), place.mkdir()
    broken = {"argv": ["/nowhere/python", "{connection_file}"], "language": "python"}
    (spec_ / "kernel.json").write_text(json.dumps(broken | {"display_name": "x"}))
    env = {"TMPDIR": str(place), "JUPYTER_PATH": str(tmp_path / "jupyter")}
    env |= dict.fromkeys(("http_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env["JUPYTER_PREFER_ENV_PATH"] = "0"
    words = [sys.executable, *command(tiny_dataset, "--methods", "BL", "--set", "epochs=500")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    study = subprocess.Popen(words, env=os.environ | env, start_new_session=True, **streams)
    (checkpoint,) = wait_for(lambda: list(outputs_root.rglob("checkpoint.pt")))
    (kernel,) = kernels_below(study.pid)  # with Dask's value training took twice the time
    assert int(kernel.environ()["MALLOC_TRIM_THRESHOLD_"]) > 1e9
    family = psutil.Process(study.pid).children(recursive=True)
    number = getattr(signal, sign)
    (os.killpg if sign == "SIGINT" else os.kill)(study.pid, number)  # Ctrl-C goes to all
    said = study.communicate(timeout=60)[0]
    wait_for(lambda: not any(map(alive, family)), 60)
    assert study.returncode == (-number if sign == "SIGKILL" else 130)
    if sign != "SIGKILL":
        *told, last = said.splitlines()  # no traceback
        assert last == "interrupted: finished runs are kept, and the same command goes on"
        assert [line.split()[0] for line in told] == ["running"]
        assert not list(outputs_root.glob(".study-*"))
    assert list(place.rglob("*")) == []
    with FileLock(checkpoint.with_name("lock"), timeout=0):  # the same command can go on
        assert torch.load(checkpoint, weights_only=True)["recipe"]


def test_what_a_killed_study_left_goes_with_the_next_one(tmp_path):
    kinds = {"killed": 99, "in-use": 99, "begins": 0}  # how old its lock is, in seconds
    for kind, age in kinds.items():
        file = tmp_path / f".study-{kind}" / "lock"
        file.parent.mkdir()
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    (tmp_path / "mine").mkdir()
    with FileLock(tmp_path / ".study-in-use" / "lock"):
        os.utime(tmp_path / ".study-in-use" / "lock", (time.time() - 99,) * 2)
        engine._sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".study-in-use", ".study-begins", "mine"}


def test_a_study_needs_no_network_and_no_name_of_the_machine(tiny_dataset, outputs_root):
    shell = 'hostname nobody.invalid && ip link set lo up && exec "$@"'
    words = ["unshare", "--net", "--uts", "sh", "-c", shell, "sh"]
    words += [sys.executable, *command(tiny_dataset, "--methods", "BL", "--set", "epochs=1")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    if "unshare" in done.stderr:
        pytest.skip(f"another network needs root: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 done" in done.stdout


@pytest.mark.parametrize("given", ["", "1"])
def test_a_run_that_all_others_wait_for_has_all_cores(tiny_dataset, outputs_root, given):
    env = {k: v for k, v in os.environ.items() if k not in engine.THREADS}
    env |= {"OMP_NUM_THREADS": given} if given else {}
    words = command(tiny_dataset, "--methods", "BL,CQ,CKD-0", "--set", f"ema=0.9{given or 2}")
    subprocess.run([sys.executable, *words], env=env, check=True, capture_output=True)
    made = {p.parent.name[:2]: json.loads(p.read_text()) for p in outputs_root.rglob("result.json")}
    every = 1 if given else cores()
    assert (made["BL"]["threads"], made["CK"]["threads"]) == ([every], [1])
    for result in made.values():  # in turns, at the end
        latency = result["cost"]["latency_ms"]
        assert latency["low"] <= latency["p50"] <= latency["high"]


def test_a_run_by_hand_has_the_lock_until_it_is_finished(tiny_dataset, outputs_root):
    (s,) = tiny(tiny_dataset, "BL", epochs=1)
    mine = runs.Run(s)
    made = mine.once("x.txt", lambda path: path.write_text("mine"))
    again = runs.Run(s)  # the cell is run again in the same kernel
    assert again.once("x.txt", lambda path: path.write_text("other")).read_text() == "mine"
    request = {"preset": "tiny", "dataset": tiny_dataset, "settings": {"epochs": 1}}
    ask = f"from dflib.study import runs; s = runs.spec('BL', **{request!r}); "
    ask += "runs.Run(s).once('y.txt', lambda path: path.write_text('theirs'))"
    theirs = python("-c", ask)
    assert "is being made by another process" in theirs.stderr and not (s.folder / "y.txt").exists()
    runs.LOCKS.pop(s.folder).release()
    assert python("-c", ask).returncode == 0
    assert (s.folder / "y.txt").read_text() == "theirs" and made.exists()
    again.once("z.txt", lambda path: path.write_text("mine"))
    assert engine.execute(s)["status"] == "done"  # as a parent, asked for in the same kernel


def test_a_file_system_without_locks_is_named_at_once(tiny_dataset, outputs_root, monkeypatch):
    """As FUSE and some NFS answer; with what filelock makes of it a run would wait for ever."""
    import errno
    import fcntl

    def none(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", none)
    message = "a file system without locks .*set .DFLIB_DATA or .DFLIB_OUTPUTS to a local"
    with pytest.raises(InputError, match=message):
        engine.run(tiny(tiny_dataset, "BL"))


def test_outputs_that_cannot_be_written_to_are_named_before_the_work(
    tiny_dataset, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("in the way")  # for root, too, unlike a read-only folder
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "file"))
    with pytest.raises(InputError, match="file cannot be written to"):
        engine.run(tiny(tiny_dataset, "BL"))


def test_no_scheduler_at_the_address(tiny_dataset, outputs_root):
    nobody = ("--methods", "BL", "--scheduler", "tcp://127.0.0.1:9")
    done = python(*command(tiny_dataset, *nobody))
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Dask scheduler answers at tcp://127.0.0.1:9")


def test_runs_go_to_an_existing_cluster_whose_workers_are_like_this_machine(
    tiny_dataset, outputs_root, tmp_path
):
    import dask
    from distributed import Client, LocalCluster

    how = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": ":0"}
    plan = tiny(tiny_dataset, "BL")
    others = {"DFLIB_DATA": (tmp_path / "no-data", f"unknown dataset '{tiny_dataset}'")}
    others["DFLIB_OUTPUTS"] = tmp_path / "other", "outputs in .*other, another folder"
    alone = {"distributed.nanny.pre-spawn-environ": {}}  # it would stay in this process, too
    with dask.config.set(alone), LocalCluster(**how) as cluster, Client(cluster) as client:
        (worker,) = client.nthreads()
        for key, (wrong, message) in others.items():
            as_here = {key: os.environ[key]}
            client.run(lambda values: os.environ.update(values), {key: str(wrong)})
            with pytest.raises(InputError, match=f"worker {worker}: {message}"):
                engine.run(plan, scheduler=cluster.scheduler_address)
            client.run(lambda values: os.environ.update(values), as_here)
        outcomes = engine.run(plan, scheduler=cluster.scheduler_address)
    assert [o["status"] for o in outcomes.values()] == ["done"]


def test_folds_train_without_each_generator_or_on_each_alone(tiny_dataset, tiny_source):
    request = {"preset": "tiny", "dataset": tiny_dataset, "seeds": (0, 1)}
    request |= {"methods_": ("BL", "CPF")}
    whole = engine.plan(**request)
    for folds, word in (("leave-one-out", "without"), ("one-to-all", "on")):
        key = methods.FOLDS[folds]
        p = engine.plan(**request, folds=folds)
        found = [s.settings[key] for s in p if s.method == "CPF"]
        assert sorted(found) == ["blurred", "blurred", "nearest", "nearest"] and len(p) == 8
        assert all(q.settings[key] == s.settings[key] for s in p for q in s.parents)
        assert not {s.run_id for s in p} & {s.run_id for s in whole}
        assert methods.fold(methods.relevant("CPF", p[-1].settings)).startswith(word)
        assert spec("BL", **p[0].parameters()).run_id == p[0].run_id
    moved = request | {"methods_": ("TL+FT",), "source": tiny_source}
    transfer = engine.plan(**moved, folds="leave-one-out")
    # one a seed: the source has other classes
    assert len({s.run_id for s in transfer if s.dataset == tiny_source}) == 2
    with pytest.raises(InputError, match="unknown kind of folds 'leave'"):
        engine.plan(**request, folds="leave")


def test_what_workers_import_ahead_asks_for_no_gpu():
    """A process that was forked after such a question cannot use one."""
    code = "import torch, sys; from dflib.study import forks\n"
    code += "asked = lambda *a: sys.exit('asked for a GPU')\n"
    code += "torch._C._cuda_getDeviceCount = torch._C._cuda_init = torch.cuda._lazy_init = asked\n"
    code += "torch.cuda.is_available = torch.cuda.device_count = asked\n"
    code += "for name in forks.AHEAD.split(): __import__(name)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux")
@pytest.mark.parametrize("on_term", ["SIG_DFL", "SIG_IGN"])
def test_a_forked_kernel_that_does_not_end_is_ended(tmp_path, on_term):
    """As on a busy machine, where it takes longer than Jupyter waits."""
    never = "import atexit, signal, time; _ = atexit.register(time.sleep, 600);"
    never += f"_ = signal.signal(signal.SIGTERM, signal.{on_term})"
    code = "\n".join(
        [
            "import asyncio",
            "from dflib.study import forks, kernel",
            "forks.start()",
            "async def whole():",
            f"    manager = kernel.kernel_manager(open({str(tmp_path / 'log.txt')!r}, 'a'))()",
            "    await manager.start_kernel(extra_arguments=[])",
            "    client = manager.client()",
            "    client.start_channels()",
            f"    told = await client.execute_interactive({never!r})",
            "    print(told['content']['status'], manager.provisioner.process.pid, flush=True)",
            "    await manager.shutdown_kernel()",
            "    print('ended', flush=True)",
            "asyncio.run(whole())",
        ]
    )
    found = python("-c", code)
    assert found.returncode == 0, found.stderr
    status, pid, ended = found.stdout.split()
    assert (status, ended) == ("ok", "ended")
    assert not psutil.pid_exists(int(pid))
