"""Does the audit catch planted give-aways, stay quiet on a clean set, and find copies?"""

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as photographs
from typer.testing import CliRunner

from data_prep import __main__ as command
from data_prep import audit, audit_page, duplicates, folder, shortcut
from data_prep.errors import InputError

PHOTOS = [Image.fromarray(getattr(photographs, p)()) for p in ("astronaut", "coffee", "chelsea")]


def patches(root: Path, *, n: int = 100, **given: dict) -> Path:
    """n patches of photographs in each class, told apart by nothing but what is given per class:
    their side, suffix, and how they are saved."""
    rng = np.random.default_rng(0)
    of = lambda what, kind, usual: given.get(what, {}).get(kind, usual)
    for i in range(2 * n):
        kind = ("real", "fake/gan")[i % 2]
        edge = of("side", kind, 64)
        # resized: no JPEG history survives
        photo = PHOTOS[int(rng.integers(3))].resize((330, 330), Image.Resampling.LANCZOS)
        left, top = rng.integers(0, 330 - 96, 2).tolist()
        path = root / kind / f"{kind[:4]}-{i:03d}{of('suffix', kind, '.jpg')}"
        path.parent.mkdir(parents=True, exist_ok=True)
        patch = photo.crop((left, top, left + edge, top + edge))
        patch.save(path, **{"quality": 85} | of("saved", kind, {}))
    return root


def test_a_clean_set_gives_nothing_away(tmp_path, data_root):
    folder.prepare(patches(tmp_path / "set"), name="mine")
    found = audit.audit("mine")
    assert found.raw.ci95[0] < 0.5 < found.raw.ci95[1] and abs(found.raw.auroc - 0.5) < 0.1
    assert found.alike is None and found.verdict.startswith("Metadata give little away")
    # by chance one cut-out is there twice
    assert " 2 of 200 images are exact copies (1 pictures, 1 of them both real" in found.verdict


@pytest.mark.parametrize(
    ("planted", "tell"),
    [
        ({"suffix": {"fake/gan": ".png"}}, "format"),
        ({"side": {"fake/gan": 96}}, "width"),
        ({"saved": {"real": {"quality": 75}, "fake/gan": {"quality": 95}}}, "jpeg_quality"),
        ({"saved": {"fake/gan": {"subsampling": 0}}}, "chroma"),
    ],
)
def test_planted_give_aways_are_caught(tmp_path, data_root, planted, tell):
    folder.prepare(patches(tmp_path / "set", **planted), name="mine")
    found = audit.audit("mine")
    assert found.raw.auroc > 0.98 and found.raw.single[tell] == 1.0
    assert found.verdict.startswith("Strong give-aways")
    assert "After equalising (protocol strict)" in found.verdict
    assert found.equalised.single[tell] < 0.6  # this one is gone
    assert found.equalised.auroc < found.raw.auroc - 0.2
    if tell != "jpeg_quality":  # what q75 took from the reals does not come back
        assert found.equalised.ci95[0] < 0.6


@settings(max_examples=25)
@given(quality=st.integers(35, 92), photo=st.sampled_from(PHOTOS))
def test_jpeg_history_is_found_in_pixels(quality, photo):
    clean, buffer = photo.resize((256, 200), Image.Resampling.LANCZOS), io.BytesIO()
    clean.save(buffer, "JPEG", quality=quality)
    luma = lambda image: np.asarray(image.convert("L"), dtype=np.float32)
    before, after = luma(clean), luma(Image.open(buffer))
    assert np.isnan(shortcut.pixel_quality(before))
    assert abs(shortcut.pixel_quality(after) - quality) <= 3
    assert shortcut.blockiness(after) > shortcut.blockiness(before)


