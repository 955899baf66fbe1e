"""The figures of notebook 14: every value is drawn where it belongs, and nothing is left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from data_prep.transform import GRID
from dflib import explain, metrics
from dflib.show import plots_generalization as figures

GENERATORS = ("gan", "vae", "diffusion")


@pytest.fixture
def cells() -> pd.DataFrame:
    """Two methods, each trained on each generator alone and tested on all."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "method": m,
            "rate": r,
            "train": a,
            "test": b,
            "seen": a == b,
            "auroc": (v := rng.uniform(0.3, 0.9)),
        }
        | {"auroc_low": v - 0.04, "auroc_high": v + 0.05}
        for m, r in (("BL", None), ("CKD", 0.9))
        for a in GENERATORS
        for b in GENERATORS
    ]
    return pd.DataFrame(rows)


def test_the_heat_map_writes_each_value_with_its_interval_and_frames_what_was_seen(cells):
    cells.loc[0, ["auroc_low", "auroc_high"]] = np.nan
    fig = figures.heat_map(cells)
    *panels, bar = fig.axes
    assert [ax.get_title() for ax in panels] == ["BL", "CKD 90%"] and bar.get_ylabel() == "AUROC"
    for ax, (_, mine) in zip(panels, cells.groupby("method"), strict=True):
        drawn = ax.images[0].get_array()
        texts = {
            (round(t.get_position()[0]), round(t.get_position()[1]), t.get_text()) for t in ax.texts
        }
        frames = {(round(p.get_x() + 0.47), round(p.get_y() + 0.47)) for p in ax.patches}
        for c in mine.itertuples():
            x, y = GENERATORS.index(c.test), GENERATORS.index(c.train)
            assert drawn[y, x] == c.auroc and (x, y, f"{c.auroc:.2f}") in texts
            span = (
                "no interval" if np.isnan(c.auroc_low) else f"{c.auroc_low:.2f}–{c.auroc_high:.2f}"
            )
            assert (x, y, span) in texts
        assert frames == {(i, i) for i in range(3)}


def test_held_out_generators_are_hollow_and_means_over_the_folds(cells):
    ax = figures.held_out(cells).axes[0]
    points = [
        (c.get_label(), x, y)
        for c in ax.containers
        for x, y in zip(*c.lines[0].get_data(), strict=True)
    ]
    drawn = {(label, GENERATORS[round(y)]): x for label, x, y in points}
    for method, name in (("BL", "BL"), ("CKD", "CKD 90%")):
        mine = cells[cells["method"] == method]
        for test in GENERATORS:
            for seen, word in ((True, "seen"), (False, "not seen")):
                expected = mine[(mine["test"] == test) & (mine["seen"] == seen)]["auroc"].mean()
                assert drawn[f"{name}, {word}", test] == pytest.approx(expected)
    hollow = {
        c.get_label(): to_hex(c.lines[0].get_markerfacecolor()) == "#fffffe" for c in ax.containers
    }
    assert all(pale == label.endswith("not seen") for label, pale in hollow.items())


def test_the_reliability_diagram_draws_the_bins_and_where_calibrated_ones_would_lie():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    labels = rng.random(20_000) < scores
    part = metrics.reliability(labels, scores)
    fig = figures.reliability({"calibrated": part, "not": metrics.reliability(labels, scores**3)})
    (good, bad), _ = np.split(np.array(fig.axes), 2)
    inside = []
    for ax in (good, bad):
        (x, y), spans = ax.lines[1].get_data(), ax.collections[0].get_segments()
        inside.append(
            np.mean(
                [
                    low <= value <= high
                    for value, ((_, low), (_, high)) in zip(y, spans, strict=True)
                ]
            )
        )
        assert len(x) == len(spans) == 15
    assert good.lines[1].get_ydata() == pytest.approx(part["observed"])
    assert inside[0] >= 0.85 and inside[1] < 0.3


def test_robustness_has_a_panel_a_family_from_mild_to_strong():
    rng = np.random.default_rng(0)
    rows = [
        {
            "perturbation": how,
            "method": m,
            "rate": r,
            "value": (v := rng.random()),
            "value_low": v - 0.1,
            "value_high": v + 0.1,
        }
        for m, r in (("BL", None), ("CKD", 0.9))
        for how in ("", *GRID)
    ]
    drops = pd.DataFrame(rows)
    axes = [ax for ax in figures.robustness(drops).axes if ax.get_xlabel()]
    families = figures.strengths(GRID)
    assert [ax.get_xlabel() for ax in axes] == [
        figures.FAMILIES[kind][0] for kind in families
    ] and len(axes) == 7
    assert sum(map(len, families.values())) == len(GRID)
    for ax, (kind, steps) in zip(axes, families.items(), strict=True):
        assert [t.get_text() for t in ax.get_xticklabels()] == [
            "as is",
            *(f"{a:g}" for a, _ in steps),
        ]
        amounts = [a for a, _ in steps]
        assert amounts == sorted(amounts, reverse=kind not in ("blur", "noise"))
        for bars, (_, mine) in zip(ax.containers, drops.groupby("method"), strict=True):
            value = mine.set_index("perturbation")["value"]
            assert bars.lines[0].get_ydata() == pytest.approx(
                [value[how] for how in ("", *(h for _, h in steps))]
            )


def test_spectra_share_one_scale_and_saliency_shows_each_image_under_each_model():
    rng = np.random.default_rng(0)
    parts = {g: rng.normal(size=(8, 8)) * (i + 1) for i, g in enumerate(GENERATORS)}
    *panels, _ = figures.spectra(parts).axes
    assert len({ax.images[0].get_clim() for ax in panels if ax.images}) == 1
    assert [ax.get_title() for ax in panels if ax.images] == list(GENERATORS)
    images, maps = (
        list(rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)),
        rng.random((2, 4, 8, 8)),
    )
    fig = figures.saliency(images, {"BL": maps[0], "CKD": maps[1]}, list("abcd"))
    assert [ax.get_title() for ax in fig.axes[:4]] == list("abcd")
    for k, row in enumerate((fig.axes[4:8], fig.axes[8:])):
        assert all((ax.images[1].get_array() == maps[k, i]).all() for i, ax in enumerate(row))


def test_similarities_name_the_medians():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 30, 8, 8))
    found = explain.similarity(before, after)
    left, right = figures.similarities({"CKD": found}, chance=0.2 / 1.8).axes
    for ax, key in ((left, "rank"), (right, "iou")):
        assert (
            ax.get_legend().get_texts()[0].get_text() == f"CKD, median {np.median(found[key]):.2f}"
        )
        assert ax.patches[0].get_data().values.sum() == pytest.approx(100)


@pytest.mark.parametrize("draw", [figures.heat_map, figures.held_out, figures.robustness])
def test_nothing_to_draw_says_so(draw):
    assert "no " in draw(pd.DataFrame()).texts[0].get_text()
