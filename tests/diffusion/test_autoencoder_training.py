"""Training of an autoencoder: what it learns, and the same when it was killed and continued."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from clsp_plugin.config.compose import compose
from clsp_plugin.config.typed import settings_of
from clsp_plugin.diffusion.autoencoder import Autoencoder, load_autoencoder
from clsp_plugin.diffusion.autoencoder_training import (
    AutoencoderModule,
    AutoencoderSettings,
    _split,
    psnr,
    train_autoencoder,
)
from clsp_plugin.diffusion.sampling import to_float
from clsp_plugin.errors import ClspError
from clsp_plugin.verbs import VERBS
from tests.diffusion.test_training import Stop

CFG = {
    "block_out_channels": [8, 8], "blocks": 1, "latent_channels": 3, "batch_size": 8, "crop": 8,
    "max_epochs": 4, "warmup_steps": 3, "lr": 5e-3, "held_out": 6,
}  # fmt: skip


@pytest.fixture
def smooth():
    """Images that can be learned in a few steps: uint8 (60, 16, 16, 3)."""
    corners = np.random.default_rng(0).uniform(0, 255, (60, 2, 2, 3))
    u = np.linspace(0, 1, 16)
    ramp = np.stack([1 - u, u])
    return torch.from_numpy(np.einsum("nabc,ax,by->nxyc", corners, ramp, ramp).astype(np.uint8))


def test_it_learns_and_is_loaded_by_diffusers_and_by_us(smooth, tmp_path):
    record = train_autoencoder(smooth, {**CFG, "max_epochs": 30, "crop": None}, tmp_path / "out")
    loaded = load_autoencoder(tmp_path / "out")
    train, held_out = _split(60, settings_of(AutoencoderSettings, CFG))
    assert (len(train), len(held_out)) == (54, 6)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(60))
    assert psnr(loaded, smooth[held_out]) == pytest.approx(record["psnr"], abs=1e-4)
    blank = ((smooth[held_out].double() - 127.5) ** 2).flatten(1).mean(1)
    # from random weights alone it gains 3
    assert record["psnr"] > float(10 * torch.log10(255**2 / blank).mean()) + 15
    # what is denoised has a standard deviation of 1
    assert loaded.encode(to_float(smooth[train])).std() == pytest.approx(1, abs=1e-3)
    assert (loaded.factor, loaded.channels) == (2, 3)
    theirs = AutoencoderTiny.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        again = theirs.decode(theirs.encode(to_float(smooth[:4])).latents).sample
    ours = loaded.decode(loaded.encode(to_float(smooth[:4])))
    assert (again - ours).abs().max() < 1e-5


@pytest.mark.parametrize("blocks", [1, 2])
def test_it_begins_as_a_picture_made_small_and_large_again(smooth, blocks):
    x = to_float(smooth).repeat_interleave(4, 2).repeat_interleave(4, 3)
    settings = settings_of(AutoencoderSettings, {"block_out_channels": [8] * 4, "blocks": blocks})
    network = AutoencoderModule(settings, 10).network
    inner = (..., slice(24, -24), slice(24, -24))  # beyond what the borders' zeros reach
    with torch.no_grad():
        latents = network.encode(x).latents
        error = (network.decode(latents).sample - x)[inner].abs()
    assert latents.shape == (60, 4, 8, 8)
    assert error.mean() < 0.06  # of 2; of another of these images' it is 0.5
    colours = x[..., 28:36, 28:36].mean((2, 3))
    assert (latents[:, :3, 3:5, 3:5].mean((2, 3)) - colours).abs().mean() < 0.1


@pytest.mark.parametrize("few", [{"latent_channels": 2}, {"block_out_channels": [2, 2]}])
def test_with_fewer_channels_than_colours_it_begins_at_random(smooth, few):
    settings = settings_of(AutoencoderSettings, {**CFG, **few})
    network = AutoencoderModule(settings, 10).network
    assert network.encode(to_float(smooth)).latents.shape[1] == settings.latent_channels


def test_psnr_where_it_is_known():
    class Grey(Autoencoder):
        def __init__(self):
            self.network = torch.nn.Linear(1, 1)

        def encode(self, x):
            return x

        def decode(self, z):
            return z + 2 * 10 / 255

    images = torch.full((3, 4, 4, 3), 100, dtype=torch.uint8)
    assert psnr(Grey(), images) == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)


def test_killed_and_continued_gives_the_same_bytes(smooth, tmp_path):
    train_autoencoder(smooth, CFG, tmp_path / "whole")
    for epoch, batch in ((1, 2), (3, 0)):
        with pytest.raises(ConnectionAbortedError):
            train_autoencoder(smooth, CFG, tmp_path / "killed", callbacks=[Stop(epoch, batch)])
    train_autoencoder(smooth, CFG, tmp_path / "killed")
    name = "diffusion_pytorch_model.safetensors"
    whole, killed = (tmp_path / run / name for run in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert (whole.parent / "config.json").read_text() == (killed.parent / "config.json").read_text()
    assert not (tmp_path / "killed.training").exists()
    again = train_autoencoder(smooth, CFG, tmp_path / "whole", callbacks=[Stop(0)])
    assert len(again["losses"]) == 4


def _flipped(image, flip):
    return image.flip(-1) if flip else image


def test_a_crop_is_a_square_of_the_image_or_of_its_mirror(smooth):
    module = AutoencoderModule(settings_of(AutoencoderSettings, CFG), 10)
    crops = module._draw(torch.arange(60), smooth)
    assert crops.shape == (60, 3, 8, 8)
    places = set()
    for image, crop in zip(to_float(smooth), crops, strict=True):
        found = [
            (flip, top, left)
            for flip in (False, True)
            for top in range(9)
            for left in range(9)
            if torch.equal(
                (image.flip(-1) if flip else image)[:, top : top + 8, left : left + 8], crop
            )
        ]
        assert found
        places.add(found[0])
    assert {0, 8} <= {top for _, top, _ in places} | {left for *_, left in places}
    assert len(places) > 30
    assert {flip for flip, *_ in places} == {False, True}


@pytest.mark.parametrize(
    ("size", "number", "cfg", "message"),
    [
        (16, 9, {}, "There are 9 images, and an autoencoder needs at least 10"),
        (15, 60, {}, "images are 15x15.*needs a multiple of 2"),
        (16, 60, {"crop": 7}, "crop=7 is no multiple of 2"),
        (16, 60, {"block_out_channels": []}, "block_out_channels is an empty list"),
        (
            16,
            60,
            {"block_out_channels": [8, 16]},
            r"block_out_channels=\[8, 16\] differ, .*2 times",
        ),
        (16, 60, {"lr": 0}, "lr=0.0 must be above 0"),
    ],
)
def test_what_is_refused(size, number, cfg, message, tmp_path):
    images = torch.zeros(number, size, size, 3, dtype=torch.uint8)
    with pytest.raises(ClspError, match=message):
        train_autoencoder(images, {**CFG, **cfg}, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_the_verbs_go_from_images_to_candidates(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["data.num_train=40", "data.image_size=16", "max_epochs=1", "block_out_channels=[8,8]"]
    made = VERBS["autoencoder"].run(compose("autoencoder", "digits/autoencoder", few))
    assert f"PSNR {made['psnr']:.2f} dB on images held out" in capsys.readouterr().out
    network = [*few, "attention_resolutions=[4]", "norm_num_groups=2", "out=d"]
    VERBS["denoiser"].run(
        compose("denoiser", "digits/denoiser", [*network, "+autoencoder=autoencoders/digits"])
    )
    drawn = [*few[:2], "denoiser=d", "out=c", "steps=2", "clip=False", "num_candidates=1"]
    VERBS["generate"].run(compose("generate", "digits/generate", [*drawn, "+encoding=webp"]))
    assert len(list((tmp_path / "c").glob("shard-*.npy"))) == 1
