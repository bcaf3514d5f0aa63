"""Image-variation pipelines as generators: tiny ones of diffusers' classes with random weights."""

import json

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionImageVariationPipeline,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.keyed_random import key_normal, keys_for
from clsp_plugin.diffusion.denoiser import save_denoiser
from clsp_plugin.diffusion.generation import estimate_generation, generate_candidates
from clsp_plugin.diffusion.sampling import CandidateNoise
from clsp_plugin.diffusion.schedulers import make_scheduler
from clsp_plugin.diffusion.variations import Variations, load_variations
from clsp_plugin.errors import ClspError

WIDTH, SIDE = 16, 16
CFG = {
    "num_candidates": 2, "steps": 4, "batch_size": 6, "shard_size": 3, "device": "cpu", "w": 1.0,
    "eta": 0.0, "guidance": 2.0,
}  # fmt: skip
UNCLIP, VARIATION = "StableUnCLIPImg2ImgPipeline", "StableDiffusionImageVariationPipeline"


def a_tokenizer(folder):
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    return CLIPTokenizer(*files, model_max_length=5)


def a_unet(**keys):
    return UNet2DConditionModel(
        sample_size=SIDE // 2, in_channels=4, out_channels=4, block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2,
        norm_num_groups=4, cross_attention_dim=WIDTH, layers_per_block=1, **keys,
    )  # fmt: skip


