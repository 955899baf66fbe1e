"""Deepfake-detector compression: a thin library under a study workbook.

Submodules are imported one by one, so that this stays quick.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when imported

__version__ = "0.1.0"
