"""A table of accuracies, with mean and spread over seeds, and its caption."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp, ttest_ind

from clsp_plugin.evaluation.names import PROTOCOLS, TRANSFER_PROTOCOLS
from clsp_plugin.records.recipe import BUDGET
from clsp_plugin.tables.formats import Grid, GridCell, counted, csv_cell
from clsp_plugin.tables.published import (
    BACKBONE,
    Published,
)
from clsp_plugin.tables.rows import (
    LAYOUTS,
    TASKS,
    Cell,
    Row,
    varying,
)

__all__ = ["Table"]

_HEADINGS = {"num_train": "images"}
_LEVEL = 0.05  # significance level of the test that makes a number bold


@dataclass(frozen=True)
class Table:
    """The rows of a table as data, and how they are laid out.

    Attributes:
        rows: in the order in which they are shown.
        protocol: the protocol by which k, the learning rate or the regularisation was chosen.
        published: whether the paper's numbers stand beside ours.
        by: dotted configuration keys that tell rows apart.
        commits: commits of the code, each once.
        hardware: hardware of the runs, each once.
        layout: one of ``LAYOUTS``.
        decimals: decimals of the numbers that are shown; CSV has all digits.
        notes: sentences that the caption ends with.
    """

    rows: tuple[Row, ...]
    protocol: str
    published: bool
    by: tuple[str, ...]
    commits: tuple[str, ...]
    hardware: tuple[str, ...]
    layout: str = "main"
    decimals: int = 1
    notes: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        return LAYOUTS[self.layout]

    def to_csv(self) -> str:
        """Return CSV with a line per row: names, budget, parts of every cell, the paper's numbers.

        Accuracies are in percent, with all digits. ``{task}_stale`` says what has changed since a
        number was made: ``numerics``, ``settings`` or both.
        """
        out = io.StringIO()
        variants = ["variant"] * any(row.variant for row in self.rows)
        names = ["method", *variants, "dataset", "evaluated_on", *BUDGET, *self.by, "protocol"]
        parts = ("n", "mean", "std", "failed", "stale")
        names += [f"{task}_{part}" for task in self.tasks for part in parts]
        if self.published:
            names += [f"{word}_{task}" for task in self.tasks for word in ("paper", "minus_paper")]
            names.append("paper_epochs")
        writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
        writer.writerow({name: csv_cell(name) for name in names})
        for row in self.rows:
            line: dict[str, Any] = {"method": row.method, "dataset": row.dataset}
            line |= {"variant": row.variant} if variants else {}
            line |= {"evaluated_on": row.target, **row.budget, "protocol": self.protocol}
            for task in self.tasks:
                cell = row.cells[task]
                line |= {f"{task}_{part}": getattr(cell, part) for part in parts}
                old = ["numerics"] * cell.stale + ["settings"] * bool(cell.changed)
                line[f"{task}_stale"] = " and ".join(old)
                if row.paper:
                    number = getattr(row.paper, task)
                    known = None not in (number, cell.mean)
                    line[f"paper_{task}"] = number
                    line[f"minus_paper_{task}"] = cell.mean - number if known else None
            if row.paper:
                line["paper_epochs"] = row.paper.epochs
            writer.writerow({k: "" if v is None else csv_cell(v) for k, v in line.items()})
        return out.getvalue()

    def to_markdown(self, base: Path | None = None) -> str:
        """Return the table as Markdown, see :meth:`render`."""
        return self.grid().to_markdown(base)

    def render(self, layout: str, base: Path | None = None) -> str:
        """Return the table as text.

        Args:
            layout: one of ``formats.FORMATS``; ``csv`` has a line per row and every digit.
            base: folder of the file that the text is written to, for links to the records. Without
                it there are no links, and CSV and LaTeX never have any.
        """
        return self.to_csv() if layout == "csv" else self.grid().render(layout, base)

    def grid(self) -> Grid:
        """Return rows and columns as they are shown, and a caption."""
        extra = self._extra()
        lines: dict[tuple, dict[str, Row]] = {}
        for row in self.rows:
            lines.setdefault(self._key(row, extra), {})[self._column(row)] = row
        columns = list(dict.fromkeys(map(self._column, self.rows)))
        names = [_HEADINGS.get(name, name) for name in extra]
        head = ([] if self.layout == "ablation" else ["method"]) + names
        left = len(head)
        head.append("n")
        for column in columns:
            head += [
                f"{column} {n}".strip() if len(columns) > 1 else n for n in self._names(column)
            ]
        best = {
            (column, task): self._best(lines, column, task)
            for column in columns
            for task in self.tasks
        }
        body = tuple(self._line(key, rows, columns, best) for key, rows in lines.items())
        return Grid(tuple(head), body, left, self._caption(any(best.values())))

    def label(self, row: Row) -> str:
        """Return what tells a row from the others: its method, and settings that differ."""
        return ", ".join(str(part) for part in self._key(row, self._extra()) if part != "")

    def _extra(self) -> tuple[str, ...]:
        """Return the names of what tells rows apart besides the method."""
        return (*self.by, *self._shown_budget()) if self.layout == "ablation" else (
            *self._shown_budget(), *self.by)  # fmt: skip

    def _key(self, row: Row, extra: Sequence[str]) -> tuple:
        unknown = BUDGET[1:] if row.from_elsewhere else ()  # epochs and images
        values = tuple("" if name in unknown else row.budget[name] for name in extra)
        return values if self.layout == "ablation" else (row.name, *values)

    def _column(self, row: Row) -> str:
        several = self.layout == "ablation" and len({r.name for r in self.rows}) > 1
        return f"{row.name} {row.heading}" if several else row.heading

    def _shown_budget(self) -> list[str]:
        """The parts of the budget in which rows of one data set differ."""
        return varying(
            (row.dataset, {name: row.budget[name] for name in BUDGET})
            for row in self.rows
            if not row.from_elsewhere
        )

    def _has_paper(self, column: str) -> bool:
        return any(row.paper for row in self.rows if self._column(row) == column)

    def _names(self, column: str) -> list[str]:
        names = [TASKS[task] if self.layout != "transfer" else "" for task in self.tasks]
        if not self._has_paper(column):
            return names
        return [*names, *(f"paper {name}".strip() for name in names)]

    def _best(self, lines: Mapping, column: str, task: str) -> tuple | None:
        """Return the line that is above all others of a column by a t-test, or None.

        Encoders from elsewhere, which have no seeds, take no part.
        """
        cells = {
            key: rows[column].cells[task]
            for key, rows in lines.items()
            if column in rows and not rows[column].from_elsewhere
        }
        cells = {key: cell for key, cell in cells.items() if cell.mean is not None}
        if len(cells) < 2:
            return None
        best = max(cells, key=lambda key: cells[key].mean)
        others = (cell for key, cell in cells.items() if key != best)
        return best if all(_above(cells[best], other) for other in others) else None

    def _line(
        self, key: tuple, rows: Mapping[str, Row], columns: Sequence[str], best: Mapping
    ) -> tuple[GridCell, ...]:
        counts = {rows[c].cells[task].n for c in rows for task in self.tasks} - {0}
        line = [*(GridCell(str(part)) for part in key), GridCell(_range(counts))]
        for column in columns:
            row = rows.get(column)
            ours = [row.cells[task] if row else Cell.of({}) for task in self.tasks]
            for task, cell in zip(self.tasks, ours, strict=True):
                text = cell.text(self.decimals, count=bool(cell.n) and len(counts) > 1)
                bold = best[column, task] is not None and best[column, task] == key
                line.append(GridCell(text, bold, cell.paths))
            if self._has_paper(column):
                paper = row.paper if row else None
                line += [
                    GridCell(self._beside(cell, paper, task))
                    for task, cell in zip(self.tasks, ours, strict=True)
                ]
        return tuple(line)

    def _beside(self, cell: Cell, paper: Published | None, task: str) -> str:
        """Return the published number, and how far ours is from it, as text."""
        if paper is None:
            return ""
        number = getattr(paper, task)
        if number is None:
            return "none"
        if cell.mean is None:
            return f"{number:.2f}"
        return f"{number:.2f} ({cell.mean - number:+.{self.decimals}f})"

    def _caption(self, any_bold: bool) -> str:
        counts = {row.cells[task].n for row in self.rows for task in self.tasks} - {0}
        budgets = dict.fromkeys(map(self._budget, self.rows))
        what = "Top-1 accuracy" if self.layout != "transfer" else (
            "Linear accuracy of frozen features (mean per class for pets, flowers and caltech101, "
            "top-1 otherwise)")  # fmt: skip
        protocols = TRANSFER_PROTOCOLS if self.layout == "transfer" else PROTOCOLS
        parts = [
            f"{what} in percent on test images. Protocol {self.protocol}: "
            f"{protocols[self.protocol]}.",
            *self._alone(),
            "One seed, so no spread."
            if counts == {1}
            else f"Mean ± sample standard deviation over n = {_range(counts) or 'no'} seeds.",
            *([self._test(any_bold)] if counts and max(counts) > 1 and len(self.rows) > 1 else []),
            *(f"{budget}." for budget in budgets),
            f"Commit: {', '.join(self.commits) or 'none'}.",
            f"Hardware: {', '.join(self.hardware) or 'none'}.",
        ]
        if self.published:
            parts.append(self._sources())
        return " ".join([*parts, *self.notes])

    def _alone(self) -> list[str]:
        """Return a sentence with the one method of an ablation, which no column names."""
        names = list(dict.fromkeys(row.name for row in self.rows))
        return [f"Method: {names[0]}."] * (self.layout == "ablation" and len(names) == 1)

    def _test(self, any_bold: bool) -> str:
        seeds = {
            frozenset(cell.seeds)
            for row in self.rows
            for task in self.tasks
            if (cell := row.cells[task]).n
        }
        kind = "paired t-test" if len(seeds) == 1 else (
            "t-test, paired where both have the same seeds and else Welch's,")  # fmt: skip
        elsewhere = any(row.from_elsewhere for row in self.rows)
        trained = " that was trained here" if elsewhere else ""
        test = f"{kind} over seeds, two-sided p < {_LEVEL}"
        if any_bold:
            return f"Bold: above every other number of its column{trained} ({test} against each)."
        return f"No number is bold: none is above every other of its column{trained} by a {test}."

    def _budget(self, row: Row) -> str:
        """Return a row's budget, without what is in a column.

        For example ``Pre-training on digits: resnet18, 20 epochs``.
        """
        if row.from_elsewhere:
            return f"{row.name}: weights from elsewhere"
        images = row.budget["num_train"]
        phrases = {
            "backbone": f"{row.budget['backbone']}",
            "epochs": counted(row.budget["epochs"], "epoch"),
            "num_train": counted(images, "image", ",") if isinstance(images, int) else "",
        }
        shown = [phrases[name] for name in BUDGET if name not in self._shown_budget()]
        shown = [phrase for phrase in shown if phrase]
        return f"Pre-training on {row.dataset}{': ' if shown else ''}{', '.join(shown)}"

    def _sources(self) -> str:
        papers = [(row.paper, row.budget["epochs"]) for row in self.rows if row.paper]
        if not papers:
            return (
                f"The paper has no numbers for these (it has CIFAR-10 and CIFAR-100, {BACKBONE})."
            )
        if self.layout == "transfer":
            return (
                "Paper columns: Zeng et al., ECCV 2024, transfer tables; in brackets ours minus "
                "the paper's."
            )
        usual = max(paper.epochs for paper, _ in papers if paper.epochs is not None)
        several = {paper.name for paper, _ in papers if paper.epochs == usual}
        others = dict.fromkeys(
            f"{paper.name} {paper.epochs}"
            + f" beside our {ours}" * (paper.name in several)  # rows of one method
            for paper, ours in papers
            if paper.epochs != usual
        )
        but = f" ({', '.join(others)})" if others else ""
        return (
            f"Paper columns: Zeng et al., ECCV 2024, {BACKBONE}, all training images, {usual} "
            f"epochs{but}, best k on the test images; in brackets ours minus the paper's."
        )


def _above(best: Cell, other: Cell) -> bool:
    """Whether a mean is above another one by a t-test over seeds.

    The test is paired where both have the same seeds, since runs of one seed share their first
    weights, the order of the images and their views; otherwise it is Welch's. False where there
    is no spread to hold the difference against.
    """
    if best.n < 2 or other.n < 2:
        return False
    if best.seeds.keys() == other.seeds.keys():
        differences = [best.seeds[seed] - other.seeds[seed] for seed in best.seeds]
        if len(set(differences)) == 1:
            return False
        result = ttest_1samp(differences, 0.0)
    else:
        if best.std == other.std == 0:
            return False
        ours, theirs = (list(cell.seeds.values()) for cell in (best, other))
        result = ttest_ind(ours, theirs, equal_var=False)
    return bool(result.statistic > 0 and result.pvalue < _LEVEL)


def _range(counts: Iterable[int]) -> str:
    counts = sorted(counts)
    return " to ".join(str(n) for n in dict.fromkeys((*counts[:1], *counts[-1:])))
