"""The explorer in a real browser, served as `make lab` and `make explorer` serve it; and what their ports refuse."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from test_webpage import CHROMIUM, FLAGS

from data_prep.paths import PROJECT, images_root
from dflib.edge.predict import Predictor
from dflib.show import explorer
from dflib.study.methods import METHODS

SHOTS = PROJECT / "outputs" / "browser"  # not tracked
CHECKOUT = ("Makefile", "requirements.txt", "pyproject.toml", "notebooks")
WAIT = 120_000  # ms; on a busy machine the first answer takes its time

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium: apt-get install chromium, or your system's browser"
    ),
    pytest.mark.skipif(
        shutil.which("make") is None, reason="no make: the servers are started by the Makefile"
    ),
]


@dataclass
class Server:
    """A server of the Makefile's: its address, its token, the folder that it was started in."""

    address: str
    token: str
    folder: Path
    process: psutil.Process

    def url(self, path: str = "") -> str:
        return f"{self.address}/{path}?token={self.token}"


@contextmanager
def made(target: str, folder: Path) -> Iterator[Server]:
    """`make TARGET` in a copy of what it needs of this folder, with Jupyter settings of its own."""
    for name in CHECKOUT:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, folder / name)
    (folder / "tmp").mkdir()
    (folder / ".ready").touch()  # as after `make setup`
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        f"JUPYTER_{d}_DIR": str(folder / "jupyter" / d) for d in ("CONFIG", "DATA", "RUNTIME")
    }
    env |= {
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": str(PROJECT),
        "TMPDIR": str(folder / "tmp"),
    }
    arguments = f"--no-browser --port={port}" + " --allow-root" * (
        target == "lab" and os.geteuid() == 0
    )
    command = ["make", target, f"PY={sys.executable}", "READY=.ready", f"ARGS={arguments}"]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield _address(server, folder)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _address(server: subprocess.Popen, folder: Path) -> Server:
    """Wait for the address in the server's log."""
    for _ in range(1200):
        log = (folder / "log.txt").read_text()
        if found := re.search(r"(http://127\.0\.0\.1:\d+)/\S*\?token=(\w+)", log):
            return Server(found[1], found[2], folder, psutil.Process(server.pid))
        assert server.poll() is None, log
        time.sleep(0.1)
    raise AssertionError(f"no address in 120 s: {log}")


