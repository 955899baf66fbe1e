"""From the memory map to batches: nothing twice, nothing lost, nothing mixed up."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep import folder, manifest, sources
from data_prep.errors import InputError
from dflib import data


@pytest.fixture(scope="module")
def opened(tiny_dataset) -> data.Dataset:
    return data.open(tiny_dataset, size=32)


def test_parts_hold_every_usable_image_once(opened, tiny_dataset):
    parts = (opened.train, opened.val, opened.test)
    rows = np.concatenate([p.table["row"] for p in parts])
    assert sorted(rows) == list(range(240))
    about = (opened.name, opened.size, opened.protocol, opened.mode)
    assert about == (tiny_dataset, 32, "strict", "resize")
    assert [len(p) for p in parts] == [144, 24, 72]  # 60/10/30 of 240 images that share no scene
    assert opened.class_names == ("real", "fake")
    paths = manifest.load(tiny_dataset)["path"].to_numpy()
    for part in parts:
        assert (paths[part.table["row"]] == part.table["path"]).all()
        folders = part.table["path"].str.split("/")
        assert ((folders.str[0] == "fake") == (part.labels == 1)).all()
        assert (part.generators == np.where(part.labels == 0, "real", folders.str[1])).all()
        assert (part.groups == part.table["group"]).all()


@given(size=st.integers(1, 100), seed=st.none() | st.integers(0, 9))
def test_batches_cover_each_image_once_with_its_own_label(opened, size, seed):
    part = opened.val
    shuffle = None if seed is None else torch.Generator().manual_seed(seed)
    batches = list(part.batches(size, shuffle=shuffle))
    assert [len(x) for x, _ in batches] == [min(size, 24 - i) for i in range(0, 24, size)]
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    assert (images.dtype, labels.dtype, images.shape[1:]) == (torch.uint8, torch.int64, (3, 32, 32))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)
    pixels = [x.permute(1, 2, 0).numpy().tobytes() for x in images]
    ours, whole = (
        list(zip(p, y.tolist(), strict=True))
        for p, y in ((pixels, labels), ([part.image(i).tobytes() for i in range(24)], part.labels))
    )
    assert sorted(ours) == sorted(whole)
    assert seed is not None or ours == whole  # without a generator the order is the table's


def test_the_order_depends_on_the_generator_alone(opened):
    def sums(seed: int, size: int = 7) -> list[int]:
        batches = opened.train.batches(size, shuffle=torch.Generator().manual_seed(seed))
        return torch.cat([x.flatten(1).sum(1) for x, _ in batches]).tolist()

    torch.manual_seed(1)
    first = sums(5)
    torch.manual_seed(2)
    torch.rand(9)
    before = torch.get_rng_state()
    assert sums(5) == first == sums(5, size=64)
    assert torch.equal(torch.get_rng_state(), before)
    assert sums(6) != first


def test_limit_is_balanced_and_always_the_same(tiny_dataset, opened):
    first, again = (data.open(tiny_dataset, size=32, limit=10) for _ in range(2))
    for part in ("train", "val", "test"):
        table, same, whole = (getattr(d, part).table for d in (first, again, opened))
        assert table["label"].value_counts().to_dict() == {0: 10, 1: 10}
        assert table["path"].tolist() == same["path"].tolist() == sorted(table["path"])
        assert set(table["path"]) < set(whole["path"])
    assert len(data.open(tiny_dataset, size=32, limit=10_000).train) == len(opened.train)


def test_sources_name_their_own_classes(tmp_path, data_root, tree):
    counts = {"train/cats": 20, "train/dogs": 20, "test/cats": 3, "test/dogs": 3}
    sources.prepare("dogs-vs-cats", tree(tmp_path / "set", counts))
    opened = data.open("dogs-vs-cats", size=32)
    assert opened.class_names == ("cats", "dogs")
    assert [len(p) for p in (opened.train, opened.val, opened.test)] == [36, 4, 6]
    assert set(opened.test.generators) == {"real", "dogs"}


def test_quarantined_images_shift_no_row(tmp_path, data_root, tree):
    root = tree(tmp_path / "set", {"real": 40, "fake/gan": 40}, size=(32, 32))
    (root / "fake" / "gan" / "fake-gan-000.png").write_bytes(b"")
    (root / "real" / "real-007.png").write_bytes(b"junk")
    folder.prepare(root, name="mine")
    opened = data.open("mine", size=32, protocol="paper")
    assert sum(len(p) for p in (opened.train, opened.val, opened.test)) == 78
    for part in (opened.train, opened.val, opened.test):
        for i, path in enumerate(part.table["path"]):
            assert np.array_equal(part.image(i), np.asarray(Image.open(root / path)))


@pytest.mark.parametrize("few", [None, 25])
def test_strict_training_batches_hold_both_classes_equally_often(tmp_path, data_root, tree, few):
    """Also of a few images of each class: all reals there are, and 25 fakes."""
    root = tree(tmp_path / "set", {"real": 20, "fake/gan": 180}, size=(32, 32))
    folder.prepare(root, name="mine")
    for protocol in ("strict", "paper"):
        whole = data.open("mine", size=32, protocol=protocol)
        part = data.few(whole, few).train
        batches = list(part.batches(16, shuffle=torch.Generator().manual_seed(0)))
        images, labels = (torch.cat(t) for t in zip(*batches, strict=True))
        assert len(labels) == len(part)
        reals, fakes = np.bincount(part.labels)
        assert few is None or (reals, fakes) == ((whole.train.labels == 0).sum(), few)
        half = len(part) - len(part) // 2
        assert labels.sum() == (half if protocol == "strict" else fakes)
        distinct = len(images.flatten(1).unique(dim=0))
        assert distinct == (reals + half if protocol == "strict" else len(part))
        counts = images[labels == 0].flatten(1).unique(dim=0, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1  # each image as often as any other, or once more


def test_a_generator_held_out_of_training_stays_in_the_test(tiny_dataset, opened):
    for settings in ({"hold_out": "nearest"}, {"train_generators": "blurred"}):
        part = data.open(tiny_dataset, size=32, **settings)
        for name in ("train", "val"):
            mine, whole = getattr(part, name), getattr(opened, name)
            kept = whole.table["path"][whole.generators != "nearest"]
            assert set(mine.generators) == {"real", "blurred"}
            assert mine.table["path"].tolist() == kept.tolist()
        assert part.test.table.equals(opened.test.table)
        assert np.array_equal(part.train.image(0), opened.train.image(0))


@pytest.mark.parametrize(
    ("out", "only", "message"),
    [
        ("nearst", "", "unknown generator 'nearst', did you mean 'nearest'"),
        ("", "real", "unknown generator 'real'"),
        ("nearest, blurred", "", "leaves no fakes to train on: .* has blurred, nearest"),
        ("nearest", "nearest", "give one of the two"),
    ],
)
def test_generators_that_cannot_be_chosen_say_why(tiny_dataset, out, only, message):
    with pytest.raises(InputError, match=message):
        data.trained_on(tiny_dataset, hold_out=out, train_generators=only)


def test_few_images_are_a_part_of_more_and_drawn_by_the_seed_alone(opened):
    paths = lambda n, seed: set(data.few(opened, n, seed=seed).train.table["path"])
    assert paths(3, 1) < paths(10, 1) == paths(10, 1) < set(opened.train.table["path"])
    assert len({frozenset(paths(10, seed)) for seed in range(5)}) == 5
    assert data.few(opened, 3).train.table["label"].value_counts().to_dict() == {0: 3, 1: 3}
    assert data.few(opened, 3).test is opened.test
