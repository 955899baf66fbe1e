"""requirements.txt leaves alone what a machine has: Kaggle's and Colab's torch stays."""

import json
import subprocess
import venv

import pytest

from data_prep.paths import PROJECT

# what Kaggle's and Colab's images held in 2026, and what a change of them breaks
INSTALLED = {
    "torch": "2.8.0",
    "torchvision": "0.23.0",
    "numpy": "2.0.2",
    "pillow": "11.3.0",
    "pandas": "2.2.2",
    "protobuf": "5.29.5",
    "jupyter_server": "2.12.5",
    "ipykernel": "6.17.1",
}


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> set[str]:
    """What `pip install -r requirements.txt` would install into such a machine's environment."""
    folder = tmp_path_factory.mktemp("machine")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    for name, version in INSTALLED.items():  # all that pip asks of an installed package
        about = site / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}")
    options = ["--dry-run", "--quiet", "--report", folder / "report.json"]
    command = [python, "-m", "pip", "install", *options, "-r", "requirements.txt"]
    subprocess.run(command, cwd=PROJECT, check=True, timeout=300)
    report = json.loads((folder / "report.json").read_text())
    return {row["metadata"]["name"].lower().replace("-", "_") for row in report["install"]}


def test_what_is_there_stays_and_nothing_comes_that_only_tests_need(changed):
    assert "dflib" in changed
    assert not changed & INSTALLED.keys()
    assert not changed & {"pytest", "playwright", "statsmodels", "ruff", "hypothesis", "uv"}
