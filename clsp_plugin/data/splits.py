"""Training and test images of one configuration, compared with each other once, for every verb."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import has_own_split, load_images
from clsp_plugin.errors import ClspError

__all__ = ["load_splits", "named_images", "numbered_as", "shared_images"]

_NAMED = 5  # classes that a sentence names


def load_splits(data: Mapping[str, Any]) -> tuple[ImageArray, ImageArray | None]:
    """The training and the test images that a configuration's ``data`` block names.

    The test images' labels are numbered as the training images' are: by the names of the classes.
    Prints a sentence if test images are training images too, where they are a person's folders.

    Args:
        data: see :func:`~clsp_plugin.data.images.load_images`.

    Returns:
        Both; None for the second where there are no test images.

    Raises:
        ClspError: as ``load_images``; test images of a class that is not trained on.
    """
    train, test = load_images(data, "train"), load_images(data, "val")
    if test is None:
        return train, None
    test = numbered_as(test, train)
    if not has_own_split(data) and (shared := shared_images(train, test)):
        rank_zero_only(print)(
            f"Warning: {shared} of the {len(test)} test images ({data['val_path']}) are training "
            f"images too ({data['train_path']}); what is measured on them says little."
        )
    return train, test


def numbered_as(test: ImageArray, train: ImageArray) -> ImageArray:
    """Test images with the class numbers of the training images.

    Args:
        test: with classes that are all among the training images'; it may have fewer.
        train: whose numbers count.

    Raises:
        ClspError: a class of the test images is none of the training images'.
    """
    if test.classes == train.classes:
        return test
    numbers = {name: number for number, name in enumerate(train.classes)}
    unknown = [name for name in test.classes if name not in numbers]
    if unknown:
        raise ClspError(
            f"The test images ({test.name}) have {_named(unknown)}, which the training images "
            f"({train.name}) do not have; theirs: {', '.join(train.classes[:40]) or 'none'}. Name "
            f"the folders alike, or leave the class out."
        )
    # the last entry is for -1: images without a label stay so
    table = torch.tensor([*(numbers[name] for name in test.classes), -1], dtype=torch.int64)
    return ImageArray(test.images, table[test.targets], train.classes, test.name)


def _named(classes: list[str]) -> str:
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    word = "class" if len(classes) == 1 else "classes"
    return f"the {word} {', '.join(classes[:_NAMED])}{more}"


def shared_images(train: ImageArray, test: ImageArray) -> int:
    """How many test images are training images too, pixel by pixel."""
    if train.size != test.size:
        return 0
    known = {digest.tobytes() for digest in train.digests}
    return sum(digest.tobytes() in known for digest in test.digests)


def named_images(train: ImageArray, test: ImageArray) -> dict[str, str]:
    """``train`` and ``test``, SHA-256 of ``ImageArray.identity`` each, by which to compare them."""
    return {
        split: hashlib.sha256(json.dumps(array.identity, sort_keys=True).encode()).hexdigest()
        for split, array in (("train", train), ("test", test))
    }
