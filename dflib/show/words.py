"""How numbers are written, in figures, tables and pages: values, intervals, speeds, names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

TRIVIAL = "always fake: accuracy, F1"  # a column's title


def run_label(method: str, rate: float | None) -> str:
    """A run's short name in figures and sentences: "CKD 90%", "BL"."""
    return method if rate is None or pd.isna(rate) else f"{method} {100 * rate:g}%"


def interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """A value with its 95 % interval: "0.912 [0.88, 0.94]"; a dash for no value."""
    if value is None or pd.isna(value):
        return "–"
    known = bounds is not None and not pd.isna(list(bounds)).any()
    return f"{value:.3f} [{bounds[0]:.2f}, {bounds[1]:.2f}]" if known else f"{value:.3f}"


def one_answer(n_real: int, n_fake: int) -> dict[str, dict[str, float]]:
    """What one answer for all images scores: {"always fake": {"accuracy", "f1"}}.

    And "always real" where there are more reals: it is then right more often.

    >>> one_answer(20, 80)["always fake"]["accuracy"], list(one_answer(80, 20))
    (0.8, ['always fake', 'always real'])
    """
    share = n_fake / (n_real + n_fake)
    found = {"always fake": {"accuracy": share, "f1": 2 * share / (1 + share)}}
    return found | ({"always real": {"accuracy": 1 - share, "f1": 0.0}} if share < 0.5 else {})


def trivial(fake_share: float) -> str:
    """`one_answer` for reading: "0.800, 0.889"; the better answer where that is "real".

    >>> trivial(0.8), trivial(0.25)
    ('0.800, 0.889', '0.250, 0.400; always real: 0.750, 0.000')
    """
    if pd.isna(fake_share):
        return "–"
    scored = one_answer(1 - fake_share, fake_share).items()
    texts = [f"{name}: {v['accuracy']:.3f}, {v['f1']:.3f}" for name, v in scored]
    return "; ".join(texts).removeprefix("always fake: ")


def spoken_speed(speed: dict, than: str = "BL") -> str:
    """`measure.speed` for reading, with what the spreads of the processes allow.

    >>> spoken_speed({"ratio": 3.0, "low": 2.0, "high": 5.0, "words": "faster"})
    'faster, 3.0 times as fast as BL [2.0, 5.0]'
    """
    span = f"{speed['ratio']:.1f} times as fast as {than} [{speed['low']:.1f}, {speed['high']:.1f}]"
    if speed["words"] != "not told apart":
        return f"{speed['words']}, {span}"
    known = np.isfinite([speed["ratio"], speed["high"]]).all()
    why = span if known else "a busy or another machine, or no spread in the record"
    return f"not told apart from {than} ({why})"


def timed_busily(rows: pd.DataFrame) -> pd.Series:
    """Whether others used the machine while a run was timed."""
    return rows.get("latency_busy", pd.Series(False, rows.index)).eq(True)


def marked(rows: pd.DataFrame, name: str) -> str:
    """A generator's name, with "(unseen)" where none of the runs was trained on it."""
    told = rows["unseen"] if "unseen" in rows else pd.Series("", rows.index)
    return f"{name} (unseen)" if all(name in each.split(",") for each in told) else name
