"""Can a dataset be trusted? Counts, sizes, copies, shared scenes, spectra and the shortcut probe.

`python -m data_prep audit NAME`; the page with its figures is `audit_page`.
"""

import json
import logging
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pandas as pd

from data_prep import duplicates, manifest, paths, shortcut, transform
from data_prep.errors import InputError
from data_prep.protocol import PROTOCOLS, assign
from data_prep.shortcut import Probe, look

log = logging.getLogger(__name__)

SAMPLE = 300  # images looked at per generator; reals as many as all generators together, up to
MOST = 1200
COPIES = {"exact": 0.05, "near": 0.2}  # shares of the images from which on the verdict tells them
# AUROC of the probe (the interval's lower end) from which on a give-away is called weak or strong
WEAK, STRONG = 0.6, 0.75


@dataclass(frozen=True)
class Audit:
    """All that was found in one dataset."""

    name: str
    about: dict
    table: pd.DataFrame  # the manifest
    looked: pd.DataFrame  # a row per image looked at: ids, raw_* and equalised_* features
    spectra: dict[str, np.ndarray]  # generator -> mean residual spectrum
    raw: Probe
    equalised: Probe
    alike: transform.Equaliser | None
    copies: dict[str, dict]  # protocol ("as given" without any) -> duplicates.report
    overlap: dict[str, float]  # protocol -> share of test images whose scene is in train too

    @property
    def verdict(self) -> str:
        """What the probe tells, of the set as it is and equalised; copies, first where many."""
        copies, many = self._copies()
        probed = f"{self._probed()} {self._remaining()}"
        return f"Not to be trusted: {copies} {probed}" if many else f"{probed} {copies}".strip()

    def _probed(self) -> str:
        raw = self.raw
        kind = "Weak give-aways" if raw.ci95[0] < STRONG else "Strong give-aways"
        kind = "Metadata give little away" if _harmless(raw) else kind
        best = [f"{f.replace('_', ' ')} ({a:.2f})" for f, a in list(raw.single.items())[:3]]
        text = f"{kind}: metadata and trivial statistics alone reach AUROC {_reached(raw)}"
        return f"{text}; the best alone: {', '.join(best)}."

    def _remaining(self) -> str:
        if self.alike is None:
            return "Files are alike in both classes: nothing to equalise."
        rest = "the give-away stays: results on this set say little about detection"
        if self.equalised.ci95[0] < STRONG:
            rest = "part of it stays: read results with that in mind"
        rest = "little is left" if _harmless(self.equalised) else rest
        return f"After equalising (protocol strict): {_reached(self.equalised)}, {rest}."

    def _copies(self) -> tuple[str, bool]:
        """A sentence on copies, "" without any; and whether they make the set worth little."""
        n, reported = int((self.table["status"] == "ok").sum()), next(iter(self.copies.values()))
        for kind, most in COPIES.items():
            images, sets, both = (reported[kind][k] for k in ("images", "sets", "across_labels"))
            if images > most * n or (kind == "exact" and images):
                text = f"{images} of {n} images are {kind} copies ({sets} pictures, {both} of them"
                return f"{text} both real and fake).", images > most * n
        return "", False

    def summary(self) -> dict:
        """What goes into outputs/audit-NAME.json."""
        good = self.table["status"] == "ok"
        ok, probes = self.table[good], {"raw": self.raw, "equalised": self.equalised}
        return {
            "name": self.name,
            "verdict": self.verdict,
            "shortcut_auroc": {kind: probe.auroc for kind, probe in probes.items()},
            "shortcut_ci95": {kind: probe.ci95 for kind, probe in probes.items()},
            "single_feature_auroc": {kind: probe.single for kind, probe in probes.items()},
            "images_probed": len(self.looked),
            "equaliser": asdict(self.alike) if self.alike else None,
            "images": ok["generator"].value_counts().to_dict(),
            "quarantined": self.table.loc[~good, "status"].value_counts().to_dict(),
            "scenes": int(ok["group"].nunique()),
            "scene_overlap": self.overlap,
            "duplicates": self.copies,
            "licence": self.about.get("licence", ""),
            "data_fingerprint": manifest.fingerprint(self.table),
        }


