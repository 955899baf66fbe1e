"""A study on two nodes: a scheduler, and workers in network namespaces of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_study import kernels_below, wait_for

from data_prep.errors import InputError
from dflib.study import engine

TAG = f"df{os.getpid() % 10_000}"  # two test sessions may run at once
NET = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Names of two network namespaces, at NET.11 and NET.12; this process is at NET.1. Skips where
    they cannot be made."""
    if not shutil.which("ip"):
        pytest.skip("network namespaces need the command ip (iproute2)")
    names = [f"{TAG}-{i}" for i in (1, 2)]
    steps = [f"link add {TAG} type bridge", f"addr add {NET}.1/24 dev {TAG}", f"link set {TAG} up"]
    for i, name in enumerate(names, 1):
        steps += [
            f"netns add {name}",
            f"link add {TAG}v{i} type veth peer name eth0 netns {name}",
            f"link set {TAG}v{i} master {TAG} up",
            f"-n {name} addr add {NET}.1{i}/24 dev eth0",
            f"-n {name} link set eth0 up",
            f"-n {name} link set lo up",
        ]
    try:
        for step in steps:
            done = subprocess.run(
                ["ip", *step.split()], capture_output=True, text=True, check=False
            )
            if done.returncode:
                pytest.skip(f"network namespaces need root: ip {step}: {done.stderr.strip()}")
        yield names
    finally:
        for step in (
            *(f"netns del {name}" for name in names),
            f"link del {TAG}v1",
            f"link del {TAG}v2",
            f"link del {TAG}",
        ):
            subprocess.run(["ip", *step.split()], capture_output=True, check=False)


@pytest.fixture
def cluster(
    nodes, tiny_dataset, tmp_path, monkeypatch
) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """Address of a scheduler, and its two workers, one a node."""
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(tmp_path)
    started = []

    def start(*words: str) -> subprocess.Popen:
        started.append(
            subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        return started[-1]

    dask = (sys.executable, "-m", "dask")
    options = f"scheduler --host {NET}.1 --port 0 --no-dashboard --scheduler-file scheduler"
    start(*dask, *options.split())
    file = Path("scheduler")
    wait_for(lambda: file.exists() and file.read_text().strip().endswith("}"))
    address = json.loads(file.read_text())["address"]
    options = f"worker {address} --nthreads 1 --memory-limit 0 --no-dashboard --no-nanny"
    worker = (*dask, *options.split())
    workers = [start("ip", "netns", "exec", name, *worker) for name in nodes]
    yield address, workers
    for process in reversed(started):
        process.kill()
        process.wait()


def test_a_study_on_two_nodes(cluster, tiny_dataset, tmp_path):
    from distributed import Client

    address, workers = cluster
    request = {"preset": "tiny", "dataset": tiny_dataset, "methods_": ("BL",)}
    plan, refused = engine.plan(**request, seeds=(0, 1)), engine.plan(**request, seeds=(2, 3))
    with Client(address) as client:
        client.wait_for_workers(2, timeout=120)
        (there,) = [w for w in client.nthreads() if w.startswith(f"tcp://{NET}.12:")]
        others = {"DFLIB_DATA": (tmp_path / "no-data", f"unknown dataset '{tiny_dataset}'")}
        others["DFLIB_OUTPUTS"] = tmp_path / "other", "outputs in .*other, another folder"
        for key, (wrong, message) in others.items():
            as_here = {key: os.environ[key]}
            client.run(lambda values: os.environ.update(values), {key: str(wrong)}, workers=[there])
            with pytest.raises(InputError, match=f"worker {there}: {message}"):
                engine.run(refused, scheduler=address)
            client.run(lambda values: os.environ.update(values), as_here, workers=[there])
    outcomes: dict = {}
    made = threading.Thread(target=lambda: outcomes.update(engine.run(plan, scheduler=address)))
    made.start()
    wait_for(lambda: all(kernels_below(w.pid) for w in workers), 300)  # both at work
    made.join(1800)
    assert [o["status"] for o in outcomes.values()] == ["done", "done"]
    assert all(s.finished() for s in plan)