def test_the_probe_holds_whole_scenes_out():
    """Features that name the scene, and labels that follow it, tell nothing about another scene."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(60), 8)
    labels = rng.integers(0, 2, 60)[groups]
    values = rng.normal(size=(60, len(shortcut.FEATURES)))[groups]
    table = pd.DataFrame(values, columns=list(shortcut.FEATURES))
    assert shortcut.probe(table, labels, groups).auroc < 0.75
    careless = shortcut.probe(table, labels, np.arange(480))  # is fooled
    assert careless.auroc > 0.95


# ---- copies


@settings(max_examples=60)
@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=25),
    flips=st.lists(
        st.tuples(st.integers(0, 24), st.lists(st.integers(0, 63), max_size=7)), max_size=25
    ),
    distance=st.integers(0, 8),
)
def test_near_pairs_are_those_of_brute_force(seeds, flips, distance):
    hashes = set(seeds)
    for which, bits in flips:
        value = seeds[which % len(seeds)]
        for bit in bits:
            value ^= 1 << bit
        hashes.add(value)
    values = sorted(hashes)
    pairs = [(i, j) for i in range(len(values)) for j in range(i + 1, len(values))]
    expected = {(i, j) for i, j in pairs if (values[i] ^ values[j]).bit_count() <= distance}
    i, j = duplicates.near_pairs(np.array(values, dtype=np.uint64), distance=distance)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected
    assert len(i) == len(expected)


def test_a_hundred_thousand_hashes_are_compared_without_a_quadratic_loop():
    values = np.random.default_rng(0).integers(0, 2**63, 100_000, dtype=np.uint64)
    values[1::1000] = values[::1000] ^ np.uint64(0b1011)  # 100 near copies
    pairs = np.stack(duplicates.near_pairs(values), axis=1).tolist()
    assert pairs == [[k, k + 1] for k in range(0, 100_000, 1000)]


def test_copies_across_splits_and_labels_are_found_and_kept(tmp_path, data_root):
    root = tmp_path / "set"
    for s, split in enumerate(("train", "val", "test")):
        patches(root / split, n=30)
        for i, file in enumerate(sorted((root / split).rglob("*.jpg"))):  # other pictures in each
            noise = np.random.default_rng([s, i]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((64, 64)).save(file)
    first = root / "train" / "real" / "real-000.jpg"
    (root / "test" / "real" / "copied.jpg").write_bytes(first.read_bytes())
    with Image.open(first) as image:
        image.resize((60, 60)).save(root / "val" / "fake" / "gan" / "near.png")
    table = folder.prepare(root, name="mine")
    found = duplicates.report(table, table["split"])
    names = [{Path(p).name for p in found[kind].pop("example")} for kind in ("exact", "near")]
    once = {"sets": 1, "across_splits": 1}
    assert found["exact"] == once | {"images": 2, "torn": 2, "across_labels": 0}
    assert found["near"] == once | {"images": 3, "torn": 3, "across_labels": 1}
    assert names[1] == {"real-000.jpg", "copied.jpg", "near.png"} == names[0] | {"near.png"}
    assert len(table) == 182 and (table["status"] == "ok").all()


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_a_set_of_one_picture_is_not_called_harmless(tmp_path, data_root, outputs_root, kind):
    """82 times the same picture, real and fake alike: the probe alone finds nothing."""
    photo = PHOTOS[0].resize((330, 330), Image.Resampling.LANCZOS).crop((100, 100, 196, 196))
    for i in range(82):
        path = tmp_path / "set" / ("real", "fake/gan")[i % 2] / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, quality=85 if kind == "exact" else 80 + i % 5, comment=f"{i % 41}" * 9)
        if kind == "exact":
            photo.save(path, quality=85)
    folder.prepare(tmp_path / "set", name="mine")
    found, page = audit_page.write("mine")
    assert found.verdict.startswith(
        f"Not to be trusted: 82 of 82 images are {kind} copies (1 pictures, 1 of them both real and"
    )
    assert found.verdict in page.read_text()


# ---- the page


def test_the_command_writes_a_page_that_needs_nothing_else(tmp_path, data_root, outputs_root):
    folder.prepare(patches(tmp_path / "set", n=40, suffix={"fake/gan": ".png"}), name="mine")
    done = CliRunner().invoke(command.app, ["audit", "mine", "--sample", "30"])
    assert done.exit_code == 0
    assert "Strong give-aways" in done.output and "audit-mine.html" in done.output
    summary = json.loads((outputs_root / "audit-mine.json").read_text())
    assert set(summary["shortcut_auroc"]) == {"raw", "equalised"}
    assert summary["shortcut_auroc"]["raw"] > 0.95
    assert summary["verdict"] in " ".join(done.output.split()) or "Strong" in summary["verdict"]
    assert summary["images"] == {"gan": 40, "real": 40} and summary["images_probed"] == 60
    page = (outputs_root / "audit-mine.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 3 == page.count("alt=")
    assert summary["verdict"].split(":")[0] in page


@pytest.mark.parametrize("frames", [1, 3, 60])
def test_images_are_looked_at_from_as_many_scenes_as_there_are(frames):
    scenes = [f"{kind}{i}" for kind in ("real", "fake") for i in range(12)]
    rows = [{"group": scene, "path": f"{scene}/{i}"} for scene in scenes for i in range(frames)]
    table = pd.DataFrame(rows).assign(generator=lambda t: t["group"].str[:4])
    table["label"] = (table["generator"] == "fake").astype(int)
    chosen = audit._sample(table, 24)
    assert chosen.groupby("generator")["group"].nunique().to_dict() == {"real": 12, "fake": 12}
    assert {*chosen.groupby("group").size()} == {min(frames, 2)} and [*chosen] == [*table, "key"]


def test_the_last_verdict_can_be_asked_for(tmp_path, data_root, outputs_root, tree):
    root = tree(tmp_path / "set", {"real": 12, "fake/gan": 12})
    folder.prepare(root, name="mine")
    none = "'mine' was never audited as it is: python -m data_prep audit mine"
    assert audit.verdict_of("mine") == none
    found, _ = audit_page.write("mine", sample=20)
    assert audit.verdict_of("mine") == found.verdict
    (root / "real" / "real-000.png").unlink()
    folder.prepare(root, name="mine")
    assert audit.verdict_of("mine") == none and audit.last("mine") is None


DAMAGED = ["", "[]", "{}", "null", '"x"', '{"verdict": "good"}', '{"data_fingerprint": 1}', "\0"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_verdict_counts_as_none(data_root, outputs_root, text):
    outputs_root.mkdir(exist_ok=True)
    (outputs_root / "audit-mine.json").write_text(text)
    assert audit.last("mine") is None and "was never audited" in audit.verdict_of("mine")


@pytest.mark.parametrize("name", ["nothing", "small"])
def test_what_cannot_be_audited_is_said(tmp_path, data_root, tree, name):
    folder.prepare(tree(tmp_path / "set", {"real": 9, "fake/gan": 20}), name="small")
    message = "unknown dataset 'nothing'|'small' has too few scenes of real or of fake to audit"
    with pytest.raises(InputError, match=message):
        audit.audit(name)
