"""From the memory map to batches: nothing twice, nothing lost, nothing mixed up."""

from __future__ import annotations

import numpy as np
import pandas as pd
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
    assert (opened.name, opened.size, opened.protocol, opened.mode) == (
        tiny_dataset,
        32,
        "strict",
        "resize",
    )
    assert [len(p) for p in parts] == [144, 24, 72]  # 60/10/30 of 240 images that share no scene
    assert opened.class_names == ("real", "fake")
    paths = manifest.load(tiny_dataset)["path"].to_numpy()
    for part in parts:
        assert (paths[part.table["row"]] == part.table["path"]).all()
        assert ((part.table["path"].str.split("/").str[0] == "fake") == (part.labels == 1)).all()
        assert (
            part.generators
            == np.where(part.labels == 0, "real", part.table["path"].str.split("/").str[1])
        ).all()
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
    ours = sorted(
        (x.permute(1, 2, 0).numpy().tobytes(), int(y)) for x, y in zip(images, labels, strict=True)
    )
    assert ours == sorted((part.image(i).tobytes(), int(part.labels[i])) for i in range(24))


def test_without_a_generator_the_order_is_the_tables(opened):
    images = torch.cat([x for x, _ in opened.test.batches(10)])
    assert all(
        np.array_equal(images[i].permute(1, 2, 0), opened.test.image(i))
        for i in range(len(opened.test))
    )


def test_the_order_depends_on_the_generator_alone(opened):
    def labels(seed: int, size: int = 7) -> list[int]:
        return torch.cat(
            [
                x.flatten(1).sum(1)
                for x, _ in opened.train.batches(size, shuffle=torch.Generator().manual_seed(seed))
            ]
        ).tolist()

    torch.manual_seed(1)
    first = labels(5)
    torch.manual_seed(2)
    torch.rand(9)
    before = torch.get_rng_state()
    assert labels(5) == first == labels(5, size=64)
    assert torch.equal(torch.get_rng_state(), before)
    assert labels(6) != first


def test_limit_is_balanced_and_always_the_same(tiny_dataset, opened):
    first, again = (data.open(tiny_dataset, size=32, limit=10) for _ in range(2))
    for part in ("train", "val", "test"):
        table = getattr(first, part).table
        assert table["label"].value_counts().to_dict() == {0: 10, 1: 10}
        assert (
            table["path"].tolist()
            == getattr(again, part).table["path"].tolist()
            == sorted(table["path"])
        )
        assert set(table["path"]) < set(getattr(opened, part).table["path"])
    assert len(data.open(tiny_dataset, size=32, limit=10_000).train) == len(opened.train)
    for bad in (0, -3):
        with pytest.raises(InputError, match=f"limit {bad}: at least one image"):
            data.open(tiny_dataset, size=32, limit=bad)


def test_the_papers_protocol_splits_60_40_less_its_validation(tiny_dataset):
    opened = data.open(tiny_dataset, size=32, protocol="paper")
    assert [len(p) for p in (opened.train, opened.val, opened.test)] == pytest.approx(
        [129.6, 14.4, 96], abs=2
    )


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


def test_the_fingerprint_follows_contents_labels_and_splits(tmp_path, data_root, tree, picture):
    root = tree(tmp_path / "set", {"real": 3, "fake/gan": 3})
    folder.prepare(root, name="mine")
    first = manifest.fingerprint_of("mine")
    folder.prepare(root, name="mine")
    assert manifest.fingerprint_of("mine") == first
    seen = {first}
    picture(root / "real" / "real-000.png", seed=99)
    folder.prepare(root, name="mine")
    seen.add(manifest.fingerprint_of("mine"))
    (root / "fake" / "gan").rename(root / "fake" / "other")
    folder.prepare(root, name="mine")
    seen.add(manifest.fingerprint_of("mine"))
    (root / "fake" / "other" / "fake-gan-001.png").rename(root / "real" / "fake-gan-001.png")
    folder.prepare(root, name="mine")
    seen.add(manifest.fingerprint_of("mine"))
    assert len(seen) == 4


