"""Losses over prototypes against slow loops from the papers' formulas, and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from clsp_plugin.losses.prototypes import assignment_loss, sinkhorn, swapped_prediction_loss


def oracle_sinkhorn(scores, epsilon, iterations):
    images, prototypes = scores.shape
    q = [[math.exp(float(s) / epsilon) for s in row] for row in scores.double()]
    for _ in range(iterations):
        for k in range(prototypes):
            mass = sum(q[i][k] for i in range(images))
            for i in range(images):
                q[i][k] /= mass * prototypes
        for i in range(images):
            mass = sum(q[i])
            q[i] = [value / mass / images for value in q[i]]
    return torch.tensor(q) * images


def oracle_swapped(scores, targets, temperature):
    terms = []
    for v, q in enumerate(targets):
        for u, p in enumerate(scores):
            if u == v:
                continue
            total = 0.0
            for i in range(len(p)):
                weights = [math.exp(float(s) / temperature) for s in p[i]]
                total -= sum(
                    float(q[i, k]) * math.log(w / sum(weights)) for k, w in enumerate(weights)
                )
            terms.append(total / len(p))
    return sum(terms) / len(terms)


def cosines(*shape):
    torch.manual_seed(0)
    z, c = torch.randn(shape[0], 5), torch.randn(shape[1], 5)
    return F.normalize(z, dim=1) @ F.normalize(c, dim=1).T


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.5, 1), (0.03, 10)])
def test_sinkhorn_is_the_alternation(epsilon, iterations):
    scores = cosines(7, 4)
    expected = oracle_sinkhorn(scores, epsilon, iterations).float()
    torch.testing.assert_close(
        sinkhorn(scores, epsilon, iterations), expected, atol=1e-5, rtol=1e-4
    )


def test_sinkhorn_shares_out_evenly_and_does_not_overflow():
    scores = cosines(12, 4)
    q = sinkhorn(scores, 0.05, 200)
    torch.testing.assert_close(q.sum(1), torch.ones(12))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0), atol=1e-2, rtol=0)
    assert torch.isfinite(sinkhorn(scores, 0.002, 3)).all()


def test_sinkhorn_of_equal_scores_is_uniform():
    torch.testing.assert_close(sinkhorn(torch.zeros(6, 3), 0.05, 3), torch.full((6, 3), 1 / 3))


@pytest.mark.parametrize("views", [2, 5])
def test_swapped_prediction_is_the_formula(views):
    torch.manual_seed(1)
    scores = [torch.randn(4, 6) for _ in range(views)]
    targets = [torch.randn(4, 6).softmax(1) for _ in range(2)]
    value = swapped_prediction_loss(scores, targets, 0.3).item()
    assert value == pytest.approx(oracle_swapped(scores, targets, 0.3), rel=1e-5)


def test_swapped_prediction_closed_form():
    # uniform predictions: log of the number of prototypes, whatever the targets
    scores = [torch.zeros(3, 8)] * 2
    targets = [torch.eye(8)[:3], torch.full((3, 8), 1 / 8)]
    value = swapped_prediction_loss(scores, targets, 0.1).item()
    assert value == pytest.approx(math.log(8), rel=1e-6)


def test_a_view_does_not_predict_its_own_target():
    targets = [torch.eye(4), torch.eye(4).flip(0)]
    own = [20 * target for target in targets]  # each view sure of its own target
    swapped = list(reversed(own))
    assert swapped_prediction_loss(own, targets, 1.0) > 10
    assert swapped_prediction_loss(swapped, targets, 1.0) < 1e-3


def test_assignment_loss_is_the_formula():
    torch.manual_seed(2)
    scores = [torch.randn(5, 4) for _ in range(3)]
    assignments = torch.tensor([0, 3, -1, 2, 2])
    terms = []
    for p in scores:
        for i, a in enumerate(assignments.tolist()):
            if a >= 0:
                weights = [math.exp(float(s) / 0.1) for s in p[i]]
                terms.append(-math.log(weights[a] / sum(weights)))
    value = assignment_loss(scores, assignments, 0.1).item()
    assert value == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_assignment_loss_without_clusters_is_zero_and_moves_nothing():
    scores = torch.randn(5, 4, requires_grad=True)
    loss = assignment_loss([scores], torch.full((5,), -1), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad.abs().sum() == 0
