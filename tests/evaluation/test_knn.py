import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation import knn
from clsp_plugin.evaluation.knn import weighted_knn

KS = (1, 3, 5, 10, 20, 500)


def make_problem(n=60, m=41, dim=5, classes=8):
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(classes, dim, generator=generator)
    parts = []
    for number in (n, m):
        targets = torch.randint(0, classes, (number,), generator=generator)
        noise = 0.7 * torch.randn(number, dim, generator=generator)
        scale = 10 * torch.rand(number, 1, generator=generator) + 0.1
        parts += [(centres[targets] + noise) * scale, targets]
    return parts


def slow_knn(train, train_targets, test, test_targets, k, temperature, classes):
    """The formula in plain Python, in double precision."""

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    top1 = top5 = 0
    for query, target in zip(test.tolist(), test_targets.tolist(), strict=True):
        similar = [(cosine(query, image), i) for i, image in enumerate(train.tolist())]
        votes = [0.0] * classes
        for s, i in sorted(similar, reverse=True)[:k]:
            votes[train_targets[i].item()] += math.exp(s / temperature)
        ranking = sorted(range(classes), key=lambda c: (-votes[c], c))
        top1 += ranking[0] == target
        top5 += target in ranking[: min(5, k)]
    return 100.0 * top1 / len(test), 100.0 * top5 / len(test)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_against_a_loop_written_from_the_formula(temperature):
    problem = make_problem()
    out = weighted_knn(*problem, KS, temperature, 8)
    for k in KS:
        assert out[k] == pytest.approx(slow_knn(*problem, k, temperature, 8)), k
    assert len({top1 for top1, _ in out.values()}) > 2  # the cases differ, so they can tell


def test_against_scikit_learn():
    train, train_targets, test, test_targets = make_problem(n=200, m=150)
    out = weighted_knn(train, train_targets, test, test_targets, (5, 20), 0.07, 8)
    for k in (5, 20):
        oracle = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
        ).fit(train.double().numpy(), train_targets.numpy())
        right = oracle.predict(test.double().numpy()) == test_targets.numpy()
        assert out[k][0] == pytest.approx(100 * right.mean())


def test_closed_form():
    # one near neighbour of class 0 against two of class 1 that are further away
    angles = torch.tensor([0.1, 0.6, -0.6])
    bank = torch.stack([angles.cos(), angles.sin()], 1)
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    tie = (math.cos(0.1) - math.cos(0.6)) / math.log(2)  # where 2 exp(s'/T) = exp(s/T)
    for temperature, winner in ((0.99 * tie, 0), (1.01 * tie, 1)):
        out = weighted_knn(bank, labels, query, torch.tensor([winner]), [3], temperature, 2)
        assert out == {3: (100.0, 100.0)}


def test_chunks_change_nothing(monkeypatch):
    problem = make_problem()
    whole = weighted_knn(*problem, KS, 0.07, 8)
    monkeypatch.setattr(knn, "_CHUNK", 150)  # two test images at a time
    assert weighted_knn(*problem, KS, 0.07, 8) == whole


def test_memory_is_bounded_by_the_chunk(monkeypatch):
    monkeypatch.setattr(knn, "_CHUNK", 150)
    rows = []
    normalize = F.normalize
    monkeypatch.setattr(knn.F, "normalize", lambda x, dim: rows.append(len(x)) or normalize(x, dim))
    weighted_knn(*make_problem(), KS, 0.07, 8)
    assert rows[0] == 60
    assert max(rows[1:]) == 2
    assert sum(rows[1:]) == 41


def test_k_above_the_bank_is_the_whole_bank():
    problem = make_problem()
    out = weighted_knn(*problem, (60, 200), 0.07, 8)
    assert out[60] == out[200]


def test_the_order_of_ks_does_not_matter_and_is_kept():
    problem = make_problem()
    out = weighted_knn(*problem, (20, 1, 5), 0.07, 8)
    assert list(out) == [20, 1, 5]
    assert out == weighted_knn(*problem, (1, 5, 20), 0.07, 8)


def test_classes_default_to_those_of_training():
    problem = make_problem()
    assert weighted_knn(*problem, (5,)) == weighted_knn(*problem, (5,), 0.07, 8)


@pytest.mark.parametrize("ks", [(), (0,), (5, -1)])
def test_k_below_one_is_refused(ks):
    with pytest.raises(ClspError, match="1 or more"):
        weighted_knn(*make_problem(), ks, 0.07, 8)


def test_no_vote_overflows_at_a_small_temperature():
    feats = torch.eye(4)[[0, 0, 1, 1]]
    test = torch.tensor([[1.0, 0.1, 0.0, 0.0], [0.1, 1.0, 0.0, 0.0]])
    hits = weighted_knn(feats, torch.tensor([0, 0, 1, 1]), test, torch.tensor([0, 1]),
                        ks=(4,), temperature=1e-4)  # fmt: skip
    assert hits[4][0] == 100.0
