"""The denoiser: its architecture, and its directory in diffusers' format."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    LDMPipeline,
    UNet2DModel,
)
from torch import nn

from clsp_plugin.config.rules import ranged
from clsp_plugin.config.typed import settings_of
from clsp_plugin.diffusion.autoencoder import (
    Autoencoder,
    load_autoencoder,
    part_of,
    weights_digest,
)
from clsp_plugin.diffusion.folders import (
    INDEX,
    check_absent,
    fetched,
    invalid_setting,
    load_network,
    made_whole,
    read_config,
)
from clsp_plugin.diffusion.interpolation import check_unet
from clsp_plugin.diffusion.schedulers import LINEAR_BETAS, predicted, training_betas
from clsp_plugin.errors import ClspError

__all__ = [
    "AuthorsConditionalUNet",
    "FeatureConditionalUNet",
    "UNetSettings",
    "ViewUNet",
    "build_unet",
    "check_absent",
    "denoiser_hash",
    "fetch_pipeline",
    "load_autoencoder_of",
    "load_denoiser",
    "save_denoiser",
    "scheduler_config",
]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support

# Largest accepted settings of a network: with larger ones, building it could exhaust the memory or
# never end.
_LARGEST = {
    "attention_head_dim": 2**16, "block_out_channels": 2**14, "in_channels": 2**10,
    "layers_per_block": 64, "norm_num_groups": 2**14, "num_class_embeds": 10**6,
    "num_train_timesteps": 10**6, "out_channels": 2**10, "sample_size": 2**14,
    "time_embedding_dim": 2**16,
}  # fmt: skip
_LISTS = ("block_out_channels", "sample_size")
_ADVICE = "`clsp denoiser` trains a denoiser."


@dataclasses.dataclass(frozen=True)
class UNetSettings:
    """Architecture of a denoiser; the defaults are those of ``google/ddpm-cifar10-32``.

    Attributes:
        block_out_channels: channels at each resolution, from the finest; each resolution is half
            of the one before.
        layers_per_block: residual blocks per resolution on the way down (one more on the way up).
        attention_resolutions: the resolutions, in pixels, with self-attention. The middle block
            always has it.
        dropout: probability of dropping a feature inside a residual block.
        attention_head_dim: channels of an attention head; by default one head has all channels.
        norm_num_groups: groups of the group normalisation; by default the largest of 32, 16, 8,
            4, 2, 1 that divides all of ``block_out_channels``.
    """

    block_out_channels: tuple[int, ...] = ranged((128, 256, 256, 256), low=1)
    layers_per_block: int = ranged(2, low=1)
    attention_resolutions: tuple[int, ...] = ranged((16,), low=1)
    dropout: float = ranged(0.1, low=0, high=0.9)
    attention_head_dim: Optional[int] = ranged(None, low=1)
    norm_num_groups: Optional[int] = ranged(None, low=1)


def _norm_groups(settings: UNetSettings) -> int:
    """Return the given number of groups, or the largest power of two up to 32 that fits.

    Raises:
        ClspError: the given number does not divide all numbers of channels.
    """
    channels, given = settings.block_out_channels, settings.norm_num_groups
    if given is None:
        return next(g for g in (32, 16, 8, 4, 2, 1) if all(c % g == 0 for c in channels))
    if any(c % given for c in channels):
        raise ClspError(
            f"norm_num_groups={given} does not divide all of block_out_channels={list(channels)}; "
            f"leave it out to have it chosen."
        )
    return given


def _resolutions(image_size: int, settings: UNetSettings) -> list[int]:
    """Return the side in pixels at each level of the UNet."""
    if not settings.block_out_channels:
        raise ClspError("block_out_channels is an empty list; give the channels of each block.")
    levels = len(settings.block_out_channels)
    if image_size < 1 or image_size % 2 ** (levels - 1):
        raise ClspError(
            f"Images of {image_size} pixels cannot be halved {levels - 1} times; "
            f"block_out_channels={list(settings.block_out_channels)} needs a multiple of "
            f"{2 ** (levels - 1)}."
        )
    return [image_size >> level for level in range(levels)]


def build_unet(
    image_size: int,
    cfg: UNetSettings | Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    num_features: int | None = None,
    of_view: bool = False,
    channels: int = 3,
) -> UNet2DModel:
    """Make an untrained denoiser.

    Args:
        image_size: height and width of the images in pixels, or of their latents in places.
        cfg: keys of :class:`UNetSettings`.
        num_classes: number of classes of a class-conditional denoiser; the embedding has one row
            more, for no class.
        num_features: number of features per image that a denoiser is conditioned on.
        of_view: whether its middle feature will be that of another view; not with a condition.
        channels: channels of the latents; 3 for a denoiser of RGB images.

    Returns:
        A ``UNet2DModel``; with the defaults and 32 pixels, that of ``google/ddpm-cifar10-32``
        (Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020).

    Raises:
        ClspError: a key that is not valid, images that cannot be halved often enough, or
            attention at a resolution that does not occur.
    """
    settings = settings_of(UNetSettings, cfg)
    resolutions = _resolutions(image_size, settings)
    absent = [r for r in settings.attention_resolutions if r not in resolutions]
    if absent:
        raise ClspError(
            f"attention_resolutions={list(settings.attention_resolutions)}: {absent[0]} is none of "
            f"the resolutions {', '.join(map(str, resolutions))} of this UNet on images of "
            f"{image_size} pixels; choose among them, or give an empty list."
        )
    attention = [resolution in settings.attention_resolutions for resolution in resolutions]
    assert (num_classes is not None) + (num_features is not None) + of_view <= 1
    network = FeatureConditionalUNet if num_features else ViewUNet if of_view else UNet2DModel
    return network(
        sample_size=image_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=settings.block_out_channels,
        layers_per_block=settings.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1]),
        dropout=settings.dropout,
        attention_head_dim=settings.attention_head_dim,
        norm_num_groups=_norm_groups(settings),
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        # row 0 stands for no class
        num_class_embeds=num_features or (num_classes + 1 if num_classes else None),
    )


class AuthorsConditionalUNet(UNet2DModel):
    """The network of the authors' class-conditional recipe.

    It halves the resolution with a 5x5 convolution, and doubles it with a transposed 5x5
    convolution followed by a 3x3 one. ``UNet2DModel`` has no setting for these.
    """

    def __init__(self, *args: Any, **keys: Any):
        super().__init__(*args, **keys)
        for block in self.down_blocks:
            for sampler in block.downsamplers or ():
                channels = sampler.conv.in_channels
                sampler.conv = nn.Conv2d(channels, channels, 5, stride=2, padding=2)
        for block in self.up_blocks:
            for sampler in block.upsamplers or ():
                channels = sampler.conv.in_channels
                sampler.use_conv_transpose = True
                sampler.conv = nn.Sequential(
                    nn.ConvTranspose2d(channels, channels, 5, 2, padding=2, output_padding=1),
                    nn.Conv2d(channels, channels, 3, padding=1),
                )

    functools.update_wrapper(__init__, UNet2DModel.__init__)  # diffusers reads its signature


class FeatureConditionalUNet(UNet2DModel):
    """A network that is conditioned on ``num_class_embeds`` features of each image.

    A linear map of the features is added to the embedding of the step, where ``UNet2DModel`` adds
    the embedding of a class.
    """

    class_embedding: Any

    def __init__(self, *args: Any, **keys: Any):
        super().__init__(*args, **keys)
        table = self.class_embedding
        self.class_embedding = nn.Linear(table.num_embeddings, table.embedding_dim)

    functools.update_wrapper(__init__, UNet2DModel.__init__)  # diffusers reads its signature


class ViewUNet(UNet2DModel):
    """A network that was trained to take the middle feature of another view of the image.

    It has the layers of ``UNet2DModel``; the name tells whoever draws with it how to.
    """

    def __init__(self, *args: Any, **keys: Any):
        super().__init__(*args, **keys)

    functools.update_wrapper(__init__, UNet2DModel.__init__)  # diffusers reads its signature


_NETWORKS = {
    cls.__name__: cls
    for cls in (UNet2DModel, AuthorsConditionalUNet, FeatureConditionalUNet, ViewUNet)
}


def _problem_with(config: Mapping[str, Any]) -> str | None:
    """Return why the network of a configuration file is not a denoiser, or None."""
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in _NETWORKS:
        return f"is a {str(kind)[:60]}, not a UNet2DModel"
    if config.get("class_embed_type") is not None:
        return "is conditioned on something else than class numbers"
    return invalid_setting(config, _LARGEST, _LISTS)


def fetch_pipeline(source: str | Path) -> Path:
    """Return the local folder of a pipeline: a directory, or a copy of one on the hub.

    Raises:
        ClspError: there is no such directory, and it cannot be fetched.
    """
    if Path(source).is_file():
        raise ClspError(f"{source} is a file; a denoiser is a directory in diffusers' format.")
    if Path(source).is_dir():
        return Path(source)
    return fetched(str(source), DiffusionPipeline.download, "denoiser", "google/ddpm-cifar10-32")


def _load_unet(folder: Path, latent: bool) -> UNet2DModel:
    """Load a network, and refuse one with missing, unexpected or changed weights."""
    config = read_config(folder / "config.json")
    problem = _problem_with(config)
    if problem:
        raise ClspError(f"The network in {folder} {problem}; `clsp denoiser` trains one.")
    unet = load_network(_NETWORKS[config["_class_name"]], folder, _ADVICE)
    check_unet(unet, None if latent else 3)
    return unet


def load_denoiser(source: str | Path) -> tuple[UNet2DModel, dict[str, Any]]:
    """Load a denoiser in diffusers' format.

    Args:
        source: a pipeline directory (``model_index.json``, ``unet/``, ``scheduler/``), a bare
            ``UNet2DModel`` directory (``config.json`` and weights; linear betas from 1e-4 to
            0.02 in 1000 steps are then assumed), or an id on the Hugging Face hub. An existing
            directory is never looked up on the hub.

    Returns:
        The network in evaluation mode, on the CPU, and the configuration of the scheduler it was
        trained with, for :func:`clsp_plugin.diffusion.schedulers.make_scheduler`.

    Raises:
        ClspError: there is no such directory, it is not in that format, weights are missing or
            changed since they were written (checked if there is ``unet/weights.b2``), or the
            network is not one of RGB images.
    """
    folder = fetch_pipeline(source)
    if not (folder / INDEX).exists():
        if not (folder / "config.json").exists():
            raise ClspError(
                f"{folder} has neither model_index.json nor config.json, so it is not a denoiser "
                f"in diffusers' format; `clsp denoiser` trains one."
            )
        return _load_unet(folder, latent=False), dict(LINEAR_BETAS)
    parts = read_config(folder / INDEX)
    if "unet" not in parts:
        raise ClspError(f"The pipeline in {folder} has no unet, so it is not a denoiser.")
    nested = folder / "unet"
    unet = _load_unet(nested if nested.is_dir() else folder, part_of(folder) is not None)
    return unet, scheduler_config(folder)


def load_autoencoder_of(source: str | Path, unet: UNet2DModel) -> Autoencoder | None:
    """Load the autoencoder of a latent denoiser; None for a denoiser of pixels.

    Args:
        source: what :func:`load_denoiser` loaded.
        unet: what it returned.

    Raises:
        ClspError: the autoencoder cannot be loaded, or its latents have another number of channels
            than the denoiser takes.
    """
    folder = fetch_pipeline(source)
    part = part_of(folder) if (folder / INDEX).exists() else None
    if part is None:
        return None
    autoencoder = load_autoencoder(part)
    if autoencoder.channels != unet.config.in_channels:
        raise ClspError(
            f"The autoencoder in {part} has latents of {autoencoder.channels} channels and the "
            f"denoiser beside it takes {unet.config.in_channels}; they do not belong together."
        )
    return autoencoder


def denoiser_hash(
    unet: UNet2DModel, config: Mapping[str, Any], autoencoder: Autoencoder | None = None
) -> str:
    """Return a hash of everything that a denoiser's samples depend on.

    Args:
        unet: the network, of which the weights are hashed, and the settings that their shapes do
            not show.
        config: configuration of the scheduler that it was trained with, of which the betas and the
            type of prediction are hashed.
        autoencoder: that of a latent denoiser, which is hashed too.

    Returns:
        16 hexadecimal digits of a SHA-256.
    """
    digest = weights_digest(unet)
    settings = {key: unet.config.get(key) for key in _UNSEEN_KEYS}
    digest.update(json.dumps([settings, predicted(config)]).encode())
    digest.update(training_betas(config).numpy().tobytes())
    if autoencoder is not None:
        digest.update(autoencoder.hash.encode())
    return digest.hexdigest()[:16]


def _pipeline(
    unet: UNet2DModel, betas: Mapping[str, Any], autoencoder: Autoencoder | None
) -> DiffusionPipeline:
    """Return diffusers' pipeline of a denoiser."""
    if autoencoder is None:
        return DDPMPipeline(unet=unet, scheduler=DDPMScheduler(**betas))
    # diffusers' pipeline then takes the steps that candidates are drawn in, and clips no latents
    scheduler = DDIMScheduler(**betas, clip_sample=False, timestep_spacing="trailing")
    return LDMPipeline(vqvae=autoencoder.network, unet=unet, scheduler=scheduler)


