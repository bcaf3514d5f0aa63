"""Augmentation of a whole batch, on the device where the batch lies.

The pipeline and its configuration keys are solo-learn's: random resized crop, colour jitter,
greyscale, Gaussian blur, solarisation, equalisation, horizontal flip, normalisation, in that
order. Every image has its own random parameters, and they come from its own key alone, so an
image looks the same whatever batch it is in.

Crop, resize and flip are one linear map an axis, hence two small matrix products an image; so
is the blur. The images stay float32 in [0, 1] between the steps: nothing is rounded to 8 bits,
which is where the result differs from a pipeline of PIL images. Each step computes what
``torchvision.transforms.functional`` computes on a single float image.
"""

import itertools
import math
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf

from clsp_plugin.data.random import key_uniform
from clsp_plugin.errors import ClspError, nearest

__all__ = ["AugmentationConfig", "BatchAugmentation", "can_compile"]

# ------------------------------------------------------------------------------ configuration

# block of the YAML -> its keys -> field of AugmentationConfig
_BLOCKS = {
    "rrc": {
        "enabled": "crop",
        "crop_min_scale": "crop_min_scale",
        "crop_max_scale": "crop_max_scale",
        "interpolation": "interpolation",
    },
    "color_jitter": {
        "prob": "jitter_prob",
        "brightness": "brightness",
        "contrast": "contrast",
        "saturation": "saturation",
        "hue": "hue",
    },
    "grayscale": {"prob": "grayscale_prob"},
    "gaussian_blur": {"prob": "blur_prob"},
    "solarization": {"prob": "solarize_prob"},
    "equalization": {"prob": "equalize_prob"},
    "horizontal_flip": {"prob": "flip_prob"},
}
_SWITCHES = {block: next(iter(keys)) for block, keys in _BLOCKS.items()}
_PLAIN = ("crop_size", "num_crops")
# Stands in some of solo-learn's files beside prob, which alone decides.
_IDLE = "enabled"
_NOT_OURS = ("mean", "std")  # statistics of the data set; whoever loads it passes them on
_YAML_NAMES = {
    field: f"{block}.{key}" for block, keys in _BLOCKS.items() for key, field in keys.items()
}

