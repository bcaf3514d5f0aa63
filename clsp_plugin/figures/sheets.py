"""Sheets of anchors and their candidates, pixel by pixel."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.figures.style import INK, MUTED, PAPER, RULE
from clsp_plugin.system.files import write_whole

__all__ = ["candidate_sheet", "store_caption"]

_MARGIN, _GAP, _ANCHOR_GAP = 24, 4, 36  # pixels
_LEAST_WIDTH = 640  # pixels, so that a caption has room beside few candidates


def store_caption(manifest: StoreManifest) -> str:
    """Return how the candidates of a store were made, and how many there are."""
    held = f"store of {manifest.num_images:,} images with {manifest.num_candidates} candidates each"
    if not manifest.sampled:
        return f"no denoiser, {manifest.denoiser}, {held}"
    told = f"w = {manifest.w:g} ({100 * (1 - manifest.w):g} % anchor in the middle features), "
    if manifest.condition is not None:
        told += f"told the anchor's condition, guidance = {manifest.guidance:g}, "
    elif manifest.middle == "view" and manifest.w == 0:
        told = f"what views of the anchor share, guidance = {manifest.guidance:g}, "
    return (
        f"{told}{manifest.sampler.upper()}, {manifest.steps} steps, eta = {manifest.eta:g}, "
        f"denoiser {manifest.denoiser[:12]}, {held}"
    )


def candidate_sheet(
    anchors: np.ndarray,
    candidates: np.ndarray,
    path: str | Path,
    scale: int = 3,
    title: str = "",
    caption: str = "",
    columns: Sequence[str] = (),
) -> None:
    """Write a PNG with a row per anchor: the anchor at the left, its candidates beside it.

    Pixels are repeated, never smoothed: what is seen is what the network gets.

    Args:
        anchors: uint8 (A, H, W, 3).
        candidates: uint8 (A, K, H, W, 3).
        path: path of the PNG.
        scale: screen pixels per image pixel, along each side.
        title: text above.
        caption: text below, such as :func:`store_caption`.
        columns: names of the K columns of candidates; without them there is one name for all.
    """
    number, count, height, width, _ = candidates.shape
    assert anchors.shape == (number, height, width, 3)
    assert anchors.dtype == candidates.dtype == np.uint8
    heading, text = _font(16), _font(14)
    cell_h, cell_w = height * scale, width * scale
    first = _MARGIN + cell_w + _ANCHOR_GAP  # left edge of the candidates
    total = max(first + count * (cell_w + _GAP) - _GAP + _MARGIN, _LEAST_WIDTH)
    titles, captions = (
        _wrap(words, font, total - 2 * _MARGIN)
        for words, font in ((title, heading), (caption, text))
    )
    top = _MARGIN + 24 * len(titles) + (8 if titles else 0) + 22
    bottom = top + number * (cell_h + _GAP) - _GAP
    below = 14 + 20 * len(captions) if captions else 0
    sheet = Image.new("RGB", (total, bottom + below + _MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, words in enumerate(titles):
        draw.text((_MARGIN, _MARGIN + 24 * line), words, INK, heading)
    draw.text((_MARGIN, top - 22), "anchor", INK, text)
    for column, name in enumerate(columns or ["candidates" if count > 1 else "candidate"]):
        draw.text((first + column * (cell_w + _GAP), top - 22), name, INK, text)
    rule = first - _ANCHOR_GAP // 2
    draw.line((rule, top - 20, rule, bottom - 1), RULE, 2)
    for row in range(number):
        y = top + row * (cell_h + _GAP)
        sheet.paste(_enlarged(anchors[row], scale), (_MARGIN, y))
        for column in range(count):
            where = (first + column * (cell_w + _GAP), y)
            sheet.paste(_enlarged(candidates[row, column], scale), where)
    for line, words in enumerate(captions):
        draw.text((_MARGIN, bottom + 14 + 20 * line), words, MUTED, text)
    write_whole(Path(path), lambda file: sheet.save(file, "PNG"))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib."""
    file = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)


def _enlarged(image: np.ndarray, scale: int) -> Image.Image:
    return Image.fromarray(image.repeat(scale, 0).repeat(scale, 1))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text at spaces into lines of at most ``width`` pixels, where its words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
