"""How much of a score is the protocol's? One small detector under several splits of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from data_prep.errors import InputError
from dflib import data, metrics, models, train

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
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    recipe: train.Recipe | None = None,
    on_run: Callable[[dict], None] = lambda row: None,
) -> tuple[pd.DataFrame, dict]:
    """Train `model` under every arm of ARMS and for every seed: a row each, and the gaps of GAPS.

    A seed decides the split, the first weights and the order of the images. Gaps are {metric: dict
    of `metrics.combine`}: differences within each seed. Zero by construction where the dataset
    gives its own splits. The scenes' gap is negative where each stands in both classes (a photograph
    and its renderings): a test image's twins are mostly of the *other* class, so to remember them
    misleads; they leak all the same. Raises `InputError` as `data.open` does, and for no seeds.

    >>> runs, gaps = leak("demo", size=32, seeds=(0, 1))  # doctest: +SKIP
    """
    if not seeds:
        raise InputError("no seeds: give at least one, better five, e.g. --seeds 0,1,2,3,4")
    rows = []
    for seed in seeds:
        for arm, how in ARMS.items():
            opened = data.open(name, size=size, split_seed=seed, **how)
            found = _scores(opened, model, replace(recipe or train.Recipe(), seed=seed))
            rows.append({"seed": seed, "arm": arm} | found)
            on_run(rows[-1])
    runs = pd.DataFrame(rows)
    of_arm = runs.pivot(index="seed", columns="arm")
    gaps = {}
    for gap, (a, b) in GAPS.items():
        changes = {m: (of_arm[m, a] - of_arm[m, b]).to_numpy()[:, None] for m in METRICS}
        gaps[gap] = {metric: metrics.combine(change) for metric, change in changes.items()}
    return runs, gaps


def _scores(opened: data.Dataset, model: str, recipe: train.Recipe) -> dict[str, float]:
    with train.seeded(recipe.seed):
        detector = models.Detector(models.architecture(model, size=opened.size))
    train.fit(detector, opened, recipe)
    val, test = opened.val, opened.test
    threshold = metrics.best_threshold(val.labels, train.predict(detector, val))
    scores = train.predict(detector, test)
    options = {"threshold": threshold, "draws": 0}
    found = metrics.evaluate(test.labels, scores, test.generators, **options)["all"]
    return {metric: found[metric] for metric in METRICS}
