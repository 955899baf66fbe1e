"""Grid files: what they say is what is planned, and a slip in one is told with the nearest name."""

import pytest
from test_cli import call

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


def test_a_grid_is_planned_as_it_stands_and_options_beside_it_count_more(tmp_path, tiny_dataset):
    file = tmp_path / "g.yaml"
    file.write_text(
        f"preset: tiny\ndataset: {tiny_dataset}\nmethods: [BL, CPF]\nrates: [0.5, 0.9]\nseeds: 3\nset: {{epochs: 1}}\n"
    )
    planned = call("dflib", "study", "--grid", str(file), "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert [word in planned.stdout for word in ("BL-s3-32px", "CPF-r50-s3", "CPF-r90-s3")] == [True] * 3
    narrowed = call("dflib", "study", "--grid", str(file), "--rates", "0.7", "--seeds", "4", "--dry-run")
    assert "CPF-r70-s4" in narrowed.stdout
    assert "CPF-r50" not in narrowed.stdout


def test_a_grid_with_a_rate_in_percent_is_refused(tmp_path, tiny_dataset):
    file = tmp_path / "g.yaml"
    file.write_text(f"preset: tiny\ndataset: {tiny_dataset}\nmethods: [CPF]\nrates: [95]\n")
    done = call("dflib", "study", "--grid", str(file))
    assert done.returncode == 2
    assert "95" in done.stderr
    assert "0.95" in done.stderr