def last(name: str) -> dict | None:
    """What the last audit of a dataset found; None without one, or if the images have changed."""
    try:
        text = (paths.outputs_root() / f"audit-{name}.json").read_text(encoding="utf-8")
        found = json.loads(text)
        now = manifest.fingerprint_of(name) if name in paths.present() else None
        return found if now in (None, found.get("data_fingerprint")) else None
    except (OSError, ValueError, KeyError):
        return None


def verdict_of(name: str) -> str:
    """The verdict of a dataset's last audit, or a sentence that says that there was none."""
    if found := last(name):
        return found["verdict"]
    return f"{name!r} was never audited as it is: python -m data_prep audit {name}"


def audit(name: str, *, sample: int = SAMPLE, workers: int | None = None) -> Audit:
    """Look at a prepared dataset: its manifest, and up to `sample` images per generator.

    Raises `InputError` for a dataset that is not there, of reals alone, or with too few scenes.

    >>> audit("demo").verdict                                        # doctest: +SKIP
    """
    table, about = manifest.load(name), paths.describe(name)
    ok = table[table["status"] == "ok"]
    if set(ok["label"]) != {0, 1}:
        labels = ", ".join(map(str, set(ok["label"])))
        why = f"has only images with label {labels}: nothing to tell apart, nothing to audit"
        raise InputError(f"{name!r} {why}")
    if min(ok.groupby("label")["group"].nunique()) < 2 * shortcut.FOLDS:
        need = f"at least {2 * shortcut.FOLDS} of each class are needed"
        raise InputError(f"{name!r} has too few scenes to audit: {need}")
    alike = transform.equaliser(table)
    chosen = _sample(ok, sample)
    root, task = paths.images_root(name), partial(look, alike=alike)
    items = [(root / p, sha256) for p, sha256 in zip(chosen["path"], chosen["sha256"], strict=True)]
    found = manifest.parallel(task, items, desc=f"auditing {name}", workers=workers, serial=64)
    if None in found:
        first = chosen["path"].iloc[found.index(None)]
        what = f"{found.count(None)} images cannot be read any more (e.g. {first})"
        raise InputError(f"{name}: {what}: scan again with python -m data_prep")
    sets = {kind: pd.DataFrame([f[kind] for f in found]) for kind in ("raw", "equalised")}
    chosen = chosen[["path", "label", "generator", "group"]].reset_index(drop=True)
    labels, scenes = chosen["label"].to_numpy(), chosen["group"].to_numpy()
    spectra, rows_of = np.stack([f["spectrum"] for f in found]), chosen.groupby("generator").indices
    splits = {p: split for p in PROTOCOLS if (split := _split(table, p)) is not None}
    given = splits or {"as given": table["split"]}
    trained = {p: table.loc[split == "train", "group"] for p, split in splits.items()}
    tested = {p: table.loc[split == "test", "group"] for p, split in splits.items()}
    return Audit(
        name,
        about,
        table,
        looked=chosen.join([x.add_prefix(f"{kind}_") for kind, x in sets.items()]),
        spectra={generator: spectra[rows].mean(axis=0) for generator, rows in rows_of.items()},
        **{kind: shortcut.probe(x, labels, scenes) for kind, x in sets.items()},
        alike=alike,
        copies={p: duplicates.report(table, split) for p, split in given.items()},
        overlap={p: float(tested[p].isin(trained[p]).mean()) for p in splits},
    )


def _sample(ok: pd.DataFrame, most: int) -> pd.DataFrame:
    """Up to `most` of each generator, as many reals as fakes; of the same scenes if possible."""
    key = pd.util.hash_array(ok["group"].to_numpy(dtype=object))
    order = ok.assign(key=key).sort_values(["key", "path"])
    fakes = order[order["label"] == 1].groupby("generator").head(most)
    return pd.concat([fakes, order[order["label"] == 0].head(min(MOST, max(most, len(fakes))))])


def _split(table: pd.DataFrame, protocol: str) -> pd.Series | None:
    try:
        return assign(table, protocol)
    except InputError as error:
        log.warning("no %s split: %s", protocol, error)
        return None


def _reached(found: Probe) -> str:
    return f"{found.auroc:.2f} [{found.ci95[0]:.2f}, {found.ci95[1]:.2f}]"


def _harmless(found: Probe) -> bool:
    return found.ci95[0] < WEAK and found.auroc < STRONG
