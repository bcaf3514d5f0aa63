"""Interpolation of the middle feature of a UNet: what makes an unconditional model keep semantics.

The UNet is cut after its middle block. :func:`encode` is the first half and :func:`decode` the
second; in between, the sample's feature is blended with that of an anchor noised to the same
step. Skip connections and the time embedding stay the sample's own (Zeng et al.,
"Contrastive Learning with Synthetic Positives", ECCV 2024).

A conditional UNet also takes a condition of each image: the row of its class in an embedding, with
row 0 for no class, or the image's features in some encoder, with zeros for none.
"""

import contextlib
from collections.abc import Iterator

import torch
from diffusers import UNet2DModel
from torch import nn

from clsp_plugin.errors import ClspError

__all__ = [
    "check_unet",
    "check_weight",
    "decode",
    "encode",
    "guided_noise",
    "interpolated_noise",
    "is_conditional",
    "known",
    "masked_middle",
    "unknown",
    "viewed_middle",
    "viewed_noise",
]


def is_conditional(unet: UNet2DModel) -> bool:
    """Whether a UNet takes the class or the features of an image."""
    return unet.class_embedding is not None


def known(condition: torch.Tensor) -> torch.Tensor:
    """Convert a condition to a UNet's input: classes (B,) to rows, class + 1; features stay."""
    return condition if condition.is_floating_point() else condition + 1


def unknown(condition: torch.Tensor) -> torch.Tensor:
    """Return the UNet's input for no condition, in the shape and type of ``condition``."""
    return torch.zeros_like(condition)


