"""Figures of accuracy against what a suite varies: K, lambda, w (figure 4), quality (figure 3)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.holder import Images
from clsp_plugin.errors import ClspError
from clsp_plugin.figures.groups import (
    CANDIDATES,
    WEIGHT,
    Group,
    families,
    group,
    value_of,
)
from clsp_plugin.figures.picture import (
    HEADINGS,
    Options,
    Picture,
    among,
    measured,
    stale_note,
)
from clsp_plugin.figures.style import MUTED, dress, legend, new_figure, styles, wrapped
from clsp_plugin.figures.tiles import draw_tiles
from clsp_plugin.records.belonging import (
    check_store,
    images_of,
    some_of_each,
    store_of,
    store_report,
)
from clsp_plugin.records.recipe import Records
from clsp_plugin.records.record import Record
from clsp_plugin.tables.make import make_table
from clsp_plugin.tables.published import ablation_curve
from clsp_plugin.tables.rows import Cell

__all__ = ["SWEEPS", "Sweep", "quality", "sweep"]

_WIDTH = 4.7  # inches, of a panel
_FID = "FID of the candidates (lower is better)"
_ANCHORS = 3  # rows of images under an axis
_BARS = "Mean over n seeds a point; bars: sample standard deviation"


@dataclass(frozen=True)
class Sweep:
    """A setting that accuracy is drawn against.

    Attributes:
        name: name of the picture.
        key: dotted key of the setting.
        title: title of the picture.
        label: label of the x axis.
        need: what to run to have several values.
    """

    name: str
    key: str
    title: str
    label: str
    need: str


SWEEPS = {
    "candidates": Sweep(
        "accuracy-candidates", CANDIDATES, "Accuracy against the number of candidates",
        "K, candidates an image (logarithmic)", "synthetic.num_candidates=1,2,4,8",
    ),
    "lambda": Sweep(
        "accuracy-lambda", WEIGHT, "Accuracy against the weight of the synthetic positive",
        "λ, weight of the synthetic positive", "synthetic.weight=0.2,0.6,1",
    ),
    "w": Sweep(
        "accuracy-w", "candidates.w", "Accuracy against the weight of the sample's feature",
        "w, weight of the sample's middle feature", "stores of several `clsp generate w=..`",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Line:
    """The line of one family in one panel: values of the setting to accuracies."""

    name: str
    panel: tuple[str, str]  # data set, task
    points: dict[float, Cell]


def sweep(which: Sweep, records: Records, options: Options) -> Iterator[Picture | str]:
    """Draw accuracy against one setting, where runs differ in that and their seeds alone.

    Args:
        which: one of ``SWEEPS``.
        records: pairs of a path and its record.
        options: options of the figures.

    Yields:
        A picture, with a panel for each data set and evaluation; and lines for what could not be
        drawn.

    Raises:
        ClspError: no runs differ in this setting alone.
    """
    found = families(records, which.key, options.told)
    if not found:
        raise ClspError(f"no two runs differ in {which.key} alone; pre-train with {which.need}")
    lines: list[_Line] = []
    for family in found:
        try:
            lines += _lines(family, which.key, lambda _, r: value_of(r, which.key), options)
        except ClspError as error:
            yield f"{which.title}, {family.name}: {error}"
    strip = None
    if which.key == "candidates.w" and lines:
        try:
            strip = _images_by_w(found[0])
        except ClspError as error:
            yield f"{which.title}, the images under it: {error}"
    _check(lines, which.key)
    published = {}
    if options.published:
        datasets = dict.fromkeys(line.panel[0] for line in lines)
        published = {name: c for name in datasets if (c := ablation_curve(which.key, name))}
        if not published:
            yield f"{which.title}, published: none for {which.key} on {', '.join(datasets)}"
    yield _picture(which, lines, options, published, strip, records)


def quality(records: Records, options: Options) -> Iterator[Picture | str]:
    """Draw accuracy against the distance of candidates from real images, where they alone differ.

    The distance comes from the reports of ``clsp inspect``. It is the FID, or the Frechet distance
    in the features of one encoder, which is no FID: whichever most runs' candidates have.

    Args:
        records: pairs of a path and its record.
        options: ``reports`` are taken besides those in the stores.

    Yields:
        A picture, and lines for what could not be drawn.

    Raises:
        ClspError: too few stores have a comparable distance.
    """
    reports, why = {}, ""
    for path, record in records:
        if record.candidates is not None:
            try:
                reports[path] = store_report(path, record, options.reports)
            except ClspError as error:
                why = why or str(error)
    name, values = _distances(reports)
    measuring = [(path, record) for path, record in records if path in values]
    found = [
        one
        for one in group(measuring, ["candidates."], told=options.told)
        if len({values[path] for path, _ in one.records}) > 1
    ]
    if not found:
        raise ClspError(
            "no two runs differ in their candidates alone and have both a distance from real "
            "images; run `clsp inspect STORE --fid`, or with one and the same --encoder, on each "
            f"store{f' ({why})' if why else ''}"
        )
    if why:
        yield f"Quality of the candidates against accuracy, some runs: {why}"
    lines: list[_Line] = []
    for one in found:
        try:
            lines += _lines(one, "distance", lambda path, _: values[path], options)
        except ClspError as error:
            yield f"Quality of the candidates against accuracy, {one.name}: {error}"
    title = "Accuracy against the quality of the candidates"
    label = _FID if name == _FID else "Fréchet distance of the candidates (no FID; lower is better)"
    which = Sweep("accuracy-quality", "distance", title, label, "")
    _check(lines, which.key)
    about = "" if name == _FID else f" Distances are in the features of {name}."
    yield _picture(which, lines, options, {}, None, measuring, about)


def _distances(reports: Mapping[Path, Mapping[str, Any]]) -> tuple[str, dict[Path, float]]:
    """Return the distance that most runs have, ``_FID`` or named by encoder, and its values."""
    kinds: dict[str, dict[Path, float]] = {}
    for path, report in reports.items():
        if "fid" in report:
            kinds.setdefault(_FID, {})[path] = report["fid"]
        if "frechet" in report:
            about = f"{report['encoder']}, {report['frechet']['images']:,} real images"
            kinds.setdefault(about, {})[path] = report["frechet"]["candidates"]
    return max(kinds.items(), key=lambda kind: len(kind[1]), default=("", {}))


def _lines(
    family: Group, key: str, value: Callable[[Path, Record], float], options: Options
) -> list[_Line]:
    """Return a family's lines, averaged as in tables."""
    points = {path: {key: float(value(path, record))} for path, record in family.records}
    table = make_table(
        family.records, protocol=options.protocol, by=[key], layout="ablation", points=points
    )
    rows = [row for row in table.rows if row.target == row.dataset]
    out = []
    for task in HEADINGS:
        cells = {row.budget[key]: row.cells[task] for row in rows}
        cells = {x: cells[x] for x in sorted(cells) if cells[x].mean is not None}
        if len(cells) > 1:
            out.append(_Line(family.name, (family.dataset, task), cells))
    return out


