"""Whitening gives zero mean and the identity as covariance, and IterNorm approximates it."""

import pytest
import torch
from torch import nn

from clsp_plugin.methods.whitening import IterNorm, whiten


def batch(rows=64, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(dim) + 0.1 * torch.randn(dim, dim, generator=generator)
    return torch.randn(rows, dim, generator=generator) @ mixing + 3


def test_whitened_has_no_mean_and_unit_covariance():
    white = whiten(batch())
    torch.testing.assert_close(white.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.T.cov(), torch.eye(6), atol=1e-3, rtol=0)


def test_whitening_is_by_the_cholesky_factor_of_the_shrunk_covariance():
    x = batch().double()
    covariance = 0.7 * x.T.cov() + 0.3 * torch.eye(6)
    expected = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    torch.testing.assert_close(whiten(x, 0.3), expected.float(), atol=1e-4, rtol=1e-4)


def test_parts_are_whitened_on_their_own():
    x = torch.stack([batch(seed=1), batch(seed=2)])
    torch.testing.assert_close(whiten(x), torch.stack([whiten(part) for part in x]))


@pytest.mark.parametrize("groups", [1, 2, 64])
def test_iternorm_tends_to_the_inverse_root_in_each_group(groups):
    x = batch()
    out = IterNorm(6, num_groups=groups, iterations=8)(x)
    size = 6 // min(groups, 6)
    for part, white in zip(x.split(size, dim=1), out.split(size, dim=1), strict=True):
        covariance = torch.atleast_2d(part.T.cov(correction=0)).double()
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
        expected = (part - part.mean(0)).double() @ root
        torch.testing.assert_close(white.double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("features", "number", "groups"), [(2048, 64, 64), (96, 64, 48), (6, 64, 6), (10, 3, 5)]
)
def test_iternorm_s_groups_divide_the_features(features, number, groups):
    assert IterNorm(features, num_groups=number).groups == groups


def test_iternorm_remembers_the_batches_for_evaluation():
    layer = IterNorm(6, num_groups=1, iterations=8)
    for _ in range(200):
        layer(batch())
    trained = layer(batch())
    torch.testing.assert_close(layer.eval()(batch()), trained, atol=1e-3, rtol=1e-3)
    # one image at a time gives the same
    alone = torch.cat([layer(row[None]) for row in batch()])
    torch.testing.assert_close(alone, layer(batch()), atol=1e-4, rtol=1e-4)


def test_iternorm_learns_a_scale_and_a_shift():
    layer = IterNorm(6)
    plain = layer(batch()).detach()
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 1.0)
    torch.testing.assert_close(layer(batch()), 2 * plain + 1)
