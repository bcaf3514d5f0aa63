"""The tests that every registered method has to pass.

A method is tested if it is registered and has a configuration for the offline data set, which is
made smaller here. Variants with a third view (``clsp_*``, ``*_aug``) take only the tests that
concern what they add.
"""

import importlib
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from clsp_plugin.config.compose import compose
from clsp_plugin.config.training import parse_cfg
from clsp_plugin.data.images import load_images
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.deepclusterv2 import DeepClusterV2
from clsp_plugin.methods.queue import Queue
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.synthetic import SyntheticPositives
from clsp_plugin.records.record import Record

BASES = sorted(name for name in METHODS if not issubclass(METHODS[name], SyntheticPositives))
QUEUES = [name for name in BASES if issubclass(METHODS[name], Queue)]
# Methods with a loss of each process's own batch: W-MSE whitens random parts of it, as in the paper
LOCAL = {"wmse"}


@pytest.fixture(params=BASES)
def base(request):
    return request.param


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return request.param


def model_of(cfg):
    """Make the model of a configuration, for use without a trainer."""
    cfg = parse_cfg(cfg, METHODS)
    cfg.data.num_classes = 10
    torch.manual_seed(0)
    model = METHODS[cfg.method](cfg)
    model.attach_images(load_images(cfg.data, "train"))
    if isinstance(model, DeepClusterV2):  # in the state after an epoch
        model.prepare(48)
        model.remember(torch.arange(48), [F.normalize(torch.randn(48, 8), dim=1)] * 2)
        model.cluster_memory(1)
    return model


@pytest.fixture
def build(tiny, store, digits48):
    """Make the model of a tiny configuration, with candidates if the method needs them."""

    def make(method, *overrides):
        extra = [f"synthetic.path={store}"] if method.startswith("clsp_") else []
        model = model_of(tiny(method, *extra, *overrides))
        if isinstance(model, SyntheticPositives):
            model.attach(digits48, [0.5] * 3, [0.25] * 3)
        return model

    return make


def batch(size=16, views=2):
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(size, 3, 16, 16, generator=generator) for _ in range(views)]
    return [torch.arange(size), images, torch.arange(size) % 10]


def step(model, *, size=16, seed=0):
    """Return the loss and the gradients of one training step after seeding random layers."""
    torch.manual_seed(seed)
    loss = model.training_step(batch(size), 0)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


# -------------------------------------------------------------------------------- the contract


def test_forward_has_the_contract_s_keys_and_shapes(build, method):
    model = build(method)
    out = model(torch.randn(4, 3, 16, 16))
    assert out["feats"].shape == (4, 8)
    assert out["logits"].shape == (4, 10)
    assert out["z"].shape == (4, 8)
    assert (model.prediction is not None) == hasattr(model, "predictor")
    if model.prediction is not None:
        assert out[model.prediction].shape == (4, 8)


def test_gradient_reaches_what_learns_and_nothing_else(build, method):
    model = build(method)
    groups = [{**group, "params": list(group["params"])} for group in model.learnable_params]
    assert len({group["name"] for group in groups}) == len(groups)
    learnable = {id(p) for group in groups for p in group["params"]}
    _, gradients = step(model)
    for name, parameter in model.named_parameters():
        if id(parameter) in learnable and (parameter.requires_grad or not name.endswith("bias")):
            # a bias before a normalisation does nothing
            assert gradients[name].abs().sum() > 0 or name.endswith("bias"), name
        else:
            assert name not in gradients
            assert not parameter.requires_grad, name
    for online, momentum in getattr(model, "momentum_pairs", ()):
        assert {id(p) for p in online.parameters()} <= learnable
        assert not {id(p) for p in momentum.parameters()} & learnable


def test_probe_sends_no_gradient_to_the_backbone(build, base):
    model = build(base)
    out = model.base_training_step(batch()[1][0], batch()[2])
    out["loss"].backward()
    assert all(p.grad is None for p in model.backbone.parameters())


def test_unlabelled_images_do_not_poison_the_loss(build, base):
    model = build(base)
    indexes, views, _ = batch()
    loss = model.training_step([indexes, views, torch.full((16,), -1)], 0)
    assert torch.isfinite(loss)


