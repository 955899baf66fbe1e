"""Adapters, selected layers, low-rank updates, deltas; what is frozen stays so, bit by bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrize

from data_prep.errors import InputError
from dflib import adapters, export, models, train
from dflib.models import Architecture, Block, Dense, Detector

ODD_BLOCKS = (  # as structured pruning leaves a model: odd widths, and a depthwise block
    Block(5, pool=True),
    Block(11),
    Block(13, pool=True, separable=True, mid=11, groups=11),
    Block(7, pool=True),
)
ODD = Architecture("BL", 32, ODD_BLOCKS, (Dense(9, 0.5),))
BLOCKS = [f"features.{i}" for i in range(4)]


def lived_in(arch: Architecture = ODD, seed: int = 0) -> Detector:
    """A detector whose BatchNorm statistics are not those of a fresh one, in eval mode."""
    with train.seeded(seed):
        model = Detector(arch)
        for _ in range(3):
            model(torch.rand(8, 3, arch.size, arch.size))
    return model.eval()


def tensors(model: Detector) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    """Names of the tensors that are not the same, bit by bit."""
    return {k for k in before if not torch.equal(before[k], after[k])}


def fitted(model: Detector, toy, **changes) -> set[str]:
    """Train for two epochs, and return the names of the tensors that have changed."""
    before = tensors(model)
    train.fit(model, toy(), train.Recipe(epochs=2, batch=16, **changes), device=torch.device("cpu"))
    return changed(before, tensors(model))


# --- adapters


@given(after=st.sampled_from(BLOCKS), form=st.sampled_from(adapters.FORMS), seed=st.integers(0, 5))
@settings(max_examples=15)
def test_an_adapter_computes_its_equation(after, form, seed):
    base, i = lived_in(seed=seed), int(after[-1])
    adapted = adapters.insert(base, after, form=form, seed=seed).eval()
    depthwise, pointwise, norm = list(adapted.get_submodule(f"{after}.adapter").children())[:3]
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
    column = lambda values: values[:, None, None]
    x = torch.rand(2, 3, 32, 32)
    h = base.features[: i + 1]((x - 0.5) / 0.5)
    y = F.conv2d(h, depthwise.weight, depthwise.bias, padding=1, groups=h.shape[1])
    y = torch.einsum("oi,nihw->nohw", pointwise.weight[:, :, 0, 0], y) + column(pointwise.bias)
    y = (y - column(norm.running_mean)) / (column(norm.running_var) + norm.eps).sqrt()
    y = y * column(norm.weight) + column(norm.bias)
    y = (h + y if form == "residual" else y).clamp_min(0)
    logits = base.head(base.features[i + 1 :](y).flatten(1))
    torch.testing.assert_close(adapted(x), logits, rtol=1e-4, atol=1e-4)


@given(after=st.sampled_from(BLOCKS), seed=st.integers(0, 5))
@settings(max_examples=10)
def test_the_residual_form_starts_as_the_identity_and_the_serial_one_does_not(after, seed):
    base, x = lived_in(seed=seed), torch.rand(4, 3, 32, 32)
    assert torch.equal(adapters.insert(base, after, form="residual").eval()(x), base(x))
    assert not torch.allclose(adapters.insert(base, after, form="serial").eval()(x), base(x))


def test_the_residual_form_can_learn_from_its_start():
    adapted = adapters.insert(lived_in(), form="residual")
    train._train_mode(adapted)
    F.cross_entropy(adapted(torch.rand(8, 3, 32, 32)), torch.arange(8) % 2).backward()
    assert adapted.get_submodule("features.1.adapter.norm").weight.grad.abs().max() > 0


PLACES = {"BL": 3, "S60": 6, "S70": 5, "S80": 6, "S90": 4}


@pytest.mark.parametrize(("name", "place"), PLACES.items())
def test_the_place_and_the_number_of_parameters_are_the_papers(name, place):
    arch = models.architecture(name)
    small = models.scaled(arch, 0.37)
    assert adapters.place(arch) == adapters.place(small) == f"features.{place}"
    adapted = adapters.insert(Detector(models.architecture(name, size=32)))
    assert adapted.arch.blocks[place].adapter == "serial"
    width = arch.blocks[place].width
    with torch.device("meta"):
        base, adapter = Detector(arch), models.Adapter(width, residual=False)
    assert models.parameters(adapter) == (9 * width + width) + (width * width + width) + 2 * width
    assert models.parameters(adapter) < 0.02 * models.parameters(base)


@pytest.mark.parametrize("form", adapters.FORMS)
def test_an_adapted_model_rebuilds_itself_and_goes_to_onnx(form, tmp_path, toy):
    adapted = adapters.insert(lived_in(), "features.2", form=form).eval()
    again = models.load(models.save(adapted, tmp_path / "model.safetensors"))
    assert again.arch == adapted.arch
    assert not changed(tensors(adapted), tensors(again))
    session = export.OnnxModel(export.to_onnx(again, tmp_path / "model.onnx"))
    assert export.parity(again, session, toy().test)["max_logit_difference"] < 1e-4


# --- what trains and what does not


@pytest.mark.parametrize("form", adapters.FORMS)
@pytest.mark.parametrize("after", BLOCKS)
def test_only_the_adapter_trains(form, after, toy):
    adapted = adapters.insert(lived_in(), after, form=form)
    moved = fitted(adapted, toy, lr=0.01, weight_decay=0.1)
    inside = {k for k in adapted.state_dict() if k.startswith(f"{after}.adapter.")}
    biases = [f"{after}.adapter.{conv}.bias" for conv in ("depthwise", "pointwise")]
    assert inside - {*biases} <= moved <= inside  # BatchNorm takes biases out again


@pytest.mark.parametrize(
    ("names", "prefixes"),
    [
        ("head", ("head.",)),
        ("features.2", ("features.2.",)),
        ("features.3, head.3", ("features.3.", "head.3.")),
        ("all", ("",)),
        ("norms", tuple(f"features.{i}.norm." for i in range(4))),
    ],
)
def test_only_the_selected_layers_train(names, prefixes, toy):
    model = lived_in()
    count = adapters.select(model, names)
    assert count == sum(p.numel() for k, p in model.named_parameters() if k.startswith(prefixes))
    selected = {k for k in model.state_dict() if k.startswith(prefixes)}
    moved = fitted(model, toy, lr=0.01)
    assert {k for k in selected if not k.endswith("bias")} <= moved <= selected


def test_dropout_sleeps_in_a_frozen_head_and_wakes_in_a_trained_one():
    model, x = lived_in(), torch.rand(64, 3, 32, 32)
    for names, equal in (("features.3.norm", True), ("head", False)):
        adapters.select(model, names)
        train._train_mode(model)
        model.features.eval()
        assert torch.equal(model(x), model.eval()(x)) == equal
    adapters.select(model, "all")
    train._train_mode(model)
    assert all(m.training for m in model.modules())


def test_layers_lists_what_select_takes():
    model = adapters.insert(lived_in(), "features.1")
    names = adapters.layers(model)
    some = {"all", "norms", "head", "head.3", "features.1.adapter", "features.2.depthwise"}
    assert some <= set(names)
    assert "features.0.relu" not in names
    assert all(adapters.select(model, name) > 0 for name in names)
    assert adapters.select(model, ",".join(names)) == models.parameters(model)


# --- low-rank updates


def test_a_low_rank_update_starts_at_zero_trains_alone_and_merges(toy):
    model, x = lived_in(), torch.rand(4, 3, 32, 32)
    before, logits = tensors(model), model(x)
    count = adapters.low_rank(model, rank=2)
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert count == sum(2 * (c.out_channels + c.weight[0].numel()) for c in convs)
    torch.testing.assert_close(model(x), logits)
    fitted(model, toy, lr=0.01)
    trained = model(x)
    for conv in convs:
        parametrize.remove_parametrizations(conv, "weight")
    torch.testing.assert_close(model(x), trained)
    merged = tensors(model)
    assert merged.keys() == before.keys()
    assert changed(before, merged) == {k for k in before if before[k].ndim == 4}
    for k in changed(before, merged):
        update = (merged[k] - before[k]).flatten(1).double()
        assert torch.linalg.matrix_rank(update, rtol=1e-4) <= 2


# --- deltas


def test_a_delta_gives_the_model_back_and_holds_what_changed_alone(tmp_path, toy):
    base = lived_in()
    adapted = adapters.insert(base, "features.2")
    fitted(adapted, toy)
    path = adapters.save_delta(adapted, base, tmp_path / "delta.safetensors")
    again = adapters.load_delta(path, base)
    assert again.arch == adapted.arch
    assert not again.training
    assert not changed(tensors(adapted), tensors(again))
    assert set(load_file(path)) == {k for k in adapted.state_dict() if ".adapter." in k}
    assert not list(tmp_path.glob("*.new"))


def test_a_delta_of_selected_layers_holds_them_alone(tmp_path, toy):
    base, model = lived_in(), lived_in()
    adapters.select(model, "features.3,head")
    moved = fitted(model, toy)
    path = adapters.save_delta(model, base, tmp_path / "delta.safetensors")
    assert set(load_file(path)) == moved
    assert not changed(tensors(model), tensors(adapters.load_delta(path, base)))


def test_a_delta_on_the_wrong_base_is_refused(tmp_path):
    base, other = lived_in(), lived_in()
    path = adapters.save_delta(adapters.insert(base), base, tmp_path / "delta.safetensors")
    other.features[0].norm.running_mean[0] += 1e-6
    message = rf"belongs to the base {adapters.fingerprint(base)}, not to this one"
    with pytest.raises(InputError, match=message):
        adapters.load_delta(path, other)
    message = "holds only what differs from the model .*: dflib.adapters.load_delta"
    with pytest.raises(InputError, match=message):
        models.load(path)


def test_rounding_the_adapter_halves_its_file_and_gives_back_what_was_evaluated(tmp_path, toy):
    base = lived_in()
    adapted = adapters.insert(base, "features.2")
    fitted(adapted, toy)
    exact = tensors(adapted)
    whole = adapters.save_delta(adapted, base, tmp_path / "float32.safetensors")
    rounded = tensors(adapters.halve(adapted, base))
    half = adapters.save_delta(adapted, base, tmp_path / "float16.safetensors")
    assert not changed(rounded, tensors(adapters.load_delta(half, base)))
    assert changed(exact, rounded) and not changed(tensors(base), rounded)
    for k, tensor in exact.items():
        expected = tensor.half().to(tensor.dtype) if ".adapter." in k else tensor
        assert torch.equal(rounded[k], expected)
    saved = {f: sum(t.nbytes for t in load_file(f).values() if t.ndim) for f in (whole, half)}
    assert saved[half] * 2 == saved[whole]


def test_a_number_beyond_16_bits_is_not_rounded(tmp_path):
    base = lived_in()
    adapted = adapters.insert(base, "features.2")
    variance = adapted.features[2].adapter.norm.running_var.fill_(1e6 + 0.5)
    adapters.halve(adapted, base)
    assert variance[0] == 1e6 + 0.5
    path = adapters.save_delta(adapted, base, tmp_path / "delta.safetensors")
    assert not changed(tensors(adapted), tensors(adapters.load_delta(path, base)))


@pytest.mark.parametrize("rate", [0.6, 0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("size", [64, 224])
def test_an_adapter_ships_under_5_percent_of_its_students_file(size, rate, tmp_path):
    base = Detector(models.student(rate, size=size)).eval()
    whole = models.save(base, tmp_path / "base.safetensors").stat().st_size
    adapted = adapters.halve(adapters.insert(base), base)
    delta = adapters.save_delta(adapted, base, tmp_path / "delta.safetensors").stat().st_size
    assert delta < 0.05 * whole


def test_a_model_of_another_shape_is_no_delta(tmp_path):
    other = Detector(models.architecture("S90", size=32))
    with pytest.raises(InputError, match="S90 is more than BL with adapters: save it whole"):
        adapters.save_delta(other, lived_in(), tmp_path / "delta.safetensors")
    assert not list(tmp_path.iterdir())


OWN = {"format": models.DELTA, "base": adapters.fingerprint(lived_in())}
META = OWN | {"adapters": ",,,"}
NONE = {}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "is not there"),
        (lambda p: p.write_bytes(b"garbage"), "damaged"),
        (lambda p: save_file({"w": torch.zeros(2)}, p), "is no delta of this version"),
        (lambda p: models.save(lived_in(), p), "is no delta .*dflib.models.load: whole models"),
        (lambda p: save_file(NONE, p, OWN), "metadata do not fit the base"),
        (lambda p: save_file(NONE, p, META | {"adapters": ","}), "metadata do not fit the base"),
        (
            lambda p: save_file(NONE, p, META | {"adapters": "parallel,,,"}),
            "metadata do not fit the base",
        ),
        (lambda p: save_file({"x": torch.zeros(1)}, p, META), "do not fit"),
    ],
)
def test_a_file_that_is_no_delta_is_named(write, message, tmp_path):
    write(path := tmp_path / "delta.safetensors")
    with pytest.raises(InputError, match=message):
        adapters.load_delta(path, lived_in())


# --- bad input

RESNET = models.architecture("BL", size=32, backbone="resnet18")
TWICE = lambda m: adapters.insert(adapters.insert(m, "features.1"), "features.1")
NEAR = r", did you mean '{}'\? Valid: {}, "


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: adapters.select(m, "feature.3"), NEAR.format("features.3", "all, norms")),
        (lambda m: adapters.select(m, "features.3,haed"), "unknown layer 'haed', did .* 'head'"),
        (lambda m: adapters.select(m, ""), "unknown layer ''"),
        (lambda m: adapters.insert(m, "features.9"), NEAR.format(r"features.\d", "features.0")),
        (lambda m: adapters.insert(m, form="seriel"), "form of adapter 'seriel', did .* 'serial'"),
        (TWICE, "features.1 has an adapter already"),
        (lambda m: adapters.insert(Detector(RESNET)), "'resnet18' has none"),
        (lambda m: adapters.low_rank(m, rank=0), "rank 0: at least 1"),
    ],
)
def test_bad_input_is_named(ask, message):
    with pytest.raises(InputError, match=message):
        ask(lived_in())


def test_a_frozen_model_is_not_trained(toy):
    model = lived_in().requires_grad_(False)
    with pytest.raises(InputError, match="every parameter of the model is frozen"):
        train.fit(model, toy(), train.Recipe(epochs=1))
