import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clsp_plugin.data.keyed_random import Purpose, derive_key, key_uniform, keys_for
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation import linear
from clsp_plugin.evaluation.features import Features
from clsp_plugin.evaluation.linear import Probe, train_probe


def make_features(n=50, dim=6, classes=4, views=2, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    targets = torch.randint(0, classes, (n,), generator=generator)
    feats = centres[targets] + spread * torch.randn(views, n, dim, generator=generator)
    return Features(feats, targets)


def reference(train, classes, lr, epochs, milestones, batch_size, seed):
    """torch's layer, loss, optimiser and schedule, on the same visits."""
    layer = nn.Linear(train.dim, classes)
    start = linear._initial(train.dim, classes, seed, torch.device("cpu"))
    layer.load_state_dict({"weight": start[:, :-1], "bias": start[:, -1]})
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for epoch in range(epochs):
        keys = keys_for(derive_key(seed, Purpose.PROBE, epoch), torch.arange(len(train)))
        view = (key_uniform(keys, 1)[:, 0] >= 0.5).long() * (len(train.feats) - 1)
        order = linear._visits(len(train.feats), len(train), epoch, seed, torch.device("cpu"))
        for images in (order % len(train)).split(batch_size):
            x = torch.stack([train.feats[view[i], i] for i in images])
            loss = F.cross_entropy(layer(x), train.targets[images])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return layer


@pytest.mark.parametrize("views", [1, 2])
def test_every_rate_is_what_torch_trains_alone(views):
    train = make_features(views=views)
    schedule = {"epochs": 7, "milestones": (3, 5), "batch_size": 16, "seed": 4}
    probe = train_probe(train, 4, (0.3, 1.0, 0.01), **schedule)
    assert probe.lrs == (0.3, 1.0, 0.01)
    for lr, weight, bias in zip(probe.lrs, probe.weights, probe.biases, strict=True):
        layer = reference(train, 4, lr, **schedule)
        torch.testing.assert_close(weight, layer.weight.detach(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(bias, layer.bias.detach(), atol=2e-5, rtol=1e-4)


def test_the_schedule_is_the_authors_by_default(monkeypatch):
    rates = []
    step = linear._step
    monkeypatch.setattr(
        linear, "_step", lambda *a: rates.append((len(a[2]), a[4].item())) or step(*a)
    )
    train_probe(make_features(n=300), 4, [1.0])
    assert len(rates) == 200  # 100 epochs of 256 and 44 images
    assert [size for size, _ in rates[:2]] == [256, 44]
    assert [rate for _, rate in rates[::2]] == pytest.approx([1.0] * 60 + [0.1] * 20 + [0.01] * 20)


def test_every_image_once_an_epoch_and_views_and_order_change():
    visits = [linear._visits(2, 1000, epoch, 0, torch.device("cpu")) for epoch in (0, 1)]
    for rows in visits:
        assert sorted((rows % 1000).tolist()) == list(range(1000))
        assert 400 < (rows >= 1000).sum() < 600
    assert (visits[0] % 1000 == visits[1] % 1000).float().mean() < 0.02
    views = [torch.empty(1000).index_put((rows % 1000,), rows // 1000 * 1.0) for rows in visits]
    assert 0.4 < (views[0] == views[1]).float().mean() < 0.6


def test_the_start_is_that_of_a_linear_layer():
    start = linear._initial(400, 50, 0, torch.device("cpu"))
    bound = 1 / math.sqrt(400)
    assert start.shape == (50, 401)
    assert start.abs().max() <= bound
    assert start.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert start.mean().abs() < bound / 50
    assert not torch.equal(start, linear._initial(400, 50, 1, torch.device("cpu")))


def test_seeds_differ_and_repeat_without_touching_global_randomness():
    train = make_features()
    state = torch.get_rng_state()
    a, b, c = (train_probe(train, 4, [0.1], epochs=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.weights, b.weights)
    assert not torch.allclose(a.weights, c.weights)


def test_the_number_of_threads_is_restored():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train_probe(make_features(), 4, [0.1], epochs=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_it_learns():
    probe = train_probe(make_features(400, spread=0.3), 4, [0.1, 1.0], epochs=20)
    scores = probe.accuracy(make_features(200, views=1, seed=1, spread=0.3))
    assert all(top1 > 95 for top1, _ in scores.values())


def test_accuracy_counts_the_plain_view():
    weights = torch.eye(7)[None]
    plain = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3]]).repeat(7, 1)
    test = Features(torch.stack([plain, -plain]), torch.arange(7))
    scores = Probe((1.0,), weights, torch.zeros(1, 7)).accuracy(test)
    assert scores == {1.0: pytest.approx((100 / 7, 500 / 7))}
    bias = torch.tensor([[0.0, 0, 0, 0, 0, 0, 100]])
    few = Features(test.feats[:, 6:], torch.tensor([6]))
    assert Probe((1.0,), weights, bias).accuracy(few) == {1.0: (100.0, 100.0)}
    first = Features(test.feats[:, :1], torch.tensor([0]))
    assert Probe((1.0,), weights, torch.zeros(1, 7)).accuracy(first) == {1.0: (100.0, 100.0)}


def test_top5_of_few_classes_is_everything():
    train = make_features(classes=3)
    assert train_probe(train, 3, [0.1], epochs=1).accuracy(train)[0.1][1] == 100.0


def test_accuracy_in_parts_is_the_same(monkeypatch):
    train = make_features()
    probe = train_probe(train, 4, [0.1, 1.0], epochs=2)
    whole = probe.accuracy(train)
    monkeypatch.setattr(linear, "_ROWS", 7)
    assert probe.accuracy(train) == whole


def test_a_rate_that_diverges_leaves_the_others_alone():
    train = make_features()
    train = Features(train.feats * 1e18, train.targets)
    probe = train_probe(train, 4, [1e30, 1e-19], epochs=20)
    assert probe.finite == (False, True)
    scores = probe.accuracy(train)
    assert all(math.isnan(value) for value in scores[1e30])
    assert scores[1e-19][0] > 50
    alone = train_probe(train, 4, [1e-19], epochs=20)
    torch.testing.assert_close(probe.weights[1], alone.weights[0])


def test_all_rates_diverged_is_an_error():
    train = make_features()
    train = Features(train.feats * 1e18, train.targets)
    with pytest.raises(
        ClspError, match=r"diverged at every learning rate given \(1e\+30, 1e\+31\)"
    ):
        train_probe(train, 4, [1e30, 1e31], epochs=3)


@pytest.mark.parametrize("lrs", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_bad_rates_are_refused(lrs):
    with pytest.raises(ClspError, match="one or more above 0"):
        train_probe(make_features(), 4, lrs)


def test_progress_is_shown_only_when_it_has_a_name(capfd):
    train_probe(make_features(), 4, [0.1], epochs=1)
    assert capfd.readouterr().err == ""
    train_probe(make_features(), 4, [0.1], epochs=1, desc="probe")
    assert "probe" in capfd.readouterr().err
