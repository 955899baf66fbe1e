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


SAME = (256, 256, "JPEG", 75, "chroma=2")
OTHER = (*SAME[:4], "chroma=0")


@pytest.mark.parametrize(
    ("reals", "fakes", "expected"),
    [
        ([SAME] * 30, [SAME] * 30, None),
        ([SAME] * 30, [(256, 256, "JPEG", 95, "chroma=2")] * 30, (None, True)),
        # what they were before is not known
        ([(256, 256, "PNG", None, "")] * 30, [(256, 256, "PNG", None, "")] * 30, (None, True)),
        ([(300, 400, "JPEG", 75, "")] * 30, [(512, 512, "JPEG", 75, "")] * 30, (300, False)),
        ([(4000, 3000, "TIFF", None, "")] * 30, [(1024, 1024, "PNG", None, "")] * 30, (1024, True)),
        ([SAME] * 29 + [OTHER], [SAME] * 29 + [OTHER], None),  # the same two in both classes
        ([SAME] * 29 + [OTHER], [SAME] * 30, (None, True)),
        ([SAME] * 50 + [(40, 40, *SAME[2:])], [SAME] * 50, (256, False)),  # one does not decide
    ],
)
def test_what_differs_is_made_alike(reals, fakes, expected):
    rows = [(label, *row) for label, each in enumerate((reals, fakes)) for row in each]
    columns = ["label", "width", "height", "format", "jpeg_quality", "coding"]
    table = pd.DataFrame(rows, columns=columns).assign(status="ok")
    assert transform.equaliser(table) == (expected and transform.Equaliser(*expected))


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
