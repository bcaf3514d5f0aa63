"""Tables from records: mean and spread over seeds, and nothing merged that differs."""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scipy.stats import ttest_ind_from_stats

from clsp_plugin.benchmark.grid import Grid, GridCell, counted, csv_cell
from clsp_plugin.benchmark.published import (
    BACKBONE,
    Published,
    published,
    published_ablation,
    published_transfer,
)
from clsp_plugin.benchmark.stale import CHANGED, STALE, changed, is_stale
from clsp_plugin.data.downstream import DOWNSTREAM
from clsp_plugin.data.images import DATASETS
from clsp_plugin.engine.config import Data, num_devices
from clsp_plugin.engine.record import Record, evaluated_on, read_index
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.evaluation.protocol import PROTOCOLS, check_protocol
from clsp_plugin.evaluation.transfer import TRANSFER_PROTOCOLS

__all__ = [
    "BUDGET", "LAYOUTS", "TASKS", "Absent", "Cell", "Listing", "Row", "Table", "check_alike",
    "check_seeds", "commit_of", "family_order", "hardware_of", "holds", "listing", "make_table",
    "recipe", "varying",
]  # fmt: skip

Records = Sequence[tuple[Path, Record]]

# An evaluation's heading.
TASKS = {"linear": "linear", "knn": "kNN", "finetune": "fine-tuned", "transfer": "transfer"}
# A layout to the evaluations that it shows.
LAYOUTS = {
    "main": ("linear", "knn"),
    "finetune": ("finetune",),
    "transfer": ("transfer",),
    "ablation": ("linear", "knn"),
}
BUDGET = ("backbone", "epochs", "num_train")
_HEADINGS = {"num_train": "images"}
_LEVEL = 0.05  # of the test that makes a number bold
# Families stay together: a method, its controls, then the method with synthetic positives.
_ORDER = (
    "simclr", "simclr_aug", "simclr_ft", "dcl", "clsp_noaug", "clsp_simclr",
    "mocov2plus", "mocov2_aug", "mocov2_ft", "clsp_mocov2", "clsp_mocov2plus",
    "cl_gan", "byol", "clsp_byol",
)  # fmt: skip
# Blocks of a configuration that records must share to be averaged; the files may lie elsewhere.
_RECIPE = (
    "backbone", "optimizer", "scheduler", "method_kwargs", "momentum", "synthetic",
    "augmentations", "joint_forward",
)  # fmt: skip
# Further settings that they must share; not where images lie or how many workers read them.
_IMAGES = (
    "no_labels", "fraction", "extra", "replicate", "image_size", "num_val", "seed", "mean", "std",
    "num_large_crops", "num_small_crops",
)  # fmt: skip
_FOLDERS = ("train_path", "val_path")  # which images they are, where no data set has a name
_PRECISIONS = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_NONE = object()  # where a record has no such setting
_NOT_RECIPE = {"synthetic.path", "candidates.seed", "optimizer.batch_size"}


@dataclass(frozen=True)
class Absent:
    """A run that was wanted and has no number.

    Attributes:
        method: its name.
        dataset: that it was to be pre-trained on.
        seed: of it.
        budget: what is known of ``backbone``, ``epochs`` and ``num_train``.
        reason: why, for people.
        point: the values of what a suite varies.
        tasks: the evaluations that it lacks; none named: all.
        variant: a suite's name for a method with settings of its own.
        protocol: of the evaluations that it lacks; none named: any.
    """

    method: str
    dataset: str
    seed: int
    budget: Mapping[str, Any]
    reason: str
    point: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    variant: str = ""
    protocol: str = ""

    def lacks(self, task: str) -> bool:
        """Whether the number of an evaluation is not there."""
        return not self.tasks or task in self.tasks


