"""Losses over prototypes give the numbers of solo-learn's, on the same inputs.

``SOLO_LEARN_DIR=path/to/solo-learn pytest tests/solo``
"""

import importlib
import os

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from clsp_plugin.config.training import parse_cfg
from clsp_plugin.losses.prototypes import assignment_loss, sinkhorn, swapped_prediction_loss
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.prototypes import Prototypes

if "SOLO_LEARN_DIR" not in os.environ:
    pytest.skip("set SOLO_LEARN_DIR to a solo-learn clone", allow_module_level=True)


@pytest.fixture
def solo(monkeypatch):
    """Import from the clone: ``solo("solo.losses.swav").swav_loss_func``."""
    monkeypatch.syspath_prepend(os.environ["SOLO_LEARN_DIR"])
    return importlib.import_module


def scores(views, seed=0, prototypes=11):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, prototypes, generator=generator).tanh() for _ in range(views)]


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn(solo, iterations):
    theirs = solo("solo.utils.sinkhorn_knopp").SinkhornKnopp(iterations, 0.05, 1)
    (p,) = scores(1)
    torch.testing.assert_close(sinkhorn(p, 0.05, iterations), theirs(p), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("views", [2, 8])
def test_swav(solo, views):
    p, q = scores(views), [s.softmax(1) for s in scores(2, seed=1)]
    theirs = solo("solo.losses.swav").swav_loss_func(p, q, 0.1)
    torch.testing.assert_close(swapped_prediction_loss(p, q, 0.1), theirs, atol=1e-5, rtol=1e-5)


def test_dino_with_its_center_and_temperatures(solo, tiny):
    warm = ("method_kwargs.warmup_teacher_temperature_epochs=3", "max_epochs=6",
            "method_kwargs.num_prototypes=11", "method_kwargs.warmup_teacher_temperature=0.04",
            "method_kwargs.teacher_temperature=0.07")  # fmt: skip
    cfg = parse_cfg(tiny("dino", *warm), METHODS)
    cfg.data.num_classes = 10
    ours = METHODS["dino"](cfg)
    theirs = solo("solo.losses.dino").DINOLoss(
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
    theirs = solo("solo.losses.deepclusterv2").deepclusterv2_loss_func(p, assignments, 0.1)
    ours = sum(assignment_loss(list(p[h]), assignments[h], 0.1) for h in range(3)) / 3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_prototypes_are_weight_norm_of_length_one():
    ours = Prototypes(8, 11)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 11, bias=False))
    with torch.no_grad():
        theirs.parametrizations.weight.original0.fill_(1)
        theirs.parametrizations.weight.original1.copy_(ours.weight)
    z = F.normalize(torch.randn(5, 8), dim=1)
    torch.testing.assert_close(ours(z), theirs(z))


# -------------------------------------------------------------------------- whole training steps


def unit(*shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(3)), dim=-1)


def pair(method, tiny, solo, *overrides):
    """Our model and solo-learn's of one configuration, with solo-learn's weights."""
    cfg = tiny(method, "joint_forward=False", *overrides)
    cfg.backbone = {"name": "resnet18", "kwargs": {}, "stem": None}
    cfg.data.num_classes = 10
    cfg = parse_cfg(cfg, METHODS)
    torch.manual_seed(0)
    theirs = solo("solo.methods").METHODS[method](OmegaConf.create(OmegaConf.to_container(cfg)))
    ours = METHODS[method](cfg)
    state = {}
    for name, value in theirs.state_dict().items():
        if not name.endswith("weight_g"):  # the length of a prototype, which is 1
            state[name.replace("weight_v", "weight").replace("dino_loss_func.", "")] = value
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert set(missing) <= {"queue", "queue_ptr"}
    assert not unexpected
    for model in (ours, theirs):
        model.log = model.log_dict = lambda *args, **kwargs: None
    return ours, theirs


def compare_steps(ours, theirs):
    """Losses of two steps, and the gradients of the second."""
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(16, 3, 32, 32, generator=generator) for _ in range(2)]
    batch = [torch.arange(16), views, torch.arange(16) % 5]
    for number in range(2):
        losses = []
        for model in (ours, theirs):
            model.zero_grad()
            losses.append(model.training_step(batch, number))
            losses[-1].backward()
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == {name.replace("weight_v", "weight") for name in wanted}
    atol = 1e-4 * max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        mine = found[name.replace("weight_v", "weight")]
        torch.testing.assert_close(mine, gradient, rtol=1e-3, atol=atol, msg=name)


def test_training_step_of_swav(tiny, solo):
    settings = (
        "method_kwargs.queue_size=32",
        "method_kwargs.epoch_queue_starts=0",
        "method_kwargs.sk_epsilon=0.05",
    )
    ours, theirs = pair("swav", tiny, solo, *settings)
    theirs.sk = solo("solo.utils.sinkhorn_knopp").SinkhornKnopp(3, 0.05, 1)
    queue = unit(2, 32, 8)
    theirs.register_buffer("queue", queue.clone())
    # theirs gives up the last places first, ours the first ones
    ours.queue.copy_(queue.flip(1).permute(1, 0, 2))
    compare_steps(ours, theirs)


def test_training_step_of_dino(tiny, solo):
    ours, theirs = pair("dino", tiny, solo, "method_kwargs.warmup_teacher_temperature_epochs=0")
    compare_steps(ours, theirs)
    torch.testing.assert_close(ours.center, theirs.dino_loss_func.center, rtol=1e-4, atol=1e-6)


def test_training_step_of_deepclusterv2(tiny, solo):
    ours, theirs = pair("deepclusterv2", tiny, solo)
    ours.prepare(48)
    ours.assignments.copy_(torch.randint(-1, 12, (2, 48)))
    theirs.assignments = ours.assignments.clone()
    theirs.register_buffer("local_memory_index", torch.zeros(32, dtype=torch.long))
    theirs.register_buffer("local_memory_embeddings", unit(2, 32, 8))
    compare_steps(ours, theirs)
    torch.testing.assert_close(ours.memory[:, :16], theirs.local_memory_embeddings[:, 16:])
