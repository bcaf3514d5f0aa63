"""What is particular to SwAV, DINO and DeepCluster-v2: queues, centers, clusters, small crops."""

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from clsp_plugin.config.training import parse_cfg
from clsp_plugin.data.loader import PretrainData
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.prototypes import sinkhorn
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.prototypes import cluster


def with_small_crops(cfg, number=3):
    small = OmegaConf.merge(cfg.augmentations[0], {"crop_size": 8, "num_crops": number})
    cfg.augmentations = [cfg.augmentations[0], small]
    return cfg


@pytest.fixture
def build(tiny):
    def make(method, *overrides, small=False):
        cfg = tiny(method, *overrides)
        cfg = parse_cfg(with_small_crops(cfg) if small else cfg, METHODS)
        cfg.data.num_classes = 10
        torch.manual_seed(0)
        model = METHODS[method](cfg)
        return model

    return make


def batch(size=16, small=0):
    generator = torch.Generator().manual_seed(1)
    sides = [16, 16] + [8] * small
    views = [torch.randn(size, 3, side, side, generator=generator) for side in sides]
    return [torch.arange(size), views, torch.arange(size) % 10]


# ---------------------------------------------------------------------------------- small crops


def test_the_data_path_makes_large_crops_first_and_small_ones_of_their_size(tiny, digits48):
    blocks = with_small_crops(tiny("swav")).augmentations
    data = PretrainData(digits48, None, blocks, 16, 0, [0.5] * 3, [0.25] * 3)
    data.trainer = type("Trainer", (), {"current_epoch": 0})
    views = data.views(digits48.images[:4], torch.arange(4))
    assert [tuple(view.shape) for view in views] == [(4, 3, 16, 16)] * 2 + [(4, 3, 8, 8)] * 3
    assert not torch.equal(views[2], views[3])  # each crop has randomness of its own
    # a small crop is what its pipeline alone makes, not a shrunken large one
    alone = PretrainData(digits48, None, blocks[1:], 16, 0, [0.5] * 3, [0.25] * 3)
    assert alone.pipelines[0].cfg == data.pipelines[2].cfg


def test_small_before_large_is_refused(tiny):
    cfg = with_small_crops(tiny("swav"))
    cfg.augmentations = [cfg.augmentations[1], cfg.augmentations[0]]
    with pytest.raises(ClspError, match="put the large ones first"):
        parse_cfg(cfg, METHODS)


def test_a_method_of_two_views_refuses_small_crops(tiny):
    cfg = parse_cfg(with_small_crops(tiny("mocov2plus")), METHODS)
    cfg.data.num_classes = 10
    with pytest.raises(ClspError, match="3 small crops and mocov2plus takes large ones alone"):
        METHODS["mocov2plus"](cfg)


@pytest.mark.parametrize("method", ["swav", "dino", "deepclusterv2", "simclr", "byol"])
def test_small_crops_take_part_in_the_loss(build, method):
    model = build(method, "joint_forward=False", small=True)
    if method == "deepclusterv2":
        model.prepare(48)
        model.remember(torch.arange(48), [F.normalize(torch.randn(48, 8), dim=1)] * 2)
        model.cluster_memory(1)
    model.eval()  # so that views do not meet in batch normalisation
    indexes, views, targets = batch(small=3)
    views[4].requires_grad_()
    model.training_step([indexes, views, targets], 0).backward()
    assert views[4].grad.abs().sum() > 0


def test_trains_with_small_crops_and_candidates(tiny, store):
    cfg = with_small_crops(tiny("clsp_swav", f"synthetic.path={store}"), number=1)
    assert pretrain(cfg).checkpoint.exists()


# ----------------------------------------------------------------------------------------- SwAV


def test_swav_queue_takes_the_embeddings_in_turn(build):
    model = build("swav", "method_kwargs.queue_size=32").eval()
    indexes, views, targets = batch()
    for step in range(3):
        moved = [view + step for view in views]
        expected = torch.stack([model(view)["z"] for view in moved], dim=1)
        model.training_step([indexes, moved, targets], 0)
        place = 16 * (step % 2)
        torch.testing.assert_close(model.queue[place : place + 16], expected)
    assert int(model.queue_ptr) == 16


