"""Datasets that can be trusted: scan, check, split, decode once. Knows nothing of models.

A dataset lives in `<data root>/<name>/`: `manifest.csv` (one row per image), `dataset.json` (where
the images are), `cache/` (decoded once). The data root is `$DFLIB_DATA`, else `data/`.
"""
