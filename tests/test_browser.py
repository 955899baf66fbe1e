"""The explorer in a real browser; and what its ports and JupyterLab's refuse."""

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
from dataclasses import dataclass
from pathlib import Path

import chromium
import httpx
import psutil
import pytest
from PIL import Image

from data_prep.paths import PROJECT, images_root
from dflib.edge.predict import Predictor
from dflib.show import explorer
from dflib.study.methods import METHODS

CHECKOUT = ("Makefile", "requirements.txt", "pyproject.toml", "notebooks")
WAIT = 120_000  # ms; on a busy machine the first answer takes its time
REFUSED = (403, 404, 405)

pytestmark = [
    pytest.mark.usefixtures("shown_outputs"),
    chromium.needed,
    pytest.mark.skipif(shutil.which("make") is None, reason="no make: it starts the servers"),
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
    """`make TARGET` in a copy of what it needs, with Jupyter settings of its own."""
    for name in CHECKOUT:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, folder / name)
    (folder / "tmp").mkdir()
    (folder / ".ready").touch()  # as after `make setup`
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{d}_DIR": f"{folder}/jupyter/{d}" for d in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"IPYTHONDIR": f"{folder}/ipython", "TMPDIR": f"{folder}/tmp"}
    root = " --allow-root" * (target == "lab" and os.geteuid() == 0)
    arguments = f"ARGS=--no-browser --port={port}{root}"
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            ["make", target, f"PY={sys.executable}", "READY=.ready", arguments],
            cwd=folder,
            env=os.environ | own | {"PYTHONPATH": str(PROJECT)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield _begun(server, folder)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _begun(server: subprocess.Popen, folder: Path) -> Server:
    """The server, once its address stands in its log."""
    for _ in range(1200):
        log = (folder / "log.txt").read_text()
        if found := re.search(r"(http://127\.0\.0\.1:\d+)/\S*\?token=(\w+)", log):
            return Server(found[1], found[2], folder, psutil.Process(server.pid))
        assert server.poll() is None, log
        time.sleep(0.1)
    raise AssertionError(f"no address in 120 s: {log}")


@pytest.fixture(scope="module")
def lab(shown_outputs, tmp_path_factory) -> Iterator[Server]:
    with made("lab", tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module")
def voila(shown_outputs, tmp_path_factory) -> Iterator[Server]:
    with made("explorer", tmp_path_factory.mktemp("voila")) as server:
        yield server


def choose_file(page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(".dfx .widget-upload").click()
    chooser.value.set_files(path)


def play(page, own: Path) -> None:
    """Move the slider with the keyboard, upload an image and a wrong file; the page must follow."""
    from playwright.sync_api import expect

    expect.set_options(timeout=WAIT)
    study = explorer.studies()[0]
    run = study.rows[study.rows["name"] == "CPF-S 60%"].iloc[0]
    page.wait_for_selector(".dfx .card")
    page.get_by_label("Method:").select_option(f"CPF-S – {METHODS['CPF-S'].title}")
    cards = page.locator(".dfx [role=status]").first
    expect(cards).to_contain_text("CPF-S 90%")
    page.get_by_label("Method:").focus()
    page.keyboard.press("Tab")
    expect(page.locator(".dfx .noUi-handle").first).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(cards).to_contain_text("CPF-S 60%")
    expect(cards).to_contain_text(f"{run['params']:,}")
    page.get_by_role("button", name="Your image").press("Enter")
    choose_file(page, own)
    answer = page.locator(".dfx [role=status]", has_text="P(fake)")
    for name, folder in (("BL", study.base["folder"]), ("CPF-S 60%", run["folder"])):
        found = Predictor(folder)(own)
        said = f"{name}: {found['label']}, P(fake) {found['probability']:.3f}"
        expect(answer).to_contain_text(said)
    assert page.locator(".dfx figure[aria-label^='Where each looks'] image").count() == 4
    (own.parent / "text.png").write_text("no image")
    choose_file(page, own.parent / "text.png")
    expect(page.locator(".dfx [role=alert]")).to_contain_text(
        "the file cannot be used (not an image)"
    )


@pytest.fixture
def own(tiny_dataset, tmp_path) -> Path:
    """An image that is in no dataset, byte for byte."""
    study = explorer.studies()[0]
    path = explorer.compared(study, study.base["run_id"])["path"].iloc[0]
    image = Image.open(images_root(tiny_dataset) / path)
    image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "own.png")
    return tmp_path / "own.png"


def files(*roots: Path) -> dict[Path, tuple[int, int]]:
    """What lies under some folders: size and time of each file, but for the server's log."""
    found = [p for root in roots for p in root.rglob("*") if p.is_file() and p.name != "log.txt"]
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


def test_the_page_follows_the_controls_and_stores_no_upload(voila, own, roots, explorer_outputs):
    how = {"ours": voila.address, "wait": WAIT, "width": 1280}
    with chromium.opened(voila.url(), **how) as page:
        page.wait_for_selector(".dfx .card")
        before = files(voila.folder, explorer_outputs, roots)
        play(page, own)
        after = files(voila.folder, explorer_outputs, roots)
        assert after == before, after.items() ^ before.items()
        assert page.locator(".jp-InputArea").count() == 0  # no code
        refuses_code(page, voila)
        page.set_viewport_size({"width": 390, "height": 800})  # a phone's


SEND = """([url, code]) => new Promise((done, fail) => {
  const socket = new WebSocket(url), seen = [];
  const message = (id, type, content) => JSON.stringify({ channel: "shell", content,
    metadata: {}, parent_header: {}, buffers: [], header: { msg_id: id, msg_type: type,
    username: "", session: "x", version: "5.3", date: "" } });
  socket.onerror = fail;
  socket.onopen = () => {
    socket.send(message("a", "execute_request", { code, silent: false, store_history: false,
      user_expressions: {}, allow_stdin: false }));
    socket.send(message("b", "kernel_info_request", {}));
  };
  socket.onmessage = (m) => {
    const { msg_type, parent_header } = JSON.parse(m.data);
    seen.push(msg_type);
    if (msg_type === "kernel_info_reply" && parent_header.msg_id === "b") done(seen);
  };
})"""


def refuses_code(page, server: Server) -> None:
    """The page's own kernel, asked over its own socket: it answers, but runs nothing."""
    config = "JSON.parse(document.getElementById('jupyter-config-data').textContent)"
    kernel = page.evaluate(f"{config}.kernelId")
    url = server.url(f"api/kernels/{kernel}/channels").replace("http", "ws")
    marker = server.folder / "escaped"
    seen = page.evaluate(SEND, [url, f"open({str(marker)!r}, 'w').close()"])
    assert "execute_reply" not in seen and not marker.exists()


@pytest.mark.parametrize("name", ["lab", "voila"])
def test_a_server_listens_on_this_machine_alone_and_asks_for_its_token(name, request):
    server = request.getfixturevalue(name)
    processes = [server.process, *server.process.children(recursive=True)]
    sockets = [c for p in processes for c in p.net_connections("inet")]
    heard = [c.laddr for c in sockets if c.status == psutil.CONN_LISTEN]
    assert {a.ip for a in heard} == {"127.0.0.1"}
    assert int(server.address.rpartition(":")[2]) in {a.port for a in heard}
    for path in ("", "lab", "api/contents", "api/kernels", "files/notebooks/16_explorer.ipynb"):
        for token in ("", "?token=wrong"):
            answer = httpx.get(f"{server.address}/{path}{token}", follow_redirects=True)
            assert answer.status_code in REFUSED or "/login" in answer.url.path, (path, answer)
    assert httpx.post(f"{server.address}/api/kernels").status_code in REFUSED


CLOSED = (
    *("api/kernels", "api/contents", "api/contents/notebooks/03_prune.ipynb", "api/sessions"),
    *("api/terminals", "lab", "tree", "files/16_explorer.ipynb", "voila/files/16_explorer.ipynb"),
    *("voila/files/voila.json", "voila/files/../README.md", "voila/files/%2e%2e/Makefile"),
    *("voila/files/badges/kaggle.svg", "voila/render/03_prune.ipynb", "03_prune.ipynb"),
    *("voila/tree", "voila/static/..%2f..%2f..%2f..%2fconfig.json"),
)


def test_the_page_opens_nothing_else_even_with_the_token(voila):
    token = {"Authorization": f"token {voila.token}"}
    with httpx.Client(headers=token, follow_redirects=True) as client:
        for path in CLOSED:
            assert client.get(f"{voila.address}/{path}").status_code in REFUSED[:2], path
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            for path in ("api/kernels", "api/contents/x.ipynb", "api/sessions", "api/terminals"):
                answer = client.request(method, f"{voila.address}/{path}")
                assert answer.status_code in REFUSED, (method, path)
