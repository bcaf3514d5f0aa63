import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.features import Features
from clsp_plugin.evaluation.logistic import L2, Classifier, fit_logistic


def make_features(n=120, dim=5, classes=3, seed=0, shift=4.0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    targets = torch.randint(0, classes, (n,), generator=generator)
    feats = shift + centres[targets] + torch.randn(1, n, dim, generator=generator)
    return Features(feats, targets)


def test_the_penalties_are_45_from_1e_6_to_1e5():
    assert len(L2) == 45
    assert (min(L2), max(L2)) == (pytest.approx(1e-6), pytest.approx(1e5))
    steps = np.diff(np.log10(L2))
    assert steps == pytest.approx(np.full(44, 0.25))


def test_it_is_what_scikit_learn_finds():
    train, values = make_features(), (1e-4, 1e-2, 1.0, 100.0)
    fitted = fit_logistic(train, 3, values)
    assert list(fitted) == sorted(values, reverse=True)
    x, y = train.feats[0].double().numpy(), train.targets.numpy()
    for l2, ours in fitted.items():
        theirs = LogisticRegression(C=1 / (l2 * len(y)), tol=1e-10, max_iter=10_000).fit(x, y)
        assert ours.converged
        # adding a number to every class's bias changes nothing
        bias = ours.bias.double().numpy()
        close = {"atol": 3e-3, "rtol": 1e-2}
        np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, **close)
        np.testing.assert_allclose(
            bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), **close
        )


def test_under_a_huge_penalty_only_the_frequencies_are_left():
    train = make_features()
    (strong,) = fit_logistic(train, 3, [1e5]).values()
    assert strong.weight.abs().max() < 1e-4
    counts = train.targets.bincount(minlength=3).float()
    torch.testing.assert_close(strong.bias.softmax(0), counts / counts.sum(), atol=1e-3, rtol=1e-3)


def test_a_fit_does_not_depend_on_those_before_it():
    train = make_features()
    alone = fit_logistic(train, 3, [0.01])[0.01]
    after = fit_logistic(train, 3, [10.0, 1.0, 0.1, 0.01])[0.01]
    torch.testing.assert_close(after.weight, alone.weight, atol=2e-3, rtol=1e-2)


def test_it_says_when_it_stopped_early():
    train = make_features()
    assert not fit_logistic(train, 3, [1e-6], max_iter=2)[1e-6].converged
    assert fit_logistic(train, 3, [1e-2])[1e-2].converged


def test_scores_are_counts_and_means_of_classes():
    # class 0: 2 of 4 right, class 1: 1 of 1, class 2: none to be found, class 3: 0 of 1
    feats = torch.eye(4)[[0, 0, 1, 2, 1, 0]][None]
    test = Features(torch.cat([feats, feats.flip(1)]), torch.tensor([0, 0, 0, 0, 1, 3]))
    scores = Classifier(torch.eye(4), torch.zeros(4)).scores(test)
    assert scores["top1"] == pytest.approx(50.0)
    assert scores["mean_class"] == pytest.approx((50 + 100 + 0) / 3)


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0, 1.0], [float("nan")], [float("inf")]])
def test_bad_penalties(bad):
    with pytest.raises(ClspError, match="one or more numbers above 0"):
        fit_logistic(make_features(), 3, bad)
    with pytest.raises(ClspError, match="max_iter=0"):
        fit_logistic(make_features(), 3, [1.0], max_iter=0)


def test_progress_is_shown_only_when_it_has_a_name(capfd):
    fit_logistic(make_features(), 3, [1.0])
    assert capfd.readouterr().err == ""
    fit_logistic(make_features(), 3, [1.0], desc="penalties")
    assert "penalties" in capfd.readouterr().err
