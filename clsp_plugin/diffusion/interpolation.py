"""Interpolation of the middle feature of a UNet: what makes an unconditional model keep semantics.

The UNet is cut after its middle block. :func:`encode` is the first half and :func:`decode` the
second; in between, the sample's feature is blended with that of an anchor noised to the same
step. Skip connections and the time embedding stay the sample's own (Zeng et al.,
"Contrastive Learning with Synthetic Positives", ECCV 2024).
"""

import torch
from diffusers import UNet2DModel

from clsp_plugin.errors import ClspError

__all__ = ["check_unet", "check_weight", "decode", "encode", "interpolated_noise"]


def check_unet(unet: UNet2DModel) -> None:
    """Refuse a UNet that is not an unconditional model of RGB images with a middle block.

    Raises:
        ClspError: naming what is in the way.
    """
    config = unet.config
    problem = None
    if unet.class_embedding is not None:
        problem = "is class-conditional (the method needs an unconditional one)"
    elif (config.in_channels, config.out_channels) != (3, 3):
        problem = (
            f"maps {config.in_channels} channels to {config.out_channels} "
            f"(3 to 3 are needed: an RGB image and its noise)"
        )
    elif unet.mid_block is None:
        problem = "has no middle block, whose output is what is interpolated"
    elif config.time_embedding_type == "fourier":
        problem = "is conditioned on noise levels (time_embedding_type 'fourier'), not on steps"
    if problem:
        raise ClspError(f"This denoiser {problem}; use another, `clsp denoiser` trains one.")


def check_weight(w: float) -> None:
    """Refuse a weight of the sample outside [0, 1]."""
    if not 0.0 <= w <= 1.0:
        raise ClspError(
            f"w={w!r} is not between 0 (the anchor's middle feature alone) and 1 (the sample's "
            f"alone)."
        )


def _time_embedding(unet: UNet2DModel, t: int | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    t = torch.as_tensor(t, device=x.device)
    t = t.expand(x.shape[0]) if t.ndim == 0 else t
    # the sinusoids are float32 whatever the weights are
    return unet.time_embedding(unet.time_proj(t).to(dtype=unet.dtype))


def encode(
    unet: UNet2DModel, x: torch.Tensor, t: int | torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
    """Run a UNet up to and with its middle block.

    Args:
        unet: an unconditional ``UNet2DModel``.
        x: noisy images in about [-1, 1], float (B, 3, H, W).
        t: the step, an int or int64 (B,), in 0 .. T - 1.

    Returns:
        The middle feature (B, C, h, w), the skip connections from the first to the last, and
        the time embedding (B, E). ``decode(unet, *encode(unet, x, t))`` is
        ``unet(x, t).sample`` to the last bit.

    Raises:
        ClspError: the UNet is not supported, see :func:`check_unet`.
    """
    check_unet(unet)
    if unet.config.center_input_sample:
        x = 2 * x - 1.0
    emb = _time_embedding(unet, t, x)
    pyramid = x  # what blocks with a "skip_conv" add to their output at every resolution
    h = unet.conv_in(x)
    skips = (h,)
    for block in unet.down_blocks:
        if hasattr(block, "skip_conv"):
            h, block_skips, pyramid = block(hidden_states=h, temb=emb, skip_sample=pyramid)
        else:
            h, block_skips = block(hidden_states=h, temb=emb)
        skips += block_skips
    return unet.mid_block(h, emb), skips, emb


def decode(
    unet: UNet2DModel, h: torch.Tensor, skips: tuple[torch.Tensor, ...], emb: torch.Tensor
) -> torch.Tensor:
    """Run a UNet from behind its middle block to the noise estimate.

    Args:
        unet: the UNet of :func:`encode`.
        h: a middle feature (B, C, h, w).
        skips: the skip connections, from the first to the last.
        emb: the time embedding (B, E).

    Returns:
        The noise estimate (B, 3, H, W).
    """
    pyramid = None
    for block in unet.up_blocks:
        depth = len(block.resnets)
        skips, block_skips = skips[:-depth], skips[-depth:]
        if hasattr(block, "skip_conv"):
            h, pyramid = block(h, block_skips, emb, pyramid)
        else:
            h = block(h, block_skips, emb)
    assert not skips, "the up blocks have fewer layers than the down blocks made skips"
    noise = unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))
    return noise if pyramid is None else noise + pyramid


def interpolated_noise(
    unet: UNet2DModel,
    x_t: torch.Tensor,
    x_t_anchor: torch.Tensor,
    t: int,
    w: float,
) -> torch.Tensor:
    """Estimate the noise in a sample with the semantics of an anchor.

    .. math:: decode(w \\, h + (1 - w) \\, h^a, \\; skips(x_t), \\; emb(t))

    **w is the weight of the SAMPLE, not of the anchor**: ``w = 0.1``, the paper's, is 10 % sample
    and 90 % anchor; ``w = 0`` takes the anchor's feature alone; ``w = 1`` is the plain
    unconditional estimate, and the anchor is then not even looked at.

    Args:
        unet: an unconditional ``UNet2DModel``.
        x_t: the samples being denoised, float (B * K, 3, H, W), the K candidates of an anchor
            side by side.
        x_t_anchor: the anchors, noised to the same step with fresh noise: (B * K, 3, H, W), or
            (B, 3, H, W) where the K candidates of an anchor share its feature.
        t: the step, in 0 .. T - 1.
        w: weight of the sample, in [0, 1].

    Returns:
        The noise estimate (B * K, 3, H, W), or the velocity if that is what the UNet predicts.

    Raises:
        ClspError: w is out of range, or the UNet is not supported.
    """
    check_weight(w)
    h, skips, emb = encode(unet, x_t, t)
    if w < 1.0:
        candidates, rest = divmod(len(x_t), len(x_t_anchor))
        assert rest == 0, f"{len(x_t)} samples do not divide among {len(x_t_anchor)} anchors"
        h_anchor = encode(unet, x_t_anchor, t)[0]
        if candidates > 1:
            h_anchor = h_anchor.repeat_interleave(candidates, dim=0)
        h = w * h + (1.0 - w) * h_anchor
    return decode(unet, h, skips, emb)
