"""The middle feature of another view: what it shares with the image, in training and in drawing."""

import json

import pytest
import torch

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.digits import make_digits
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.keyed_random import keys_for
from clsp_plugin.diffusion.denoiser import ViewUNet, build_unet, load_denoiser, save_denoiser
from clsp_plugin.diffusion.generation import generate_candidates
from clsp_plugin.diffusion.interpolation import decode, encode, viewed_middle, viewed_noise
from clsp_plugin.diffusion.sampling import to_float
from clsp_plugin.diffusion.training import RECORD, train_denoiser
from clsp_plugin.diffusion.views import other_view
from clsp_plugin.errors import ClspError

SMALL = {"block_out_channels": [8, 8], "layers_per_block": 1, "attention_resolutions": [],
         "dropout": 0.0}  # fmt: skip
VIEW = {**SMALL, "middle": "view", "batch_size": 8, "warmup_steps": 0, "accelerator": "cpu",
        "prediction": "v_prediction", "horizontal_flip": 0.0}  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    images, targets = make_digits(200, "train", 0, 16)
    return ImageArray(images, targets, tuple("0123456789"), "digits/train")


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return build_unet(16, SMALL, of_view=True).eval()


def test_a_view_is_its_key_s_whatever_the_batch(digits):
    x = to_float(digits.images[:8])
    keys = keys_for(3, torch.arange(8))
    views = other_view(x, keys)
    assert views.shape == x.shape
    assert views.abs().max() <= 1
    assert torch.equal(other_view(x[2:5], keys[2:5]), views[2:5])
    assert not torch.equal(other_view(x, keys_for(4, torch.arange(8))), views)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def test_a_view_keeps_strokes_and_neither_colours_nor_grounds(digits):
    x = to_float(digits.images)
    views = other_view(x, keys_for(0, torch.arange(200)))
    assert abs(correlation(x.mean((2, 3)), views.mean((2, 3)))) < 0.15  # error 0.04
    edge = torch.ones(16, 16, dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    assert abs(correlation(x[..., edge], views[..., edge])) < 0.2
    # within an image, where it is light, less the low frequencies
    fine = [v.mean(1) - torch.nn.functional.avg_pool2d(v.mean(1), 5, 1, 2) for v in (x, views)]
    assert correlation(*fine) > 0.2
    assert correlation(fine[0], fine[1].roll(1, 0)) < 0.1


def test_the_estimate_is_its_formula(unet):
    x, anchors = torch.randn(6, 3, 16, 16), torch.rand(2, 3, 16, 16)
    h = viewed_middle(unet, anchors)
    assert torch.equal(h, encode(unet, anchors, 0)[0])
    _, skips, emb = encode(unet, x, 500)
    own = decode(unet, h.repeat_interleave(3, 0), skips, emb)
    none = decode(unet, torch.zeros(6, 8, 8, 8), skips, emb)
    assert torch.equal(viewed_noise(unet, x, h, 500, 0.0), own)
    assert torch.allclose(viewed_noise(unet, x, h, 500, 1.5), 2.5 * own - 1.5 * none, atol=1e-5)


def test_trained_and_drawn_with(digits, tmp_path):
    few = digits.subset(torch.arange(16), "few")
    train_denoiser(few.images, {**VIEW, "max_epochs": 2}, tmp_path / "denoiser")
    assert isinstance(load_denoiser(tmp_path / "denoiser")[0], ViewUNet)
    work = (few.images, few.fingerprint, tmp_path / "denoiser")
    cfg = {"num_candidates": 2, "steps": 4, "device": "cpu", "w": 0.0}
    for name, more in {"one": {}, "two": {"guidance": 2.0}, "none": {"w": 1.0}}.items():
        generate_candidates(*work, tmp_path / name, {**cfg, **more})
    stores = {name: CandidateStore(tmp_path / name) for name in ("one", "two", "none")}
    assert {store.manifest.middle for store in stores.values()} == {"view"}
    drawn = [store.images(range(16)) for store in stores.values()]
    assert (drawn[0] != drawn[1]).any()
    assert (drawn[0] != drawn[2]).any()
    with pytest.raises(ClspError, match="from the anchor alone"):
        generate_candidates(*work, tmp_path / "other", {**cfg, "w": 0.1})


def test_an_anchor_decides_and_no_anchor_does_not(digits, tmp_path, unet):
    save_denoiser(unet, tmp_path / "denoiser")
    few = digits.subset(torch.arange(4), "few")
    turned = ImageArray(few.images.flip(1), few.targets, few.classes, "turned")
    cfg = {"num_candidates": 1, "steps": 2, "device": "cpu"}
    for w, differ in ((0.0, True), (1.0, False)):
        drawn = []
        for array in (few, turned):
            out = tmp_path / f"{array.name}-{w}"
            work = (array.images, array.fingerprint, tmp_path / "denoiser", out, {**cfg, "w": w})
            generate_candidates(*work)
            drawn.append(torch.from_numpy(CandidateStore(out).images(range(4))))
        assert torch.equal(*drawn) != differ


def test_settings_that_do_not_go_together(digits, tmp_path):
    images = digits.images[:16]
    with pytest.raises(ClspError, match="Set renoise_middle=0"):
        train_denoiser(images, {**VIEW, "renoise_middle": 0.5}, tmp_path / "a")
    with pytest.raises(ClspError, match="without a condition"):
        train_denoiser(
            images, {**VIEW, "max_epochs": 1}, tmp_path / "b", condition=digits.targets[:16]
        )
    # the paper's denoiser is recorded as before there was another
    train_denoiser(images, {**VIEW, "middle": "sample", "max_epochs": 1}, tmp_path / "c")
    settings = json.loads((tmp_path / "c" / RECORD).read_text())["settings"]
    assert not {"middle", "middle_dropout"} & settings.keys()
