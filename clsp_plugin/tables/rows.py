"""The rows of a table: groups of records that differ in the seed alone, and their accuracies."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsp_plugin.errors import ClspError
from clsp_plugin.records.recipe import BUDGET, Records, check_alike
from clsp_plugin.records.record import ELSEWHERE, evaluated_on
from clsp_plugin.records.stale import CHANGED, STALE, changed, is_stale
from clsp_plugin.tables.published import (
    BACKBONE,
    Published,
    published,
    published_ablation,
    published_transfer,
)
from clsp_plugin.verbs import EVALUATIONS

__all__ = ["LAYOUTS", "TASKS", "Absent", "Cell", "Row", "family_order", "make_rows", "varying"]

# An evaluation to its heading.
TASKS = {name: verb.heading for name, verb in EVALUATIONS.items()}
# A layout to the evaluations that it shows.
LAYOUTS = {
    "main": ("linear", "knn"),
    "finetune": ("finetune",),
    "transfer": ("transfer",),
    "ablation": ("linear", "knn"),
}
# The order of rows, by family: a method, its controls, its synthetic positives.
_ORDER = (
    "simclr", "simclr_aug", "simclr_ft", "dcl", "clsp_noaug", "clsp_simclr",
    "mocov2plus", "mocov2_aug", "mocov2_ft", "clsp_mocov2", "clsp_mocov2plus",
    "cl_gan", "byol", "clsp_byol",
)  # fmt: skip


@dataclass(frozen=True)
class Absent:
    """A run that was wanted and has no number.

    Attributes:
        method: name of the method.
        dataset: name of the data set that it was to be pre-trained on.
        seed: seed of the pre-training.
        budget: ``backbone``, ``epochs`` and ``num_train``, as far as they are known.
        reason: why it has no number, for people.
        point: values of the settings that a suite varies.
        tasks: the evaluations that it lacks; all of them if empty.
        variant: a suite's name for a method with settings of its own.
        protocol: protocol of the evaluations that it lacks; any if empty.
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
        """Whether the run lacks the number of an evaluation."""
        return not self.tasks or task in self.tasks


@dataclass(frozen=True)
class Cell:
    """Mean accuracy over some seeds, in percent.

    Attributes:
        n: number of seeds with a number.
        mean: mean over these seeds; None without any.
        std: sample standard deviation (n - 1 in the denominator); None below two.
        stale: whether a number was made by other numerics than today's.
        changed: configurations that have other settings today than when a number was made.
        failed: number of seeds that were wanted and have no number.
        paths: paths of the records.
        seeds: a seed to its accuracy, in percent.
    """

    n: int
    mean: float | None
    std: float | None
    stale: bool = False
    changed: tuple[str, ...] = ()
    failed: int = 0
    paths: tuple[Path, ...] = ()
    seeds: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, seeds: Mapping[int, float], **more: Any) -> "Cell":
        """Average the accuracies of some seeds, in percent."""
        values = list(seeds.values())
        return cls(
            len(values),
            statistics.fmean(values) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
            seeds=seeds,
            **more,
        )

    def text(self, decimals: int = 1, *, count: bool = False) -> str:
        """Return mean and deviation, with the number of seeds if asked for, and marks, as text."""
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
        method: name of the method.
        dataset: name of the data set pre-trained on.
        target: the data set evaluated on, see ``records.record.evaluated_on``.
        budget: the group's ``backbone``, ``epochs``, ``num_train``, and the values of ``by``.
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
    def from_elsewhere(self) -> bool:
        """Whether it is of an encoder that was not trained here."""
        return self.dataset == ELSEWHERE

    @property
    def heading(self) -> str:
        if self.from_elsewhere:  # beside the rows that were trained on these images
            return self.target
        own = self.target == self.dataset or self.target.startswith(f"{self.dataset} [")
        return self.target if own else f"{self.dataset} → {self.target}"


def family_order(methods: Iterable[str]) -> list[str]:
    """Order method names by family; methods of no family follow in the given order."""
    methods = list(dict.fromkeys(methods))
    return [m for m in _ORDER if m in methods] + [m for m in methods if m not in _ORDER]


def varying(settings: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the names of settings that differ within one data set.

    Args:
        settings: pairs of a data set and its settings, all with the same names.
    """
    seen: dict[tuple[str, str], set] = {}
    for dataset, values in settings:
        for name, value in values.items():
            seen.setdefault((name, dataset), set()).add(value)
    return list(dict.fromkeys(name for (name, _), values in seen.items() if len(values) > 1))


def make_rows(
    key: tuple,
    members: Records,
    absent: Sequence[Absent],
    protocol: str,
    with_paper: bool,
    by: Sequence[str],
    layout: str,
) -> list[Row]:
    """Return a group's rows: one for its own data set, and one for each other it was evaluated on.

    The layout ``transfer`` has a row for the own data set only where there is no other.
    """
    method, variant, dataset, *values = key
    budget = dict(zip((*BUDGET, *by), values, strict=True))
    tasks = LAYOUTS[layout]
    targets = [] if layout == "transfer" or dataset == ELSEWHERE else [dataset]
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
    """Return the paper's numbers for a row; None for fine-tuning, which the paper does not do."""
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
    """Average the evaluations of each member's latest evaluated checkpoint."""
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
        {dict(members)[path].seed: _number(path, e) for path, e in latest},
        stale=any(is_stale(record, evaluation) for record, evaluation in made),
        changed=tuple(changed(*zip(*made, strict=True))) if made else (),
        failed=failed,
        paths=tuple(path for path, _ in latest),
    )


def _number(path: Path, evaluation: Mapping[str, Any]) -> float:
    """Return an evaluation's result in percent; refuse null, which stands for one not finite."""
    name = evaluation.get("metric") or "top1"
    if evaluation.get(name) is None:
        raise ClspError(
            f"The latest {TASKS[evaluation['task']]} evaluation of {path} has no number "
            f"({name} is null); evaluate its checkpoint again, or leave the record out."
        )
    return evaluation[name]
