"""What is opened as an image at all, and how it is converted; nothing starts another program."""

import ast
import io
import json
import os
import re
import socket
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click import Option
from made import python
from PIL import EpsImagePlugin, Image, ImageCms

from data_prep import cache, folder, integrity, lists, manifest, transform
from data_prep.errors import InputError
from data_prep.integrity import BadImage
from data_prep.paths import PROJECT, describe
from data_prep.transform import coded as encoded
from dflib.__main__ import _writable
from dflib.edge import files
from dflib.edge.predict import Predictor
from dflib.show import explorer
from dflib.study import grid, records

HEAD = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
PROGRAMS = {
    "overwrite": "(victim.txt) (w) file dup (OWNED by an image) writestring closefile\n",
    "delete": "(victim.txt) deletefile\n",
    "loop": "{ } loop\n",
}
RESULT = {"run_id": "a-run", "threshold": 0.5, "classes": ["real", "fake"]}
RESULT |= {"params": {"size": 32, "mode": "center_crop"}}


def chunks(*parts: tuple[bytes, bytes]) -> bytes:
    each = (struct.pack(">I", len(d)) + t + d + zlib.crc32(t + d).to_bytes(4) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(each)


def refused() -> dict[str, tuple[bytes, str]]:
    """Contents of files, and the reason for refusing them."""
    none, image = "not an image", Image.new("RGB", (64, 64))
    made = {f"{name}.jpg": ((HEAD + text).encode(), none) for name, text in PROGRAMS.items()}
    whole = made["overwrite.jpg"][0]
    wrapped = b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + len(whole).to_bytes(4, "little")
    made["binary.jpg"] = wrapped.ljust(30, b"\0") + whole, none
    waves = encoded(image, "JPEG", progressive=True)
    scan = waves[waves.rfind(b"\xff\xda") : -2]
    made["many.jpg"] = waves[:-2] + 200 * scan + waves[-2:], "more than 100 scans"
    head, pixels = struct.pack(">IIBBBBB", 1, 1, 8, 3, 0, 0, 0), zlib.compress(bytes(2))
    palette = ((b"PLTE", bytes(3)), (b"tRNS", bytes(5000)), (b"IDAT", pixels), (b"IEND", b""))
    made["palette.png"] = chunks((b"IHDR", head), *palette), "damaged colours"
    vast = (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)), (b"IDAT", pixels)
    made["bomb.png"] = chunks(*vast, (b"IEND", b"")), "bomb: more than 89 megapixels"
    if "AVIF" in Image.SAVE:  # since Pillow 11.3
        made["cut.avif"] = encoded(image, "AVIF")[:200], none
    for size, format_ in (((30_000, 1), "PNG"), ((1, 30_000), "JPEG"), ((2100, 100), "TIFF")):
        content = encoded(Image.new("L", size), format_)
        reason = f"sides of {max(size)} and {min(size)} pixels: over 20 to 1"
        made[f"thin.{format_}"] = content, reason
        if format_ != "TIFF":  # it has the same reason: nobody reads as far as the cut
            made[f"thin-cut.{format_}"] = content[: len(content) // 2], reason
    for odd in (np.nan, np.inf):
        floats = encoded(Image.fromarray(np.float32([[0, odd]])), "TIFF")
        made[f"{odd}.tif"] = floats, "pixels that are no numbers"
    return made


Image.init()
REFUSED = refused()


@pytest.fixture
def victim(tmp_path, monkeypatch) -> Path:
    """A file that PostScript is after; a `gs`, first in $PATH, writes into it when started."""
    file, gs = tmp_path / "victim.txt", tmp_path / "bin" / "gs"
    file.write_text("mine")
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\necho started >> {file}\necho 10.0\n")
    gs.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{gs.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # to be looked for again
    return file


@pytest.fixture
def exported_script(exported, tmp_path) -> Path:
    """`predict.py` beside a model, as an export writes it."""
    place = tmp_path / "edge"
    place.mkdir()
    (place / "model.onnx").write_bytes(exported["onnx"].read_bytes())
    (place / "predict.py").write_text(files.script("model.onnx", RESULT))
    return place / "predict.py"


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused_everywhere_with_the_reason_and_never_run(
    victim, name, tmp_path, exported, exported_script
):
    (content, reason), file = REFUSED[name], tmp_path / name
    file.write_bytes(content)
    good = tmp_path / "a\nb\x1b\udce9.avif"
    good.write_bytes(encoded(Image.new("RGB", (64, 64)), "PNG"))
    assert integrity.inspect_file(file)["status"].startswith(reason)
    answer = Predictor(exported["onnx"])
    assert answer(file)["error"].startswith(reason) and answer(content)["error"].startswith(reason)
    with pytest.raises(InputError, match=reason):
        explorer.check_upload(content)
    done = python(exported_script, file, good, PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 1 and done.stderr.startswith(f"{file}: {reason}")
    assert [len(text.splitlines()) for text in (done.stderr, done.stdout)] == [1, 1]
    assert r"a\nb\x1b\udce9.avif" in done.stdout
    assert victim.read_text() == "mine"


def test_the_stand_in_for_ghostscript_would_tell(victim):
    """Pillow left to itself does start it: the test above can fail."""
    content = io.BytesIO(REFUSED["loop.jpg"][0])
    with pytest.raises(OSError), Image.open(content) as image:  # noqa: PT011 (whatever Pillow makes of it)
        image.load()
    assert "started" in victim.read_text()


def sources() -> dict[str, str]:
    """The program text of everything that ships, notebooks' cells and templates among it."""
    texts = {}
    for root in ("data_prep", "dflib", "notebooks"):
        for file in (PROJECT / root).rglob("*"):
            if file.suffix in (".py", ".txt") and file.is_file():
                texts[file.name] = file.read_text(encoding="utf-8")
            elif file.suffix == ".ipynb":
                cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
                code = ("".join(c["source"]) for c in cells if c["cell_type"] == "code")
                texts[file.name] = "\n".join(code)
    texts["predict.py"] = files.script("m.onnx", RESULT)
    return texts


def test_images_are_opened_in_one_place_with_a_list_of_formats():
    opened = {}
    for name, text in sources().items():
        text = re.sub(r"^<\w+>$", "", text, flags=re.M)  # what a template leaves open
        for node in ast.walk(ast.parse(text)):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and ast.unparse(called) == "Image.open":
                opened.setdefault(name, []).append([k.arg for k in node.keywords])
        assert not re.search(r"\b(imread|read_image|decode_image|from PIL\.Image import)\b", text)
    assert opened == {"transform.py": [["formats"]], "predict.py": [["formats"]]}


def test_formats_outside_the_list_are_no_images():
    Image.init()
    picture, others = Image.new("RGB", (16, 16), "red"), []
    for name in sorted(set(Image.SAVE) & set(Image.OPEN) - set(transform.FORMATS)):
        try:
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                others.append(encoded(picture, name))  # Pillow gives up formats
        except (OSError, ValueError, KeyError):  # a format that does not take such a picture
            continue
        with pytest.raises(BadImage, match="not an image|truncated"):
            integrity.open_image(others[-1])
    assert len(others) > 10
    for name in transform.FORMATS:
        if name in Image.SAVE and name in Image.OPEN:
            assert integrity.open_image(encoded(picture, name)).size == (16, 16)


# ---- regular files


def hang_or_swell(place: Path) -> dict[str, str]:
    """Files that never end, or that no memory holds: name -> the reason for refusing it."""
    os.mkfifo(place / "pipe.jpg")
    (place / "zero.jpg").symlink_to("/dev/zero")
    (place / "random.png").symlink_to("/dev/urandom")
    if Path("/proc/kmsg").exists():
        (place / "log.jpg").symlink_to("/proc/kmsg")  # regular, of size 0, and it waits for ever
    (place / "folder.jpg").symlink_to("folder.jpg")  # goes round
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(place)  # the address of a socket is short
        server.bind("socket.jpg")
        os.chdir(here)
    for name, size in (("sparse.jpg", 1 << 40), ("large.png", integrity.MAX_BYTES + 1)):
        with (place / name).open("wb") as file:
            file.truncate(size)
    reasons = dict.fromkeys(("pipe.jpg", "zero.jpg", "random.png", "socket.jpg"), "not a regular")
    reasons |= dict.fromkeys(("sparse.jpg", "large.png"), "too large: more than 300 MB")
    reasons |= {"folder.jpg": "unreadable: Too many levels"}
    return reasons | ({"log.jpg": "zero-byte"} if Path("/proc/kmsg").exists() else {})


def test_only_regular_files_of_a_sane_size_are_read(
    tmp_path, data_root, tree, exported, exported_script
):
    root = tree(tmp_path / "set", {"real": 20, "fake/gan": 200}, size=(40, 40))
    reasons = hang_or_swell(root / "fake" / "gan")
    table = folder.prepare(root, name="mine").set_index("path")["status"]
    for name, reason in reasons.items():
        assert table[f"fake/gan/{name}"].startswith(reason), name
    assert (table == "ok").sum() == 220 and manifest.load("mine")["status"].tolist() == list(table)
    assert len(cache.build("mine", size=32)[0]) == 220
    predictor, odd = Predictor(exported["onnx"]), [root / "fake" / "gan" / n for n in reasons]
    for file, reason in zip(odd, reasons.values(), strict=True):
        assert predictor(file)["error"].startswith(reason)
    done = python(exported_script, *odd)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == len(odd)
    words, good = ["-m", "dflib", "predict", "--run", exported["onnx"]], root / "real/real-000.png"
    named = [file for file in odd if file.exists()]  # the link to itself is not there
    for asked, code in (([*named, good], 0), ([root / "fake"], 0), (named, 1)):
        done = python(*words, *asked)
        assert done.returncode == code, done.stderr
        for reason in {*reasons.values()} - {"unreadable: Too many levels"}:
            assert reason in done.stdout


def readers(place: Path, images: Path) -> dict[str, tuple[str, Callable[[], object]]]:
    """What reads a file that is no image: its name below `place`, and the reading."""
    run, listed = place / "run", ("path", "label", "score")
    return {
        "a list": ("list.csv", lambda: lists.prepare(place / "list.csv", images, name="new")),
        "scores": ("scores.parquet", lambda: lists.read(place / "scores.parquet", needed=listed)),
        "a grid": ("grid.yaml", lambda: grid.read(place / "grid.yaml")),
        "a manifest": ("mine/manifest.csv", lambda: manifest.load("mine")),
        "a dataset": ("mine/dataset.json", lambda: describe("mine")),
        "a result": ("run/result.json", lambda: records.read(run)),
        "an option": ("table.csv", lambda: _writable(Option(["--csv"]), place / "table.csv")),
    }


@pytest.mark.parametrize("what", readers(Path(), Path()))
@pytest.mark.parametrize("kind", ["pipe", "device", "giant"])
def test_no_reader_waits_for_a_pipe_or_takes_in_what_has_no_end(
    tmp_path, monkeypatch, tree, what, kind
):
    monkeypatch.setenv("DFLIB_DATA", str(tmp_path))
    images = tree(tmp_path / "images", {"real": 2, "fake": 2})
    folder.prepare(images, name="mine")
    name, read = readers(tmp_path, images)[what]
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as content:
            content.truncate(1 << 40)
    if what == "an option" and kind != "pipe":
        return  # something to write to
    with pytest.raises(InputError, match="not a regular file|too large|No such device"):
        read()


@pytest.mark.parametrize("name", ["failed.json", "model.safetensors"])
def test_a_pipe_in_a_run_folder_is_as_if_it_were_not_there(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert records.failure(tmp_path) is None and records.stamp(tmp_path / name) == ""


# ---- as phones and the web make them


def swapped() -> bytes:
    """sRGB's profile with the primaries of red and green in each other's place; named "other"."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "othr".encode("utf-16-be"))
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")


def grey_ink() -> bytes:
    """A press (ICC, version 2) whose black ink is L* = 20, and whose other inks have no colour."""
    one, lab = 1 << 16, lambda light: bytes([round(light * 2.55), 128, 128])
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, one) + bytes(range(256)) * 4
    lut += b"".join(lab(20 if corner % 2 else 100) for corner in range(16))  # black comes last
    lut += bytes(range(256)) * 3
    name = b"desc" + bytes(4) + struct.pack(">I", 6) + b"other\0" + bytes(78)
    tags, table, at, body = {b"A2B0": lut, b"desc": name}, b"", 128 + 4 + 12 * 2, b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data.ljust(-(-len(data) // 4) * 4, b"\0")
    head = struct.pack(">I4sI", at + len(body), b"", 0x02400000) + b"mntrCMYKLab ".ljust(24, b"\0")
    head += b"acsp".ljust(32, b"\0") + struct.pack(">3i", 63190, one, 54061)  # white: D50
    return head.ljust(128, b"\0") + struct.pack(">I", 2) + table + body


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_other_colours_than_srgbs_go_by_their_profile(mode):
    values = np.array([[[200, 90, 60], [60, 160, 90], [128, 128, 128]]], dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    opened = integrity.open_image(encoded(image, "PNG", icc_profile=swapped()))
    found = np.asarray(integrity.to_rgb(opened), dtype=float)
    assert np.abs(found - values[..., [1, 0, 2]]).max() < 2


def test_cmyk_goes_by_its_profile_and_a_damaged_profile_is_none():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for profile, colour in ((grey_ink(), [255] * 3), (b"damaged", [0, 255, 255])):
        opened = integrity.open_image(encoded(image, "TIFF", icc_profile=profile))
        assert np.abs(np.asarray(integrity.to_rgb(opened), int) - colour).max() <= 2


def test_several_jpegs_in_one_are_a_jpeg(tmp_path):
    image = Image.new("RGB", (16, 16), "red")
    image.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[image], quality=80)
    facts = integrity.inspect_file(tmp_path / "x.jpg")
    assert (facts["format"], facts["jpeg_quality"], facts["status"]) == ("JPEG", 80, "ok")


def test_heic_without_its_plugin_says_so_and_is_read_once_it_is_there(
    tmp_path, data_root, tree, monkeypatch
):
    root = tree(tmp_path / "set", {"real": 30, "fake": 30})
    heic = root / "real" / "phone.jpg"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pillow_heif", None)
        table = folder.prepare(root, name="mine").set_index("path")
    told = "needs a plugin (HEIC): pip install pillow-heif"
    assert table.loc["real/phone.jpg", "status"] == told
    plugin = pytest.importorskip("pillow_heif", reason='pip install -e ".[heif]"')
    time = heic.stat().st_mtime_ns
    plugin.from_pillow(Image.new("RGB", (64, 64), "red")).save(heic, quality=90)
    os.utime(heic, ns=(time, time))
    table = folder.prepare(root, name="mine").set_index("path")
    assert table.loc["real/phone.jpg", ["format", "status"]].tolist() == ["HEIF", "ok"]


def test_large_photographs_pass_by_a_setting():
    code = """
import io
from PIL import Image
from data_prep.integrity import open_image
buffer = io.BytesIO()
Image.new("L", (12_000, 9_000)).save(buffer, "PNG", compress_level=1)
print(open_image(buffer.getvalue()).size)
"""
    limits = {"110": "(12000, 9000)", "": "bomb: more than 89 megapixels"}
    for limit, told in (limits | {"200MP": "error: DFLIB_MEGAPIXELS=200MP: expected"}).items():
        done = python("-c", code, DFLIB_MEGAPIXELS=limit)
        assert told in done.stdout + done.stderr


EXIF = Image.Exif()
EXIF[0x010F] = "maker"
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
PLAIN = {"chroma": 2, "progressive": 0, "tables": 1, "exif": 0, "icc": 0, "xmp": 0, "c2pa": 0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"subsampling": 0}, {"chroma": 0}),
        ({"progressive": True}, {"progressive": 1}),
        ({"qtables": [[7] * 64, [9] * 64]}, {"tables": 2}),
        ({"exif": EXIF}, {"exif": 1}),
        ({"icc_profile": swapped()}, {"icc": 2}),
        ({"extra": b"\xff\xe1" + struct.pack(">H", len(XMP) + 2) + XMP}, {"xmp": 1}),
        ({"extra": b"\xff\xeb\0\x1aJP\0\1\0\0\0\1\0\0\0\x14jumbjumdc2pa"}, {"c2pa": 1}),
    ],
)
def test_how_a_jpeg_was_coded_is_seen(options, expected):
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    data = encoded(image, "JPEG", **{"quality": 80} | options)
    assert integrity.coding(integrity.open_image(data), data) == PLAIN | {"bits": 8} | expected


def test_how_a_png_was_coded_is_seen():
    data = encoded(Image.fromarray(np.zeros((8, 8), dtype=np.uint16)), "PNG")
    expected = PLAIN | {"chroma": -1, "tables": 0, "bits": 16}
    assert integrity.coding(integrity.open_image(data), data) == expected
