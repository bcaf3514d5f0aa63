"""Losses against slow loops from the papers' formulas, and against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from clsp_plugin.losses.alignment import alignment_loss
from clsp_plugin.losses.info_nce import info_nce_loss
from clsp_plugin.losses.nt_xent import nt_xent_loss


def oracle_nt_xent(z, indexes, temperature):
    z = F.normalize(z.double(), dim=1)
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        weight = {j: math.exp(float(z[i] @ z[j]) / temperature) for j in others}
        positive = sum(weight[j] for j in others if indexes[j] == indexes[i])
        terms.append(-math.log(positive / sum(weight.values())))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_nt_xent_is_the_formula(views, temperature):
    torch.manual_seed(0)
    z = torch.randn(views * 6, 5)
    indexes = torch.arange(6).repeat(views)
    expected = oracle_nt_xent(z, indexes, temperature)
    assert nt_xent_loss(z, indexes, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_nt_xent_same_image_twice_in_a_batch_is_a_positive():
    torch.manual_seed(0)
    z = torch.randn(8, 5)
    indexes = torch.tensor([3, 1, 3, 2]).repeat(2)
    expected = oracle_nt_xent(z, indexes, 0.2)
    assert nt_xent_loss(z, indexes, 0.2).item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(oracle_nt_xent(z, torch.arange(4).repeat(2), 0.2), rel=1e-2)


def test_nt_xent_closed_form():
    # two orthogonal images, both views equal: positives at cosine 1, two negatives at 0
    z = torch.eye(2).repeat(2, 1)
    expected = math.log(1 + 2 / math.e)
    value = nt_xent_loss(z, torch.tensor([0, 1, 0, 1]), 1.0).item()
    assert value == pytest.approx(expected, rel=1e-6)


def test_nt_xent_ignores_the_norm_and_stays_finite_at_low_temperature():
    torch.manual_seed(0)
    z, indexes = torch.randn(8, 4), torch.arange(4).repeat(2)
    small = nt_xent_loss(z, indexes, 0.2)
    torch.testing.assert_close(small, nt_xent_loss(100 * z, indexes, 0.2))
    assert torch.isfinite(nt_xent_loss(z, indexes, 0.005))


def test_info_nce_is_the_formula():
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(4, 6), dim=1) for _ in range(2))
    queue = F.normalize(torch.randn(6, 10), dim=0)
    terms = []
    for i in range(4):
        positive = math.exp(float(q[i] @ k[i]) / 0.2)
        negative = sum(math.exp(float(q[i] @ queue[:, j]) / 0.2) for j in range(10))
        terms.append(-math.log(positive / (positive + negative)))
    value = info_nce_loss(q, k, queue, 0.2).item()
    assert value == pytest.approx(sum(terms) / 4, rel=1e-5)


@pytest.mark.parametrize(("y", "expected"), [([1.0, 0], 0.0), ([0, 1.0], 2.0), ([-3.0, 0], 4.0)])
def test_alignment_closed_form(y, expected):
    x = torch.tensor([[2.0, 0.0]])
    assert alignment_loss(x, torch.tensor([y])).item() == pytest.approx(expected, abs=1e-6)


def test_alignment_is_a_squared_distance_of_unit_vectors():
    torch.manual_seed(0)
    x, y = torch.randn(5, 7), torch.randn(5, 7)
    distance = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(alignment_loss(x, y), distance)
