"""How much of a score is the protocol's? The same small detector trained and tested under several splits of one dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from data_prep.errors import InputError
from data_prep.paths import write_text
from dflib import data, metrics, models, train
from dflib.study.runs import outputs_root

ARMS = {  # name -> how the data are split and prepared
    "paper": {"protocol": "paper"},  # single images at random, as in arXiv 2504.21066
    "grouped": {"protocol": "paper", "whole_scenes": True},  # the same, but no scene is cut
    "strict": {"protocol": "strict"},  # and sizes and JPEG qualities alike, classes balanced
}
GAPS = {
    "scenes": ("paper", "grouped"),
    "the rest": ("grouped", "strict"),
    "all": ("paper", "strict"),
}
METRICS = ("auroc", "balanced_accuracy")


def leak(
    name: str,
    *,
    size: int = 64,
    model: str = "S60",
    mode: str = "resize",
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    recipe: train.Recipe | None = None,
    on_run: Callable[[dict], None] = lambda row: None,
) -> tuple[pd.DataFrame, dict]:
    """Train `model` under every arm of ARMS and for every seed; returns the runs (one row each), and the gaps of GAPS.

    A seed decides the split, the first weights and the order of the images. Gaps are {metric: {mean, std, ci95, seeds}}: differences within
    each seed, with a Student interval over seeds (None for one seed). Thresholds come from the validation part.
    Where the dataset gives its own splits, all arms keep them: the gap of the scenes is then zero by construction.

    The gap of the scenes is negative where each scene stands in both classes (Synthbuster: a photograph and its renderings). A test image's
    twins in the random training part are mostly of the *other* class, so to remember scenes misleads. Tested without any training, 220
    scenes in three renderings, three seeds: the three nearest training images (8 x 8 pixels) vote with AUROC 0.28 to 0.30 under the random
    split, 0.49 to 0.50 under the grouped one. Scenes leak there as well; a negative gap does not say that the random split is harmless.
    Raises `InputError` as `data.open` does, and for no seeds.

    >>> runs, gaps = leak("demo", size=32, seeds=(0, 1))             # doctest: +SKIP
    """
    if not seeds:
        raise InputError("no seeds: give at least one, better five, e.g. --seeds 0,1,2,3,4")
    rows = []
    for seed in seeds:
        for arm, how in ARMS.items():
            opened = data.open(name, size=size, mode=mode, split_seed=seed, **how)
            rows.append(
                {"seed": seed, "arm": arm}
                | _scores(opened, model, replace(recipe or train.Recipe(), seed=seed))
            )
            on_run(rows[-1])
    runs = pd.DataFrame(rows)
    by_arm = {arm: rows.set_index("seed")[list(METRICS)] for arm, rows in runs.groupby("arm")}
    differences = {gap: by_arm[a] - by_arm[b] for gap, (a, b) in GAPS.items()}
    return runs, {gap: metrics.over_seeds(d.to_dict("records")) for gap, d in differences.items()}


def write(name: str, runs: pd.DataFrame, gaps: dict) -> Path:
    """Write outputs/leak-NAME.json: every run, and the gaps."""
    path = outputs_root() / f"leak-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path, json.dumps({"dataset": name, "gaps": gaps, "runs": runs.to_dict("records")}, indent=1)
    )
    return path


def _scores(opened: data.Dataset, model: str, recipe: train.Recipe) -> dict[str, float]:
    with train.seeded(recipe.seed):
        detector = models.Detector(models.architecture(model, size=opened.size))
    train.fit(detector, opened, recipe)
    threshold = metrics.best_threshold(opened.val.labels, train.predict(detector, opened.val))
    scores, test = train.predict(detector, opened.test), opened.test
    found = metrics.evaluate(test.labels, scores, test.generators, threshold=threshold, draws=0)[
        "all"
    ]
    return {metric: found[metric] for metric in METRICS} | {
        "n_train": len(opened.train),
        "n_test": len(test),
    }
