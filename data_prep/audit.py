"""Can a dataset be trusted? Counts, sizes, formats, copies, shared scenes, residual spectra and the shortcut probe: `python -m data_prep audit NAME`."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import duplicates, manifest, paths, shortcut, transform
from data_prep.errors import InputError
from data_prep.protocol import PROTOCOLS, assign
from data_prep.shortcut import Probe

log = logging.getLogger(__name__)

SAMPLE = 300  # images looked at per generator; reals as many as all generators together, up to
MOST = 1200
WEAK, STRONG = (
    0.6,
    0.75,
)  # AUROC of the probe (the interval's lower end) from which on it is called so


@dataclass(frozen=True)
class Audit:
    """All that was found in one dataset. looked: one row per image looked at (path, label, generator, group, raw_* and equalised_* features)."""

    name: str
    about: dict
    table: pd.DataFrame  # the manifest
    looked: pd.DataFrame
    spectra: dict[str, np.ndarray]  # generator -> mean residual spectrum
    raw: Probe
    equalised: Probe
    alike: transform.Equaliser | None
    copies: dict[str, dict]  # protocol -> duplicates.report
    overlap: dict[str, float]  # protocol -> share of test images whose scene is in train too

    @property
    def verdict(self) -> str:
        return _verdict(self.raw, self.equalised, self.alike)

    def summary(self) -> dict:
        """What goes into outputs/audit-NAME.json."""
        ok = self.table[self.table["status"] == "ok"]
        return {
            "name": self.name,
            "verdict": self.verdict,
            "shortcut_auroc": {"raw": self.raw.auroc, "equalised": self.equalised.auroc},
            "shortcut_ci95": {"raw": self.raw.ci95, "equalised": self.equalised.ci95},
            "single_feature_auroc": {"raw": self.raw.single, "equalised": self.equalised.single},
            "images_probed": len(self.looked),
            "equaliser": {"side": self.alike.side, "jpeg": self.alike.jpeg} if self.alike else None,
            "images": {g: int(n) for g, n in ok["generator"].value_counts().items()},
            "quarantined": {
                s: int(n)
                for s, n in self.table.loc[self.table["status"] != "ok", "status"]
                .value_counts()
                .items()
            },
            "scenes": int(ok["group"].nunique()),
            "scene_overlap": self.overlap,
            "duplicates": self.copies,
            "licence": self.about.get("licence", ""),
        }


def audit(name: str, *, sample: int = SAMPLE, workers: int | None = None) -> Audit:
    """Look at a prepared dataset: the manifest as a whole, and up to `sample` images per generator (reals: as many as all fakes) themselves.

    Raises `InputError` for a dataset that is not there, of reals alone, or with too few scenes to cross-validate.

    >>> audit("demo").verdict                                       # doctest: +SKIP
    """
    table, about = manifest.load(name), paths.describe(name)
    ok = table[table["status"] == "ok"]
    if set(ok["label"]) != {0, 1}:
        raise InputError(
            f"{name!r} has only images with label {', '.join(map(str, set(ok['label'])))}: nothing to tell apart, nothing to audit"
        )
    if min(ok.groupby("label")["group"].nunique()) < 2 * shortcut.FOLDS:
        raise InputError(
            f"{name!r} has too few scenes to audit: at least {2 * shortcut.FOLDS} of each class are needed"
        )
    alike = transform.equaliser(table)
    chosen = _sample(ok, sample)
    root = paths.images_root(name)
    task = partial(_look, alike=alike)
    found = manifest.parallel(
        task,
        [(root / p, s) for p, s in zip(chosen["path"], chosen["sha256"], strict=True)],
        desc=f"auditing {name}",
        workers=workers,
        serial=64,
    )
    readable = np.array([f is not None for f in found])
    if not readable.all():
        raise InputError(
            f"{name}: {(~readable).sum()} images cannot be read any more (e.g. {chosen['path'][~readable].iloc[0]}): scan again with python -m data_prep"
        )
    sets = {kind: pd.DataFrame([f[kind] for f in found]) for kind in ("raw", "equalised")}
    chosen = chosen[["path", "label", "generator", "group"]].reset_index(drop=True)
    probes = {
        k: shortcut.probe(x, chosen["label"].to_numpy(), chosen["group"].to_numpy())
        for k, x in sets.items()
    }
    spectra = np.stack([f["spectrum"] for f in found])
    splits = {p: s for p in PROTOCOLS if (s := _split(table, p)) is not None}
    return Audit(
        name,
        about,
        table,
        looked=chosen.join([x.add_prefix(f"{k}_") for k, x in sets.items()]),
        spectra={
            g: spectra[rows].mean(axis=0) for g, rows in chosen.groupby("generator").indices.items()
        },
        raw=probes["raw"],
        equalised=probes["equalised"],
        alike=alike,
        copies={p: duplicates.report(table, s) for p, s in splits.items()},
        overlap={p: _overlap(table, s) for p, s in splits.items()},
    )


def write(name: str, *, sample: int = SAMPLE) -> tuple[Audit, Path]:
    """Audit a dataset and write outputs/audit-NAME.json and outputs/audit-NAME.html; returns the audit and the page's path."""
    from data_prep import audit_page  # here, because it loads matplotlib

    found = audit(name, sample=sample)
    folder = paths.outputs_root()
    folder.mkdir(parents=True, exist_ok=True)
    page, text = folder / f"audit-{name}.html", audit_page.render(found)
    paths.write_text(folder / f"audit-{name}.json", json.dumps(found.summary(), indent=1))
    paths.write_text(page, text)
    return found, page


