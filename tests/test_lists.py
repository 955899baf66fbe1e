"""Lists of labelled images, and sets as the Hugging Face hub streams them (from local parquet)."""

import sys

import pandas as pd
import pytest
from made import noise
from typer.testing import CliRunner

from data_prep import lists, manifest
from data_prep.__main__ import app
from data_prep.errors import InputError
from data_prep.transform import coded


@pytest.fixture
def images(tmp_path, tree):
    return tree(tmp_path / "images", {"a": 4, "b": 4})


ROWS = [
    ("a/a-000.png", "REAL", "ignored", "Train", "s1"),
    ("a/a-001.png", "0", "", "test", "s2"),
    ("b/b-000.png", "fake", "gan", "val", "s1"),
    ("b/b-001.png", "1", "", "", "s3"),
]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_list_becomes_a_manifest(tmp_path, data_root, images, suffix):
    table = pd.DataFrame(ROWS, columns=["file", "y", "model", "part", "video"])
    file = tmp_path / f"labels{suffix}"
    table.to_csv(file, index=False) if suffix == ".csv" else table.to_parquet(file)
    words = ["list-file", str(file), "--images", str(images), "--name", "mine"]
    for option, name in zip(lists.COLUMNS, table.columns, strict=True):
        words += [f"--{option}-column", name]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = manifest.load("mine")[["path", "label", "generator", "split", "group", "status"]]
    assert found.to_numpy().tolist() == [
        ["a/a-000.png", 0, "real", "train", "s1", "ok"],
        ["a/a-001.png", 0, "real", "test", "s2", "ok"],
        ["b/b-000.png", 1, "gan", "val", "s1", "ok"],
        ["b/b-001.png", 1, "fake", "", "s3", "ok"],
    ]


