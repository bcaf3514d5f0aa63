"""What is done with synthetic positives: each use's formula, its draws, and what is refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from clsp_plugin.candidates.choice import at_quantile
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.training import Synthetic, parse_cfg
from clsp_plugin.engine.pretrain import check, pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.nt_xent import nt_xent_loss
from clsp_plugin.losses.pair_quality import foreground_background, quality_weights
from clsp_plugin.losses.pairs import mean_over_pairs
from clsp_plugin.losses.vicreg import vicreg_loss
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.judging import FrozenEncoder
from clsp_plugin.methods.schedules import quantile_at, strength_at
from clsp_plugin.methods.synthetic import SyntheticPositives
from clsp_plugin.records.recipe import recipe
from clsp_plugin.records.record import Record

BASES = sorted(name for name in METHODS if not issubclass(METHODS[name], SyntheticPositives))
TAKE_MORE = [name for name in BASES if METHODS[name].takes_more_views]


def weights(finished):
    return torch.load(finished.checkpoint, weights_only=True)["state_dict"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def model_with(tiny, method, array, *overrides):
    cfg = parse_cfg(tiny(method, *overrides), METHODS)
    cfg.data.num_classes = 10
    torch.manual_seed(0)
    model = METHODS[method](cfg)
    model.attach(array, [0.5] * 3, [0.25] * 3)
    model.logged = {}
    model.log_epoch = lambda **metrics: model.logged.update(metrics)
    return model


def step_inputs(size=16):
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(size, 3, 16, 16, generator=generator) for _ in range(2)]
    return [torch.arange(size), views, torch.arange(size) % 10]


NOTHING = {
    "replace": ("synthetic.use=replace", "synthetic.probability=0"),
    "multi": ("synthetic.use=multi", "synthetic.per_step=0"),
    "later": ("synthetic.use=view", "synthetic.from_epoch=1"),
}


@pytest.mark.parametrize(
    ("base", "uses"),
    [("simclr", ["replace", "multi", "later"]), ("mocov2plus", ["replace"]), ("byol", ["multi"])],
)
def test_with_nothing_to_do_it_is_the_base_method_to_the_last_bit(tiny, store, base, uses):
    short = ("max_epochs=1", "data.num_val=10")
    plain = weights(pretrain(tiny(base, *short)))
    for use in uses:
        given = (f"synthetic.path={store}",) if use == "later" else ()  # no other looks for one
        assert equal(weights(pretrain(tiny(f"clsp_{base}", *short, *NOTHING[use], *given))), plain)


@pytest.mark.parametrize(
    "settings",
    [
        ("synthetic.use=replace", "synthetic.probability=0.5"),
        (
            "synthetic.use=multi",
            "synthetic.per_step=2",
            "joint_forward=True",
            "synthetic.choice=curriculum",
            "synthetic.schedule=cosine",
        ),
    ],
)
def test_a_run_that_goes_on_equals_one_left_alone(tiny, store, interrupt, tmp_path, settings):
    given = (*settings, f"synthetic.path={store}", "max_epochs=2", "auto_resume.enabled=True")
    whole = weights(pretrain(tiny("clsp_simclr", *given)))
    cfg = tiny("clsp_simclr", *given, f"checkpoint.dir={tmp_path / 'second'}")
    interrupt(cfg, epoch=1)
    assert equal(weights(pretrain(cfg)), whole)


def test_the_candidate_takes_the_place_of_view_2(tiny, store, digits48):
    given = (f"synthetic.path={store}", "synthetic.use=replace")
    model = model_with(tiny, "clsp_simclr", digits48, *given, "synthetic.probability=0.4")
    indexes, views, targets = step_inputs(48)
    third = model.synthetic_view(indexes)
    replaced = model.replace_second(indexes, views, third)
    is_third = (replaced[1] == third).flatten(1).all(1)
    is_second = (replaced[1] == views[1]).flatten(1).all(1)
    assert (is_third ^ is_second).all()
    assert 8 < is_third.sum() < 31  # of 48, at 0.4
    assert replaced[0] is views[0]
    part = torch.tensor([40, 3, 7])  # whatever batch they are in
    again = model.replace_second(part, [v[part] for v in views], third[part])
    assert torch.equal(again[1], replaced[1][part])
    base = model_with(tiny, "simclr_aug", digits48, "synthetic.weight=0")
    base.load_state_dict(model.state_dict())
    loss = model.training_step([indexes, views, targets], 0)
    assert torch.equal(loss, base.training_step([indexes, replaced, targets], 0))
    always = model_with(tiny, "clsp_simclr", digits48, *given)
    assert torch.equal(always.replace_second(indexes, views, third)[1], third)


def test_which_images_are_replaced_changes_from_epoch_to_epoch(tiny, store, digits48, monkeypatch):
    given = (f"synthetic.path={store}", "synthetic.use=replace", "synthetic.probability=0.3")
    model = model_with(tiny, "clsp_simclr", digits48, *given, "synthetic.warmup_epochs=2")
    indexes = torch.arange(48)
    empty = torch.zeros(48, 1, 1, 1)
    drawn = []
    for epoch in range(202):
        monkeypatch.setattr(type(model), "current_epoch", epoch)
        drawn.append(model.replace_second(indexes, [empty, empty], empty + 1)[1].flatten())
    drawn = torch.stack(drawn)
    assert drawn[0].sum() == 0  # the probability rises from 0
    # 9,600 draws of 0.3: standard error 0.5 %
    assert drawn[2:].mean().item() == pytest.approx(0.3, abs=0.02)
    assert (drawn[2:].mean(0) - 0.3).abs().max() < 0.13  # of every image: 4 standard errors


def test_a_replacing_view_is_augmented_as_view_2(tiny, store, digits48):
    blocks = [{"rrc": {"enabled": False}, "crop_size": 16, "num_crops": 1} for _ in range(2)]
    blocks[1]["horizontal_flip"] = {"prob": 1.0}
    flips = {}
    for use in ("align", "replace"):
        cfg = tiny("clsp_simclr", f"synthetic.path={store}", f"synthetic.use={use}")
        cfg.augmentations = blocks
        cfg = parse_cfg(cfg, METHODS)
        cfg.data.num_classes = 10
        model = METHODS["clsp_simclr"](cfg)
        model.attach(digits48, [0.0] * 3, [1.0] * 3)
        flips[use] = model.synthetic_view(torch.arange(4))
    torch.testing.assert_close(flips["replace"], flips["align"].flip(-1))


def embeddings(model, views):
    return [model.forward(view) for view in views]


def test_a_third_view_is_one_of_the_method_s_own(tiny, store, digits48):
    given = (f"synthetic.path={store}", "synthetic.use=view", "joint_forward=False")
    indexes, views, targets = step_inputs()
    for name in ("simclr", "vicreg", "byol"):
        model = model_with(tiny, f"clsp_{name}", digits48, *given)
        reference = copy.deepcopy(model)
        model.training_step([indexes, views, targets], 0)
        outs = embeddings(reference, [*views, reference.synthetic_view(indexes)])
        z = [out["z"] for out in outs]
        if name == "simclr":
            expected = nt_xent_loss(torch.cat(z), indexes.repeat(3), 0.2)
        elif name == "vicreg":
            expected = mean_over_pairs(vicreg_loss, z)
        else:  # the momentum network is still the network itself
            pairs = [(u, v) for u in range(3) for v in range(3) if u != v]
            cosines = [F.cosine_similarity(outs[u]["p"], z[v], dim=1).mean() for u, v in pairs]
            expected = sum(2 - 2 * cosine for cosine in cosines)
        torch.testing.assert_close(model.logged["train_loss"], expected.detach())
        assert (model.num_crops, model.num_large_crops) == (2, 2)


@pytest.mark.parametrize("name", TAKE_MORE)
def test_methods_that_take_more_views_learn_from_a_third(tiny, store, digits48, name):
    given = (f"synthetic.path={store}", "synthetic.use=view", "joint_forward=True")
    model = model_with(tiny, f"clsp_{name}", digits48, *given)
    reference = copy.deepcopy(model)
    inputs = step_inputs()
    torch.manual_seed(1)
    loss = model.training_step(inputs, 0)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    first = inputs[1][0]
    reference._third = lambda indexes, epoch, place: 3 * first  # another third view
    torch.manual_seed(1)
    assert abs(reference.training_step(inputs, 0) - loss) > 1e-3


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_one_candidate_s_multi_positive_loss_is_nt_xent_of_views_1_and_3(
    tiny, store, digits48, name
):
    given = (f"synthetic.path={store}", "synthetic.use=multi", "synthetic.per_step=1")
    model = model_with(
        tiny, f"clsp_{name}", digits48, *given, "synthetic.temperature=0.3", "synthetic.weight=0.7",
        "joint_forward=False",
    )  # fmt: skip
    reference = copy.deepcopy(model)
    inputs = step_inputs()
    loss = model.training_step(inputs, 0)
    first, third = embeddings(reference, [inputs[1][0], reference.synthetic_view(inputs[0])])
    term = nt_xent_loss(torch.cat([first["z"], third["z"]]), inputs[0].repeat(2), 0.3)
    torch.testing.assert_close(model.logged["train_multi_positive"], term)
    own = model.logged["train_loss"] + model.logged["train_class_loss"]
    torch.testing.assert_close(loss, own + 0.7 * term)


def test_several_candidates_are_different_and_all_are_positives(tiny, store, digits48):
    given = (f"synthetic.path={store}", "synthetic.use=multi", "synthetic.per_step=3")
    model = model_with(tiny, "clsp_simclr", digits48, *given, "joint_forward=False")
    reference = copy.deepcopy(model)
    inputs = step_inputs(8)
    model.training_step(inputs, 0)
    third = reference.synthetic_views(inputs[0])
    assert len(third) == 3
    z = torch.cat([out["z"] for out in embeddings(reference, [inputs[1][0], *third])])
    z = F.normalize(z, dim=1)
    terms = []
    for i in range(32):
        others = [j for j in range(32) if j != i]
        total = sum(torch.exp(z[i] @ z[j] / 0.2) for j in others)
        positives = [j for j in others if j % 8 == i % 8]
        assert len(positives) == 3
        terms += [-torch.log(torch.exp(z[i] @ z[j] / 0.2) / total) / 3 for j in positives]
    torch.testing.assert_close(model.logged["train_multi_positive"], sum(terms) / 32)


def test_candidates_of_a_step_are_drawn_without_repetition(store):
    opened = CandidateStore(store)
    indexes = torch.arange(48)
    draws = torch.stack([opened.choose_several(indexes, 0, epoch, 3) for epoch in range(200)])
    assert (draws.sort(-1).values == torch.arange(3)).all()
    orders = (draws * torch.tensor([9, 3, 1])).sum(-1).flatten().unique(return_counts=True)[1]
    # 9,600 draws of 6 orders: 1,600 each, standard deviation 37
    assert len(orders) == 6
    assert (orders - 1600).abs().max() < 150
    for number in (1, 2):  # more of them begin with fewer
        fewer = opened.choose_several(indexes, 0, 7, number)
        assert torch.equal(fewer, draws[7, :, :number])
    assert torch.equal(opened.choose(indexes, 0, 7), draws[7, :, 0])


def test_several_candidates_that_were_begun_on_the_host_are_the_same(tiny, store, digits48):
    given = (f"synthetic.path={store}", "synthetic.use=multi", "synthetic.per_step=2")
    model = model_with(tiny, "clsp_simclr", digits48, *given)
    indexes = torch.tensor([5, 40, 0, 19])
    expected = model.synthetic_views(indexes)
    model.begin_view(indexes)
    assert all(map(torch.equal, expected, model.synthetic_views(indexes)))
    assert not torch.equal(*expected)


def test_the_control_has_several_views_of_the_image(tiny, digits48):
    model = model_with(tiny, "simclr_aug", digits48, "synthetic.use=multi")
    one, two = model.synthetic_views(torch.arange(6))
    assert one.shape == two.shape == (6, 3, 16, 16)
    assert not torch.equal(one, two)


def test_the_strength_over_a_training():
    def strengths(epochs=9, **settings):
        block = OmegaConf.structured(Synthetic(**settings))
        return [strength_at(block, epoch, epochs) for epoch in range(epochs)]

    assert strengths() == [1.0] * 9  # the paper's
    assert strengths(warmup_epochs=4) == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert strengths(from_epoch=2) == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert strengths(from_epoch=2, warmup_epochs=2) == [0, 0, 0, 0.5, 1, 1, 1, 1, 1]
    fall = strengths(schedule="linear", warmup_epochs=4)
    assert fall == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0])
    assert strengths(schedule="linear", final=0.5)[::4] == pytest.approx([1, 0.75, 0.5])
    cosine = strengths(schedule="cosine", final=0.2)
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in range(9)]
    assert cosine == pytest.approx(expected)
    assert strengths(1, schedule="linear", warmup_epochs=3, from_epoch=2) == [0]


def test_a_curriculum_goes_from_easy_to_hard():
    def quantiles(**settings):
        block = OmegaConf.structured(Synthetic(**settings))
        return [quantile_at(block, epoch, 5) for epoch in range(5)]

    assert quantiles(choice="curriculum") == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert quantiles(choice="hardest") == [0] * 5
    assert quantiles(choice="easiest") == [1] * 5
    assert quantiles(choice="quantile", quantile=0.3) == [0.3] * 5


def test_places_at_a_quantile():
    similarity = torch.tensor([[0.3, -1.0, 0.9, 0.1], [0.0, 0.4, 0.2, 0.3]])
    assert at_quantile(similarity, 0.0).tolist() == [[1], [0]]
    assert at_quantile(similarity, 1.0).tolist() == [[2], [1]]
    assert at_quantile(similarity, 0.7).tolist() == [[0], [3]]
    assert at_quantile(similarity, 0.0, 2).tolist() == [[1, 3], [0, 2]]
    assert at_quantile(similarity, 1.0, 3).tolist() == [[3, 0, 2], [2, 3, 1]]


@pytest.mark.parametrize(("choice", "use"), [("hardest", "align"), ("easiest", "replace")])
def test_the_hardest_is_the_least_similar_to_the_network_as_it_is(
    tiny, store, digits48, choice, use
):
    given = (f"synthetic.path={store}", f"synthetic.use={use}", f"synthetic.choice={choice}")
    model = model_with(tiny, "clsp_byol", digits48, *given)
    inputs = step_inputs(8)
    model.training_step(inputs, 0)  # running statistics are no longer those of the beginning
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = model.synthetic_views(inputs[0])
    assert len(drawn) == 3
    (chosen,) = model.chosen(inputs[1][0], drawn)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training and model.backbone.training  # noqa: PT018
    model.eval()
    anchor = model.backbone(inputs[1][0])
    cosines = torch.stack([F.cosine_similarity(anchor, model.backbone(v)) for v in drawn])
    best = cosines.argmin(0) if choice == "hardest" else cosines.argmax(0)
    for row, place in enumerate(best):
        assert torch.equal(chosen[row], drawn[place][row])
    assert len(best.unique()) > 1


def test_the_control_chooses_among_further_views(tiny, digits48):
    with pytest.raises(ClspError, match=r"there can be any number; set synthetic.choice_of"):
        check(tiny("simclr_aug", "synthetic.choice=hardest"))
    model = model_with(tiny, "simclr_aug", digits48, "synthetic.choice=hardest",
                       "synthetic.choice_of=4")  # fmt: skip
    inputs = step_inputs(8)
    assert len(model.synthetic_views(inputs[0])) == 4
    assert torch.isfinite(model.training_step(inputs, 0))


QUALITY = ("synthetic.pair_weight=quality", "synthetic.gamma=4", "joint_forward=False")


def expected_weights(model, first, other):
    """GenView's weights by the maps of the third stage, 2x2 places of images of 16x16."""
    backbone = copy.deepcopy(model.backbone).eval()
    backbone.layer4 = torch.nn.Identity()
    with torch.no_grad():
        maps = [backbone.forward_features(view) for view in (first, other)]
    assert maps[0].shape[1:] == (8, 2, 2)
    parts = [foreground_background(one) for one in maps]
    similar = [F.cosine_similarity(a, b) for a, b in zip(*parts, strict=True)]
    return quality_weights(*similar, gamma=4)


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_pairs_count_by_their_quality_in_the_alignment(tiny, store, digits48, name):
    model = model_with(tiny, f"clsp_{name}", digits48, f"synthetic.path={store}", *QUALITY)
    reference = copy.deepcopy(model)
    inputs = step_inputs()
    first, third = inputs[1][0], reference.synthetic_view(inputs[0])
    weights = expected_weights(reference, first, third)
    assert weights.std() > 0.1
    model.training_step(inputs, 0)
    outs = embeddings(reference, [first, third])
    pairs = [(outs[0]["z"], outs[1]["z"])]
    if name == "byol":
        pairs = [(outs[0]["p"], outs[1]["z"]), (outs[1]["p"], outs[0]["z"])]
    terms = [(weights * (2 - 2 * F.cosine_similarity(a, b))).mean() for a, b in pairs]
    torch.testing.assert_close(model.logged["train_alignment"], sum(terms) / len(terms))


