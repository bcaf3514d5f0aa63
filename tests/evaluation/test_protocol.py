import json

import pytest
import torch

from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation import protocol as protocols
from clsp_plugin.evaluation.features import Features
from clsp_plugin.evaluation.knn import weighted_knn
from clsp_plugin.evaluation.linear import train_probe
from clsp_plugin.evaluation.protocol import evaluate_knn, evaluate_linear, split_heldout

FAST = {"epochs": 5, "milestones": (3,), "batch_size": 32}
LRS = (0.001, 0.1, 3.0)


def make_features(n, seed, classes=4, views=2):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(7))
    targets = torch.arange(n) % classes
    feats = centres[targets] + 1.2 * torch.randn(views, n, 6, generator=generator)
    return Features(feats, targets)


TRAIN, TEST = make_features(200, 0), make_features(150, 1, views=1)


def shuffled(seed):
    order = torch.randperm(len(TEST), generator=torch.Generator().manual_seed(seed))
    return Features(TEST.feats, TEST.targets[order])


def run_knn(test, protocol):
    return evaluate_knn(TRAIN, test, protocol, (1, 5, 20, 50, 100))


def run_linear(test, protocol):
    return evaluate_linear(TRAIN, test, protocol, LRS, **FAST)


@pytest.mark.parametrize("run", [run_knn, run_linear])
def test_strict_never_chooses_by_the_test_labels(run):
    honest = run(TEST, "strict")
    for seed in range(8):
        other = run(shuffled(seed), "strict")
        for key in ("chosen", "candidates", "heldout_top1"):
            assert other[key] == honest[key]
        assert other["top1"] < honest["top1"]  # while the score does look at them


def test_paper_chooses_k_by_the_test_labels():
    chosen = {run_knn(shuffled(seed), "paper")["chosen"]["k"] for seed in range(8)}
    assert len(chosen) > 1


def test_strict_knn_by_hand():
    out = evaluate_knn(TRAIN, TEST, ks=(50, 1, 5), temperature=0.2, seed=3)
    stay, held = split_heldout(TRAIN.targets, seed=3)
    bank, queries = TRAIN.subset(stay), TRAIN.subset(held)
    choice = weighted_knn(
        bank.feats[0], bank.targets, queries.feats[0], queries.targets, (1, 5, 50), 0.2, 4
    )
    best = max(choice, key=lambda k: (choice[k][0], -k))
    final = weighted_knn(
        TRAIN.feats[0], TRAIN.targets, TEST.feats[0], TEST.targets, (best,), 0.2, 4
    )[best]
    assert out["protocol"] == "strict"  # the default
    assert out["task"] == "knn"
    assert out["chosen"] == {"k": best}
    assert (out["top1"], out["top5"]) == final
    assert out["heldout_top1"] == choice[best][0]
    assert out["candidates"] == [
        {"k": k, "top1": top1, "top5": top5} for k, (top1, top5) in choice.items()
    ]
    assert (out["num_train"], out["num_test"]) == (200, 150)
    assert out["seconds"] > 0
    assert out["settings"] == {"temperature": 0.2, "seed": 3}
    assert json.loads(json.dumps(out)) == out


def test_strict_linear_by_hand():
    out = evaluate_linear(TRAIN, TEST, "strict", LRS, seed=2, **FAST)
    stay, held = split_heldout(TRAIN.targets, seed=2)
    choice = train_probe(TRAIN.subset(stay), 4, LRS, seed=2, **FAST).accuracy(TRAIN.subset(held))
    best = max(LRS, key=lambda lr: choice[lr][0])
    final = train_probe(TRAIN, 4, [best], seed=2, **FAST).accuracy(TEST)[best]
    assert out["task"] == "linear"
    assert out["chosen"] == {"lr": best}
    assert (out["top1"], out["top5"]) == final
    assert out["heldout_top1"] == choice[best][0]
    assert [c["lr"] for c in out["candidates"]] == list(LRS)
    assert json.loads(json.dumps(out)) == out