_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class AugmentationConfig:
    """One augmentation pipeline; the defaults leave everything but the resize out.

    Attributes:
        crop_size: height and width of the result, in pixels.
        num_crops: how many views of an image this pipeline makes (for the caller).
        crop: random resized crop; otherwise the shorter side is resized to ``crop_size`` and
            the centre is kept.
        crop_min_scale, crop_max_scale: area of the crop as a share of the image, in (0, 1].
        interpolation: ``"bicubic"`` or ``"bilinear"``, both with antialiasing.
        jitter_prob: probability of the colour jitter.
        brightness, contrast, saturation: factors are uniform in [max(0, 1 - s), 1 + s].
        hue: the shift is uniform in [-hue, hue], in turns of the colour circle; in [0, 0.5].
        grayscale_prob, blur_prob, solarize_prob, equalize_prob, flip_prob: probabilities.

    Raises:
        ClspError: a value of the wrong type or out of its range.
    """

    crop_size: int
    num_crops: int = 1
    crop: bool = False
    crop_min_scale: float = 0.08
    crop_max_scale: float = 1.0
    interpolation: str = "bicubic"
    jitter_prob: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale_prob: float = 0.0
    blur_prob: float = 0.0
    solarize_prob: float = 0.0
    equalize_prob: float = 0.0
    flip_prob: float = 0.0

    def __post_init__(self) -> None:
        for name in _PLAIN:
            self._check_int(name)
        if not isinstance(self.crop, bool):
            raise ClspError(f"rrc.enabled must be true or false, not {self.crop!r}")
        for name in _YAML_NAMES:
            if name.endswith("_prob"):
                self._check_number(name, 0.0, 1.0)
        for name in ("brightness", "contrast", "saturation"):
            self._check_number(name, 0.0, math.inf)
        self._check_number("hue", 0.0, 0.5)
        for name in ("crop_min_scale", "crop_max_scale"):
            self._check_number(name, 0.0, 1.0)
        if not 0.0 < self.crop_min_scale <= self.crop_max_scale:
            raise ClspError(
                "rrc needs 0 < crop_min_scale <= crop_max_scale, "
                f"not {self.crop_min_scale} and {self.crop_max_scale}"
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise ClspError(
                f"unknown rrc.interpolation {self.interpolation!r}"
                + nearest(self.interpolation, _INTERPOLATIONS)
            )

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> "AugmentationConfig":
        """Read one pipeline of a solo-learn ``augmentations`` list.

        A block that is absent or null is switched off. ``rrc.interpolation`` is an addition of
        this package. ``mean`` and ``std`` may stand beside the other keys but are not read
        here: :class:`BatchAugmentation` takes them as arguments.

        Args:
            cfg: a ``dict`` or an omegaconf ``DictConfig``; it is not changed.

        Raises:
            ClspError: an unknown or missing key, or a bad value.
        """
        if OmegaConf.is_config(cfg):
            cfg = OmegaConf.to_container(cfg, resolve=True)
        _check_keys(cfg, (*_BLOCKS, *_PLAIN, *_NOT_OURS), "an augmentation")
        if "crop_size" not in cfg:
            raise ClspError("an augmentation needs a crop_size in pixels")
        values = {name: cfg[name] for name in _PLAIN if name in cfg}
        for block, keys in _BLOCKS.items():
            given = cfg.get(block)
            if given is None:
                continue
            _check_keys(given, {**keys, _IDLE: None}, block)
            if _SWITCHES[block] not in given:
                raise ClspError(f"{block}.{_SWITCHES[block]} is missing")
            if given.get(_IDLE) is False and given.get("prob", 0) > 0:
                raise ClspError(f"{block}.{_IDLE} is False and its prob is {given['prob']}")
            values |= {keys[key]: value for key, value in given.items() if key in keys}
        _check_strengths(values)
        return cls(**values)

    def _check_int(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ClspError(f"{name} must be a whole number of at least 1, not {value!r}")

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        known = _YAML_NAMES[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ClspError(f"{known} must be a number, not {value!r}")
        if not low <= value <= high or math.isinf(value):
            bounds = "at least 0 and finite" if math.isinf(high) else f"in [{low:g}, {high:g}]"
            raise ClspError(f"{known} must be {bounds}, not {value!r}")


def _check_keys(cfg: Any, valid: Sequence[str] | Mapping[str, Any], where: str) -> None:
    if not isinstance(cfg, Mapping):
        raise ClspError(f"{where} must be a mapping of names to values, not {cfg!r}")
    for key in cfg:
        if key not in valid:
            raise ClspError(f"unknown key '{key}' in {where}{nearest(key, valid)}")


def _check_strengths(values: Mapping[str, Any]) -> None:
    """A jitter that may happen must say how strong it is; one that never happens need not."""
    if values.get("jitter_prob", 0) == 0:
        return
    for name in ("brightness", "contrast", "saturation", "hue"):
        if name not in values:
            raise ClspError(f"color_jitter.{name} is missing though color_jitter.prob is not 0")


# ---------------------------------------------------------------------------- random parameters

# Where each parameter takes its uniform numbers. Part of what a seed means: only ever append.
_TRIES = 10
_AREA, _RATIO = slice(0, _TRIES), slice(_TRIES, 2 * _TRIES)
_TOP, _LEFT, _JITTER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _ORDER = range(20, 28)
_GRAY, _BLUR, _SIGMA, _SOLARIZE, _EQUALIZE, _FLIP = range(28, 34)
_DRAWS = 34

_RATIO_RANGE = (3.0 / 4.0, 4.0 / 3.0)
_SIGMA_RANGE = (0.1, 2.0)

# The steps of the jitter are 0 brightness, 1 contrast, 2 saturation, 3 hue. Hue is no blend, so
# among the blends 3 means none.
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
    """Draw the parameters of a batch, each image's from its own key.

    Args:
        keys: (B,) int64.
        cfg: the pipeline.
        height, width: size of the images, in pixels.
        slots: :func:`jitter_slots` of ``cfg``, on the device of ``keys``.
    """
    u = key_uniform(keys, _DRAWS)
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
    u: torch.Tensor, height: int, width: int, min_scale: float, max_scale: float
) -> torch.Tensor:
    """Boxes of a random resized crop: ``(B, 4)`` float32 of top, left, height, width, whole pixels.

    As ``torchvision.transforms.RandomResizedCrop.get_params``: the share of the area is
    uniform, the logarithm of the ratio of width to height is uniform in 3/4 .. 4/3, the first
    of ten tries that fits is taken, and if none fits the largest central box of an allowed
    ratio. In float64, so that devices do not round a side to different pixels.

    Args:
        u: (B, at least 22) uniform numbers in [0, 1).
        height, width: size of the image, in pixels.
        min_scale, max_scale: share of its area.
    """
    u = u.to(torch.float32 if u.device.type == "mps" else torch.float64)
    area = height * width * _uniform(u[:, _AREA], min_scale, max_scale)
    low, high = (math.log(r) for r in _RATIO_RANGE)
    ratio = torch.exp(_uniform(u[:, _RATIO], low, high))
    w, h = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    valid = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = valid.to(torch.int8).argmax(dim=1, keepdim=True)
    w, h = w.gather(1, first).squeeze(1), h.gather(1, first).squeeze(1)
    top = torch.floor(u[:, _TOP] * (height - h + 1))
    left = torch.floor(u[:, _LEFT] * (width - w + 1))
    box = torch.stack([top, left, h, w], dim=1)
    rest = torch.stack([torch.full_like(w, x) for x in _central_box(height, width)], dim=1)
    return torch.where(valid.any(dim=1, keepdim=True), box, rest).float()


def _central_box(height: int, width: int) -> tuple[int, int, int, int]:
    w = min(width, round(height * _RATIO_RANGE[1]))
    h = min(height, round(width / _RATIO_RANGE[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_slots(cfg: AugmentationConfig) -> torch.Tensor:
    """Which blend stands where, for each order of the jitter's steps: ``(25, S)`` int64.

    Brightness (0), contrast (1) and saturation (2) are all blends of the image with a base;
    hue is not. With N steps of strength above 0 among the three there are N places before hue
    and N after it, and every order of the steps fills N of these and leaves the others empty
    (3). So images with different orders go through the same computation. Without hue the
    first N do. Row 24 is empty: no jitter.
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
    """Weights of the image, of its grey mean and of its grey image, each ``(B, S)``.

    Args:
        steps: (B, S) int64, 0 brightness, 1 contrast, 2 saturation, 3 nothing.
        factors: (B, 3) float32, the factors of the three.
    """
    one = torch.ones_like(factors[:, :1])
    keep = torch.cat([factors, one], dim=1).gather(1, steps)
    return keep, (1 - keep) * (steps == 1), (1 - keep) * (steps == 2)


# -------------------------------------------------------------------------------- single steps


def resize_weights(
    start: torch.Tensor, extent: torch.Tensor, size: int, out: int, interpolation: str
) -> torch.Tensor:
    """Matrices that crop and resize one axis: ``(B, out, size)``, rows sum to 1.

    The antialiased filters of PIL and torchvision: stretched when shrinking, bicubic with
    a = -0.5, cut off at the crop and normalised.

    Args:
        start, extent: (B,) the crop ``start .. start + extent``, in pixels.
        size: pixels of the axis.
        out: pixels of the result.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """
    start, extent = start[:, None, None], extent[:, None, None]
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    target = torch.arange(out, device=start.device, dtype=torch.float32)[:, None]
    scale = extent / out
    center = start + (target + 0.5) * scale
    x = ((pixel + 0.5 - center) / scale.clamp(min=1.0)).abs()
    weights = _triangle(x) if interpolation == "bilinear" else _cubic(x)
    weights = weights * ((pixel >= start) & (pixel < start + extent))
    return weights / weights.sum(dim=-1, keepdim=True)


def _triangle(x: torch.Tensor) -> torch.Tensor:
    return (1.0 - x).clamp(min=0.0)


def _cubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution with a = -0.5, for distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
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
    """Size of an image whose shorter side is resized to ``out`` pixels, as torchvision's."""
    short = min(height, width)
    return int(out * height / short), int(out * width / short)


def _center_weights(size: int, resized: int, out: int, interpolation: str, device) -> torch.Tensor:
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
    images: torch.Tensor, keep: torch.Tensor, to_mean: torch.Tensor, gray_weight: torch.Tensor
) -> torch.Tensor:
    """One step of brightness, contrast or saturation, or none, for each image on its own.

    ``clamp(keep * image + to_mean * mean(grey) + gray_weight * grey)`` to [0, 1].

    Args:
        images: (B, 3, H, W) in [0, 1].
        keep, to_mean, gray_weight: (B,), see :func:`blend_weights`.
    """
    keep, to_mean, gray_weight = (w[:, None, None, None] for w in (keep, to_mean, gray_weight))
    gray = to_gray(images)
    base = gray * gray_weight + gray.mean(dim=(2, 3), keepdim=True) * to_mean
    return torch.addcmul(base, images, keep).clamp(0.0, 1.0)


def adjust_hue(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn the hue, keep saturation and value (of HSV); a shift of 0 changes nothing.

    Args:
        images: (B, 3, H, W) in [0, 1].
        shift: (B,) in turns, within [-0.5, 0.5].
    """
    r, g, b = images.unbind(dim=1)
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    scale = 1.0 / torch.where(chroma > 0, chroma, 1.0)
    # six sectors a turn, red at 0
    sector = torch.where(
        high == r,
        (g - b) * scale,
        torch.where(high == g, 2.0 + (b - r) * scale, 4.0 + (r - g) * scale),
    )
    sector = sector + 6.0 * shift[:, None, None]
    offset = torch.arange(5, 0, -2, device=images.device)[:, None, None]
    k = sector.unsqueeze(1) + offset
    k = k - 6.0 * torch.floor(k * (1.0 / 6.0))
    share = (2.0 - (k - 2.0).abs()).clamp(0.0, 1.0)
    turned = high.unsqueeze(1) - chroma.unsqueeze(1) * share
    return torch.where(shift[:, None, None, None] != 0, turned, images)


def color_jitter(images: torch.Tensor, p: Parameters, hue: bool) -> torch.Tensor:
    """Brightness, contrast, saturation and hue, in each image's own order.

    Args:
        images: (B, 3, H, W) in [0, 1].
        p: its ``keep``, ``to_mean``, ``to_gray`` and ``hue`` are used.
        hue: whether there is a hue step; it stands between the two halves of the blends.
    """
    n = p.keep.shape[1]
    hue_at = n // 2 if hue else -1
    for i in range(n):
        if i == hue_at:
            images = adjust_hue(images, p.hue)
        images = blend(images, p.keep[:, i], p.to_mean[:, i], p.to_gray[:, i])
    return adjust_hue(images, p.hue) if hue and n == 0 else images


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, radius: int = 6) -> torch.Tensor:
    """Gaussian blur with reflected borders, a kernel of ``2 * radius + 1`` pixels.

    A radius of 6 is three standard deviations of the widest blur. On smaller images it is the
    largest that can be reflected. Each axis is one matrix product: pixel j contributes to i
    directly and through its reflections in both borders.

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
    """Invert every value that is 128 or more of 255 once rounded, that is 0.5 or more."""
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


# ---------------------------------------------------------------------------------- the pipeline


def _geometry(images: torch.Tensor, p: Parameters, cfg: AugmentationConfig) -> torch.Tensor:
    """Crop, resize and flip uint8 (B, H, W, 3) to float32 (B, 3, crop_size, crop_size)."""
    _, height, width, _ = images.shape
    out, how = cfg.crop_size, cfg.interpolation
    if cfg.crop:
        top, left, h, w = p.box.unbind(dim=1)
        rows = resize_weights(top, h, height, out, how)
        columns = resize_weights(left, w, width, out, how)
    elif height == width == out:
        x = images.to(torch.float32).div(255.0).permute(0, 3, 1, 2)
        return _choose(p.flip, x.flip(3), x) if cfg.flip_prob else x.contiguous()
    else:
        new_height, new_width = resized_shape(height, width, out)
        rows = _center_weights(height, new_height, out, how, images.device)
        columns = _center_weights(width, new_width, out, how, images.device)
    if cfg.flip_prob:
        # every later step commutes with a flip, so it costs nothing here
        columns = torch.where(p.flip[:, None, None], columns.flip(1), columns)
    return crop_resize(images, rows, columns)


def _choose(flag: torch.Tensor, changed: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return torch.where(flag[:, None, None, None], changed, images)


def augment(
    images: torch.Tensor,
    p: Parameters,
    mean: torch.Tensor,
    std: torch.Tensor,
    cfg: AugmentationConfig,
) -> torch.Tensor:
    """Apply drawn parameters; a step of probability 0 is not computed.

    Args:
        images: (B, H, W, 3) uint8.
        p: see :func:`sample_parameters`.
        mean, std: (3, 1, 1), of values in [0, 1].
        cfg: the pipeline.
    """
    x = _geometry(images, p, cfg)
    if cfg.jitter_prob:
        x = color_jitter(x, p, hue=cfg.hue > 0)
    if cfg.grayscale_prob:
        x = _choose(p.gray, to_gray(x), x)
    if cfg.blur_prob:
        x = _choose(p.blur, gaussian_blur(x, p.sigma), x)
    if cfg.solarize_prob:
        x = _choose(p.solarize, solarize(x), x)
    if cfg.equalize_prob:
        x = _choose(p.equalize, equalize(x), x)
    return (x - mean) / std


_PIECE = 2**18  # pixels; 256 images of 32x32


def augment_in_pieces(
    augment: Callable[..., torch.Tensor],
    images: torch.Tensor,
    p: Parameters,
    mean: torch.Tensor,
    std: torch.Tensor,
    cfg: AugmentationConfig,
) -> torch.Tensor:
    """On a processor, augment pieces of the batch that stay near its cache between the steps.

    On two cores that is up to twice as fast. The pieces are of one size, hence one compiled
    graph: the last one overlaps its neighbour, and no image minds. Other devices take the
    batch whole.

    Args:
        augment: the function of this name, or its compiled form.
        images, p, mean, std, cfg: its arguments.
    """
    n, piece = len(images), max(1, _PIECE // cfg.crop_size**2)
    if images.device.type != "cpu" or n <= piece:
        return augment(images, p, mean, std, cfg)
    out = torch.empty(n, 3, cfg.crop_size, cfg.crop_size)
    for start in range(0, n, piece):
        start = min(start, n - piece)
        part = slice(start, start + piece)
        out[part] = augment(images[part], Parameters(*(x[part] for x in p)), mean, std, cfg)
    return out


class BatchAugmentation:
    """Augment and normalise a batch on the device of its images.

    Args:
        cfg: the pipeline.
        mean, std: three numbers each, of values in [0, 1].
        compile: run the steps as one compiled graph, built at the first call and again for
            every new shape (on a processor, large batches share one). That takes ten seconds
            or more, so it pays on longer runs (see :func:`can_compile`). If it fails the steps
            run eagerly after one warning.

    Raises:
        ClspError: a mean or std that is not three finite numbers, or a std that is not positive.

    Example::

        augmentation = BatchAugmentation(cfg, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        base = derive_key(seed, Purpose.AUGMENTATION, epoch, view)
        view = augmentation(images, keys_for(base, indexes))
    """

    def __init__(
        self,
        cfg: AugmentationConfig,
        mean: Sequence[float],
        std: Sequence[float],
        compile: bool = False,
    ) -> None:
        self.cfg = cfg
        self._mean = _statistic("mean", mean)
        self._std = _statistic("std", std)
        if not (self._std > 0).all():
            raise ClspError(f"std must be positive in every channel, not {list(std)}")
        self._slots = jitter_slots(cfg)
        self._compile = compile
        self._compiled: Callable | None = None

    def __call__(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Augment a batch: ``(B, 3, crop_size, crop_size)`` float32, normalised.

        Args:
            images: (B, H, W, 3) uint8.
            keys: (B,) int64 from :func:`clsp_plugin.data.random.keys_for`, on the same device.

        Raises:
            ClspError: images or keys of another shape, dtype or device.
        """
        _check_batch(images, keys)
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
            self._slots = self._slots.to(images.device)
        # Outside the graph: the hash counts on products of integers that wrap, which eager
        # torch does and compiled C++ need not.
        p = sample_parameters(keys, self.cfg, images.shape[1], images.shape[2], self._slots)
        # float32 whatever precision the training around us runs in
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self._run(images, p, self._mean, self._std, self.cfg)

    def _run(self, *args: Any) -> torch.Tensor:
        if not self._compile:
            return augment_in_pieces(augment, *args)
        try:
            if self._compiled is None:
                self._compiled = torch.compile(augment, fullgraph=True, dynamic=False)
            return augment_in_pieces(self._compiled, *args)
        except Exception as error:
            result = augment_in_pieces(augment, *args)  # raises if the fault is not the compiler's
            self._compile, self._compiled = False, None
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(
                f"compiling the augmentation failed, it runs uncompiled ({reason})", stacklevel=3
            )
            return result


def _statistic(name: str, values: Sequence[float]) -> torch.Tensor:
    values = list(values)
    if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise ClspError(f"{name} must be three finite numbers, one a channel, not {values}")
    return torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1)


def _check_batch(images: torch.Tensor, keys: torch.Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ClspError(
            "images must be uint8 of shape (batch, height, width, 3), "
            f"not {images.dtype} of {tuple(images.shape)}"
        )
    if keys.dtype != torch.int64 or keys.shape != images.shape[:1]:
        raise ClspError(
            f"keys must be int64 of shape ({images.shape[0]},), one an image, "
            f"not {keys.dtype} of {tuple(keys.shape)}"
        )
    if keys.device != images.device:
        raise ClspError(f"keys are on {keys.device}, images on {images.device}; move one of them")


def can_compile(device: torch.device | str | None = None) -> bool:
    """Whether ``torch.compile`` has what it needs on this machine. Nothing is compiled.

    A compiler (C++ for the processor; C and Triton for CUDA) and the headers of Python, which
    the compiled code includes.

    Args:
        device: by default CUDA where there is one, otherwise the processor.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return False
    if torch.device(device).type == "cuda":
        return find_spec("triton") is not None and _found("CC", ("gcc", "clang", "cc"))
    return _found("CXX", ("g++", "clang++", "c++", "cl"))


def _found(variable: str, names: Sequence[str]) -> bool:
    names = [environ[variable].split()[0]] if environ.get(variable, "").strip() else names
    return any(shutil.which(name) for name in names)