def test_pairs_count_by_their_quality_among_several_candidates(tiny, store, digits48):
    given = (f"synthetic.path={store}", "synthetic.use=multi", *QUALITY)
    model = model_with(tiny, "clsp_simclr", digits48, *given, "synthetic.per_step=1")
    reference = copy.deepcopy(model)
    inputs = step_inputs()
    first, third = inputs[1][0], reference.synthetic_view(inputs[0])
    weights = expected_weights(reference, first, third).repeat(2)  # each pair is of two rows
    model.training_step(inputs, 0)
    z = torch.cat([out["z"] for out in embeddings(reference, [first, third])])
    expected = nt_xent_loss(z, inputs[0].repeat(2), 0.2, weights)
    torch.testing.assert_close(model.logged["train_multi_positive"], expected)
    several = model_with(tiny, "clsp_simclr", digits48, *given, "synthetic.per_step=2")
    views = [first, *several.synthetic_views(inputs[0])]
    positive = torch.arange(48)[:, None] % 16 == torch.arange(48)[None] % 16
    positive.fill_diagonal_(False)
    matrix = several.weigher_of(views)(positive)
    assert matrix[positive].mean().item() == pytest.approx(1, rel=1e-4)
    assert (matrix[~positive] == 0).all()
    torch.testing.assert_close(matrix, matrix.T)


