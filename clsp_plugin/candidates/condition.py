"""The condition that a conditional denoiser gets per image: its class, cluster or features.

Clusters and features come from a file that ``clsp embed`` writes, so that neither the denoiser nor
the generator depends on an encoder.
"""

import hashlib
from pathlib import Path
from typing import overload

import numpy as np
import torch

from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.errors import ClspError
from clsp_plugin.system.arrays import read_npz
from clsp_plugin.system.files import write_whole

__all__ = ["LABELS", "check_condition", "condition_digest", "load_condition", "save_condition"]

LABELS = "labels"  # given instead of a file: condition on the data set's own labels


def check_condition(condition: torch.Tensor, number: int) -> None:
    """Refuse a tensor that is not a valid condition for ``number`` images.

    Args:
        condition: int64 (N,), classes from 0, or float32 (N, D), features.
        number: N, the number of images.

    Raises:
        ClspError: the shape or the type is another, an image has no class, or a feature is not
            finite.
    """
    dtype = torch.float32 if condition.ndim == 2 else torch.int64
    if condition.ndim not in (1, 2) or condition.dtype != dtype or len(condition) != number:
        raise ClspError(
            f"A condition of {number} images is int64 ({number},), classes, or float32 "
            f"({number}, D), features; this one is {condition.dtype} {tuple(condition.shape)}."
        )
    if condition.ndim == 1 and bool((condition < 0).any()):
        raise ClspError(
            f"{int((condition < 0).sum())} of the {number} images have no labels, and a "
            f"class-conditional denoiser needs them; condition it on the clusters of `clsp embed`."
        )
    if not bool(torch.isfinite(condition).all()):
        raise ClspError("The features to condition on are not finite; use another encoder.")


def condition_digest(condition: torch.Tensor) -> str:
    """Return a digest of a condition's content: 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(condition.cpu().contiguous().numpy().data).hexdigest()[:16]


def save_condition(path: str | Path, condition: torch.Tensor, array: ImageArray) -> None:
    """Write a condition of images to an ``.npz`` file.

    Args:
        path: the file to write; an existing file is not replaced.
        condition: int64 (N,), clusters from 0, or float32 (N, D), features.
        array: the N images that the condition belongs to.

    Raises:
        ClspError: the file exists, or the condition is not valid for N images.
    """
    check_condition(condition, len(array))
    path = Path(path)
    if path.exists():
        raise ClspError(f"{path} already exists; choose another --out or delete it.")
    values, name = condition.numpy(), np.array(array.fingerprint)
    write_whole(path, lambda file: np.savez(file, condition=values, fingerprint=name))


@overload
def load_condition(given: str | Path, array: ImageArray) -> torch.Tensor: ...
@overload
def load_condition(given: str | Path | None, array: ImageArray) -> torch.Tensor | None: ...
def load_condition(given: str | Path | None, array: ImageArray) -> torch.Tensor | None:
    """Load the condition that a configuration names.

    Args:
        given: None, ``labels``, or a file that :func:`save_condition` wrote.
        array: the images that the condition must belong to.

    Returns:
        int64 (N,), classes or clusters; float32 (N, D), features; or None if ``given`` is None.

    Raises:
        ClspError: the file does not exist, has another format, or belongs to other images; or an
            image has no label where ``given`` is ``labels``.
    """
    if given is None:
        return None
    if given == LABELS:
        check_condition(array.targets, len(array))
        return array.targets
    told = f"condition={given} is neither labels nor a file that `clsp embed` wrote"
    if not Path(given).is_file():
        raise ClspError(f"{told} (there is no such file).")
    values, name = read_npz(given, ("condition", "fingerprint"), told)
    try:
        condition = torch.from_numpy(values)
    except TypeError as error:  # torch has no such dtype
        raise ClspError(f"{told} ({error}).") from error
    fingerprint = str(name)
    if fingerprint != array.fingerprint:
        raise ClspError(
            f"{given} is of other images than the {len(array)} of {array.name}; make one of these "
            f"with `clsp embed`."
        )
    check_condition(condition, len(array))
    return condition