@dataclass(frozen=True)
class Cell:
    """Accuracy of some seeds, in percent.

    Attributes:
        n: seeds with a number.
        mean: over them; None without any.
        std: sample standard deviation (n - 1 in the denominator); None below two.
        stale: whether a number was made by other numerics than today's.
        changed: configurations that say something else today than a number was made by.
        failed: seeds that were wanted and have no number.
        paths: of the records.
    """

    n: int
    mean: float | None
    std: float | None
    stale: bool = False
    changed: tuple[str, ...] = ()
    failed: int = 0
    paths: tuple[Path, ...] = ()

    @classmethod
    def of(cls, values: Sequence[float], **more: Any) -> "Cell":
        return cls(
            len(values),
            statistics.fmean(values) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
            **more,
        )

    def text(self, decimals: int = 1, *, count: bool = False) -> str:
        """Mean and deviation, with the number of seeds if asked for, and the marks."""
        if self.mean is None:
            return "failed" if self.failed else ""
        spread = "" if self.std is None else f" ± {self.std:.{decimals}f}"
        notes = [f"n = {self.n}"] * count + [f"{self.failed} failed"] * bool(self.failed)
        more = f" ({', '.join(notes)})" if notes else ""
        return f"{self.mean:.{decimals}f}{spread}{more}" + self.marks

    @property
    def marks(self) -> str:
        return STALE * self.stale + CHANGED * bool(self.changed)


@dataclass(frozen=True)
class Row:
    """One group of records that differ in the seed alone, evaluated on one data set.

    Attributes:
        method: its name.
        dataset: pre-trained on.
        target: evaluated on, see ``engine.record.evaluated_on``.
        budget: the group's ``backbone``, ``epochs``, ``num_train``, and what ``by`` names.
        cells: a task to its accuracy.
        paper: the published numbers, if asked for and there are any.
        variant: a suite's name for a method with settings of its own.
    """

    method: str
    dataset: str
    target: str
    budget: dict[str, Any]
    cells: dict[str, Cell]
    paper: Published | None
    variant: str = ""

    @property
    def name(self) -> str:
        return self.variant or self.method

    @property
    def heading(self) -> str:
        own = self.target == self.dataset or self.target.startswith(f"{self.dataset} [")
        return self.target if own else f"{self.dataset} → {self.target}"


@dataclass(frozen=True)
class Table:
    """Rows as data, and how they are laid out.

    Attributes:
        rows: by method family, data set and budget.
        protocol: that chose k, the learning rate or the regularisation.
        published: whether the paper's numbers stand beside ours.
        by: dotted configuration keys that tell rows apart.
        commits: of the code, each once.
        hardware: of the runs, each once.
        layout: one of ``LAYOUTS``.
        decimals: of the numbers that are shown; CSV has all.
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
        """A line a row: names; of each task the parts of a cell, numbers in percent; the paper's.

        ``{task}_stale`` says what is of an older version: ``numerics``, ``settings`` or both.
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
            line = {"method": row.method, "dataset": row.dataset, "evaluated_on": row.target}
            line |= {"variant": row.variant} if variants else {}
            line |= {**row.budget, "protocol": self.protocol}
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
        """See :meth:`render`."""
        return self.grid().to_markdown(base)

    def render(self, layout: str, base: Path | None = None) -> str:
        """The table as text.

        Args:
            layout: one of ``grid.FORMATS``; ``csv`` has a line a row and every digit.
            base: the folder of the file that it is written to, for links to the records;
                without it there are none. CSV and LaTeX have none.
        """
        return self.to_csv() if layout == "csv" else self.grid().render(layout, base)

    def grid(self) -> Grid:
        """Rows and columns as they are shown, and a caption."""
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

    def _extra(self) -> tuple[str, ...]:
        """What tells rows apart besides the method."""
        return (*self.by, *self._shown_budget()) if self.layout == "ablation" else (
            *self._shown_budget(), *self.by)  # fmt: skip

    def _key(self, row: Row, extra: Sequence[str]) -> tuple:
        values = tuple(row.budget[name] for name in extra)
        return values if self.layout == "ablation" else (row.name, *values)

    def _column(self, row: Row) -> str:
        several = self.layout == "ablation" and len({r.name for r in self.rows}) > 1
        return f"{row.name} {row.heading}" if several else row.heading

    def _shown_budget(self) -> list[str]:
        """The parts of the budget in which rows of one data set differ."""
        return varying(
            (row.dataset, {name: row.budget[name] for name in BUDGET}) for row in self.rows
        )

    def _has_paper(self, column: str) -> bool:
        return any(row.paper for row in self.rows if self._column(row) == column)

    def _names(self, column: str) -> list[str]:
        names = [TASKS[task] if self.layout != "transfer" else "" for task in self.tasks]
        if not self._has_paper(column):
            return names
        return [*names, *(f"paper {name}".strip() for name in names)]

    def _best(self, lines: Mapping, column: str, task: str) -> tuple | None:
        """The line whose number is above every other of its column, by the test."""
        cells = {key: rows[column].cells[task] for key, rows in lines.items() if column in rows}
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
            ours = [row.cells[task] if row else Cell.of([]) for task in self.tasks]
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
        """The published number, and how far ours is from it."""
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
        """The one method of an ablation, which no column names."""
        names = list(dict.fromkeys(row.name for row in self.rows))
        return [f"Method: {names[0]}."] * (self.layout == "ablation" and len(names) == 1)

    @staticmethod
    def _test(any_bold: bool) -> str:
        test = f"Welch's t-test over seeds, two-sided p < {_LEVEL}"
        if any_bold:
            return f"Bold: above every other number of its column ({test} against each)."
        return f"No number is bold: none is above every other of its column by {test}."

    def _budget(self, row: Row) -> str:
        """A row's share of the budget that is not in a column: ``digits: resnet18, 20 epochs``."""
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
        usual = max(paper.epochs for paper, _ in papers)
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
    """Whether Welch's t-test tells two means apart; no spread, no test."""
    if best.std is None or other.std is None or best.std == other.std == 0:
        return False
    p = ttest_ind_from_stats(
        best.mean, best.std, best.n, other.mean, other.std, other.n, equal_var=False
    ).pvalue
    return bool(best.mean > other.mean and p < _LEVEL)


