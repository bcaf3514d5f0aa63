"""Tables from records: mean and spread over seeds, and nothing merged that differs."""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsp_plugin.benchmark.published import BACKBONE, Published, published
from clsp_plugin.engine.record import Record
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.protocol import PROTOCOLS, check_protocol

__all__ = ["Cell", "Row", "Table", "family_order", "make_table", "varying"]

Records = Sequence[tuple[Path, Record]]

TASKS = {"linear": "linear", "knn": "kNN"}  # an evaluation's task to its heading
BUDGET = ("backbone", "epochs", "num_train")
_HEADINGS = {"num_train": "images"}
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
_NOT_RECIPE = {"synthetic.path"}


@dataclass(frozen=True)
class Cell:
    """Top-1 accuracy of some seeds, in percent.

    Attributes:
        n: seeds with a number.
        mean: over them; None without any.
        std: sample standard deviation (n - 1 in the denominator); None below two.
    """

    n: int
    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Cell":
        return cls(
            len(values),
            statistics.fmean(values) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
        )

    def __str__(self) -> str:
        if self.mean is None:
            return ""
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


@dataclass(frozen=True)
class Row:
    """One group of records that differ in the seed alone, evaluated on one data set.

    Attributes:
        method: its name.
        dataset: pre-trained on.
        target: evaluated on.
        budget: the group's ``backbone``, ``epochs``, ``num_train``, and what ``by`` names.
        cells: a task to its accuracy.
        paper: the published numbers, if asked for and there are any.
    """

    method: str
    dataset: str
    target: str
    budget: dict[str, Any]
    cells: dict[str, Cell]
    paper: Published | None

    @property
    def heading(self) -> str:
        return self.dataset if self.target == self.dataset else f"{self.dataset} → {self.target}"


