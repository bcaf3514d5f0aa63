"""The operations of the augmentation, on batches of images."""

from collections.abc import Sequence
from typing import TypeAlias

import torch

from clsp_plugin.data.augmentation.parameters import Parameters

__all__ = [
    "adjust_hue",
    "blend",
    "color_jitter",
    "crop_resize",
    "equalize",
    "gaussian_blur",
    "jitter_steps",
    "resize_weights",
    "resized_shape",
    "solarize",
    "to_gray",
]

# Of one step of the jitter, (B,) each: those of `blend`, or the shift of `adjust_hue`.
Weights: TypeAlias = Sequence[torch.Tensor]


def resize_weights(
    start: torch.Tensor, extent: torch.Tensor, size: int, out: int, interpolation: str
) -> torch.Tensor:
    """Matrices that crop and resize one axis: ``(B, out, size)``, rows sum to 1.

    The antialiased filters of PIL and torchvision: stretched when shrinking, bicubic with
    a = -0.5, cut off at the crop and normalised.

    Args:
        start, extent: (B,), the crop ``start .. start + extent``, in pixels.
        size: length of the axis in pixels.
        out: length of the result in pixels.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """
    start, extent = start[:, None, None], extent[:, None, None]
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    target = torch.arange(out, device=start.device, dtype=torch.float32)[:, None]
    scale = extent / out
    center = start + (target + 0.5) * scale
    x = (pixel + 0.5 - center).div_(scale.clamp(min=1.0)).abs_()
    weights = _triangle(x) if interpolation == "bilinear" else _cubic(x)
    weights *= (pixel >= start) & (pixel < start + extent)
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def _triangle(x: torch.Tensor) -> torch.Tensor:
    return (1.0 - x).clamp_(min=0.0)


def _cubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution with a = -0.5, for distances x >= 0."""
    near = (1.5 * x).sub_(2.5).mul_(x).mul_(x).add_(1.0)
    far = (-0.5 * x).add_(2.5).mul_(x).sub_(4.0).mul_(x).add_(2.0)
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


def crop_resize(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Apply a matrix to each axis: ``(B, 3, out, out)`` float32 in [0, 1].

    Args:
        images: (B, H, W, 3) uint8.
        rows: (B or 1, out, H) from :func:`resize_weights`.
        columns: (B or 1, out, W).
    """
    b, h, w, _ = images.shape
    out = rows.shape[1]
    x = images.to(torch.float32).div(255.0).reshape(b, h, w * 3)
    x = torch.matmul(rows, x).reshape(b, out, w, 3)
    x = x.permute(0, 3, 1, 2).reshape(b, 3 * out, w)
    x = torch.matmul(x, columns.transpose(1, 2))
    return x.reshape(b, 3, out, out).clamp(0.0, 1.0)


def resized_shape(height: int, width: int, out: int) -> tuple[int, int]:
    """Return an image's size after its shorter side is resized to ``out``, as in torchvision."""
    short = min(height, width)
    return int(out * height / short), int(out * width / short)


def center_weights(size: int, resized: int, out: int, interpolation: str, device) -> torch.Tensor:
    """Matrix (1, out, size) that resizes an axis to ``resized`` and keeps its centre."""
    start = torch.zeros(1, device=device)
    weights = resize_weights(start, torch.full_like(start, size), size, resized, interpolation)
    first = round((resized - out) / 2.0)
    return weights[:, first : first + out]


def to_gray(images: torch.Tensor) -> torch.Tensor:
    """Luma of ``(B, 3, H, W)`` images: ``(B, 1, H, W)``."""
    r, g, b = images.unbind(dim=1)
    return (0.2989 * r + 0.587 * g + 0.114 * b).unsqueeze(1)