def _range(counts: Iterable[int]) -> str:
    counts = sorted(counts)
    return " to ".join(str(n) for n in dict.fromkeys((*counts[:1], *counts[-1:])))


def make_table(
    records: Records,
    *,
    protocol: str = "strict",
    published: bool = False,
    by: Sequence[str] = (),
    layout: str = "main",
    decimals: int = 1,
    absent: Sequence[Absent] = (),
    points: Mapping[Path, Mapping[str, Any]] | None = None,
    variants: Mapping[Path, str] | None = None,
) -> Table:
    """Average records over seeds.

    Records are one group when method, variant, data set, backbone, epochs and number of images
    agree, and the values of ``by``. Groups of different budgets are different rows, never one mean.

    Args:
        records: with the paths they were loaded from, as ``find_records`` returns them.
        protocol: whose evaluations to show; other evaluations are left out, and the caption says
            which records have no other.
        published: put the paper's numbers beside ours, where it has the method and data set and
            the backbone is the paper's.
        by: dotted configuration keys, such as ``synthetic.weight``, that tell rows apart too;
            ``candidates.KEY`` is of the candidate store's manifest.
        layout: ``main``, linear and kNN; ``finetune``; ``transfer``, a column a downstream data
            set; ``ablation``, a row a value of ``by``.
        decimals: of what is shown.
        absent: runs that were wanted and have no number.
        points: a record's path to values of ``by`` that its configuration does not hold.
        variants: a record's path to a suite's name for its method with settings of its own.

    Raises:
        ClspError: an unknown protocol, layout or setting, no evaluation of this protocol or
            layout but of another, two records of one group with the same seed, records of one
            group whose recipes differ, or an ablation of nothing.
    """
    check_protocol(protocol)
    if layout not in LAYOUTS:
        raise ClspError(f"layout {layout} is not known{nearest(layout, LAYOUTS)}")
    if layout == "ablation" and not by:
        raise ClspError("An ablation needs a setting: --by KEY, such as --by synthetic.weight.")
    absent = [run for run in absent if run.protocol in ("", protocol)]
    if not absent:
        _check_evaluated(records, protocol)
    _check_keys(records, by, points or {})
    groups: dict[tuple, list[tuple[Path, Record]]] = {}
    for path, record in records:
        variant = (variants or {}).get(path, "")
        key = _group(record, variant, by, (points or {}).get(path, {}))
        groups.setdefault(key, []).append((path, record))
    for members in groups.values():
        check_seeds(members)
        _check_recipes(members, by)
    missing = _missing(groups, absent, by)
    rows = [
        row
        for key in [*groups, *(key for key in missing if key not in groups)]
        for row in _rows(
            key, groups.get(key, []), missing.get(key, []), protocol, published, by, layout
        )
    ]
    _check_shown(rows, protocol, layout)
    order = {m: n for n, m in enumerate(family_order(row.method for row in rows))}
    notes = [*_notes(records, protocol, rows, layout), *_reasons(absent)]
    return Table(
        tuple(sorted(rows, key=lambda row: _place(row, order, by, layout))),
        protocol,
        published,
        tuple(by),
        tuple(dict.fromkeys(commit_of(record) for _, record in records)),
        tuple(dict.fromkeys(hardware_of(record) for _, record in records)),
        layout,
        decimals,
        tuple(notes),
    )


