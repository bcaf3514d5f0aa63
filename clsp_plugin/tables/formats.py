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
from urllib.parse import quote

__all__ = ["FORMATS", "Grid", "GridCell", "counted", "csv_cell", "one_line"]

_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?( ± [\d.]+)?"
    r"( \((n = \d+|\d+ failed|[+-][\d.]+)(, \d+ failed)?\))?[†‡]*"
)
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
    """One cell of a table.

    Attributes:
        text: the text that is shown.
        bold: whether it is the column's best beyond the noise.
        links: files that the number comes from.
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
        left: number of columns, from the left, that hold names and not numbers.
        caption: text below the table.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[GridCell, ...], ...]
    left: int
    caption: str

    def to_markdown(self, base: Path | None = None) -> str:
        """Return a pipe table, with the caption below; links, if any, are relative to ``base``."""
        rule = ["---"] * self.left + ["---:"] * (len(self.head) - self.left)
        body = [[self._cell(cell, base) for cell in row] for row in self.rows]
        head = [_markdown(name) for name in self.head]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))
        return f"{text}\n\n{_markdown(self.caption)}\n"

    @staticmethod
    def _cell(cell: GridCell, base: Path | None) -> str:
        text = f"**{_markdown(cell.text)}**" if cell.bold else _markdown(cell.text)
        if base is None or not cell.links or not text:
            return text
        first, *others = (_relative(link, base) for link in cell.links)
        more = (f" [{number}]({link})" for number, link in enumerate(others, 2))
        return f"[{text}]({first}){''.join(more)}"

    def to_csv(self) -> str:
        """Return the shown texts as CSV, a number with its spread; without bold and links."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(map(csv_cell, self.head))
        writer.writerows([csv_cell(cell.text) for cell in row] for row in self.rows)
        return out.getvalue()

    def to_latex(self) -> str:
        """Return a ``table`` with a ``tabular`` for the booktabs package, and the caption below."""
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
        """Return a ``table`` element.

        Args:
            base: folder of the file that the text is written to, for links to records; without it
                and ``href`` there are none.
            href: returns the link of a file, in place of its path from ``base``.
        """
        if href is None and base is not None:
            href = partial(_relative, base=base)
        kinds = [""] * self.left + [' class="number"'] * (len(self.head) - self.left)
        head = "".join(
            f"<th{kind}>{html.escape(one_line(name))}</th>"
            for kind, name in zip(kinds, self.head, strict=True)
        )
        rows = "\n".join(
            f"<tr>{''.join(self._html(n, cell, href) for n, cell in enumerate(row))}</tr>"
            for row in self.rows
        )
        return (
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n"
            f"<caption>{html.escape(one_line(self.caption))}</caption>\n</table>\n"
        )

    def _html(self, column: int, cell: GridCell, href: Callable[[Path], str] | None) -> str:
        text = html.escape(one_line(cell.text))
        text = f"<strong>{text}</strong>" if cell.bold else text
        if href is not None and cell.links and text:
            first, *others = (html.escape(href(link), True) for link in cell.links)
            text = f'<a href="{first}">{text}</a>'
            text += "".join(f' <a href="{o}"><sup>{n}</sup></a>' for n, o in enumerate(others, 2))
        kind = "" if column < self.left else ' class="number"'
        return f"<td{kind}>{text}</td>"

    def render(self, layout: str, base: Path | None = None) -> str:
        """Return the table in one of ``FORMATS``."""
        if layout in ("markdown", "html"):
            return getattr(self, f"to_{layout}")(base)
        return getattr(self, f"to_{layout}")()


def _relative(path: Path, base: Path) -> str:
    """Return a path as a link that no file name turns into a scheme, a query or an element."""
    way = Path(os.path.relpath(path, base)).as_posix()
    # as bytes, since names of files need not be text
    return quote(os.fsencode(way if way.startswith("../") else f"./{way}"))


def one_line(text: str) -> str:
    """Replace line breaks and other control characters, which no format can show, by spaces."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", text)


def csv_cell(value: Any) -> Any:
    """Return a value that no spreadsheet computes: text that begins a formula gets an apostrophe.

    Numbers stay numbers (OWASP, "CSV Injection").
    """
    text = one_line(str(value))
    if text.lstrip()[:1] not in (*"=+-@\uff1d\uff0b\uff0d\uff20", ""):
        return text
    return text if not text.strip() or _NUMBER.fullmatch(text) else f"'{text}"


# characters that Markdown would interpret at their place; others stay, so that the text is readable
_MARKS = re.compile(
    r"[\\|\[\]*`~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # not within a word
    r"|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])"
)


def _markdown(text: str) -> str:
    return _MARKS.sub(r"\\\g<0>", one_line(text))


def _tex(text: str) -> str:
    return re.sub(".", lambda match: _TEX.get(match[0], match[0]), one_line(text))


def _tex_cell(cell: GridCell) -> str:
    return f"\\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)


def _tex_line(cells: Iterable[str]) -> str:
    line = " & ".join(cells)
    # at the start of a line, LaTeX would read [ and * as arguments of the line break before
    return f"{'{}' * line.startswith(('[', '*'))}{line} \\\\"
