"""The explorer as one file, `explorer.html`: what can be turned without a kernel, on a phone, too.

All numbers are those of `explorer`; only decisions at another threshold are counted in the page
(`templates/static.html.j2`), from the stored scores.
"""

import base64
import io
import json
import logging
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.markers import MarkerStyle
from PIL import Image

from data_prep.errors import InputError
from data_prep.paths import outputs_root, write_text
from dflib.show import explorer, plots
from dflib.study import records
from dflib.study.methods import METHODS

log = logging.getLogger(__name__)
PICTURES, SIDE, COLUMNS = 240, 64, 16  # thumbnails of a study at most, their pixels, in a row


def write(path: Path | None = None) -> Path:
    """Write the page of all finished runs that have a BL to be held against; returns its path.

    path: where to; by default `explorer.html` in the outputs root.

    >>> write()  # doctest: +SKIP
    """
    path = Path(path or outputs_root() / "explorer.html")
    found = list(filter(None, map(_study, explorer.studies())))
    about = {"studies": found, "titles": {row.code: row.title for row in METHODS.values()}}
    text = json.dumps(about | {"axes": plots.COSTS}, allow_nan=False).replace("<", "\\u003c")
    loader = jinja2.PackageLoader("dflib.show")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("static.html.j2")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, template.render(data=Markup(text)))
    return path


def _study(study: explorer.Study) -> dict | None:
    """A study as the page takes it: its runs, the test images' labels, and thumbnails of some.

    None where its BL has no scores to hold others against.
    """
    tables, left_out = {}, []
    for run_id in study.rows.index:
        try:
            tables[run_id] = explorer.compared(study, run_id)
        except InputError as error:
            left_out.append(str(error))
    if study.base["run_id"] not in tables:
        return None
    test = tables[study.base["run_id"]]
    names = sorted(set(test["generator"]) - {"real"})
    shown = _telling(tables)
    return {
        "title": study.title,
        "left_out": left_out,
        "base": study.base["run_id"],
        "best": records.best(study.results[i] for i in tables)["run_id"],
        "runs": [_run(study, run_id, table) for run_id, table in tables.items()],
        "labels": test["label"].tolist(),
        "generators": [names.index(g) if g in names else -1 for g in test["generator"]],
        "names": names,
        "unseen": sorted({*study.rows.loc[study.base["run_id"], "unseen"].split(",")} - {""}),
        "pictures": _pictures(study, shown),
        "pictured": shown,
    }


def _run(study: explorer.Study, run_id: str, table: pd.DataFrame) -> dict:
    """One run: what its card says, its scores (float64, base64), where it stands in the figure."""
    row, rate = study.rows.loc[run_id], study.results[run_id]["rate"]
    cards = explorer.cards(study, run_id).reset_index(names="title").astype(str)
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
        "cards": cards.to_dict("records"),
        "scores": base64.b64encode(table["score"].to_numpy("<f8").tobytes()).decode(),
        "colour": colour,
        "marker": (5 * outline).round(2).tolist(),
    }


def _telling(tables: dict[str, pd.DataFrame]) -> list[int]:
    """Positions of the test images that most runs decide unlike BL, then of BL's worst errors."""
    flips = sum(table["flip"].to_numpy(int) for table in tables.values())
    first = next(iter(tables.values()))
    error = (first["label"] - first["base_score"]).abs().to_numpy()
    return np.lexsort((-error, -flips))[:PICTURES].tolist()


def _pictures(study: explorer.Study, shown: list[int]) -> str:
    """Those test images on one sheet, `COLUMNS` in a row, as a data address; "" if they are
    gone."""
    try:
        test = study.data.test
        images = [Image.fromarray(test.image(i)).resize((SIDE, SIDE)) for i in shown]
    except (InputError, IndexError) as error:
        log.warning("no thumbnails of %s: %s", study.title, error)
        return ""
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(images) // COLUMNS) * SIDE))
    for k, image in enumerate(images):
        sheet.paste(image, (k % COLUMNS * SIDE, k // COLUMNS * SIDE))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