def test_paper_knn_reports_the_best_on_the_test_images():
    out = run_knn(TEST, "paper")
    scores = weighted_knn(
        TRAIN.feats[0], TRAIN.targets, TEST.feats[0], TEST.targets, (1, 5, 20, 50, 100), 0.07, 4
    )
    assert out["top1"] == max(top1 for top1, _ in scores.values())
    assert scores[out["chosen"]["k"]] == (out["top1"], out["top5"])
    assert "heldout_top1" not in out


def test_paper_linear_takes_the_published_rate():
    out = evaluate_linear(TRAIN, TEST, "paper", [0.1], **FAST)
    assert out["chosen"] == {"lr": 0.1}
    assert out["top1"] == train_probe(TRAIN, 4, [0.1], **FAST).accuracy(TEST)[0.1][0]
    with pytest.raises(ClspError, match=r"3 were given \(0\.001, 0\.1, 3\.0\)"):
        evaluate_linear(TRAIN, TEST, "paper", LRS, **FAST)


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_ties_go_to_the_smaller_k(protocol):
    # beyond the bank every k is the whole bank, so they are equal
    out = evaluate_knn(TRAIN, TEST, protocol, (900, 500, 700))
    assert out["chosen"] == {"k": 500}


def test_ties_go_to_the_first_rate(monkeypatch):
    monkeypatch.setattr(protocols, "train_probe", lambda *a, **k: FakeProbe(a[2]))
    assert evaluate_linear(TRAIN, TEST, "strict", (3.0, 0.1))["chosen"] == {"lr": 3.0}
    assert evaluate_linear(TRAIN, TEST, "strict", (0.1, 3.0))["chosen"] == {"lr": 0.1}


class FakeProbe:
    def __init__(self, lrs, scores=None):
        self.lrs, self.scores = lrs, scores or {}

    def accuracy(self, test):
        return {lr: (self.scores.get(lr, 50.0), 90.0) for lr in self.lrs}


def test_a_rate_that_diverged_is_never_chosen(monkeypatch):
    scores = {1.0: float("nan"), 0.1: 0.0}
    monkeypatch.setattr(protocols, "train_probe", lambda *a, **k: FakeProbe(a[2], scores))
    out = evaluate_linear(TRAIN, TEST, "strict", (1.0, 0.1))
    assert out["chosen"] == {"lr": 0.1}
    assert out["candidates"][0] == {"lr": 1.0, "top1": None, "top5": 90.0}


@pytest.mark.parametrize("evaluate", [evaluate_knn, evaluate_linear])
def test_unknown_protocol(evaluate):
    with pytest.raises(ClspError, match="did you mean 'strict'"):
        evaluate(TRAIN, TEST, "strikt")


@pytest.mark.parametrize("evaluate", [evaluate_knn, evaluate_linear])
def test_classes_that_training_lacks(evaluate):
    strange = Features(TEST.feats, TEST.targets + 1)
    with pytest.raises(ClspError, match="class number 4 and the training images only 0 to 3"):
        evaluate(TRAIN, strange)


def test_heldout_is_a_stratified_tenth():
    targets = torch.cat([torch.full((n,), label) for label, n in enumerate((100, 55, 10, 2, 1))])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    stay, held = split_heldout(targets)
    assert targets[held].bincount(minlength=5).tolist() == [10, 6, 1, 1, 0]
    assert torch.equal(torch.cat([stay, held]).sort().values, torch.arange(len(targets)))
    assert torch.equal(held, held.sort().values)
    assert not torch.equal(held, split_heldout(targets, seed=1)[1])
    assert torch.equal(held, split_heldout(targets)[1])


def test_too_few_images_to_hold_any_out():
    with pytest.raises(ClspError, match="4 training images are too few"):
        evaluate_knn(make_features(4, 0), TEST)
    assert evaluate_knn(make_features(4, 0), TEST, "paper")["num_train"] == 4
