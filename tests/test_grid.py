"""Grid files: what they say is what is planned, and a slip in one is told with the nearest name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import call

from data_prep.errors import InputError
from data_prep.paths import PROJECT
from dflib import __main__ as main
from dflib.study import compare, grid, methods, runs


@pytest.mark.parametrize("name", ["demo", "paper-synthbuster", "paper-forensynths"])
def test_the_grids_that_come_along_ask_for_their_presets_runs(name):
    found = grid.read(PROJECT / "notebooks" / "grids" / f"{name}.yaml")
    usual = methods.preset(found["preset"])
    assert (found["methods"], found["rates"], found["seeds"]) == (
        usual.methods,
        usual.rates,
        usual.seeds,
    )


def test_the_grids_of_the_gap_differ_in_the_recipe_alone_and_train_on_each_generator():
    plain, better = (
        grid.read(PROJECT / "notebooks" / "grids" / f"gap-synthbuster{end}.yaml")
        for end in ("", "-recipe")
    )
    recipe = better.pop("set")
    assert plain == better and plain["folds"] == "one-to-all" and set(recipe) <= set(compare.RECIPE)


def test_folds_of_a_grid_are_planned_for_each_training_generator(tmp_path, tiny_dataset):
    text = (
        (PROJECT / "notebooks" / "grids" / "gap-demo.yaml")
        .read_text()
        .replace("dataset: demo", f"dataset: {tiny_dataset}")
    )
    (tmp_path / "g.yaml").write_text(text)
    done = call(
        "dflib",
        "study",
        "--grid",
        str(tmp_path / "g.yaml"),
        "--seeds",
        "0",
        "--set",
        "blur_jpeg=0.5",
        "--dry-run",
    )
    assert done.returncode == 0, done.stderr
    ids = [
        runs.spec(
            "BL", dataset=tiny_dataset, settings={"blur_jpeg": 0.5, "train_generators": g}
        ).run_id
        for g in ("nearest", "blurred")
    ]
    assert all(i in done.stdout for i in ids) and "22 runs" in done.stdout


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
    assert [word in planned.stdout for word in ("BL-s3-32px", "CPF-r50-s3", "CPF-r90-s3")] == [
        True
    ] * 3
    narrowed = call(
        "dflib", "study", "--grid", str(file), "--rates", "0.7", "--seeds", "4", "--dry-run"
    )
    assert "CPF-r70-s4" in narrowed.stdout
    assert "CPF-r50" not in narrowed.stdout


def test_a_grid_with_a_rate_in_percent_is_refused(tmp_path, tiny_dataset):
    file = tmp_path / "g.yaml"
    file.write_text(f"preset: tiny\ndataset: {tiny_dataset}\nmethods: [CPF]\nrates: [95]\n")
    done = call("dflib", "study", "--grid", str(file))
    assert done.returncode == 2
    assert "95" in done.stderr
    assert "0.95" in done.stderr


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from(["tiny", "demo", "paper"]),
        "source": st.just("demo-source"),
        "protocol": st.sampled_from(["strict", "paper"]),
        "dataset": st.lists(st.sampled_from(["demo", "mine", "a.b"]), min_size=1, unique=True).map(
            tuple
        ),
        "methods": st.lists(st.sampled_from(list(methods.METHODS)), min_size=1, unique=True).map(
            tuple
        ),
        "rates": st.lists(st.floats(0.01, 0.99), min_size=1).map(tuple),
        "seeds": st.lists(st.integers(0, 99), min_size=1).map(tuple),
        "set": st.dictionaries(
            st.sampled_from(["epochs", "mode", "limit"]),
            st.sampled_from([3, "resize", None, 0.5, True]),
            min_size=1,
        ),
    },
)


@given(OPTIONS)
def test_options_survive_as_a_file_and_as_words(options):
    assert grid.parse(grid.text(options)) == options
    words = grid.words(options)
    own = dict(zip(words[::2], words[1::2], strict=True))
    kinds = {"rates": float, "seeds": int}
    for key in options.keys() - {"set"}:
        text = own[f"--{key}"]
        assert (main._list(text, kinds.get(key, str)) if key in grid.LISTS else text) == options[
            key
        ]
    pairs = [value for key, value in zip(words[::2], words[1::2], strict=True) if key == "--set"]
    assert main._settings(pairs) == options.get("set", {})


def test_a_grid_of_several_datasets_plans_each_run_once(tiny_dataset, tiny_source):
    options = {
        "preset": "tiny",
        "dataset": (tiny_dataset, tiny_source),
        "methods": ("BL", "CPF"),
        "rates": (0.9,),
    }
    both = [s.run_id for s in grid.plan(options)]
    single = [
        s.run_id for name in options["dataset"] for s in grid.plan(options | {"dataset": (name,)})
    ]
    assert both == single and len(set(both)) == 4
    transfers = {
        "preset": "tiny",
        "dataset": (tiny_dataset,),
        "source": tiny_source,
        "methods": ("TL+FT", "BL"),
    }
    assert [s.method for s in grid.plan(transfers)] == ["BL", "TL+FT", "BL"]
