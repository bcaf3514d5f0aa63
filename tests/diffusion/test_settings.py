"""Settings that refuse."""

import pytest
from omegaconf import OmegaConf

from clsp_plugin.config.typed import settings_of
from clsp_plugin.diffusion.denoiser import UNetSettings
from clsp_plugin.diffusion.drawer import GenerationSettings
from clsp_plugin.diffusion.module import TrainingSettings
from clsp_plugin.errors import ClspError


def test_defaults_are_the_papers():
    training, generation = (
        settings_of(TrainingSettings, None),
        settings_of(GenerationSettings, {}),
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
    settings = settings_of(UNetSettings, cfg)
    assert settings.block_out_channels == (8, 16)
    assert isinstance(settings.dropout, float)
    assert cfg == {"block_out_channels": [8, 16], "dropout": 0}
    assert settings_of(UNetSettings, OmegaConf.create(cfg)) == settings
    assert settings_of(UNetSettings, settings) is settings
    assert settings_of(GenerationSettings, {"precision": 32}).precision == "32-true"


@pytest.mark.parametrize(
    ("cls", "cfg", "message"),
    [
        (UNetSettings, {"drop_out": 0.1}, "drop_out is not a setting; did you mean 'dropout'?"),
        (UNetSettings, {"block_out_channels": 8}, "block_out_channels=8 is not a list"),
        (UNetSettings, {"block_out_channels": [8, 0]}, "at least 1"),
        (UNetSettings, {"layers_per_block": 1.5}, "layers_per_block=1.5 must be a whole number"),
        (UNetSettings, {"layers_per_block": True}, "layers_per_block=True must be a number"),
        (TrainingSettings, {"lr": 0}, "lr=0.0 must be above 0"),
        (TrainingSettings, {"lr": float("nan")}, "lr=nan"),
        (TrainingSettings, {"lr": float("inf")}, "lr=inf"),
        (TrainingSettings, {"ema_warmup": 2}, "ema_warmup=2 must be true or false"),
        (
            TrainingSettings,
            {"horizontal_flip": 1.5},
            "horizontal_flip=1.5 must be at least 0 and at most 1",
        ),
        (TrainingSettings, {"precision": "fp8"}, "precision='fp8'"),
        (GenerationSettings, {"w": -0.1}, "w=-0.1 must be at least 0 and at most 1"),
        (GenerationSettings, {"w": "a tenth"}, "w=a tenth must be a number"),
        (GenerationSettings, {"eta": 2}, "eta=2.0 must be at least 0 and at most 1"),
        (GenerationSettings, {"steps": 0}, "steps=0 must be at least 1 and at most 1000"),
        (GenerationSettings, {"steps": 1001}, "steps=1001"),
        (GenerationSettings, {"num_candidates": 0}, "num_candidates=0 must be at least 1"),
        (GenerationSettings, {"batch_size": -1}, "batch_size=-1 must be at least 1"),
        (GenerationSettings, {"shard_size": 0}, "shard_size=0"),
        (GenerationSettings, {"precision": "half"}, "precision='half'"),
    ],
)
def test_what_is_refused(cls, cfg, message):
    with pytest.raises(ClspError, match=message.replace("?", r"\?")):
        settings_of(cls, cfg)


@pytest.mark.parametrize("seed", [-1, 2**40])
@pytest.mark.parametrize("settings", [TrainingSettings, GenerationSettings])
def test_seeds_are_those_of_the_other_verbs(settings, seed):
    with pytest.raises(ClspError, match=f"seed={seed}"):
        settings_of(settings, {"seed": seed})
