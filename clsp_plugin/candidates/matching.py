"""Read the images of another library's data set by the index that its batches carry.

solo-learn's data sets, and many others, yield ``(index, views, target)``. This module reads such a
data set without its augmentation, so that candidates can be matched with images by their pixels
instead of relying on the order.
"""

import copy
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from clsp_plugin.data.folders import reading, to_pixels
from clsp_plugin.data.image_array import image_digest
from clsp_plugin.errors import ClspError

__all__ = ["digests_of", "pixels_of", "size_of"]

_HOW = (
    "pass images=, the uint8 images (N, H, W, 3) that the indexes name, or a data set that has a "
    "`transform` and yields (index, image, target)"
)


def digests_of(dataset: Any, image_size: int | None) -> np.ndarray:
    """Return a digest of each image of a data set: uint8 (N, 16), see ``ImageArray.digests``.

    Args:
        dataset: a map-style data set with a ``transform`` that yields ``(index, image, ..)``, or
            uint8 images (N, H, W, 3).
        image_size: side in pixels of the squares that the candidates were made for; None keeps
            the images as they are.

    Raises:
        ClspError: the data set cannot be read by index.
    """
    return _each(dataset, image_size, image_digest)


def pixels_of(dataset: Any, image_size: int | None) -> torch.Tensor:
    """Return a data set's images: uint8 (N, H, W, 3). Takes the arguments of :func:`digests_of`.

    Raises:
        ClspError: as :func:`digests_of`, or the images are not all of one size.
    """
    try:
        return torch.from_numpy(_each(dataset, image_size, lambda pixels: pixels))
    except ClspError:
        raise
    except ValueError as error:  # from numpy, which cannot stack arrays of several shapes
        raise ClspError(
            "The images are not all of one size; set data.image_size=PIXELS to bring them to one."
        ) from error


def size_of(dataset: Any) -> tuple[int, int]:
    """Return height and width in pixels of a data set's first image; raises as digests_of does."""
    if isinstance(dataset, torch.Tensor | np.ndarray):
        return tuple(dataset.shape[1:3])
    return _pixels(_reader(dataset), 0, None).shape[:2]


def _each(
    dataset: Any, image_size: int | None, apply: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    if isinstance(dataset, torch.Tensor | np.ndarray):
        images = np.asarray(dataset)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ClspError(f"images are {images.dtype} {images.shape}; give uint8 (N, H, W, 3).")
        return np.stack([apply(image) for image in images])
    read = _reader(dataset)
    # threads help, because decoding releases the interpreter's lock
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        out = pool.map(lambda index: apply(_pixels(read, index, image_size)), range(len(dataset)))
        return np.stack(list(out))


def _pixels(read: Callable[[int], Image.Image], index: int, size: int | None) -> np.ndarray:
    return reading(f"Image {index}", lambda: to_pixels(read(index), size))


def _reader(dataset: Any) -> Callable[[int], Image.Image]:
    """Return a function from an index, as batches carry it, to the image before augmentation."""
    kind = type(dataset).__name__
    if not (hasattr(dataset, "transform") and hasattr(dataset, "__len__")):
        raise ClspError(f"The images of a {kind} cannot be read by index; {_HOW}.")
    bare = copy.copy(dataset)
    bare.transform = None
    if hasattr(bare, "transforms"):
        bare.transforms = None

    def read(index: int) -> Image.Image:
        item = bare[index]
        if not isinstance(item, tuple | list) or isinstance(item[0], Image.Image):
            raise ClspError(f"A {kind} does not yield the index first; {_HOW}.")
        if int(item[0]) != index:
            raise ClspError(f"Image {index} of a {kind} says it is number {item[0]}; {_HOW}.")
        image = item[1]
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise ClspError(
                f"A {kind} without its transform yields a {type(image).__name__}, not an image; "
                f"{_HOW}."
            )
        return image

    return read
