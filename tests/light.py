"""A copy of the project whose run notebooks only wait, write a result, or raise."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from data_prep.paths import PROJECT
from dflib.study import methods

PARAMETERS = """preset = "tiny"
dataset = "demo"
source = None
protocol = "strict"
method = {method!r}
seed = 0
rate = 0.9
settings = {{}}"""
RESULT = """import json, os, time
from pathlib import Path
from dflib.study import methods
from dflib.study.runs import spec

asked = {{"preset": preset, "dataset": dataset, "source": source, "protocol": protocol}}
asked |= {{"seed": seed, "settings": settings}}
s = spec(method, rate=rate if methods.method(method).rated else None, **asked)
time.sleep(float(os.environ.get("LIGHT_SECONDS", "0")))
if method in os.environ.get("LIGHT_RAISES", "").split(","):
    raise ValueError(f"{{method}} cannot [/] be made")
result = json.loads(Path(r"{template}").read_text())
result |= {{"run_id": s.run_id, "method": method, "seed": seed, "dataset": dataset, "rate": s.rate}}
result |= {{"parents": [p.run_id for p in s.parents], "command": s.command()}}
result |= {{"params": methods.relevant(method, s.settings)}}
result |= {{"code": methods.versions(method), "files": {{}}}}
(s.folder / "result.json").write_text(json.dumps(result))"""


def project(folder: Path, template: dict) -> Path:
    """Make the copy below `folder`; template: the `result.json` of its runs."""
    for name in ("dflib", "data_prep", "notebooks"):
        ignore = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(PROJECT / name, folder / name, ignore=ignore)
    shutil.copy(PROJECT / "pyproject.toml", folder)
    (folder / "template.json").write_text(json.dumps(template))
    for stem in {m.notebook for m in methods.METHODS.values()}:
        codes = {
            "parameters": PARAMETERS.format(method=methods.made_by(stem)[0]),
            "result": RESULT.format(template=folder / "template.json"),
        }
        new = nbformat.v4.new_code_cell
        cells = [new(code, metadata={"tags": [tag]}) for tag, code in codes.items()]
        book = nbformat.v4.new_notebook(cells=cells)
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, folder / "notebooks" / f"{stem}.ipynb")
    return folder


def call(
    folder: Path, *words: str, cores: int | None = None, **more: str
) -> subprocess.CompletedProcess:
    """Run `python -m dflib WORDS` of the copy, on so many cores."""
    limits = ["taskset", "-c", f"0-{cores - 1}"] if cores else []
    command = [*limits, sys.executable, "-m", "dflib", *words]
    own = {"PYTHONPATH": str(folder), "DFLIB_OUTPUTS": str(folder / "outputs")}
    how = {"cwd": folder, "env": os.environ | own | more, "timeout": 900}
    return subprocess.run(command, capture_output=True, text=True, check=False, **how)
