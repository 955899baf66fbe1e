"""A study on two nodes: a scheduler, and workers in network namespaces of their own that reach each other over a bridge."""

from __future__ import annotations

import json
import math
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
    """Names of two network namespaces, at NET.11 and NET.12; this process is at NET.1. Skips where they cannot be made."""
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
    start(
        *dask,
        "scheduler",
        "--host",
        f"{NET}.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        "scheduler",
    )
    wait_for(
        lambda: Path("scheduler").exists() and Path("scheduler").read_text().strip().endswith("}")
    )
    address = json.loads(Path("scheduler").read_text())["address"]
    worker = (
        *dask,
        "worker",
        address,
        "--nthreads",
        "1",
        "--memory-limit",
        "0",
        "--no-dashboard",
        "--no-nanny",
    )
    workers = [start("ip", "netns", "exec", name, *worker) for name in nodes]
    yield address, workers
    for process in reversed(started):
        process.kill()
        process.wait()


def test_a_study_on_two_nodes(cluster, tiny_dataset, tmp_path):
    from distributed import Client

    address, workers = cluster
    plan = engine.plan(preset="tiny", dataset=tiny_dataset, methods_=("BL",), seeds=(0, 1))
    with Client(address) as client:
        client.wait_for_workers(2, timeout=120)
        (there,) = [w for w in client.nthreads() if w.startswith(f"tcp://{NET}.12:")]
        for key, wrong, message in (
            (
                "DFLIB_DATA",
                tmp_path / "no-data",
                f"unknown dataset '{tiny_dataset}'",
            ),
            (
                "DFLIB_OUTPUTS",
                tmp_path / "other",
                "outputs in .*other, another folder. Here: BL-s",
            ),
        ):
            right = os.environ[key]
            client.run(
                lambda key=key, wrong=wrong: os.environ.update({key: str(wrong)}), workers=[there]
            )
            with pytest.raises(InputError, match=f"worker {there}: {message}"):
                engine.run(plan, scheduler=address)
            if key == "DFLIB_DATA":  # as if the worker had come later
                late = client.submit(
                    engine._node, plan[0], [], expected=0.0, ends=math.inf, workers=[there]
                ).result()
                assert late["status"] == "failed" and late["error"].startswith(
                    f"worker {there} has other data"
                )
            client.run(
                lambda key=key, right=right: os.environ.update({key: right}), workers=[there]
            )
    assert not list((tmp_path / "outputs").rglob("*"))
    outcomes: dict = {}
    made = threading.Thread(target=lambda: outcomes.update(engine.run(plan, scheduler=address)))
    made.start()
    wait_for(lambda: all(kernels_below(w.pid) for w in workers), 300)  # both at work
    made.join(1800)
    assert [o["status"] for o in outcomes.values()] == ["done", "done"]
    assert all(s.finished() for s in plan)
