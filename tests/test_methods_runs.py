"""Methods, chains and run ids: the same request has the same id, and nothing else has it."""

from __future__ import annotations

import json
import os
import shlex

import numpy as np
import pytest
from made import python, result, store

from data_prep import folder, paths
from data_prep.errors import InputError
from dflib import prune
from dflib.study import feasible, methods, runs
from dflib.study.runs import spec
from dflib.study.settings import DEFAULTS

TRANSFERS = ("TL+FT", "TL+FT+Q", "TL+P+FT", "TL+KD", "TL+P+A", "TL+KD+A")
TRAINED = ("BL", "CPF", "CPF-S", "SCRATCH", "CKD-0", "CKD")
CODES = (*TRAINED, "CQ", "CQ-S", "CPKDQ", "chain", *TRANSFERS, "LRF")


def test_the_table_hangs_together():
    assert tuple(methods.METHODS) == CODES  # the design's codes, in its order
    for code, row in methods.METHODS.items():
        assert (runs.NOTEBOOKS / f"{row.notebook}.ipynb").exists()
        for parent in (p.removesuffix("@source") for p in row.parents):
            assert parent in CODES[: CODES.index(code)]
        assert row.transfers == code.startswith("TL")
        assert {"size", "hold_out", "draws"} <= set(row.keys) <= set(DEFAULTS)
    for preset in methods.PRESETS.values():
        assert set(preset.methods) <= set(methods.METHODS)
        assert preset.source != preset.dataset
        assert all(0 < r < 1 for r in preset.rates)
        methods.settings("demo", preset.settings)


# ---- chains


CHAINS = {
    "student:.8 , distill,int8": [("student", 0.8), ("distill", None), ("int8", None)],
    "prune:0.5,finetune,prune:.9": [("prune", 0.5), ("finetune", None), ("prune", 0.9)],
    "student:0.5,distill,mask:0.9": [("student", 0.5), ("distill", None), ("mask", 0.9)],
}
NO_CHAINS = {
    "": "unknown step ''",
    "prun:0.8": "unknown step 'prun', did you mean 'prune'",
    "prune": "step 'prune': write prune:RATE, e.g. prune:0.9",
    "prune:much,int8": "step 'prune:much': write prune:RATE",
    "prune:80,int8": r"rate 80 is outside \(0, 1\), did you mean 0.8",
    "prune:nan": "rate nan is outside",
    "distill:0.5": "only prune, mask, student take a rate",
    "int8,distill": "int8 comes last",
    "prune:0.5,student:0.9,distill": "a student comes first",
    "student:0.9,int8": "a student is trained next",
    "mask:0.5,prune:0.9": "prune does not see the zeros",
    "prune:0.9,finetune,prune:0.5": "each rate must be larger than the one before",
    "finetune,distill": "nothing is compressed",
}


@pytest.mark.parametrize(("text", "steps"), CHAINS.items())
def test_a_chain_that_makes_sense_is_read_and_spelled_in_one_way(text, steps):
    assert list(methods.parse_steps(text)) == steps
    spelled = methods.settings("demo", {"steps": text})["steps"]
    assert spelled == text.replace(" ", "").replace(":.", ":0.")
    assert list(methods.parse_steps(spelled)) == steps


@pytest.mark.parametrize(("text", "message"), NO_CHAINS.items())
def test_a_chain_that_makes_none_is_refused_with_the_reason(text, message):
    with pytest.raises(InputError, match=message):
        methods.settings("demo", {"steps": text})


# ---- run ids


def run_id(name: str, method: str = "CPF", rate: float | None = 0.9, **request) -> str:
    return spec(method, preset="tiny", dataset=name, rate=rate, **request).run_id


def test_equal_requests_have_equal_ids(tiny_dataset):
    first = run_id(tiny_dataset)
    assert first.startswith("CPF-r90-s0-32px-")
    for same in (
        {"epochs": 2, "limit": 48, "lr": 1e-3},
        {"epochs": "2", "lr": "0.001", "hold_out": " "},
        {"draws": 60, "latency_runs": 9},  # of the measuring alone
    ):
        assert run_id(tiny_dataset, settings=same) == first
    assert run_id(tiny_dataset, "BL", None) == run_id(tiny_dataset, "BL", 0.9)  # it has no rate
    tiny = methods.settings("tiny")  # the preset's name decides nothing
    request = {"preset": "demo", "dataset": tiny_dataset, "rate": 0.9}
    assert spec("CPF", **request, settings=tiny).run_id == first
    sums = (spec("CPF", rate=rate, dataset=tiny_dataset).run_id for rate in (0.3, 0.1 + 0.2))
    assert len({*sums}) == 1
    code = "from dflib.study.runs import spec; "
    code += f"print(spec('CPF', preset='tiny', dataset={tiny_dataset!r}, rate=0.9).run_id)"
    assert python("-c", code, PYTHONHASHSEED="7").stdout.strip() == first


