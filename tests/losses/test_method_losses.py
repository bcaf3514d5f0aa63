"""Losses of the methods against slow loops from the papers' formulas, and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from clsp_plugin.losses.barlow import barlow_loss
from clsp_plugin.losses.cross_view import cross_view_loss
from clsp_plugin.losses.dcl import dcl_loss
from clsp_plugin.losses.feature import feature_contrast_loss
from clsp_plugin.losses.ressl import ressl_loss
from clsp_plugin.losses.vibcreg import vibcreg_loss
from clsp_plugin.losses.vicreg import off_diagonal, vicreg_loss

N, D = 7, 5


def embeddings(number, seed=0, rows=N):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, D, generator=generator) for _ in range(number)]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def columns(z):
    """The features of a batch as lists of numbers in double precision."""
    return z.double().T.tolist()


def covariance(x, y):
    """Sum of products of what is centred."""
    return sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True))


def standardised(x):
    deviation = math.sqrt(covariance(x, x) / len(x) + 1e-5)
    return [(value - mean(x)) / deviation for value in x]


def test_barlow_is_the_formula():
    z1, z2 = embeddings(2)
    a, b = ([standardised(c) for c in columns(z)] for z in (z1, z2))
    expected = 0.0
    for i in range(D):
        for j in range(D):
            entry = mean(x * y for x, y in zip(a[i], b[j], strict=True))
            expected += (1 - entry) ** 2 if i == j else 0.01 * entry**2
    value = barlow_loss(z1, z2, lamb=0.01, scale_loss=0.3).item()
    assert value == pytest.approx(0.3 * expected, rel=1e-4)


def test_barlow_closed_form():
    # orthogonal features of variance 1: the correlation is the identity, up to 1e-5 on a variance
    z = torch.tensor([[1.0, 1.0], [1, -1], [-1, 1], [-1, -1]])
    assert barlow_loss(z, z).item() == pytest.approx(0, abs=1e-9)
    # the same feature twice: both off-diagonal entries are 1
    twice = z[:, :1].repeat(1, 2)
    assert barlow_loss(twice, twice, lamb=0.5, scale_loss=1.0).item() == pytest.approx(1, rel=1e-4)
    # the other sign: 1 - C_ii is 2
    assert barlow_loss(z, -z, scale_loss=1.0).item() == pytest.approx(8, rel=1e-4)


def variance_term(z):
    """Of VICReg: a hinge on each feature's standard deviation."""
    deviations = (math.sqrt(covariance(c, c) / (len(c) - 1) + 1e-4) for c in columns(z))
    return mean(max(0.0, 1 - deviation) for deviation in deviations)


def off_diagonal_pairs():
    return [(i, j) for i in range(D) for j in range(D) if i != j]


def test_vicreg_is_the_formula():
    z1, z2 = (0.7 * z for z in embeddings(2))
    invariance = mean((z1 - z2).double().square().flatten().tolist())
    spread = variance_term(z1) + variance_term(z2)
    decorrelation = 0.0
    for z in (z1, z2):
        c = columns(z)
        squares = ((covariance(c[i], c[j]) / (N - 1)) ** 2 for i, j in off_diagonal_pairs())
        decorrelation += sum(squares) / D
    expected = 3 * invariance + 2 * spread + 5 * decorrelation
    value = vicreg_loss(z1, z2, sim_loss_weight=3.0, var_loss_weight=2.0, cov_loss_weight=5.0)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_vicreg_of_a_collapsed_batch():
    z = torch.ones(N, D)
    # equal, no covariance, and each standard deviation is sqrt(1e-4): 25 * 2 * (1 - 0.01)
    assert vicreg_loss(z, z).item() == pytest.approx(49.5, rel=1e-6)


def test_vibcreg_is_the_formula():
    z1, z2 = (0.7 * z for z in embeddings(2))
    invariance = mean((z1 - z2).double().square().flatten().tolist())
    spread = variance_term(z1) + variance_term(z2)
    decorrelation = 0.0
    for z in (z1, z2):
        c = columns(z)
        for i, j in off_diagonal_pairs():
            norms = covariance(c[i], c[i]) * covariance(c[j], c[j])
            decorrelation += covariance(c[i], c[j]) ** 2 / norms / D**2
    expected = 3 * invariance + 2 * spread + 5 * decorrelation
    value = vibcreg_loss(z1, z2, sim_loss_weight=3.0, var_loss_weight=2.0, cov_loss_weight=5.0)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_vibcreg_ignores_the_scale_of_what_does_not_correlate():
    z = torch.tensor([[1.0, 1.0], [1, -1], [-1, 1], [-1, -1]])
    terms = {"sim_loss_weight": 0.0, "var_loss_weight": 0.0}
    assert vibcreg_loss(z, 9 * z, **terms).item() == pytest.approx(0, abs=1e-9)
    twice = z[:, :1].repeat(1, 2)  # correlation 1 in 2 of 4 entries, in both views
    assert vibcreg_loss(twice, 9 * twice, **terms).item() == pytest.approx(200, rel=1e-5)


