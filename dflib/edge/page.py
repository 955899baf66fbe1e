"""A page that runs an exported ONNX file in the browser, with onnxruntime-web beside it."""

import base64
import filecmp
import hashlib
import io
import json
import os
import shutil
import tarfile
from importlib.resources import files
from pathlib import Path

from data_prep.errors import InputError
from data_prep.paths import written

VERSION = "1.22.0"
CHECKSUM = (  # SHA-512, npm's own
    "Ud/+EBo6mhuaQWt/OjaOk0iNWjXqJoeeMFr6xQEERZdIZH2OWpGzuujz7lfuOBjUa6TEE/sc4nb7Da5dNL34fg=="
)
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
NEEDED = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def check(result: dict) -> None:
    """Raise `InputError` for what the page cannot prepare, or without onnxruntime-web."""
    if (mode := result["params"]["mode"]) == "texture_crop":
        name = result["run_id"]
        raise InputError(f"{name}: the page cannot prepare images by {mode}; use predict.py")
    _runtime()


def names(folder: Path) -> list[str]:
    """The page's files that are to be written to a folder: not those that are there, the same."""
    new = filecmp.cmpfiles(_runtime(), folder, NEEDED, shallow=False)[1:]  # other, or not there
    return ["index.html", *new[0], *new[1]]


def make(folder: Path, model: str, result: dict) -> str:
    """The text of a page that runs a run's ONNX file; what it needs is copied to `folder`."""
    facts = {key: result["params"][key] for key in ("size", "mode")}
    facts |= {"model": model, "run": result["run_id"]}
    facts |= {key: result[key] for key in ("threshold", "classes")}
    page = (files("dflib.edge") / "templates" / "edge.html").read_text(encoding="utf-8")
    for name in NEEDED:
        shutil.copyfile(_runtime() / name, folder / name)
    return page.replace("/*FACTS*/", json.dumps(facts).replace("<", "\\u003c"))


def _runtime() -> Path:
    """Folder of onnxruntime-web's files in the user's cache; fetched from npm once, and checked."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "dflib" / f"onnxruntime-web-{VERSION}"
    if all((cache / name).is_file() for name in NEEDED):
        return cache
    import httpx

    try:
        archive = httpx.get(URL, timeout=60, follow_redirects=True).raise_for_status().content
    except httpx.HTTPError as error:
        what = f"the page needs onnxruntime-web, and {URL} cannot be had ({error})"
        mend = f"put its dist/ files {', '.join(NEEDED)} into {cache}, or go without --page"
        raise InputError(f"{what}: {mend}") from error
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != CHECKSUM:
        raise InputError(f"{URL} has another checksum than version {VERSION}: nothing was kept")
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for name in NEEDED:
            with written(cache / name) as new:
                new.write_bytes(tar.extractfile(f"package/dist/{name}").read())
    return cache