def test_everything_that_decides_a_result_changes_the_id(tiny_dataset):
    changed = {"finetune_epochs": 2, "finetune_lr": 1e-4, "scope": "global", "size": 64}
    changed |= {"mode": "center_crop", "limit": 20, "batch": 32, "augment": False, "amp": False}
    changed |= {"weight_decay": 0.0, "ema": 0.99, "front": "srm"}
    changed |= {"hold_out": "nearest", "train_generators": "nearest", "patience": 2}
    changed |= {"epochs": 3}  # its parent's: another BL, so another CPF
    requests = [{}, {"rate": 0.6}, {"rate": 0.9001}, {"seed": 1}, {"protocol": "paper"}]
    requests += [{"method": "CKD"}, {"settings": {"limit": None}}]
    requests += [{"settings": {key: value}} for key, value in changed.items()]
    ids = {run_id(tiny_dataset, **request) for request in requests}
    assert len(ids) == len(requests)


@pytest.mark.parametrize("preset", methods.PRESETS)
def test_pretrained_weights_take_a_presets_front_end_away_unless_it_is_asked_for(preset, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    given = {"backbone": "timm/resnet18", "pretrained": str(file)}
    assert methods.settings(preset, given)["front"] == ""
    for front in ("", "srm"):
        settings = methods.settings(preset, given | {"front": front})
        assert settings["front"] == front
        made = runs.Spec("BL", "demo", "strict", preset, None, 0, settings).parameters()["settings"]
        assert methods.settings(preset, made) == settings  # in the notebook
    usual = methods.preset(preset).settings.get("front", "")
    assert methods.settings(preset, {"pretrained": ""})["front"] == usual


@pytest.mark.parametrize("form", ["serial", "residual", None])
def test_what_fits_another_network_is_taken_unless_something_else_is_asked_for(form):
    network = {"backbone": "timm/mobilenetv3_small_100"}
    given = network | ({"adapter_form": form, "trainable": "head"} if form else {})
    settings = methods.settings("tiny", given)
    assert settings["adapter_form"] == (form or "residual")
    assert settings["trainable"] == ("head" if form else "all")
    made = runs.Spec("TL+P+A", "demo", "strict", "tiny", 0.6, 0, settings).parameters()["settings"]
    assert made["backbone"] == network["backbone"]
    assert methods.settings("tiny", made) == settings  # in the notebook
    ours = methods.settings("tiny")
    assert [ours[k] for k in ("adapter_form", "trainable")] == [
        methods.DEFAULTS[k] for k in ("adapter_form", "trainable")
    ]


def test_a_setting_that_the_method_does_not_read_leaves_the_id(tiny_dataset):
    unread = {"CPF": {"temperature": 2.0, "round_to": 4}, "CKD-0": {"temperature": 2.0}}
    unread |= {"CKD": {"scope": "global", "finetune_lr": 1e-4}, "CPKDQ": {"steps": "int8"}}
    unread |= {"BL": {"finetune_epochs": 9}}
    for method, changed in unread.items():
        assert run_id(tiny_dataset, method, settings=changed) == run_id(tiny_dataset, method)


def test_other_contents_labels_or_generators_of_the_dataset_change_the_id(
    tmp_path, data_root, tree, picture
):
    root, seen = tree(tmp_path / "set", {"real": 12, "fake/gan": 12}), []
    other = root / "fake" / "other"
    for change in (
        lambda: None,
        lambda: picture(root / "real" / "real-000.png", seed=500),
        lambda: (root / "fake" / "gan").rename(other),
        lambda: (other / "fake-gan-001.png").rename(root / "real" / "fake-gan-001.png"),
    ):
        change()
        folder.prepare(root, name="mine")
        seen += [run_id("mine"), run_id("mine", "BL", None)]
    assert len(set(seen)) == 8


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
    tagless = r"lost its cell tags \(parameters, result\).*git checkout"
    with pytest.raises(InputError, match=tagless):
        run_id(tiny_dataset)
    for text in ("<<<<<<< HEAD\n{}", "{}", "[]", '{"cells": [{}]}', '{"cells": [1]}'):
        (tmp_path / "03_prune.ipynb").write_text(text)
        with pytest.raises(InputError, match=r"03_prune\.ipynb is damaged|lost its cell tags"):
            run_id(tiny_dataset)
    (tmp_path / "03_prune.ipynb").unlink()
    with pytest.raises(InputError, match=r"03_prune\.ipynb is not there"):
        run_id(tiny_dataset)


# ---- transfers


def transfer(name: str, source: str, method: str = "TL+P+FT", **request) -> runs.Spec:
    usual = {"preset": "tiny", "dataset": name, "source": source, "rate": 0.9}
    return spec(method, **(usual | request))


def test_the_source_decides_a_transfer_and_nothing_else(tiny_dataset, tiny_source):
    assert transfer(tiny_dataset, tiny_source).run_id != transfer(tiny_source, tiny_dataset).run_id
    home = spec("CPF", preset="tiny", dataset=tiny_dataset, rate=0.9)
    assert transfer(tiny_dataset, tiny_source, "CPF") == home
    assert home.source == ""


def test_the_target_may_have_few_images_and_the_source_keeps_its_own(tiny_dataset, tiny_source):
    asked = lambda n: transfer(tiny_dataset, tiny_source, settings={"target_images": n})
    assert asked(8).run_id != asked(None).run_id
    assert asked(8).parents == asked(None).parents
    few, more, whole = (runs.Run(asked(n)).data for n in (8, 10, None))
    assert np.bincount(few.train.labels).tolist() == [8, 8]
    taken = [set(d.train.table["path"]) for d in (few, more, whole)]
    assert taken[0] < taken[1] < taken[2]
    assert few.test.table.equals(whole.test.table) and few.val.table.equals(whole.val.table)


@pytest.mark.parametrize(
    ("method", "request_", "message"),
    [
        ("TL+FT", {"source": "tiny-sorce"}, "'tiny-sorce', did you mean 'tiny-source'"),
        ("TL+FT", {"trainable": "features.8"}, r"layer 'features.8', did you mean 'features.\d'"),
        ("TL+FT", {"trainable": "features.7;head"}, "unknown layer 'features.7;head'"),
        ("TL+KD+A", {"trainable": "features.8"}, "unknown layer 'features.8'"),  # of its parent
        ("TL+KD+A", {"adapter_after": "features.5"}, r"'features.5', did you mean 'features.\d'"),
        ("TL+P+A", {"adapter_after": "block4"}, "unknown block 'block4'"),
        ("TL+P+A", {"adapter_form": "paralel"}, "unknown adapter_form 'paralel'"),
    ],
)
def test_a_transfer_that_cannot_be_is_refused_before_anything_is_made(
    tiny_dataset, tiny_source, outputs_root, method, request_, message
):
    request = request_ if "source" in request_ else {"settings": request_}
    with pytest.raises(InputError, match=message):
        transfer(tiny_dataset, **({"source": tiny_source, "method": method} | request))
    assert not outputs_root.exists()


CUTTING = ("CPF", "CPF-S", "LRF", "CPKDQ", "CKD", "SCRATCH", "TL+P+FT", "TL+KD")
TOO_MUCH = [(code, 0.999999, {}) for code in CUTTING]
TOO_MUCH += [("chain", None, {"steps": f"{step}:0.999999,finetune"}) for step in methods.RATED]
TOO_MUCH += [("LRF", 0.99, {"backbone": "timm/mobilenetv3_small_100"})]


@pytest.mark.parametrize(("method", "rate", "settings"), TOO_MUCH)
def test_a_rate_that_cannot_be_met_is_refused_before_anything_is_made(
    tiny_dataset, tiny_source, outputs_root, method, rate, settings
):
    with pytest.raises(InputError, match="cannot be met"):
        transfer(tiny_dataset, tiny_source, method, rate=rate, settings=settings)
    assert not outputs_root.exists()


@pytest.mark.parametrize("kind", ["prune", "mask", "lowrank"])
@pytest.mark.parametrize("scope", prune.SCOPES)
def test_a_rate_that_is_not_tried_can_be_met(kind, scope):
    feasible._cut_on_trial(kind, feasible.SURE, "vgg", 32, 64, scope)


def test_a_missing_parent_is_named_with_the_command_that_makes_it(
    tiny_dataset, tiny_source, outputs_root
):
    run = runs.Run(transfer(tiny_dataset, tiny_source, "TL+FT"))
    how = f"python -m dflib study .*--dataset {tiny_source} .*--methods BL"
    with pytest.raises(InputError, match=f"starts from BL-s0.*, which is not there yet: {how}"):
        run.parent()
    with pytest.raises(InputError, match="unknown parent 'CPF'; Valid: BL"):
        run.parent("CPF")


ODD = {"size": 64, "mode": "center_crop", "limit": 9, "epochs": 7, "lr": 1e-9, "augment": False}
ODD |= {"steps": "prune:0.5,finetune,prune:0.9,distill,int8", "trainable": "features.6,head"}
ODD |= {"hold_out": "nearest", "target_images": None, "temperature": 1 / 3}


@pytest.mark.parametrize("method", CODES)
@pytest.mark.parametrize("overrides", [ODD, {"limit": None, "target_images": 12}])
def test_parameters_and_the_command_line_lead_back_to_the_same_run(
    tiny_dataset, tiny_source, overrides, method
):
    data = {"dataset": tiny_dataset, "source": tiny_source, "protocol": "paper"}
    wanted = spec(method, preset="demo", rate=1 / 3, seed=99, settings=overrides, **data)
    through_papermill = json.loads(json.dumps(wanted.parameters()))
    assert spec(**({"method": method} | through_papermill)).run_id == wanted.run_id
    words = shlex.split(wanted.command())
    assert words[:4] == ["python", "-m", "dflib", "study"]
    options = list(zip(words[4::2], words[5::2], strict=True))
    asked = {k.lstrip("-"): v for k, v in options if k != "--set"}
    asked["settings"] = dict(v.split("=", 1) for k, v in options if k == "--set")
    asked |= {"seed": int(asked.pop("seeds")), "rate": float(asked.pop("rates", 0.5))}
    assert spec(asked.pop("methods"), **asked).run_id == wanted.run_id


# ---- finished runs


def test_a_folder_without_a_result_is_named_and_a_damaged_failure_is_none(tmp_path):
    with pytest.raises(InputError, match=r"is no finished run: it has no result\.json"):
        runs.read(tmp_path)
    for contents in ("", "[]", '{"kind": "died"}'):
        (tmp_path / "failed.json").write_text(contents)
        assert runs.failure(tmp_path) is None


def test_a_finished_run_is_one_row_and_the_best_is_told_by_validation(outputs_root, caplog):
    auroc = {"auroc": 0.9, "n": 4, "n_real": 2, "n_fake": 2, "ci95": {"auroc": [0.8, 0.95]}}
    asked = {"hold_out": "b,a"}
    record = result("CPF", 0.9, p50=1.0) | {"run_id": "CPF-1", "parents": ["BL-1", "BL-2"]}
    record["params"] = methods.relevant("CPF", methods.settings("demo", asked))
    record["metrics"] = {"all": auroc, "gan": auroc | {"accuracy": 0.7, "recall": 0.6}}
    store(outputs_root, record)
    (row,) = runs.results("faces").to_dict("records")
    assert runs.results("other").empty
    told = ("run_id", "method", "rate", "seed", "dataset", "protocol", "preset", "command")
    assert all(row[key] == record[key] for key in told)
    assert (row["fold"], row["parents"]) == ("without a, b", "BL-1,BL-2")
    assert (row["latency_p50_ms"], row["latency_p95_ms"], row["total_s"]) == (1.0, 9.0, 70.0)
    assert [row[k] for k in ("auroc", "auroc_low", "auroc_high")] == [0.9, 0.8, 0.95]
    assert (row["gan/auroc"], row["gan/accuracy"], row["size"]) == (0.9, 0.7, 32)
    assert not {"n", "gan/recall", "ci95"} & row.keys()
    for name, scores in (("CPF-4", [0.1, 0.6, 0.4, 0.9]), ("CPF-5", [0.1, 0.2, 0.8, 0.9])):
        known = {"label": [0, 0, 1, 1], "score": scores}
        place = store(outputs_root, record | {"run_id": name}, known=known)
        os.utime(place / "result.json", (0, 1000 - int(name[-1])))
    assert runs.find("best") == place  # by validation, and without those that have none
    assert "best: CPF-5 (validation AUROC 1.000)" in caplog.text
    few = record | {"run_id": "CPF-6", "params": record["params"] | {"limit": 8}}
    os.utime(store(outputs_root, few, known=known) / "result.json", (0, 900))
    assert runs.find("best") == place  # eight images make 1.000 easy
    old = record | {"run_id": "CPF-7", "code": {"train": 0}}
    os.utime(store(outputs_root, old, known=known) / "result.json", (0, 800))
    assert runs.find("best") == place  # and so does older code
    assert runs.find("latest").name == "CPF-1"


def test_a_run_is_found_by_id_by_its_beginning_and_by_path(outputs_root):
    place = outputs_root / "set" / "strict" / "BL" / "BL-s0-32px-0a1b2c3d"
    for folder_ in (place, place.with_name("BL-s10-32px-0a1b2c3d")):
        folder_.mkdir(parents=True)
        (folder_ / "result.json").write_text("{}")
    (place.parent / "BL-s2-32px-unfinished").mkdir()
    assert runs.folders() == [place, folder_]
    for asked in (place.name, str(place), "BL-s0", "BL-s0-32px-0a"):
        assert runs.find(asked) == place
    with pytest.raises(InputError, match="did you mean 'BL-s0-32px-0a1b2c3d'"):
        runs.find("BL-s0-32px-0a1b2c3e")
    with pytest.raises(InputError, match="run 'BL-s' is how 2 begin: BL-s0-32px-0a1b2c3d, BL-s10"):
        runs.find("BL-s")
