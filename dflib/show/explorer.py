"""What the explorer shows, as data; and what of it needs no kernel as one file, `explorer.html`."""

import base64
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.markers import MarkerStyle
from PIL import Image

from data_prep import manifest
from data_prep.cache import fit
from data_prep.errors import InputError
from data_prep.integrity import BadImage, open_image, to_rgb
from data_prep.paths import outputs_root, write_text
from data_prep.transform import FORMATS
from dflib import data, explain, measure, models
from dflib.edge.predict import Predictor
from dflib.show import plots, words
from dflib.study import compare, records, runs, tables
from dflib.study.methods import METHODS, fold
from dflib.study.records import OLDER, older
from dflib.study.settings import DEFAULTS

log = logging.getLogger(__name__)
CHOICES = ["flipped to wrong", "flipped to right", "wrong under both", "right under both"]
UPLOAD_MB = 8
PICTURES, SIDE, COLUMNS = 240, 64, 16  # thumbnails of a study at most, their pixels, in a row
UPLOADS = f"{', '.join(FORMATS)}; at most {UPLOAD_MB} MB"


@dataclass(frozen=True)
class Study:
    """A BL, and the runs that are held against it: on the same images.

    results: by run id, BL's too, as `compare.load` gives them; every: all runs, of other seeds too.
    """

    base: dict
    results: dict[str, dict]
    every: dict[str, dict]

    @property
    def title(self) -> str:
        names = (self.base[key] for key in ("dataset", "protocol", "run_id"))
        code = OLDER if older(self.base) else ""
        return " · ".join(filter(None, (*names, fold(self.base["params"]), code)))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """As `runs.results`, by run id; `name`: "CPF 90%", with a hash where several have it."""
        flat = [runs.flat(r) | {"folder": r["folder"]} for r in self.results.values()]
        table = plots.in_order(pd.DataFrame(flat)).set_index("run_id")
        twice, hashes = table["run"].duplicated(keep=False), " · " + table.index.str[-8:]
        return table.assign(name=table["run"].where(~twice, table["run"] + hashes))

    def spec(self, method: str, rate: float | None) -> runs.Spec:
        """The request for such a run with the settings of the others; BL's win. `InputError` as of
        `runs.spec`, and for a setting that only older code knew."""
        every = [*self.results.values(), self.base]
        settings = {k: v for r in every for k, v in r["params"].items() if k in DEFAULTS or v}
        source = next((r["source"] for r in every if r["source"]), None)
        same = {key: self.base[key] for key in ("preset", "dataset", "protocol", "seed")}
        return runs.spec(method, rate=rate, source=source, settings=settings, **same)

    @cached_property
    def data(self) -> data.Dataset:
        """The images as its runs saw them; raises `InputError` where they are gone, or others."""
        if manifest.fingerprint_of(self.base["dataset"]) != self.base.get("data_fingerprint"):
            raise InputError(f"{self.base['dataset']} has changed since these runs were made")
        how = {k: self.base["params"].get(k, DEFAULTS[k]) for k in ("size", "mode", "limit")}
        return data.open(self.base["dataset"], protocol=self.base["protocol"], **how)


def studies(dataset: str = "", protocol: str = "") -> list[Study]:
    """All finished runs in groups that can be compared; those without a BL are left out. The first
    are those of `dataset` and `protocol`, and of them the ones with most runs."""
    every = compare.load()
    groups: dict[str, dict[str, dict]] = {}
    for run_id, result in every.items():
        base = result if result["method"] == "BL" else compare.baseline(result, every)
        if base:
            groups.setdefault(base["run_id"], {})[run_id] = result
    found = [Study(every[base_id], results, every) for base_id, results in groups.items()]
    place = lambda s: (s.base["dataset"] != dataset, s.base["protocol"] != protocol)
    return sorted(found, key=lambda s: (*place(s), -len(s.results)))


