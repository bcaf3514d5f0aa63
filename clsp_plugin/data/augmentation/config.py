"""The operations of an augmentation pipeline and their strengths: solo-learn's YAML, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig

from clsp_plugin.config.rules import Rule, ranged
from clsp_plugin.config.typed import typed
from clsp_plugin.errors import ClspError

__all__ = ["INTERPOLATIONS", "AugmentationConfig"]

INTERPOLATIONS = ("bilinear", "bicubic")
_PROBABILITY = Rule(low=0, high=1)
_AREA = Rule(above=0, high=1)
_STRENGTH = Rule(low=0)


@dataclass(frozen=True)
class AugmentationConfig:
    """One augmentation pipeline; the defaults leave everything but the resize out.

    Attributes:
        crop_size: height and width of the result, in pixels.
        num_crops: how many views of an image this pipeline makes (for the caller).
        crop: random resized crop; otherwise the shorter side is resized to ``crop_size`` and
            the centre is kept.
        crop_min_scale: smallest area of the crop as a share of the image, in (0, 1].
        crop_max_scale: largest area of the crop, in (0, 1].
        interpolation: ``"bicubic"`` or ``"bilinear"``, both with antialiasing.
        jitter_prob: probability of the colour jitter.
        brightness: strength s of the jitter; the factor is uniform in [max(0, 1 - s), 1 + s].
        contrast: the same for the contrast.
        saturation: the same for the saturation.
        hue: the shift is uniform in [-hue, hue], in turns of the colour circle; in [0, 0.5].
        grayscale_prob: probability of taking the colour away.
        blur_prob: probability of a Gaussian blur.
        solarize_prob: probability of inverting bright pixels.
        equalize_prob: probability of equalising the histogram.
        flip_prob: probability of mirroring left and right.

    Raises:
        ClspError: a value of the wrong type or out of its range.
    """

    crop_size: int = field(metadata={"rule": Rule(low=1)})
    num_crops: int = ranged(1, low=1)
    crop: bool = False
    crop_min_scale: float = ranged(0.08, _AREA)
    crop_max_scale: float = ranged(1.0, _AREA)
    interpolation: str = ranged("bicubic", choices=INTERPOLATIONS)
    jitter_prob: float = ranged(0.0, _PROBABILITY)
    brightness: float = ranged(0.0, _STRENGTH)
    contrast: float = ranged(0.0, _STRENGTH)
    saturation: float = ranged(0.0, _STRENGTH)
    hue: float = ranged(0.0, low=0, high=0.5)
    grayscale_prob: float = ranged(0.0, _PROBABILITY)
    blur_prob: float = ranged(0.0, _PROBABILITY)
    solarize_prob: float = ranged(0.0, _PROBABILITY)
    equalize_prob: float = ranged(0.0, _PROBABILITY)
    flip_prob: float = ranged(0.0, _PROBABILITY)

    def __post_init__(self) -> None:
        for name, value in typed(vars(self), AugmentationConfig).items():
            object.__setattr__(self, str(name), value)
        if self.crop_min_scale > self.crop_max_scale:
            raise ClspError(
                f"rrc.crop_min_scale={self.crop_min_scale} must be at most "
                f"rrc.crop_max_scale={self.crop_max_scale}."
            )

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any] | DictConfig) -> "AugmentationConfig":
        """Read one pipeline of a solo-learn ``augmentations`` list.

        A block that is absent or null is switched off. ``rrc.interpolation`` is an addition of
        this package. ``mean`` and ``std`` may stand beside the other keys but are not read
        here: :class:`BatchAugmentation` takes them as arguments.

        Args:
            cfg: a ``dict`` or an omegaconf ``DictConfig``; it is not changed.

        Raises:
            ClspError: an unknown or missing key, or a bad value.
        """
        given = typed(cfg, _PIPELINE)
        values = {name: given[name] for name in ("crop_size", "num_crops")}
        for block, keys in _BLOCKS.items():
            inner = given[block]
            if inner is None:
                continue
            if inner.get("enabled") is False and inner.get("prob"):
                raise ClspError(f"{block}.enabled is False and its prob is {inner.prob}.")
            values |= {keys[key]: inner[key] for key in keys if inner[key] is not None}
        jitter = given.color_jitter
        if jitter is not None and jitter.prob > 0:  # at probability 0 no strength is needed
            for name in ("brightness", "contrast", "saturation", "hue"):
                if jitter[name] is None:
                    raise ClspError(
                        f"color_jitter.{name} is not set though color_jitter.prob is not 0."
                    )
        return cls(**values)


# block of the YAML -> its keys, the switch first -> field of AugmentationConfig
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


_FIELDS = {one.name: one for one in fields(AugmentationConfig)}
_KINDS = get_type_hints(AugmentationConfig)


def _key(key: str, of: str, default: Any) -> tuple[str, Any, Any]:
    """A key of the YAML with the type and the range of a field of AugmentationConfig."""
    kind = _KINDS[of] if default is not None else _KINDS[of] | None
    return key, kind, field(default=default, metadata=_FIELDS[of].metadata)


def _block(name: str) -> type:
    """The schema of a block: its switch has to be given, the rest may be left out."""
    (switch, of), *others = _BLOCKS[name].items()
    keys = [_key(switch, of, MISSING), *(_key(key, of, None) for key, of in others)]
    # `enabled` stands in some of solo-learn's files beside prob, which alone decides
    idle = [] if switch == "enabled" else [("enabled", bool | None, field(default=None))]
    return make_dataclass(name, [*keys, *idle])


_ABOUT = """One of the pipelines of ``augmentations``; a block that is left out is switched off.

Attributes:
    mean: mean of each channel, of the first pipeline alone; ``data.mean`` takes precedence.
    std: standard deviation of each channel, likewise.
"""
_PIPELINE = make_dataclass(
    "augmentation",
    [
        _key("crop_size", "crop_size", MISSING),
        _key("num_crops", "num_crops", 1),
        # statistics of the data set, which the caller passes to BatchAugmentation
        ("mean", Any, field(default=None)),
        ("std", Any, field(default=None)),
        *((name, _block(name) | None, field(default=None)) for name in _BLOCKS),
    ],
    namespace={"__doc__": _ABOUT},
)
