"""Which uses of synthetic positives go together with which methods and settings."""

from typing import Any

from omegaconf import DictConfig

from clsp_plugin.config.training import Synthetic
from clsp_plugin.errors import ClspError

__all__ = ["check_use"]

# Settings that others make matter: setting -> (the other, its values).
_NEEDS = {
    "probability": ("use", ("replace",)),
    "per_step": ("use", ("multi",)),
    "temperature": ("use", ("multi",)),
    "choice_of": ("choice", ("hardest", "easiest", "quantile", "curriculum")),
    "quantile": ("choice", ("quantile",)),
    "gamma": ("pair_weight", ("quality",)),
    "final": ("schedule", ("linear", "cosine")),
}


def check_use(cfg: DictConfig, third_view: str, takes_more_views: bool, weighs_pairs: bool) -> None:
    """Refuse a use of synthetic positives that does not fit a method or other settings.

    Args:
        cfg: a whole configuration with a complete ``synthetic`` block.
        third_view: ``candidate``, or ``anchor`` for the control.
        takes_more_views: whether the method's loss takes more than two large views.
        weighs_pairs: whether it can weigh the images of a step.

    Raises:
        ClspError: the use does not fit; the message says why and what to do.
    """
    block = cfg.synthetic
    _check_settings(block)
    _check_encoder(block)
    if block.use == "view":
        _check_view(cfg, takes_more_views)
    _check_size(cfg)
    if block.pair_weight == "quality":
        _check_weights(cfg, weighs_pairs)
    _check_numbers(block, third_view)
    varies = block.schedule != "constant" or block.choice == "curriculum"
    if varies and not cfg.get("max_epochs"):
        raise ClspError(
            "synthetic.schedule and synthetic.choice=curriculum follow the whole training, whose "
            "length is not given; set max_epochs."
        )


def _check_encoder(block: Any) -> None:
    if block.encoder is not None and block.choice == "uniform" and block.pair_weight == "equal":
        raise ClspError(
            f"synthetic.encoder={block.encoder} would not be asked anything; set synthetic.choice "
            f"or synthetic.pair_weight, or leave it out."
        )


def _check_settings(block: Any) -> None:
    """Refuse settings that would be ignored."""
    usual = Synthetic()
    for key, (other, values) in _NEEDS.items():
        if block[key] != getattr(usual, key) and block[other] not in values:
            raise ClspError(
                f"synthetic.{key}={block[key]} is a setting of synthetic.{other}="
                f"{' or '.join(values)} and would not be used with {block[other]}; leave it out, "
                f"or set synthetic.{other}."
            )


def _check_view(cfg: DictConfig, takes_more_views: bool) -> None:
    if not takes_more_views:
        raise ClspError(
            f"synthetic.use=view gives the loss of {cfg.method} a third large view, and that loss "
            f"is one of two; set synthetic.use=align, replace or multi."
        )
    for key, usual in (("warmup_epochs", 0), ("schedule", "constant")):
        if cfg.synthetic[key] != usual:
            raise ClspError(
                f"synthetic.{key}={cfg.synthetic[key]} has nothing to change with "
                f"synthetic.use=view, which has neither a weight nor a probability; set "
                f"synthetic.{key}={usual} (synthetic.from_epoch lets the view begin later)."
            )


def _check_weights(cfg: DictConfig, weighs_pairs: bool) -> None:
    if cfg.synthetic.use == "view":
        why = "has three pairs of views an image in one loss, which has one weight an image"
    elif cfg.synthetic.use == "replace" and not weighs_pairs:
        why = f"leaves the loss to {cfg.method}, which cannot weigh the images of a step"
    else:
        return
    raise ClspError(
        f"synthetic.pair_weight=quality weighs pairs, and synthetic.use={cfg.synthetic.use} {why}; "
        f"set synthetic.pair_weight=equal, or synthetic.use=align or multi."
    )


def _check_size(cfg: DictConfig) -> None:
    """Refuse third views of another size where they make one batch with the others."""
    block, size = cfg.synthetic, cfg.augmentations[0].crop_size
    own = (block.augmentation or {}).get("crop_size", size)
    together = {
        f"synthetic.use={block.use}": block.use in ("replace", "view"),
        f"synthetic.choice={block.choice}": block.choice != "uniform",
        f"synthetic.pair_weight={block.pair_weight}": block.pair_weight == "quality",
    }
    why = next((setting for setting, needed in together.items() if needed), None)
    if own != size and why is not None:
        raise ClspError(
            f"synthetic.augmentation makes views of {own} pixels, and for {why} they have to be "
            f"like the others, of {size}; set synthetic.augmentation.crop_size={size}."
        )


def _check_numbers(block: Any, third_view: str) -> None:
    """Refuse more candidates than there are, and a choice of all of them."""
    used = block.per_step if block.use == "multi" else 1
    chooses = block.choice != "uniform"
    if chooses and block.choice_of is None and third_view == "anchor":
        raise ClspError(
            f"synthetic.choice={block.choice} chooses among views of the image itself, of which "
            f"there can be any number; set synthetic.choice_of."
        )
    drawn = block.choice_of if chooses and block.choice_of else used
    if block.num_candidates is not None and block.num_candidates < drawn:
        raise ClspError(
            f"A step draws {drawn} different candidates of each image (synthetic.per_step or "
            f"choice_of), more than synthetic.num_candidates={block.num_candidates}; change one."
        )
    if chooses and block.choice_of is not None and block.choice_of <= used:
        raise ClspError(
            f"synthetic.choice={block.choice} has nothing to choose: {used} of synthetic.choice_of="
            f"{block.choice_of}; set a larger synthetic.choice_of, or synthetic.choice=uniform."
        )