def check_unet(unet: UNet2DModel, channels: int | None = 3) -> None:
    """Refuse a UNet that is not a model of RGB images, or of latents, with a middle block.

    Args:
        unet: the UNet.
        channels: channels that it must map to as many; 3 for RGB images. None takes any number,
            as of latents.

    Raises:
        ClspError: the UNet is not one; the message says why.
    """
    config = unet.config
    problem = None
    if is_conditional(unet) and not isinstance(unet.class_embedding, (nn.Embedding, nn.Linear)):
        problem = f"takes no class numbers (class_embed_type {config.class_embed_type!r})"
    elif config.in_channels != config.out_channels or channels not in (None, config.in_channels):
        n, what = channels or config.in_channels, "an RGB image" if channels == 3 else "latents"
        problem = (
            f"maps {config.in_channels} channels to {config.out_channels} "
            f"({n} to {n} are needed: {what} and the noise)"
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


def _embedding(
    unet: UNet2DModel, t: int | torch.Tensor, x: torch.Tensor, condition: torch.Tensor | None
) -> torch.Tensor:
    """Return the embedding (B, E) of the step, plus that of the condition if the UNet takes one."""
    if not isinstance(t, torch.Tensor):  # made on the device, so that the host does not wait
        t = torch.full((), t, device=x.device)
    t = t.to(x.device)
    t = t.expand(x.shape[0]) if t.ndim == 0 else t
    # the sinusoids are float32 whatever the weights are
    emb = unet.time_embedding(unet.time_proj(t).to(dtype=unet.dtype))
    assert (condition is not None) == is_conditional(unet), "a condition for networks that take one"
    if condition is None:
        return emb
    given = condition.to(unet.dtype) if condition.is_floating_point() else condition
    return emb + unet.class_embedding(given).to(dtype=unet.dtype)


def encode(
    unet: UNet2DModel,
    x: torch.Tensor,
    t: int | torch.Tensor,
    condition: torch.Tensor | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
    """Run a UNet up to and including its middle block.

    Args:
        unet: a ``UNet2DModel``.
        x: noisy images in about [-1, 1], float (B, 3, H, W).
        t: the step, an int or int64 (B,), in 0 .. T - 1.
        condition: for a conditional UNet the output of :func:`known` or :func:`unknown`: int64
            (B,), rows of its class embedding, or float (B, D), features; else None.

    Returns:
        The middle feature (B, C, h, w), the skip connections from the first to the last, and
        the embedding of step and condition (B, E). ``decode(unet, *encode(unet, x, t))`` is
        ``unet(x, t).sample`` to the last bit.

    Raises:
        ClspError: the UNet is not supported, see :func:`check_unet`.
    """
    check_unet(unet, x.shape[1])
    if unet.config.center_input_sample:
        x = 2 * x - 1.0
    emb = _embedding(unet, t, x, condition)
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
    """Run a UNet from after its middle block to the noise estimate.

    Args:
        unet: the UNet of :func:`encode`.
        h: a middle feature (B, C, h, w).
        skips: the skip connections, from the first to the last.
        emb: the embedding of step and condition (B, E).

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
    condition: torch.Tensor | None = None,
) -> torch.Tensor:
    """Estimate the noise in a sample that is to get the semantics of an anchor.

    .. math:: decode(w \\, h + (1 - w) \\, h^a, \\; skips(x_t), \\; emb(t))

    **w is the weight of the SAMPLE, not of the anchor**: ``w = 0.1``, the paper's, is 10 % sample
    and 90 % anchor; ``w = 0`` takes the anchor's feature alone; ``w = 1`` is the plain
    unconditional estimate, and the anchor is then not even looked at.

    Args:
        unet: a ``UNet2DModel``.
        x_t: the samples being denoised, float (B * K, 3, H, W), the K candidates of an anchor
            side by side.
        x_t_anchor: the anchors, noised to the same step with fresh noise: (B * K, 3, H, W), or
            (B, 3, H, W) where the K candidates of an anchor share its feature.
        t: the step, in 0 .. T - 1.
        w: weight of the sample, in [0, 1].
        condition: for a conditional UNet the output of :func:`known` or :func:`unknown`, (B * K,)
            or (B * K, D); else None.

    Returns:
        The noise estimate (B * K, 3, H, W), or the velocity if that is what the UNet predicts.

    Raises:
        ClspError: w is out of range, or the UNet is not supported.
    """
    check_weight(w)
    h, skips, emb = encode(unet, x_t, t, condition)
    if w < 1.0:
        candidates, rest = divmod(len(x_t), len(x_t_anchor))
        assert rest == 0, f"{len(x_t)} samples do not divide among {len(x_t_anchor)} anchors"
        own = None if condition is None else condition[::candidates]
        h_anchor = encode(unet, x_t_anchor, t, own)[0]
        if candidates > 1:
            h_anchor = h_anchor.repeat_interleave(candidates, dim=0)
        h = w * h + (1.0 - w) * h_anchor
    return decode(unet, h, skips, emb)


def viewed_middle(unet: UNet2DModel, images: torch.Tensor) -> torch.Tensor:
    """Return the middle feature of images without noise, (B, 3, H, W), at step 0: (B, C, h, w)."""
    return encode(unet, images, 0)[0]


def viewed_noise(
    unet: UNet2DModel, x_t: torch.Tensor, h: torch.Tensor, t: int, guidance: float
) -> torch.Tensor:
    r"""Estimate the noise in a sample with the middle feature of a whole anchor, and guided by it.

    .. math:: (1 + g) \, decode(h^a, skips(x_t)) - g \, decode(0, skips(x_t))

    For denoisers that were trained with ``middle=view``. The anchor's feature is that of
    :func:`viewed_middle`, the same at every step; the sample's own middle feature is not used.

    Args:
        unet: such a ``UNet2DModel``.
        x_t: the samples being denoised, float (B * K, 3, H, W), the K candidates of an anchor
            side by side.
        h: the anchors' middle features, (B, C, h, w) or (B * K, C, h, w).
        t: the step, in 0 .. T - 1.
        guidance: g, at least 0; 0 gives the estimate without guidance.

    Returns:
        The noise estimate (B * K, 3, H, W), or the velocity if that is what the UNet predicts.
    """
    _, skips, emb = encode(unet, x_t, t)
    h = h.repeat_interleave(len(x_t) // len(h), dim=0)
    estimate = decode(unet, h, skips, emb)
    if guidance == 0:
        return estimate
    return (1 + guidance) * estimate - guidance * decode(unet, torch.zeros_like(h), skips, emb)


def guided_noise(
    unet: UNet2DModel,
    x_t: torch.Tensor,
    x_t_anchor: torch.Tensor,
    t: int,
    w: float,
    condition: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    r"""Estimate the noise in a sample with classifier-free guidance towards a condition.

    .. math:: (1 + g) \, eps(x_t, c) - g \, eps(x_t, none)

    The guidance of Ho and Salimans (2022), applied to :func:`interpolated_noise`.

    Args:
        unet: a conditional ``UNet2DModel``; row 0 of a class embedding stands for no class, row
            ``c + 1`` for class c.
        x_t: as in :func:`interpolated_noise`.
        x_t_anchor: as in :func:`interpolated_noise`.
        t: as in :func:`interpolated_noise`.
        w: as in :func:`interpolated_noise`.
        condition: int64 (B * K,), classes from 0, or float (B * K, D), features.
        guidance: g, at least 0; 0 gives the conditional estimate without guidance.

    Returns:
        The noise estimate (B * K, 3, H, W).
    """
    estimate = interpolated_noise(unet, x_t, x_t_anchor, t, w, known(condition))
    if guidance == 0:
        return estimate
    without = interpolated_noise(unet, x_t, x_t_anchor, t, w, unknown(condition))
    return (1 + guidance) * estimate - guidance * without


@contextlib.contextmanager
def masked_middle(unet: UNet2DModel) -> Iterator[None]:
    """Set a UNet's middle feature to zero within the block, to draw by skip connections alone."""

    def mask(module: nn.Module, inputs: tuple, h: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(h)

    handle = unet.mid_block.register_forward_hook(mask)
    try:
        yield
    finally:
        handle.remove()