@pytest.fixture(scope="module", autouse=True)
def _outputs(explorer_outputs) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFLIB_OUTPUTS", str(explorer_outputs))
        yield


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Server]:
    with made("lab", tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module")
def voila(tmp_path_factory) -> Iterator[Server]:
    with made("explorer", tmp_path_factory.mktemp("voila")) as server:
        yield server


@dataclass
class Watched:
    """What a page said and asked for while it was open."""

    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def follow(self, page) -> None:
        page.on(
            "console", lambda m: m.type == "error" and self.errors.append(f"{m.text} {m.location}")
        )
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("request", lambda r: self.asked.append(r.url))
        page.on("response", lambda r: r.status >= 400 and self.errors.append(f"{r.status} {r.url}"))

    def is_clean(self, address: str) -> bool:
        outside = [u for u in self.asked if not u.startswith((address, "data:", "blob:"))]
        assert not outside and not self.errors, (outside, self.errors)
        return True


@contextmanager
def opened(url: str, name: str, *, width: int = 1280, height: int = 1000) -> Iterator[tuple]:
    from playwright.sync_api import expect, sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    watched = Watched()
    expect.set_options(timeout=WAIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(WAIT)
        watched.follow(page)
        page.goto(url)
        try:
            yield page, watched
        finally:
            page.screenshot(path=SHOTS / f"{name}-end.png")
            browser.close()


def choose_file(page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(".dfx .widget-upload").click()
    chooser.value.set_files(path)


def play(page, name: str, own: Path) -> None:
    """Move the slider with the keyboard, upload an image and a wrong file; the page must follow."""
    from playwright.sync_api import expect

    study = explorer.studies()[0]
    runs_ = study.of("CPF-S")
    page.wait_for_selector(".dfx .card")
    page.get_by_label("Method:").select_option(f"CPF-S – {METHODS['CPF-S'].title}")
    cards = page.locator(".dfx [role=status]").first
    expect(cards).to_contain_text("CPF-S 90%")
    page.get_by_label("Method:").focus()
    page.keyboard.press("Tab")
    expect(page.locator(".dfx .noUi-handle").first).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(cards).to_contain_text("CPF-S 60%")
    expect(cards).to_contain_text(f"{runs_['params'].iloc[0]:,}")
    page.screenshot(path=SHOTS / f"{name}-cards.png")
    page.get_by_role("button", name="Your image").press("Enter")
    choose_file(page, own)
    answer = page.locator(".dfx [role=status]", has_text="P(fake)")
    for folder in (study.base["folder"], runs_["folder"].iloc[0]):
        expect(answer).to_contain_text(f"P(fake) {Predictor(folder)(own)['probability']:.3f}")
    page.screenshot(path=SHOTS / f"{name}-upload.png")
    (own.parent / "text.png").write_text("no image")
    choose_file(page, own.parent / "text.png")
    expect(page.locator(".dfx [role=alert]")).to_contain_text(
        "This file cannot be used: the file is not an image"
    )


@pytest.fixture
def own(tiny_dataset, tmp_path) -> Path:
    """An image that is in no dataset, byte for byte."""
    path = explorer.predictions(explorer.studies()[0].base["folder"])["path"].iloc[0]
    Image.open(images_root(tiny_dataset) / path).transpose(Image.Transpose.ROTATE_180).save(
        tmp_path / "own.png"
    )
    return tmp_path / "own.png"


def files(*roots: Path) -> dict[Path, tuple[int, int]]:
    """What lies under some folders: size and time of each file, but for the server's log."""
    found = [p for root in roots for p in root.rglob("*") if p.is_file() and p.name != "log.txt"]
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


def test_the_page_follows_the_controls_and_stores_no_upload(voila, own, roots, explorer_outputs):
    with opened(voila.url(), "voila") as (page, watched):
        page.wait_for_selector(".dfx .card")
        before = files(voila.folder, explorer_outputs, roots)
        play(page, "voila", own)
        after = files(voila.folder, explorer_outputs, roots)
        assert after == before, after.items() ^ before.items()
        assert page.locator(".jp-InputArea").count() == 0  # no code
        assert refuses_code(page, voila)
        page.set_viewport_size({"width": 390, "height": 800})  # a phone's
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.screenshot(path=SHOTS / "voila-phone.png", full_page=True)
        assert watched.is_clean(voila.address)


SEND = """([url, code]) => new Promise((done, fail) => {
  const socket = new WebSocket(url), seen = [];
  const message = (id, type, content) => JSON.stringify({ channel: "shell", content, metadata: {}, parent_header: {}, buffers: [],
    header: { msg_id: id, msg_type: type, username: "", session: "x", version: "5.3", date: "" } });
  socket.onerror = fail;
  socket.onopen = () => {
    socket.send(message("a", "execute_request", { code, silent: false, store_history: false, user_expressions: {}, allow_stdin: false }));
    socket.send(message("b", "kernel_info_request", {}));
  };
  socket.onmessage = (m) => {
    const found = JSON.parse(m.data);
    seen.push(found.msg_type);
    if (found.msg_type === "kernel_info_reply" && found.parent_header.msg_id === "b") { socket.close(); done(seen); }
  };
})"""


def refuses_code(page, server: Server) -> bool:
    """The page's own kernel, asked over its own socket: it answers, but runs nothing."""
    kernel = page.evaluate(
        "JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId"
    )
    url = (
        f"{server.address.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={server.token}"
    )
    marker = server.folder / "escaped"
    seen = page.evaluate(SEND, [url, f"open({str(marker)!r}, 'w').close()"])
    assert "execute_reply" not in seen and not marker.exists()
    return True


def test_jupyterlab_does_the_same(lab, own):
    with opened(lab.url("lab/tree/notebooks/16_explorer.ipynb"), "lab") as (page, watched):
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.locator(".jp-Notebook .jp-MarkdownCell h1").first.click()
        for _ in range(7):  # up to the explorer's cell
            page.keyboard.press("Shift+Enter")
        play(page, "lab", own)
        assert watched.is_clean(lab.address)


@pytest.mark.parametrize("name", ["lab", "voila"])
def test_a_server_listens_on_this_machine_alone_and_asks_for_its_token(name, request):
    server = request.getfixturevalue(name)
    processes = [server.process, *server.process.children(recursive=True)]
    heard = [
        c.laddr
        for p in processes
        for c in p.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    ]
    assert {a.ip for a in heard} == {"127.0.0.1"} and int(server.address.rpartition(":")[2]) in {
        a.port for a in heard
    }
    for path in ("", "lab", "api/contents", "api/kernels", "files/notebooks/16_explorer.ipynb"):
        for token in ("", "?token=wrong"):
            answer = httpx.get(f"{server.address}/{path}{token}", follow_redirects=True)
            assert answer.status_code in (403, 404) or "/login" in answer.url.path, (path, answer)
    assert httpx.post(f"{server.address}/api/kernels").status_code in (403, 404, 405)


def test_the_page_opens_nothing_else_even_with_the_token(voila):
    with httpx.Client(
        headers={"Authorization": f"token {voila.token}"}, follow_redirects=True
    ) as client:
        for path in (
            "api/kernels",
            "api/contents",
            "api/contents/notebooks/03_prune.ipynb",
            "api/sessions",
            "api/terminals",
            "lab",
            "tree",
            "files/16_explorer.ipynb",
            "voila/files/16_explorer.ipynb",
            "voila/files/voila.json",
            "voila/files/../README.md",
            "voila/files/%2e%2e/Makefile",
            "voila/files/badges/kaggle.svg",
            "voila/render/03_prune.ipynb",
            "03_prune.ipynb",
            "voila/tree",
            "voila/static/..%2f..%2f..%2f..%2fconfig.json",
        ):
            assert client.get(f"{voila.address}/{path}").status_code in (403, 404), path
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            for path in ("api/kernels", "api/contents/x.ipynb", "api/sessions", "api/terminals"):
                assert client.request(method, f"{voila.address}/{path}").status_code in (
                    403,
                    404,
                    405,
                ), (method, path)
