"""Folders as people have them: which layouts are known, what they tell, what is left out."""

import logging
import os
from pathlib import Path

import pytest

from data_prep import cache, folder, protocol
from data_prep.errors import InputError

LAYOUTS = {  # path -> label, generator, split, testset
    "real/, fake/<generator>/": {
        "real/a.png": (0, "real", "", ""),
        "real/deep/er/b.png": (0, "real", "", ""),
        "fake/gan/c.png": (1, "gan", "", ""),
        "fake/diffusion/x/d.png": (1, "diffusion", "", ""),
        "fake/e.png": (1, "fake", "", ""),
    },
    "real/, fake/<generator>/, optionally below train/": {
        "Train/REAL/a.png": (0, "real", "train", ""),
        "val/FAKE/b.png": (1, "fake", "val", ""),
        "valid/Fake/gan/c.png": (1, "gan", "val", ""),
        "validation/real/d.png": (0, "real", "val", ""),
        "TEST/real/e.png": (0, "real", "test", ""),
    },
    "training_real/": {
        "training_real/a.png": (0, "real", "", ""),
        "training_fake/b.png": (1, "fake", "", ""),
    },
    "ForenSynths-like": {
        "progan/cat/0_real/1.png": (0, "real", "", "progan"),
        "progan/cat/1_fake/1.png": (1, "progan", "", "progan"),
        "stargan/0_real/1.png": (0, "real", "", "stargan"),
        "stargan/1_fake/1.png": (1, "stargan", "", "stargan"),
    },
    "ForenSynths-like, <generator>": {
        "progan_train/cat/0_real/1.png": (0, "real", "train", ""),
        "progan_train/cat/1_fake/1.png": (1, "progan", "train", ""),
        "CNN_synth_testset/progan/cat/0_real/1.png": (0, "real", "test", "progan"),
        "CNN_synth_testset/san/1_fake/1.png": (1, "san", "test", "san"),
    },
    "GenImage-like": {
        "biggan/train/nature/1.png": (0, "real", "train", ""),
        "biggan/train/ai/2.png": (1, "biggan", "train", ""),
        "biggan/val/nature/3.png": (0, "real", "val", ""),
        "adm/val/ai/4.png": (1, "adm", "val", ""),
    },
}


@pytest.mark.parametrize("above", ["", "archive/archive/"])
@pytest.mark.parametrize("title", LAYOUTS)
def test_a_layout_is_recognised_and_told(tmp_path, data_root, picture, caplog, title, above):
    """Also some folders too deep."""
    caplog.set_level(logging.INFO)
    for i, path in enumerate(LAYOUTS[title]):
        picture(tmp_path / "set" / above / path, seed=i)
    table = folder.prepare(tmp_path / "set", name="mine").set_index("path")
    columns = table[["label", "generator", "split", "testset"]].T
    found = {path: tuple(told) for path, told in columns.items()}
    assert f"read as: {title}" in caplog.text
    assert {path.removeprefix(above): about for path, about in found.items()} == LAYOUTS[title]


def test_splits_may_stand_below_the_class_folders(tmp_path, data_root, picture):
    files = ("real/Train/a.png", "real/test/b.png", "fake/gan/train/c.png", "fake/val/gan/d.png")
    for i, path in enumerate((*files, "fake/e.png")):
        picture(tmp_path / "set" / path, seed=i)
    table = folder.prepare(tmp_path / "set", name="mine").set_index("path").loc[[*files]]
    assert [*table["split"]] == ["train", "test", "train", "val"]
    assert [*table["generator"]] == ["real", "real", "gan", "gan"]


THERE = "train/real train/fake test"


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        ("real fake .", {"leave_out": ["real", "fake"]}, "holds files without a class folder"),
        ("real fakes", {}, "unknown class folder 'fakes', did you mean 'fake'? Valid: real, fake."),
        ("train/real tset/real", {}, "unknown split folder 'tset', did you mean 'test'?"),
        ("a b", {}, "(there: a, b): images have no label. Layouts that can be read: real/, fake/<"),
        (".", {}, "(there: no folders): images have no label"),
        (THERE, {}, "test/ holds files without a class folder"),
        (THERE, {}, "Or leave it out: --leave-out test"),
        (THERE, {"leave_out": ["test", "tset"]}, "folder to leave out 'tset', did you mean 'test'"),
        ("real fake", {"scene": "stemm"}, "'stemm' has no group: e.g. "),
        ("real fake", {"scene": "("}, "is no regular expression"),
        ("real fake", {"scene": r"(z)\d"}, "does not match fake/x.png"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, data_root, picture, folders, options, message):
    for i, where in enumerate(folders.split()):
        picture(tmp_path / "set" / where / "x.png", seed=i)
    with pytest.raises(InputError) as caught:
        folder.prepare(tmp_path / "set", name="mine", **options)
    assert message in str(caught.value) and not data_root.exists()
    with pytest.raises(InputError, match="nowhere is not a folder"):
        folder.prepare(tmp_path / "nowhere", name="mine")


def test_an_unlabelled_test_folder_is_left_out_on_request(tmp_path, data_root, tree, caplog):
    root = tree(tmp_path / "set", {"train/real": 2, "train/fake": 2, "test": 3})
    assert len(folder.prepare(root, name="mine", leave_out=["test"])) == 4
    assert "test: left out as asked" in caplog.text


