"""Latent denoisers: against diffusers' own pipeline, trained, killed and continued."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, LDMPipeline, VQModel
from diffusers.pipelines.deprecated.latent_diffusion_uncond import pipeline_latent_diffusion_uncond

from clsp_plugin.candidates.encoded import encode_images
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.compose import compose
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.diffusion import latents
from clsp_plugin.diffusion.autoencoder import Autoencoder, load_autoencoder
from clsp_plugin.diffusion.denoiser import (
    build_unet,
    denoiser_hash,
    load_autoencoder_of,
    load_denoiser,
    save_denoiser,
)
from clsp_plugin.diffusion.generation import estimate_generation, generate_candidates
from clsp_plugin.diffusion.interpolation import decode as decode_middle
from clsp_plugin.diffusion.interpolation import encode as encode_middle
from clsp_plugin.diffusion.sampling import CandidateNoise, Sampling, denoise, to_float
from clsp_plugin.diffusion.schedulers import make_scheduler
from clsp_plugin.diffusion.training import train_denoiser
from clsp_plugin.errors import ClspError
from clsp_plugin.inspection.middle_features import middle_features
from clsp_plugin.inspection.redrawn import denoiser_of, draw_like
from clsp_plugin.inspection.report import inspect_store
from clsp_plugin.verbs import VERBS
from tests.diffusion.test_training import Stop

SIDE, CHANNELS = 16, 4
TRAINING = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "attention_resolutions": [4],
    "batch_size": 6, "max_epochs": 3, "warmup_steps": 3, "lr": 1e-2, "checkpoint_every": 1,
}  # fmt: skip
DRAWING = {"num_candidates": 2, "steps": 2, "batch_size": 6, "shard_size": 5, "device": "cpu"}


def tiny(channels=CHANNELS, **keys):
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return AutoencoderTiny(latent_channels=channels, **widths, **blocks, **keys)


def variational(**keys):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 8)}
    return AutoencoderKL(latent_channels=CHANNELS, norm_num_groups=4, **blocks, **keys)


def quantised(**keys):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 8)}
    return VQModel(latent_channels=CHANNELS, norm_num_groups=4, **blocks, **keys)


KINDS = {"tiny": tiny, "kl": variational, "vq": quantised}


def seeded(make, *args, **keys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*args, **keys).eval()


def a_unet(channels=CHANNELS, side=SIDE // 2):
    cfg = {"block_out_channels": [8, 16], "layers_per_block": 1, "attention_resolutions": [4]}
    return seeded(build_unet, side, cfg, channels=channels)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (12, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def denoiser(tmp_path):
    """Write a latent denoiser: ``denoiser(kind)``."""

    def make(kind="tiny", name="denoiser", **keys):
        autoencoder = Autoencoder(seeded(KINDS[kind], **keys))
        save_denoiser(a_unet(), tmp_path / name, autoencoder=autoencoder)
        return tmp_path / name

    return make


class Queue:
    """Gives diffusers' pipeline the noise of a candidate in place of its own."""

    def __init__(self, noise, pipeline):
        self.noise, self.step = noise, pipeline.scheduler.step

    def first(self, shape, **keys):
        return self.noise.sample(1000)

    def advance(self, estimate, t, x, eta=0.0):
        fresh = self.noise.sample(int(t)) if eta > 0 else None
        return self.step(estimate, t, x, eta=eta, variance_noise=fresh)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_without_an_anchor_it_draws_what_diffusers_pipeline_draws(
    denoiser, images, kind, eta, monkeypatch, tmp_path
):
    path = denoiser(kind, scaling_factor=0.7)
    unet, config = load_denoiser(path)
    autoencoder = load_autoencoder_of(path, unet)
    indexes, candidates = torch.arange(3), torch.tensor([0])
    shape = (CHANNELS, SIDE // 2, SIDE // 2)
    noise = CandidateNoise(0, indexes, candidates, shape, share_anchor=False)
    sampling = Sampling(w=1.0, steps=5, eta=eta)
    anchors = torch.zeros(3, *shape)
    drawn = denoise(unet, make_scheduler(config, 5), anchors, noise, sampling)
    ours = (autoencoder.decode(drawn) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()

    pipeline = LDMPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    queue = Queue(noise, pipeline)
    monkeypatch.setattr(pipeline_latent_diffusion_uncond, "randn_tensor", queue.first)
    monkeypatch.setattr(pipeline.scheduler, "step", queue.advance)
    theirs = pipeline(3, eta=eta, num_inference_steps=5, output_type="np").images
    assert theirs.std() > 0.01
    assert np.abs(ours - theirs).max() < 1e-4

    cfg = {**DRAWING, "w": 1.0, "steps": 5, "eta": eta, "num_candidates": 1}
    generate_candidates(images[:3], "abc", path, tmp_path / "store", cfg)
    stored = CandidateStore(tmp_path / "store").images(range(3))[:, 0]
    assert np.abs(stored / 255 - theirs).max() < 0.5 / 255 + 1e-4


def test_the_middle_feature_is_blended_in_the_latent_space(denoiser, images, tmp_path):
    path = denoiser("kl", scaling_factor=0.7, shift_factor=0.2)
    unet, _ = load_denoiser(path)
    network = load_autoencoder_of(path, unet).network
    cfg = {**DRAWING, "w": 0.3, "steps": 4, "eta": 0.0, "num_candidates": 1}
    generate_candidates(images, "abc", path, tmp_path / "store", cfg)
    drawn = CandidateStore(tmp_path / "store").images(range(12))[:, 0]

    # by hand: DDIM with eta 0 on scaled and shifted latents
    noise = CandidateNoise(
        0, torch.arange(12), torch.tensor([0]), (CHANNELS, SIDE // 2, SIDE // 2), False
    )
    with torch.no_grad():
        z = (network.encode(to_float(images)).latent_dist.mode() - 0.2) * 0.7
        x = noise.sample(1000)
        abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
        for t in (999, 749, 499, 249):
            a, before = abar[t], abar[t - 250] if t > 250 else torch.tensor(1.0)
            noised = a.sqrt() * z + (1 - a).sqrt() * noise.anchor(t)
            h, skips, emb = encode_middle(unet, x, t)
            h = 0.3 * h + 0.7 * encode_middle(unet, noised, t)[0]
            eps = decode_middle(unet, h, skips, emb)
            x = before.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - before).sqrt() * eps
        expected = network.decode(x / 0.7 + 0.2).sample
    expected = ((expected.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(drawn - expected).max() < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_an_autoencoder_is_saved_and_hashed_with_the_denoiser(denoiser, kind):
    path = denoiser(kind)
    unet, config = load_denoiser(path)
    autoencoder = load_autoencoder_of(path, unet)
    assert (autoencoder.factor, autoencoder.channels) == (2, CHANNELS)
    assert load_autoencoder(path).hash == load_autoencoder(path / "vqvae").hash == autoencoder.hash
    name = denoiser_hash(unet, config, autoencoder)
    other = Autoencoder(seeded(KINDS[kind], scaling_factor=0.5))
    assert len({name, denoiser_hash(unet, config), denoiser_hash(unet, config, other)}) == 3
    weights = path / "vqvae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ClspError, match="changed since being written"):
        load_autoencoder_of(path, unet)


def test_an_autoencoder_that_does_not_fit_is_refused(denoiser, images, tmp_path):
    path = denoiser("tiny")
    shutil.rmtree(path / "vqvae")
    with pytest.raises(ClspError, match=r"model_index.json names an autoencoder, and there is no"):
        generate_candidates(images, "abc", path, tmp_path / "store", DRAWING)
    seeded(tiny, 3).save_pretrained(path / "vqvae")
    with pytest.raises(ClspError, match="latents of 3 channels and the denoiser beside it takes 4"):
        generate_candidates(images, "abc", path, tmp_path / "store", DRAWING)
    save_denoiser(a_unet(), tmp_path / "bare")
    with pytest.raises(ClspError, match=r"maps 4 channels to 4 \(3 to 3 are needed"):
        load_denoiser(tmp_path / "bare")
    seeded(tiny, in_channels=1).save_pretrained(tmp_path / "grey")
    with pytest.raises(ClspError, match="maps 1 channels to 3, and 3 to 3 are needed"):
        load_autoencoder(tmp_path / "grey")
    with pytest.raises(ClspError, match="is a UNet2DModel, not an AutoencoderKL"):
        load_autoencoder(path / "unet")
    with pytest.raises(ClspError, match="no autoencoder directory at nowhere"):
        load_autoencoder("nowhere")


def test_what_does_not_go_with_latents_is_refused(denoiser, images, tmp_path):
    path = denoiser("tiny")
    with pytest.raises(ClspError, match="latents, which have no such range; set clip=False"):
        generate_candidates(images, "abc", path, tmp_path / "store", {**DRAWING, "clip": True})
    with pytest.raises(ClspError, match="draws images of 16x16 pixels, the images are 8x8"):
        generate_candidates(images[:, :8, :8], "a", path, tmp_path / "store", DRAWING)
    with pytest.raises(ClspError, match="2x2 pixels, and the images are 15x15"):
        generate_candidates(images[:, :15, :15], "a", path, tmp_path / "store", DRAWING)
    assert not (tmp_path / "store").exists()
    with pytest.raises(ClspError, match="middle=view makes views of pixels"):
        train_denoiser(
            images, {**TRAINING, "autoencoder": str(path), "middle": "view"}, tmp_path / "d"
        )


def test_an_estimate_counts_the_decoding(denoiser, images, tmp_path, monkeypatch):
    path, calls = denoiser("tiny"), []
    whole = Autoencoder.decode
    monkeypatch.setattr(
        Autoencoder, "decode", lambda self, z: calls.append(len(z)) or whole(self, z)
    )
    found = estimate_generation(images, "abc", path, tmp_path / "store", DRAWING)
    assert found["seconds"] > 0
    assert calls.count(1) == 2


def weights(path):
    return load_denoiser(path)[0].state_dict()


def test_training_killed_and_continued_gives_the_same_weights(images, tmp_path, monkeypatch):
    seeded(variational, scaling_factor=0.9, shift_factor=0.1).save_pretrained(tmp_path / "vae")
    cfg = {**TRAINING, "autoencoder": str(tmp_path / "vae"), "sample_every": 3}
    record = train_denoiser(images, cfg, tmp_path / "whole", callbacks=[])
    assert record["losses"][-1] < record["losses"][0]
    assert record["settings"]["autoencoder"] == load_autoencoder(tmp_path / "vae").hash
    assert (tmp_path / "whole.samples" / "epoch-00003.png").exists()

    monkeypatch.setattr(latents, "_PART", 5)
    encoded = latents.Latents._encoded
    begun = []

    def killed(self, start, stop, device):
        begun.append(start)
        if start == 5 and len(begun) == 2:
            raise KeyboardInterrupt
        return encoded(self, start, stop, device)

    monkeypatch.setattr(latents.Latents, "_encoded", killed)
    for error in (KeyboardInterrupt, ConnectionAbortedError):
        with pytest.raises(error):
            train_denoiser(images, cfg, tmp_path / "killed", callbacks=[Stop(2)])
    assert begun == [0, 5, 5, 10]
    train_denoiser(images, cfg, tmp_path / "killed")
    whole, continued = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    assert not (tmp_path / "killed.training").exists()
    LDMPipeline.from_pretrained(tmp_path / "killed")


def test_a_mirrored_image_is_encoded_as_such(images, tmp_path):
    autoencoder = Autoencoder(seeded(variational))
    made = latents.Latents(images, autoencoder, tmp_path, "a", mirrored=True)
    made.write(torch.device("cpu"))
    both = made.read()
    assert both.shape == (12, 2, CHANNELS, SIDE // 2, SIDE // 2)
    mirrored = autoencoder.encode(to_float(images.flip(2)))
    assert (both[:, 1].float() - mirrored).abs().max() < 5e-3
    assert (both[:, 0].flip(-1).float() - mirrored).abs().max() > 1e-2
    alone = latents.Latents(images, autoencoder, tmp_path, "b", mirrored=False)
    alone.write(torch.device("cpu"))
    assert torch.equal(alone.read()[:, 0], both[:, 0])
    assert not made.folder.exists()


def test_an_inspection_redraws_in_the_latent_space(denoiser, images, tmp_path):
    path = denoiser("kl", scaling_factor=0.7)
    array = ImageArray(images, torch.arange(12) % 2, ("a", "b"), "toy")
    generate_candidates(images, array.fingerprint, path, tmp_path / "store", DRAWING)
    store = CandidateStore(tmp_path / "store")
    found = denoiser_of(store.manifest, path, array.targets)
    draw = draw_like(store.manifest, *found[:2], array, [3, 4], array.targets, found[2])
    assert torch.equal(draw(0.1), torch.from_numpy(store.images([3, 4])[:, 0]))
    report = inspect_store(tmp_path / "store", array, tmp_path / "report", denoiser=path)
    assert len(report["weights"]) == 7
    features = middle_features(*found[:2], images, autoencoder=found[2])
    assert features.shape == (12, 16 * (SIDE // 4) ** 2)


def test_candidates_are_drawn_into_an_encoded_store(denoiser, images, tmp_path):
    path, cfg = denoiser("tiny"), {**DRAWING, "steps": 5}
    generate_candidates(images, "abc", path, tmp_path / "raw", cfg)
    encoded = {**cfg, "encoding": "jpeg", "quality": 95}
    found = estimate_generation(images, "abc", path, tmp_path / "jpeg", encoded)
    some = [len(one) for one in encode_images(images.numpy(), "jpeg", 95)]
    assert found["bytes"] == pytest.approx(2 * sum(some), abs=1)
    generate_candidates(images, "abc", path, tmp_path / "jpeg", encoded)
    raw, jpeg = (CandidateStore(tmp_path / name) for name in ("raw", "jpeg"))
    assert (jpeg.manifest.encoding, jpeg.manifest.quality) == ("jpeg", 95)
    again = encode_images(raw.images([7])[0], "jpeg", 95)
    assert jpeg.encoded_shard(1)[4:6] == again


def test_a_dry_run_tells_what_a_training_would_take(images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seeded(tiny).save_pretrained("vae")
    few = ["data.num_train=40", "data.image_size=16", "+dry_run=True", "batch_size=8"]
    for network in ("+autoencoder=vae", "+autoencoder=null"):
        cfg = compose("denoiser", "digits/denoiser", [*few, network, "max_epochs=3"])
        found = VERBS["denoiser"].run(cfg)
        out = capsys.readouterr().out
        assert found["steps"] == 3 * 5
        assert "Dry run: 3 epochs of 5 steps of a network of 0.2 million weights" in out
        assert (found["encoding"] > 0) == ("encode the images" in out) == ("vae" in network)
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_scale_and_shift_are_the_autoencoders(images, kind):
    autoencoder = Autoencoder(seeded(KINDS[kind], scaling_factor=0.7, shift_factor=2.0))
    network, x = autoencoder.network, to_float(images)
    z = autoencoder.encode(x)
    with torch.no_grad():
        found = network.encode(x)
        plain = found.latents if kind == "tiny" else found.latent_dist.mode()
        assert (z - (plain - 2.0) * 0.7).abs().max() < 1e-5
        again, other = network.decode(plain).sample, network.decode(plain - 2.0).sample
    assert (autoencoder.decode(z) - again).abs().max() < 1e-4 < (other - again).abs().max() / 2
