"""The common style of all figures: readable in print, and without colours too; SVG and PNG."""

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

# Okabe and Ito's colours, without the yellow, which is hard to see on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Lines can be told apart without colours too; cycles of 7, 4 and 6 repeat after 84 lines.
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_CHARACTER, _LINE = 0.088, 0.2  # inches per character and per line of the notes below a figure


def styles() -> Iterator[dict[str, Any]]:
    """Yield colour, dashes and marker of one line after another."""
    cycles = (itertools.cycle(values) for values in (COLOURS, DASHES, MARKERS))
    for colour, dash, marker in zip(*cycles, strict=False):
        yield {"color": colour, "linestyle": dash, "marker": marker}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; its parts make room for each other."""
    figure = Figure(figsize=(width, height), dpi=160)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", wspace=0.06, w_pad=0.08, hspace=0.06)
    return figure


def dress(axis: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Set what every pair of axes has: title, labels, grid and spines."""
    axis.set_title(title, fontsize=11)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(color="#e4e6e8", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def legend(
    figure: Figure, axes: Sequence[Axes], note: str, columns: int | None = None, **more: Any
) -> None:
    """Add one legend below all axes, with each label once, headed by a note.

    The figure grows by the height that these need.

    Args:
        figure: the figure that has the axes.
        axes: axes with labelled lines; not every label has to be in each.
        note: text such as what a band means; broken into lines of the figure's width.
        columns: number of columns; by default as many as there is room for.
        more: arguments of matplotlib's legend.
    """
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    width, height = figure.get_size_inches()
    if columns is None:
        longest = max(map(len, found), default=0) * _CHARACTER + 0.75  # with its sample of the line
        columns = max(1, min(4, len(found), int(width / longest)))
    note = wrapped(note, width)
    rows = -(-len(found) // columns) + note.count("\n") + 1
    figure.set_size_inches(width, height + _LINE * rows + 0.15)
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=columns,
        frameon=False, handlelength=3.4, title=note, **more,
    )  # fmt: skip


def wrapped(text: str, width: float) -> str:
    """Break a text into lines of so many inches; its own line breaks stay."""
    length = max(20, int(width / _CHARACTER))
    text = text.replace(" = ", "\u00a0=\u00a0")  # so that an equation stays on one line
    return "\n".join(textwrap.fill(line, length) for line in text.splitlines())


def rendered(figure: Figure, suffix: str) -> bytes:
    """Return a figure as a file of ``.svg`` or ``.png``; the same figure gives the same bytes."""
    for text in figure.findobj(Text):
        # names are no formulas, and an SVG may not hold control characters
        if "$" in text.get_text() or _CONTROL.search(text.get_text()):
            text.set_parse_math(False)
            text.set_text(_CONTROL.sub(" ", text.get_text()))
    file = io.BytesIO()
    metadata = {"Date": None} if suffix == ".svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "clsp"}):
        figure.savefig(file, format=suffix[1:], metadata=metadata)
    return file.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format that the path's suffix names."""
    content = rendered(figure, Path(path).suffix)
    write_whole(Path(path), lambda file: file.write(content))
