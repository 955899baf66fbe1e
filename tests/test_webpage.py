"""The exported page in a real browser: it decides like Python, and asks no other server."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import chromium
import pytest
from made import untrained

from data_prep.errors import InputError
from data_prep.paths import images_root
from dflib.edge import files
from dflib.edge import page as edge_page
from dflib.edge.predict import Predictor


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def runtime() -> None:
    try:
        edge_page._runtime()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[Path, str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@chromium.needed
@pytest.mark.parametrize(
    ("mode", "format", "apart"),
    [("resize", "onnx", 1e-6), ("center_crop", "onnx", 1e-6), ("resize", "onnx-int8", 1e-3)],
)  # int8: the last bit of a float decides on which side of a step a value falls, one step is 1/255
def test_the_browser_decides_like_python(
    tiny_dataset, runtime, served, picture, mode, format, apart
):
    (folder, address), run = served, untrained(tiny_dataset, mode=mode, weight_decay=0.4)
    files.export_run(run.folder, format=format, out=folder / "detector.onnx", page=True)
    python = Predictor(folder / "detector.onnx")
    python.mode, python.threshold = mode, run.result["threshold"]
    images = [images_root(tiny_dataset) / p for p in run.data.test.table["path"].iloc[:4]]
    sizes = [(300, 200), (20, 45), (33, 64)]
    images += [picture(folder / f"{w}.png", size=(w, h), seed=w) for w, h in sizes]
    images.append(picture(folder / "photo.jpg", size=(120, 77)))
    images.append(picture(folder / "grey.png", mode="L", size=(70, 50)))
    with chromium.opened(address, errors=False, width=390) as page:
        page.wait_for_selector("#answer[data-ready]")
        for path in images:
            page.set_input_files("#file", path)
            page.wait_for_selector("#answer[data-label]")
            theirs = page.evaluate("({ ...document.getElementById('answer').dataset })")
            ours, found = python(path), float(theirs["probability"])
            assert found == pytest.approx(ours["probability"], abs=apart), path.name
            if abs(found - python.threshold) > apart:
                assert theirs["label"] == ours["label"]
        (folder / "text.png").write_text("no image")
        page.set_input_files("#file", folder / "text.png")
        page.wait_for_selector("#answer[data-label='']")
        assert "cannot be judged" in page.inner_text("#answer")


def test_another_archive_is_refused_by_its_checksum(server, tmp_path, monkeypatch):
    server.files["other.tgz"] = b"something else"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(edge_page, "URL", server.url("other.tgz"))
    with pytest.raises(InputError, match="another checksum than version"):
        edge_page._runtime()
    assert server.asked and not (tmp_path / "cache").exists()
