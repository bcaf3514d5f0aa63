"""The rows of a table as a figure: the accuracy of each, and of each of its seeds."""

from collections.abc import Iterator

from matplotlib.axes import Axes

from clsp_plugin.errors import ClspError
from clsp_plugin.figures.picture import (
    HEADINGS,
    Options,
    Picture,
    among,
    measured,
    sentence,
    stale_note,
)
from clsp_plugin.figures.style import COLOURS, INK, RULE, dress, new_figure, wrapped
from clsp_plugin.records.recipe import Records
from clsp_plugin.tables.make import make_table
from clsp_plugin.tables.rows import Row
from clsp_plugin.tables.table import Table

__all__ = ["accuracy_rows"]

_WIDTH, _HEIGHT = 4.4, 0.235  # inches, of a panel and of a row
_NOTE = 0.2  # inches, of a line of the note


def accuracy_rows(records: Records, options: Options) -> Iterator[Picture | str]:
    """Draw a line for each row of the table of some records, in the order of the table.

    Args:
        records: pairs of a path and its record.
        options: options of the figures.

    Yields:
        A picture for each data set that two rows or more are of, with a panel for each evaluation.

    Raises:
        ClspError: no data set has two rows, or the records make no table.
    """
    table = make_table(records, protocol=options.protocol, **vars(options.told))
    found: dict[str, list[Row]] = {}
    for row in table.rows:
        if row.target == row.dataset and any(cell.n for cell in row.cells.values()):
            found.setdefault(row.dataset, []).append(row)
    found = {dataset: rows for dataset, rows in found.items() if len(rows) > 1}
    if not found:
        raise ClspError("no two rows of a data set have an accuracy; pre-train with other methods")
    for dataset, rows in found.items():
        name = f"accuracy-rows-{dataset}" if len(found) > 1 else "accuracy-rows"
        yield _picture(name, dataset, rows, table, records, options)


def _picture(
    name: str, dataset: str, rows: list[Row], table: Table, records: Records, options: Options
) -> Picture:
    tasks = [task for task in HEADINGS if any(row.cells[task].n for row in rows)]
    width = _WIDTH * len(tasks) + 0.08 * max(len(table.label(row)) for row in rows)
    seeds = [row.cells[task].n for row in rows for task in tasks if row.cells[task].n]
    several = max(seeds) > 1
    spread = "Dots: seeds; diamond: their mean; bar: sample standard deviation" if several else (
        "One seed a row")  # fmt: skip
    own = [(path, record) for path, record in records if record.dataset == dataset]
    text = f"{spread} ({among(seeds)}). {sentence(measured(options.protocol))}{stale_note(own)}"
    note = wrapped(text, width)
    lines = note.count("\n") + 1
    figure = new_figure(width, 0.9 + _HEIGHT * len(rows) + _NOTE * lines)
    axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axis, task in zip(axes, tasks, strict=True):
        for place, row in enumerate(rows):
            _draw(axis, place, row, task)
        dress(axis, f"{dataset}: {HEADINGS[task]}", "top-1 accuracy (%)", "")
    axes[0].set_yticks(range(len(rows)), [table.label(row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)  # the first row at the top
    figure.supxlabel(note, fontsize=9)
    return Picture(name, f"Accuracy of every row, {dataset}", text, figure)


def _draw(axis: Axes, place: int, row: Row, task: str) -> None:
    cell = row.cells[task]
    if cell.mean is None:
        return
    if cell.n > 1:
        axis.errorbar(cell.mean, place, xerr=cell.std, color=RULE, capsize=3, linewidth=1.2)
        values = list(cell.seeds.values())
        axis.plot(values, [place] * cell.n, "o", color=COLOURS[0], markersize=3.5, alpha=0.55)
    axis.plot(cell.mean, place, "D", color=INK, markersize=4.5, markeredgecolor="white",
              markeredgewidth=0.6)  # fmt: skip
