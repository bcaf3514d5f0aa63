"""Whether images of a folder are packed, and where their pack is."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from clsp_plugin.data.encoded import ImageFile, openable
from clsp_plugin.data.folders import UNREADABLE
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.data.packed.left_out import open_listed
from clsp_plugin.data.packed.pack import (
    Pack,
    Packing,
    is_there,
    named_after,
    open_pack,
    source_digest,
)
from clsp_plugin.data.packed.squares import MappedArray, open_squares
from clsp_plugin.data.packed.unpacked import Unpacked
from clsp_plugin.data.sources.source import Source
from clsp_plugin.errors import ClspError
from clsp_plugin.system.memory import in_bytes, total_memory

__all__ = [
    "SHARE",
    "cache_of",
    "is_packed",
    "mapped_squares",
    "open_packed",
    "reason_to_map",
    "reason_to_pack",
    "sizes_of",
]

SHARE = 0.7  # of the memory of the machine, that images may take
_MAPPED = 0.25  # share above which squares are mapped; work needs memory beside them, and once
# written they need not be decoded again
_LOOKED_AT = 100  # images whose size is read


def reason_to_pack(files: Sequence[ImageFile], data: Mapping[str, Any]) -> str | None:
    """Return why images are packed; None if they are held in memory.

    Args:
        files: the image files.
        data: the configuration's ``data`` block: ``packed``, and ``image_size``, with which they
            are squares, see :func:`reason_to_map`. Without either, images of several sizes are
            packed, and those that are too many for the memory.
    """
    packed, size = data.get("packed"), data.get("image_size")
    if size:
        return None
    if packed is not None:
        return "data.packed=True" if packed else None
    sizes = sizes_of(files[:: max(1, len(files) // _LOOKED_AT)])
    if len(set(sizes)) > 1:
        return "their sizes differ"
    total, needed = total_memory(), len(files) * 3 * sum(w * h for w, h in sizes[:1])
    if total is not None and needed > SHARE * total:
        return f"in memory they would take {needed / 2**30:.1f} GiB"
    return None


def sizes_of(files: Sequence[ImageFile]) -> list[tuple[int, int]]:
    """Return width and height of images, without those that cannot be read."""
    found = []
    for file in files:
        try:
            with Image.open(openable(file)) as image:
                found.append(image.size)
        except UNREADABLE:  # told when the image itself is read
            continue
    return found


def open_packed(
    source: Source,
    data: Mapping[str, Any],
    name: str,
    why: str,
) -> PackedImages:
    """Open packed images; the first time they are packed.

    With ``pack_format=none`` they are not, and each is read where it lies when it is needed.

    Args:
        source: where they come from.
        data: the configuration's ``data`` block: ``pack_size``, ``pack_format``, ``skip_damaged``
            and ``cache``.
        name: name of the images, for messages.
        why: why they are packed.

    Raises:
        ClspError: see ``pack.open_pack``; damaged images cannot be left out without a pack.
    """
    packing, cache = _packing(data), cache_of(data) / "packed"
    pack: Pack | Unpacked
    if packing.encoding == "none":
        pack = _unpacked(source, packing, cache, why)
    else:
        pack = open_pack(source.root, source.files, packing, cache, why, source.shown)
    return PackedImages.of(pack, source.files, source.targets, source.classes, name)


def _unpacked(source: Source, packing: Packing, cache: Path, why: str) -> Unpacked:
    if packing.skip_damaged:
        raise ClspError(
            "data.skip_damaged=True finds out which images are damaged while they are packed, and "
            "data.pack_format=none packs none; leave out one of the two."
        )
    rank_zero_only(print)(
        f"The {len(source.files)} images of {source.shown} are read where they lie ({why}; "
        f"data.pack_format=none)."
    )
    return Unpacked(source.root, source.files, packing, cache)


def is_packed(source: Source, data: Mapping[str, Any]) -> bool:
    """Whether :func:`open_packed` has packed all images of a source."""
    if data.get("pack_format") == "none":
        return False
    return is_there(source.root, source.files, _packing(data), cache_of(data) / "packed")


def _packing(data: Mapping[str, Any]) -> Packing:
    return Packing(
        data.get("pack_size", 256), data.get("pack_format", "jpeg"),
        bool(data.get("skip_damaged", False)),
    )  # fmt: skip


def reason_to_map(number: int, data: Mapping[str, Any]) -> str | None:
    """Return why squares are kept in a mapped file; None if they are held in memory.

    Args:
        number: of images.
        data: the configuration's ``data`` block: ``packed`` and ``image_size``. Without the first,
            squares that take more than a quarter of the memory are mapped.
    """
    packed, size = data.get("packed"), data.get("image_size")
    if not size or packed is False:
        return None
    if packed:
        return "data.packed=True"
    total, needed = total_memory(), number * size * size * 3
    if total is None or needed <= _MAPPED * total:
        return None
    return f"more than a quarter of the memory of {in_bytes(total)}"


def mapped_squares(source: Source, data: Mapping[str, Any], name: str, why: str) -> MappedArray:
    """Open the squares of images; takes the arguments of :func:`open_packed`.

    Raises:
        ClspError: see ``squares.open_squares``.
    """
    size, files = data["image_size"], source.files
    digest = source_digest(source.root, files, Packing(size, "squares"))
    folder = named_after(source.root, f"{size}-{digest[:32]}")

    def read(index: int) -> np.ndarray:
        return open_listed(files[index], size)

    return open_squares(
        cache_of(data) / "squares" / folder, len(files), size, read, source.targets,
        source.classes, name, why,
    )  # fmt: skip


def cache_of(data: Mapping[str, Any]) -> Path:
    """Return the folder of what is kept of images: ``data.cache``, or one in the user's cache."""
    if data.get("cache"):
        return Path(data["cache"])
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "clsp_plugin"
