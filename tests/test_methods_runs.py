"""What is asked for: methods, settings, run ids. The same request has the same id, everything that decides a result changes it, nothing else does."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import folder, paths
from data_prep.errors import InputError
from dflib.__main__ import _list, _settings
from dflib.study import methods, runs
from dflib.study.engine import plan
from dflib.study.runs import spec

TRANSFERS = ("TL+FT", "TL+FT+Q", "TL+P+FT", "TL+KD", "TL+P+A", "TL+KD+A")
CODES = (
    "BL",
    "CPF",
    "CPF-S",
    "SCRATCH",
    "CKD-0",
    "CKD",
    "CQ",
    "CQ-S",
    "CPKDQ",
    "chain",
    *TRANSFERS,
    "LRF",
)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: methods.method("CFP"),
            r"unknown method 'CFP', did you mean 'CPF'\? Valid: BL, CPF, ",
        ),
        (lambda: methods.method("bl"), "unknown method 'bl', did you mean 'BL'"),
        (
            lambda: methods.preset("papre"),
            r"unknown preset 'papre', did you mean 'paper'\? Valid: tiny, demo, paper\.",
        ),
        (
            lambda: methods.settings("demo", {"epoch": 3}),
            "unknown setting 'epoch', did you mean 'epochs'",
        ),
        (
            lambda: methods.settings("demo", {"temprature": 3}),
            "unknown setting 'temprature', did you mean 'temperature'",
        ),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(ask, message):
    with pytest.raises(InputError, match=message):
        ask()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", "three"),
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", None),
        ("epochs", [3]),
        ("epochs", 0),
        ("epochs", -1),
        ("lr", "fast"),
        ("lr", 0),
        ("lr", -1e-3),
        ("lr", True),
        ("lr", None),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("augment", 1),
        ("augment", "yes"),
        ("amp", None),
        ("mode", 3),
        ("mode", None),
        ("scope", True),
        ("limit", 0),
        ("limit", -5),
        ("limit", "all"),
        ("limit", 2.5),
        ("limit", True),
        ("mixup", -0.1),
        ("attention", -1),
        ("distill_epochs", -1),
        ("prune_steps", 0),
        ("round_to", 0),
        ("steps", 3),
        ("temperature", 0),
        ("temperature", -2),
        ("alpha", -0.1),
        ("alpha", "much"),
        ("patience", -1),
        ("weight_decay", -0.1),
        ("warmup", -0.1),
        ("size", "big"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(key, value):
    with pytest.raises(InputError, match=f"setting {key}="):
        methods.settings("demo", {key: value})


def test_settings_are_the_defaults_the_presets_and_the_overrides_in_this_order():
    values = methods.settings(
        "tiny", {"epochs": 7, "lr": 1, "limit": None, "alpha": 0, "patience": 0, "warmup": 0}
    )
    assert values.keys() == methods.DEFAULTS.keys()
    assert (values["epochs"], values["size"], values["finetune_lr"]) == (7, 32, 3e-4)
    assert values["lr"] == 1.0
    assert isinstance(values["lr"], float)
    assert values["limit"] is None
    assert methods.settings("tiny")["limit"] == 48
    assert methods.DEFAULTS["epochs"] == 30  # untouched


def test_the_table_hangs_together():
    assert tuple(methods.METHODS) == CODES  # the design's codes, in its order
    for code, row in methods.METHODS.items():
        assert row.code == code
        assert (runs.NOTEBOOKS / f"{row.notebook}.ipynb").exists()
        for parent in (p.removesuffix("@source") for p in row.parents):
            assert parent in CODES[: CODES.index(code)]
        assert row.transfers == code.startswith("TL")
        assert set(row.keys) <= set(methods.DEFAULTS)
    for preset in methods.PRESETS.values():
        assert set(preset.methods) <= set(methods.METHODS)
        assert preset.source != preset.dataset
        assert all(0 < r < 1 for r in preset.rates)
        methods.settings("demo", preset.settings)


# ---- chains


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("prune:0.8,distill,int8", [("prune", 0.8), ("distill", None), ("int8", None)]),
        (
            " student:0.9 , finetune ,int8-linear",
            [("student", 0.9), ("finetune", None), ("int8-linear", None)],
        ),
        (
            "prune:0.5,finetune,prune:.9,distill",
            [("prune", 0.5), ("finetune", None), ("prune", 0.9), ("distill", None)],
        ),
        (
            "student:0.5,distill,prune:0.8,mask:0.9,finetune",
            [
                ("student", 0.5),
                ("distill", None),
                ("prune", 0.8),
                ("mask", 0.9),
                ("finetune", None),
            ],
        ),
        ("int8", [("int8", None)]),
    ],
)
def test_a_chain_that_makes_sense_is_read(text, steps):
    assert list(methods.parse_steps(text)) == steps
    assert methods.settings("demo", {"steps": text})["steps"] == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown step ''"),
        ("prun:0.8", "unknown step 'prun', did you mean 'prune'"),
        ("prune", "step 'prune': write prune:RATE, such as prune:0.9"),
        ("prune:", "write prune:RATE"),
        ("prune:much,int8", "'much' is no number"),
        ("prune:80,int8", r"rate 80 is outside \(0, 1\), did you mean 0.8"),
        ("prune:nan", "rate nan is outside"),
        ("distill:0.5", "distill takes no rate"),
        ("int8,distill", "distill cannot follow int8"),
        ("int8,int8", "int8 cannot follow int8"),
        ("prune:0.5,student:0.9,distill", "throws away what prune did"),
        ("student:0.9", "the student is never trained"),
        ("student:0.9,int8", "int8 needs a trained student"),
        ("student:0.5,prune:0.9,distill", "prune needs a trained student"),
        ("mask:0.5,prune:0.9", "prune does not see the zeros"),
        ("prune:0.9,finetune,prune:0.5", r"prune:0\.5 removes nothing after 0\.9"),
        ("finetune,distill", "nothing is compressed"),
    ],
)
def test_a_chain_that_makes_none_is_refused_with_the_reason(text, message):
    with pytest.raises(InputError, match=message):
        methods.settings("demo", {"steps": text})


# ---- run ids


def run_id(name: str, method: str = "CPF", rate: float | None = 0.9, **request) -> str:
    return spec(method, preset="tiny", dataset=name, rate=rate, **request).run_id


def test_equal_requests_have_equal_ids(tiny_dataset):
    first = run_id(tiny_dataset)
    assert (
        first
        == run_id(tiny_dataset)
        == run_id(tiny_dataset, settings={"epochs": 2, "limit": 48, "lr": 1e-3})
    )
    assert run_id(tiny_dataset, settings={"finetune_lr": 1}) == run_id(
        tiny_dataset, settings={"finetune_lr": 1.0}
    )
    tiny = methods.settings("tiny")
    assert (
        spec(
            "CPF",
            preset="demo",
            dataset=tiny_dataset,
            rate=0.9,
            settings={k: tiny[k] for k in tiny},
        ).run_id
        == first
    )  # the preset's name decides nothing
    code = f"from dflib.study.runs import spec; print(spec('CPF', preset='tiny', dataset={tiny_dataset!r}, rate=0.9).run_id)"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.strip() == first
    assert first.startswith("CPF-r90-s0-32px-")


def test_settings_against_unseen_generators_count_only_where_they_are_given(tiny_dataset):
    first, changed = (
        run_id(tiny_dataset),
        {"cutmix": 1.0, "blur_jpeg": 0.1, "ema": 0.99, "front": "npr", "pairs": True},
    )
    assert run_id(tiny_dataset, settings={k: methods.DEFAULTS[k] for k in changed}) == first
    assert (
        not {*changed, "ensemble", "crops", "hold_out"}
        & methods.relevant("CKD", methods.settings("demo")).keys()
    )
    assert (
        len({first, *(run_id(tiny_dataset, settings={k: v}) for k, v in changed.items())})
        == len(changed) + 1
    )
    trained = [m for m in methods.METHODS.values() if "lr" in m.keys]
    assert all(set(changed) <= set(m.keys) for m in trained)


def test_an_ensembles_teachers_are_parents_and_the_runs_of_a_studys_folds(tiny_dataset):
    request = {"preset": "tiny", "dataset": tiny_dataset}
    plain = spec("CKD", rate=0.9, **request)
    for kind, key in (("leave-one-out", "hold_out"), ("one-to-all", "train_generators")):
        taught = spec("CKD", rate=0.9, settings={"ensemble": kind}, **request)
        folds = [spec("BL", settings={key: g}, **request).run_id for g in ("blurred", "nearest")]
        own = [p.run_id for p in plain.parents]
        assert [p.run_id for p in taught.parents] == [
            *own,
            *folds,
        ] and taught.run_id != plain.run_id
        assert spec("CPF", rate=0.9, settings={"ensemble": kind}, **request).run_id == run_id(
            tiny_dataset
        )
        assert [
            s.run_id for s in plan(methods_=("CKD",), settings={"ensemble": kind}, **request)
        ].count(folds[0]) == 1
    for more, why in (
        ({"hold_out": "nearest"}, "ensemble=one-to-all: blurred is all that trains"),
        ({"attention": 1.0}, "ensemble=one-to-all: attention needs a single teacher"),
    ):
        with pytest.raises(InputError, match=why):
            spec("CKD", rate=0.9, settings={"ensemble": "one-to-all"} | more, **request)


def test_everything_that_decides_a_result_changes_the_id(tiny_dataset):
    ids = [
        run_id(tiny_dataset),
        run_id(tiny_dataset, rate=0.6),
        run_id(tiny_dataset, rate=0.9001),
        run_id(tiny_dataset, seed=1),
        run_id(tiny_dataset, protocol="paper"),
        run_id(tiny_dataset, method="CKD"),
        *(
            run_id(tiny_dataset, settings={k: v})
            for k, v in {
                "finetune_epochs": 2,
                "finetune_lr": 1e-4,
                "scope": "global",
                "size": 64,
                "mode": "center_crop",
                "limit": 20,
                "limit ": None,
                "batch": 32,
                "augment": False,
                "amp": False,
                "weight_decay": 0.0,
                "draws": 60,
            }.items()
            if k in methods.DEFAULTS
        ),
        run_id(tiny_dataset, settings={"limit": None}),
        run_id(tiny_dataset, settings={"epochs": 3}),  # its parent's: another BL, so another CPF
        run_id(tiny_dataset, settings={"patience": 2}),
    ]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("CPF", "temperature", 2.0),
        ("CPF", "alpha", 0.5),
        ("CKD", "scope", "global"),
        ("CKD-0", "temperature", 2.0),
        ("CPF", "round_to", 4),
        ("CPF-S", "attention", 1.0),
        ("CPKDQ", "steps", "int8"),
        ("CKD", "finetune_lr", 1e-4),
        ("BL", "finetune_epochs", 9),
        ("BL", "temperature", 9.0),
    ],
)
def test_a_setting_that_the_method_does_not_read_leaves_the_id(tiny_dataset, method, key, value):
    rate = None if method == "BL" else 0.9
    assert run_id(tiny_dataset, method, rate, settings={key: value}) == run_id(
        tiny_dataset, method, rate
    )


def test_only_a_notebook_of_several_methods_is_told_which(tiny_dataset, monkeypatch):
    wanted = spec("CPF", preset="tiny", dataset=tiny_dataset, rate=0.9)
    alone = replace(methods.METHODS["CPF"], notebook="00_start_here")
    monkeypatch.setattr(methods, "METHODS", {"BL": methods.METHODS["BL"], "CPF": alone})
    assert "method" not in wanted.parameters()
    monkeypatch.setitem(methods.METHODS, "CPX", replace(alone, code="CPX"))
    assert methods.made_by("00_start_here") == ("CPF", "CPX")
    assert wanted.parameters()["method"] == "CPF"


def test_the_rate_of_a_method_without_one_decides_nothing(tiny_dataset):
    assert run_id(tiny_dataset, "BL", None) == run_id(tiny_dataset, "BL", 0.9)


def test_other_contents_of_the_dataset_change_the_id(tmp_path, data_root, tree, picture):
    root = tree(tmp_path / "set", {"real": 12, "fake/gan": 12})
    folder.prepare(root, name="mine")
    first, baseline = run_id("mine"), run_id("mine", "BL", None)
    picture(root / "real" / "real-000.png", seed=500)
    folder.prepare(root, name="mine")
    assert run_id("mine") != first
    assert run_id("mine", "BL", None) != baseline


def test_the_cells_tagged_result_count_and_no_others(tiny_dataset, tmp_path, monkeypatch):
    def with_cell(kind: str, source: str, tags: tuple = ()) -> str:
        notebook = json.loads((paths.PROJECT / "notebooks" / "03_prune.ipynb").read_text())
        cell = {"cell_type": kind, "source": source, "metadata": {"tags": list(tags)}}
        notebook["cells"].append(cell)
        (tmp_path / "03_prune.ipynb").write_text(json.dumps(notebook))
        return run_id(tiny_dataset)

    first = run_id(tiny_dataset)
    for file in runs.NOTEBOOKS.glob("*.ipynb"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(runs, "NOTEBOOKS", tmp_path)
    assert run_id(tiny_dataset) == first
    assert with_cell("markdown", "More prose.") == first
    assert with_cell("code", "rate = 0.7", ("parameters",)) == first
    assert with_cell("code", "plt.plot(x)") == first
    assert with_cell("code", "x = 1", ("result",)) != first
    (tmp_path / "03_prune.ipynb").write_text(json.dumps({"cells": []}))
    with pytest.raises(InputError, match="no cell is tagged `result`"):
        run_id(tiny_dataset)
    (tmp_path / "03_prune.ipynb").unlink()
    with pytest.raises(InputError, match=r"03_prune\.ipynb is not there"):
        run_id(tiny_dataset)


def test_parents_share_all_but_method_and_rate(tiny_dataset):
    child = spec(
        "CKD",
        preset="tiny",
        dataset=tiny_dataset,
        rate=0.6,
        seed=4,
        protocol="paper",
        settings={"lr": 0.01},
    )
    parent, control = child.parents
    assert (control.method, control.rate, control.settings) == ("CKD-0", 0.6, child.settings)
    assert (
        parent.run_id
        == spec(
            "BL",
            preset="tiny",
            dataset=tiny_dataset,
            seed=4,
            protocol="paper",
            settings={"lr": 0.01},
        ).run_id
    )
    assert parent.rate is None
    assert parent.parents == ()


# ---- transfers


def transfer(name: str, source: str, method: str = "TL+P+FT", **request) -> runs.Spec:
    return spec(
        method, **({"preset": "tiny", "dataset": name, "source": source, "rate": 0.9} | request)
    )


def test_a_transfer_starts_on_the_source_and_shares_its_model(tiny_dataset, tiny_source):
    family = {
        s.method: s for s in (transfer(tiny_dataset, tiny_source, code) for code in TRANSFERS)
    }
    there = spec("BL", preset="tiny", dataset=tiny_source)
    assert family["TL+FT"].parents == (there,) == family["TL+P+FT"].parents[0].parents
    assert [(p.method, p.dataset) for p in family["TL+KD"].parents] == [
        ("BL", tiny_source),
        ("TL+FT", tiny_dataset),
    ]
    assert family["TL+P+FT"].parents[0] == spec("CPF", preset="tiny", dataset=tiny_source, rate=0.9)
    assert family["TL+FT+Q"].parents == (family["TL+FT"],)
    assert family["TL+P+A"].parents == (family["TL+P+FT"],)
    assert family["TL+KD+A"].parents == (family["TL+KD"],)
    assert all(s.source == tiny_source and s.dataset == tiny_dataset for s in family.values())


def test_the_source_decides_a_transfer_and_nothing_else(tiny_dataset, tiny_source):
    assert transfer(tiny_dataset, tiny_source).run_id != transfer(tiny_source, tiny_dataset).run_id
    home = spec("CPF", preset="tiny", dataset=tiny_dataset, rate=0.9)
    assert transfer(tiny_dataset, tiny_source, "CPF") == home
    assert home.source == ""


def test_the_target_may_have_few_images_and_the_source_keeps_its_own(tiny_dataset, tiny_source):
    few = transfer(tiny_dataset, tiny_source, settings={"target_images": 5})
    assert few.run_id != transfer(tiny_dataset, tiny_source).run_id
    assert few.parents == transfer(tiny_dataset, tiny_source).parents
    five, ten, whole = (
        runs.Run(transfer(tiny_dataset, tiny_source, settings={"target_images": n})).data
        for n in (5, 10, None)
    )
    assert np.bincount(five.train.labels).tolist() == [5, 5]
    assert (
        set(five.train.table["path"])
        < set(ten.train.table["path"])
        < set(whole.train.table["path"])
    )
    assert five.test.table.equals(whole.test.table)
    assert five.val.table.equals(whole.val.table)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"source": "tiny-set"},
            "source 'tiny-set' is the dataset itself: a transfer needs another one",
        ),
        ({"source": "tiny-sorce"}, "unknown dataset 'tiny-sorce', did you mean 'tiny-source'"),
        ({"source": "dogs-vs-cats"}, "Get it with: python -m data_prep dogs-vs-cats --from FOLDER"),
        (
            {"settings": {"trainable": "features.8"}},
            r"unknown layer 'features.8', did you mean 'features.\d'",
        ),
        ({"settings": {"trainable": "features.7;head"}}, "unknown layer 'features.7;head'"),
        (
            {"settings": {"adapter_after": "features.5"}, "method": "TL+KD+A"},
            r"unknown block 'features.5', did you mean 'features.\d'",
        ),
        ({"settings": {"adapter_after": "block4"}, "method": "TL+P+A"}, "unknown block 'block4'"),
        (
            {"settings": {"adapter_form": "paralel"}, "method": "TL+P+A"},
            "unknown form of adapter 'paralel'",
        ),
        ({"settings": {"teacher": "BL"}, "method": "TL+KD"}, "unknown teacher 'BL'"),
        (
            {"settings": {"trainable": "features.8"}, "method": "TL+KD+A"},
            "unknown layer 'features.8'",
        ),  # of its parent TL+FT
        (
            {"settings": {"backbone": "resnet18"}, "method": "TL+KD"},
            "TL\\+KD with backbone resnet18: transfers name layers of the vgg",
        ),
        ({"settings": {"target_images": 0}}, "setting target_images=0 is out of its range"),
    ],
)
def test_a_transfer_that_cannot_be_is_refused_before_anything_is_made(
    tiny_dataset, tiny_source, outputs_root, request_, message
):
    with pytest.raises(InputError, match=message):
        transfer(tiny_dataset, **({"source": tiny_source} | request_))
    assert not outputs_root.exists()


def test_a_missing_parent_is_named_with_the_command_that_makes_it(
    tiny_dataset, tiny_source, outputs_root
):
    run = runs.Run(transfer(tiny_dataset, tiny_source, "TL+FT"))
    with pytest.raises(
        InputError,
        match=f"starts from BL-s0.*, which is not there yet: python -m dflib study .*--dataset {tiny_source} .*--methods BL",
    ):
        run.parent()


drawn = st.fixed_dictionaries(
    {},
    optional={
        "size": st.sampled_from([32, 64, 224]),
        "mode": st.sampled_from(["resize", "center_crop", "texture_crop"]),
        "limit": st.none() | st.integers(1, 99),
        "epochs": st.integers(1, 99),
        "lr": st.floats(1e-9, 1),
        "scope": st.sampled_from(["layer", "global"]),
        "augment": st.booleans(),
        "alpha": st.floats(0, 1),
        "steps": st.sampled_from(["int8", "prune:0.5,finetune,prune:0.9,distill,int8"]),
        "trainable": st.sampled_from(["head", "norms", "features.6,head"]),
        "target_images": st.none() | st.integers(1, 99),
        "patience": st.integers(0, 9),
        "temperature": st.floats(0.1, 50),
    },
)


@settings(max_examples=15)
@given(
    overrides=drawn,
    preset=st.sampled_from(["tiny", "demo"]),
    method=st.sampled_from(CODES),
    rate=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_parameters_and_the_command_line_lead_back_to_the_same_run(
    tiny_dataset, tiny_source, overrides, preset, method, rate, seed
):
    wanted = spec(
        method,
        preset=preset,
        dataset=tiny_dataset,
        source=tiny_source,
        rate=rate,
        seed=seed,
        settings=overrides,
        protocol="paper",
    )
    through_papermill = json.loads(json.dumps(wanted.parameters()))
    assert spec(**({"method": method} | through_papermill)).run_id == wanted.run_id
    words = shlex.split(wanted.command())
    assert words[:4] == ["python", "-m", "dflib", "study"]
    options = list(zip(words[4::2], words[5::2], strict=True))
    given_ = {k.lstrip("-"): v for k, v in options if k != "--set"}
    rates = _list(given_.get("rates"), float) or (None,)
    again = spec(
        given_["methods"],
        preset=given_["preset"],
        dataset=given_["dataset"],
        protocol=given_["protocol"],
        source=given_.get("source"),
        rate=rates[0],
        seed=_list(given_["seeds"], int)[0],
        settings=_settings([v for k, v in options if k == "--set"]),
    )
    assert again.run_id == wanted.run_id


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"method": "CPX"}, "unknown method 'CPX'"),
        ({"protocol": "stricter"}, "unknown protocol 'stricter', did you mean 'strict'"),
        ({"preset": "dmeo"}, "unknown preset 'dmeo', did you mean 'demo'"),
        ({"dataset": "tiny-sets"}, "unknown dataset 'tiny-sets', did you mean 'tiny-set'"),
        ({"dataset": "faces-140k"}, "Get it with: python -m data_prep faces-140k"),
        ({"rate": None}, r"CPF needs a rate: .*0\.9"),
        ({"rate": 90}, r"did you mean 0\.9\?"),
        ({"rate": 1.0}, "rate 1 is outside"),
        ({"settings": {"epoch": 1}}, "did you mean 'epochs'"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(tiny_dataset, outputs_root, request_, message):
    with pytest.raises(InputError, match=message):
        spec(**({"method": "CPF", "dataset": tiny_dataset, "rate": 0.9} | request_))
    assert not outputs_root.exists()


# ---- finished runs


def test_no_finished_runs_make_an_empty_table(outputs_root):
    assert runs.folders() == []
    assert runs.results().empty
    assert runs.results("tiny-set").empty
    with pytest.raises(InputError, match="unknown run 'BL-s0'; Valid: none yet"):
        runs.find("BL-s0")


def test_a_run_folder_without_a_whole_result_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"is no finished run: it has no result\.json\. python -m dflib results"
    ):
        runs.read(tmp_path)
    for contents in (b"", b'{"schema": 1', b"\xff\xfe"):
        (tmp_path / "result.json").write_bytes(contents)
        with pytest.raises(InputError, match=r"result\.json is damaged"):
            runs.read(tmp_path)


def test_a_run_is_found_by_id_and_by_path(outputs_root):
    place = outputs_root / "set" / "strict" / "BL" / "BL-s0-32px-0a1b2c3d"
    place.mkdir(parents=True)
    (place.parent / "BL-s1-32px-unfinished").mkdir()
    (place / "result.json").write_text("{}")
    assert runs.folders() == [place]
    assert runs.find(place.name) == runs.find(str(place)) == place
    with pytest.raises(InputError, match="did you mean 'BL-s0-32px-0a1b2c3d'"):
        runs.find("BL-s0-32px-0a1b2c3e")


def test_runs_are_found_in_attached_outputs_by_their_structure(outputs_root, tmp_path, monkeypatch):
    attached = tmp_path / "input"
    monkeypatch.setattr(paths, "KAGGLE", attached)
    (attached / "rock-paper-scissors" / "paper").mkdir(
        parents=True
    )  # a dataset with a folder of a protocol's name
    places = [
        outputs_root / "set" / "strict" / "BL" / "BL-own",
        attached / "version-1" / "workbook" / "outputs" / "set" / "strict" / "BL" / "BL-own",
        attached / "version-1" / "workbook" / "outputs" / "set" / "strict" / "CQ" / "CQ-before",
        attached
        / "notebooks"
        / "somebody"
        / "study"
        / "workbook"
        / "outputs"
        / "other"
        / "paper"
        / "BL"
        / "BL-other",
        tmp_path / "given" / "set" / "strict" / "CQ" / "CQ-given",
    ]
    for place in places:
        place.mkdir(parents=True)
        (place / "result.json").write_text("{}")
    monkeypatch.setenv("DFLIB_ATTACHED", f"{tmp_path / 'given'}{os.pathsep}")
    assert sorted(runs.folders()) == sorted(
        p for p in places if p != places[1]
    )  # each run once, one's own first
    assert runs.find("BL-other") == places[3]
    monkeypatch.setenv("DFLIB_ATTACHED", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"\$DFLIB_ATTACHED names .*nowhere, which is no folder"):
        runs.folders()
