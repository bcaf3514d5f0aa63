"""Candidates without a denoiser are what they are named by, in an ordinary store."""

import pytest
import torch

from clsp_plugin.candidates.oracle import ORACLES, Oracle, write_oracle
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.compose import compose
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import load_images
from clsp_plugin.errors import ClspError
from clsp_plugin.figures import store_caption
from clsp_plugin.verbs import VERBS

DATA = {"dataset": "digits", "num_train": 60, "num_val": 10, "seed": 3, "image_size": 16}
INK = 0.65 * 255  # no channel of a stroke is darker, and none of a texture is as light


@pytest.fixture(scope="module")
def images():
    return load_images(DATA, "train")


@pytest.fixture
def draw(images, tmp_path):
    """An oracle to its candidates, uint8 (N, K, H, W, 3)."""

    def make(oracle, array=images, out="store", **keys):
        write_oracle(array, DATA, tmp_path / out, Oracle(oracle, shard_size=25, **keys))
        store = CandidateStore(tmp_path / out)
        assert not store.manifest.sampled
        assert store_caption(store.manifest).startswith(f"no denoiser, oracle: {oracle}, store of")
        return torch.from_numpy(store.images(range(len(array))))

    return make


def numbers(array, candidates):
    """Which of the images each candidate is: (N, K)."""
    same = (candidates[:, :, None] == array.images).flatten(3).all(3)
    assert (same.sum(2) == 1).all()
    return same.int().argmax(2)


@pytest.mark.parametrize("oracle", ["class", "other"])
def test_another_image_and_each_of_them(images, draw, oracle):
    found = numbers(images, draw(oracle, num_candidates=200))
    for number, target in enumerate(images.targets):
        others = set(range(60)) - {number}
        if oracle == "class":
            others = {other for other in others if images.targets[other] == target}
        assert set(found[number].tolist()) <= others
        # 5 others of a class are all found in 200 draws but in 1e-18 of cases; 59 others nearly
        assert len(set(found[number].tolist())) > 0.85 * len(others)


def test_classes_in_any_order_and_of_any_size(draw, images):
    rows = torch.cat([torch.arange(0, 60, 10), torch.tensor([33, 1, 13, 21])])
    array = images.subset(rows, "some")
    found = numbers(array, draw("class", array, num_candidates=20))
    assert (array.targets[found] == array.targets[:, None]).all()
    assert (found != torch.arange(10)[:, None]).all()


def test_another_background_has_the_same_stroke_at_the_same_place(images, draw):
    candidates = draw("background", num_candidates=3)
    stroke = (images.images >= INK).all(-1)[:, None].expand(-1, 3, -1, -1)
    light = candidates.float().mean(-1)

    def contrast(stroke):
        on = (light * stroke).sum((2, 3)) / stroke.sum((2, 3))
        return on - (light * ~stroke).sum((2, 3)) / (~stroke).sum((2, 3))

    assert (contrast(stroke) > 40).all()
    assert (contrast(stroke) > contrast(stroke.roll(1, 0))).all()
    colours = torch.cat([images.images[:, None], candidates], 1).float().mean((2, 3))
    for one in range(4):
        for other in range(one):
            assert (colours[:, one] - colours[:, other]).abs().mean() > 10


@pytest.mark.parametrize("oracle", sorted(ORACLES))
def test_a_store_is_continued_and_extended(images, draw, tmp_path, oracle):
    whole = draw(oracle, num_candidates=3, out="whole")
    assert torch.equal(draw(oracle, num_candidates=2), whole[:, :2])
    (tmp_path / "store" / "shard-00001.npy").unlink()
    assert torch.equal(draw(oracle, num_candidates=3), whole)
    assert not torch.equal(draw(oracle, num_candidates=3, seed=1, out="another"), whole)
    with pytest.raises(ClspError, match="already holds candidates made with"):
        draw("class" if oracle == "other" else "other", num_candidates=3)


def test_the_verb_makes_a_store_that_a_training_takes(tmp_path, capsys):
    def generate(*given):
        given = ["data.num_train=40", f"out={tmp_path / 's'}", *given]
        return VERBS["generate"].run(compose("generate", "digits/oracle", given))

    assert generate()["candidates"] == 160
    assert "160 made" in capsys.readouterr().out
    assert generate()["candidates"] == 0
    assert "already complete" in capsys.readouterr().out
    array = load_images({**DATA, "num_train": 40, "seed": 0}, "train")
    CandidateStore(tmp_path / "s").check(40, 16, 16, array.fingerprint, array.name)
    with pytest.raises(ClspError, match="num_candidates=0 must be at least 1"):
        generate("num_candidates=0")
    with pytest.raises(ClspError, match="oracle=clas is not known; did you mean 'class'"):
        generate("oracle=clas")


def test_what_an_oracle_cannot_know_is_refused(images, draw):
    unlabelled = ImageArray(images.images, torch.full((60,), -1), (), "unlabelled")
    with pytest.raises(ClspError, match="needs the labels"):
        draw("class", unlabelled)
    with pytest.raises(ClspError, match="class 9 has one image"):
        draw("class", images.subset(torch.tensor([0, 10, 9]), "few"))
    for data in ({"dataset": "cifar10"}, {**DATA, "fraction": 0.5}):
        with pytest.raises(ClspError, match="knows how the images of"):
            write_oracle(images, data, "nowhere", Oracle("background"))
    with pytest.raises(ClspError, match="one image"):
        draw("other", images.subset(torch.tensor([0]), "one"))