@dataclass(frozen=True)
class Table:
    """Rows as data; a method's rows of several data sets stand side by side in Markdown.

    Attributes:
        rows: by method family, data set and budget.
        protocol: that chose k and the learning rate.
        published: whether the paper's numbers stand beside ours.
        by: dotted configuration keys that tell rows apart.
        commits: of the code, each once.
        hardware: of the runs, each once.
    """

    rows: tuple[Row, ...]
    protocol: str
    published: bool
    by: tuple[str, ...]
    commits: tuple[str, ...]
    hardware: tuple[str, ...]

    def to_csv(self) -> str:
        """A line a row: names, ``{task}_n``, ``_mean`` and ``_std`` in percent, the paper's."""
        out = io.StringIO()
        names = ["method", "dataset", "evaluated_on", *BUDGET, *self.by, "protocol"]
        names += [f"{task}_{part}" for task in TASKS for part in ("n", "mean", "std")]
        if self.published:
            names += [*(f"paper_{task}" for task in TASKS), "paper_epochs"]
        writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            line = {"method": row.method, "dataset": row.dataset, "evaluated_on": row.target}
            line |= {**row.budget, "protocol": self.protocol}
            for task, cell in row.cells.items():
                line |= {f"{task}_{part}": getattr(cell, part) for part in ("n", "mean", "std")}
            if row.paper:
                line |= {f"paper_{task}": getattr(row.paper, task) for task in TASKS}
                line["paper_epochs"] = row.paper.epochs
            writer.writerow({key: "" if value is None else value for key, value in line.items()})
        return out.getvalue()

    def to_markdown(self) -> str:
        """A row a method (and budget, where budgets differ), and a caption below."""
        extra = (*self._shown_budget(), *self.by)
        lines: dict[tuple, dict[str, Row]] = {}
        for row in self.rows:
            key = (row.method, *(row.budget[name] for name in extra))
            lines.setdefault(key, {})[row.heading] = row
        headings = list(dict.fromkeys(row.heading for row in self.rows))
        several = len(headings) > 1
        head = ["method", *(_HEADINGS.get(name, name) for name in extra), "n"]
        for heading in headings:
            head += [f"{heading} {name}" if several else name for name in self._columns(heading)]
        body = [self._line(key, rows, headings) for key, rows in lines.items()]
        numbers = 1 + len(extra)
        rule = ["---"] * numbers + ["---:"] * (len(head) - numbers)
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))
        return f"{text}\n\n{self._caption()}\n"

    def _shown_budget(self) -> list[str]:
        """The parts of the budget in which rows of one data set differ."""
        return varying(
            (row.dataset, {name: row.budget[name] for name in BUDGET}) for row in self.rows
        )

    def _has_paper(self, heading: str) -> bool:
        return any(row.paper for row in self.rows if row.heading == heading)

    def _columns(self, heading: str) -> list[str]:
        names = list(TASKS.values())
        return [*names, *(f"paper {n}" for n in names)] if self._has_paper(heading) else names

    def _line(self, key: tuple, rows: Mapping[str, Row], headings: Sequence[str]) -> list[str]:
        counts = {cell.n for row in rows.values() for cell in row.cells.values() if cell.n}
        line = [*map(str, key), _range(counts)]
        for heading in headings:
            row = rows.get(heading)
            for task in TASKS:
                cell = row.cells[task] if row else Cell.of([])
                line.append(str(cell) + (f" (n = {cell.n})" if cell.n and len(counts) > 1 else ""))
            if self._has_paper(heading):
                paper = row.paper if row else None
                numbers = [getattr(paper, task, None) for task in TASKS]
                line += ["" if number is None else f"{number:.2f}" for number in numbers]
        return line

    def _caption(self) -> str:
        counts = {cell.n for row in self.rows for cell in row.cells.values() if cell.n}
        budgets = dict.fromkeys(map(self._budget, self.rows))
        parts = [
            f"Top-1 accuracy in percent on test images. Protocol {self.protocol}: "
            f"{PROTOCOLS[self.protocol]}.",
            "One seed, so no spread."
            if counts == {1}
            else f"Mean ± sample standard deviation over n = {_range(counts) or 'no'} seeds.",
            *(f"{budget}." for budget in budgets),
            f"Commit: {', '.join(self.commits)}.",
            f"Hardware: {', '.join(self.hardware)}.",
        ]
        if self.published:
            parts.append(self._sources())
        return " ".join(parts)

    def _budget(self, row: Row) -> str:
        """A row's share of the budget that is not in a column: ``digits: resnet18, 20 epochs``."""
        phrases = {
            "backbone": f"{row.budget['backbone']}",
            "epochs": f"{row.budget['epochs']} epochs",
            "num_train": f"{row.budget['num_train']:,} images",
        }
        shown = [phrases[name] for name in BUDGET if name not in self._shown_budget()]
        return f"Pre-training on {row.dataset}{': ' if shown else ''}{', '.join(shown)}"

    def _sources(self) -> str:
        epochs = {row.paper.name: row.paper.epochs for row in self.rows if row.paper}
        if not epochs:
            return (
                f"The paper has no numbers for these (it has CIFAR-10 and CIFAR-100, {BACKBONE})."
            )
        usual = max(epochs.values())
        others = [f"{name} {number}" for name, number in epochs.items() if number != usual]
        but = f" ({', '.join(others)})" if others else ""
        return (
            f"Paper columns: Zeng et al., ECCV 2024, {BACKBONE}, all training images, {usual} "
            f"epochs{but}, best k on the test images."
        )


def _range(counts: Iterable[int]) -> str:
    counts = sorted(counts)
    return " to ".join(str(n) for n in dict.fromkeys((*counts[:1], *counts[-1:])))


def make_table(
    records: Records, *, protocol: str = "strict", published: bool = False, by: Sequence[str] = ()
) -> Table:
    """Average records over seeds.

    Records are one group when method, data set, backbone, epochs and number of images agree, and
    the values of ``by``. Groups of different budgets are different rows, never one mean.

    Args:
        records: with the paths they were loaded from, as ``find_records`` returns them.
        protocol: whose evaluations to show; other evaluations are left out.
        published: put the paper's numbers beside ours, where it has the method and data set and
            the backbone is the paper's.
        by: dotted configuration keys, such as ``synthetic.weight``, that tell rows apart too.

    Raises:
        ClspError: an unknown protocol, no evaluation of this one but of another, two records of
            one group with the same seed, or records of one group whose recipes differ.
    """
    check_protocol(protocol)
    _check_evaluated(records, protocol)
    groups: dict[tuple, list[tuple[Path, Record]]] = {}
    for path, record in records:
        groups.setdefault(_group(record, by), []).append((path, record))
    for members in groups.values():
        _check_seeds(members)
        _check_recipes(members, by)
    first_seen = {record.method: None for _, record in records}
    order = {method: place for place, method in enumerate(family_order(first_seen))}
    rows = [row for members in groups.values() for row in _rows(members, protocol, published, by)]
    return Table(
        tuple(sorted(rows, key=lambda r: (order[r.method], r.budget["epochs"]))),
        protocol,
        published,
        tuple(by),
        tuple(dict.fromkeys(_commit(record) for _, record in records)),
        tuple(dict.fromkeys(_hardware(record) for _, record in records)),
    )


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


