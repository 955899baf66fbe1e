"""Adapters, selected layers, deltas; what is frozen stays so, bit by bit."""

import made
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

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


def lived_in(seed: int = 0) -> Detector:
    return made.lived_in(ODD, seed)


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
    base, i = lived_in(seed), int(after[-1])
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


PLACES = {"BL": 3, "S60": 6, "S70": 5, "S80": 6, "S90": 4}


@pytest.mark.parametrize(("name", "place"), PLACES.items())
def test_the_place_and_the_number_of_parameters_are_the_papers(name, place):
    arch = models.architecture(name)
    small = models.scaled(arch, 0.37)
    assert adapters.place(arch) == adapters.place(small) == f"features.{place}"
    adapted = adapters.insert(Detector(models.architecture(name, size=32)))
    behind, width = adapted.arch.adapters[0][0], arch.blocks[place].width
    assert behind == f"features.{place}"
    with torch.device("meta"):
        base, adapter = Detector(arch), models.Adapter(width, residual=False)
    assert models.parameters(adapter) == (9 * width + width) + (width * width + width) + 2 * width
    assert models.parameters(adapter) < 0.02 * models.parameters(base)


THEIRS = ("timm/tf_efficientnet_lite0", "timm/resnet18:16", "timm/convnext_atto")
THEIRS += ("torchvision/mobilenet_v2",)


@pytest.mark.parametrize(
    ("name", "form", "at"),
    [("", "serial", 0), ("", "residual", 2), *((name, "residual", 1) for name in THEIRS)],
)
def test_an_adapter_alone_trains_and_its_model_is_read_back_and_goes_to_onnx(
    name, form, at, tmp_path, toy
):
    base = lived_in()
    if name:
        base = Detector(models.architecture("BL", size=32, backbone=name)).eval()
    places = adapters.places(base.arch)
    assert not name or adapters.place(base.arch) == [*places][(len(places) - 1) // 2]
    after = [*places][at]
    adapted, x = adapters.insert(base, after, form=form).eval(), torch.rand(3, 3, 32, 32)
    assert torch.equal(adapted(x), base(x)) == (form == "residual")
    own = models.parameters(models.Adapter(places[after], residual=form == "residual"))
    assert models.parameters(adapted) - models.parameters(base) == own
    moved = fitted(adapted, toy, lr=0.01, weight_decay=0.1)
    inside = {k for k in adapted.state_dict() if k.startswith(f"{after}.adapter.")}
    biases = [f"{after}.adapter.{conv}.bias" for conv in ("depthwise", "pointwise")]
    assert inside - {*biases} <= moved <= inside  # BatchNorm takes biases out again
    delta = adapters.save_delta(adapted, base, tmp_path / "delta.safetensors")
    assert set(load_file(delta)) == inside
    whole = models.save(adapted, tmp_path / "model.safetensors")
    for again in (models.load(delta, base=base), models.load(whole)):
        assert again.arch == adapted.arch and not again.training
        assert not changed(tensors(adapted), tensors(again))
        torch.testing.assert_close(again(x), adapted(x), rtol=1e-4, atol=1e-5)  # another layout
    session = export.OnnxModel(export.to_onnx(again, tmp_path / "model.onnx"))
    most = 1e-3 if name else 1e-4
    assert export.parity(again, session, toy().test)["max_logit_difference"] < most


# --- what trains and what does not


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


# --- deltas


def test_a_delta_of_selected_layers_gives_the_model_back_and_holds_them_alone(tmp_path, toy):
    base, model = lived_in(), lived_in()
    adapters.select(model, "features.3,head")
    moved = fitted(model, toy)
    path = adapters.save_delta(model, base, tmp_path / "delta.safetensors")
    again = models.load(path, base=base)
    assert again.arch == model.arch and not again.training
    assert not changed(tensors(model), tensors(again))
    assert set(load_file(path)) == moved
    assert not list(tmp_path.glob("*.new"))


def test_a_delta_on_the_wrong_base_is_refused(tmp_path):
    base, other = lived_in(), lived_in()
    path = adapters.save_delta(adapters.insert(base), base, tmp_path / "delta.safetensors")
    whole = models.save(base, tmp_path / "whole.safetensors")
    other.features[0].norm.running_mean[0] += 1e-6
    own = models.fingerprint(base)
    for file, by, message in (
        (path, other, f"has the base {own}, not"),
        (path, None, f"has the base {own}, not none: .*dflib.models.load"),
        (whole, base, f"has the base none, not {own}"),
    ):
        with pytest.raises(InputError, match=message):
            models.load(file, base=by)


def test_rounding_the_adapter_halves_its_file_and_gives_back_what_was_evaluated(tmp_path, toy):
    base = lived_in()
    adapted = adapters.insert(base, "features.2")
    fitted(adapted, toy)
    exact = tensors(adapted)
    whole = adapters.save_delta(adapted, base, tmp_path / "float32.safetensors")
    rounded = tensors(adapters.halve(adapted, base))
    half = adapters.save_delta(adapted, base, tmp_path / "float16.safetensors")
    assert not changed(rounded, tensors(models.load(half, base=base)))
    assert changed(exact, rounded) and not changed(tensors(base), rounded)
    for k, tensor in exact.items():
        expected = tensor.half().to(tensor.dtype) if ".adapter." in k else tensor
        assert torch.equal(rounded[k], expected)
    saved = {f: sum(t.nbytes for t in load_file(f).values() if t.ndim) for f in (whole, half)}
    assert saved[half] * 2 == saved[whole]


def test_a_delta_that_does_not_fit_its_base_is_refused(tmp_path):
    base, path = lived_in(), tmp_path / "delta.safetensors"
    metadata = {"format": models.FORMAT, "base": models.fingerprint(base)}
    described = metadata | {"architecture": base.arch.to_json()}
    for written in (metadata, described | {"architecture": "{}"}, described):
        save_file({"x": torch.zeros(1)}, path, written)
        with pytest.raises(InputError, match="weights and architecture do not fit"):
            models.load(path, base=base)


# --- bad input

VIT = models.architecture("BL", size=224, backbone="timm/vit_tiny_patch16_224")
TWICE = lambda m: adapters.insert(adapters.insert(m, "features.1"), "features.1")
NEAR = r", did you mean '{}'\? Valid: {}, "


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: adapters.select(m, "feature.3"), NEAR.format("features.3", "all, norms")),
        (lambda m: adapters.select(m, ""), "unknown layer ''"),
        (lambda m: adapters.insert(m, "features.9"), NEAR.format(r"features.\d", "features.0")),
        (lambda m: adapters.insert(m, form="seriel"), "form of adapter 'seriel', did .* 'serial'"),
        (TWICE, "features.1 has an adapter already"),
        (lambda m: adapters.place(VIT), "vit_tiny_patch16_224 has no feature maps"),
    ],
)
def test_bad_input_is_named(ask, message):
    with pytest.raises(InputError, match=message):
        ask(lived_in())


def test_a_frozen_model_is_not_trained(toy):
    model = lived_in().requires_grad_(False)
    with pytest.raises(InputError, match="every parameter of the model is frozen"):
        train.fit(model, toy(), train.Recipe(epochs=1))
