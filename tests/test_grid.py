"""Grid files: what they say is what is planned, and a slip in one is told with the nearest name."""

import pytest

from data_prep.errors import InputError
from data_prep.paths import PROJECT
from dflib import grid, methods


@pytest.mark.parametrize("name", ["demo", "paper-synthbuster", "paper-forensynths"])
def test_the_grids_that_come_along_ask_for_their_presets_runs(name):
    found = grid.read(PROJECT / "notebooks" / "grids" / f"{name}.yaml")
    usual = methods.preset(found["preset"])
    assert (found["methods"], found["rates"], found["seeds"]) == (usual.methods, usual.rates, usual.seeds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metods: [BL]", "'metods', did you mean 'methods'"),
        ("rates: [high]", "rates: 'high' is no float"),
        ("seeds: []", "seeds is empty"),
        ("set: 3", "expected settings"),
        ("- BL", "no `key: value` lines"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_slip_in_a_grid_is_told(tmp_path, text, message):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        grid.read(tmp_path / "g.yaml")