def _setting(config: Mapping[str, Any], key: str) -> Any:
    """``config["a"]["b"]`` for ``"a.b"``, or ``""``; a block becomes its JSON."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    return json.dumps(value) if isinstance(value, (Mapping, list)) else value


def _group(record: Record, by: Sequence[str]) -> tuple:
    budget = (getattr(record, name) for name in BUDGET)
    return (record.method, record.dataset, *budget, *(_setting(record.config, k) for k in by))


def _check_evaluated(records: Records, protocol: str) -> None:
    present = {e["protocol"] for _, record in records for e in record.evaluations}
    if present and protocol not in present:
        raise ClspError(
            f"No record has an evaluation of the {protocol} protocol, only of "
            f"{' and '.join(sorted(present))}; evaluate with `clsp linear` and `clsp knn` and "
            f"protocol={protocol}, or make the table of --protocol {sorted(present)[0]}."
        )


def _check_seeds(members: Records) -> None:
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


def _recipe(record: Record) -> dict[str, str]:
    flat: dict[str, str] = {}
    for block in _RECIPE:
        flat |= _flat(record.config.get(block), block)
    return {key: value for key, value in flat.items() if key not in _NOT_RECIPE}


def _check_recipes(members: Records, by: Sequence[str]) -> None:
    """Seeds of one recipe are averaged; a mean over two learning rates would mean nothing."""
    path, record = members[0]
    first = _recipe(record)
    for other_path, other_record in members[1:]:
        other = _recipe(other_record)
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise ClspError(
                    f"{path} and {other_path} are both of {record.method} on {record.dataset} but "
                    f"{key} is {first.get(key)} in one and {other.get(key)} in the other; make a "
                    f"table of each."
                )


def _rows(members: Records, protocol: str, with_paper: bool, by: Sequence[str]) -> list[Row]:
    """A group's row for its own data set, and one for each other it was evaluated on."""
    _, record = members[0]
    budget = {name: getattr(record, name) for name in BUDGET}
    budget |= {key: _setting(record.config, key) for key in by}
    targets = [record.dataset]
    for _, member in members:
        targets += [e["dataset"] for e in member.evaluations if e["protocol"] == protocol]
    rows = []
    for target in dict.fromkeys(targets):
        known = with_paper and target == record.dataset and record.backbone == BACKBONE
        paper = published(record.method, target) if known else None
        cells = {task: _cell(members, task, protocol, target) for task in TASKS}
        rows.append(Row(record.method, record.dataset, target, budget, cells, paper))
    return rows


def _cell(members: Records, task: str, protocol: str, target: str) -> Cell:
    """The accuracies of the members' latest checkpoints."""
    latest: list[tuple[Path, dict[str, Any]]] = []
    for path, record in members:
        found = [
            e
            for e in record.evaluations
            if (e["task"], e["protocol"], e["dataset"]) == (task, protocol, target)
        ]
        if found:
            latest.append((path, max(found, key=lambda e: e["epoch"])))
    for path, evaluation in latest[1:]:
        first_path, first = latest[0]
        for name in ("epoch", "num_train", "num_test", "settings"):
            ours, theirs = (_measured(e, name) for e in (first, evaluation))
            if ours != theirs:
                raise ClspError(
                    f"The latest {TASKS[task]} evaluations of {first_path} and {path} differ in "
                    f"{name} ({ours} and {theirs}); evaluate both in the same way."
                )
    return Cell.of([e["top1"] for _, e in latest])


def _measured(evaluation: Mapping[str, Any], name: str) -> Any:
    value = evaluation.get(name)
    if name == "settings" and value:
        return {key: setting for key, setting in value.items() if key != "seed"}
    return value


def _commit(record: Record) -> str:
    if record.commit is None:
        return f"none (clsp-plugin {record.versions.get('clsp_plugin', 'of unknown version')})"
    commit, _, dirty = record.commit.partition("-")
    return commit[:10] + (f"-{dirty}" if dirty else "")


def _hardware(record: Record) -> str:
    hardware = record.hardware
    cpu = f"{hardware.get('cpu', 'unknown CPU')} ({hardware.get('cores', '?')} cores)"
    return f"{hardware['gpu']}, {cpu}" if hardware.get("gpu") else cpu
