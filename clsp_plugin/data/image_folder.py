"""Folders of images, as an array in memory or packed on the disk."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from clsp_plugin.data.folders import EXTENSIONS, class_folders, image_files, open_image
from clsp_plugin.data.fraction import chosen, named, part_of
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.imagenet100 import IMAGENET100
from clsp_plugin.data.packed.choosing import (
    SHARE,
    mapped_squares,
    open_packed,
    reason_to_map,
    reason_to_pack,
)
from clsp_plugin.errors import ClspError
from clsp_plugin.system.memory import total_memory

__all__ = ["load_folder", "load_image_files", "trained_files"]

_MEASURED = 20  # photographs whose size is looked at
_NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet100": 100}


def load_folder(root: Path, name: str, data: Mapping[str, Any], packs: bool) -> Images:
    """Load the images of a folder, or open them packed.

    Args:
        root: the folder; with one folder of images a class, unless ``no_labels`` is set.
        name: name of the images, for messages.
        data: the configuration's ``data`` block.
        packs: whether the caller can take packed images.

    Raises:
        ClspError: the folder is missing, a class is empty, an image cannot be read, the images
            have several sizes or do not fit in memory and may not be packed, ...
    """
    if not root.is_dir():
        raise ClspError(
            f"The image folder {root} does not exist; set data.train_path and data.val_path to "
            f"folders that hold one folder of images per class."
        )
    trains = name.endswith("/train")
    found = listed(root, data)
    if packs:
        why = reason_to_pack(found[0], data)
        if why is not None:
            packed = open_packed(root, found, data, name, why)
            return part_of(packed, data) if trains else packed
    elif data.get("packed") and not data.get("image_size"):
        raise ClspError(
            f"Images of one size are needed here, and data.packed=True without a size leaves those "
            f"of {root} as they are; set data.image_size=PIXELS too."
        )
    if trains and data.get("fraction", -1) > 0:  # before any is read
        name, found = named(name, data), _some(found, data)
    files, labels, classes = found
    why = reason_to_map(len(files), data)
    if why is not None:
        mapped = mapped_squares(root, found, data, name, why)
        if trains:
            _warn_of_shrinking(files, root, data["image_size"])
        return mapped
    images = torch.from_numpy(_decode(files, data.get("image_size")))
    if trains:
        _warn_of_shrinking(files, root, images.shape[1])
    return ImageArray(images, labels, classes, name)


def trained_files(root: Path, data: Mapping[str, Any]) -> list[str]:
    """Return the image files that are trained on, in their order."""
    return _some(listed(root, data), data)[0]


def listed(root: Path, data: Mapping[str, Any]) -> tuple[list[str], torch.Tensor, tuple[str, ...]]:
    """Return a folder's image files, their class numbers and the names of the classes."""
    if data.get("no_labels", False):
        found = _some_files(root)
        return found, torch.full((len(found),), -1), ()
    only = IMAGENET100 if data["dataset"] == "imagenet100" else ()  # out of all of ImageNet
    files, targets, classes = class_folders(root, only)
    expected = _NUM_CLASSES.get(data["dataset"])
    if expected not in (None, len(classes)):
        raise ClspError(
            f"{root} has {len(classes)} class folders, {data['dataset']} has {expected} "
            f"classes; point data.train_path and data.val_path at the folders that hold them, "
            f"or set data.dataset=custom."
        )
    return files, torch.tensor(targets), classes


def _some(
    found: tuple[list[str], torch.Tensor, tuple[str, ...]], data: Mapping[str, Any]
) -> tuple[list[str], torch.Tensor, tuple[str, ...]]:
    """Return the part of listed images that ``fraction`` asks for."""
    files, targets, classes = found
    rows = chosen(targets, data)
    if rows is None:
        return found
    return [files[row] for row in rows.tolist()], targets[rows], classes


def _some_files(root: Path) -> list[str]:
    """Return the images under a folder; refuse a folder that has none."""
    files = image_files(root)
    if not files:
        raise ClspError(f"{root} holds no images ({', '.join(sorted(EXTENSIONS))}).")
    return files


def _warn_of_shrinking(files: Sequence[str], root: Path, image_size: int) -> None:
    """Say so if photographs are scaled to less than half of their shorter side."""
    sides = []
    for file in files[:: max(1, len(files) // _MEASURED)]:
        with Image.open(file) as image:  # they have been decoded, so they can be opened
            sides.append(min(image.size))
    side = sorted(sides)[len(sides) // 2]
    if side > 2 * image_size:
        rank_zero_only(print)(
            f"Warning: the images in {root} have about {side} pixels on their shorter side and "
            f"data.image_size={image_size} scales them to {image_size}x{image_size}. Set another "
            f"data.image_size, or take a configuration of custom/, which are for photographs."
        )


def load_image_files(root: Path, image_size: int | None) -> np.ndarray:
    """Load all images under a folder, in the order of their paths: uint8 (N, H, W, 3).

    Args:
        root: the folder, searched recursively.
        image_size: see :func:`~clsp_plugin.data.folders.to_pixels`.

    Raises:
        ClspError: there are no images, one is corrupt, or they have several sizes and
            ``image_size`` is None.
    """
    return _decode(_some_files(root), image_size)


def _decode(files: Sequence[str], image_size: int | None) -> np.ndarray:
    """Read images into one array: ``image_size`` squares if given, else of the first one's size."""
    size = (image_size, image_size) if image_size else open_image(files[0], None).shape[:2]
    _check_memory(len(files), *size)
    out = np.empty((len(files), *size, 3), np.uint8)

    def read(number: int) -> None:
        image = open_image(files[number], image_size)
        if image.shape != out.shape[1:]:
            raise ClspError(
                f"{files[number]} is {image.shape[0]}x{image.shape[1]}, {files[0]} is "
                f"{size[0]}x{size[1]}; set data.image_size=PIXELS to bring all to one size, or "
                f"where whole pictures can be taken data.packed=True."
            )
        out[number] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(files))):
            pass
    return out


def _check_memory(number: int, height: int, width: int) -> None:
    needed, total = number * height * width * 3, total_memory()
    if total is not None and needed > SHARE * total:
        raise ClspError(
            f"{number} images of {height}x{width} need {needed / 2**30:.1f} GiB and this machine "
            f"has {total / 2**30:.1f} GiB; set data.packed=True data.image_size=PIXELS, with which "
            f"squares are kept on the disk, or a data.fraction."
        )