@dataclass(frozen=True)
class Listing:
    """What suites say of records, see ``engine.record.read_index``; arguments of a table.

    Attributes:
        by: settings that tell rows apart.
        points: a record's path to values of ``by``.
        variants: a record's path to the name of its variant.
        absent: runs that failed.
    """

    by: list[str] = field(default_factory=list)
    points: dict[Path, Mapping[str, Any]] = field(default_factory=dict)
    variants: dict[Path, str] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)


def listing(paths: Iterable[str | Path], records: Records) -> Listing:
    """What the suites among some paths say of their records.

    Args:
        paths: that ``find_records`` was given.
        records: that it found.
    """
    out, names = Listing(), {path.resolve(): path for path, _ in records}
    for place in dict.fromkeys(map(Path, paths)):
        index = read_index(place)
        if index is None:
            continue
        failed = [Absent(**{**run, "tasks": tuple(run["tasks"])}) for run in index["failed"]]
        out.absent.extend(run for run in failed if run not in out.absent)
        out.by.extend(key for key in index["by"] if key not in out.by)
        for file, about in index["records"]:
            path = names[file.resolve()]
            out.points[path] = about.get("point", {})
            out.variants[path] = about.get("variant", "")
    return out


def _place(row: Row, order: Mapping[str, int], by: Sequence[str], layout: str) -> tuple:
    budget = (order[row.method], row.budget["epochs"], row.variant)
    if layout != "ablation":
        return budget
    values = (row.budget[key] for key in by)
    return (*((isinstance(v, str), v) for v in values), *budget)


def _missing(
    groups: Mapping[tuple, Any], absent: Sequence[Absent], by: Sequence[str]
) -> dict[tuple, list[Absent]]:
    """Absent runs by the group that they would be in."""
    out: dict[tuple, list[Absent]] = {}
    for run in absent:
        budget = tuple(run.budget.get(name) for name in BUDGET)
        key = (
            run.method,
            run.variant,
            run.dataset,
            *budget,
            *(run.point.get(name, "") for name in by),
        )
        # what is not known of it is as in the other runs on its data set
        likely = next((k for k in groups if k[2] == run.dataset), key)
        key = tuple(b if a is None else a for a, b in zip(key, likely, strict=True))
        out.setdefault(key, []).append(run)
    return out


def _reasons(absent: Sequence[Absent]) -> list[str]:
    return [
        f"Failed: {run.variant or run.method} on {run.dataset}, seed {run.seed}"
        + "".join(f", {key}={value}" for key, value in run.point.items())
        + f": {run.reason.rstrip('.')}."
        for run in absent
    ]


def _left_empty(rows: Sequence[Row]) -> list[str]:
    """Cells of the paper's main table without a number, where that is beside ours or ours is
    missing too."""
    found = []
    for row in rows:
        here = row.target == row.dataset and row.budget["backbone"] == BACKBONE
        paper = published(row.method, row.target, row.budget["epochs"]) if here else None
        found += [
            f"{paper.name} on {row.target}, {TASKS[task]}"
            for task in (LAYOUTS["main"] if paper else ())
            if getattr(paper, task) is None and (row.paper or not row.cells[task].n)
        ]
    return found


