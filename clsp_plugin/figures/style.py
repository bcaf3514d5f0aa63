"""The house's style of figures: readable in print, and without colours too; SVG and PNG."""

import io
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from clsp_plugin.system.files import write_whole

__all__ = [
    "COLOURS", "INK", "MARKERS", "MUTED", "PAPER", "RULE", "dress", "legend", "new_figure",
    "rendered", "save", "styles", "wrapped",
]  # fmt: skip

INK, MUTED, PAPER, RULE = "#1a1a1a", "#5f6368", "#ffffff", "#9aa0a6"

# Okabe and Ito's colours, without the yellow that white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Each is told apart without its colour as well; cycles of 7, 4 and 6 repeat after 84 methods.
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_CHARACTER, _LINE = 0.088, 0.2  # inches, of the notes below a figure


def styles() -> Iterator[dict[str, Any]]:
    """Colour, dashes and marker of one line after another."""
    cycles = (itertools.cycle(values) for values in (COLOURS, DASHES, MARKERS))
    for colour, dash, marker in zip(*cycles, strict=False):
        yield {"color": colour, "linestyle": dash, "marker": marker}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose parts make room for each other."""
    figure = Figure(figsize=(width, height), dpi=160)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", wspace=0.06, w_pad=0.08, hspace=0.06)
    return figure


def dress(axis: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """What every pair of axes has."""
    axis.set_title(title, fontsize=11)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(color="#e4e6e8", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def legend(
    figure: Figure, axes: Sequence[Axes], note: str, columns: int | None = None, **more: Any
) -> None:
    """One legend below for all axes, each label once, and a note at its head.

    The figure grows by as much as these need.

    Args:
        figure: that has them.
        axes: not every label has to be in each.
        note: such as what a band is; broken into lines of the figure's width.
        columns: as many as there is room for by default.
        more: of matplotlib's legend.
    """
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    width, height = figure.get_size_inches()
    if columns is None:
        longest = max(map(len, found), default=0) * _CHARACTER + 0.75  # with its piece of line
        columns = max(1, min(4, len(found), int(width / longest)))
    note = wrapped(note, width)
    rows = -(-len(found) // columns) + note.count("\n") + 1
    figure.set_size_inches(width, height + _LINE * rows + 0.15)
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=columns,
        frameon=False, handlelength=3.4, title=note, **more,
    )  # fmt: skip


def wrapped(text: str, width: float) -> str:
    """A text in lines of so many inches; a line break in it stays."""
    length = max(20, int(width / _CHARACTER))
    text = text.replace(" = ", "\u00a0=\u00a0")  # stays on one line
    return "\n".join(textwrap.fill(line, length) for line in text.splitlines())


def rendered(figure: Figure, suffix: str) -> bytes:
    """A figure as a file of ``.svg`` or ``.png``; the same figure gives the same bytes."""
    for text in figure.findobj(Text):
        # names are no formulas, and what is no character has no place in an SVG
        if "$" in text.get_text() or _CONTROL.search(text.get_text()):
            text.set_parse_math(False)
            text.set_text(_CONTROL.sub(" ", text.get_text()))
    file = io.BytesIO()
    metadata = {"Date": None} if suffix == ".svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "clsp"}):
        figure.savefig(file, format=suffix[1:], metadata=metadata)
    return file.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format that the path ends with."""
    content = rendered(figure, Path(path).suffix)
    write_whole(Path(path), lambda file: file.write(content))
