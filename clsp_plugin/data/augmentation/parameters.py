"""The random parameters of each view of each image: crop box, flip, strengths."""

import itertools
import math
from typing import NamedTuple

import torch

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.keyed_random import key_uniform

__all__ = [
    "Parameters",
    "blend_weights",
    "jitter_slots",
    "parameters_from",
    "sample_boxes",
    "sample_parameters",
    "uniform_numbers",
]

# The uniform numbers, by position, that each parameter uses. They are part of what a seed means:
# only ever append.
_TRIES = 10
_AREA, _RATIO = slice(0, _TRIES), slice(_TRIES, 2 * _TRIES)
_TOP, _LEFT, _JITTER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _ORDER = range(20, 28)
_GRAY, _BLUR, _SIGMA, _SOLARIZE, _EQUALIZE, _FLIP = range(28, 34)
_DRAWS = 34
_RATIO_RANGE = (3.0 / 4.0, 4.0 / 3.0)
_SIGMA_RANGE = (0.1, 2.0)
# The steps of the jitter are 0 brightness, 1 contrast, 2 saturation, 3 hue. Hue is not a blend, so
# in a list of blends 3 means no step.
_HUE_STEP = _NO_STEP = 3


class Parameters(NamedTuple):
    """Everything random about a batch of B images; S is the number of blends of the jitter."""

    box: torch.Tensor  # (B, 4) top, left, height, width of the crop: whole pixels
    flip: torch.Tensor  # (B,) bool
    keep: torch.Tensor  # (B, S) weight of the image in each blend of the jitter
    to_mean: torch.Tensor  # (B, S) weight of the mean of its grey image
    to_gray: torch.Tensor  # (B, S) weight of its grey image
    hue: torch.Tensor  # (B,) shift in turns; 0 leaves the image alone
    gray: torch.Tensor  # (B,) bool
    blur: torch.Tensor  # (B,) bool
    sigma: torch.Tensor  # (B,) pixels
    solarize: torch.Tensor  # (B,) bool
    equalize: torch.Tensor  # (B,) bool


def sample_parameters(
    keys: torch.Tensor, cfg: AugmentationConfig, height: int, width: int, slots: torch.Tensor
) -> Parameters:
    """Draw the parameters of a batch; those of an image depend only on its key.

    Args:
        keys: (B,) int64.
        cfg: the pipeline.
        height, width: size of the images, in pixels.
        slots: :func:`jitter_slots` of ``cfg``, on the device of ``keys``.
    """
    return parameters_from(uniform_numbers(keys), cfg, height, width, slots)


def uniform_numbers(keys: torch.Tensor) -> torch.Tensor:
    """Draw the numbers in [0, 1) that all parameters of an image are made of: (B, 34) float32."""
    return key_uniform(keys, _DRAWS)


def parameters_from(
    u: torch.Tensor, cfg: AugmentationConfig, height: int, width: int, slots: torch.Tensor
) -> Parameters:
    """Make the parameters of a batch from its :func:`uniform_numbers`.

    Args:
        u: (B, 34) float32.
        cfg, height, width, slots: see :func:`sample_parameters`.
    """
    box = sample_boxes(u, height, width, cfg.crop_min_scale, cfg.crop_max_scale)
    order = (u[:, _ORDER] * 24).long()
    order = torch.where(u[:, _JITTER] < cfg.jitter_prob, order, 24)
    factors = torch.stack(
        [
            _uniform(u[:, _BRIGHTNESS], max(0.0, 1.0 - cfg.brightness), 1.0 + cfg.brightness),
            _uniform(u[:, _CONTRAST], max(0.0, 1.0 - cfg.contrast), 1.0 + cfg.contrast),
            _uniform(u[:, _SATURATION], max(0.0, 1.0 - cfg.saturation), 1.0 + cfg.saturation),
        ],
        dim=1,
    )
    hue = _uniform(u[:, _HUE], -cfg.hue, cfg.hue)
    return Parameters(
        box,
        u[:, _FLIP] < cfg.flip_prob,
        *blend_weights(slots[order], factors),
        torch.where(order < 24, hue, 0.0),
        u[:, _GRAY] < cfg.grayscale_prob,
        u[:, _BLUR] < cfg.blur_prob,
        _uniform(u[:, _SIGMA], *_SIGMA_RANGE),
        u[:, _SOLARIZE] < cfg.solarize_prob,
        u[:, _EQUALIZE] < cfg.equalize_prob,
    )


