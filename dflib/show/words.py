"""How numbers are written, in figures, tables and pages: values, intervals, speeds, names."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dflib.study.compare import spoken

TRIVIAL = "one answer: accuracy, F1"  # a column's title
COSTS = {  # column of `records.flat`: its title, divisor, how it is written
    "params": ("parameters", 1, "{:,.0f}"),
    "nonzero": ("not zero", 1, "{:,.0f}"),
    "macs": ("million MACs", 1e6, "{:,.1f}"),
    "file_bytes": ("file, MB", 1e6, "{:.2f}"),
    "gzip_bytes": ("gzipped, MB", 1e6, "{:.2f}"),
    "latency_p50_ms": ("latency, ms", 1, "{:.2f}"),
    "latency_p95_ms": ("p95, ms", 1, "{:.2f}"),
    "peak_rss_mb": ("peak memory, MB", 1, "{:.0f}"),
    "compress_s": ("compression, s", 1, "{:.1f}"),
    "train_s": ("training, s", 1, "{:.1f}"),
    "transfer_s": ("transfer, s", 1, "{:.1f}"),
    "trainable_params": ("trained", 1, "{:,.0f}"),
    "shipped_bytes": ("to ship, MB", 1e6, "{:.2f}"),
}
SIZES = ("params", "nonzero", "macs", "file_bytes")


def template(name: str):
    """A page of `templates/`, for Jinja."""
    import jinja2  # not for tables in a terminal

    look = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    pages = jinja2.Environment(loader=jinja2.PackageLoader("dflib.show"), **look)
    return pages.get_template(name)


def run_label(method: str, rate: float | None, settings: str = "") -> str:
    """A run's short name in figures and sentences: "CKD 90%", "BL (epochs 9)"."""
    label = method if rate is None or pd.isna(rate) else f"{method} {100 * rate:g}%"
    return f"{label} ({settings})" if settings else label


def cost(column: str, value: float | None) -> str:
    """A value of a column of `COSTS` for reading; a dash for none."""
    _, unit, form = COSTS[column]
    return "–" if pd.isna(value) else form.format(value / unit)


def names(rows: pd.DataFrame) -> list[str]:
    """The short name of each row's run, from its method and rate."""
    return [run_label(*each) for each in zip(rows["method"], rows["rate"], strict=True)]


def interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """A value with its 95 % interval: "0.912 [0.88, 0.94]"; a dash for no value."""
    if value is None or pd.isna(value):
        return "–"
    known = bounds is not None and not pd.isna(list(bounds)).any()
    return f"{value:.3f} [{bounds[0]:.2f}, {bounds[1]:.2f}]" if known else f"{value:.3f}"


def intervals(rows: pd.DataFrame, metric: str) -> list[str]:
    """`interval` of a column and its `METRIC_low`, `METRIC_high`; of differences `spoken`."""
    columns = rows.reindex(columns=[metric, f"{metric}_low", f"{metric}_high"]).astype(float)
    told = [(value, None if np.isnan(ends).any() else ends) for value, *ends in columns.to_numpy()]
    if metric.endswith(("-BL", "-plain", "-rival")):
        return [spoken({"mean": value, "ci95": ends}) for value, ends in told]
    return [interval(value, ends) for value, ends in told]


def trivial(fake_share: float) -> dict[str, float]:
    """What the better of two answers for all images, "fake" or "real", scores without a look.

    >>> trivial(0.2)
    {'accuracy': 0.8, 'f1': 0.33333333333333337}
    """
    return {"accuracy": max(fake_share, 1 - fake_share), "f1": 2 * fake_share / (1 + fake_share)}


def spoken_trivial(fake_share: float) -> str:
    """`trivial` for reading: "0.800, 0.889"; a dash where the share is not known."""
    known = trivial(fake_share).values()
    return "–" if pd.isna(fake_share) else ", ".join(f"{value:.3f}" for value in known)


def spoken_speed(speed: dict, than: str = "BL") -> str:
    """`measure.speed` for reading.

    >>> spoken_speed({"ratio": 3.0, "low": 2.0, "high": 5.0, "words": "faster"})
    'faster, 3.0 times as fast as BL [2.0, 5.0]'
    """
    span = f"{speed['ratio']:.1f} times as fast as {than} [{speed['low']:.1f}, {speed['high']:.1f}]"
    if speed["words"] != "not told apart":
        return f"{speed['words']}, {span}"
    known = np.isfinite([speed["ratio"], speed["high"]]).all()
    why = span if known else "a busy or another machine, or no spread in the record"
    return f"not told apart from {than} ({why})"


def marked(rows: pd.DataFrame, name: str) -> str:
    """A generator's name, with "(unseen)" where none of the runs was trained on it."""
    told = rows["unseen"].dropna() if "unseen" in rows else pd.Series("", rows.index)
    unseen = len(told) and all(name in each.split(",") for each in told)
    return f"{name} (unseen)" if unseen else name
