"""Images given as objects: torch data sets, those of Hugging Face, arrays, lists of pictures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from clsp_plugin.data.folders import reading, to_pixels
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.sources.source import LABELS
from clsp_plugin.errors import ClspError, short

__all__ = ["as_images", "given_images", "images_given", "read_item"]

# Names of the columns of a data set whose items are mappings, the first that is there.
_IMAGES = ("image", "img", "images", "pixel_values")

_GIVEN: ContextVar[dict[str, ImageArray | None] | None] = ContextVar("images", default=None)


@contextmanager
def images_given(train: ImageArray | None, val: ImageArray | None = None) -> Iterator[None]:
    """Let configurations read these images inside the block, whatever they name.

    Args:
        train: the training images; None changes nothing.
        val: the test images; None if there are none.
    """
    token = _GIVEN.set(None if train is None else {"train": train, "val": val})
    try:
        yield
    finally:
        _GIVEN.reset(token)


def given_images(split: str) -> tuple[bool, ImageArray | None]:
    """Return whether images are given, see :func:`images_given`, and those of a split."""
    given = _GIVEN.get()
    return (False, None) if given is None else (True, given[split])


def as_images(source: Any, image_size: int | None = None, name: str = "data") -> ImageArray:
    """Read a data set object into memory.

    Args:
        source: anything with ``__len__`` and ``__getitem__`` whose items are an image, a pair of an
            image and a label, or a mapping with both (columns ``image`` or ``img``, and ``label``,
            ``labels``, ``fine_label`` or ``target``): a torch ``Dataset`` without its transforms, a
            Hugging Face ``Dataset``, a list of pictures; or uint8 (N, H, W, 3), an array or a
            tensor. An image is a PIL image, uint8 (H, W), (H, W, 3), or a tensor uint8 (3, H, W).
            A label is a class number from 0, or None. An ``ImageArray`` is returned as it is.
        image_size: side in pixels; images are resized and cut to it as files are, see
            :func:`~clsp_plugin.data.folders.to_pixels`. None if all have one size.
        name: name of the images, for messages.

    Returns:
        The images. The same pixels, labels and class names in the same order have the same
        ``identity`` as class folders that hold them.

    Raises:
        ClspError: there are no items, one is not an image or a label, or the images have several
            sizes and ``image_size`` is None.
    """
    if isinstance(source, ImageArray):
        return source
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise ClspError(
            f"{name} is a {type(source).__name__}, which has no length or no items; give a data "
            f"set, a list of images, or uint8 of shape (N, H, W, 3)."
        )
    number = len(source)
    if number == 0:
        raise ClspError(f"{name} is empty; give at least one image.")
    targets = torch.full((number,), -1, dtype=torch.int64)
    out: np.ndarray | None = None
    for index in range(number):
        where = f"Item {index} of {name}"
        image, targets[index] = read_item(source[index], where)
        pixels = reading(where, partial(to_pixels, image, image_size))
        if out is None:
            out = np.empty((number, *pixels.shape), np.uint8)
        if pixels.shape != out.shape[1:]:
            raise ClspError(
                f"{where} is {pixels.shape[0]}x{pixels.shape[1]} and item 0 is "
                f"{out.shape[1]}x{out.shape[2]}; set data.image_size=PIXELS to bring all to one "
                f"size."
            )
        out[index] = pixels
    assert out is not None
    return ImageArray(torch.from_numpy(out), targets, _classes(source, targets, name), name)


def read_item(item: Any, where: str) -> tuple[Image.Image, int]:
    """Return the image of a data set object's item and its label, -1 without one.

    Args:
        item: see :func:`as_images`.
        where: name of the item, for messages.

    Raises:
        ClspError: as :func:`as_images`.
    """
    image, label = _parts(item, where)
    return _picture(image, where), _label(label, where)


def _parts(item: Any, where: str) -> tuple[Any, Any]:
    """Return an item's image and label, None for a label that is not there."""
    if isinstance(item, Mapping):
        column = next((name for name in _IMAGES if name in item), None)
        if column is None:
            columns = short(", ".join(map(str, item)))
            raise ClspError(f"{where} has no image but {columns}; name the image's `image`.")
        return item[column], next((item[name] for name in LABELS if name in item), None)
    if isinstance(item, (tuple, list)):
        if not item:
            raise ClspError(f"{where} is empty; give an image, or an image and its label.")
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _picture(image: Any, where: str) -> Image.Image:
    """Convert an image to one of Pillow's."""
    if isinstance(image, torch.Tensor):
        if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
            image = image.permute(1, 2, 0)
        image = image.numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ClspError(
                f"{where} holds {image.dtype}; give uint8 from 0 to 255, that is the data set "
                f"without transforms such as ToTensor: images are augmented here."
            )
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[..., 0]
        coloured = image.ndim == 3 and image.shape[2] == 3
        if not (image.ndim == 2 or coloured) or 0 in image.shape:
            raise ClspError(
                f"{where} has the shape {tuple(image.shape)}; an image is (H, W), (H, W, 3), "
                f"or as a tensor (3, H, W)."
            )
        image = Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, Image.Image):
        raise ClspError(
            f"{where} is a {type(image).__name__} and no image; give a PIL image, an array or "
            f"a tensor."
        )
    return image


def _label(label: Any, where: str) -> int:
    if label is None:
        return -1
    try:
        number = int(label)
        whole = number == label
    except (TypeError, ValueError):
        whole = False
    if not whole or number < -1:
        raise ClspError(
            f"{where} has the label {short(label)}; a label is a class number from 0, or None."
        )
    return number


def _classes(source: Any, targets: torch.Tensor, name: str) -> tuple[str, ...]:
    """Return the names of the classes: the data set's own, else their numbers."""
    largest = int(targets.max())
    names = getattr(source, "classes", None)
    features = getattr(source, "features", None)
    if names is None and isinstance(features, Mapping):
        column = next((features[label] for label in LABELS if label in features), None)
        names = getattr(column, "names", None)
    if isinstance(names, Sequence) and not isinstance(names, str):
        if largest >= len(names):
            raise ClspError(
                f"{name} has the label {largest} and {len(names)} class names; make them fit."
            )
        return tuple(map(str, names)) if largest >= 0 else ()
    return tuple(map(str, range(largest + 1)))