def _check(lines: Sequence[_Line], key: str) -> None:
    if not lines:
        raise ClspError(
            f"runs differ in {key}, but two of them were not evaluated; run `clsp linear` and "
            f"`clsp knn` on their checkpoints"
        )


def _picture(
    which: Sweep,
    lines: Sequence[_Line],
    options: Options,
    published: dict[str, dict[float, float]],
    strip: tuple[np.ndarray, list[str]] | None,
    records: Records,
    about: str = "",
) -> Picture:
    panels = list(dict.fromkeys(line.panel for line in lines))
    figure, axes, below = _panels(len(panels), strip)
    names = dict(zip(dict.fromkeys(line.name for line in lines), styles(), strict=False))
    for axis, panel in zip(axes, panels, strict=True):
        dataset, task = panel
        if task == "linear" and dataset in published:
            _draw_published(axis, published[dataset])
        for line in lines:
            if line.panel == panel:
                label = _label(line.name, lines)
                _draw(axis, line, label, names[line.name], connect=which.key != "distance")
        dress(
            axis,
            f"{dataset}: {HEADINGS[task]}",
            wrapped(which.label, _WIDTH - 0.5),
            "top-1 accuracy (%)",
        )
        if which.key == CANDIDATES:
            _logarithmic(axis)
    if strip is not None and below is not None:
        draw_tiles(below, *strip, gaps={1: 0.4})
    several = any(cell.n > 1 for line in lines for cell in line.points.values())
    note = f"{_BARS if several else 'One seed a point'}. {measured(options.protocol).capitalize()}."
    if published:
        note += " Published numbers: protocol paper."
    note += about + stale_note(records)
    legend(figure, axes, note)
    return Picture(which.name, which.title, note, figure)


