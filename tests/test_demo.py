"""The demo data: scenes, the held-out family, equal formats, the same bytes again, no give-away."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from data_prep import demo
from data_prep.protocol import assign

TINY = {"train": 12, "val": 6, "test": 6}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo.build(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo-source")
    return folder, demo.build_source(folder)


def count(rows, *names):
    return Counter(tuple(row[name] for name in names) for row in rows)


def test_counts_and_the_unseen_family_is_only_in_test(built):
    found = count(built[1], "split", "label", "generator")
    expected = {(split, 0, "real"): n for split, n in demo.COUNTS.items()}
    expected |= {("test", 1, family): demo.COUNTS["test"] for family in demo.FAMILIES}
    assert {key: found[key] for key in expected} == expected
    for split in ("train", "val"):
        fakes = {g: n for (s, label, g), n in found.items() if (s, label) == (split, 1)}
        assert set(fakes) == set(demo.FAMILIES) - {demo.UNSEEN}
        assert sum(fakes.values()) == demo.COUNTS[split]


@pytest.mark.parametrize("which", ["built", "source"])
def test_no_group_crosses_splits(which, request):
    splits = defaultdict(set)
    for row in request.getfixturevalue(which)[1]:
        splits[row["group"]].add(row["split"])
    assert len(splits) > 100
    assert all(len(found) == 1 for found in splits.values())


def test_groups_and_classes_share_no_pixel(built):
    owner = {photo: np.full((703, 703), "", dtype=object) for photo in demo.PHOTOS}
    for row in built[1]:
        photo, _, place = Path(row["path"]).stem.partition("_")
        left, top, right, bottom = map(int, place.split("-"))
        area = owner[photo][top:bottom, left:right]
        assert area.size
        assert set(area.flat) <= {"", (row["group"], row["label"])}
        area.fill((row["group"], row["label"]))


@pytest.mark.parametrize("which", ["built", "source"])
def test_all_files_have_one_format_and_size(which, request):
    folder, rows = request.getfixturevalue(which)
    kinds = set()
    for row in rows:
        with Image.open(folder / row["path"]) as image:
            about = (image.format, image.size, image.mode, str(image.quantization))
            kinds.add((*about, tuple(image.info)))
    assert len(kinds) == 1
    files = sum(1 for file in folder.rglob("*") if file.is_file())
    assert len({row["path"] for row in rows}) == len(rows) == files


def test_no_give_away(built):
    """Bytes, colour, contrast and sharpness tell little: boosting sees only them, over scenes."""
    folder, rows = built
    looks = np.array([features(folder / row["path"]) for row in rows])
    label, group = np.array([row["label"] for row in rows]), [row["group"] for row in rows]
    assert probe(looks[:, :4], label, group) < 0.60  # bytes and mean colour
    assert probe(looks, label, group) < 0.64


def test_a_random_split_leaks_visibly(built):
    """Who knows the place knows the label: without whole scenes kept apart, only then."""
    folder, rows = built
    table = pd.DataFrame(rows).assign(split="", status="ok", sha256=lambda t: t["path"])
    found = {}
    small = [np.asarray(Image.open(folder / path).resize((8, 8))) for path in table["path"]]
    small = np.stack(small).reshape(len(table), -1)
    for name in ("strict", "paper"):
        split = assign(table, name)
        train, test = (np.flatnonzero(split == part) for part in ("train", "test"))
        nearest = KNeighborsClassifier(3).fit(small[train], table["label"].iloc[train])
        score = nearest.predict_proba(small[test])[:, 1]
        found[name] = roc_auc_score(table["label"].iloc[test], score)
    assert found["strict"] < 0.6 < 0.7 < found["paper"]


def features(file):
    with Image.open(file) as image:
        pixels = np.asarray(image, dtype=float)
    grey = pixels.mean(2)
    around = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1]
    sharpness = (around - 4 * grey[1:-1, 1:-1]).var()
    return [file.stat().st_size, *pixels.mean((0, 1)), *pixels.std((0, 1)), sharpness]


def probe(looks, label, group):
    model = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.06, random_state=0)
    over = {"groups": group, "cv": GroupKFold(5), "method": "predict_proba"}
    with threadpool_limits(1):  # threads that wait for each other are slow on a busy machine
        return roc_auc_score(label, cross_val_predict(model, looks, label, **over)[:, 1])


def test_same_seed_same_bytes_and_global_randomness_untouched(tmp_path):
    threads = torch.get_num_threads()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        rows = demo.build(tmp_path / name, seed=seed, counts=TINY, steps=4)
        files = {row["path"]: (tmp_path / name / row["path"]).read_bytes() for row in rows}
        digests.append([(path, hashlib.sha256(data).hexdigest()) for path, data in files.items()])
    assert digests[0] == digests[1] != digests[2]
    assert torch.get_num_threads() == threads
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_source_task_is_balanced_and_grey(source):
    folder, rows = source
    kinds = ((0, "nature"), (1, "man-made"))
    expected = {(s, *kind): n for s, n in demo.COUNTS.items() for kind in kinds}
    assert count(rows, "split", "label", "generator") == expected
    with Image.open(folder / rows[0]["path"]) as image:
        assert np.ptp(np.asarray(image, dtype=int), axis=2).max() <= 2