def test_names_that_are_not_known_are_named(tiny_dataset):
    with pytest.raises(InputError, match="unknown dataset 'tiny-sett', did you mean 'tiny-set'"):
        data.open("tiny-sett", size=32)
    with pytest.raises(InputError, match="unknown protocol 'papers', did you mean 'paper'"):
        data.open(tiny_dataset, size=32, protocol="papers")
    with pytest.raises(InputError, match="unknown input mode 'crop'"):
        data.open(tiny_dataset, size=32, mode="crop")
    with pytest.raises(InputError, match="image size 40 is not a multiple of 32"):
        data.open(tiny_dataset, size=40)


def test_batches_that_are_kept_are_not_written_over(toy):
    part = toy(100).train
    once = list(part.batches(7))
    again = [images.clone() for images, _ in part.batches(7)]
    kept = [
        images.flip(0) for images, _ in part.batches(7, shuffle=torch.Generator().manual_seed(0))
    ]
    assert all(torch.equal(a, b) for (a, _), b in zip(once, again, strict=True))
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([k.flip(0) for k in kept]), torch.cat(again)[order])


def test_strict_training_batches_hold_both_classes_equally_often(tmp_path, data_root, tree):
    folder.prepare(
        tree(tmp_path / "set", {"real": 20, "fake/gan": 180}, size=(32, 32)), name="mine"
    )
    for protocol, expected in (("strict", 0.5), ("paper", 0.9)):
        part = data.open("mine", size=32, protocol=protocol).train
        seen = torch.cat(
            [y for _, y in part.batches(16, shuffle=torch.Generator().manual_seed(0))]
        ).float()
        assert len(seen) == len(part)
        assert seen.mean().item() == pytest.approx(expected, abs=0.01)
        images = torch.cat(
            [x for x, _ in part.batches(16, shuffle=torch.Generator().manual_seed(1))]
        )
        distinct = len(images.flatten(1).unique(dim=0))
        reals = int((part.labels == 0).sum())
        assert distinct == (
            reals + len(part) - len(part) // 2 if protocol == "strict" else len(part)
        )


def test_a_generator_held_out_of_training_stays_in_the_test(tiny_dataset, opened):
    for settings in ({"hold_out": "nearest"}, {"train_generators": "blurred"}):
        part = data.open(tiny_dataset, size=32, **settings)
        for name in ("train", "val"):
            mine, whole = getattr(part, name), getattr(opened, name)
            assert set(mine.generators) == {"real", "blurred"}
            assert (
                mine.table["path"].tolist()
                == whole.table["path"][whole.generators != "nearest"].tolist()
            )
        assert part.test.table.equals(opened.test.table)
        assert np.array_equal(part.train.image(0), opened.train.image(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hold_out": "nearst"}, "unknown generator 'nearst', did you mean 'nearest'"),
        ({"train_generators": "real"}, "unknown generator 'real'"),
        ({"hold_out": "nearest, blurred"}, "leaves no fakes to train on: .* has blurred, nearest"),
        ({"hold_out": "nearest", "train_generators": "nearest"}, "give one of the two"),
    ],
)
def test_generators_that_cannot_be_chosen_say_why(tiny_dataset, settings, message):
    with pytest.raises(InputError, match=message):
        data.trained_on(tiny_dataset, **settings)