def cards(study: Study, run_id: str) -> pd.DataFrame:
    """What a run has, a row each: value, against (BL, in words), shown (gain | loss | none shown);
    the verdict of these weights, and with other seeds of the method."""
    result, run = study.results[run_id], study.rows.loc[run_id]
    base, found = study.rows.loc[study.base["run_id"]], {}
    for column in words.SIZES:
        if pd.isna(run[column]):  # of a detector that is not here
            continue
        share = run[column] / base[column]
        shown = "gain" if share < 1 else "loss" if share > 1 else "none shown"
        value = words.cost(column, run[column])
        found[words.COSTS[column][0]] = (value, f"{100 * share:.3g} % of BL's", shown)
    times = [each["cost"]["latency_ms"] for each in (result, study.base)]
    speed = measure.speed(*times)
    busy = " (busy machine)" if times[0].get("busy") else ""
    shown = {"faster": "gain", "slower": "loss"}.get(speed["words"], "none shown")
    found["latency, ms"] = (f"{times[0]['p50']:.2f}{busy}", words.spoken_speed(speed), shown)
    told, changes = compare.combined([result]), compare.paired(result, study.base)
    parts = [part for part in ("all", "seen", "unseen") if part in told]
    for metric, name in compare.JUDGED.items():
        for part in parts:
            value, *ends = tables.interval("", told[part][metric], inside=True).values()
            change, title = changes[part][metric], name[0].upper() + name[1:]
            title += f", {part}" * (part != "all")
            text = words.interval(value, ends)
            found[title] = (text, compare.spoken(change), compare.shown(change))
    if run_id == base.name:
        found = {title: (value, "", "none shown") for title, (value, *_) in found.items()}
    else:
        scored = [r for r in study.every.values() if (r["folder"] / "predictions.parquet").exists()]
        alike, titles = tables.with_seeds(result, scored), {"Verdict": changes}
        if len(alike) > 1:
            titles["Verdict over seeds"] = compare.against_baselines(alike, study.every)
        for title, of in [(title, part) for title in titles for part in parts]:
            verdict = compare.verdict(titles[title][of])
            shown = {"better": "gain", "worse": "loss"}.get(verdict.word, "none shown")
            whom = "against BL" + ", all generators" * (of == "all" and len(parts) > 1)
            found[title + f", {of}" * (of != "all")] = (verdict.says, whom, shown)
    return pd.DataFrame.from_dict(found, orient="index", columns=["value", "against", "shown"])


def compared(study: Study, run_id: str) -> pd.DataFrame:
    """Each test image under BL and a run: path, generator, label, base_score, score, base_right,
    right (each at its run's threshold), flip (they differ), and `became`, one of CHOICES."""
    base, run = study.base, study.results[run_id]
    before, after = (runs.predictions(r["folder"]) for r in (base, run))
    if not before["path"].equals(after["path"]):
        raise InputError(f"{run_id} was tested on other images than BL: choose another run")
    table, fake = after[["path", "generator", "label", "score"]], after["label"] == 1
    right = (after["score"] >= run["threshold"]) == fake
    base_right = (before["score"] >= base["threshold"]) == fake
    cases = [base_right & ~right, ~base_right & right, ~base_right & ~right]
    became = np.select(cases, CHOICES[:3], CHOICES[3])
    both = {"base_score": before["score"], "base_right": base_right, "right": right}
    return table.assign(**both, flip=right != base_right, became=became)


def chosen(table: pd.DataFrame, choice: str) -> list[int]:
    """Positions of the test images of `compared` of a choice, those that moved most first."""
    moved = (table["score"] - table["base_score"]).abs()[table["became"] == choice]
    return moved.sort_values(ascending=False, kind="stable").index.tolist()


