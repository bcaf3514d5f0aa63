"""A block of a configuration as an ordinary dict."""

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

__all__ = ["plain"]


def plain(cfg: DictConfig, resolve: bool = False) -> dict[str, Any]:
    """Return a block of a configuration as dicts and lists.

    Args:
        cfg: the block; not changed.
        resolve: whether to replace interpolations by their values.
    """
    return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=resolve))