@pytest.mark.parametrize("name", ["simclr", "mocov2plus", "byol"])
def test_pairs_count_by_their_quality_in_the_method_s_own_loss(tiny, store, digits48, name):
    given = (f"synthetic.path={store}", "synthetic.use=replace", *QUALITY)
    model = model_with(tiny, f"clsp_{name}", digits48, *given)
    references = [copy.deepcopy(model) for _ in range(3)]
    inputs = step_inputs()
    third = model.synthetic_view(inputs[0])
    weights = expected_weights(model, inputs[1][0], third)
    loss = model.training_step(inputs, 0)
    found = []
    for reference, each in zip(references, (weights, None, torch.ones(16)), strict=True):
        reference.pair_weights = each
        replaced = [inputs[0], [inputs[1][0], third], inputs[2]]
        found.append(METHODS[name].training_step(reference, replaced, 0))
    torch.testing.assert_close(loss, found[0])
    assert abs(loss - found[1]) > 1e-4
    torch.testing.assert_close(found[1], found[2])


def test_an_encoder_is_asked_in_place_of_the_network(tiny, store, digits48):
    given = (f"synthetic.path={store}", "synthetic.choice=hardest", "synthetic.pair_weight=quality")
    model = model_with(tiny, "clsp_simclr", digits48, *given)
    torch.manual_seed(5)
    other = copy.deepcopy(model.backbone)
    for weight in other.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    expects, gets = ([0.2, 0.3, 0.4], [0.1, 0.2, 0.3]), ([0.5] * 3, [0.25] * 3)
    inputs = step_inputs()
    first, drawn = inputs[1][0], model.synthetic_views(inputs[0])
    by_itself = model.chosen(first, drawn)[0], model.weights_of(first, drawn[0])
    keys = list(model.state_dict())
    model.judge_by(FrozenEncoder(other, expects, gets))
    assert list(model.state_dict()) == keys  # neither saved nor trained
    chosen, weights = model.chosen(first, drawn)[0], model.weights_of(first, drawn[0])
    assert not torch.equal(chosen, by_itself[0])
    assert not torch.allclose(weights, by_itself[1])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in expects)
    pixels = [((view * 0.25 + 0.5) - mean) / std for view in (first, *drawn)]
    with torch.no_grad():
        anchor, *feats = [other.eval()(view) for view in pixels]
    best = torch.stack([F.cosine_similarity(anchor, feat) for feat in feats]).argmin(0)
    for row, place in enumerate(best):
        assert torch.equal(chosen[row], drawn[place][row])


