"""Which images can be read, looked at once where squares shall do without the others.

A pack finds that out while it is made; squares have a place for every image before any is read.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from clsp_plugin.data.encoded import ImageFile
from clsp_plugin.data.folders import NotReadNow, open_image
from clsp_plugin.data.packed.choosing import cache_of
from clsp_plugin.data.packed.left_out import tell_left_out
from clsp_plugin.data.packed.pack import Packing, ahead, alone, named_after, source_digest
from clsp_plugin.data.sources.source import Source
from clsp_plugin.errors import ClspError
from clsp_plugin.system.files import write_text
from clsp_plugin.system.json_files import read_json
from clsp_plugin.system.processes import cores
from clsp_plugin.system.progress import Progress

__all__ = ["readable"]

_ADVICE = "delete it and give the same command again, which looks at the images anew."


def readable(source: Source, data: Mapping[str, Any]) -> Source:
    """Return the part of a source whose images can be read; the others are named.

    The first time every image is read. Which ones cannot be is kept in ``data.cache``.

    Args:
        source: where the images come from.
        data: the configuration's ``data`` block: ``cache``.

    Raises:
        ClspError: there is no room or no permission to write; what is kept is damaged; the system
            did not let an image be read.
    """
    digest = source_digest(source.root, source.files, Packing(0, "damaged"))
    kept = cache_of(data) / "damaged" / named_after(source.root, digest[:32])
    file = kept / "damaged.json"
    if not file.exists():
        with alone(kept, f"reads {source.shown} to find damaged images"):
            if not file.exists():
                _look(source.files, file)
    damaged = read_json(file, list[int], "the list of damaged images", _ADVICE)
    if not damaged:
        return source
    tell_left_out(source.files, damaged)
    whole = torch.ones(len(source.files), dtype=torch.bool)
    whole[damaged] = False
    return source.part(torch.nonzero(whole)[:, 0])


def _look(files: Sequence[ImageFile], file: Path) -> None:
    """Read all images, and write the numbers of those that cannot be read to a file."""
    damaged = []
    with (
        ThreadPoolExecutor(cores()) as pool,
        Progress(total=len(files), desc="reading", unit="image") as bar,
    ):
        for number, fine in enumerate(ahead(files, _is_readable, pool)):
            if not fine:
                damaged.append(number)
            bar.update(1)
    write_text(file, json.dumps(damaged))


def _is_readable(file: ImageFile) -> bool:
    try:
        open_image(file, None)
    except NotReadNow:
        raise
    except ClspError:
        return False
    return True