def _of_other_protocols(records: Records, protocol: str, layout: str) -> list[str]:
    """Records, and evaluations of a layout, that are of another protocol alone."""
    found = []
    for _, record in records:
        name = f"{record.method} on {record.dataset}, seed {record.seed}"
        made = {(e["task"], evaluated_on(e)): False for e in record.evaluations}
        made |= {(e["task"], evaluated_on(e)): True for e in record.evaluations
                 if e["protocol"] == protocol}  # fmt: skip
        if made and not any(made.values()):
            found.append(name)
            continue
        for task, dataset in (key for key, ours in made.items() if not ours):
            if task in LAYOUTS[layout]:
                where = "" if dataset == record.dataset else f" on {dataset}"
                found.append(f"{name} ({TASKS[task]}{where})")
    return found


def _notes(records: Records, protocol: str, rows: Sequence[Row], layout: str) -> list[str]:
    """What a reader of the table has to know of the records."""
    notes = []
    if layout == "main" and (empty := _left_empty(rows)):
        notes.append(f"The paper leaves empty: {'; '.join(empty)}.")
    cells = [cell for row in rows for cell in row.cells.values()]
    if any(cell.stale for cell in cells):
        notes.append(f"{STALE} made by other numerics than those of this version; run it again.")
    if other := dict.fromkeys(name for cell in cells for name in cell.changed):
        notes.append(
            f"{CHANGED} made by other settings than its configuration has today "
            f"({', '.join(other)}); run it again."
        )
    if other := _of_other_protocols(records, protocol, layout):
        notes.append(f"Evaluated with another protocol alone and left out: {'; '.join(other)}.")
    known = {*DATASETS, *DOWNSTREAM}
    named = (d.split(" [")[0] for row in rows for d in (row.dataset, row.target))
    strange = dict.fromkeys(dataset for dataset in named if dataset not in known)
    if strange:
        notes.append(f"Not data sets that this version knows: {', '.join(strange)}.")
    return notes


def family_order(methods: Iterable[str]) -> list[str]:
    """Method names by family; those of none follow as they come."""
    methods = list(dict.fromkeys(methods))
    return [m for m in _ORDER if m in methods] + [m for m in methods if m not in _ORDER]


