"""How much of a score is the protocol's? One small detector under several splits of a dataset."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

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
    mode: str = "resize",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    recipe: train.Recipe | None = None,
) -> tuple[pd.DataFrame, dict]:
    """Train `model` under every arm of ARMS and for every seed: a row each, and the gaps of GAPS.

    A seed decides the split, the first weights and the order of the images. Gaps are {metric: dict
    of `metrics.combine`}, over seeds; zero where the dataset gives its own splits. The scenes' gap
    is negative where each scene stands in both classes, as to remember its twins misleads.

    >>> runs, gaps = leak("demo", size=32, seeds=(0, 1))  # doctest: +SKIP
    """
    rows = []
    for seed in seeds:
        for arm, how in ARMS.items():
            opened = data.open(name, size=size, mode=mode, split_seed=seed, **how)
            found = _scores(opened, model, replace(recipe or train.Recipe(), seed=seed))
            rows.append({"seed": seed, "arm": arm} | found)
    runs = pd.DataFrame(rows)
    of_arm = runs.pivot(index="seed", columns="arm")
    change = lambda metric, a, b: (of_arm[metric, a] - of_arm[metric, b]).to_numpy()[:, None]
    gaps = {
        gap: {m: metrics.combine(change(m, *arms)) for m in METRICS} for gap, arms in GAPS.items()
    }
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
    counts = {"n_train": len(opened.train), "n_test": len(test)}
    return {metric: found[metric] for metric in METRICS} | counts
