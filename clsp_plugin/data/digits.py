"""The offline data set: handwritten digits in random colours over random textures.

The digit is the semantics, the texture the background: what CLSP is about, at a size that two
cores can train, without a download. The handwriting is scikit-learn's copy of the UCI "Optical
recognition of handwritten digits" test set (1,797 images of 8x8 pixels); training and
validation images use different handwriting.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from clsp_plugin.data.random import Purpose, derive_key, key_uniform, keys_for

__all__ = ["make_digits"]

SIZE = 32
_TEXTURES = 4


def make_digits(num_images: int, split: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the data set.

    Args:
        num_images: how many images; classes are balanced to within one.
        split: ``"train"`` or ``"val"``; the two share no handwriting.
        seed: of everything that is random.

    Returns:
        uint8 images (N, 32, 32, 3) and int64 digits (N,) in 0..9.
    """
    handwriting = load_digits()
    number = torch.arange(num_images)
    keys = keys_for(derive_key(seed, Purpose.DIGITS, split == "train"), number)
    draw = key_uniform(keys, 16)
    targets = number % 10
    glyphs = _pick(handwriting, targets, draw[:, 0], split)
    mask = _place(glyphs, draw[:, 1:5])
    background = _texture(draw[:, 5:9], keys)
    ink = _contrasting(background, mask, draw[:, 9:12])
    images = background * (1 - mask) + ink * mask
    images = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous(), targets


def _pick(handwriting, targets: torch.Tensor, draw: torch.Tensor, split: str) -> torch.Tensor:
    """A handwritten digit of each class: (N, 1, 8, 8) in [0, 1]. Every fifth is for validation."""
    order = np.arange(len(handwriting.target))
    pool = (order % 5 == 0) if split == "val" else (order % 5 != 0)
    chosen = torch.empty(len(targets), dtype=torch.long)
    for digit in range(10):
        candidates = torch.from_numpy(np.flatnonzero(pool & (handwriting.target == digit)))
        rows = targets == digit
        chosen[rows] = candidates[(draw[rows] * len(candidates)).long()]
    glyphs = torch.from_numpy(handwriting.images).float()[chosen] / 16
    return glyphs.unsqueeze(1)


def _place(glyphs: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Scale to 20-28 pixels and move: opacity (N, 1, 32, 32) in [0, 1]."""
    sizes = 20 + (draw[:, 0] * 9).long()
    out = torch.zeros(len(glyphs), 1, SIZE, SIZE)
    for size in range(20, 29):
        rows = torch.nonzero(sizes == size)[:, 0]
        if len(rows) == 0:
            continue
        drawn = interpolate(glyphs[rows], size=(size, size), mode="bicubic").clamp(0, 1)
        drawn = ((drawn - 0.25) * 2.5).clamp(0, 1)  # a crisp stroke from an 8x8 blur
        free = SIZE - size + 1
        for row, glyph, y, x in zip(
            rows.tolist(),
            drawn,
            (draw[rows, 1] * free).long().tolist(),
            (draw[rows, 2] * free).long().tolist(),
            strict=True,
        ):
            out[row, :, y : y + size, x : x + size] = glyph
    return out


def _texture(draw: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Gratings, checks, ramps and clouds between two colours: (N, 3, 32, 32) in [0, 1]."""
    axis = torch.arange(SIZE) / SIZE
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = (draw[:, 1] * 2 * torch.pi)[:, None, None]
    frequency = (2 + 5 * draw[:, 2])[:, None, None]
    phase = (draw[:, 3] * 2 * torch.pi)[:, None, None]
    along = torch.cos(angle) * x + torch.sin(angle) * y
    across = -torch.sin(angle) * x + torch.cos(angle) * y
    wave = 2 * torch.pi * frequency
    grating = 0.5 + 0.5 * torch.sin(wave * along + phase)
    checks = (torch.sin(wave * along + phase) * torch.sin(wave * across) > 0).float()
    ramp = ((along + 0.7) / 1.4).clamp(0, 1)
    noise = key_uniform(keys_for(1, keys), 36).view(-1, 1, 6, 6)
    clouds = interpolate(noise, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)[:, 0]
    kind = (draw[:, 0] * _TEXTURES).long()[:, None, None]
    blend = torch.where(
        kind == 0, grating, torch.where(kind == 1, checks, torch.where(kind == 2, ramp, clouds))
    ).unsqueeze(1)
    colours = key_uniform(keys_for(2, keys), 6).view(-1, 2, 3, 1, 1)
    # the second colour is a neighbour of the first: a texture is seen, the digit is seen better
    first, second = colours[:, 0], colours[:, 0] * 0.5 + colours[:, 1] * 0.5
    return first * (1 - blend) + second * blend


def _contrasting(background, mask, draw: torch.Tensor) -> torch.Tensor:
    """A random ink, moved to the other end of the scale from what lies under it: (N, 3, 1, 1)."""
    weight = mask / mask.sum((2, 3), keepdim=True).clamp(min=1)
    under = (background * weight).sum((1, 2, 3)) / 3
    dark = (under > 0.5).float()[:, None]
    ink = draw * 0.35 + (1 - dark) * 0.65
    return ink[:, :, None, None]
