"""CLSP's claims: weight 0 changes nothing, the third view stays out of the base loss."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.training import parse_cfg
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.synthetic import SyntheticPositives, register
from clsp_plugin.records.record import Record

BASES = ["simclr", "mocov2plus", "byol"]


def weights(finished):
    return torch.load(finished.checkpoint, weights_only=True)["state_dict"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("base", BASES)
def test_weight_zero_is_the_base_method_to_the_last_bit(tiny, store, base):
    plain = weights(pretrain(tiny(base)))
    for method in (f"clsp_{base}", f"{base}_aug"):
        off = pretrain(tiny(method, "synthetic.weight=0", f"synthetic.path={store}"))
        assert equal(weights(off), plain)
    on = pretrain(tiny(f"clsp_{base}", "synthetic.weight=1", f"synthetic.path={store}"))
    assert not equal(weights(on), plain)


@pytest.mark.parametrize("base", BASES)
def test_third_view_stays_out_of_the_base_loss_and_the_queue(tiny, store, base):
    # one step, so that both runs compute the base loss from the same weights and the same views
    one = ("data.num_train=48", "optimizer.batch_size=32", "max_epochs=1", "joint_forward=False")
    plain = pretrain(tiny(base, *one))
    clsp = pretrain(tiny(f"clsp_{base}", *one, f"synthetic.path={store}"))
    curves = [Record.load(finished.record).curve[0] for finished in (plain, clsp)]
    assert curves[0]["train_loss"] == curves[1]["train_loss"]
    assert "train_alignment" in curves[1]
    if base == "mocov2plus":
        a, b = weights(plain), weights(clsp)
        assert torch.equal(a["queue"], b["queue"])
        assert torch.equal(a["queue_ptr"], b["queue_ptr"])


def test_lambda_rises_from_nothing_over_the_warm_up(tiny, store, digits48, monkeypatch):
    settings = (f"synthetic.path={store}", "synthetic.weight=0.8", "synthetic.warmup_epochs=4")
    model = model_with(tiny, "clsp_simclr", digits48, *settings)
    rise = [model.weight_at(epoch) for epoch in (0, 1, 3, 4, 9)]
    assert rise == pytest.approx([0, 0.2, 0.6, 0.8, 0.8])
    inputs, logged, losses = step_inputs(), {}, {}
    model.log_epoch = lambda **metrics: logged.update(metrics)
    model._third = lambda indexes, epoch, crop: inputs[1][0] * 0.5  # the same in every epoch
    for epoch in (0, 2):
        monkeypatch.setattr(type(model), "current_epoch", epoch)
        losses[epoch] = model.training_step(inputs, 0)
    difference = losses[2] - losses[0]
    torch.testing.assert_close(difference, 0.4 * logged["train_alignment"], rtol=1e-4, atol=1e-5)
    plain = model_with(tiny, "clsp_simclr", digits48, f"synthetic.path={store}")
    assert plain.weight_at(0) == 1.0  # the paper has no warm-up


def model_with(tiny, method, array, *overrides):
    cfg = parse_cfg(tiny(method, *overrides), METHODS)
    cfg.data.num_classes = 10
    torch.manual_seed(0)
    model = METHODS[method](cfg)
    model.attach(array, [0.5] * 3, [0.25] * 3)
    return model


def step_inputs(size=16):
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(size, 3, 16, 16, generator=generator) for _ in range(2)]
    return [torch.arange(size), views, torch.arange(size) % 10]


def apart(x, y):
    return (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("base", BASES)
def test_loss_is_the_base_s_plus_the_weighted_distance(tiny, store, digits48, base, joint):
    model = model_with(tiny, f"clsp_{base}", digits48, f"synthetic.path={store}",
                       "synthetic.weight=0.7", f"joint_forward={joint}")  # fmt: skip
    reference = copy.deepcopy(model)
    inputs = step_inputs()
    indexes, views, _ = inputs
    third = reference.synthetic_view(indexes)
    if joint:
        out = reference.forward(torch.cat([*views, third]))
        out = {key: (value[:16], value[32:]) for key, value in out.items()}
    else:
        each = reference.forward(views[0]), reference.forward(third)
        out = {key: (each[0][key], each[1][key]) for key in each[0]}
    if base == "byol":  # each prediction against the other's embedding
        distance = (apart(out["p"][0], out["z"][1]) + apart(out["p"][1], out["z"][0])) / 2
    else:
        distance = apart(*out["z"])
    pieces = {}
    model.log_epoch = lambda **metrics: pieces.update(metrics)
    loss = model.training_step(inputs, 0)
    expected = pieces["train_loss"] + pieces["train_class_loss"] + 0.7 * distance
    torch.testing.assert_close(loss, expected)


def test_no_gradient_flows_into_what_a_predictor_regresses(tiny, store, digits48):
    model = model_with(tiny, "clsp_byol", digits48, f"synthetic.path={store}")
    z = [torch.randn(16, 8, requires_grad=True) for _ in range(2)]
    p = [torch.randn(16, 8, requires_grad=True) for _ in range(2)]
    first, third = ({"z": z[n], "p": p[n]} for n in range(2))
    model.alignment(first, third).backward()
    assert all(tensor.grad is None for tensor in z)
    assert all(tensor.grad.abs().sum() > 0 for tensor in p)


def test_third_view_is_a_candidate_of_the_same_image(tiny, store, digits48):
    plain_view = {
        "rrc": {"enabled": False, "crop_min_scale": 1.0, "crop_max_scale": 1.0},
        "crop_size": 16,
        "num_crops": 1,
    }
    cfg = tiny("clsp_simclr", f"synthetic.path={store}")
    cfg.synthetic.augmentation = plain_view
    cfg = parse_cfg(cfg, METHODS)
    cfg.data.num_classes = 10
    model = METHODS["clsp_simclr"](cfg)
    model.attach(digits48, [0.5] * 3, [0.25] * 3)
    indexes = torch.tensor([5, 40, 0, 19, 20])
    view = ((model.synthetic_view(indexes) * 0.25 + 0.5) * 255).round().to(torch.uint8)
    candidates = torch.from_numpy(CandidateStore(store).images(indexes.tolist()))
    for row in range(5):
        matches = (candidates[row].permute(0, 3, 1, 2) == view[row]).flatten(1).all(1)
        assert matches.sum() == 1


def test_candidates_are_drawn_uniformly_and_anew_each_epoch(store):
    opened = CandidateStore(store)
    indexes = torch.arange(48)
    draws = torch.stack([opened.choose(indexes, 0, epoch) for epoch in range(400)])
    counts = torch.bincount(draws.flatten(), minlength=3).float()
    # 19,200 draws: a third each, standard error 0.34 %
    assert (counts / counts.sum() - 1 / 3).abs().max() < 0.015
    assert (draws[0] != draws[1]).any()
    assert not torch.equal(opened.choose(indexes, 0, 0), opened.choose(indexes, 1, 0))
    assert CandidateStore(store, num_candidates=1).choose(indexes, 0, 5).max() == 0


def test_control_s_third_view_is_of_the_image_itself_and_not_one_of_its_views(tiny, digits48):
    model = model_with(tiny, "simclr_aug", digits48)
    indexes = torch.arange(16)
    view = model.synthetic_view(indexes)
    other = digits48.subset(torch.arange(47, -1, -1), "reversed")
    swapped = model_with(tiny, "simclr_aug", other)
    assert not torch.allclose(view, swapped.synthetic_view(indexes))
    # the same image at the same index gives the same view
    again = model_with(tiny, "simclr_aug", digits48).synthetic_view(indexes)
    torch.testing.assert_close(view, again)


def test_registry_has_the_paper_s_names():
    for name in ("clsp_simclr", "clsp_mocov2", "clsp_mocov2plus", "clsp_byol"):
        assert METHODS[name].third_view == "candidate"
    for name in ("simclr_aug", "mocov2_aug", "byol_aug"):
        assert METHODS[name].third_view == "anchor"
    assert METHODS["clsp_mocov2"] is METHODS["clsp_mocov2plus"]


def test_registering_twice_changes_nothing_and_a_taken_name_is_an_error():
    methods = dict(METHODS)
    register(methods)
    assert methods == METHODS
    with pytest.raises(ValueError, match="clsp_simclr is taken"):
        register({"simclr": METHODS["simclr"], "clsp_simclr": METHODS["byol"]})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("synthetic.weight=-1",), "synthetic.weight=-1"),
        (("synthetic.path=null",), "set synthetic.path"),
        (("synthetic.path=nowhere",), "clsp generate"),
        (("synthetic.wieght=1",), "did you mean 'weight'"),
        (("synthetic.warmup_epochs=-1",), "warmup_epochs=-1 must be at least 0"),
        (("synthetic.num_candidates=9",), "between 1 and the 3"),
    ],
)
def test_bad_settings_are_told_before_anything_is_written(tiny, store, overrides, message):
    cfg = tiny("clsp_simclr", f"synthetic.path={store}", *overrides)
    with pytest.raises(ClspError, match=message):
        pretrain(cfg)
    assert not (store.parent / "trained").exists()


def test_candidates_for_other_images_are_refused(tiny, store):
    with pytest.raises(ClspError, match="were made for 48 images") as told:
        pretrain(tiny("clsp_simclr", f"synthetic.path={store}", "data.seed=1"))
    assert "digits/train" in str(told.value)


class ForeignMethod(pl.LightningModule):
    """A method of another package, with the interface of solo-learn's BaseMethod."""

    def __init__(self, cfg):
        super().__init__()
        cfg = self.add_and_assert_specific_cfg(cfg)
        self.cfg = cfg
        self.num_large_crops, self.num_crops = 2, 2
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8))
        self.seen = []

    @staticmethod
    def add_and_assert_specific_cfg(cfg):
        cfg.foreign_default = 7
        return cfg

    def forward(self, X):
        feats = self.backbone(X)
        return {"feats": feats, "z": feats}

    def base_training_step(self, X, targets):
        return {**self(X), "loss": torch.zeros(())}

    def training_step(self, batch, batch_idx):
        _, X, targets = batch
        self.seen.append(len(X))
        outs = [self.base_training_step(x, targets) for x in X[: self.num_large_crops]]
        return (outs[0]["z"] - outs[1]["z"]).square().mean()


def test_works_over_a_class_that_is_not_the_engine_s(store, digits48):
    cfg = OmegaConf.create(
        {
            "method": "clsp_foreign",
            "seed": 0,
            "synthetic": {"path": str(store), "weight": 2.0},
            "augmentations": [{"rrc": {"enabled": False}, "crop_size": 16, "num_crops": 2}],
        }
    )
    methods = {"foreign": ForeignMethod}
    register(methods)
    model = methods["clsp_foreign"](cfg)
    assert isinstance(model, ForeignMethod)
    assert isinstance(model, SyntheticPositives)
    assert model.cfg.foreign_default == 7
    model.attach(digits48, [0.5] * 3, [0.25] * 3)
    inputs = step_inputs()
    loss = model.training_step(inputs, 0)
    third = model.synthetic_view(inputs[0])
    first = model.forward(inputs[1][0])["z"]
    base = (first - model.forward(inputs[1][1])["z"]).square().mean()
    cosine = F.cosine_similarity(first, model.forward(third)["z"]).mean()
    torch.testing.assert_close(loss, base + 2.0 * (2 - 2 * cosine))
    assert model.seen == [2]  # the base method never saw a third view