def test_without_a_column_of_scenes_a_rule_tells_them(tmp_path, data_root, images):
    pd.DataFrame(ROWS, columns=lists.COLUMNS)[["path", "label"]].to_csv(tmp_path / "x.csv")
    table = lists.prepare(tmp_path / "x.csv", images, name="mine", scene="parent")
    assert table["group"].tolist() == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,y\na/a-000.png,0\n", "unknown column for the label 'label'.*--label-column NAME"),
        ("path,label\na/a-000.png,maybe\n", "unknown label 'maybe'.* Valid: 0, 1, .*real"),
        ("path,label,split\na/a-000.png,0,dev\n", "unknown split 'dev'"),
        ("path,label\n../x.png,0\n", "path '../x.png' is not one below --images"),
        ("path,label\n/x.png,0\n", "path '/x.png' is not one below --images"),
        ("path,label\nx.png,0\nx.png,1\n", r"1 path\(s\) stand in it twice \(e.g. 'x.png'\)"),
        ("path,label\n./x.png,0\nx.png,1\n", r"1 path\(s\) stand in it twice \(e.g. 'x.png'\)"),
        ("path;label\nx.png;0\nx.png;1\n", r"1 path\(s\) stand in it twice \(e.g. 'x.png'\)"),
        ("path,label\na,0\nb,\n", "unknown label '';"),
        ("path,label,split\na,0,Testing\n", "unknown split 'testing', did you mean 'test'"),
        ("", r"cannot be read as CSV \(in UTF-8\) or parquet"),
    ],
)
def test_a_list_that_is_not_understood_is_refused(tmp_path, data_root, images, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        lists.prepare(tmp_path / "x.csv", images, name="mine")
    assert not data_root.exists()


def test_the_folder_of_a_list_may_be_told_in_a_roundabout_way(tmp_path, data_root, images):
    files = sorted(images.rglob("*.png"))
    rows = [f"{path},{i % 2}" for i, path in enumerate(files)]
    (tmp_path / "x.csv").write_text("\n".join(["path,label", *rows]))
    found = lists.prepare(
        tmp_path / "x.csv", images / ".." / images.name, name="mine", scene="file"
    )
    assert len(found) == len(files)


@pytest.mark.parametrize("given", ["path", "label"])
def test_one_column_for_two_things_is_refused(tmp_path, data_root, images, given):
    (tmp_path / "x.csv").write_text("path,label\nx.png,0\ny.png,1\nz.png,1\n")
    other = {"path": "label", "label": "path"}[given]
    with pytest.raises(InputError, match="unknown label 'x.png'|stand in it twice"):
        lists.prepare(tmp_path / "x.csv", images, name="mine", columns={given: other})


@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "./", ".\\", "below"])
def test_a_list_says_the_same_however_it_is_spelled(tmp_path, data_root, images, sep, start):
    start = f"{images}/" if start == "below" else start
    spelled = lambda path: path.replace("/", "\\") if "\\" in start else path
    lines = [(start + spelled(path), label) for path, label, *_ in ROWS]
    lines = [sep.join(line) for line in [("path", "label"), *lines]]
    (tmp_path / "x.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    found = lists.prepare(tmp_path / "x.csv", images, name="mine")
    assert found["path"].tolist() == [row[0] for row in ROWS]
    assert found["label"].tolist() == [0, 0, 1, 1] and {*found["status"]} == {"ok"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_cell_that_tells_nothing_stands_for_no_name(tmp_path, data_root, images, suffix):
    table = pd.DataFrame(ROWS, columns=lists.COLUMNS).assign(generator=None, split=None)
    table["scene"] = ["s", None, None, "s"]
    file = tmp_path / f"x{suffix}"
    table.to_csv(file, index=False) if suffix == ".csv" else table.to_parquet(file)
    found = lists.prepare(file, images, name="mine")
    assert {*found["generator"]} == {"real", "fake"}
    assert found["group"].tolist() == ["s", ROWS[1][0], ROWS[2][0], "s"]
    given = lists.prepare(file, images, name="mine", scene="parent")  # asked for: not the column
    assert given["group"].tolist() == ["a", "a", "b", "b"]


def test_without_datasets_the_line_that_installs_it_is_told(data_root, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[datasets\]"'):
        lists.huggingface("someone/something", name="mine")
    assert not data_root.exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local folder of parquet files, as the hub holds a set: reals first, then fakes."""
    datasets = pytest.importorskip("datasets", reason='pip install -e ".[datasets]"')
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
    rows = {
        "picture": [
            {"bytes": coded(noise(12, 9, i), "PNG"), "path": f"{i}.png"} for i in range(12)
        ],
        "kind": ["real"] * 6 + ["fake"] * 6,
        "model": [""] * 6 + ["sd/xl", "flux"] * 3,
    }
    kinds = datasets.ClassLabel(names=["fake", "real"])  # fake is their 0: names decide
    rows = {key: [*cells, cells[-1]] for key, cells in rows.items()}
    rows["kind"][-1] = -1  # theirs for unknown
    features = {"picture": datasets.Image(), "kind": kinds, "model": datasets.Value("string")}
    (tmp_path / "hub").mkdir()
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.to_parquet(tmp_path / "hub" / "train.parquet")
    return tmp_path / "hub"


def test_a_set_of_the_hub_is_streamed_and_sampled(hub, data_root):
    words = ["huggingface", str(hub), "--name", "mine", "--image-column", "picture"]
    words += ["--label-column", "kind", "--generator-column", "model", "--per-class", "4"]
    for _ in range(2):  # the second finds all there
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        found = manifest.load("mine")
        assert found.groupby("generator").size().to_dict() == {"real": 4, "sd_xl": 2, "flux": 2}
        assert (found["label"] == (found["generator"] != "real")).all()
    first = data_root / "mine" / "files" / "real" / "00000000.png"
    assert first.read_bytes() == coded(noise(12, 9, 0), "PNG")
    odd = [("--label-column", "x", "unknown column 'x'"), ("--split", "x", "cannot be opened")]
    for option, value, message in [*odd, ("--per-class", "99", "unknown label '-1'")]:
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(app, [*words, "--force", option, value], catch_exceptions=False)
    assert len(list((data_root / "mine" / "files").rglob("*.png"))) == 8  # as it was


def test_odd_rows_of_the_hub_stay_below_the_set_and_are_quarantined(tmp_path, data_root):
    pytest.importorskip("datasets", reason='pip install -e ".[datasets]"')
    good = {"bytes": coded(noise(12, 9), "PNG"), "path": "x." + "n" * 300}
    odd = [{"bytes": None, "path": path} for path in ("/dev/zero", "/nowhere", "/proc/kmsg")]
    names = ["..", ".x", "a/../../b", "a\0b"]
    rows = [{"image": good, "label": i % 2, "model": names[i // 2 % 4]} for i in range(160)]
    rows += [{"image": image, "label": 1, "model": "gan"} for image in (*odd, None)]
    (tmp_path / "hub").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "hub" / "train.parquet")
    columns = ("image", "label", "model")
    found = lists.huggingface(str(tmp_path / "hub"), name="mine", columns=columns)
    assert found["status"].value_counts().to_dict() == {"ok": 160, "zero-byte": 4}
    assert {*found["generator"]} == {"real", "_.", "_x", "a_.._.._b", "a_b", "gan"}
    assert {p.name for p in (data_root / "mine" / "files").iterdir()} == {"real", "fake"}
