"""Images that cannot be read: what is told of them."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from clsp_plugin.data.encoded import ImageFile
from clsp_plugin.data.folders import NotReadNow, open_image
from clsp_plugin.errors import ClspError

__all__ = ["open_listed", "or_left_out", "tell_left_out"]

_NAMED = 20  # images that are named


def or_left_out(error: ClspError) -> ClspError:
    """Return what is told of a damaged image, with the setting that does without it."""
    if isinstance(error, NotReadNow):  # no reason to do without it
        return error
    return ClspError(f"{str(error).rstrip('.')}, or set data.skip_damaged=True.")


def open_listed(file: ImageFile, image_size: int | None) -> np.ndarray:
    """Read one of the images of a source, see :func:`~clsp_plugin.data.folders.open_image`.

    Raises:
        ClspError: it cannot be read; says how to do without it.
    """
    try:
        return open_image(file, image_size)
    except ClspError as error:
        raise or_left_out(error) from error


def tell_left_out(files: Sequence[ImageFile], rows: Sequence[int]) -> None:
    """Print which images are left out, the first twenty of them, once in a process.

    Args:
        files: all images.
        rows: the numbers of those that are left out.
    """
    if rows:
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        named = ", ".join(str(files[row]) for row in rows[:_NAMED])
        _tell(f"Left out, not readable: {named}{more}.")


@cache
def _tell(text: str) -> None:
    rank_zero_only(print)(text)
