"""Whether images of a folder are packed, and where their pack is."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clsp_plugin.data.encoded import ImageFile, openable
from clsp_plugin.data.folders import UNREADABLE
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.data.packed.pack import Packing, open_pack
from clsp_plugin.data.sources.source import Source
from clsp_plugin.errors import ClspError
from clsp_plugin.system.memory import total_memory

__all__ = ["SHARE", "open_packed", "reason_to_pack"]

SHARE = 0.7  # of the memory of the machine, that images may take
_LOOKED_AT = 100  # images whose size is read


def reason_to_pack(files: Sequence[ImageFile], data: Mapping[str, Any]) -> str | None:
    """Return why images are packed; None if they are held in memory.

    Args:
        files: the image files.
        data: the configuration's ``data`` block: ``packed``, and ``image_size``. Without either,
            images of several sizes are packed, and those that are too many for the memory.

    Raises:
        ClspError: both are given.
    """
    packed, size = data.get("packed"), data.get("image_size")
    if packed and size:
        raise ClspError(
            f"data.packed=True keeps whole pictures and data.image_size={size} squares in memory; "
            f"give one of them (data.image_size=null, or data.packed=False)."
        )
    if packed:
        return "data.packed=True"
    if packed is False or size:
        return None
    sizes = _sizes(files[:: max(1, len(files) // _LOOKED_AT)])
    if len(set(sizes)) > 1:
        return "their sizes differ"
    total, needed = total_memory(), len(files) * 3 * sum(w * h for w, h in sizes[:1])
    if total is not None and needed > SHARE * total:
        return f"in memory they would take {needed / 2**30:.1f} GiB"
    return None


def _sizes(files: Sequence[ImageFile]) -> list[tuple[int, int]]:
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

    Args:
        source: where they come from.
        data: the configuration's ``data`` block: ``pack_size``, ``pack_format``, ``skip_damaged``
            and ``cache``.
        name: name of the images, for messages.
        why: why they are packed.

    Raises:
        ClspError: see ``pack.open_pack``.
    """
    packing = Packing(
        data.get("pack_size", 256), data.get("pack_format", "jpeg"),
        bool(data.get("skip_damaged", False)),
    )  # fmt: skip
    cache = cache_of(data) / "packed"
    pack = open_pack(source.root, source.files, packing, cache, why, source.shown)
    return PackedImages.of(pack, source.files, source.targets, source.classes, name)


def cache_of(data: Mapping[str, Any]) -> Path:
    """Return the folder of what is kept of images: ``data.cache``, or one in the user's cache."""
    if data.get("cache"):
        return Path(data["cache"])
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "clsp_plugin"