def varying(settings: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Names whose values differ within one data set.

    Args:
        settings: pairs of a data set and its settings, all with the same names.
    """
    seen: dict[tuple[str, str], set] = {}
    for dataset, values in settings:
        for name, value in values.items():
            seen.setdefault((name, dataset), set()).add(value)
    return list(dict.fromkeys(name for (name, _), values in seen.items() if len(values) > 1))


def _setting(record: Record, key: str, default: Any = "") -> Any:
    """``config["a"]["b"]`` for ``"a.b"``, or the default; a block becomes its JSON."""
    value: Any = _settings(record)
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return json.dumps(value) if isinstance(value, (Mapping, list)) else value


def holds(record: Record, key: str) -> bool:
    """Whether a record's own configuration has a setting."""
    return _setting(record, key, _NONE) is not _NONE


def _settings(record: Record) -> dict[str, Any]:
    return {**record.config, "candidates": record.candidates or {}}


def _group(record: Record, variant: str, by: Sequence[str], point: Mapping[str, Any]) -> tuple:
    budget = (getattr(record, name) for name in BUDGET)
    values = (point[key] if key in point else _setting(record, key) for key in by)
    return (record.method, variant, record.dataset, *budget, *values)


def _check_evaluated(records: Records, protocol: str) -> None:
    present = {e["protocol"] for _, record in records for e in record.evaluations}
    if present and protocol not in present:
        raise ClspError(
            f"No record has an evaluation of the {protocol} protocol, only of "
            f"{' and '.join(sorted(present))}; evaluate with `clsp linear` and `clsp knn` and "
            f"protocol={protocol}, or make the table of --protocol {sorted(present)[0]}."
        )


def _check_keys(
    records: Records, by: Sequence[str], points: Mapping[Path, Mapping[str, Any]]
) -> None:
    """Refuse a setting that no record has: its column would be empty."""
    for key in by:
        if records and not any(
            key in points.get(path, {}) or _setting(record, key, _NONE) is not _NONE
            for path, record in records
        ):
            known = {name for point in points.values() for name in point}
            for _, record in records:
                known |= {name.removeprefix(".") for name in _flat(_settings(record), "")}
            raise ClspError(f"--by {key}: no record has this setting{nearest(key, known)}")


def _check_shown(rows: Sequence[Row], protocol: str, layout: str) -> None:
    """Refuse a layout that would show nothing; runs that were not evaluated at all have a table."""
    cells = [cell for row in rows for cell in row.cells.values()]
    if layout != "main" and not any(cell.n or cell.failed for cell in cells):
        verbs = " or ".join(f"`clsp {task}`" for task in LAYOUTS[layout])
        raise ClspError(
            f"--layout {layout} would be empty: no record has a number of {verbs} with "
            f"the {protocol} protocol; evaluate the runs, or choose another --layout."
        )


def check_seeds(members: Records) -> None:
    """Refuse two records of one group with the same seed."""
    seen: dict[int, Path] = {}
    for path, record in members:
        if record.seed in seen:
            raise ClspError(
                f"{seen[record.seed]} and {path} are both of {record.method} on {record.dataset} "
                f"with seed {record.seed} and the same budget; leave one of them out."
            )
        seen[record.seed] = path


def _flat(block: Any, prefix: str) -> dict[str, str]:
    """Dotted keys of nested mappings to JSON, so that values of any kind compare."""
    if isinstance(block, Mapping):
        nested = (_flat(value, f"{prefix}.{key}") for key, value in block.items())
        return {key: value for part in nested for key, value in part.items()}
    return {prefix: json.dumps(block, sort_keys=True)}


def recipe(record: Record) -> dict[str, str]:
    """What records must share to be averaged, by dotted key; values as JSON."""
    flat = _flat(record.candidates or {}, "candidates")
    for block in _RECIPE:
        flat |= _flat(record.config.get(block), block)
    flat |= _images_recipe(record) | _step_recipe(record)
    return {key: value for key, value in flat.items() if key not in _NOT_RECIPE}


def _images_recipe(record: Record) -> dict[str, str]:
    """Which images; a record that was written before a setting existed has its default."""
    data = record.config.get("data")
    if not isinstance(data, Mapping):
        return {}
    names = [*_IMAGES, *(_FOLDERS if record.dataset == "custom" else ())]
    usual = Data()
    values = ((name, data.get(name, getattr(usual, name))) for name in names)
    # -1 and -1.0 are one fraction
    return {f"data.{k}": json.dumps(int(v) if v == -1 else v) for k, v in values}


def _step_recipe(record: Record) -> dict[str, str]:
    """What a step computes: of how many images, however devices divide them, how exactly."""
    config = record.config
    precision = str(config.get("precision", "32-true"))
    out = {
        "precision": _PRECISIONS.get(precision, precision),
        "accumulate_grad_batches": config.get("accumulate_grad_batches", 1),
    }
    batch = (config.get("optimizer") or {}).get("batch_size")
    if batch is not None:
        out["optimizer.batch_size, of all devices"] = _images_a_step(record, batch)
    return {key: json.dumps(value) for key, value in out.items()}


def _images_a_step(record: Record, batch: int) -> int | str:
    devices = record.config.get("devices", 1)
    if devices in ("auto", -1, "-1") and record.hardware.get("gpu"):
        return f"{batch} a GPU"  # a record does not say how many there were
    asked = SimpleNamespace(devices=devices, accelerator="cpu")
    return batch * num_devices(asked) * record.config.get("num_nodes", 1)


def _check_recipes(members: Records, by: Sequence[str]) -> None:
    """Seeds of one recipe are averaged; a mean over two learning rates would mean nothing."""
    path, record = members[0]
    first = recipe(record)
    for other_path, other_record in members[1:]:
        other = recipe(other_record)
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise ClspError(
                    f"{path} and {other_path} are both of {record.method} on {record.dataset} but "
                    f"{key} is {first.get(key)} in one and {other.get(key)} in the other; make a "
                    f"table of each."
                )


def _rows(
    key: tuple,
    members: Records,
    absent: Sequence[Absent],
    protocol: str,
    with_paper: bool,
    by: Sequence[str],
    layout: str,
) -> list[Row]:
    """A group's row for its own data set, and one for each other it was evaluated on."""
    method, variant, dataset, *values = key
    budget = dict(zip((*BUDGET, *by), values, strict=True))
    tasks = LAYOUTS[layout]
    targets = [] if layout == "transfer" else [dataset]
    for _, member in members:
        targets += [
            evaluated_on(e)
            for e in member.evaluations
            if e["protocol"] == protocol and e["task"] in tasks
        ]
    rows = []
    for target in dict.fromkeys(targets or [dataset]):
        known = with_paper and budget["backbone"] == BACKBONE
        paper = _published(method, dataset, target, budget, by, layout) if known else None
        failed = {task: sum(run.lacks(task) for run in absent) for task in tasks}
        cells = {task: _cell(members, task, protocol, target, failed[task]) for task in tasks}
        rows.append(Row(method, dataset, target, budget, cells, paper, variant))
    return rows


def _published(
    method: str,
    dataset: str,
    target: str,
    budget: Mapping[str, Any],
    by: Sequence[str],
    layout: str,
) -> Published | None:
    """The paper's numbers for a row; it fine-tunes nothing."""
    if layout == "finetune":
        return None
    if layout == "transfer":
        return published_transfer(method, dataset, target)
    if target != dataset:
        return None
    if layout == "ablation":
        return published_ablation(method, by[0], budget[by[0]], dataset) if len(by) == 1 else None
    return published(method, target, budget["epochs"])


def _cell(members: Records, task: str, protocol: str, target: str, failed: int) -> Cell:
    """The accuracies of the members' latest checkpoints."""
    latest: list[tuple[Path, dict[str, Any]]] = []
    for path, record in members:
        found = [
            e
            for e in record.evaluations
            if (e["task"], e["protocol"], evaluated_on(e)) == (task, protocol, target)
        ]
        if found:
            latest.append((path, max(found, key=lambda e: e["epoch"])))
    check_alike(latest, f"latest {TASKS[task]}")
    made = [(dict(members)[path], evaluation) for path, evaluation in latest]
    return Cell.of(
        [_number(path, e) for path, e in latest],
        stale=any(is_stale(record, evaluation) for record, evaluation in made),
        changed=tuple(changed(*zip(*made, strict=True))) if made else (),
        failed=failed,
        paths=tuple(path for path, _ in latest),
    )


def _number(path: Path, evaluation: Mapping[str, Any]) -> float:
    """An evaluation's result in percent; a record holds null for one that was not finite."""
    name = evaluation.get("metric") or "top1"
    if evaluation.get(name) is None:
        raise ClspError(
            f"The latest {TASKS[evaluation['task']]} evaluation of {path} has no number "
            f"({name} is null); evaluate its checkpoint again, or leave the record out."
        )
    return evaluation[name]


def check_alike(
    members: Sequence[tuple[Path, Mapping[str, Any]]], what: str, epoch: bool = True
) -> None:
    """Refuse evaluations of one number that were not made in the same way.

    Args:
        members: paths of records, with an evaluation each.
        what: they are, for people.
        epoch: whether they must be of one epoch.
    """
    names = ["epoch"] * epoch + ["metric", "num_train", "num_test", "settings", "learning rate"]
    for path, evaluation in members[1:]:
        first_path, first = members[0]
        for name in names:
            ours, theirs = (_measured(e, name) for e in (first, evaluation))
            if ours != theirs:
                raise ClspError(
                    f"The {what} evaluations of {first_path} and {path} differ in "
                    f"{name} ({ours} and {theirs}); evaluate both in the same way."
                )


def _measured(evaluation: Mapping[str, Any], name: str) -> Any:
    if name == "learning rate":  # given under the protocol paper, chosen under strict
        given = evaluation["protocol"] == "paper"
        return (evaluation.get("chosen") or {}).get("lr") if given else None
    value = evaluation.get(name)
    if name == "settings" and value:
        return {key: setting for key, setting in value.items() if key != "seed"}
    return value


def commit_of(record: Record) -> str:
    """The commit of a record's code, for people."""
    if record.commit is None:
        return f"none (clsp-plugin {record.versions.get('clsp_plugin', 'of unknown version')})"
    commit, _, dirty = record.commit.partition("-")
    return commit[:10] + (f"-{dirty}" if dirty else "")


def hardware_of(record: Record) -> str:
    """What a record's run ran on, for people."""
    hardware = record.hardware
    cpu = f"{hardware.get('cpu', 'unknown CPU')} ({counted(hardware.get('cores', '?'), 'core')})"
    return f"{hardware['gpu']}, {cpu}" if hardware.get("gpu") else cpu
