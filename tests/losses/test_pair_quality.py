"""GenView's weights against slow loops, closed forms, and the losses that take them."""

import math

import pytest
import torch
import torch.nn.functional as F

from clsp_plugin.losses.alignment import alignment_loss
from clsp_plugin.losses.info_nce import info_nce_loss
from clsp_plugin.losses.nt_xent import nt_xent_loss
from clsp_plugin.losses.pair_quality import foreground_background, quality_weights


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_weights_are_the_formula(gamma):
    s, t = [0.9, 0.2, -0.3, 0.5], [0.1, 0.8, -0.3, 0.4]
    score = [math.exp(gamma * (a - b)) for a, b in zip(s, t, strict=True)]
    expected = [4 * one / sum(score) for one in score]
    value = quality_weights(torch.tensor(s), torch.tensor(t), gamma)
    assert value.tolist() == pytest.approx(expected, rel=1e-5)
    assert value.mean().item() == pytest.approx(1)


def test_without_gamma_all_count_alike_and_what_is_no_pair_counts_nothing():
    s, t = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(quality_weights(s, t, 0.0), torch.ones(3, 4))
    s[0, 1] = s[2, 3] = -math.inf
    weights = quality_weights(s, t, 2.0)
    assert (weights == 0).nonzero().tolist() == [[0, 1], [2, 3]]
    assert weights.sum().item() == pytest.approx(10, rel=1e-5)


def test_foreground_and_background_are_the_formula():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 2, 2)
    foreground, background = foreground_background(maps)
    for image in range(2):
        places = [maps[image, :, i, j].tolist() for i in range(2) for j in range(2)]
        norms = [math.hypot(*place) for place in places]
        mask = [(n - min(norms)) / (max(norms) - min(norms)) for n in norms]
        for found, part in ((foreground, mask), (background, [1 - m for m in mask])):
            expected = [
                sum(m * place[d] for m, place in zip(part, places, strict=True)) / sum(part)
                for d in range(3)
            ]
            assert found[image].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_same_thing_elsewhere_counts_more_than_another_in_the_same_place():
    thing, other = torch.tensor([5.0, 0, 0]), torch.tensor([0, 5.0, 0])
    grass, sand = torch.tensor([0, 0, 1.0]), torch.tensor([0.6, 0.8, 0])

    def picture(what, where):
        return torch.stack([what, where, where, where]).T.reshape(3, 2, 2)

    anchors = torch.stack([picture(thing, grass)] * 2)
    pairs = torch.stack([picture(thing, sand), picture(other, grass)])
    parts = zip(foreground_background(anchors), foreground_background(pairs), strict=True)
    weights = quality_weights(*(F.cosine_similarity(a, b) for a, b in parts))
    assert weights[0] > 1 > weights[1]
    assert weights[0] / weights[1] == pytest.approx(math.exp(2), rel=1e-3)


def test_losses_multiply_the_terms_of_their_images():
    torch.manual_seed(0)
    x, y, queue = torch.randn(4, 6), torch.randn(4, 6), torch.randn(6, 9)
    weights = torch.tensor([1.5, 0.5, 0.0, 2.0])
    one = [torch.eye(4)[i] * 4 for i in range(4)]  # what each image has alone, of mean 1
    cases = [
        (lambda w: alignment_loss(x, y, w), alignment_loss(x, y)),
        (lambda w: info_nce_loss(x, y, queue, 0.2, w), info_nce_loss(x, y, queue, 0.2)),
        (
            lambda w: nt_xent_loss(torch.cat([x, y]), torch.arange(4).repeat(2), 0.2, w.repeat(2)),
            nt_xent_loss(torch.cat([x, y]), torch.arange(4).repeat(2), 0.2),
        ),
    ]
    for loss, plain in cases:
        terms = torch.stack([loss(w) for w in one])
        torch.testing.assert_close(terms.mean(), plain)
        torch.testing.assert_close(loss(weights), (weights * terms).mean())