# ------------------------------------------------------------------------------- the registry


def test_the_readme_s_method_is_one_file(tiny, tmp_path, monkeypatch):
    """The README's method is registered on import, gets its two versions, and trains."""
    page = (Path(__file__).parents[2] / "README.md").read_text()
    (snippet,) = (s for s in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "MyMethod" in s)
    (tmp_path / "mymethod.py").write_text(snippet)
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as patch:
        for name in ("mymethod", "clsp_mymethod", "mymethod_aug"):
            patch.setitem(METHODS, name, None)  # puts the registry back afterwards
            del METHODS[name]
        importlib.import_module("mymethod")
        assert {"mymethod", "clsp_mymethod", "mymethod_aug"} <= METHODS.keys()
        finished = pretrain(tiny("mymethod_aug", "max_epochs=1"))
        assert Record.load(finished.record).curve[-1]["train_alignment"] > 0


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="simclr is taken by SimCLR"):
        register_method("simclr")(DeepClusterV2)


# ----------------------------------------------------------------------------- configurations


def test_refuses_a_setting_it_does_not_have(tiny, base):
    cfg = parse_cfg(tiny(base, "method_kwargs.temprature=0.1"), METHODS)
    with pytest.raises(ClspError, match="temprature is not a setting"):
        METHODS[base].add_and_assert_specific_cfg(cfg)


def test_names_a_setting_that_is_missing(tiny, base):
    cfg = parse_cfg(tiny(base), METHODS)
    del cfg.method_kwargs.proj_output_dim
    with pytest.raises(ClspError, match=r"method_kwargs\.proj_output_dim is not set"):
        METHODS[base].add_and_assert_specific_cfg(cfg)


