"""The leak report where labels follow scenes: a random split remembers, a strict one cannot."""

import numpy as np
import pytest
from made import noise
from PIL import Image

from data_prep import folder
from dflib import train
from dflib.study import leak


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Runs and gaps on 40 scenes of 6 nearly equal images; real or fake is a whole scene. They come
    with a split that keeps scenes whole."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for scene in range(40):
        base = np.asarray(noise(4, 4, scene).resize((32, 32)), dtype=int)
        for copy in range(6):
            given = root / ("test" if scene // 2 % 4 == 3 else "train")
            path = given / ("real", "fake")[scene % 2] / f"take{copy}" / f"scene{scene}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noisy = base + rng.integers(-9, 10, base.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:  # what other tests prepare belongs elsewhere
        patch.setenv("DFLIB_DATA", str(root / "data-root"))
        patch.setenv("DFLIB_OUTPUTS", str(root / "outputs"))
        folder.prepare(root, name="scenes")
        recipe = train.Recipe(epochs=7, batch=16, lr=2e-3, augment=False)
        return leak.leak("scenes", size=32, model="S80", seeds=(0, 1), recipe=recipe)


def test_a_random_split_of_repeated_scenes_leaks_and_the_report_says_so(found):
    runs, gaps = found
    means = runs.groupby("protocol")["auroc"].mean()
    assert means["paper"] > 0.95 and means["strict"] < 0.8
    assert gaps["auroc"]["mean"] == pytest.approx(means["paper"] - means["strict"])
    assert gaps["auroc"]["mean"] > 0.2 and gaps["auroc"]["seeds"] == 2
