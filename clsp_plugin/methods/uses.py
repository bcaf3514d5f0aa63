"""Which uses of synthetic positives go together with which methods and settings."""

from typing import Any

from omegaconf import DictConfig

from clsp_plugin.config.training import Synthetic
from clsp_plugin.errors import ClspError

__all__ = ["check_use"]

# Settings of one use, which the others would ignore.
_OF_USE = {"probability": "replace", "per_step": "multi", "temperature": "multi"}


def check_use(cfg: DictConfig, takes_more_views: bool) -> None:
    """Refuse a use of synthetic positives that does not fit a method or other settings.

    Args:
        cfg: a whole configuration with a complete ``synthetic`` block.
        takes_more_views: whether the method's loss takes more than two large views.

    Raises:
        ClspError: the use does not fit; the message says why and what to do.
    """
    block = cfg.synthetic
    _check_settings(block)
    if block.use == "view":
        _check_view(cfg, takes_more_views)
    if block.use in ("replace", "view"):
        _check_size(cfg)
    wanted = block.per_step if block.use == "multi" else 1
    if block.num_candidates is not None and block.num_candidates < wanted:
        raise ClspError(
            f"synthetic.per_step={wanted} different candidates of each image cannot be drawn from "
            f"synthetic.num_candidates={block.num_candidates}; set one of them to the other."
        )


def _check_settings(block: Any) -> None:
    usual = Synthetic()
    for key, use in _OF_USE.items():
        if block[key] != getattr(usual, key) and block.use != use:
            raise ClspError(
                f"synthetic.{key}={block[key]} is a setting of synthetic.use={use} and the use is "
                f"{block.use}; leave it out, or set synthetic.use={use}."
            )


def _check_view(cfg: DictConfig, takes_more_views: bool) -> None:
    if not takes_more_views:
        raise ClspError(
            f"synthetic.use=view gives the loss of {cfg.method} a third large view, and that loss "
            f"is one of two; set synthetic.use=align, replace or multi."
        )
    if cfg.synthetic.warmup_epochs:
        raise ClspError(
            f"synthetic.warmup_epochs={cfg.synthetic.warmup_epochs} has nothing to raise with "
            f"synthetic.use=view, which has neither a weight nor a probability; set "
            f"synthetic.warmup_epochs=0."
        )


def _check_size(cfg: DictConfig) -> None:
    own, size = cfg.synthetic.augmentation, cfg.augmentations[0].crop_size
    if own and own.get("crop_size") != size:
        raise ClspError(
            f"synthetic.augmentation makes views of {own.get('crop_size')} pixels, and for "
            f"synthetic.use={cfg.synthetic.use} they have to be like the others, of {size}; set "
            f"synthetic.augmentation.crop_size={size}."
        )