def test_what_is_left_out_is_counted_and_named(tmp_path, data_root, tree, picture, caplog):
    places = ("train/real", "train/fake/gan", "test/real", "test/fake/gan")
    junk = ("__MACOSX/train/real", "train/real/.ipynb_checkpoints", "$RECYCLE.BIN/train/fake")
    root = tree(tmp_path / "set", dict.fromkeys((*places, *junk, "test/fake/@eaDir"), 2))
    strays = ("README.txt", "train/README", "train/real/checksums.md5", "train/.DS_Store")
    for stray in (*strays, "test/fake/Thumbs.db", "train/real/._1.png"):
        (root / stray).write_bytes(b"stray")
    picture(root / "test" / "preview.png")
    table = folder.prepare(root, name="mine")
    assert len(table) == 8 and set(table["generator"]) == {"real", "gan"}
    assert f"7 stray file(s) below {root} left out" in caplog.text
    assert f"4 folder(s) below {root} left out" in caplog.text
    assert all(f"/{Path(name).name}: " in caplog.text for name in (junk[1], "@eaDir"))
    assert all(f"/{name}: " in caplog.text for name in ("__MACOSX", "$RECYCLE.BIN"))


def test_links_are_followed_and_loops_walked_once(tmp_path, data_root, tree):
    root = tree(tmp_path / "set", {"real": 4, "fake/gan": 4})
    elsewhere = tree(tmp_path / "elsewhere", {"other": 3, "another": 9})
    (root / "fake" / "linked").symlink_to(elsewhere / "other", target_is_directory=True)
    (root / "real" / "up").symlink_to(root / "real", target_is_directory=True)
    (root / "fake" / "gan" / "self").symlink_to(".", target_is_directory=True)
    (root / "fake" / "above").symlink_to("..", target_is_directory=True)
    (root / "itself").symlink_to("itself")
    table = folder.prepare(root, name="mine")
    counts = table.groupby("generator").size().to_dict()
    assert counts == {"real": 4, "gan": 4, "linked": 3} and (table["status"] == "ok").all()


def test_a_folder_that_cannot_be_read_is_named_and_counted(tmp_path, data_root, tree, caplog):
    """Its path is longer than the system opens: nobody, root included, can list it."""
    root = tree(tmp_path / "set", {"real": 5, "fake/gan": 5})
    here = os.open(root / "fake" / "gan", os.O_RDONLY)
    for part in ["one", *(["x" * 250] * 17)]:
        os.mkdir(part, dir_fd=here)  # noqa: PTH102 (by its path it could not be made)
        here, before = os.open(part, os.O_RDONLY, dir_fd=here), here
        os.close(before)
    os.close(here)
    assert len(folder.prepare(root, name="mine")) == 10
    assert "1 folder(s) below" in caplog.text and "File name too long" in caplog.text


@pytest.mark.parametrize(("kind", "label"), [("real", 0), ("fake/gan", 1)])
def test_one_class_alone_can_be_prepared(tmp_path, data_root, tree, caplog, kind, label):
    table = folder.prepare(tree(tmp_path / "set", {kind: 20}, size=(40, 40)), name="mine")
    assert set(table["label"]) == {label} and len(cache.build("mine", size=32)[0]) == 20
    assert "it can be tested, not trained on" in caplog.text
    with pytest.raises(InputError, match=rf"the \w+ part has only label {label}; both classes"):
        protocol.assign(table)


# ---- scenes


VIDEOS = [f"{kind}/id{v:02d}" for kind in ("real", "fake/Deepfakes") for v in range(12)]


@pytest.mark.parametrize("named", ["{i:03d}", "{video}_{i:03d}"])
def test_frames_of_a_video_are_one_scene_found_and_told(
    tmp_path, data_root, picture, caplog, named
):
    caplog.set_level(logging.INFO)
    for v, video in enumerate(VIDEOS):
        for i in range(4):
            name = named.format(i=i, video=Path(video).name)
            picture(tmp_path / "set" / video / f"{name}.png", seed=10 * v + i)
    table = folder.prepare(tmp_path / "set", name="mine")
    assert "12 scenes by 'parent' (found): the files of one folder" in caplog.text
    assert table["group"].tolist() == table["path"].str.split("/").str[-2].tolist()
    split = protocol.assign(table, "strict")
    assert (split.groupby(table["group"]).nunique() == 1).all()
    assert set(split) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("stem", {"real/a/1.png": "1", "fake/g/b/x-7.png": "x-7"}),
        ("parent", {"real/a/1.png": "a", "fake/g/b/x-7.png": "b"}),
        ("file", {"real/a/1.png": "real/a/1", "fake/g/b/x-7.png": "fake/g/b/x-7"}),
        (r"(\d)\.png", {"real/a/1.png": "1", "fake/g/b/x-7.png": "7"}),
    ],
)
def test_a_rule_for_scenes_can_be_given(tmp_path, data_root, picture, rule, expected):
    for i, path in enumerate(expected):
        picture(tmp_path / "set" / path, seed=i)
    table = folder.prepare(tmp_path / "set", name="mine", scene=rule)
    assert table.set_index("path")["group"].to_dict() == expected
