"""``clsp figures``: draw every figure that records allow, and say what the others would need."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.evaluation.names import check_protocol
from clsp_plugin.figures.curves import accuracy_curves
from clsp_plugin.figures.features import neighbours, similarities, tsne
from clsp_plugin.figures.picture import Options, Picture
from clsp_plugin.figures.rows import accuracy_rows
from clsp_plugin.figures.style import save
from clsp_plugin.figures.sweeps import SWEEPS, quality, sweep
from clsp_plugin.records.recipe import Records
from clsp_plugin.system.alone import alone
from clsp_plugin.system.files import unfinished, write_text
from clsp_plugin.system.json_files import read_json

__all__ = ["KINDS", "Drawn", "draw", "write_figures"]

KINDS: dict[str, Callable[[Records, Options], Iterator[Picture | str]]] = {
    "epochs": accuracy_curves,
    "rows": accuracy_rows,
    **{name: partial(sweep, which) for name, which in SWEEPS.items()},
    "quality": quality,
    "similarity": similarities,
    "tsne": tsne,
    "neighbours": neighbours,
}
_TITLES = {
    "epochs": "Accuracy against epochs",
    "rows": "Accuracy of every row",
    **{name: which.title for name, which in SWEEPS.items()},
    "quality": "Accuracy against the quality of the candidates",
    "similarity": "Similarity of positive pairs",
    "tsne": "t-SNE of the features",
    "neighbours": "Nearest neighbours",
}
_INDEX = "figures.json"
_SUFFIXES = (".svg", ".png")


@with_config(ConfigDict(extra="allow"))
class _Index(TypedDict):
    files: list[str]


@dataclass
class Drawn:
    """The figures that were drawn of some records.

    Attributes:
        pictures: the figures.
        missing: a line for each thing that could not be drawn, with what it needs.
        files: paths of the files that were written.
    """

    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def draw(records: Records, options: Options, only: Sequence[str] = ()) -> Drawn:
    """Draw what the records allow.

    Args:
        records: pairs of a path and its record, as ``find_records`` returns them.
        options: options of the figures.
        only: names in ``KINDS``; all by default.

    Raises:
        ClspError: an unknown name, protocol or limit.
    """
    check_protocol(options.protocol)
    if options.limit < 1:
        raise ClspError(f"--limit {options.limit} must be at least 1.")
    for name in only:
        if name not in KINDS:
            raise ClspError(f"There is no figure {name}{nearest(name, KINDS)}")
    # nothing is known of the training of an encoder from elsewhere
    records = [(path, record) for path, record in records if not record.from_elsewhere]
    out = Drawn()
    for name in only or KINDS:
        try:
            for found in KINDS[name](records, options):
                if isinstance(found, str):
                    out.missing.append(found)
                else:
                    out.pictures.append(found)
        except ClspError as error:
            out.missing.append(f"{_TITLES[name]}: {error}")
    out.missing = [line.rstrip(".") + "." for line in dict.fromkeys(out.missing)]
    return out


def write_figures(
    records: Records, out: str | Path, options: Options, only: Sequence[str] = ()
) -> Drawn:
    """Write every figure that the records allow, as SVG and PNG, and ``figures.json`` about them.

    Args:
        records: pairs of a path and its record, as ``find_records`` returns them.
        out: a folder; the figures of an earlier call in it are replaced or removed.
        options: options of the figures.
        only: names in ``KINDS``; all by default.

    Raises:
        ClspError: a bad option, or the folder holds files of these names that are not ours.
    """
    out = Path(out)
    _index(out)  # refuses a bad folder before anything is drawn
    drawn = draw(records, options, only)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, f"writes figures to {out}"):
        _write(drawn, out, records)
    return drawn


def _write(drawn: Drawn, out: Path, records: Records) -> None:
    """Write figures to a folder; stopped at any moment, the same call can be repeated."""
    before = _index(out)
    drawn.files = [out / f"{p.name}{suffix}" for p in drawn.pictures for suffix in _SUFFIXES]
    strangers = [path for path in drawn.files if path.exists() and path.name not in before]
    if strangers:
        raise ClspError(f"{strangers[0]} exists and is no figure of ours; choose another --out.")
    for left in (left for path in drawn.files for left in unfinished(out, path.name)):
        left.unlink(missing_ok=True)
    # before the pictures, so that they count as ours even if this process is killed among them
    _write_index(out, drawn, records, before)
    for picture in drawn.pictures:
        for suffix in _SUFFIXES:
            save(picture.figure, out / f"{picture.name}{suffix}")
    for name in set(before) - {path.name for path in drawn.files}:
        (out / name).unlink(missing_ok=True)
    _write_index(out, drawn, records)


def _index(out: Path) -> list[str]:
    """Return the names of the files that an earlier call wrote."""
    if out.exists() and not out.is_dir():
        raise ClspError(f"{out} is a file; name a folder.")
    try:
        content = read_json(out / _INDEX, _Index, "an index of figures", "choose another --out")
    except FileNotFoundError:
        return []
    return [name for name in content["files"] if Path(name).name == name]


def _write_index(out: Path, drawn: Drawn, records: Records, before: Sequence[str] = ()) -> None:
    content: dict[str, Any] = {
        "figures": [
            {"name": p.name, "title": p.title, "caption": p.caption} for p in drawn.pictures
        ],
        "files": list(dict.fromkeys([*(path.name for path in drawn.files), *before])),
        "missing": drawn.missing,
        "records": [str(path) for path, _ in records],
    }
    write_text(out / _INDEX, json.dumps(content, indent=1) + "\n")
