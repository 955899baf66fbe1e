"""The training loop: the same to the bit, interrupted or not; honest about what it cannot do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from data_prep.errors import InputError
from dflib import train
from dflib.models import Architecture, Block, Dense, Detector
from dflib.train import Recipe

CPU = torch.device("cpu")
QUICK = Recipe(epochs=4, batch=10, lr=3e-3)
CLOCKS = ["seconds", "cpu_seconds"]


def small(seed: int = 0, width: int = 8) -> Detector:
    blocks = (Block(width, pool=True),) * 2
    with train.seeded(seed):
        return Detector(Architecture("t", 32, blocks, (Dense(8, 0.3),)))


def fitted(data, recipe: Recipe, *, seed: int = 0, **options):
    model = small(seed)
    history = train.fit(model, data, recipe, device=CPU, **options)
    return model.state_dict(), history


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def alike(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    return a.drop(columns=CLOCKS).equals(b.drop(columns=CLOCKS))


@pytest.mark.parametrize("amp", [True, False])
def test_the_same_seed_gives_the_same_weights_to_the_bit(toy, amp):
    recipe = replace(QUICK, amp=amp)
    torch.manual_seed(1)
    first, history = fitted(toy(), recipe)
    torch.manual_seed(2)  # what happened before must not matter
    torch.rand(5)
    before = torch.get_rng_state()
    second, again = fitted(toy(), recipe)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, second)
    assert alike(history, again)
    assert not same(first, fitted(toy(), replace(recipe, seed=1))[0])


def test_scores_are_computed_in_full_float32(toy):
    model, allowed, before = small(), [], torch.backends.cudnn.allow_tf32
    model.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    train.predict(model, toy().val)
    assert allowed and not any(allowed)
    assert torch.backends.cudnn.allow_tf32 == before and torch.backends.cudnn.enabled


class Interruption(Exception):
    pass


@pytest.mark.parametrize(
    "options",
    [{"patience": 50}, {"ema": 0.9, "patience": 50, "amp": False}, {"ema": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_training_ends_as_the_uninterrupted_one(toy, tmp_path, after, options):
    def cut(history) -> None:
        if len(history) == after:
            raise Interruption

    recipe, file = replace(QUICK, **options), tmp_path / "checkpoint.pt"
    whole, history = fitted(toy(), recipe)
    with pytest.raises(Interruption):
        fitted(toy(), recipe, checkpoint=file, on_epoch=cut)
    seen, count = [], lambda rows: seen.append(len(rows))
    resumed, again = fitted(toy(), recipe, seed=99, checkpoint=file, on_epoch=count)
    assert seen == list(range(after + 1, recipe.epochs + 1))  # goes on; does not begin anew
    assert same(whole, resumed)
    assert alike(history, again)
    finished, _ = fitted(toy(), recipe, seed=98, checkpoint=file)  # nothing left to do
    assert same(whole, finished)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_another_recipe_or_model_is_refused(toy, tmp_path):
    file = tmp_path / "checkpoint.pt"
    fitted(toy(), replace(QUICK, epochs=1), checkpoint=file)
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint\.pt is of another recipe, .*epochs=1"):
        fitted(toy(), QUICK, checkpoint=file)
    with pytest.raises(InputError, match=r"checkpoint\.pt is of another model: remove it"):
        train.fit(small(width=9), toy(), replace(QUICK, epochs=1), checkpoint=file, device=CPU)
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["random", "cut", "empty", "other", "pickle"])
def test_a_damaged_checkpoint_is_as_none(toy, tmp_path, caplog, damage):
    file, seen = tmp_path / "checkpoint.pt", []
    fitted(toy(), QUICK, checkpoint=file)
    if damage == "other":
        torch.save([1, 2], file)
    elif damage == "pickle":
        torch.save({"recipe": Interruption}, file)
    else:
        contents = {"random": b"\x80\x02random", "cut": file.read_bytes()[:500], "empty": b""}
        file.write_bytes(contents[damage])
    fitted(toy(), QUICK, checkpoint=file, on_epoch=lambda rows: seen.append(len(rows)))
    assert seen == [1, 2, 3, 4] and "checkpoint.pt is damaged: training starts anew" in caplog.text


@settings(max_examples=12)
@given(
    epochs=st.integers(1, 12),
    warmup=st.sampled_from([0.0, 0.1, 0.3, 0.9, 1.0]),
    batch=st.sampled_from([10, 36]),  # four steps an epoch, or one
)
def test_history_tells_of_a_linear_warm_up_and_a_cosine_to_zero(toy, epochs, warmup, batch):
    recipe = replace(QUICK, epochs=epochs, warmup=warmup, batch=batch)
    _, history = fitted(toy(), recipe)
    steps = -(-36 // batch)
    total = steps * epochs
    warm = min(total - 1, round(warmup * total))
    for epoch, rate in enumerate(history["lr"]):
        step = epoch * steps
        cosine = (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
        expected = recipe.lr * ((step + 1) / (warm + 1) if step < warm else cosine)
        assert rate == pytest.approx(expected, rel=1e-6, abs=1e-12 * recipe.lr)
    columns = "epoch lr loss accuracy val_loss val_accuracy val_auroc"
    assert list(history) == [*columns.split(), *CLOCKS]
    assert history["epoch"].tolist() == [*range(1, epochs + 1)]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_validation_figures_are_those_of_the_model(toy, ema):
    data, model = toy(120), small()
    state, history = fitted(data, replace(QUICK, amp=False, ema=ema))
    model.load_state_dict(state)
    score, labels, last = train.predict(model, data.val), data.val.labels, history.iloc[-1]
    assert last["val_auroc"] == pytest.approx(roc_auc_score(labels, score))
    assert last["val_accuracy"] == pytest.approx(((score > 0.5) == labels).mean())
    chosen = np.where(labels == 1, score, 1 - score)
    assert last["val_loss"] == pytest.approx(-np.log(chosen).mean(), rel=1e-4)


@pytest.mark.parametrize("patience", [0, 3])
def test_early_stopping_keeps_the_best_epochs_weights_else_the_last_count(toy, patience):
    """Of labels that cannot be learnt: the best epoch comes early."""
    data, model, states = toy(), small(), []
    labels = np.random.default_rng(0).permutation(data.train.labels)
    train_part = replace(data.train, table=data.train.table.assign(label=labels))
    record = lambda _: states.append({k: v.clone() for k, v in model.state_dict().items()})
    recipe = replace(QUICK, epochs=40 if patience else 4, patience=patience)
    history = train.fit(model, replace(data, train=train_part), recipe, device=CPU, on_epoch=record)
    best = int(history["val_auroc"].idxmax())
    assert len(states) == len(history) == (best + 1 + 3 if patience else 4) < 40
    assert same(model.state_dict(), states[best if patience else -1])
    assert not patience or not same(model.state_dict(), states[-1])
    assert not model.training


@pytest.mark.parametrize(
    ("lr", "loss"), [(1e30, None), (1e-3, lambda z, *_: z.sum() * float("nan"))]
)
def test_a_loss_that_is_not_finite_is_an_error_with_a_way_out(toy, lr, loss):
    message = r"the training loss is (nan|inf) at learning rate .*: lower it with --set lr="
    with pytest.raises(InputError, match=message):
        fitted(toy(), replace(QUICK, lr=lr), loss=loss)


def test_batches_of_one_image_are_refused_and_a_last_single_one_is_left_out(toy):
    with pytest.raises(InputError, match="batch 1: BatchNorm needs at least 2 images"):
        fitted(toy(), replace(QUICK, batch=1))
    steps = []
    fitted(toy(), replace(QUICK, epochs=1, batch=35), after_step=steps.append)  # 36 = 35 + 1
    assert len(steps) == 1


def test_label_smoothing_is_that_of_the_formula(toy):
    recipe = replace(QUICK, epochs=1, batch=36, augment=False, amp=False, label_smoothing=0.2)
    model, data = small(), toy()
    model.head[0].p = 0.0
    images, labels = next(data.train.batches(36))
    log_p = model.train()(train.pixels(images)).log_softmax(1).detach()
    expected = -(0.8 * log_p[range(36), labels] + 0.1 * log_p.sum(1)).mean().item()
    found = train.fit(model, data, recipe, device=CPU)["loss"][0]
    assert found == pytest.approx(expected, rel=1e-5)


# ---- prediction, precision


@pytest.mark.parametrize("batch", [1, 5, 500])
def test_predict_is_the_softmax_in_order(toy, batch):
    data, model = toy(), small()
    model.train()  # predict must not leave dropout on
    score = train.predict(model, data.test, batch=batch)
    whole = np.stack([data.test.image(i) for i in range(len(data.test))])
    x = torch.from_numpy(whole).permute(0, 3, 1, 2) / 255
    logits = model.eval()(x).detach().numpy().astype(np.float64)
    e = np.exp(logits - logits.max(1, keepdims=True))
    assert score.dtype == np.float64
    np.testing.assert_allclose(score, e[:, 1] / e.sum(1), rtol=1e-5)


@pytest.mark.parametrize("capability", [(6, 1), (7, 5), (8, 0), (8, 9), (12, 0)])
def test_precision_by_capability_of_the_gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    expected = torch.bfloat16 if capability[0] >= 8 else torch.float16
    assert train.precision(torch.device("cuda")) == expected


@pytest.mark.parametrize("flags", ["", "avx2 avx512f", "avx512f avx512_bf16", "amx_bf16", "bf16"])
def test_precision_by_flags_of_the_cpu(monkeypatch, flags):
    monkeypatch.setattr(train, "instruction_sets", flags.split)
    assert train.precision(CPU) == (torch.bfloat16 if "bf16" in flags else torch.float32)


def test_the_average_of_the_weights_is_that_of_the_formula(toy):
    model, steps = small(), []
    record = lambda m: steps.append({k: v.double().clone() for k, v in m.state_dict().items()})
    train.fit(model, toy(), replace(QUICK, ema=0.6, amp=False), device=CPU, after_step=record)
    expected = steps[0]
    for t, now in enumerate(steps[1:], 1):
        d = min(0.6, (1 + t) / (10 + t))
        expected = {k: d * expected[k] + (1 - d) * now[k] for k in now}
    final = model.state_dict()
    for name, value in final.items():
        wanted = steps[-1][name] if name.endswith("num_batches_tracked") else expected[name]
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    last = steps[-1]["head.1.weight"]
    assert not torch.allclose(final["head.1.weight"].double(), last, rtol=1e-3)