def save_denoiser(
    unet: UNet2DModel,
    path: str | Path,
    *,
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    prediction: str = "epsilon",
    autoencoder: Autoencoder | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write a ``DDPMPipeline`` directory, which diffusers and :func:`load_denoiser` read.

    With an autoencoder it is a ``LDMPipeline`` directory. (diffusers' own pipeline ignores an
    autoencoder's ``shift_factor``, which is used here; those of Stable Diffusion have none.)

    The directory appears whole or not at all.

    Args:
        unet: the network.
        path: the directory; it must not exist yet.
        num_train_timesteps: T, the number of training steps of the diffusion.
        beta_start: the first of the linear betas.
        beta_end: the last of the linear betas.
        prediction: what the network predicts, in diffusers' words.
        autoencoder: that of a latent denoiser; it is saved with the network.
        files: further text files, name to content.

    Raises:
        ClspError: the path exists, or there is no room for it.
    """
    path = Path(path)
    check_absent(path)
    betas = {
        "num_train_timesteps": num_train_timesteps,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "prediction_type": prediction,
    }
    pipeline = _pipeline(unet, betas, autoencoder)
    made_whole(path, pipeline.save_pretrained, ("unet", "vqvae"), files or {})


# Settings of a network that the shapes of its weights do not show.
_UNSEEN_KEYS = (
    "act_fn", "attention_head_dim", "center_input_sample", "class_embed_type",
    "downsample_padding", "flip_sin_to_cos", "freq_shift", "mid_block_scale_factor", "norm_eps",
    "norm_num_groups", "resnet_time_scale_shift", "time_embedding_type",
)  # fmt: skip


def scheduler_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of the training's scheduler from a pipeline directory."""
    # early pipelines such as google/ddpm-cifar10-32 keep all files in one directory
    nested = folder / "scheduler" / "scheduler_config.json"
    return read_config(nested if nested.parent.is_dir() else folder / "scheduler_config.json")