def a_pipeline(kind, folder):
    folder.mkdir()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, projection_dim=WIDTH, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, intermediate_size=8, patch_size=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        latent_channels=4, norm_num_groups=4, block_out_channels=(8, 8), scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    parts = {
        "feature_extractor": CLIPImageProcessor(crop_size=8, size=8),
        "image_encoder": CLIPVisionModelWithProjection(vision),
        "scheduler": DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
            prediction_type="v_prediction",
        ),
        "vae": vae,
    }  # fmt: skip
    if kind == VARIATION:
        return StableDiffusionImageVariationPipeline(
            **parts, unet=a_unet(), safety_checker=None, requires_safety_checker=False
        )
    normalizer = StableUnCLIPImageNormalizer(WIDTH)
    torch.nn.init.normal_(normalizer.mean)
    text = CLIPTextConfig(
        hidden_size=WIDTH, projection_dim=WIDTH, intermediate_size=8, num_attention_heads=2,
        num_hidden_layers=1, vocab_size=3, max_position_embeddings=5, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    labels = {"class_embed_type": "projection"}
    return StableUnCLIPImg2ImgPipeline(
        **parts,
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=a_tokenizer(folder),
        text_encoder=CLIPTextModel(text),
        unet=a_unet(**labels, projection_class_embeddings_input_dim=2 * WIDTH),
    )


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def saved(tmp_path):
    """Write a pipeline: ``saved(kind)``."""

    def save(kind):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipeline = a_pipeline(kind, tmp_path / "parts")
        pipeline.save_pretrained(tmp_path / "pipeline")
        return tmp_path / "pipeline"

    return save


def drawn(images, path, out, **cfg):
    generate_candidates(images, "abc", path, out, {**CFG, **cfg}, dataset="toy")
    return CandidateStore(out).images(range(len(images)))


@pytest.mark.parametrize("kind", [UNCLIP, VARIATION])
def test_it_draws_what_the_pipeline_draws(kind, images, saved, tmp_path):
    path = saved(kind)
    level = {"noise_level": 300} if kind == UNCLIP else {}
    ours = drawn(images, path, tmp_path / "store", num_candidates=1, **level)[:, 0]

    keys = {} if kind == UNCLIP else {"safety_checker": None, "requires_safety_checker": False}
    pipeline = getattr(__import__("diffusers"), kind).from_pretrained(path, **keys)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(dict(pipeline.scheduler.config), CFG["steps"])
    noise = CandidateNoise(0, torch.arange(6), torch.tensor([0]), (4, SIDE // 2, SIDE // 2), False)
    if kind == UNCLIP:
        own = keys_for(noise.sample_keys, torch.full((6,), 1001))
        add, fixed = pipeline.noise_image_embeddings, key_normal(own, WIDTH)
        pipeline.noise_image_embeddings = lambda **given: add(**{**given, "noise": fixed})
    prepared = pipeline.feature_extractor(images=list(images.numpy()), return_tensors="pt")
    given = {"prompt": [""] * 6, **level} if kind == UNCLIP else {}
    theirs = pipeline(
        image=prepared.pixel_values, latents=noise.sample(1000), num_inference_steps=CFG["steps"],
        guidance_scale=1 + CFG["guidance"], output_type="np", **given,
    ).images  # fmt: skip
    assert theirs.std() > 0.01
    assert np.abs(ours / 255 - theirs).max() < 0.5 / 255 + 1e-4


def test_the_manifest_says_how(images, saved, tmp_path):
    path = saved(UNCLIP)
    drawn(images, path, tmp_path / "store", noise_level=300)
    manifest = CandidateStore(tmp_path / "store").manifest
    assert (manifest.noise_level, manifest.draw_size, manifest.w) == (300, SIDE, 1.0)
    assert manifest.denoiser == load_variations(path).hash
    with pytest.raises(ClspError, match=r"noise_level=300 \(now 200\)"):
        drawn(images, path, tmp_path / "store", noise_level=200)
    found = estimate_generation(images, "abc", path, tmp_path / "other", CFG)
    assert (found["candidates"], found["bytes"]) == (12, 12 * SIDE * SIDE * 3)


def test_another_batch_and_a_second_run_draw_the_same(images, saved, tmp_path):
    path, cfg = saved(UNCLIP), {"noise_level": 500, "eta": 1.0}
    one = drawn(images, path, tmp_path / "a", **cfg)
    few = drawn(images, path, tmp_path / "b", **cfg, batch_size=2)
    assert np.abs(one.astype(int) - few).max() <= 1
    (tmp_path / "a" / "shard-00001.npy").unlink()
    assert (drawn(images, path, tmp_path / "a", **cfg) == one).all()
    assert (one[:, 0] != one[:, 1]).any()
    dpm = drawn(images, path, tmp_path / "c", noise_level=500, sampler="dpmpp", eta=None)
    again = drawn(images, path, tmp_path / "d", noise_level=500, sampler="dpmpp", eta=None)
    assert (dpm == again).all()


def test_the_middle_feature_is_blended(images, saved, tmp_path, monkeypatch):
    path, ways = saved(VARIATION), {}
    middles = []
    middle = Variations.middle
    monkeypatch.setattr(
        Variations, "middle", lambda *given: middles.append(middle(*given)) or middles[-1]
    )
    for w in (1.0, 0.999999, 0.0):
        ways[w] = drawn(images, path, tmp_path / f"{w}", w=w, num_candidates=1).astype(int)
    assert np.abs(ways[1.0] - ways[0.999999]).max() <= 1
    assert np.abs(ways[1.0] - ways[0.0]).max() > 1
    # what is blended is the output of the middle block for the noised anchor
    found, seen = load_variations(path), []
    found.unet.mid_block.register_forward_hook(lambda *given: seen.append(given[-1]))
    given = {"encoder_hidden_states": torch.zeros(1, 1, WIDTH)}
    x = torch.randn(1, 4, SIDE // 2, SIDE // 2)
    with torch.no_grad():
        plain = found.unet(x, 5, **given).sample
        h = middle(found, x, 5, given)
        assert torch.equal(h, seen[0])
        assert (found.estimate(x, 5, given, h, 0.3) - plain).abs().max() < 1e-5
        assert (found.estimate(x, 5, given, 2 * h, 0.3) - plain).abs().max() > 1e-3


def test_it_is_drawn_large_and_resized(images, saved, tmp_path):
    path = saved(VARIATION)
    small = F.resize(images.permute(0, 3, 1, 2), [8, 8]).permute(0, 2, 3, 1).contiguous()
    native = drawn(small, path, tmp_path / "native")
    assert CandidateStore(tmp_path / "native").manifest.draw_size == SIDE
    own = drawn(small, path, tmp_path / "own", draw_size=8)
    assert native.shape == own.shape == (6, 2, 8, 8, 3)
    assert (native != own).any()


def test_what_is_refused(images, saved, tmp_path, make_unet):
    path = saved(VARIATION)
    for cfg, message in (
        ({"noise_level": 5}, "noise_level=5 is of Stable unCLIP"),
        ({"clip": True}, "set clip=False"),
        ({"draw_size": 15}, "2x2 pixels, and the images are 15x15"),
        ({"compile": True, "w": 0.5}, "compile=True does not go with the blend"),
    ):
        with pytest.raises(ClspError, match=message):
            drawn(images, path, tmp_path / "store", **cfg)
    with pytest.raises(ClspError, match="A condition was given"):
        generate_candidates(
            images, "a", path, tmp_path / "store", CFG, condition=torch.zeros(6, dtype=torch.int64)
        )
    save_denoiser(make_unet(SIDE, attention_resolutions=[8]), tmp_path / "pixels")
    for cfg in ({"noise_level": 5}, {"draw_size": 8}):
        with pytest.raises(ClspError, match="is of image-variation pipelines"):
            drawn(images, tmp_path / "pixels", tmp_path / "store", **cfg, guidance=0.0)
    for file in (path / "image_encoder").glob("*.safetensors"):
        file.write_bytes(b"damaged")
    with pytest.raises(ClspError, match="cannot be loaded"):
        drawn(images, path, tmp_path / "store")
    assert not (tmp_path / "store").exists()
