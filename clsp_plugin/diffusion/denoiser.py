import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import UNet2DModel

from clsp_plugin.diffusion.settings import Settings, read_settings, setting
from clsp_plugin.errors import ClspError


@dataclasses.dataclass(frozen=True)
class UNetSettings(Settings):
    """Architecture of a denoiser; the defaults are those of ``google/ddpm-cifar10-32``.

    Attributes:
        block_out_channels: channels of each resolution, from the finest; each is half of the one
            before.
        layers_per_block: residual blocks a resolution on the way down (one more on the way up).
        attention_resolutions: the resolutions, in pixels, with self-attention. The middle block
            always has it.
        dropout: probability of dropping a feature inside a residual block.
        attention_head_dim: channels of an attention head; by default one head has them all.
        norm_num_groups: groups of the group normalisation; by default the largest of 32, 16, 8,
            4, 2, 1 that divides all of ``block_out_channels``.
    """

    block_out_channels: Sequence[int] = setting((128, 256, 256, 256), int, low=1, many=True)
    layers_per_block: int = setting(2, int, low=1)
    attention_resolutions: Sequence[int] = setting((16,), int, low=1, many=True)
    dropout: float = setting(0.1, float, low=0.0, high=0.9)
    attention_head_dim: int | None = setting(None, int, low=1, optional=True)
    norm_num_groups: int | None = setting(None, int, low=1, optional=True)


def _norm_groups(settings: UNetSettings) -> int:
    """Groups that divide every number of channels: the largest power of two up to 32."""
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
    """Pixels a side at each level of the UNet."""
    levels = len(settings.block_out_channels)
    if levels < 1 or image_size < 1 or image_size % 2 ** (levels - 1):
        raise ClspError(
            f"Images of {image_size} pixels cannot be halved {levels - 1} times; "
            f"block_out_channels={list(settings.block_out_channels)} needs a multiple of "
            f"{2 ** (levels - 1)}."
        )
    return [image_size >> level for level in range(levels)]


def build_unet(
    image_size: int, cfg: UNetSettings | Mapping[str, Any] | None = None
) -> UNet2DModel:
    """Make an untrained denoiser.

    Args:
        image_size: height and width of the images in pixels.
        cfg: keys of :class:`UNetSettings`.

    Returns:
        A ``UNet2DModel``; with the defaults and 32 pixels, that of ``google/ddpm-cifar10-32``
        (Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020).

    Raises:
        ClspError: a key that is not valid, images that cannot be halved often enough, or
            attention at a resolution that does not occur.
    """
    settings = read_settings(UNetSettings, cfg)
    resolutions = _resolutions(image_size, settings)
    absent = [r for r in settings.attention_resolutions if r not in resolutions]
    if absent:
        raise ClspError(
            f"attention_resolutions={list(settings.attention_resolutions)}: {absent[0]} is none of "
            f"the resolutions {', '.join(map(str, resolutions))} of this UNet on images of "
            f"{image_size} pixels; choose among them, or give an empty list."
        )
    attention = [resolution in settings.attention_resolutions for resolution in resolutions]
    return UNet2DModel(
        sample_size=image_size,
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
    )