def test_swav_assigns_with_the_queue_from_its_epoch_on(build):
    model = build("swav", "method_kwargs.epoch_queue_starts=0")
    epsilon = model.kwargs.sk_epsilon
    z = F.normalize(torch.randn(2, 16, 8), dim=-1)
    scores = model.prototypes(z[0])
    alone = sinkhorn(scores, epsilon, 3)
    torch.testing.assert_close(model._assign(scores, 0), alone)  # nothing was queued yet
    model.enqueue((model.queue, torch.stack([z[1], z[0]], dim=1)))
    both = sinkhorn(torch.cat([scores, model.prototypes(z[1])]), epsilon, 3)[:16]
    torch.testing.assert_close(model._assign(scores, 0), both)
    later = build("swav", "method_kwargs.epoch_queue_starts=1")
    later.load_state_dict(model.state_dict())
    torch.testing.assert_close(later._assign(scores, 0), alone)


@pytest.mark.parametrize(
    ("method", "setting", "module"),
    [("swav", "freeze_prototypes_epochs", "prototypes"), ("dino", "freeze_last_layer", "head")],
)
def test_prototypes_are_frozen_at_first(build, method, setting, module):
    for epochs, frozen in ((1, True), (0, False)):
        model = build(method, f"method_kwargs.{setting}={epochs}")
        model.training_step(batch(), 0).backward()
        model.on_after_backward()
        layer = getattr(model, module)
        weight = layer.weight if method == "swav" else layer.last_layer.weight
        assert (weight.grad is None) == frozen
        assert model.backbone.conv1.weight.grad is not None


def test_swav_can_do_without_a_queue(build):
    model = build("swav", "method_kwargs.queue_size=0", "method_kwargs.epoch_queue_starts=0")
    assert torch.isfinite(model.training_step(batch(), 0))


# ----------------------------------------------------------------------------------------- DINO


def test_dino_center_follows_the_teacher(build):
    model = build("dino")
    scores = [torch.randn(4, 12), torch.randn(4, 12)]
    model._teach(scores)
    mean = torch.cat(scores).mean(0, keepdim=True)
    torch.testing.assert_close(model.center, 0.1 * mean)
    model._teach(scores)
    torch.testing.assert_close(model.center, 0.19 * mean)


def test_dino_teaches_sharpened_and_centered(build):
    model = build(
        "dino",
        "method_kwargs.warmup_teacher_temperature_epochs=0",
        "method_kwargs.teacher_temperature=0.07",
    )
    model.center[:] = torch.linspace(-1, 1, 12)
    center, scores = model.center.clone(), torch.randn(4, 12)
    (target,) = model._teach([scores])
    torch.testing.assert_close(target, ((scores - center) / 0.07).softmax(1))


def test_dino_temperature_warms_up(build):
    model = build(
        "dino",
        "method_kwargs.warmup_teacher_temperature_epochs=4",
        "method_kwargs.warmup_teacher_temperature=0.04",
        "method_kwargs.teacher_temperature=0.07",
    )
    temperatures = [model.teacher_temperature(epoch) for epoch in range(6)]
    assert temperatures == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])


def test_dino_clips_each_gradient_of_the_backbone(build):
    model = build("dino", "method_kwargs.clip_grad=0.001")
    model.training_step(batch(), 0).backward()
    head = model.head.mlp[0].weight.grad.clone()
    assert model.backbone.conv1.weight.grad.norm() > 0.001
    model.on_after_backward()
    assert all(p.grad.norm() <= 0.001001 for p in model.backbone.parameters())
    assert torch.equal(model.head.mlp[0].weight.grad, head)


