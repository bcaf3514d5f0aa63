"""Load the training and test images of a configuration and check them against each other."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_only

from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import has_own_split, load_images, open_images
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.errors import ClspError

__all__ = ["load_splits", "named_images", "numbered_as", "open_splits", "shared_images"]

I = TypeVar("I", bound=Images)  # noqa: E741

_NAMED = 5  # largest number of classes that an error message names


def load_splits(data: Mapping[str, Any]) -> tuple[ImageArray, ImageArray | None]:
    """Load the training and the test images that a configuration's ``data`` block names.

    A class has the same number in both, given by its name. Prints a warning if no test image has a
    label, or test images are training images too, unless the split is the data set's own.

    Args:
        data: see :func:`~clsp_plugin.data.images.load_images`.

    Returns:
        The training and the test images; None for the latter if there are none.

    Raises:
        ClspError: as ``load_images``, or the test images have a class that the training images do
            not have.
    """
    train, test = load_images(data, "train"), load_images(data, "val")
    return train, None if test is None else _checked(test, train, data)


def open_splits(data: Mapping[str, Any]) -> tuple[Images, Images | None]:
    """Open the training and the test images, packed ones too; otherwise as :func:`load_splits`.

    The test images are packed if the training images are.

    Args:
        data: see :func:`~clsp_plugin.data.images.open_images`.
    """
    train = open_images(data, "train")
    if not data.get("image_size"):
        data = {**data, "packed": isinstance(train, PackedImages)}
    test = open_images(data, "val")
    return train, None if test is None else _checked(test, train, data)


def _checked(test: I, train: Images, data: Mapping[str, Any]) -> I:
    """Return the test images, numbered as the training images; warn of images in both."""
    test = numbered_as(test, train)
    if train.classes and not bool((test.targets >= 0).any()):
        rank_zero_only(print)(
            f"Warning: none of the {len(test)} test images ({data['val_path']}) has a label, so "
            f"nothing can be measured on them; name a split or a folder with labels."
        )
    if not has_own_split(data) and (shared := shared_images(train, test)):
        rank_zero_only(print)(
            f"Warning: {shared} of the {len(test)} test images ({data['val_path']}) are training "
            f"images too ({data['train_path']}); what is measured on them says little."
        )
    return test


def numbered_as(test: I, train: Images) -> I:
    """Return the test images with labels renumbered to the classes of the training images.

    Args:
        test: the test images; their classes must be among those of ``train``, but may be fewer.
        train: the training images, which define the class numbers.

    Raises:
        ClspError: the test images have a class that the training images do not have.
    """
    if test.classes == train.classes:
        return test
    numbers = {name: number for number, name in enumerate(train.classes)}
    present = set(test.targets.tolist())  # a data set may name classes that it has no images of
    unknown = [
        name for number, name in enumerate(test.classes)
        if number in present and name not in numbers
    ]  # fmt: skip
    if unknown and not train.classes:
        raise ClspError(
            f"The test images ({test.name}) have labels and the training images ({train.name}) "
            f"have none; set data.no_labels=True, or label the training images."
        )
    if unknown:
        raise ClspError(
            f"The test images ({test.name}) have {_named(unknown)}, which the training images "
            f"({train.name}) do not have; theirs: {', '.join(train.classes[:40]) or 'none'}. Name "
            f"the classes alike, or leave the class out."
        )
    # index -1 reads the last entry, so that images without a label keep -1
    own = (numbers.get(name, -1) for name in test.classes)
    table = torch.tensor([*own, -1], dtype=torch.int64)
    return test.relabelled(table[test.targets], train.classes)


def _named(classes: list[str]) -> str:
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    word = "class" if len(classes) == 1 else "classes"
    return f"the {word} {', '.join(classes[:_NAMED])}{more}"


def shared_images(train: Images, test: Images) -> int:
    """Count the test images that are training images too, compared pixel by pixel."""
    if train.form != test.form:
        return 0
    known = {digest.tobytes() for digest in train.digests}
    return sum(digest.tobytes() in known for digest in test.digests)


def named_images(train: Images, test: Images) -> dict[str, str]:
    """Return the SHA-256 of ``Images.identity`` of each split, keyed ``train`` and ``test``."""
    return {
        split: hashlib.sha256(json.dumps(array.identity, sort_keys=True).encode()).hexdigest()
        for split, array in (("train", train), ("test", test))
    }
