"""The offline data set: handwritten digits in light colours over darker random textures.

The digit is the semantics and the texture the background, as CLSP assumes, at a size that two
cores can train on without a download. The handwriting is scikit-learn's copy of the UCI "Optical
recognition of handwritten digits" test set (1,797 images of 8x8 pixels); training and
validation images use different handwriting.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from clsp_plugin.data.keyed_random import Purpose, derive_key, key_uniform, keys_for

__all__ = ["make_digits", "on_other_backgrounds"]

# Strokes are always lighter than the texture. When some were darker, so that solarisation turned
# one kind into the other, SimCLR reached half the accuracy in the demo's epochs (linear probe on
# held-out images, one seed: 38.5 against 77.0 %).
_DARK, _LIGHT = 0.6, 0.65  # upper limit of a texture's channels, lower limit of a stroke's
# Pixels drawn at a time: each takes a hundred bytes while it is drawn, and three afterwards.
_PIXELS = 2**18


def make_digits(
    num_images: int, split: str, seed: int = 0, size: int = 32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the data set.

    Args:
        num_images: how many images; classes are balanced to within one.
        split: ``"train"`` or ``"val"``; the two share no handwriting.
        seed: seed of all random choices.
        size: side of an image in pixels, at least 12; the handwriting has 8x8.

    Returns:
        uint8 images (N, size, size, 3) and int64 digits (N,) in 0..9.
    """
    handwriting = load_digits()
    targets = torch.arange(num_images) % 10
    keys = keys_for(derive_key(seed, Purpose.DIGITS, split == "train"), torch.arange(num_images))
    out = torch.empty(num_images, size, size, 3, dtype=torch.uint8)
    some = max(1, _PIXELS // size**2)
    for part in (slice(i, i + some) for i in range(0, num_images, some)):
        out[part] = _draw(handwriting, targets[part], keys[part], split, size)
    return out, targets


def _draw(
    handwriting, targets: torch.Tensor, keys: torch.Tensor, split: str, size: int
) -> torch.Tensor:
    """Draw images, each from its digit and its key alone: uint8 (N, size, size, 3)."""
    draw = key_uniform(keys, 16)
    glyphs = _pick(handwriting, targets, draw[:, 0], split)
    mask = _place(glyphs, draw[:, 1:5], size)
    return _painted(mask, draw, keys, size)


def on_other_backgrounds(
    numbers: torch.Tensor, split: str, fresh: torch.Tensor, seed: int = 0, size: int = 32
) -> torch.Tensor:
    """Redraw images of the data set: the same strokes at the same places, new textures and inks.

    Args:
        numbers: indexes of the images in the data set, int64 (N,).
        split: as in :func:`make_digits`.
        fresh: one key per image for the new texture and ink, int64 (N,).
        seed: as in :func:`make_digits`.
        size: as in :func:`make_digits`.

    Returns:
        uint8 images (N, size, size, 3).
    """
    keys = keys_for(derive_key(seed, Purpose.DIGITS, split == "train"), numbers)
    draw = key_uniform(keys, 16)
    glyphs = _pick(load_digits(), numbers % 10, draw[:, 0], split)
    mask = _place(glyphs, draw[:, 1:5], size)
    return _painted(mask, key_uniform(fresh, 16), fresh, size)


def _pick(handwriting, targets: torch.Tensor, draw: torch.Tensor, split: str) -> torch.Tensor:
    """Pick a handwritten digit for each target: (N, 1, 8, 8) in [0, 1]."""
    order = np.arange(len(handwriting.target))
    held_out = order % 5 == 1  # every fifth, from the second on, is for validation
    pool = held_out if split == "val" else ~held_out
    chosen = torch.empty(len(targets), dtype=torch.long)
    for digit in range(10):
        candidates = torch.from_numpy(np.flatnonzero(pool & (handwriting.target == digit)))
        rows = targets == digit
        chosen[rows] = candidates[(draw[rows] * len(candidates)).long()]
    glyphs = torch.from_numpy(handwriting.images).float()[chosen] / 16
    return glyphs.unsqueeze(1)


def _place(glyphs: torch.Tensor, draw: torch.Tensor, size: int) -> torch.Tensor:
    """Scale digits to 5/8 .. 7/8 of the image and move them: opacity (N, 1, size, size), 0 to 1."""
    small, large = size * 5 // 8, size * 7 // 8
    scales = small + (draw[:, 0] * (large - small + 1)).long()
    out = torch.zeros(len(glyphs), 1, size, size)
    for scale in range(small, large + 1):
        rows = torch.nonzero(scales == scale)[:, 0]
        if len(rows) == 0:
            continue
        drawn = interpolate(glyphs[rows], size=(scale, scale), mode="bicubic").clamp(0, 1)
        drawn = ((drawn - 0.25) * 2.5).clamp(0, 1)  # a crisp stroke from an 8x8 blur
        free = size - scale + 1
        for row, glyph, y, x in zip(
            rows.tolist(),
            drawn,
            (draw[rows, 1] * free).long().tolist(),
            (draw[rows, 2] * free).long().tolist(),
            strict=True,
        ):
            out[row, :, y : y + scale, x : x + scale] = glyph
    return out


def _painted(mask: torch.Tensor, draw: torch.Tensor, keys: torch.Tensor, size: int) -> torch.Tensor:
    """Paint each stroke in a random ink on a random texture: uint8 (N, size, size, 3)."""
    background = _texture(draw[:, 5:9], keys, size)
    ink = _LIGHT + (1 - _LIGHT) * draw[:, 9:12, None, None]
    images = background * (1 - mask) + ink * mask
    images = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous()


def _texture(draw: torch.Tensor, keys: torch.Tensor, size: int) -> torch.Tensor:
    """Draw waves, ripples, ramps or clouds between two dark colours: (N, 3, size, size)."""
    axis = torch.arange(size) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = (draw[:, 1] * 2 * torch.pi)[:, None, None]
    wave = (2 * torch.pi * (1 + 2 * draw[:, 2]))[:, None, None]
    phase = (draw[:, 3] * 2 * torch.pi)[:, None, None]
    along = torch.cos(angle) * x + torch.sin(angle) * y
    across = -torch.sin(angle) * x + torch.cos(angle) * y
    waves = 0.5 + 0.5 * torch.sin(wave * along + phase)
    ripples = 0.5 + 0.5 * torch.sin(wave * along + phase) * torch.sin(wave * across)
    ramp = ((along + 0.7) / 1.4).clamp(0, 1)
    noise = key_uniform(keys_for(1, keys), 16).view(-1, 1, 4, 4)
    clouds = interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1)[:, 0]
    kinds = torch.stack([waves, ripples, ramp, clouds], dim=1)
    kind = (draw[:, 0] * kinds.shape[1]).long()
    blend = kinds[torch.arange(len(kinds)), kind].unsqueeze(1)
    colours = key_uniform(keys_for(2, keys), 6).view(-1, 2, 3, 1, 1)
    # the second colour is close to the first, so that the digit stands out from the texture
    first, second = colours[:, 0], colours[:, 0] * 0.5 + colours[:, 1] * 0.5
    return _DARK * (first * (1 - blend) + second * blend)
