"""Figures of losses and accuracies over the epochs."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from clsp_plugin.errors import ClspError
from clsp_plugin.figures.groups import Group, group
from clsp_plugin.figures.picture import (
    HEADINGS,
    Options,
    Picture,
    among,
    measured,
    sentence,
    stale_note,
)
from clsp_plugin.figures.style import dress, legend, new_figure, save, styles
from clsp_plugin.records.recipe import Records, check_alike, check_seeds
from clsp_plugin.records.record import evaluated_on
from clsp_plugin.tables.make import Listing
from clsp_plugin.tables.published import authors_curve
from clsp_plugin.tables.rows import TASKS

__all__ = ["accuracy_curves", "training_curves"]

_ONLINE = "online probe, test images"
_MARKERS = 8  # largest number per line, about
# data set, task (None: the online probe) and what is drawn of each group, by epoch
_Panel = tuple[str, str | None, dict[Group, dict[int, list[float]]]]


def training_curves(records: Records, path: str | Path, told: Listing | None = None) -> None:
    """Write a PNG or SVG with the training loss and the online probe's accuracy by epoch.

    A line is the mean over the seeds of a method, its band their range. Runs of a method with other
    budgets or settings get lines of their own. Epochs without a number are left out.

    Args:
        records: pairs of a path and its record, as ``find_records`` returns them.
        path: path of the file.
        told: what suites say of the records.

    Raises:
        ClspError: no record has a curve, or two records of one line have the same seed.
    """
    groups = group(records, told=told)
    for one in groups:
        check_seeds(one.records)
    panels = (
        ("train_loss", "pre-training", "training loss"),
        ("val_acc1", "online linear probe", "validation top-1 accuracy (%)"),
    )
    present = [panel for panel in panels if any(_series(g.records, panel[0]) for g in groups)]
    if not present:
        raise ClspError(
            f"None of the {len(records)} records has a training curve; name records of runs that "
            f"`clsp pretrain` finished."
        )
    figure = new_figure(5.2 * len(present) + 0.6, 3.7)
    axes = figure.subplots(1, len(present), squeeze=False)[0]
    for axis, (key, title, label) in zip(axes, present, strict=True):
        for one, style in zip(groups, styles(), strict=False):
            counts = [_series(one.records, panel[0]) for panel in present]
            _draw(axis, _series(one.records, key), _counted(one.name, counts), style)
        _dress(axis, title, label)
    legend(figure, axes, _spread(groups))
    save(figure, path)


def accuracy_curves(records: Records, options: Options) -> Iterator[Picture | str]:
    """Draw accuracy against epochs: of checkpoints that were evaluated, else of the online probe.

    Args:
        records: pairs of a path and its record.
        options: options of the figures.

    Yields:
        A picture, with a panel for each data set and evaluation; and lines for what could not be
        drawn.

    Raises:
        ClspError: there is nothing to draw, or two records of one line have the same seed.
    """
    groups = group(records, several=False, told=options.told)
    panels = []
    for dataset in dict.fromkeys(record.dataset for _, record in records):
        own = [one for one in groups if one.dataset == dataset]
        found: list[_Panel] = [
            (dataset, task, lines)
            for task in ("linear", "knn")
            if (lines := _evaluated(own, task, options.protocol))
        ]
        if not found:
            yield (
                f"{dataset}: no run was evaluated at two epochs (protocol {options.protocol}), so "
                f"accuracy against epochs is the online probe's; keep checkpoints "
                f"(checkpoint.keep_prev=True checkpoint.frequency=N) and give each to `clsp linear`"
            )
            lines = {one: series for one in own if (series := _series(one.records, "val_acc1"))}
            found = [(dataset, None, lines)] if lines else []
        for _, task, lines in found:
            if task and (left := [one.name for one in own if one not in lines]):
                more = f" and {len(left) - 2} more" if len(left) > 2 else ""
                yield (
                    f"{dataset}, {task} against epochs, without {'; '.join(left[:2])}{more}: "
                    f"evaluated at one epoch or none; evaluate further checkpoints"
                )
        panels += found
    if not panels:
        raise ClspError("no record has a curve; name records of runs that `clsp pretrain` finished")
    for _, _, lines in panels:
        for one in lines:
            check_seeds(one.records)
    yield _accuracy_picture(groups, panels, options)
    if options.published and not any(_published(one) for one in groups):
        yield "published curves: the authors' repository has none for these methods and data sets"


def _accuracy_picture(
    groups: Sequence[Group], panels: Sequence[tuple], options: Options
) -> Picture:
    groups = [one for one in groups if any(one in lines for _, _, lines in panels)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.9 * columns + 1.2, 3.7 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[len(panels) :]:
        spare.remove()
    drawn: list = []
    counts = {
        one.name: [lines[o] for _, _, lines in panels for o in lines if o.name == one.name]
        for one in groups
    }
    looks = dict(zip(dict.fromkeys(one.name for one in groups), styles(), strict=False))
    for axis, (dataset, task, lines) in zip(axes, panels, strict=False):
        for one in groups:
            style = looks[one.name]
            if one in lines:
                drawn += one.records
                _draw(axis, lines[one], _counted(one.name, counts[one.name]), style)
                if options.published and task != "knn":
                    _draw_published(axis, one, style)
        what = _ONLINE if task is None else f"{HEADINGS[task]} on frozen features"
        _dress(axis, f"{dataset}: {what}", "top-1 accuracy (%)")
    words = [_spread(groups)]
    if any(task is None for _, task, _ in panels):
        words.append("the online probe learns beside the backbone, from augmented views")
    if any(task for _, task, _ in panels):
        words.append(measured(options.protocol))
    if options.published and any(_published(one) for one in groups):
        words.append("hollow marks: linear accuracy of the authors' runs, as published")
    note = " ".join(map(sentence, words)) + stale_note(drawn)
    legend(figure, axes[: len(panels)], note)
    return Picture("accuracy-epochs", "Accuracy against epochs", note, figure)


def _evaluated(
    groups: Sequence[Group], task: str, protocol: str
) -> dict[Group, dict[int, list[float]]]:
    """Return groups that were evaluated at two epochs or more, with epoch to the seeds' accuracies.

    Raises:
        ClspError: evaluations of one group were not made in the same way.
    """
    out = {}
    for one in groups:
        series: dict[int, list[float]] = {}
        found = []
        for path, record in one.records:
            wanted = (task, protocol, record.dataset)
            for e in record.evaluations:
                if (e["task"], e["protocol"], evaluated_on(e)) == wanted and e["top1"] is not None:
                    series.setdefault(e["epoch"], []).append(e["top1"])
                    found.append((path, e))
        if len(series) > 1:
            check_alike(found, TASKS[task], epoch=False)
            out[one] = dict(sorted(series.items()))
    return out


def _published(one: Group) -> dict[int, float]:
    return authors_curve(one.method, one.dataset, one.records[0][1].backbone)


def _draw_published(axis: Axes, one: Group, style: Mapping[str, Any]) -> None:
    curve = _published(one)
    if curve:
        axis.plot(
            list(curve), list(curve.values()), label=f"{one.method}, published (n = 1)",
            color=style["color"], marker=style["marker"], linewidth=0.9, linestyle=(0, (1, 2)),
            markersize=5, markerfacecolor="white",
        )  # fmt: skip


def _series(members: Records, key: str) -> dict[int, list[float]]:
    """Return epoch to the numbers of the seeds that have one, by ascending epoch."""
    out: dict[int, list[float]] = {}
    for _, record in members:
        for point in record.curve:
            if point.get(key) is not None:
                out.setdefault(point["epoch"], []).append(point[key])
    return dict(sorted(out.items()))


def _counted(name: str, lines: Sequence[Mapping[int, Sequence[float]]]) -> str:
    """Return a group's name with the number of seeds per point, over all of its lines."""
    counts = [len(values) for line in lines for values in line.values()]
    return f"{name} ({among(counts)})" if counts else name


def _draw(
    axis: Axes, series: Mapping[int, Sequence[float]], label: str, style: Mapping[str, Any]
) -> None:
    if not series:
        return
    epochs, values = list(series), list(series.values())
    place = len(axis.lines)  # so that markers of different lines stand at different epochs
    every = max(1, len(epochs) // _MARKERS)
    axis.plot(
        epochs, [statistics.fmean(v) for v in values], label=label, linewidth=1.8, markersize=5,
        markevery=(place * every // 4 % every, every), markeredgecolor="white",
        markeredgewidth=0.6, **style,
    )  # fmt: skip
    lowest, highest = ([f(v) for v in values] for f in (min, max))
    axis.fill_between(epochs, lowest, highest, color=style["color"], alpha=0.16, linewidth=0)


def _dress(axis: Axes, title: str, label: str) -> None:
    dress(axis, title, "epoch", label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _spread(groups: Iterable[Group]) -> str:
    several = any(len(one.records) > 1 for one in groups)
    return "mean over n seeds; band: lowest to highest seed" if several else "one seed each"
