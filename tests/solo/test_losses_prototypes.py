"""Losses over prototypes give the numbers of solo-learn's, on the same inputs.

``SOLO_LEARN_DIR=path/to/solo-learn pytest tests/solo``
"""

import importlib
import os
import sys

import pytest
import torch
import torch.nn.functional as F

from clsp_plugin.losses.prototypes import assignment_loss, sinkhorn, swapped_prediction_loss

if "SOLO_LEARN_DIR" not in os.environ:
    pytest.skip("set SOLO_LEARN_DIR to a solo-learn clone", allow_module_level=True)


@pytest.fixture
def solo(monkeypatch):
    """Import a file of solo-learn's on its own: its packages import what is not installed."""

    def load(path):
        monkeypatch.syspath_prepend(os.environ["SOLO_LEARN_DIR"])
        name = path.replace("/", ".").removesuffix(".py").replace(".", "_")
        file = os.path.join(os.environ["SOLO_LEARN_DIR"], path)
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def scores(views, seed=0, prototypes=11):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, prototypes, generator=generator).tanh() for _ in range(views)]


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn(solo, iterations):
    theirs = solo("solo/utils/sinkhorn_knopp.py").SinkhornKnopp(iterations, 0.05, 1)
    (p,) = scores(1)
    torch.testing.assert_close(sinkhorn(p, 0.05, iterations), theirs(p), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("views", [2, 8])
def test_swav(solo, views):
    p, q = scores(views), [s.softmax(1) for s in scores(2, seed=1)]
    theirs = solo("solo/losses/swav.py").swav_loss_func(p, q, 0.1)
    torch.testing.assert_close(swapped_prediction_loss(p, q, 0.1), theirs, atol=1e-5, rtol=1e-5)


def test_dino_with_its_center_and_temperatures(solo, tiny):
    from clsp_plugin.engine.config import parse_cfg
    from clsp_plugin.methods import METHODS

    warm = ("method_kwargs.warmup_teacher_temperature_epochs=3", "max_epochs=6",
            "method_kwargs.num_prototypes=11")  # fmt: skip
    cfg = parse_cfg(tiny("dino", *warm), METHODS)
    cfg.data.num_classes = 10
    ours = METHODS["dino"](cfg)
    theirs = solo("solo/losses/dino.py").DINOLoss(
        num_prototypes=11, warmup_teacher_temp=0.04, teacher_temp=0.07,
        warmup_teacher_temp_epochs=3, num_epochs=6,
    )  # fmt: skip
    for epoch in range(6):
        theirs.epoch = epoch
        assert ours.teacher_temperature(epoch) == pytest.approx(
            theirs.teacher_temp_schedule[epoch], rel=1e-9
        )
    theirs.epoch = 0
    for seed in range(4):  # the center moves
        student, teacher = scores(2, seed=seed), scores(2, seed=100 + seed)
        value = swapped_prediction_loss(student, ours._teach(teacher), 0.1)
        expected = theirs(torch.cat(student), torch.cat(teacher))
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.center, theirs.center, atol=1e-6, rtol=1e-5)


def test_deepclusterv2(solo):
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(3, 2, 6, 11, generator=generator)
    assignments = torch.randint(-1, 11, (3, 6), generator=generator)
    theirs = solo("solo/losses/deepclusterv2.py").deepclusterv2_loss_func(p, assignments, 0.1)
    ours = sum(assignment_loss(list(p[h]), assignments[h], 0.1) for h in range(3)) / 3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_prototypes_are_weight_norm_of_length_one():
    from clsp_plugin.methods.prototypes import Prototypes

    ours = Prototypes(8, 11)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 11, bias=False))
    with torch.no_grad():
        theirs.parametrizations.weight.original0.fill_(1)
        theirs.parametrizations.weight.original1.copy_(ours.weight)
    z = F.normalize(torch.randn(5, 8), dim=1)
    torch.testing.assert_close(ours(z), theirs(z))