def test_configuration_survives_the_method_and_a_second_reading(tiny, method):
    cfg = parse_cfg(tiny(method), METHODS)
    before = OmegaConf.to_yaml(cfg)
    filled = METHODS[method].add_and_assert_specific_cfg(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    # the completed settings, which args.json keeps, are accepted unchanged
    again = OmegaConf.create(OmegaConf.to_yaml(filled))
    assert METHODS[method].add_and_assert_specific_cfg(again) == filled


def test_shipped_configuration_is_complete(base):
    cfg = parse_cfg(compose("pretrain", f"digits/{base}"), METHODS)
    assert (cfg.method, cfg.name) == (base, f"{base}-digits")
    assert cfg.data.dataset == "digits"
    METHODS[base].add_and_assert_specific_cfg(cfg)


@pytest.mark.parametrize("base", QUEUES)
def test_queue_that_batches_do_not_fill_is_refused(tiny, base):
    cfg = parse_cfg(tiny(base, "method_kwargs.queue_size=50"), METHODS)
    with pytest.raises(ClspError, match="queue_size=48"):
        METHODS[base].add_and_assert_specific_cfg(cfg)


# -------------------------------------------------------------------------------------- runs


def test_trains_saves_and_continues_to_the_same_bits(tiny, tmp_path, interrupt, base):
    alone = pretrain(tiny(base))
    state = torch.load(alone.checkpoint, weights_only=True)["state_dict"]
    parts = {key.split(".")[0] for key in state}
    assert parts >= {"backbone", "classifier"}
    assert parts & {"projector", "head"}  # DINO has a head, as in solo-learn
    assert all(torch.isfinite(value).all() for value in state.values())
    model = METHODS[base](OmegaConf.create((alone.run_dir / "args.json").read_text()))
    model.load_state_dict(state)  # strict: the saved configuration builds these very parameters

    second = ("auto_resume.enabled=True", f"checkpoint.dir={tmp_path / 'second'}")
    interrupt(tiny(base, *second), epoch=1)
    continued = pretrain(tiny(base, *second))
    again = torch.load(continued.checkpoint, weights_only=True)["state_dict"]
    assert [key for key in state if not torch.equal(state[key], again[key])] == []
    curves = [Record.load(run.record).curve for run in (alone, continued)]
    assert [row["train_loss"] for row in curves[0]] == [row["train_loss"] for row in curves[1]]


# -------------------------------------------------------------------------- synthetic positives


@pytest.mark.parametrize("variant", ["clsp_{}", "{}_aug"])
def test_weight_zero_is_the_method_to_the_last_bit(build, base, variant):
    loss, gradients = step(build(base))
    off_loss, off = step(build(variant.format(base), "synthetic.weight=0"))
    assert torch.equal(loss, off_loss)
    assert gradients.keys() == off.keys()
    assert all(torch.equal(gradients[name], off[name]) for name in off)
    on_loss, _ = step(build(variant.format(base), "synthetic.weight=1"))
    assert not torch.equal(loss, on_loss)


# ------------------------------------------------------------------------------------ backbones


def test_vision_transformer_steps(tiny, base):
    cfg = tiny(base)
    cfg.backbone = {
        "name": "vit_tiny",
        "kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
    }
    loss, gradients = step(model_of(cfg))
    assert torch.isfinite(loss)
    assert gradients["backbone.patch_embed.proj.weight"].abs().sum() > 0


def test_resnet50_is_built(tiny, base):
    cfg = tiny(base)
    cfg.backbone = {"name": "resnet50", "kwargs": {"channels": [8, 8, 8, 8]}, "stem": None}
    model = model_of(cfg)
    assert len(model.backbone.layer3) == 6
    assert model(torch.randn(2, 3, 32, 32))["z"].shape == (2, 8)


# ---------------------------------------------------------------------------- several processes


def _step_of_a_share(rank, world, folder):
    """Run a training step of every method on this process's images and average the gradients."""
    out = {}
    for path in sorted(folder.glob("*.yaml")):
        model = _frozen_statistics(OmegaConf.load(path))
        indexes, views, targets = batch()
        share = slice(rank * 16 // world, (rank + 1) * 16 // world)
        loss = model.training_step([indexes[share], [v[share] for v in views], targets[share]], 0)
        loss.backward()
        # parameters that take no part have no gradient in any process
        tensors = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        tensors["loss"] = loss.detach()
        for tensor in tensors.values():
            torch.distributed.all_reduce(tensor)
            tensor /= world
        buffers = {n: b for n, b in model.named_buffers() if n.startswith("queue")}
        out[path.stem] = {**tensors, **buffers}
    if rank == 0:
        torch.save(out, folder / "out.pt")


def _frozen_statistics(cfg):
    """Make a model with frozen batch normalisation, so that images meet only in the loss."""
    return model_of(cfg).eval()


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory, gathering):
    """Return what two processes compute for every method, from half a batch each; run once."""
    folder = tmp_path_factory.mktemp("two_processes")
    results = {}

    def run(configurations):
        if not folder.joinpath("begun").exists():
            folder.joinpath("begun").touch()  # a failure is not tried again for every method
            for name, cfg in configurations().items():
                OmegaConf.save(cfg, folder / f"{name}.yaml")
            gathering(_step_of_a_share, folder)
            results.update(torch.load(folder / "out.pt", weights_only=True))
        return results

    return run


@pytest.mark.parametrize("base", [name for name in BASES if name not in LOCAL])
def test_two_processes_give_the_loss_and_gradients_of_one_batch(tiny, two_processes, base):
    results = two_processes(lambda: {name: tiny(name) for name in BASES if name not in LOCAL})
    model = _frozen_statistics(tiny(base))
    loss = model.training_step(batch(), 0)
    loss.backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    expected["loss"] = loss.detach()
    expected |= {n: b for n, b in model.named_buffers() if n.startswith("queue")}
    assert results[base].keys() == expected.keys()
    # the sums are in another order, so values may differ by float32 rounding of the largest
    atol = 2e-5 * max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(
            results[base][name], value, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


# ------------------------------------------------------------------------- what only some have


def test_joint_forward_is_one_batch(build):
    model, (_, (a, b), _) = build("simclr"), batch()
    expected = model.forward(torch.cat([a, b]))
    with model.joint_forward([a, b]):
        first, second = model(a), model(b)
    torch.testing.assert_close(torch.cat([first["z"], second["z"]]), expected["z"])
    # batch normalisation saw both views, so a view on its own gives another result
    assert not torch.allclose(model(a)["z"], first["z"], atol=1e-4)


def test_mocov2plus_queue_takes_the_keys_in_turn(build):
    model = build("mocov2plus")
    before = model.queue.clone()
    indexes, views, targets = batch()
    keys = [model.momentum_forward(view)["z"] for view in views]
    model.training_step([indexes, views, targets], 0)
    torch.testing.assert_close(model.queue[:, :, :16], torch.stack(keys).permute(0, 2, 1))
    torch.testing.assert_close(model.queue[:, :, 16:], before[:, :, 16:])
    assert int(model.queue_ptr) == 16
    for _ in range(3):
        model.training_step([indexes, views, targets], 0)
    assert int(model.queue_ptr) == 0


@pytest.mark.parametrize(
    ("base", "key"),
    [("nnclr", "z"), ("nnsiam", "z"), ("nnbyol", "momentum_z"), ("all4one", "momentum_z")],
)
def test_support_set_takes_the_first_view_and_its_labels_in_turn(build, base, key):
    model = build(base)
    before = model.queue.clone()
    forward = model.momentum_forward if key == "momentum_z" else model.forward
    first = forward(batch()[1][0])["z"].detach()
    model.training_step(batch(), 0)
    torch.testing.assert_close(model.queue[:16], first)
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(64))
    assert torch.equal(model.queue[16:], before[16:])
    assert model.queue_y.tolist() == [i % 10 for i in range(16)] + [-1] * 48
    assert int(model.queue_ptr) == 16


def test_neighbours_are_the_nearest_and_found_before_the_batch_enters(build):
    model = build("nnclr")
    z = [torch.nn.functional.normalize(torch.randn(16, 8), dim=1) for _ in range(2)]
    queue = model.queue.clone()
    found = model.neighbours(z, torch.arange(16), k=3)
    for view, near in zip(z, found, strict=True):
        for row, entries in zip(view, near, strict=True):
            order = sorted(range(64), key=lambda j: -float(row @ queue[j]))[:3]
            torch.testing.assert_close(entries, queue[order])


def test_unlabelled_images_are_their_own_class_in_supcon(build):
    def loss(targets):
        pieces = {}
        model = build("supcon")
        model.log_epoch = lambda **metrics: pieces.update(metrics)
        model.training_step([*batch(8)[:2], targets], 0)
        return pieces["train_loss"]

    distinct = loss(torch.arange(8))
    torch.testing.assert_close(loss(torch.full((8,), -1)), distinct)
    assert not torch.allclose(loss(torch.arange(8) % 4), distinct)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("whitening_size=5",), "whitening_size=5 does not divide the 16 images"),
        (("whitening_size=8",), "8 images cannot whiten 8 features"),
        (("whitening_eps=2",), "whitening_eps=2.0 is not between 0 and 1"),
        (("whitening_iters=0",), "must be at least 1"),
    ],
)
def test_wmse_refuses_what_cannot_be_whitened(tiny, settings, message):
    cfg = parse_cfg(tiny("wmse", *(f"method_kwargs.{s}" for s in settings)), METHODS)
    with pytest.raises(ClspError, match=message):
        METHODS["wmse"].add_and_assert_specific_cfg(cfg)


def test_all4one_refuses_a_width_that_its_heads_do_not_share(tiny):
    cfg = parse_cfg(tiny("all4one", "method_kwargs.proj_output_dim=20"), METHODS)
    with pytest.raises(ClspError, match=r"set method_kwargs\.proj_output_dim=16"):
        METHODS["all4one"].add_and_assert_specific_cfg(cfg)


def test_momentum_moves_by_the_schedule(tiny):
    # one step: the momentum network is base_tau * start + (1 - base_tau) * trained
    cfg = tiny("byol", "data.num_train=16", "max_epochs=1", "momentum.base_tau=0.7",
               "scheduler.name=none", "optimizer.lr=0.5")  # fmt: skip
    state = torch.load(pretrain(cfg).checkpoint, weights_only=True)["state_dict"]
    parsed = parse_cfg(cfg, METHODS)
    parsed.data.num_classes = 10
    pl.seed_everything(parsed.seed)
    start = METHODS["byol"](parsed).backbone.conv1.weight
    online, momentum = state["backbone.conv1.weight"], state["momentum_backbone.conv1.weight"]
    assert not torch.allclose(start, online)
    torch.testing.assert_close(momentum, 0.7 * start.detach() + 0.3 * online)
