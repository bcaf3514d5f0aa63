"""Feature transformation against a slow loop and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from clsp_plugin.losses.feature_transform import (
    draw_weight,
    extrapolate,
    interpolate,
    transformed_nt_xent_loss,
)
from clsp_plugin.losses.nt_xent import nt_xent_loss


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("weight", [1.0, 1.3, 2.0])
def test_extrapolation_lowers_the_score_as_the_closed_form_says(weight):
    x, y = unit(6, 5), unit(6, 5, seed=1)
    a, b = extrapolate(x, y, weight)
    score = (x * y).sum(1)
    torch.testing.assert_close((a * b).sum(1), score - 2 * weight * (weight - 1) * (1 - score))
    # on the line through both, and the middle stays where it was
    torch.testing.assert_close(a + b, x + y)
    torch.testing.assert_close(a - b, (2 * weight - 1) * (x - y))


def test_weight_one_changes_nothing():
    x, y = unit(4, 5), unit(4, 5, seed=1)
    assert torch.equal(torch.stack(extrapolate(x, y, 1.0)), torch.stack((x, y)))
    assert torch.equal(interpolate(x, torch.tensor([1, 2, 3, 0]), 1.0), x)


def test_interpolation_blends_with_another():
    x = unit(4, 5)
    order = torch.tensor([1, 0, 3, 2])
    expected = torch.stack([0.3 * x[j] + 0.7 * x[order[j]] for j in range(4)])
    torch.testing.assert_close(interpolate(x, order, 0.3), expected)


def test_weights_are_of_a_symmetric_beta_distribution():
    torch.manual_seed(0)
    draws = torch.tensor([draw_weight(2.0) for _ in range(4000)])
    assert draws.min() > 0
    assert draws.max() < 1
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1))
    assert draws.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(0.05 / 4000))
    assert draws.var().item() == pytest.approx(0.05, rel=0.1)


def oracle(z, indexes, temperature, w, v, order):
    z = F.normalize(z.double(), dim=1)
    half = len(z) // 2
    terms = []
    for i in range(len(z)):
        p = (i + half) % len(z)
        anchor, positive = w * z[i] + (1 - w) * z[p], w * z[p] + (1 - w) * z[i]
        pull = math.exp(float(anchor @ positive) / temperature)
        push = 0.0
        for j in range(len(z)):
            k = int(order[j])
            if indexes[i] in (indexes[j], indexes[k]):
                continue
            push += math.exp(float(anchor @ (v * z[j] + (1 - v) * z[k])) / temperature)
        terms.append(-math.log(pull / (pull + push)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("indexes", [[0, 1, 2, 3, 4], [7, 1, 7, 3, 4]])
def test_transformed_nt_xent_is_the_formula(indexes):
    torch.manual_seed(3)
    z, indexes = torch.randn(10, 6), torch.tensor(indexes).repeat(2)
    order = torch.randperm(10)
    value = transformed_nt_xent_loss(z, indexes, 0.2, 1.4, 0.7, order).item()
    expected = oracle(z, indexes.tolist(), 0.2, 1.4, 0.7, order)
    assert value == pytest.approx(expected, rel=1e-5)


def test_without_transformation_it_is_nt_xent():
    torch.manual_seed(4)
    z, indexes = torch.randn(12, 6), torch.arange(6).repeat(2)
    order = torch.arange(12)
    value = transformed_nt_xent_loss(z, indexes, 0.2, 1.0, 1.0, order)
    torch.testing.assert_close(value, nt_xent_loss(z, indexes, 0.2))


def test_gradient_is_finite():
    z = torch.randn(8, 4, requires_grad=True)
    indexes = torch.arange(4).repeat(2)
    transformed_nt_xent_loss(z, indexes, 0.2, 1.9, 0.2, torch.randperm(8)).backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0
