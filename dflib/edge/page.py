"""A page that runs an exported ONNX file in the browser: `index.html` and onnxruntime-web's files, all in one folder, no other server asked."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
from importlib.resources import files
from pathlib import Path

from data_prep.errors import InputError
from data_prep.paths import write_text

VERSION = "1.22.0"
INTEGRITY = "sha512-Ud/+EBo6mhuaQWt/OjaOk0iNWjXqJoeeMFr6xQEERZdIZH2OWpGzuujz7lfuOBjUa6TEE/sc4nb7Da5dNL34fg=="  # npm's own
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
NEEDED = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def write(onnx: Path, result: dict) -> Path:
    """Write the page beside an exported ONNX file; returns its path. Serve the folder: python -m http.server.

    It decodes and resizes as Pillow does. Raises `InputError` for a run of input mode texture_crop, which the page cannot prepare, or when
    onnxruntime-web is neither in the cache nor to be had.
    """
    p = result["params"]
    if p["mode"] == "texture_crop":
        raise InputError(
            f"{result['run_id']}: the page cannot prepare images by texture_crop; use predict.py"
        )
    folder, runtime = Path(onnx).parent, _runtime()
    for name in NEEDED:
        new = folder / f"{name}.new"
        new.write_bytes((runtime / name).read_bytes())
        new.replace(folder / name)
    facts = {
        "model": Path(onnx).name,
        "size": p["size"],
        "mode": p["mode"],
        "threshold": result["threshold"],
    }
    facts |= {"classes": result["classes"], "run": result["run_id"]}
    page = (files("dflib.edge") / "templates" / "edge.html").read_text(encoding="utf-8")
    write_text(
        folder / "index.html", page.replace("/*FACTS*/", json.dumps(facts).replace("<", "\\u003c"))
    )
    return folder / "index.html"


def _runtime() -> Path:
    """Folder of onnxruntime-web's files in the user's cache; fetched from npm's registry once, and checked against its checksum."""
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "dflib"
        / f"onnxruntime-web-{VERSION}"
    )
    if not all((cache / name).is_file() for name in NEEDED):
        import httpx

        try:
            archive = httpx.get(URL, timeout=60, follow_redirects=True).raise_for_status().content
        except httpx.HTTPError as error:
            raise InputError(
                f"the page needs onnxruntime-web, and {URL} cannot be had ({error}): put its dist/ files {', '.join(NEEDED)} into {cache}, or go without --page"
            ) from error
        if base64.b64encode(hashlib.sha512(archive).digest()).decode() != INTEGRITY.removeprefix(
            "sha512-"
        ):
            raise InputError(f"{URL} has another checksum than version {VERSION}: nothing was kept")
        cache.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for name in NEEDED:
                new = cache / f"{name}.new"
                new.write_bytes(tar.extractfile(f"package/dist/{name}").read())
                new.replace(cache / name)
    return cache
