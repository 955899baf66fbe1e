"""What notebooks train for a look is trained once."""

import pytest

from dflib import models, train
from dflib.show import lessons
from dflib.study import runs


@pytest.fixture
def run(tiny_dataset, outputs_root) -> runs.Run:
    return runs.asked("BL", preset="tiny", dataset=tiny_dataset)


def tried(run, *, what="head", seed=0, epochs=1, images=4) -> dict:
    with train.seeded(seed):
        model = models.Detector(models.scaled(models.architecture("BL", size=32), 1 / 16))
    recipe = train.Recipe(epochs=epochs, batch=8)
    return lessons.quick(run, what, model, lessons.small(run, images), recipe)


def test_a_try_is_trained_once_and_another_one_anew(run, monkeypatch):
    fit, trained = train.fit, []
    monkeypatch.setattr(train, "fit", lambda *a, **k: trained.append(1) or fit(*a, **k))
    first = tried(run)
    assert tried(run) == first and len(trained) == 1
    others = ({"what": "all"}, {"seed": 1}, {"epochs": 2}, {"images": 5})
    for n, changed in enumerate(others, start=2):
        tried(run, **changed)
        assert len(trained) == n


def test_damaged_tries_are_made_again(run):
    first = tried(run)
    (run.folder / "tries.json").write_text("{")
    assert tried(run)["AUROC"] == first["AUROC"]
    assert tried(run)["trainable"] == first["trainable"] > 0
