"""A list of image files: a text, CSV or TSV file with a path, and perhaps a label, in each line."""

import csv
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clsp_plugin.data.folders import EXTENSIONS
from clsp_plugin.data.sources.source import (
    IMAGES,
    LABELS,
    Source,
    column_of,
    no_images,
    numbered,
    without_labels,
)
from clsp_plugin.errors import ClspError, short
from clsp_plugin.system.files import check_regular

__all__ = ["SUFFIXES", "from_list"]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".txt", *_DELIMITERS)
# A line of a text file: what ends like an image is the path, so that it may hold blanks and commas.
_ENDINGS = "|".join(sorted(suffix[1:] for suffix in EXTENSIONS))
_LINE = re.compile(rf"(.*\.(?:{_ENDINGS}))(?:(?:\s*[,\t]\s*|\s+)(\S.*))?", re.IGNORECASE)


class _Line(NamedTuple):
    number: int
    path: str
    label: str


def from_list(path: Path, data: Mapping[str, Any]) -> Source:
    """Return the images that a list names.

    A line is ``PATH`` or ``PATH,LABEL``; in a text file a tab or blanks may be in the place of the
    comma. Paths are absolute, or relative to the folder of the list. Labels are names of classes,
    or numbers. CSV and TSV files may begin with the names of the columns.

    Args:
        path: a file with one of ``SUFFIXES``, UTF-8.
        data: the configuration's ``data`` block: ``image_column``, ``label_column``, ``no_labels``.

    Raises:
        ClspError: a file is not there, only some lines have a label, a column is unknown, the list
            is empty or not UTF-8, ...
    """
    lines = list(_lines(path, data))
    if not lines:
        raise no_images(str(path))
    root = path.parent
    files = [_checked(os.path.join(root, line.path), line, path) for line in lines]
    unlabelled = next((line for line in lines if not line.label), None)
    if data.get("no_labels", False) or not any(line.label for line in lines):
        targets, classes = without_labels(len(lines))
    elif unlabelled is not None:
        raise ClspError(
            f"{path}, line {unlabelled.number}: {short(unlabelled.path)} has no label and other "
            f"lines have one; give each line a label (-1 for none), or set data.no_labels=True."
        )
    else:
        targets, classes = numbered(
            [line.label for line in lines],
            lambda row: f"{path}, line {lines[row].number}: {short(lines[row].path)}",
        )

    def names() -> list[str]:
        return [_name(line.path, root) for line in lines]

    return Source(str(path), root, files, targets, classes, names)


def _name(path: str, root: Path) -> str:
    """Return the name of a file below the list's folder, without its ending; absolute elsewhere."""
    whole = Path(os.path.normpath(os.path.join(root.absolute(), path)))
    if whole.is_relative_to(root.absolute()):
        whole = whole.relative_to(root.absolute())
    return whole.with_suffix("").as_posix()


def _text(path: Path) -> str:
    check_regular(path)
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")  # Excel begins files with a mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ClspError(
            f"{path}, line {line} is not UTF-8 text; save the list as UTF-8."
        ) from error
    except OSError as error:
        raise ClspError(
            f"{path} cannot be read ({error.strerror or error}); make it readable."
        ) from error


def _lines(path: Path, data: Mapping[str, Any]) -> Iterator[_Line]:
    text = _text(path)
    if path.suffix.lower() in _DELIMITERS:
        yield from _table(path, text, data)
        return
    for key in ("image_column", "label_column"):
        if data.get(key) is not None:
            raise ClspError(f"data.{key}={data[key]} is for tables and {path} is a plain list.")
    # not splitlines, for which there are more ends of lines than for files
    for number, line in enumerate(text.split("\n"), 1):
        if not (line := line.strip()):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ClspError(
                f"{path}, line {number}: {short(line)} is no path of an image, with or without a "
                f"label behind it (PATH,LABEL)."
            )
        yield _Line(number, found[1], found[2] or "")


def _table(path: Path, text: str, data: Mapping[str, Any]) -> Iterator[_Line]:
    delimiter = _DELIMITERS[path.suffix.lower()]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    places: tuple[int, int | None] | None = None
    width = 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            number = reader.line_num
            if places is None:
                width, places = len(cells), _header(cells, path, data)
                if places is not None:
                    continue
                places = _without_header(cells, path, data)
            if len(cells) != width or not cells[places[0]]:
                what = f"{len(cells)} of {width} columns" if len(cells) != width else "no path"
                raise ClspError(
                    f"{path}, line {number}: {short(row)} has {what}; write PATH,LABEL in each "
                    f"line, in quotes what holds a comma."
                )
            # a name of a file may begin with a blank, what is behind a comma may have one before it
            yield _Line(number, row[places[0]], "" if places[1] is None else cells[places[1]])
    except csv.Error as error:
        raise ClspError(
            f"{path}, line {reader.line_num} is not valid in such a file ({error})."
        ) from error


def _header(cells: list[str], path: Path, data: Mapping[str, Any]) -> tuple[int, int | None] | None:
    """Return the places of path and label by the names of the columns; None if these have none."""
    asked, labels = data.get("image_column"), data.get("label_column")
    is_image = any(os.path.splitext(cell)[1].lower() in EXTENSIONS for cell in cells)
    if asked is None and labels is None and (is_image or not _named(cells)):
        return None
    image = column_of("image", asked, IMAGES, cells, str(path))
    label = None if data.get("no_labels") else column_of("label", labels, LABELS, cells, str(path))
    told = f"{path} has the columns {short(', '.join(cells))}"
    if image is None:
        raise ClspError(f"{told}; set data.image_column to the one of the paths.")
    if label is None and len(cells) > 1 and not data.get("no_labels"):
        raise ClspError(
            f"{told}; set data.label_column to the one of the labels, or data.no_labels=True."
        )
    return cells.index(image), None if label is None else cells.index(label)


def _named(cells: list[str]) -> bool:
    return any(cell.lower() in IMAGES for cell in cells)


def _without_header(
    cells: list[str], path: Path, data: Mapping[str, Any]
) -> tuple[int, int | None]:
    if len(cells) > 2:
        raise ClspError(
            f"{path} has {len(cells)} columns ({short(', '.join(cells))}); write PATH,LABEL, in "
            f"quotes what holds a comma, or name the columns in the first line and set "
            f"data.image_column and data.label_column."
        )
    return 0, 1 if len(cells) == 2 else None


def _checked(file: str, line: _Line, path: Path) -> str:
    try:
        regular = stat.S_ISREG(os.stat(file).st_mode)
    except (OSError, ValueError) as error:  # ValueError: a byte that no path can have
        if ";" in file and path.suffix.lower() == ".csv":
            columns = "; write a comma between the columns and not a semicolon"
        elif line.number == 1 and path.suffix.lower() in _DELIMITERS:
            columns = (
                "; if this line names the columns, set data.image_column and data.label_column"
            )
        else:
            columns = "; correct the line or put the file there"
        why = getattr(error, "strerror", None) or error
        raise ClspError(
            f"{path}, line {line.number}: {short(file)} cannot be read ({why}){columns}."
        ) from error
    if not regular:
        raise ClspError(f"{path}, line {line.number}: {short(file)} is not a file.")
    return file
