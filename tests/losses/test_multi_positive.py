"""StableRep's loss against a slow loop, closed forms and NT-Xent; losses of two views for more."""

import math

import pytest
import torch
import torch.nn.functional as F

from clsp_plugin.losses import vicreg
from clsp_plugin.losses.multi_positive import multi_positive_loss
from clsp_plugin.losses.nt_xent import nt_xent_loss
from clsp_plugin.losses.pairs import mean_over_pairs
from clsp_plugin.losses.vibcreg import vibcreg_loss
from clsp_plugin.losses.vicreg import vicreg_loss


def oracle(z, indexes, temperature):
    z = F.normalize(z.double(), dim=1)
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        weight = {j: math.exp(float(z[i] @ z[j]) / temperature) for j in others}
        positives = [j for j in others if indexes[j] == indexes[i]]
        total = sum(weight.values())
        terms.append(-sum(math.log(weight[j] / total) for j in positives) / len(positives))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_it_is_the_formula(views, temperature):
    torch.manual_seed(0)
    z, indexes = torch.randn(views * 6, 5), torch.arange(6).repeat(views)
    value = multi_positive_loss(z, indexes, temperature).item()
    assert value == pytest.approx(oracle(z, indexes, temperature), rel=1e-5)


def test_an_image_that_is_twice_in_a_batch_is_its_own_positive():
    torch.manual_seed(0)
    z, indexes = torch.randn(12, 5), torch.tensor([3, 1, 3, 2]).repeat(3)
    value = multi_positive_loss(z, indexes, 0.2).item()
    assert value == pytest.approx(oracle(z, indexes, 0.2), rel=1e-5)


def test_with_one_positive_it_is_nt_xent_and_with_more_it_asks_for_more():
    torch.manual_seed(0)
    z, indexes = torch.randn(12, 5), torch.arange(6).repeat(2)
    torch.testing.assert_close(multi_positive_loss(z, indexes, 0.2), nt_xent_loss(z, indexes, 0.2))
    more = torch.arange(4).repeat(3)
    assert multi_positive_loss(z, more, 0.2) > nt_xent_loss(z, more, 0.2) + 0.1


def test_closed_form():
    # two orthogonal images, M + 1 equal views: M positives at cosine 1, M + 1 negatives at 0
    for views in (2, 3, 5):
        z, indexes = torch.eye(2).repeat(views, 1), torch.arange(2).repeat(views)
        expected = math.log((views - 1) * math.e + views) - 1
        assert multi_positive_loss(z, indexes, 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_gradient_is_finite_at_a_low_temperature():
    torch.manual_seed(0)
    z = torch.randn(12, 4, requires_grad=True)
    multi_positive_loss(z, torch.arange(4).repeat(3), 0.005).backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0


def test_a_loss_of_two_views_over_all_pairs():
    torch.manual_seed(0)
    a, b, c = (torch.randn(7, 5) for _ in range(3))
    assert torch.equal(mean_over_pairs(vicreg_loss, [a, b]), vicreg_loss(a, b))
    value = mean_over_pairs(vicreg_loss, [a, b, c], sim_loss_weight=3.0)
    pairs = [vicreg_loss(x, y, sim_loss_weight=3.0) for x, y in ((a, b), (a, c), (b, c))]
    torch.testing.assert_close(value, sum(pairs) / 3)


@pytest.mark.parametrize("loss", [vicreg_loss, vibcreg_loss])
def test_what_is_of_one_view_is_computed_once_a_view(loss, monkeypatch):
    """And the loss is the mean over pairs all the same."""
    torch.manual_seed(0)
    views = [torch.randn(9, 5) for _ in range(4)]
    expected = mean_over_pairs(loss, views, var_loss_weight=2.0)
    computed = []
    variance = vicreg.variance_loss
    monkeypatch.setattr(vicreg, "variance_loss", lambda z: computed.append(z) or variance(z))
    torch.testing.assert_close(loss(*views, var_loss_weight=2.0), expected)
    assert len(computed) == len(views)


def test_weights_multiply_the_terms_of_the_pairs():
    torch.manual_seed(0)
    z, indexes = torch.randn(12, 5), torch.arange(4).repeat(3)
    weights = torch.rand(12, 12)
    unit = F.normalize(z, dim=1)
    terms = []
    for i in range(12):
        others = [j for j in range(12) if j != i]
        total = sum(math.exp(float(unit[i] @ unit[j]) / 0.2) for j in others)
        for j in others:
            if indexes[i] == indexes[j]:
                log_q = float(unit[i] @ unit[j]) / 0.2 - math.log(total)
                terms.append(-float(weights[i, j]) * log_q / 2)
    value = multi_positive_loss(z, indexes, 0.2, lambda positive: weights).item()
    assert value == pytest.approx(sum(terms) / 12, rel=1e-5)
    alike = multi_positive_loss(z, indexes, 0.2, lambda positive: positive.float())
    torch.testing.assert_close(alike, multi_positive_loss(z, indexes, 0.2))
