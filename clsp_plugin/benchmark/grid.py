"""A table that is ready to be shown, as Markdown, CSV, LaTeX or HTML."""

import csv
import html
import io
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["FORMATS", "Grid", "GridCell", "counted"]

FORMATS = {"markdown": ".md", "csv": ".csv", "latex": ".tex", "html": ".html"}

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "→": r"$\to$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "λ": r"$\lambda$",
    "<": "$<$", ">": "$>$",
}  # fmt: skip


def counted(number: Any, noun: str, form: str = "") -> str:
    """``1 epoch``, ``20 epochs``; with the format ``,`` also ``2,000 images``."""
    return f"{number:{form}} {noun}{'s' * (number != 1)}"


@dataclass(frozen=True)
class GridCell:
    """What stands in one place.

    Attributes:
        text: as people read it.
        bold: whether it is the column's best beyond the noise.
        links: files that it comes from.
    """

    text: str
    bold: bool = False
    links: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Grid:
    """Headings, rows of the same length, and a caption.

    Attributes:
        head: the headings.
        rows: the cells.
        left: how many columns, from the left, hold names and not numbers.
        caption: below.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[GridCell, ...], ...]
    left: int
    caption: str

    def to_markdown(self, base: Path | None = None) -> str:
        """Pipes and dashes, caption below; with links relative to ``base`` if it is given."""
        rule = ["---"] * self.left + ["---:"] * (len(self.head) - self.left)
        body = [[self._markdown(cell, base) for cell in row] for row in self.rows]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in (self.head, rule, *body))
        return f"{text}\n\n{self.caption}\n"

    @staticmethod
    def _markdown(cell: GridCell, base: Path | None) -> str:
        text = f"**{cell.text}**" if cell.bold else cell.text
        if base is None or not cell.links or not text:
            return text
        first, *others = (_relative(link, base) for link in cell.links)
        more = (f" [{number}]({link})" for number, link in enumerate(others, 2))
        return f"[{text}]({first}){''.join(more)}"

    def to_csv(self) -> str:
        """What is shown, without marks of layout; numbers with their spread as text."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.head)
        writer.writerows([cell.text for cell in row] for row in self.rows)
        return out.getvalue()

    def to_latex(self) -> str:
        """A ``tabular`` of the booktabs package in a ``table``, caption below."""
        columns = "l" * self.left + "r" * (len(self.head) - self.left)
        lines = [_tex_line(map(_tex, self.head))]
        body = [_tex_line(_tex_cell(cell) for cell in row) for row in self.rows]
        return "\n".join(
            [
                "% \\usepackage{booktabs}",
                "\\begin{table}",
                "\\centering",
                f"\\begin{{tabular}}{{{columns}}}",
                "\\toprule",
                *lines,
                "\\midrule",
                *body,
                "\\bottomrule",
                "\\end{tabular}",
                f"\\caption{{{_tex(self.caption)}}}",
                "\\end{table}",
                "",
            ]
        )

    def to_html(self, base: Path | None = None, href: Callable[[Path], str] | None = None) -> str:
        """A ``table`` element.

        Args:
            base: the folder of the file that it is written to, for links; without it none.
            href: what a file's link is instead of its path from ``base``.
        """
        if href is None and base is not None:
            href = partial(_relative, base=base)
        kinds = [""] * self.left + [' class="number"'] * (len(self.head) - self.left)
        head = "".join(
            f"<th{kind}>{html.escape(name)}</th>"
            for kind, name in zip(kinds, self.head, strict=True)
        )
        rows = "\n".join(
            f"<tr>{''.join(self._html(n, cell, href) for n, cell in enumerate(row))}</tr>"
            for row in self.rows
        )
        return (
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n"
            f"<caption>{html.escape(self.caption)}</caption>\n</table>\n"
        )

    def _html(self, column: int, cell: GridCell, href: Callable[[Path], str] | None) -> str:
        text = html.escape(cell.text)
        text = f"<strong>{text}</strong>" if cell.bold else text
        if href is not None and cell.links and text:
            first, *others = (html.escape(href(link), True) for link in cell.links)
            text = f'<a href="{first}">{text}</a>'
            text += "".join(f' <a href="{o}"><sup>{n}</sup></a>' for n, o in enumerate(others, 2))
        kind = "" if column < self.left else ' class="number"'
        return f"<td{kind}>{text}</td>"

    def render(self, layout: str, base: Path | None = None) -> str:
        """One of ``FORMATS``."""
        if layout in ("markdown", "html"):
            return getattr(self, f"to_{layout}")(base)
        return getattr(self, f"to_{layout}")()


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path, base)).as_posix().replace(" ", "%20")


def _tex(text: str) -> str:
    return re.sub(".", lambda match: _TEX.get(match[0], match[0]), text)


def _tex_cell(cell: GridCell) -> str:
    return f"\\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)


def _tex_line(cells: Iterable[str]) -> str:
    line = " & ".join(cells)
    # after a line's end or a rule, a bracket would be read as a length and a star as part of it
    return f"{'{}' * line.startswith(('[', '*'))}{line} \\\\"