def _panels(
    number: int, strip: tuple[np.ndarray, list[str]] | None
) -> tuple[Figure, list[Axes], Axes | None]:
    """Make axes for the lines in rows of at most two, and one below them for images (or None)."""
    columns = min(2, number)
    rows = -(-number // columns)
    width = _WIDTH * columns + 1.6 * (columns == 1)
    height = 0.95 * _ANCHORS if strip is not None else 0.0
    figure = new_figure(width, 3.5 * rows + height)
    heights = [3.5] * rows + [height] * (strip is not None)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    axes = [figure.add_subplot(grid[n // columns, n % columns]) for n in range(number)]
    return figure, axes, figure.add_subplot(grid[-1, :]) if strip is not None else None


def _label(name: str, lines: Sequence[_Line]) -> str:
    """Return a family's label, which is the same in all panels."""
    cells = [cell for line in lines if line.name == name for cell in line.points.values()]
    mark = " †" if any(cell.stale for cell in cells) else ""
    return f"{name} ({among([cell.n for cell in cells])}){mark}"


def _draw(axis: Axes, line: _Line, label: str, style: dict[str, Any], connect: bool) -> None:
    cells = list(line.points.values())
    means = [cell.mean for cell in cells if cell.mean is not None]  # never None, see _lines
    axis.errorbar(
        list(line.points), means, [cell.std or 0.0 for cell in cells],
        label=label, linewidth=1.8, markersize=6, capsize=3, elinewidth=1.2,
        markeredgecolor="white", markeredgewidth=0.6,
        **{**style, "linestyle": style["linestyle"] if connect else "none"},
    )  # fmt: skip


def _draw_published(axis: Axes, curve: dict[float, float]) -> None:
    axis.plot(
        list(curve), list(curve.values()), color=MUTED, linewidth=1.1, linestyle=(0, (1, 2)),
        marker="*", markersize=8, markerfacecolor="white",
        label="published: CLSP-SimCLR, ResNet-18, 1000 epochs (n not stated)",
    )  # fmt: skip


def _logarithmic(axis: Axes) -> None:
    axis.set_xscale("log", base=2)
    values = sorted({float(x) for line in axis.lines for x in np.asarray(line.get_xdata())})
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.xaxis.set_minor_locator(NullLocator())


def _images_by_w(family: Group) -> tuple[np.ndarray, list[str]]:
    """Return anchors and their first candidates under each w, (R, C, H, W, 3), and headings."""
    stores: dict[float, CandidateStore] = {}
    anchors: Images | None = None
    for path, record in family.records:
        w = value_of(record, "candidates.w")
        if w not in stores:
            stores[w] = store_of(path, record)
            if anchors is None:
                anchors = images_of(path, record, "train")
                check_store(stores[w], anchors)
    assert anchors is not None  # a family has at least one run
    rows = some_of_each(anchors, _ANCHORS)
    size = next(iter(stores.values())).width
    columns = [anchors.taken(torch.tensor(rows), size).images.numpy()]
    columns += [stores[w].images(rows)[:, 0] for w in sorted(stores)]
    return np.stack(columns, axis=1), ["anchor", *(f"w = {w:g}" for w in sorted(stores))]
