"""The methods give the numbers of solo-learn's, on the same weights and the same inputs.

``SOLO_LEARN_DIR=path/to/solo-learn pytest tests/solo``
"""

import importlib
import os

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from clsp_plugin.config.training import parse_cfg
from clsp_plugin.losses.barlow import barlow_loss
from clsp_plugin.losses.cross_view import cross_view_loss
from clsp_plugin.losses.nt_xent import nt_xent_loss
from clsp_plugin.losses.ressl import ressl_loss
from clsp_plugin.losses.vibcreg import vibcreg_loss
from clsp_plugin.losses.vicreg import vicreg_loss
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.synthetic import SyntheticPositives
from clsp_plugin.methods.whitening import IterNorm, whiten

if "SOLO_LEARN_DIR" not in os.environ:
    pytest.skip("set SOLO_LEARN_DIR to a solo-learn clone", allow_module_level=True)

# Their prototypes, queues and memories are made otherwise: test_losses_prototypes.py.
PROTOTYPES = {"deepclusterv2", "dino", "swav"}
BASES = sorted(
    name
    for name in METHODS.keys() - PROTOTYPES
    if not issubclass(METHODS[name], SyntheticPositives)
)
# Modules of solo-learn's that ours keep elsewhere or do without.
EXTRA = {"all4one": {"queue_index", "pos_enc.penc.penc.inv_freq"}}


@pytest.fixture
def solo(monkeypatch):
    """Import from the clone: ``solo("solo.losses.barlow").barlow_loss_func``."""
    monkeypatch.syspath_prepend(os.environ["SOLO_LEARN_DIR"])
    return importlib.import_module


def embeddings(number, rows=12, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, dim, generator=generator) for _ in range(number)]


def same(ours, theirs, inputs):
    """Values to 1e-5, and gradients where theirs have some."""
    results = []
    for function in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        value.backward()
        results.append((value.detach(), [x.grad for x in leaves]))
    (value, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_barlow(solo):
    theirs = solo("solo.losses.barlow").barlow_loss_func
    same(lambda a, b: barlow_loss(a, b, lamb=0.1, scale_loss=0.5),
         lambda a, b: theirs(a, b, lamb=0.1, scale_loss=0.5), embeddings(2))  # fmt: skip


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_vicreg_and_vibcreg(solo, scale):
    inputs = [scale * z for z in embeddings(2)]
    same(vicreg_loss, solo("solo.losses.vicreg").vicreg_loss_func, inputs)
    same(vibcreg_loss, solo("solo.losses.vibcreg").vibcreg_loss_func, inputs)


def test_mocov3_and_nnclr(solo):
    query, key = embeddings(2)
    theirs = solo("solo.losses.mocov3").mocov3_loss_func
    same(lambda q: 0.4 * cross_view_loss(q, key, 0.2), lambda q: theirs(q, key, 0.2), [query])
    theirs = solo("solo.losses.nnclr").nnclr_loss_func
    same(lambda p: cross_view_loss(key, p, 0.2), lambda p: theirs(key, p, 0.2), [query])


def test_ressl(solo):
    theirs = solo("solo.losses.ressl").ressl_loss_func
    query, key, queue = (F.normalize(z, dim=1) for z in embeddings(3))
    same(lambda q: ressl_loss(q, key, queue, 0.1, 0.04),
         lambda q: theirs(q, key, queue, 0.1, 0.04), [query])  # fmt: skip


@pytest.mark.parametrize("keys", [torch.arange(6), torch.tensor([0, 1, 0, 2, 1, 0])])
def test_simclr_and_supcon(solo, keys):
    theirs = solo("solo.losses.simclr").simclr_loss_func
    keys = keys.repeat(2)
    same(lambda z: nt_xent_loss(z, keys, 0.2), lambda z: theirs(z, keys, 0.2), embeddings(1))


def test_whitening(solo):
    theirs = solo("solo.utils.whitening").Whitening2d(8, eps=0.1)
    weight = embeddings(1, seed=1)[0]
    same(lambda x: (weight * whiten(x, 0.1)).sum(), lambda x: (weight * theirs(x)).sum(),
         embeddings(1))  # fmt: skip


def test_iternorm(solo):
    theirs, ours = solo("solo.utils.whitening").IterNorm(8, num_groups=4), IterNorm(8, num_groups=4)
    ours.load_state_dict(theirs.state_dict())
    weight = embeddings(1, seed=1)[0]
    same(lambda x: (weight * ours(x)).sum(), lambda x: (weight * theirs(x)).sum(), embeddings(1))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    (x,) = embeddings(1, seed=2)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


# -------------------------------------------------------------------------- whole training steps


def pair(method, tiny, solo):
    """Our model and solo-learn's of one configuration, with solo-learn's weights."""
    registry = solo("solo.methods").METHODS
    if method not in registry:
        pytest.skip("solo-learn does not have the method")
    cfg = tiny(method, "joint_forward=False")  # solo-learn has a forward for each view
    cfg.backbone = {"name": "resnet18", "kwargs": {}, "stem": None}
    cfg.data.num_classes = 10
    cfg = parse_cfg(cfg, METHODS)
    torch.manual_seed(0)
    theirs = registry[method](OmegaConf.create(OmegaConf.to_container(cfg)))
    ours = METHODS[method](cfg)
    state = theirs.state_dict()
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not missing
    assert set(unexpected) == EXTRA.get(method, set())
    for model in (ours, theirs):
        model.log = model.log_dict = lambda *args, **kwargs: None
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # drawn in another order
    return ours, theirs


@pytest.mark.parametrize("method", BASES)
def test_training_step_of_solo_learn_s_weights(tiny, solo, method):
    ours, theirs = pair(method, tiny, solo)
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(16, 3, 32, 32, generator=generator) for _ in range(2)]
    batch = [torch.arange(16), views, torch.arange(16) % 5]
    for _ in range(2):  # the second meets a queue that the first has filled
        losses = []
        for model in (ours, theirs):
            torch.manual_seed(2)
            model.zero_grad()
            losses.append(model.training_step(batch, 0))
            losses[-1].backward()
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    # a bias before a normalisation has rounding errors for a gradient
    atol = 1e-4 * max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=atol, msg=name)
    for name in ("queue", "queue_y", "queue_ptr"):
        if hasattr(ours, name):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