def scenes(paired: bool = True, *, lonely: bool = False, fakes: int = 3, n: int = 21) -> data.Part:
    """n scenes of a real image and some fakes each; lonely: and five real images and four fakes in scenes of their own."""
    rows = [(i, label) for i in range(n) for label in (0, *[1] * fakes)]
    rows += [(100 + i, int(i > 4)) for i in range(9)] if lonely else []
    table = pd.DataFrame(rows, columns=["group", "label"]).sample(
        frac=1, random_state=1, ignore_index=True
    )
    pixels = np.zeros((len(table), 32, 32, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(table))  # the pixel says which row it was
    table = table.assign(row=np.arange(len(table)), group=table["group"].astype(str), generator="x")
    return data.Part(pixels, table, balanced=True, paired=paired)


def drawn(part: data.Part, size: int = 8, seed: int = 0) -> list[pd.DataFrame]:
    order = torch.Generator().manual_seed(seed)
    batches = [(x[:, 0, 0, 0].numpy(), y.numpy()) for x, y in part.batches(size, shuffle=order)]
    assert all((part.labels[rows] == labels).all() for rows, labels in batches)
    return [part.table.iloc[rows] for rows, _ in batches]


@pytest.mark.parametrize("lonely", [False, True])
def test_pairs_put_each_real_image_and_a_fake_of_its_scene_into_one_batch(lonely):
    part = scenes(lonely=lonely)
    assert sum(map(len, drawn(part))) == len(part)
    for batch in drawn(part)[:-1]:
        real, fake = (batch.loc[batch["label"] == label, "group"] for label in (0, 1))
        assert len(real) == len(fake) == 4
        own = sorted(g for g in real if int(g) < 100)
        assert own == sorted(g for g in fake if int(g) < 100)  # the lonely ones stand together
    used = pd.concat(drawn(part)).groupby(["label", "row"]).size()
    assert used[0].max() - used[0].min() <= 1 and len(used[0]) == (part.labels == 0).sum()
    of_scene = (
        pd.concat(drawn(part)).query("label == 1").groupby(["group", "row"]).size().groupby("group")
    )
    assert (of_scene.max() - of_scene.min()).max() <= 1  # a scene's fakes take turns
    assert not drawn(part)[0].equals(drawn(part, seed=1)[0])
    assert all(a.equals(b) for a, b in zip(drawn(part), drawn(part), strict=True))
    first = [batch["label"].iloc[0] for seed in range(6) for batch in drawn(part, seed=seed)]
    assert 0 < np.mean(first) < 1  # inside a batch the order is random


def test_without_pairs_scenes_are_torn_apart_and_without_shuffling_nothing_changes():
    batch = drawn(scenes(paired=False))[0]
    assert set(batch.loc[batch["label"] == 0, "group"]) != set(
        batch.loc[batch["label"] == 1, "group"]
    )
    rows = [int(v) for x, _ in scenes().batches(9) for v in x[:, 0, 0, 0]]
    assert rows == list(range(len(scenes())))


def test_pairs_need_even_batches_and_shared_scenes(tiny_dataset):
    with pytest.raises(InputError, match="batch 9 is odd: with pairs=true .* take 10"):
        next(scenes().batches(9, shuffle=torch.Generator()))
    with pytest.raises(
        InputError,
        match=r"pairs=true: no scene of the training part has a real image and a fake \(Synthb",
    ):
        data.open(tiny_dataset, size=32, pairs=True)


def test_a_limit_keeps_pairs_together(tmp_path, data_root, tree):
    counts = {f"{part}/{kind}": 12 for part in ("train", "test") for kind in ("real", "fake/gan")}
    tree(tmp_path / "images", counts)
    for file in (tmp_path / "images").rglob("*.png"):  # the same number is the same scene
        part, number = file.stem.split("-")[0], file.stem[-3:]
        file.rename(file.with_name(f"{part}-{number}.png"))
    folder.prepare(tmp_path / "images", name="scenes")
    opened = data.open("scenes", size=32, pairs=True, limit=5)
    assert (
        len(opened.train) == 10
        and opened.train.table.groupby("group")["label"].nunique().eq(2).all()
    )
    assert opened.train.paired and not opened.val.paired and not opened.test.paired
    assert data.few(opened, 3).train.paired and len(set(data.few(opened, 3).train.groups)) == 3
    loose = data.open("scenes", size=32, limit=5)
    assert len(set(loose.train.groups)) > 5
