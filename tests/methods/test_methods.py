"""Every method of the registry, through one suite: a new method is tested by being registered."""

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

from clsp_plugin.engine.config import parse_cfg
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.synthetic import SyntheticPositives


@pytest.fixture(params=sorted(METHODS))
def method(request):
    return request.param


@pytest.fixture
def build(tiny, store, digits48):
    """A parsed configuration and a model of it, with candidates where it wants some."""

    def make(method, *overrides):
        extra = [f"synthetic.path={store}"] if method.startswith("clsp_") else []
        cfg = parse_cfg(tiny(method, *extra, *overrides), METHODS)
        cfg.data.num_classes = 10
        torch.manual_seed(0)
        model = METHODS[method](cfg)
        model.log_dict = model.log = lambda *args, **kwargs: None  # needs a trainer
        if isinstance(model, SyntheticPositives):
            model.attach(digits48, [0.5] * 3, [0.25] * 3)
        return model

    return make


def batch(size=16, views=2):
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(size, 3, 16, 16, generator=generator) for _ in range(views)]
    return [torch.arange(size), images, torch.arange(size) % 10]


def test_forward_has_the_contract_s_keys_and_shapes(build, method):
    out = build(method)(torch.randn(4, 3, 16, 16))
    assert out["feats"].shape == (4, 8)
    assert out["logits"].shape == (4, 10)
    assert out["z"].shape == (4, 8)


def test_gradient_reaches_what_learns_and_nothing_else(build, method):
    model = build(method)
    groups = model.learnable_params
    assert len({group["name"] for group in groups}) == len(groups)
    learnable = {id(p) for group in groups for p in group["params"]}
    model.training_step(batch(), 0).backward()
    for name, parameter in model.named_parameters():
        if id(parameter) in learnable:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0 or name.endswith("bias"), name
        else:
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name


def test_probe_sends_no_gradient_to_the_backbone(build, method):
    model = build(method)
    out = model.base_training_step(batch()[1][0], batch()[2])
    out["loss"].backward()
    assert all(p.grad is None for p in model.backbone.parameters())


def test_unlabelled_images_do_not_poison_the_loss(build, method):
    model = build(method)
    indexes, views, _ = batch()
    loss = model.training_step([indexes, views, torch.full((16,), -1)], 0)
    assert torch.isfinite(loss)


def test_trains_saves_and_loads(tiny, store, method):
    extra = [f"synthetic.path={store}"] if method.startswith("clsp_") else []
    finished = pretrain(tiny(method, *extra))
    state = torch.load(finished.checkpoint, weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in state} >= {"backbone", "classifier", "projector"}
    args = OmegaConf.create((finished.run_dir / "args.json").read_text())
    model = METHODS[method](args)
    model.load_state_dict(state)  # strict: what is saved is what the configuration builds
    assert all(torch.isfinite(value).all() for value in state.values())


def test_refuses_a_setting_it_does_not_have(tiny, method):
    cfg = parse_cfg(tiny(method, "method_kwargs.temprature=0.1"), METHODS)
    with pytest.raises(ClspError, match="temprature is not a setting"):
        METHODS[method].add_and_assert_specific_cfg(cfg)


def test_names_a_setting_that_is_missing(tiny, method):
    cfg = parse_cfg(tiny(method), METHODS)
    del cfg.method_kwargs.proj_output_dim
    with pytest.raises(ClspError, match=r"needs method_kwargs\.proj_output_dim"):
        METHODS[method].add_and_assert_specific_cfg(cfg)


def test_configuration_is_not_changed_by_the_method(tiny, method):
    cfg = parse_cfg(tiny(method), METHODS)
    before = OmegaConf.to_yaml(cfg)
    METHODS[method].add_and_assert_specific_cfg(cfg)
    assert OmegaConf.to_yaml(cfg) == before


def test_joint_forward_is_one_batch(build):
    model, (_, (a, b), _) = build("simclr"), batch()
    expected = model.forward(torch.cat([a, b]))
    with model.joint_forward([a, b]):
        first, second = model(a), model(b)
    torch.testing.assert_close(torch.cat([first["z"], second["z"]]), expected["z"])
    # batch norm saw both: not what each alone gives
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


def test_mocov2plus_refuses_a_queue_that_batches_do_not_fill(tiny):
    cfg = parse_cfg(tiny("mocov2plus", "method_kwargs.queue_size=50"), METHODS)
    with pytest.raises(ClspError, match="queue_size=48"):
        METHODS["mocov2plus"].add_and_assert_specific_cfg(cfg)


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
