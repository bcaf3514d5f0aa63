"""Schedules, LARS and the momentum update against hand-written loops."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from clsp_plugin.errors import ClspError
from clsp_plugin.methods.optim import WarmupCosine, build_optimizer, ema_tau, ema_update


def rates(warmup, total, start, base=0.5, end=0.0, steps=None):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    schedule = WarmupCosine(optimizer, warmup, total, start, end)
    out = []
    for _ in range(steps or total):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


def test_schedule_is_the_authors_recursion():
    # their per-epoch recursion, written out: from 1e-3 up to 0.5 over 10 epochs, cosine to 0
    lr, expected = 1e-3, []
    for epoch in range(100):
        if epoch and epoch < 10:
            lr += (0.5 - 1e-3) / 9
        elif epoch == 10:
            lr = 0.5
        elif epoch > 10:
            ratio = 1 + math.cos(math.pi * (epoch - 10) / 90)
            lr *= ratio / (1 + math.cos(math.pi * (epoch - 11) / 90))
        expected.append(lr)
    assert rates(10, 100, 1e-3) == pytest.approx(expected, rel=1e-9)


def test_schedule_ends_and_edges():
    assert rates(0, 10, 1e-3)[0] == 0.5  # no warm-up starts at the base rate
    assert rates(0, 10, 1e-3, end=0.1, steps=11)[-1] == pytest.approx(0.1)
    assert rates(1, 4, 0.2)[0] == 0.2  # one epoch of warm-up does not divide by zero
    assert all(0 < r <= 0.5 for r in rates(10, 2, 1e-3))  # shorter than its warm-up


def test_static_groups_keep_their_rate():
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.3, "static_lr": True},
        {"params": [nn.Parameter(torch.zeros(1))]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    schedule = WarmupCosine(optimizer, 2, 10, 1e-3)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[1]["lr"] != 0.5


def lars_loop(params, grads, *, lr, momentum, wd, eta, clip, exclude, steps):
    """LARS as You et al. state it, with the clipping that SSL code uses."""
    params = [p.clone() for p in params]
    buffers = [None] * len(params)
    for _ in range(steps):
        for i, gradient in enumerate(grads):
            g = gradient.clone()
            if not (exclude and params[i].ndim == 1):
                norm, gnorm = params[i].norm(), gradient.norm()
                trust = eta * norm / (gnorm + wd * norm + 1e-8)
                if clip:
                    trust = min(trust / lr, torch.tensor(1.0))
                g = (g + wd * params[i]) * trust
            buffers[i] = g.clone() if buffers[i] is None else momentum * buffers[i] + g
            params[i] = params[i] - lr * buffers[i]
    return params


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("exclude", [True, False])
def test_lars_is_the_paper_s(clip, exclude):
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(4)]
    grads = [torch.randn(4, 3), torch.randn(4)]
    params = [nn.Parameter(p.clone()) for p in start]
    cfg = OmegaConf.create(
        {"name": "lars", "lr": 0.3, "weight_decay": 0.01, "exclude_bias_n_norm_wd": False,
         "kwargs": {"momentum": 0.9, "eta": 0.02, "clip_lr": clip, "exclude_bias_n_norm": exclude}}
    )  # fmt: skip
    optimizer = build_optimizer([{"name": "all", "params": params}], cfg)
    for _ in range(3):
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
    expected = lars_loop(
        start, grads, lr=0.3, momentum=0.9, wd=0.01, eta=0.02, clip=clip, exclude=exclude, steps=3
    )
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-5, atol=1e-6)


def test_weight_decay_spares_biases_and_norms_when_asked():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    cfg = OmegaConf.create({"name": "sgd", "lr": 0.1, "weight_decay": 0.1,
                            "exclude_bias_n_norm_wd": True, "kwargs": {}})  # fmt: skip
    optimizer = build_optimizer([{"name": "all", "params": module.parameters()}], cfg)
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.1 if p.ndim > 1 else 0.0)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [("sdg", {}, "did you mean 'sgd'"), ("sgd", {"eta": 1}, "do not fit sgd")],
)
def test_bad_optimisers_are_told(name, kwargs, message):
    cfg = OmegaConf.create({"name": name, "lr": 0.1, "weight_decay": 0.0,
                            "exclude_bias_n_norm_wd": False, "kwargs": kwargs})  # fmt: skip
    with pytest.raises(ClspError, match=message):
        build_optimizer([{"name": "all", "params": [nn.Parameter(torch.zeros(1))]}], cfg)


def test_momentum_schedule_and_update():
    assert ema_tau(0, 100, 0.99, 0.999) == 0.99
    assert ema_tau(100, 100, 0.99, 0.999) == 0.999
    assert ema_tau(50, 100, 0.99, 0.999) == pytest.approx(0.9945)
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * b.weight.detach() + 0.1 * a.weight.detach()
    ema_update(a, b, 0.9)
    torch.testing.assert_close(b.weight.detach(), expected)
