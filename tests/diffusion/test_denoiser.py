"""Architecture and directory of the denoiser."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline, UNet2DModel

from clsp_plugin.diffusion.denoiser import (
    AuthorsConditionalUNet,
    build_unet,
    check_absent,
    denoiser_hash,
    load_denoiser,
    save_denoiser,
)
from clsp_plugin.diffusion.schedulers import LINEAR_BETAS, make_scheduler, training_betas
from clsp_plugin.errors import ClspError

# config.json of google/ddpm-cifar10-32
DDPM_CIFAR10 = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": (128, 256, 256, 256),
    "center_input_sample": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def test_the_default_is_ddpm_on_cifar10():
    with torch.device("meta"):
        ours, theirs = build_unet(32), UNet2DModel(**DDPM_CIFAR10)
    differences = {
        key for key, value in theirs.config.items()
        if key[0] != "_" and ours.config[key] != value
    }  # fmt: skip
    assert differences == {"dropout"}
    assert ours.config.dropout == 0.1
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == 35_746_307


@pytest.mark.parametrize(
    ("size", "channels", "attention", "groups", "down"),
    [
        (32, [16, 32, 64], [8], 16, "DownBlock2D DownBlock2D AttnDownBlock2D"),
        (16, [24, 48], [], 8, "DownBlock2D DownBlock2D"),
        (64, [32, 64], [64, 32], 32, "AttnDownBlock2D AttnDownBlock2D"),
        (6, [9, 3], [], 1, "DownBlock2D DownBlock2D"),
    ],
)
def test_other_sizes(size, channels, attention, groups, down):
    cfg = {"block_out_channels": channels, "attention_resolutions": attention}
    unet = build_unet(size, {**cfg, "layers_per_block": 1})
    assert unet.config.norm_num_groups == groups
    assert list(unet.config.down_block_types) == down.split()
    mirrored = [name.replace("Down", "Up") for name in reversed(down.split())]
    assert list(unet.config.up_block_types) == mirrored
    with torch.no_grad():
        assert unet(torch.zeros(1, 3, size, size), 0).sample.shape == (1, 3, size, size)


@pytest.mark.parametrize(
    ("size", "cfg", "message"),
    [
        (30, {}, r"30 pixels cannot be halved 3 times; .* multiple of 8"),
        (32, {"block_out_channels": []}, "block_out_channels"),
        (96, {}, r"16 is none of the resolutions 96, 48, 24, 12"),
        (32, {"norm_num_groups": 24}, "norm_num_groups=24 does not divide"),
    ],
)
def test_architectures_that_are_refused(size, cfg, message):
    with pytest.raises(ClspError, match=message):
        build_unet(size, cfg)


def test_the_hash_names_the_weights(make_unet):
    name = denoiser_hash(make_unet(), {})
    assert name == denoiser_hash(make_unet().train(), {})
    assert len(name) == 16
    assert int(name, 16) >= 0
    changed = make_unet()
    with torch.no_grad():
        changed.conv_out.bias[0] += 1e-3
    assert name != denoiser_hash(changed, {})


@pytest.mark.parametrize(
    "config",
    [{"beta_end": 0.005}, {"prediction_type": "v_prediction"}, {"num_train_timesteps": 500}],
)
def test_the_hash_names_the_training(make_unet, config):
    assert denoiser_hash(make_unet(), config) != denoiser_hash(make_unet(), {})


def test_the_hash_names_what_no_weight_shows(make_unet):
    unet = make_unet()
    name = denoiser_hash(unet, LINEAR_BETAS)
    assert name == denoiser_hash(unet, {})  # the same, by default
    unet.register_to_config(norm_eps=1e-3)
    assert name != denoiser_hash(unet, {})


def test_round_trip_of_a_pipeline(unet, tmp_path):
    path = tmp_path / "denoiser"
    save_denoiser(unet, path, beta_end=0.01, files={"training.json": "{}"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["denoiser"]
    assert (path / "training.json").read_text() == "{}"
    loaded, config = load_denoiser(str(path))
    assert not loaded.training
    assert denoiser_hash(loaded, {}) == denoiser_hash(unet, {})
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x, 3).sample, unet(x, 3).sample)
    torch.testing.assert_close(make_scheduler(config, 10).betas[-1], torch.tensor(0.01))
    pipeline = DDPMPipeline.from_pretrained(path)  # diffusers reads it too
    assert denoiser_hash(pipeline.unet, {}) == denoiser_hash(unet, {})


def test_a_bare_network_and_a_flat_pipeline(unet, tmp_path):
    bare = tmp_path / "bare"
    unet.save_pretrained(bare)
    loaded, config = load_denoiser(bare)
    assert denoiser_hash(loaded, {}) == denoiser_hash(unet, {})
    torch.testing.assert_close(make_scheduler(config, 10).betas, torch.linspace(1e-4, 0.02, 1000))
    # all files in one directory, as in google/ddpm-cifar10-32
    save_denoiser(unet, tmp_path / "nested", beta_end=0.01)
    shutil.copy(tmp_path / "nested" / "model_index.json", bare)
    shutil.copy(tmp_path / "nested" / "scheduler" / "scheduler_config.json", bare)
    loaded, config = load_denoiser(bare)
    assert denoiser_hash(loaded, {}) == denoiser_hash(unet, {})
    assert config["beta_end"] == 0.01


def test_an_existing_directory_is_never_looked_up_on_the_hub(unet, tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    def download(*args, **kwargs):
        raise AssertionError("asked the hub")

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    monkeypatch.chdir(tmp_path)
    save_denoiser(unet, tmp_path / "google" / "ddpm-cifar10-32")
    assert denoiser_hash(load_denoiser("google/ddpm-cifar10-32")[0], {}) == denoiser_hash(unet, {})


# Names of attention's layers in the weights of early days, as the hub still has them
EARLY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

HUB = """
import sys
from clsp_plugin.diffusion.denoiser import denoiser_hash, load_denoiser
from clsp_plugin.errors import ClspError
for source in sys.argv[1:]:
    try:
        print(denoiser_hash(*load_denoiser(source)))
    except ClspError as error:
        print(error)