def test_dino_z_is_an_embedding_of_unit_norm_and_p_its_scores(build):
    model = build("dino")
    out = model(torch.randn(4, 3, 16, 16))
    assert out["z"].shape == (4, 8)
    torch.testing.assert_close(out["z"].norm(dim=1), torch.ones(4))
    assert out["p"].shape == (4, 12)
    assert out["p"].abs().max() <= 1 + 1e-6
    scaled = build("dino", "method_kwargs.norm_last_layer=False")
    assert scaled.head.last_layer.scale.requires_grad


def test_dino_with_a_vit_and_small_crops(tiny):
    cfg = tiny("dino", "backbone=null", "max_epochs=1")
    kwargs = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    cfg.backbone = {"name": "vit_tiny", "kwargs": kwargs}
    state = torch.load(pretrain(with_small_crops(cfg)).checkpoint, weights_only=True)["state_dict"]
    assert "backbone.pos_embed" in state
    assert "momentum_backbone.pos_embed" in state


# ------------------------------------------------------------------------------- DeepCluster-v2


def test_clusters_are_found_on_the_sphere():
    torch.manual_seed(0)
    directions = F.normalize(torch.randn(3, 6), dim=1)
    truth = torch.arange(60) % 3
    points = F.normalize(directions[truth] + 0.05 * torch.randn(60, 6), dim=1)
    key = next(k for k in range(50) if len(set(_start(points, k).tolist())) == 3)
    assignments, centroids = cluster(points, 3, 10, key)
    for k in range(3):
        assert len(truth[assignments == k].unique()) == 1
        mean = F.normalize(points[assignments == k].sum(0), dim=0)
        torch.testing.assert_close(centroids[k], mean)
    assert torch.equal(assignments, (points @ centroids.T).argmax(1))


def _start(points, key):
    """Return the true clusters of the points that k-means starts from for a key."""
    _, centroids = cluster(points, 3, 0, key)
    return torch.tensor([int((points == c).all(1).nonzero()[0]) % 3 for c in centroids])


def test_the_key_decides_and_an_empty_cluster_keeps_its_centroid():
    points = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    first, again, other = (cluster(points, 5, 3, key)[0] for key in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    same = points[:1].repeat(6, 1)  # all but one cluster lose their points
    assignments, centroids = cluster(same, 3, 2, 0)
    assert len(assignments.unique()) == 1
    torch.testing.assert_close(centroids, points[:1].repeat(3, 1))


def test_deepclusterv2_remembers_and_assigns_by_image(build):
    model = build("deepclusterv2")
    model.prepare(48)
    model.cluster_memory(0)  # nothing is remembered: no clusters
    assert (model.assignments == -1).all()
    z = [F.normalize(torch.randn(20, 8), dim=1) for _ in range(2)]
    indexes = torch.randperm(48)[:20]
    model.remember(indexes, z)
    assert torch.equal(model.memory[1, indexes], z[1])
    model.cluster_memory(1)
    seen = torch.zeros(48, dtype=torch.bool)
    seen[indexes] = True
    assert (model.assignments[:, ~seen] == -1).all()
    for number, layer in enumerate(model.prototypes):
        found = model.assignments[number, indexes]
        expected = layer(z[number % 2]).argmax(1)  # sets take the views in turn
        assert torch.equal(found, expected)


def test_deepclusterv2_refuses_more_clusters_than_images(build):
    with pytest.raises(ClspError, match="asks for 60 clusters of 48 images"):
        build("deepclusterv2", "method_kwargs.num_prototypes=[60]").prepare(48)
    with pytest.raises(ClspError, match="num_prototypes=0 must be at least 1"):
        build("deepclusterv2", "method_kwargs.num_prototypes=[0]")


def test_deepclusterv2_checkpoint_brings_its_memory(build):
    model, other = build("deepclusterv2"), build("deepclusterv2")
    model.prepare(48)
    model.remember(torch.arange(16), [torch.randn(16, 8)] * 2)
    checkpoint = {}
    model.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    other.prepare(48)
    assert torch.equal(other.memory, model.memory)
    with pytest.raises(ClspError, match="remembers 48 images and there are 50"):
        other.prepare(50)
