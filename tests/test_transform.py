"""Making classes alike, and making images worse: against Pillow's own encoders."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from skimage import data as photographs

from data_prep import integrity, transform
from data_prep.errors import InputError

PHOTO = Image.fromarray(photographs.astronaut())


def table(*rows: tuple) -> pd.DataFrame:
    """Manifest rows from (label, width, height, format, jpeg_quality)."""
    columns = ["label", "width", "height", "format", "jpeg_quality"]
    return pd.DataFrame(rows, columns=columns).assign(status="ok", coding="")


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        ((256, 256, "JPEG", 75), (256, 256, "JPEG", 75), None),  # alike already
        ((256, 256, "JPEG", 75), (256, 256, "JPEG", 95), (None, True)),
        # what they were before is not known
        ((256, 256, "PNG", None), (256, 256, "PNG", None), (None, True)),
        ((300, 400, "JPEG", 75), (512, 512, "JPEG", 75), (300, False)),
        ((4000, 3000, "TIFF", None), (1024, 1024, "PNG", None), (1024, True)),
    ],
)
def test_what_differs_is_made_alike(real, fake, expected):
    found = transform.equaliser(table(*[(0, *real), (1, *fake)] * 30))
    assert found == (expected and transform.Equaliser(*expected))


def test_classes_that_are_coded_in_another_way_are_coded_again():
    rows = table(*[(label, 256, 256, "JPEG", 75) for label in (0, 1)] * 30)
    rows["coding"] = ["chroma=2", "chroma=2"] * 29 + ["chroma=0", "chroma=0"]
    assert transform.equaliser(rows) is None  # the same two in both classes
    rows.loc[59, "coding"] = "chroma=2"
    assert transform.equaliser(rows) == transform.Equaliser(None, True)


def test_one_small_image_does_not_decide_for_all():
    rows = [(y, 256, 256, "JPEG", 75) for y in (0, 1)] * 50 + [(0, 40, 40, "JPEG", 75)]
    assert transform.equaliser(table(*rows)).side == 256


@given(width=st.integers(20, 200), height=st.integers(20, 200), sha=st.integers(0, 2**32 - 1))
def test_equalised_images_are_alike_in_size_and_quality(width, height, sha):
    alike = transform.Equaliser(64, True)
    opened = integrity.open_image(alike.encoded(PHOTO.resize((width, height)), f"{sha:08x}"))
    assert opened.size == (64, 64) and opened.format == "JPEG"
    assert integrity.jpeg_quality(opened) == transform.QUALITIES[sha % len(transform.QUALITIES)]


def test_without_encoding_the_middle_stays_as_it_is():
    image = transform.Equaliser(100, False)(PHOTO, "00000000")
    assert np.array_equal(image, PHOTO.crop((206, 206, 306, 306)))


def test_perturbations_are_what_their_names_say():
    worse = lambda how: transform.perturb(PHOTO, how)
    pixels = lambda image: np.asarray(image, dtype=float)
    assert worse("resize-0.5").size == (256, 256)
    assert np.array_equal(worse("blur-2"), PHOTO.filter(ImageFilter.GaussianBlur(2)))
    for name, format_ in (("jpeg", "JPEG"), ("webp", "WEBP")):
        buffer = io.BytesIO()
        PHOTO.save(buffer, format_, quality=50)
        assert np.array_equal(worse(f"{name}-50"), Image.open(buffer).convert("RGB"))
    assert np.array_equal(worse("crop-0.5"), PHOTO.crop((128, 128, 384, 384)))
    noise = pixels(worse("noise-5")) - pixels(PHOTO)
    middle = noise[(pixels(PHOTO) > 30) & (pixels(PHOTO) < 225)]
    assert abs(middle.mean()) < 0.05 and middle.std() == pytest.approx(5, rel=0.02)
    assert np.array_equal(worse("noise-5"), worse("noise-5"))
    assert {worse(how).mode for how in transform.GRID} == {"RGB"}
    losses = [np.abs(pixels(worse(f"jpeg-{q}")) - pixels(PHOTO)).mean() for q in (95, 75, 30)]
    assert losses == sorted(losses)


WRONG = {"jpg-75": "unknown perturbation 'jpg', did you mean 'jpeg'"}
WRONG |= dict.fromkeys(("blur", "jpeg-x"), "has no amount")


@pytest.mark.parametrize("how", WRONG)
def test_a_perturbation_that_is_not_known_is_named(how):
    with pytest.raises(InputError, match=WRONG[how]):
        transform.perturb(PHOTO, how)