def test_off_diagonal():
    matrix = torch.arange(9).view(3, 3)
    assert off_diagonal(matrix).tolist() == [1, 2, 3, 5, 6, 7]


def cosine(a, b):
    return float(F.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_cross_view_is_the_formula(temperature):
    x, y = embeddings(2)
    terms = []
    for i in range(N):
        weights = [math.exp(cosine(x[i], y[j]) / temperature) for j in range(N)]
        terms.append(-math.log(weights[i] / sum(weights)))
    value = cross_view_loss(x, y, temperature).item()
    assert value == pytest.approx(mean(terms), rel=1e-4)


def test_cross_view_closed_form():
    # own at cosine 1, two others at 0
    value = cross_view_loss(torch.eye(3), 5 * torch.eye(3), 0.5).item()
    assert value == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-6)


def test_ressl_is_the_formula():
    query, key, queue = (F.normalize(z, dim=1) for z in embeddings(3))
    terms = []
    for q, k in zip(query.double(), key.double(), strict=True):
        weights = [
            [math.exp(float(x @ entry) / t) for entry in queue.double()]
            for x, t in ((q, 0.1), (k, 0.04))
        ]
        p, target = ([w / sum(row) for w in row] for row in weights)
        terms.append(-sum(a * math.log(b) for a, b in zip(target, p, strict=True)))
    value = ressl_loss(query, key, queue, 0.1, 0.04).item()
    assert value == pytest.approx(mean(terms), rel=1e-4)


def test_ressl_of_a_key_that_knows_nothing():
    # equal similarities: a uniform target and a uniform prediction, the entropy of 4 entries
    queue, z = torch.eye(4), torch.full((2, 4), 0.5)
    assert ressl_loss(z, z, queue, 0.1, 0.04).item() == pytest.approx(math.log(4), rel=1e-6)


def test_ressl_sends_no_gradient_to_the_key():
    query, key, queue = (z.requires_grad_() for z in embeddings(3))
    ressl_loss(query, key, queue, 0.1, 0.04).backward()
    assert key.grad is None
    assert query.grad.abs().sum() > 0


@pytest.mark.parametrize("views", [2, 3])
def test_dcl_is_the_formula(views):
    z = torch.cat(embeddings(views))
    indexes = torch.arange(N).repeat(views)
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [cosine(z[i], z[j]) / 0.2 for j in others if indexes[j] == indexes[i]]
        negatives = [cosine(z[i], z[j]) / 0.2 for j in others if indexes[j] != indexes[i]]
        terms.append(-mean(positives) + math.log(sum(map(math.exp, negatives))))
    assert dcl_loss(z, indexes, 0.2).item() == pytest.approx(mean(terms), rel=1e-4)


def test_dcl_closed_form():
    # the positive at cosine 1, two negatives at 0; the positive is not in the denominator
    value = dcl_loss(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1]), 0.5).item()
    assert value == pytest.approx(math.log(2) - 2, rel=1e-6)


def test_feature_contrast_is_the_formula():
    z1, z2, k1, k2 = embeddings(4)
    on, off = [], []
    for k, z in ((k1, z2), (k2, z1)):
        for i, a in enumerate(columns(k)):
            for j, b in enumerate(columns(z)):
                norms = math.hypot(*a) * math.hypot(*b)
                entry = sum(x * y for x, y in zip(a, b, strict=True)) / norms
                (on if i == j else off).append((1 - entry) ** 2 if i == j else entry**2)
    expected = 5 * (math.sqrt(mean(on)) + math.sqrt(mean(off)))
    assert feature_contrast_loss(z1, z2, k1, k2).item() == pytest.approx(expected, rel=1e-5)


def test_feature_contrast_closed_form():
    z = torch.tensor([[1.0, 1.0], [1, -1], [-1, 1], [-1, -1]])
    assert feature_contrast_loss(z, z, 3 * z, z).item() == pytest.approx(0, abs=1e-5)
    # the features have changed places: 1 on the diagonal's squares, 1 off it
    assert feature_contrast_loss(z, z, z.flip(1), z.flip(1)).item() == pytest.approx(10, rel=1e-5)


@pytest.mark.parametrize("loss", [barlow_loss, vicreg_loss, vibcreg_loss])
def test_second_moments_are_taken_in_float32(loss):
    z1, z2 = embeddings(2)
    expected = loss(z1.bfloat16().float(), z2.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(z1.bfloat16(), z2.bfloat16()), expected)