"""


def write_early(unet, path):
    """The files of google/ddpm-cifar10-32, for another network: all in one folder, pickled."""
    path.mkdir(parents=True)
    config = {key: unet.config[key] for key in DDPM_CIFAR10}
    early = {"_diffusers_version": "0.0.4"}
    betas = {**LINEAR_BETAS, "beta_end": 0.01, "clip_sample": True, "variance_type": "fixed_large"}
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    for name, content in {
        "config.json": {"_class_name": "UNet2DModel", **early, **config},
        "scheduler_config.json": {"_class_name": "DDPMScheduler", **early, **betas},
        "model_index.json": {"_class_name": "DDPMPipeline", **early, **parts},
    }.items():
        (path / name).write_text(json.dumps(content))
    state = {}
    for name, tensor in unet.state_dict().items():
        for now, before in EARLY.items():
            name = name.replace(f".{now}.", f".{before}.")
        state[name] = tensor
    assert "mid_block.attentions.0.proj_attn.weight" in state
    torch.save(state, path / "diffusion_pytorch_model.bin")


def test_a_hub_id_is_what_the_hubs_client_has(unet, tmp_path):
    folder = tmp_path / "hub/models--google--ddpm-cifar10-32"
    commit = 40 * "a"
    write_early(unet, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(commit)
    done = subprocess.run(
        [sys.executable, "-c", HUB, "google/ddpm-cifar10-32", "someone/model"],
        cwd=tmp_path,
        # the client reads these when it is imported
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    found = done.stdout.splitlines()
    assert found[0] == denoiser_hash(unet, {"beta_end": 0.01}), done.stderr
    assert found[1].startswith("someone/model is neither a directory here nor could it be fetched")
    assert len(found) == 2


def break_json(path):
    (path / "unet" / "config.json").write_text("{")


def other_network(path):
    config = json.loads((path / "unet" / "config.json").read_text())
    (path / "unet" / "config.json").write_text(
        json.dumps({**config, "_class_name": "UNet2DConditionModel"})
    )


def truncate(path):
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def forget(path):
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(weights)
    del state["conv_in.bias"]
    safetensors.torch.save_file(state, weights, {"format": "pt"})


def invent(path):
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(weights) | {"surplus": torch.zeros(1)}
    safetensors.torch.save_file(state, weights, {"format": "pt"})


def no_groups(path):
    config = json.loads((path / "unet" / "config.json").read_text())
    (path / "unet" / "config.json").write_text(json.dumps({**config, "norm_num_groups": 0}))


def widen(path):
    config = json.loads((path / "unet" / "config.json").read_text())
    (path / "unet" / "config.json").write_text(
        json.dumps({**config, "block_out_channels": [16, 32]})
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_json, "config.json is not a configuration"),
        (other_network, "is a UNet2DConditionModel, not a UNet2DModel"),
        (truncate, "weights in .* cannot be loaded"),
        (forget, "are not those of its config.json .*1 missing_keys"),
        (invent, "are not those of its config.json .*1 unexpected_keys"),
        (widen, "weights in .* cannot be loaded"),
        (no_groups, "weights in .* cannot be loaded"),
        (lambda path: shutil.rmtree(path / "scheduler"), "scheduler_config.json cannot be read"),
        (lambda path: (path / "model_index.json").write_text("{}"), "has no unet"),
        (lambda path: (path / "model_index.json").write_text("[]"), "not a configuration"),
        (lambda path: (path / "model_index.json").unlink(), "neither model_index.json nor"),
    ],
)
def test_directories_that_are_refused(unet, tmp_path, damage, message):
    path = tmp_path / "denoiser"
    save_denoiser(unet, path)
    damage(path)
    with pytest.raises(ClspError, match=message):
        load_denoiser(path)


def test_a_class_conditional_network_is_read(unet, tmp_path):
    config = {k: v for k, v in unet.config.items() if k[0] != "_"}
    for cls in (UNet2DModel, AuthorsConditionalUNet):
        network = cls(**{**config, "num_class_embeds": 11})
        save_denoiser(network, tmp_path / cls.__name__)
        loaded, _ = load_denoiser(tmp_path / cls.__name__)
        assert type(loaded) is cls
        assert denoiser_hash(loaded, {}) == denoiser_hash(network, {})
    UNet2DModel(**{**config, "class_embed_type": "timestep"}).save_pretrained(tmp_path / "other")
    with pytest.raises(ClspError, match="conditioned on something else than class numbers"):
        load_denoiser(tmp_path / "other")


def test_paths_that_are_no_directory(tmp_path):
    with pytest.raises(ClspError, match=r"no denoiser directory at .*`clsp denoiser` trains one"):
        load_denoiser(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(ClspError, match="is a file"):
        load_denoiser(tmp_path / "file")


def test_nothing_is_overwritten(unet, tmp_path):
    path = tmp_path / "denoiser"
    path.mkdir()
    check_absent(path)
    save_denoiser(unet, path)  # an empty directory is as good as none
    with pytest.raises(ClspError, match="already exists; choose another out="):
        save_denoiser(unet, path)
    (tmp_path / "file").touch()
    with pytest.raises(ClspError, match="already exists"):
        check_absent(tmp_path / "file")


@pytest.mark.parametrize(
    "betas", [{"beta_end": 2.0}, {"beta_end": "much"}, {"trained_betas": [0.1, 0.0]}]
)
def test_betas_that_are_none(betas):
    with pytest.raises(ClspError, match="is not one of diffusion in discrete steps") as refused:
        training_betas({**LINEAR_BETAS, **betas})
    assert "\n" not in str(refused.value)


def test_no_room_for_a_denoiser(tmp_path, full_disk):
    unet = build_unet(8, {"block_out_channels": [32, 32], "attention_resolutions": []})
    told = pytest.raises(ClspError, match=r"could not be written \(.*make room, or choose another")
    with full_disk(20_000), told:
        save_denoiser(unet, tmp_path / "out" / "denoiser")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_save_leaves_nothing(unet, tmp_path):
    with pytest.raises(FileNotFoundError):
        save_denoiser(unet, tmp_path / "denoiser", files={"no/such/folder": ""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_weights_of_which_a_byte_changed_are_refused(unet, tmp_path, place):
    path = tmp_path / "denoiser"
    save_denoiser(unet, path)
    (weights,) = (path / "unet").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) - 1 - int(place * 4000)] ^= 0x40
    weights.write_bytes(content)
    for source in (path, path / "unet"):
        with pytest.raises(ClspError, match=rf"{weights.name} changed since being written"):
            load_denoiser(source)
    (path / "unet" / "weights.b2").unlink()  # as one of before there were digests
    load_denoiser(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("unet/config.json", lambda c: {**c, "layers_per_block": 10**12}),
        ("unet/config.json", lambda c: {**c, "block_out_channels": [10**12, 8]}),
        ("unet/config.json", lambda c: {**c, "block_out_channels": "8"}),
        ("unet/config.json", lambda c: {**c, "in_channels": True}),
        ("unet/config.json", lambda c: {**c, "sample_size": -1}),
        ("unet/config.json", lambda c: {**c, "down_block_types": 7}),
        ("unet/config.json", lambda c: {**c, "act_fn": []}),
        ("unet/config.json", lambda c: {**c, "_class_name": ["UNet2DModel"]}),
        ("unet/config.json", lambda c: None),
        ("model_index.json", lambda c: None),
        ("scheduler/scheduler_config.json", lambda c: None),
        ("scheduler/scheduler_config.json", lambda c: {**c, "num_train_timesteps": 10**15}),
        ("scheduler/scheduler_config.json", lambda c: {**c, "trained_betas": "x"}),
        ("scheduler/scheduler_config.json", lambda c: {**c, "beta_start": [1]}),
        ("scheduler/scheduler_config.json", lambda c: {**c, "prediction_type": ["epsilon"]}),
        ("scheduler/scheduler_config.json", lambda c: {**c, "prediction_type": "guess"}),
    ],
)
def test_configurations_are_not_trusted(unet, tmp_path, name, change):
    path = tmp_path / "denoiser"
    save_denoiser(unet, path)
    changed = change(json.loads((path / name).read_text()))
    deep = "[" * 300_000
    (path / name).write_text(deep if changed is None else json.dumps(changed))
    with pytest.raises(ClspError):
        make_scheduler(load_denoiser(path)[1], 10)