def _uniform(u: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + u * (high - low)


def sample_boxes(
    u: torch.Tensor,
    height: int | torch.Tensor,
    width: int | torch.Tensor,
    min_scale: float,
    max_scale: float,
) -> torch.Tensor:
    """Boxes of a random resized crop: ``(B, 4)`` float32 of top, left, height, width, whole pixels.

    As ``torchvision.transforms.RandomResizedCrop.get_params``: the share of the area is
    uniform, the logarithm of the ratio of width to height is uniform for ratios in 3/4 .. 4/3, and
    the first of ten tries that fits is taken; if none fits, the largest central box of an allowed
    ratio. Computed in float64, so that devices do not round a side to different pixels.

    Args:
        u: (B, at least 22) uniform numbers in [0, 1).
        height, width: size of the images, in pixels: of all of them, or int64 (B,).
        min_scale, max_scale: smallest and largest share of its area.
    """
    u = u.to(torch.float32 if u.device.type == "mps" else torch.float64)
    # beside the tries; a number stays one, in compiled graphs too
    tall, wide = (x[:, None] if isinstance(x, torch.Tensor) else x for x in (height, width))
    area = tall * wide * _uniform(u[:, _AREA], min_scale, max_scale)
    low, high = (math.log(r) for r in _RATIO_RANGE)
    ratio = torch.exp(_uniform(u[:, _RATIO], low, high))
    w, h = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    valid = (w > 0) & (w <= wide) & (h > 0) & (h <= tall)
    first = valid.to(torch.int8).argmax(dim=1, keepdim=True)
    w, h = w.gather(1, first).squeeze(1), h.gather(1, first).squeeze(1)
    top = torch.floor(u[:, _TOP] * (height - h + 1))
    left = torch.floor(u[:, _LEFT] * (width - w + 1))
    box = torch.stack([top, left, h, w], dim=1)
    if isinstance(height, torch.Tensor) or isinstance(width, torch.Tensor):
        height, width = torch.as_tensor(height), torch.as_tensor(width)
        boxes = map(_central_box, height.tolist(), width.tolist())
        rest = torch.tensor(list(boxes)).to(box)
    else:
        rest = torch.stack([torch.full_like(w, x) for x in _central_box(height, width)], dim=1)
    return torch.where(valid.any(dim=1, keepdim=True), box, rest).float()


def _central_box(height: int, width: int) -> tuple[int, int, int, int]:
    w = min(width, round(height * _RATIO_RANGE[1]))
    h = min(height, round(width / _RATIO_RANGE[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_slots(cfg: AugmentationConfig) -> torch.Tensor:
    """Return the sequence of blends for each order of the jitter's steps: ``(25, S)`` int64.

    Brightness (0), contrast (1) and saturation (2) are all blends of the image with a base;
    hue is not. If N of the three have a strength above 0, there are N slots before hue and N
    after it. Every order fills N of these slots and leaves the others empty (3), so that images
    with different orders go through the same computation. Without hue there are only the N
    slots. Rows 0 to 23 are the orders of the four steps; row 24, all empty, is no jitter.
    """
    active = [step for step in range(3) if (cfg.brightness, cfg.contrast, cfg.saturation)[step]]
    rows = []
    for order in itertools.permutations(range(4)):
        hue_at = order.index(_HUE_STEP) if cfg.hue else len(order)
        before = [step for step in order[:hue_at] if step in active]
        after = [step for step in order[hue_at:] if step in active]
        row = before + [_NO_STEP] * (len(active) - len(before))
        if cfg.hue:
            row += after + [_NO_STEP] * (len(active) - len(after))
        rows.append(row)
    rows.append([_NO_STEP] * len(rows[0]))
    return torch.tensor(rows, dtype=torch.int64).reshape(25, -1)


def blend_weights(
    steps: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weights of the image, of its grey mean and of its grey image, each ``(B, S)``.

    Args:
        steps: (B, S) int64, 0 brightness, 1 contrast, 2 saturation, 3 nothing.
        factors: (B, 3) float32, the factors of brightness, contrast and saturation.
    """
    one = torch.ones_like(factors[:, :1])
    keep = torch.cat([factors, one], dim=1).gather(1, steps)
    return keep, (1 - keep) * (steps == 1), (1 - keep) * (steps == 2)