def overlay(images: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat maps in [0, 1] over grey images: … x H x W x 3 and … x H x W -> … x H x W x 3, uint8."""
    share, colour = 0.75 * heat[..., None], 255 * colormaps["inferno"](heat)[..., :3]
    return ((1 - share) * 0.7 * images.mean(-1, keepdims=True) + share * colour).astype(np.uint8)


def looks(images: np.ndarray, folders: Sequence[Path]) -> np.ndarray:
    """Each image, its residual (8 times, around grey), and for each run Grad-CAM of "fake" over it.
    uint8, N x H x W x 3 -> N x (2 + runs) x H x W x 3."""
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    grey = np.clip(128 + 8 * explain.residual(batch), 0, 255)
    tiles = [images, np.repeat(grey[..., None], 3, -1)]
    for folder in folders:
        heat = explain.gradcam(models.load(folder / "model.safetensors"), batch)
        tiles.append(overlay(images, heat))
    return np.stack([tile.astype(np.uint8) for tile in tiles], axis=1)


def check_upload(content: bytes) -> Image.Image:
    """An uploaded image as upright RGB, decoded in memory; `InputError` for a bad file. Bytes, kind
    (of the content) and sides are checked before it is decoded."""
    if len(content) > 1e6 * UPLOAD_MB:
        raise InputError(f"the file has {len(content) / 1e6:.1f} MB: take {UPLOADS}")
    try:
        return to_rgb(open_image(content))
    except BadImage as error:
        raise InputError(f"the file cannot be used ({error}): take {UPLOADS}") from error


def answer(content: bytes, study: Study, run_ids: Sequence[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """An uploaded image through some runs' deployed files: a row each (label, probability,
    threshold), and its `looks`. Raises `InputError` as `check_upload` does."""
    image, folders = check_upload(content), [study.results[r]["folder"] for r in run_ids]
    found = pd.DataFrame([Predictor(folder)(content) for folder in folders])
    for error in found["error"].dropna():  # logits that are no numbers, say
        raise InputError(error)
    array = fit(image, size=study.base["params"]["size"], mode=study.base["params"]["mode"])
    return found.set_axis(study.rows["name"][run_ids]), looks(array[None], folders)[0]


# --- as one file, for a browser without a kernel


def write(path: Path | None = None) -> Path:
    """Write the page of all finished runs that have a BL, by default to `explorer.html`."""
    path = Path(path or outputs_root() / "explorer.html")
    found = list(filter(None, map(_on_page, studies())))
    about = {"studies": found, "titles": {row.code: row.title for row in METHODS.values()}}
    text = json.dumps(about | {"axes": plots.COSTS}, allow_nan=False).replace("<", "\\u003c")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, words.template("static.html.j2").render(data=Markup(text)))
    return path


def _on_page(study: Study) -> dict | None:
    """A study as the page takes it; None where its BL has no scores to hold others against."""
    of_runs, left_out = {}, []
    for run_id in study.rows.index:
        try:
            of_runs[run_id] = compared(study, run_id)
        except InputError as error:
            left_out.append(str(error))
    if study.base["run_id"] not in of_runs:
        return None
    test = of_runs[study.base["run_id"]]
    names = sorted(set(test["generator"]) - {"real"})
    # images that most runs decide unlike BL, then those of BL's worst errors
    flips = sum(table["flip"].to_numpy(int) for table in of_runs.values())
    error = (test["label"] - test["base_score"]).abs().to_numpy()
    shown = np.lexsort((-error, -flips))[:PICTURES].tolist()
    return {
        "title": study.title,
        "left_out": left_out,
        "base": study.base["run_id"],
        "best": records.best(study.results[i] for i in of_runs)["run_id"],
        "runs": [_run(study, run_id, table) for run_id, table in of_runs.items()],
        "labels": test["label"].tolist(),
        "generators": [names.index(g) if g in names else -1 for g in test["generator"]],
        "names": names,
        "unseen": sorted({*study.rows.loc[study.base["run_id"], "unseen"].split(",")} - {""}),
        "pictures": _pictures(study, shown),
        "pictured": shown,
    }


def _run(study: Study, run_id: str, table: pd.DataFrame) -> dict:
    """One run: what its card says, its scores (float64, base64), where it stands in the figure."""
    row, rate = study.rows.loc[run_id], study.results[run_id]["rate"]
    told = cards(study, run_id).reset_index(names="title").astype(str)
    colour, marker = plots.appearance(row["method"])
    shape = MarkerStyle(marker)
    outline = shape.get_path().transformed(shape.get_transform()).to_polygons()[0]
    known = {"auroc": row["auroc"], "low": row.get("auroc_low"), "high": row.get("auroc_high")}
    costs = {column: row[column] / unit for column, (_, unit) in plots.COSTS.items()}
    numbers = {key: None if pd.isna(x) else float(x) for key, x in (known | costs).items()}
    return numbers | {
        "id": run_id,
        "name": row["name"],
        "method": row["method"],
        "rate": rate,
        "threshold": study.results[run_id]["threshold"],
        "cards": told.to_dict("records"),
        "scores": base64.b64encode(table["score"].to_numpy("<f8").tobytes()).decode(),
        "colour": colour,
        "marker": (5 * outline).round(2).tolist(),
    }


def _pictures(study: Study, shown: list[int]) -> str:
    """Those test images on one sheet, `COLUMNS` in a row; "" if they are gone."""
    try:
        images = [Image.fromarray(study.data.test.image(i)).resize((SIDE, SIDE)) for i in shown]
    except (InputError, IndexError) as error:
        log.warning("no thumbnails of %s: %s", study.title, error)
        return ""
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(images) // COLUMNS) * SIDE))
    for k, image in enumerate(images):
        sheet.paste(image, (k % COLUMNS * SIDE, k // COLUMNS * SIDE))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
