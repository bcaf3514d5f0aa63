"""Which operations a view is made of, and how strongly: solo-learn's YAML, checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from clsp_plugin.config.plain import plain
from clsp_plugin.errors import ClspError, nearest

__all__ = ["INTERPOLATIONS", "AugmentationConfig"]

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
INTERPOLATIONS = ("bilinear", "bicubic")


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
        if self.interpolation not in INTERPOLATIONS:
            raise ClspError(
                f"unknown rrc.interpolation {self.interpolation!r}"
                + nearest(self.interpolation, INTERPOLATIONS)
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
        if isinstance(cfg, DictConfig):
            cfg = plain(cfg, resolve=True)
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
