"""One training on two processes against the same training in one."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.errors import InputError
from dflib import methods, runs, study, train
from dflib.data import Dataset
from dflib.models import Architecture, Block, Dense, Detector
from dflib.train import Recipe

RECIPE = Recipe(epochs=3, batch=10, lr=3e-3, augment=False, amp=False)
CPU = torch.device("cpu")


class Interruption(Exception):
    """Raised in the middle of a training."""


def network() -> Detector:
    """A small detector without what draws or averages for each process: no dropout, and BatchNorm with fixed statistics."""
    with train.seeded(0):
        model = Detector(Architecture("t", 32, (Block(8, pool=True), Block(8, pool=True)), (Dense(8, 0.0),)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return model


def test_two_processes_learn_what_one_learns_and_go_on_after_an_interruption(toy, tmp_path):
    """45 images: of the last batch one process has three, the other two."""
    data, recipe = toy(75), replace(RECIPE, patience=2)
    assert len(data.train) == 45
    one = network()
    alone = train.fit(one, data, recipe, device=CPU)
    mask = {"features.0.conv.weight": torch.ones(1)}
    two, seen = network(), []

    def cut(rows) -> None:
        seen.append(len(rows))
        if len(rows) == 1:
            raise Interruption

    slowly = lambda model: time.sleep(0.1 * len(mask))  # epochs are left when it is cut
    options = {"devices": 2, "checkpoint": tmp_path / "checkpoint.pt", "after_step": slowly}
    with pytest.raises(Interruption):
        train.fit(two, data, recipe, on_epoch=cut, **options)
    together = train.fit(two, data, recipe, on_epoch=cut, **options)
    assert seen == sorted(set(seen)) and seen[-1] == len(together)  # went on: no epoch was made twice
    assert len(together) == len(alone)
    for column in ("loss", "val_loss", "lr"):
        np.testing.assert_allclose(together[column], alone[column], rtol=1e-3)
    assert together["accuracy"].tolist() == pytest.approx(alone["accuracy"].tolist(), abs=1.5 / len(data.train))
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], weight, rtol=1e-2, atol=1e-3)
    assert not two.training


def test_what_one_process_raises_is_raised_here(toy):
    with pytest.raises(InputError, match="the training loss is .* lower it with --set lr="):
        train.fit(network(), toy(), replace(RECIPE, lr=1e30, epochs=1), devices=2)


def test_more_devices_than_exist_are_refused(toy):
    with pytest.raises(InputError, match=r"devices=1000 is more than the \d+ (GPUs|CPU cores) that are here"):
        train.fit(network(), toy(), replace(RECIPE, batch=4000), devices=1000)
    with pytest.raises(InputError, match="devices=1000 is more than"):
        study.worker_environments(4, devices=1000)
    with pytest.raises(InputError, match="at least 2 images in a batch, on each device"):
        train.fit(network(), toy(), replace(RECIPE, batch=3), devices=2)


def test_more_gpus_than_exist_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(64))))
    with pytest.raises(InputError, match="asks for 64 GPUs"):
        study.worker_environments(4)


def test_a_part_travels_as_its_file_and_is_shared_without_overlap(tiny_dataset):
    import pickle

    from dflib import data

    opened = data.open(tiny_dataset, size=32)
    sent = pickle.dumps(opened)
    assert len(sent) < opened.train.pixels.nbytes / 2
    there: Dataset = pickle.loads(sent)
    assert np.array_equal(there.train.pixels, opened.train.pixels) and there.train.table.equals(opened.train.table)
    order = lambda: torch.Generator().manual_seed(3)
    whole = [images for images, _ in opened.train.batches(10, shuffle=order())]
    parts = [[images.clone() for images, _ in there.train.batches(10, shuffle=order(), share=(i, 2))] for i in (0, 1)]
    for batch, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(batch[0::2], left) and torch.equal(batch[1::2], right)


def test_a_notebook_trains_on_two_devices(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("DFLIB_OUTPUTS", str(tmp_path))
    plan = study.plan(preset="tiny", dataset=tiny_dataset, methods_=("BL",), settings={"devices": 2})
    plain = study.plan(preset="tiny", dataset=tiny_dataset, methods_=("BL",))
    assert "devices" not in methods.relevant("BL", plain.specs[0].settings)
    assert plan.specs[0].run_id != plain.specs[0].run_id
    assert study.execute(plan.specs[0])["status"] == "done"
    result = runs.read(plan.specs[0].folder)
    assert result["params"]["devices"] == 2 and "--set devices=2" in result["command"]
    history = (plan.specs[0].folder / "history.csv").read_text()
    assert history.count("\n") == 1 + plan.specs[0].settings["epochs"]
