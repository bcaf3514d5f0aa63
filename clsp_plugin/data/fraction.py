"""The part of the training images that ``data.fraction`` asks for: stratified, always the same."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from clsp_plugin.data.holder import Images
from clsp_plugin.errors import ClspError

__all__ = ["chosen", "named", "part_of"]

I = TypeVar("I", bound=Images)  # noqa: E741


def chosen(targets: torch.Tensor, data: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the indexes of the training images to use in their order; None for all.

    Args:
        targets: int64 (N,), the class numbers; -1 where there are no labels.
        data: the configuration's ``data`` block; ``fraction`` of 0 or less takes all.

    Raises:
        ClspError: the fraction is 1 or more, or leaves too few images.
    """
    fraction = float(data.get("fraction", -1))
    if fraction <= 0:
        return None
    from sklearn.model_selection import train_test_split

    if fraction >= 1:
        raise ClspError(f"data.fraction={fraction} is not between 0 and 1; -1 takes everything.")
    labelled = bool((targets >= 0).all())
    try:
        some, _ = train_test_split(
            np.arange(len(targets)),
            train_size=fraction,
            stratify=targets.numpy() if labelled else None,
            random_state=42,
        )
    except ValueError as error:
        raise ClspError(f"data.fraction={fraction} leaves too few images ({error}).") from error
    return torch.from_numpy(np.sort(some))


def named(name: str, data: Mapping[str, Any]) -> str:
    """Return the name of a part of the images of a name."""
    return f"{name}[{float(data['fraction']):g}]"


def part_of(images: I, data: Mapping[str, Any]) -> I:
    """Return the part of training images that ``fraction`` asks for, see :func:`chosen`."""
    rows = chosen(images.targets, data)
    return images if rows is None else images.subset(rows, named(images.name, data))
