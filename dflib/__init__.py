"""Deepfake-detector compression: a thin library under a study workbook. Submodules are imported one by one, so that this stays quick."""

__version__ = "0.1.0"
