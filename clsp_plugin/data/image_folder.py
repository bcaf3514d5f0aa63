"""Images of folders and other sources, as an array in memory or packed on the disk."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from clsp_plugin.data.encoded import ImageFile
from clsp_plugin.data.folders import open_image
from clsp_plugin.data.fraction import chosen, named, part_of
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.packed.choosing import (
    SHARE,
    is_packed,
    mapped_squares,
    open_packed,
    reason_to_map,
    reason_to_pack,
    sizes_of,
)
from clsp_plugin.data.packed.damaged import readable
from clsp_plugin.data.packed.left_out import open_listed
from clsp_plugin.data.sources.choosing import open_source
from clsp_plugin.data.sources.class_folders import some_files
from clsp_plugin.data.sources.source import Source
from clsp_plugin.errors import ClspError
from clsp_plugin.system.memory import total_memory

__all__ = ["load_image_files", "load_source", "squares_of"]

_MEASURED = 20  # photographs whose size is looked at


def load_source(path: str | Path, name: str, data: Mapping[str, Any], packs: bool) -> Images:
    """Load the images of a folder or of another source, or open them packed.

    Args:
        path: what names them, see :func:`~clsp_plugin.data.sources.choosing.open_source`.
        name: name of the images, for messages, with the split behind its last ``/``.
        data: the configuration's ``data`` block.
        packs: whether the caller can take packed images.

    Raises:
        ClspError: the source is missing or not what it should be, an image cannot be read, the
            images have several sizes or do not fit in memory and may not be packed, ...
    """
    split = name.rpartition("/")[2]
    trains = split == "train"
    whole, whole_name = open_source(path, data, split), name
    source = whole
    if trains and data.get("fraction", -1) > 0:  # before any is read: a look needs no others
        name, source = named(name, data), _trained_part(whole, data)
    if packs:
        why = reason_to_pack(whole.files, data)
        # with damaged ones left out, which part it is depends on what is left
        if (
            why is not None
            and source is not whole
            and (data.get("skip_damaged") or is_packed(whole, data))
        ):
            return part_of(open_packed(whole, data, whole_name, why), data)
        if why is not None:
            return open_packed(source, data, name, why)
    elif data.get("packed") and not data.get("image_size"):
        raise ClspError(
            f"Images of one size are needed here, and data.packed=True without a size leaves those "
            f"of {path} as they are; set data.image_size=PIXELS too."
        )
    if data.get("skip_damaged"):
        source = squares_of(whole, data, split)
    files = source.files
    why = reason_to_map(len(files), data)
    if why is not None:
        mapped = mapped_squares(source, data, name, why)
        if trains:
            _warn_of_shrinking(files, source.shown, data["image_size"])
        return mapped
    images = torch.from_numpy(_decode(files, data.get("image_size"), open_listed))
    if trains:
        _warn_of_shrinking(files, source.shown, images.shape[1])
    return ImageArray(images, source.targets, source.classes, name)


def _trained_part(source: Source, data: Mapping[str, Any]) -> Source:
    """Return the part of training images that ``fraction`` asks for, before any is read."""
    rows = chosen(source.targets, data)
    return source if rows is None else source.part(rows)


def squares_of(source: Source, data: Mapping[str, Any], split: str) -> Source:
    """Return what of a source is read where images are squares.

    Args:
        source: the images of a split.
        data: the configuration's ``data`` block: ``skip_damaged``; ``fraction`` for training.
        split: ``train`` or ``val``.
    """
    if data.get("skip_damaged"):
        source = readable(source, data)
    return _trained_part(source, data) if split == "train" else source


def _warn_of_shrinking(files: Sequence[ImageFile], shown: str, image_size: int) -> None:
    """Say so if photographs are scaled to less than half of their shorter side."""
    sides = sorted(min(size) for size in sizes_of(files[:: max(1, len(files) // _MEASURED)]))
    side = sides[len(sides) // 2] if sides else 0
    if side > 2 * image_size:
        rank_zero_only(print)(
            f"Warning: the images in {shown} have about {side} pixels on their shorter side and "
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
    return _decode(some_files(root), image_size)


def _decode(
    files: Sequence[ImageFile],
    image_size: int | None,
    opened: Callable[[ImageFile, int | None], np.ndarray] = open_image,
) -> np.ndarray:
    """Read images into one array: ``image_size`` squares if given, else of the first one's size."""
    size = (image_size, image_size) if image_size else opened(files[0], None).shape[:2]
    _check_memory(len(files), *size)
    out = np.empty((len(files), *size, 3), np.uint8)

    def read(number: int) -> None:
        image = opened(files[number], image_size)
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
