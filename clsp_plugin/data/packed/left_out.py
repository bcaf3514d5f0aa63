"""Images that cannot be read: what is told of them."""

from collections.abc import Sequence

import numpy as np

from clsp_plugin.data.encoded import ImageFile
from clsp_plugin.data.folders import open_image
from clsp_plugin.errors import ClspError

__all__ = ["open_listed", "or_left_out", "tell_left_out"]

_NAMED = 20  # images that are named


def or_left_out(error: ClspError) -> ClspError:
    """Return what is told of a damaged image, with the setting that does without it."""
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


def tell_left_out(damaged: Sequence[str]) -> None:
    """Print the names of images that are left out, the first twenty of them."""
    if damaged:
        more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        print(f"Left out, not readable: {', '.join(damaged[:_NAMED])}{more}.")
