"""Grid files: what they say is what is planned, and a slip in one is told with the nearest name."""

import pytest
from made import python

from data_prep.errors import InputError
from data_prep.paths import PROJECT
from dflib.study import grid, methods

GRIDS = PROJECT / "notebooks" / "grids"


@pytest.mark.parametrize("name", ["demo", "paper-synthbuster", "paper-forensynths"])
def test_the_grids_that_come_along_ask_for_their_presets_runs(name):
    found = grid.read(GRIDS / f"{name}.yaml")
    usual = methods.preset(found["preset"])
    for key in ("methods", "rates", "seeds"):
        assert found[key] == getattr(usual, key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metods: [BL]", "'metods', did you mean 'methods'"),
        ("rates: [high]", r"rates \['high'\] is no list of numbers"),
        ("seeds: 1.5", "seeds '1.5' is no list of numbers"),
        ("seeds: []", r"seeds \[\] is empty"),
        ("seeds: [" + "1, " * 1001 + "]", "entries: expected at most 1,000"),
        ("rates: [" + "0.5, " * 100_000 + "]", "entries: expected at most 1,000"),
        ("set: 3", "expected settings"),
        ("- BL", "no `key: value` lines"),
        ("a: [", "is no YAML"),
        ("source: [demo-source]", "source: expected one value, found"),
        ("\x00", "is no YAML"),
    ],
)
def test_a_slip_in_a_grid_is_told(tmp_path, text, message):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        grid.read(tmp_path / "g.yaml")
    with pytest.raises(InputError, match="No such file or directory; notebooks/grids has examples"):
        grid.read(tmp_path / "none.yaml")


LAUGHS = "a: &a [x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]"
    for above, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [LAUGHS, "[" * 100_000, "{a: " * 100_000, "methods: " + "[" * 50 + "]" * 50, "x" * 2_000_000]
    + ["'" + "\x07" * 5000, "? " * 50_000],
)
def test_a_hostile_grid_is_refused_at_once_in_a_short_line(text):
    with pytest.raises(InputError) as e:
        grid.parse(text, "g.yaml")
    assert len(str(e.value)) < 500 and "\n" not in str(e.value)


def test_text_settings_of_a_grid_stay_text():
    odd = "hold_out: 01, keep_float: on, train_generators: 1e3, epochs: 05, limit: null"
    found = grid.parse(f"dataset: 007\nset: {{{odd}}}", "g.yaml")
    assert found["dataset"] == ("007",)
    read = methods.settings("demo", found["set"])
    kept = [read[key] for key in ("hold_out", "keep_float", "train_generators")]
    assert kept == ["01", "on", "1e3"]
    assert (read["epochs"], read["limit"]) == (5, None)


def test_a_grid_is_planned_as_it_stands_and_options_beside_it_count_more(tmp_path, tiny_dataset):
    file = tmp_path / "g.yaml"
    text = f"preset: tiny\ndataset: {tiny_dataset}\nmethods: [BL, CPF]\nrates: [0.5, 0.9]\n"
    file.write_text(text + "seeds: 3\nset: {epochs: 1}\n")
    planned = python("-m", "dflib", "study", "--grid", str(file), "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert all(word in planned.stdout for word in ("BL-s3-32px", "CPF-r50-s3", "CPF-r90-s3"))
    beside = ("--rates", "0.7", "--seeds", "4", "--dry-run")
    narrowed = python("-m", "dflib", "study", "--grid", str(file), *beside)
    assert "CPF-r70-s4" in narrowed.stdout
    assert "CPF-r50" not in narrowed.stdout


def test_options_survive_as_a_file():
    odd = {"epochs": 3, "augment": False, "limit": None, "hold_out": "on", "keep_float": "01"}
    options = {"preset": "tiny", "source": "demo-source", "dataset": ("demo", "a.b", "007")}
    options |= {"methods": ("BL", "TL+P+A"), "rates": (1e-05, 0.9), "seeds": (0, 9), "set": odd}
    for asked in (options, {"set": {"draws": 9}}, {"rates": (0.5,)}, {}):
        read = grid.parse(grid.text(asked) if asked else "{}")
        kept = [methods.settings("demo", each.get("set", {})) for each in (read, asked)]
        assert read | {"set": {}} == asked | {"set": {}} and kept[0] == kept[1]


def test_a_grid_of_several_datasets_plans_each_run_once(tiny_dataset, tiny_source):
    both = (tiny_dataset, tiny_source)
    options = {"preset": "tiny", "dataset": both, "methods": ("BL", "CPF"), "rates": (0.9,)}
    together = [s.run_id for s in grid.plan(options)]
    single = [s.run_id for name in both for s in grid.plan(options | {"dataset": (name,)})]
    assert together == single and len(set(together)) == 4
    transfers = options | {"dataset": (tiny_dataset,), "methods": ("TL+FT", "BL")}
    plan = grid.plan(transfers | {"source": tiny_source})
    assert [s.method for s in plan] == ["BL", "TL+FT", "BL"]