def blend(
    images: torch.Tensor,
    keep: torch.Tensor,
    to_mean: torch.Tensor,
    gray_weight: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply one step of brightness, contrast, saturation or nothing, chosen for each image.

    ``keep * image + to_mean * mean(grey) + gray_weight * grey``, clamped to [0, 1].

    Args:
        images: (B, 3, H, W) in [0, 1].
        keep, to_mean, gray_weight: (B,), see :func:`blend_weights`.
        out: where to write the result; ``images`` may be.
    """
    keep, to_mean, gray_weight = (w[:, None, None, None] for w in (keep, to_mean, gray_weight))
    gray = to_gray(images)
    base = gray * gray_weight + gray.mean(dim=(2, 3), keepdim=True) * to_mean
    return torch.addcmul(base, images, keep, out=out).clamp_(0.0, 1.0)


def adjust_hue(
    images: torch.Tensor, shift: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Shift the hue and keep saturation and value (of HSV); a shift of 0 changes nothing.

    Args:
        images: (B, 3, H, W) in [0, 1].
        shift: (B,) in turns, within [-0.5, 0.5].
        out: where to write the result; ``images`` may be.
    """
    r, g, b = images.unbind(dim=1)
    high = torch.maximum(torch.maximum(r, g), b)
    chroma = high - torch.minimum(torch.minimum(r, g), b)
    scale = 1.0 / torch.where(chroma > 0, chroma, 1.0)
    # six sectors per turn, red at 0
    sector = torch.where(
        high == r,
        (g - b) * scale,
        torch.where(high == g, 2.0 + (b - r) * scale, 4.0 + (r - g) * scale),
    )
    sector += 6.0 * shift[:, None, None]
    offset = torch.arange(5, 0, -2, device=images.device)[:, None, None]
    k = sector.unsqueeze(1) + offset
    k -= (k * (1.0 / 6.0)).floor_().mul_(6.0)
    # min(|k - 2| - 2, 0) cut off at -1: the share of the chroma that a channel lacks, negated
    share = k.sub_(2.0).abs_().sub_(2.0).clamp_(-1.0, 0.0)
    turned = share.mul_(chroma.unsqueeze(1)).add_(high.unsqueeze(1))
    return torch.where(shift[:, None, None, None] != 0, turned, images, out=out)


def color_jitter(images: torch.Tensor, p: Parameters, hue: bool) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue, in each image's own order.

    Args:
        images: (B, 3, H, W) in [0, 1].
        p: the drawn parameters, of which ``keep``, ``to_mean``, ``to_gray`` and ``hue`` are used.
        hue: whether there is a hue step; it comes between the two halves of the blends.
    """
    for weights in jitter_steps(p, hue):
        step = blend if len(weights) == 3 else adjust_hue
        images = step(images, *weights)
    return images


def jitter_steps(p: Parameters, hue: bool) -> list[Weights]:
    """Return what each step of the jitter does, in order: the weights of its blend or its shift.

    Args:
        p, hue: see :func:`color_jitter`.
    """
    blends = list(zip(p.keep.unbind(1), p.to_mean.unbind(1), p.to_gray.unbind(1), strict=True))
    before = len(blends) // 2 if hue else len(blends)
    return [*blends[:before], *([(p.hue,)] if hue else []), *blends[before:]]


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, radius: int = 6) -> torch.Tensor:
    """Gaussian blur with reflected borders, a kernel of ``2 * radius + 1`` pixels.

    A radius of 6 is three standard deviations of the widest blur. On images too small for it the
    radius is S - 1, the largest that can be reflected. Each axis is one matrix product: pixel j
    contributes to i directly and through its reflections in both borders.

    Args:
        images: (B, 3, S, S).
        sigma: (B,) in pixels.
        radius: in pixels.
    """
    b, c, size, _ = images.shape
    radius = min(radius, size - 1)
    i = torch.arange(size, device=images.device)[:, None]
    j = torch.arange(size, device=images.device)
    width = sigma[:, None, None]

    def weight(distance, valid=True):  # untyped: the compiler of torch 2.4 trips over a union
        return torch.exp(-0.5 * (distance / width) ** 2) * ((distance <= radius) & valid)

    kernel = weight((i - j).abs())
    kernel = kernel + weight(i + j, j > 0) + weight(2 * (size - 1) - i - j, j < size - 1)
    kernel = kernel / kernel.sum(dim=-1, keepdim=True)
    x = torch.matmul(images.reshape(b, c * size, size), kernel.transpose(1, 2))
    return torch.matmul(kernel.unsqueeze(1), x.reshape(b, c, size, size))


def solarize(images: torch.Tensor) -> torch.Tensor:
    """Invert values of at least 0.5, which are those that round to 128 or more of 255."""
    return torch.where(images >= 0.5, 1.0 - images, images)


def equalize(images: torch.Tensor) -> torch.Tensor:
    """Equalise the histogram of each channel, over 256 levels.

    Args:
        images: (B, 3, H, W) in [0, 1]; rounded to multiples of 1/255 first, as is the result.
    """
    b, c, h, w = images.shape
    levels = (images * 255.0).round().long().reshape(b * c, h * w)
    index = levels + 256 * torch.arange(b * c, device=images.device)[:, None]
    ones = torch.ones_like(index).reshape(-1)
    count = torch.zeros(b * c * 256, dtype=torch.int64, device=images.device)
    count = count.scatter_add(0, index.reshape(-1), ones).reshape(b * c, 256)
    brightest = count.gather(1, levels.amax(dim=1, keepdim=True))
    step = (h * w - brightest) // 255
    below = count.cumsum(dim=1) - count
    safe = step.clamp(min=1)
    table = ((below + step // 2) // safe).clamp(0, 255)
    result = torch.where(step > 0, table.gather(1, levels), levels)
    return result.to(torch.float32).div(255.0).reshape(b, c, h, w)
