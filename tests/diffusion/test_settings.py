"""Settings that refuse."""

import pytest
from omegaconf import OmegaConf

from clsp_plugin.diffusion.denoiser import UNetSettings
from clsp_plugin.diffusion.drawer import GenerationSettings
from clsp_plugin.diffusion.module import TrainingSettings
from clsp_plugin.diffusion.settings import read_settings
from clsp_plugin.errors import ClspError


def test_defaults_are_the_papers():
    training, generation = (
        read_settings(TrainingSettings, None),
        read_settings(GenerationSettings, {}),
    )
    assert (training.lr, training.warmup_steps, training.gradient_clip) == (2e-4, 5000, 1.0)
    assert (training.ema_decay, training.dropout, training.max_epochs) == (0.9999, 0.1, 2000)
    assert (generation.num_candidates, generation.w, generation.steps) == (8, 0.1, 100)
    assert (generation.eta, generation.share_anchor, generation.precision) == (
        0.1,
        False,
        "32-true",
    )


def test_values_are_typed_and_the_source_is_left_alone():
    cfg = {"block_out_channels": [8, 16], "dropout": 0}
    settings = read_settings(UNetSettings, cfg)
    assert settings.block_out_channels == (8, 16)
    assert isinstance(settings.dropout, float)
    assert cfg == {"block_out_channels": [8, 16], "dropout": 0}
    assert read_settings(UNetSettings, OmegaConf.create(cfg)) == settings
    assert read_settings(UNetSettings, settings) is settings
    assert read_settings(GenerationSettings, {"precision": 32}).precision == "32-true"


@pytest.mark.parametrize(
    ("cls", "cfg", "message"),
    [
        (UNetSettings, {"drop_out": 0.1}, "Unknown key 'drop_out'; did you mean 'dropout'?"),
        (UNetSettings, {"block_out_channels": 8}, r"block_out_channels=8 .* list of integers"),
        (UNetSettings, {"block_out_channels": [8, 0]}, "at least 1"),
        (UNetSettings, {"layers_per_block": 1.5}, r"layers_per_block=1.5 .* integer"),
        (UNetSettings, {"layers_per_block": True}, r"layers_per_block=True .* integer"),
        (TrainingSettings, {"lr": 0}, r"lr=0 .* number above 0"),
        (TrainingSettings, {"lr": float("nan")}, "lr=nan"),
        (TrainingSettings, {"lr": float("inf")}, "lr=inf"),
        (TrainingSettings, {"ema_warmup": 1}, r"ema_warmup=1 .* bool"),
        (TrainingSettings, {"horizontal_flip": 1.5}, r"horizontal_flip=1.5 .* 0 to 1"),
        (TrainingSettings, {"precision": "fp8"}, "precision='fp8'"),
        (GenerationSettings, {"w": -0.1}, r"w=-0.1 .* number, 0 to 1"),
        (GenerationSettings, {"w": "0.1"}, r"w='0.1' .* number"),
        (GenerationSettings, {"eta": 2}, r"eta=2 .* 0 to 1"),
        (GenerationSettings, {"steps": 0}, r"steps=0 .* integer, 1 to 1000"),
        (GenerationSettings, {"steps": 1001}, "steps=1001"),
        (GenerationSettings, {"num_candidates": 0}, r"num_candidates=0 .* at least 1"),
        (GenerationSettings, {"batch_size": -1}, r"batch_size=-1 .* at least 1"),
        (GenerationSettings, {"shard_size": 0}, "shard_size=0"),
        (GenerationSettings, {"precision": "half"}, "precision='half'"),
    ],
)
def test_what_is_refused(cls, cfg, message):
    with pytest.raises(ClspError, match=message.replace("?", r"\?")):
        read_settings(cls, cfg)


@pytest.mark.parametrize("seed", [-1, 2**40])
@pytest.mark.parametrize("settings", [TrainingSettings, GenerationSettings])
def test_seeds_are_those_of_the_other_verbs(settings, seed):
    with pytest.raises(ClspError, match=f"seed={seed}"):
        read_settings(settings, {"seed": seed})
