"""Images in rows and columns inside a figure, so that words and frames stay sharp in print."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from clsp_plugin.figures.style import INK

__all__ = ["PITCH", "draw_tiles", "frame"]

PITCH = 1.1  # from one image to the next, in sides of an image
_PIXELS = 128  # least pixels per side: viewers of SVG would smooth smaller images


def draw_tiles(
    axis: Axes,
    tiles: np.ndarray,
    headings: Sequence[str] = (),
    gaps: Mapping[int, float] | None = None,
) -> list[float]:
    """Fill axes with images; pixels are repeated, never smoothed.

    Args:
        axis: axes with nothing else in them; the side of an image becomes their unit.
        tiles: uint8 (R, C, H, W, 3).
        headings: texts above the columns; an empty one leaves a column without.
        gaps: a column to the room before it, in sides of an image.

    Returns:
        The left edges of the columns.
    """
    number, count, height, width, _ = tiles.shape
    scale = -(-_PIXELS // min(height, width))
    lefts, x = [], 0.0
    for column in range(count):
        x += (gaps or {}).get(column, 0.0)
        lefts.append(x)
        x += PITCH
    for row in range(number):
        for column, left in enumerate(lefts):
            image = tiles[row, column].repeat(scale, 0).repeat(scale, 1)
            top = row * PITCH
            axis.imshow(image, extent=(left, left + 1, top + 1, top), interpolation="none")
    for left, words in zip(lefts, headings, strict=False):
        axis.text(left + 0.5, -0.1, words, ha="center", va="bottom", fontsize=9, color=INK)
    axis.set(xlim=(-0.05, x - PITCH + 1.05), ylim=(number * PITCH - PITCH + 1.05, -0.45))
    axis.set_aspect("equal")
    axis.axis("off")
    return lefts


def frame(axis: Axes, left: float, row: int, colour: str) -> None:
    """Draw a frame around an image, with a stroke across a corner to be seen without colour."""
    top = row * PITCH
    axis.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=colour, linewidth=2))
    axis.plot([left, left + 0.3], [top + 0.3, top], color=colour, linewidth=2)
