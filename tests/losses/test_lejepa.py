"""LeJEPA's loss against its formula, a slow loop, and lightly's."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss.lejepa_loss import LeJEPALoss
from scipy.integrate import quad

from clsp_plugin.config.training import parse_cfg
from clsp_plugin.losses.lejepa import lejepa_loss, sigreg
from clsp_plugin.methods import METHODS


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(size, number):
    return F.normalize(random(size, number, seed=1), dim=0)


def test_sigreg_is_the_integral():
    z, along = random(30, 4), directions(4, 3)
    total = 0.0
    for m in range(3):
        x = [sum(float(a * b) for a, b in zip(row, along[:, m], strict=True)) for row in z]

        def integrand(t, x=x):
            found = sum(complex(math.cos(t * v), math.sin(t * v)) for v in x) / len(x)
            return abs(found - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)

        total += len(x) * quad(integrand, -3, 3)[0]
    assert sigreg(z, along, knots=2001).item() == pytest.approx(total / 3, rel=1e-5)


def test_sigreg_of_a_point_and_of_a_gaussian():
    # all at 0: the integral of (1 - exp(-t^2 / 2))^2 exp(-t^2 / 2) over all t, times N
    at_zero = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
    value = sigreg(torch.zeros(10, 3).double(), directions(3, 5), knots=4001, t_max=12)
    assert value.item() == pytest.approx(10 * at_zero, rel=1e-6)
    # a statistic of a sample from the Gaussian does not grow with the sample
    some, many = (sigreg(random(n, 8), directions(8, 64)).item() for n in (500, 5000))
    assert many < 3 * some < 0.1 * sigreg(3 * random(500, 8), directions(8, 64)).item()


def test_the_loss_is_lightlys():
    z, large = [random(6, 8, seed=s).float() for s in range(4)], 2
    torch.manual_seed(0)
    along = torch.randn(8, 1024)
    theirs = LeJEPALoss(lambda_param=0.05)
    torch.manual_seed(0)
    expected = theirs(local_proj=torch.stack(z[large:]), global_proj=torch.stack(z[:large]))
    found = lejepa_loss(z, large, F.normalize(along, dim=0))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_views_that_agree_have_no_distance():
    z = random(6, 8)
    assert lejepa_loss([z, z, z], 2, directions(8, 4), sigreg_weight=0.0).item() == 0
    first, second = torch.zeros(6, 8).double(), torch.ones(6, 8).double()
    value = lejepa_loss([first, second], 2, directions(8, 4), sigreg_weight=0.0)
    assert value.item() == pytest.approx(0.25)  # each is a half from their mean


def test_directions_are_of_the_step_and_the_seed(tiny):
    cfg = parse_cfg(tiny("lejepa"), METHODS)
    cfg.data.num_classes = 10
    one, other = METHODS["lejepa"](cfg), METHODS["lejepa"](cfg)
    along = one.directions()
    assert torch.equal(along, other.directions())
    torch.testing.assert_close(along.norm(dim=0), torch.ones(along.shape[1]))
    cfg.seed += 1
    assert not torch.equal(along, METHODS["lejepa"](cfg).directions())
