"""How much of a score is the protocol's? One small detector under both, `paper` and `strict`."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from data_prep.errors import InputError, short
from data_prep.protocol import PROTOCOLS
from dflib import data, metrics, models, train
from dflib.study.compare import JUDGED
from dflib.study.runs import SEEDS


def leak(
    name: str,
    *,
    size: int = 64,
    model: str = "S60",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    recipe: train.Recipe | None = None,
) -> tuple[pd.DataFrame, dict]:
    """Train `model` under each protocol and for every seed: a row each, and what `paper` (single
    images at random) gives more than `strict`, {metric: dict of `metrics.combine`}, over seeds.

    A seed decides the split (whatever one the set came with), first weights and images' order.
    """
    if not all(0 <= seed < SEEDS for seed in seeds):
        raise InputError(f"seeds {short(seeds)}: expected whole numbers from 0 below 2^32")
    rows = []
    for seed in dict.fromkeys(seeds):
        how = replace(recipe or train.Recipe(), seed=seed)
        for protocol in PROTOCOLS:
            opened = data.open(name, size=size, protocol=protocol, split_seed=seed)
            rows.append({"seed": seed, "protocol": protocol} | _scores(opened, model, how))
    runs = pd.DataFrame(rows)
    wide = runs.pivot(index="seed", columns="protocol")
    change = {m: wide[m, "paper"] - wide[m, "strict"] for m in JUDGED}
    return runs, {m: metrics.combine(x.to_numpy()[:, None]) for m, x in change.items()}


def _scores(opened: data.Dataset, model: str, recipe: train.Recipe) -> dict[str, float]:
    with train.seeded(recipe.seed):
        detector = models.Detector(models.architecture(model, size=opened.size))
    train.fit(detector, opened, recipe)
    val, test = opened.val, opened.test
    threshold = metrics.best_threshold(val.labels, train.predict(detector, val))
    scores = train.predict(detector, test)
    options = {"threshold": threshold, "draws": 0}
    found = metrics.evaluate(test.labels, scores, test.generators, **options)["all"]
    return {metric: found[metric] for metric in JUDGED}