def _look(item: tuple[Path, str], *, alike: transform.Equaliser | None) -> dict | None:
    return shortcut.look(item[0], item[1], alike=alike)


def _sample(ok: pd.DataFrame, most: int) -> pd.DataFrame:
    """Up to `most` of each generator, as many reals as fakes; of the same scenes as far as there are any in common."""
    order = ok.assign(key=pd.util.hash_array(ok["group"].to_numpy(dtype=object))).sort_values(
        ["key", "path"]
    )
    fakes = order[order["label"] == 1].groupby("generator").head(most)
    return pd.concat([fakes, order[order["label"] == 0].head(min(MOST, max(most, len(fakes))))])


def _split(table: pd.DataFrame, protocol: str) -> pd.Series | None:
    try:
        return assign(table, protocol)
    except InputError as error:
        log.warning("no %s split: %s", protocol, error)
        return None


def _overlap(table: pd.DataFrame, split: pd.Series) -> float:
    trained = set(table.loc[split == "train", "group"])
    return float(table.loc[split == "test", "group"].isin(trained).mean())


def _verdict(raw: Probe, equalised: Probe, alike: transform.Equaliser | None) -> str:
    def words(found: Probe) -> str:
        return f"{found.auroc:.2f} [{found.ci95[0]:.2f}, {found.ci95[1]:.2f}]"

    low = raw.ci95[0]
    if low < WEAK and raw.auroc < STRONG:
        start = (
            f"No strong give-away: metadata and trivial statistics alone reach AUROC {words(raw)}."
        )
    else:
        tell = ", ".join(
            f"{f.replace('_', ' ')} ({a:.2f})" for f, a in list(raw.single.items())[:3]
        )
        kind = "Weak give-aways" if low < STRONG else "Strong give-aways"
        start = f"{kind}: metadata and trivial statistics alone reach AUROC {words(raw)}. The best alone: {tell}."
    if alike is None:
        return (
            f"{start} Sizes and JPEG qualities are the same in both classes: nothing to equalise."
        )
    if equalised.ci95[0] < WEAK and equalised.auroc < STRONG:
        rest = "little is left"
    elif equalised.ci95[0] < STRONG:
        rest = "part of it stays: read results with that in mind"
    else:
        rest = "the give-away stays: results on this set say little about detection"
    return f"{start} After equalising (protocol strict): {words(equalised)}, {rest}."