def test_an_encoder_is_a_checkpoint(tiny, store, tmp_path):
    encoder = pretrain(tiny("simclr", "max_epochs=1")).checkpoint
    given = (f"synthetic.path={store}", "synthetic.choice=hardest", "max_epochs=1")
    plain = weights(pretrain(tiny("clsp_simclr", *given)))
    asked = weights(pretrain(tiny("clsp_simclr", *given, f"synthetic.encoder={encoder}")))
    assert asked.keys() == plain.keys()
    assert not equal(asked, plain)
    with pytest.raises(ClspError, match="no checkpoint"):
        pretrain(tiny("clsp_simclr", *given, f"synthetic.encoder={tmp_path / 'none'}"))


def test_a_network_without_a_feature_map_is_refused(tiny):
    cfg = tiny("clsp_simclr", "synthetic.path=none", "synthetic.pair_weight=quality")
    cfg.backbone = {"name": "vit_tiny", "kwargs": {"img_size": 16, "patch_size": 4, "depth": 1}}
    with pytest.raises(ClspError, match="VisionTransformer makes none of images of"):
        pretrain(cfg)


def test_the_losses_of_two_views_are_these():  # as docs/uses.md has it
    assert set(BASES) - set(TAKE_MORE) == {
        "all4one", "cl_gan", "deepclusterv2", "mocov2_ft", "mocov2plus", "mocov3", "nnclr",
        "nnsiam", "ressl", "simclr_ft", "simsiam", "swav",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("mocov2plus", "use=view", "loss of clsp_mocov2plus a third large view, .* set"),
        ("swav", "use=view", "loss is one of two"),
        ("simclr", "use=view warmup_epochs=3", "warmup_epochs=3 has nothing to change"),
        ("simclr", "use=view schedule=cosine", "schedule=cosine has nothing to change"),
        ("simclr", "use=align probability=0.5", "synthetic.use=replace and would not be used with"),
        ("simclr", "use=replace per_step=3", "a setting of synthetic.use=multi and would not"),
        ("simclr", "use=view temperature=0.1", "synthetic.temperature=0.1 is a setting"),
        ("simclr", "use=multi per_step=4 num_candidates=3", "more than synthetic.num_candidates=3"),
        ("simclr", "choice=hardest choice_of=4 num_candidates=3", "draws 4 different candidates"),
        ("simclr", "choice_of=4", "choice=hardest or easiest or quantile or curriculum and would"),
        ("simclr", "choice=hardest quantile=0.2", "quantile=0.2 is a setting of synthetic.choice="),
        ("simclr", "use=multi choice=hardest choice_of=2", "nothing to choose: 2 of synthetic.ch"),
        ("simclr", "use=view pair_weight=quality", "three pairs of views an image in one loss"),
        ("vicreg", "use=replace pair_weight=quality", "clsp_vicreg, which cannot weigh the images"),
        ("simclr", "gamma=2", "gamma=2.0 is a setting of synthetic.pair_weight=quality and would"),
        ("simclr", "encoder=some.ckpt", "encoder=some.ckpt would not be asked anything; set synth"),
        ("simclr", "final=0.5", "final=0.5 is a setting of synthetic.schedule=linear or cosine"),
        ("simclr", "use=replace probability=1.5", "probability=1.5 must be at least 0 and at"),
        ("simclr", "use=negative", "use=negative must be one of align, replace, view, multi"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, method, settings, message):
    given = [f"synthetic.{one}" for one in settings.split()]
    with pytest.raises(ClspError, match=message):
        check(tiny(f"clsp_{method}", *given))


def test_it_is_refused_before_images_are_read(tiny):
    cfg = tiny("clsp_swav", "synthetic.use=view", "data.dataset=custom", "data.train_path=/nowhere")
    with pytest.raises(ClspError, match="that loss is one of two"):
        pretrain(cfg)


def test_a_view_of_another_size_is_refused(tiny):
    cfg = tiny("clsp_simclr", "synthetic.use=replace")
    cfg.synthetic.augmentation = {"crop_size": 12, "num_crops": 1}
    with pytest.raises(ClspError, match=r"views of 12 pixels.*crop_size=16"):
        check(cfg)
    cfg.synthetic.use = "align"
    check(cfg)
    cfg.synthetic.choice = "hardest"
    with pytest.raises(ClspError, match=r"for synthetic.choice=hardest they have to be like"):
        check(cfg)


@pytest.mark.parametrize("use", ["align", "replace", "view"])
def test_nothing_of_a_step_is_kept(tiny, store, digits48, use):
    given = (f"synthetic.path={store}", f"synthetic.use={use}", "joint_forward=False")
    model = model_with(tiny, "clsp_simclr", digits48, *given)
    model.training_step(step_inputs(4), 0)
    assert not model._first


def test_more_candidates_than_the_store_holds_are_refused(tiny, store):
    cfg = tiny("clsp_simclr", f"synthetic.path={store}", "synthetic.use=multi",
               "synthetic.per_step=4")  # fmt: skip
    with pytest.raises(ClspError, match=r"4 candidates of each image are drawn .* has 3"):
        pretrain(cfg)
    assert not (store.parent / "trained").exists()


def test_records_of_before_have_the_use_of_before(tiny, store):
    record = Record.load(pretrain(tiny("clsp_simclr", f"synthetic.path={store}")).record)
    new = recipe(record)
    for key in vars(Synthetic()).keys() - {"path", "num_candidates", "weight", "augmentation"}:
        record.config["synthetic"].pop(key)
    assert recipe(record) == new
    assert new["synthetic.use"] == '"align"'
