"""The hardness of candidates where it is known."""

import pytest
import torch

from clsp_plugin.inspection.hardness import hardness, looks


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_copy_is_0_and_a_stranger_1():
    anchors = drawn(400, 6)
    copies = hardness(anchors, anchors[:, None].repeat(1, 3, 1))
    assert copies == {"share": 0, "error": 0, "variety": 0, "variety_error": 0}
    strangers = hardness(anchors, drawn(400, 3, 6, seed=1))
    for name, error in (("share", "error"), ("variety", "variety_error")):
        assert strangers[name] == pytest.approx(1, abs=4 * strangers[error])
        assert 0 < strangers[error] < 0.05
    # a candidate that is the mirror image is twice as far as two that do not know each other
    assert hardness(anchors, -anchors[:, None])["share"] == pytest.approx(2**0.5, abs=0.05)
    assert "variety" not in hardness(anchors, -anchors[:, None])


def test_half_way_and_all_alike():
    anchors = drawn(400, 6)
    # the anchor, and noise of a quarter of its variance: (1/4) / 2 of the squared distance
    near = hardness(anchors, anchors[:, None] + 0.5 * drawn(400, 4, 6, seed=1))
    assert near["share"] == pytest.approx((0.25 / 2) ** 0.5, abs=0.02)
    assert near["variety"] == pytest.approx(0.5, abs=0.02)
    # far from the anchor, but the candidates of an anchor are one image
    one = drawn(400, 1, 6, seed=2).repeat(1, 4, 1)
    assert hardness(anchors, one)["share"] == pytest.approx(1, abs=0.05)
    assert hardness(anchors, one)["variety"] == pytest.approx(0, abs=1e-6)
    same = torch.ones(5, 6)
    assert hardness(same, same[:, None])["share"] == 0


def test_the_error_is_the_spread_over_repetitions():
    found = []
    for seed in range(60):
        anchors = drawn(50, 6, seed=seed)
        candidates = anchors[:, None] + 0.7 * drawn(50, 2, 6, seed=seed + 100)
        found.append(hardness(anchors, candidates))
    for name, error in (("share", "error"), ("variety", "variety_error")):
        spread = torch.tensor([one[name] for one in found]).std()
        said = torch.tensor([one[error] for one in found]).mean()
        assert said == pytest.approx(spread.item(), rel=0.35)


def test_what_images_look_like():
    images = torch.randint(0, 256, (3, 2, 8, 8, 3), dtype=torch.uint8)
    found = looks(images)
    assert [found[name].shape[-1] for name in ("colour", "layout", "background")] == [3, 48, 36]
    centre = images.clone()
    centre[:, :, 2:6, 2:6] = 0
    assert torch.equal(looks(centre)["background"], found["background"])
    centre[:, :, 0, 0] = 0
    assert not torch.equal(looks(centre)["background"], found["background"])
    brighter = looks(images // 2 + 100)
    assert torch.allclose(brighter["layout"], looks(images // 2)["layout"], atol=1e-3)
    assert torch.allclose(brighter["colour"], looks(images // 2)["colour"] + 100)
