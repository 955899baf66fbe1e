"""Can a dataset be trusted? Counts, sizes, copies, shared scenes, spectra, the shortcut probe."""

import json
import logging
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pandas as pd

from data_prep import duplicates, manifest, paths, shortcut, transform
from data_prep.errors import InputError
from data_prep.protocol import PROTOCOLS, assign

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
    licence: str
    table: pd.DataFrame  # the manifest
    looked: pd.DataFrame  # a row per image looked at: ids, raw_* and equalised_* features
    spectra: dict[str, np.ndarray]  # generator -> mean residual spectrum
    raw: shortcut.Probe
    equalised: shortcut.Probe
    alike: transform.Equaliser | None
    copies: dict[str, dict]  # protocol ("as given" without any) -> duplicates.report
    overlap: dict[str, float]  # protocol -> share of test images whose scene is in train too

    @property
    def verdict(self) -> str:
        """What the probe tells, of the set as it is and equalised; copies, first where many."""
        kind = "Weak give-aways" if self.raw.ci95[0] < STRONG else "Strong give-aways"
        kind = "Metadata give little away" if _harmless(self.raw) else kind
        best = [f"{f.replace('_', ' ')} ({a:.2f})" for f, a in list(self.raw.single.items())[:3]]
        text = f"{kind}: metadata and trivial statistics alone reach AUROC {_reached(self.raw)}; "
        text += f"the best alone: {', '.join(best)}. "
        if self.alike is None:
            text += "Files are alike in both classes: nothing to equalise."
        else:
            rest = "the give-away stays: results on this set say little about detection"
            if self.equalised.ci95[0] < STRONG:
                rest = "part of it stays: read results with that in mind"
            rest = "little is left" if _harmless(self.equalised) else rest
            text += f"After equalising (protocol strict): {_reached(self.equalised)}, {rest}."
        n, reported = int((self.table["status"] == "ok").sum()), next(iter(self.copies.values()))
        for kind, most in COPIES.items():
            images, sets, both = (reported[kind][k] for k in ("images", "sets", "across_labels"))
            copies = f"{images} of {n} images are {kind} copies ({sets} pictures, {both} of them "
            copies += "both real and fake)."
            if images > most * n:
                return f"Not to be trusted: {copies} {text}"
            if kind == "exact" and images:
                text += f" {copies}"
        return text

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
            "licence": self.licence,
            "data_fingerprint": manifest.fingerprint(self.table),
        }


def last(name: str) -> dict | None:
    """What the last audit of a dataset found; None without one, or if the images have changed."""
    try:
        found = json.loads(paths.regular(paths.outputs_root() / f"audit-{name}.json").read_bytes())
        now = manifest.fingerprint_of(name) if name in paths.present() else None
        return found if found["verdict"] and now in (None, found["data_fingerprint"]) else None
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        return None


def verdict_of(name: str) -> str:
    """The verdict of a dataset's last audit, or a sentence that says that there was none."""
    if found := last(name):
        return found["verdict"]
    return f"{name!r} was never audited as it is: python -m data_prep audit {name}"


def audit(name: str, *, sample: int = SAMPLE) -> Audit:
    """Look at a prepared dataset: its manifest, and up to `sample` images per generator; else
    `InputError`: not there, of reals alone, or of too few scenes."""
    table = manifest.load(name)
    ok = table[table["status"] == "ok"]
    scenes = ok.groupby("label")["group"].nunique()
    if len(scenes) < 2 or scenes.min() < 2 * shortcut.FOLDS:
        need = f"at least {2 * shortcut.FOLDS} of each class are needed"
        raise InputError(f"{name!r} has too few scenes of real or of fake to audit: {need}")
    chosen = _sample(ok, sample)
    alike, root = transform.equaliser(table), paths.images_root(name)
    items = [(root / p, sha256) for p, sha256 in zip(chosen["path"], chosen["sha256"], strict=True)]
    task = partial(shortcut.look, alike=alike)
    found = manifest.parallel(task, items, desc=f"auditing {name}", serial=64)
    if None in found:
        what = f"images cannot be read any more (e.g. {items[found.index(None)][0]})"
        raise InputError(f"{name}: {what}: scan again with python -m data_prep")
    sets = {kind: pd.DataFrame([f[kind] for f in found]) for kind in ("raw", "equalised")}
    chosen = chosen[["path", "label", "generator", "group"]].reset_index(drop=True)
    labels, groups = chosen["label"].to_numpy(), chosen["group"].to_numpy()
    spectra, rows_of = np.stack([f["spectrum"] for f in found]), chosen.groupby("generator").indices
    splits, overlap = {}, {}
    for protocol in PROTOCOLS:
        try:
            split = splits[protocol] = assign(table, protocol)
            trained, tested = (table.loc[split == part, "group"] for part in ("train", "test"))
            overlap[protocol] = float(tested.isin(trained).mean())
        except InputError as error:
            log.warning("no %s split: %s", protocol, error)
    given = splits or {"as given": table["split"]}
    return Audit(
        name,
        paths.describe(name).get("licence", ""),
        table,
        looked=chosen.join([x.add_prefix(f"{kind}_") for kind, x in sets.items()]),
        spectra={generator: spectra[rows].mean(axis=0) for generator, rows in rows_of.items()},
        **{kind: shortcut.probe(x, labels, groups) for kind, x in sets.items()},
        alike=alike,
        copies={p: duplicates.report(table, split) for p, split in given.items()},
        overlap=overlap,
    )


def _sample(ok: pd.DataFrame, most: int) -> pd.DataFrame:
    """Up to `most` of each generator, as many reals as fakes; of as many scenes as there are, and
    the same if possible."""
    key = pd.util.hash_array(ok["group"].to_numpy(dtype=object))
    turn = ok.sort_values("path").groupby(["generator", "group"]).cumcount()
    order = ok.assign(key=key, turn=turn).sort_values(["turn", "key", "path"])
    fakes = order[order["label"] == 1].groupby("generator").head(most)
    reals = order[order["label"] == 0].head(min(MOST, max(most, len(fakes))))
    return pd.concat([fakes, reals]).drop(columns="turn")


def _reached(found: shortcut.Probe) -> str:
    return f"{found.auroc:.2f} [{found.ci95[0]:.2f}, {found.ci95[1]:.2f}]"


def _harmless(found: shortcut.Probe) -> bool:
    return found.ci95[0] < WEAK and found.auroc < STRONG
