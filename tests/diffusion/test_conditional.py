"""Denoisers that are told something of the image: its class, its cluster, its features."""

import csv
import json

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from clsp_plugin.candidates.condition import load_condition, save_condition
from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.typed import settings_of
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.diffusion.denoiser import denoiser_hash, load_denoiser
from clsp_plugin.diffusion.generation import generate_candidates
from clsp_plugin.diffusion.module import TrainingSettings
from clsp_plugin.diffusion.training import _make_module, train_denoiser
from clsp_plugin.diffusion.verbs import _check_condition
from clsp_plugin.errors import ClspError

COLOURS = torch.tensor([[220, 30, 30], [30, 200, 60], [40, 60, 220]])
CFG = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention_resolutions": [],
    "norm_num_groups": 2,
    "dropout": 0.0,
    "batch_size": 12,
    "max_epochs": 15,
    "warmup_steps": 0,
    "lr": 5e-3,
    "ema_decay": 0.95,
    "prediction": "v_prediction",
    "checkpoint_every": 15,
}
DRAW = {"num_candidates": 2, "steps": 5, "clip": True, "w": 1.0, "eta": 1.0, "device": "cpu"}


def coloured(number):
    """Images of one colour with a little noise, and which of three: uint8, int64."""
    targets = torch.arange(number) % 3
    noise = torch.randint(-20, 20, (number, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    images = (COLOURS[targets][:, None, None] + noise).to(torch.uint8)
    return ImageArray(images, targets, ("red", "green", "blue"), "colours")


def features_of(targets):
    """Three directions in eight dimensions."""
    return torch.nn.functional.one_hot(targets, 8).float() * 3 - 0.5


def nearest_colour(drawn):
    mean = torch.from_numpy(drawn).float().mean((2, 3))
    return (mean[:, :, None] - COLOURS).square().sum(-1).argmin(-1)


@pytest.mark.parametrize(("form", "renoise"), [("classes", 0.0), ("features", 0.5)])
def test_it_draws_what_it_is_told(tmp_path, form, renoise):
    array = coloured(48)
    told = array.targets if form == "classes" else features_of(array.targets)
    cfg = {**CFG, "renoise_middle": renoise, "condition_dropout": 0.2}
    train_denoiser(array.images, cfg, tmp_path / "denoiser", condition=told)
    for guidance in (0.0, 1.0):
        out = tmp_path / f"store{guidance}"
        generate_candidates(
            array.images, "abc", tmp_path / "denoiser", out, {**DRAW, "guidance": guidance},
            labels=told,
        )  # fmt: skip
        drawn = CandidateStore(out).images(range(48))
        right = (nearest_colour(drawn) == array.targets[:, None]).float().mean()
        assert right > 0.9  # a third is chance


def test_what_a_network_is_told():
    told = torch.arange(300) % 3
    indexes = torch.arange(300)
    for share in (0.0, 0.3, 1.0):
        settings = settings_of(TrainingSettings, {**CFG, "condition_dropout": share})
        for condition, absent in ((told, 0), (features_of(told), torch.zeros(8))):
            module = _make_module(8, settings, condition)
            given = module._given(indexes)
            hidden = (given == absent).reshape(300, -1).all(1)
            assert hidden.float().mean() == pytest.approx(share, abs=0.1)
            expected = condition + 1 if condition.ndim == 1 else condition
            torch.testing.assert_close(given[~hidden], expected[~hidden])
            # named by the image, not by its place in the batch
            torch.testing.assert_close(module._given(indexes.flip(0)), given.flip(0))


def test_the_condition_is_part_of_a_training(tmp_path):
    class Dies(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise ConnectionAbortedError

    array, cfg = coloured(24), {**CFG, "max_epochs": 2, "checkpoint_every": 1}
    told = features_of(array.targets)
    whole = train_denoiser(array.images, cfg, tmp_path / "whole", condition=told)
    with pytest.raises(ConnectionAbortedError):
        train_denoiser(array.images, cfg, tmp_path / "out", condition=told, callbacks=[Dies()])
    with pytest.raises(ClspError, match="holds an unfinished training with condition="):
        train_denoiser(array.images, cfg, tmp_path / "out", condition=told + 1)
    resumed = train_denoiser(array.images, cfg, tmp_path / "out", condition=told)
    assert resumed["losses"] == whole["losses"]
    names = [denoiser_hash(load_denoiser(tmp_path / name)[0], {}) for name in ("whole", "out")]
    assert names[0] == names[1]
    assert "condition" in json.loads((tmp_path / "out/training.json").read_text())["settings"]


def test_a_store_says_what_its_denoiser_was_told(tmp_path):
    array, cfg = coloured(12), {**CFG, "max_epochs": 1}
    told = features_of(array.targets)
    train_denoiser(array.images, cfg, tmp_path / "denoiser", condition=told)

    def draw(labels):
        generate_candidates(
            array.images, "abc", tmp_path / "denoiser", tmp_path / "store",
            {**DRAW, "steps": 2}, labels=labels,
        )  # fmt: skip

    draw(told)
    draw(told)
    with pytest.raises(ClspError, match="already holds candidates made with condition="):
        draw(told + 1)
    for wrong in (array.targets, None, told[:, :5]):
        with pytest.raises(ClspError, match="conditioned on 8 features of each image"):
            draw(wrong)


def test_clusters_are_not_taken_for_labels(tmp_path):
    array, cfg = coloured(12), {**CFG, "max_epochs": 1}
    clusters = (array.targets + 1) % 3
    train_denoiser(array.images, cfg, tmp_path / "denoiser", condition=clusters)
    _check_condition(tmp_path / "denoiser", array, clusters)
    with pytest.raises(ClspError, match="trained on these images with another condition"):
        _check_condition(tmp_path / "denoiser", array, array.targets)
    others = coloured(15)  # of which nothing is known
    _check_condition(tmp_path / "denoiser", others, others.targets)


def test_a_manifest_from_before_there_was_a_condition(store):
    file = store / "manifest.json"
    content = json.loads(file.read_text())
    assert content.pop("condition") is None
    file.write_text(json.dumps(content, indent=2))
    assert StoreManifest.load(store).condition is None


def test_a_file_of_conditions(tmp_path):
    array = coloured(12)
    for name, told in (("c", array.targets.flip(0)), ("f", features_of(array.targets))):
        save_condition(tmp_path / f"{name}.npz", told, array)
        torch.testing.assert_close(load_condition(tmp_path / f"{name}.npz", array), told)
    assert load_condition(None, array) is None
    assert load_condition("labels", array) is array.targets
    with pytest.raises(ClspError, match="already exists"):
        save_condition(tmp_path / "c.npz", array.targets, array)
    with pytest.raises(ClspError, match="of other images than the 9 of colours"):
        load_condition(tmp_path / "c.npz", array.subset(torch.arange(9), "colours"))
    np.savez(tmp_path / "other.npz", features=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("missing.npz", "other.npz", "text.npz"):
        with pytest.raises(ClspError, match="is neither labels nor a file that `clsp embed`"):
            load_condition(tmp_path / name, array)
    unlabelled = ImageArray(array.images, torch.full((12,), -1), (), "colours")
    with pytest.raises(ClspError, match="12 of the 12 images have no labels"):
        load_condition("labels", unlabelled)
    for wrong in (array.targets.float(), array.targets[:5], torch.full((12, 2), torch.nan)):
        with pytest.raises(ClspError, match=r"A condition of 12 images|not finite"):
            save_condition(tmp_path / "wrong.npz", wrong, array)


def test_a_distance_beside_every_sheet(tmp_path):
    array = coloured(24)
    asked = []

    def score(drawn):
        asked.append((drawn.shape, drawn.dtype))
        return drawn.float().mean().item()

    cfg = {**CFG, "max_epochs": 4, "checkpoint_every": 1, "fid_images": 20}
    for name, keys in (("plain", {}), ("scored", {"sample_every": 2, "fid_images": 20})):
        train_denoiser(
            array.images, {**cfg, **keys}, tmp_path / name, condition=array.targets, score=score
        )
    assert asked == [((20, 8, 8, 3), torch.uint8)] * 2
    with open(tmp_path / "scored.samples/scores.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["samples"]) for row in rows] == [("2", "20"), ("4", "20")]
    assert 0 < float(rows[1]["frechet"]) < 255
    hashes = [denoiser_hash(load_denoiser(tmp_path / n)[0], {}) for n in ("plain", "scored")]
    assert hashes[0] == hashes[1]  # training does not notice
