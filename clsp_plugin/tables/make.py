"""Make a table of records: group them, refuse what must not be averaged, and add notes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clsp_plugin.data.datasets import DATASETS, DOWNSTREAM
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.evaluation.names import check_protocol
from clsp_plugin.records.recipe import (
    BUDGET,
    NONE,
    Records,
    as_word,
    check_recipes,
    check_seeds,
    dotted,
    setting,
    settings,
    sorting_key,
)
from clsp_plugin.records.record import ELSEWHERE, Record, evaluated_on, read_index
from clsp_plugin.records.stale import CHANGED, STALE
from clsp_plugin.tables.formats import counted
from clsp_plugin.tables.published import (
    BACKBONE,
    published,
)
from clsp_plugin.tables.rows import LAYOUTS, TASKS, Absent, Row, family_order, make_rows
from clsp_plugin.tables.table import Table

__all__ = ["Listing", "commit_of", "hardware_of", "listing", "make_table"]


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
    """Make a table that averages records over seeds.

    Records are in one group, a row, when they agree in method, variant, data set, backbone, epochs,
    number of images and the values of ``by``. Groups of different budgets are never averaged.

    Args:
        records: pairs of a path and its record, as ``find_records`` returns them.
        protocol: the protocol of the evaluations to show. Others are left out, and the caption
            names records that have only others.
        published: whether to put the paper's numbers beside ours, where it has the method and data
            set and the backbone is the paper's.
        by: further dotted configuration keys that tell rows apart, such as ``synthetic.weight``;
            ``candidates.KEY`` is a key of the candidate store's manifest.
        layout: ``main``, linear and kNN; ``finetune``; ``transfer``, with a column per downstream
            data set; ``ablation``, with a row per value of ``by``.
        decimals: decimals of the numbers that are shown.
        absent: runs that were wanted and have no number.
        points: a record's path to values of ``by`` that its configuration does not hold.
        variants: a record's path to a suite's name for its method with settings of its own.

    Raises:
        ClspError: an unknown protocol, layout or setting; evaluations only of another protocol or
            layout; two records of one group with the same seed or with different recipes; or an
            ablation without ``by``.
    """
    check_protocol(protocol)
    if layout not in LAYOUTS:
        raise ClspError(f"layout {layout} is not known{nearest(layout, LAYOUTS)}")
    if layout == "ablation" and not by:
        raise ClspError("An ablation needs a setting: --by KEY, such as --by synthetic.weight.")
    absent = [run for run in absent if run.protocol in ("", protocol)]
    records = _beside_ours(records)
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
        check_recipes(members)
    missing = _missing(groups, absent, by)
    rows = [
        row
        for key in [*groups, *(key for key in missing if key not in groups)]
        for row in make_rows(
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
    """What the indexes of suites say of records, as arguments of a table; see ``read_index``.

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
    """Return what the suites among some paths say of their records.

    Args:
        paths: the paths that ``find_records`` was given.
        records: the records that it found.
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
    return (*(sorting_key(row.budget[key]) for key in by), *budget)


def _missing(
    groups: Mapping[tuple, Any], absent: Sequence[Absent], by: Sequence[str]
) -> dict[tuple, list[Absent]]:
    """Group absent runs by the key of the group that they would be in."""
    out: dict[tuple, list[Absent]] = {}
    for run in absent:
        budget = tuple(run.budget.get(name) for name in BUDGET)
        key = (
            run.method,
            run.variant,
            run.dataset,
            *budget,
            *(as_word(run.point.get(name, "")) for name in by),
        )
        # what is not known of its budget is taken from another run on its data set
        likely = next((k for k in groups if k[2] == run.dataset), key)
        first, last = 3, 3 + len(BUDGET)
        filled = (b if a is None else a for a, b in zip(budget, likely[first:last], strict=True))
        key = (*key[:first], *filled, *key[last:])
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
    """Name the cells of the paper's main table that are empty and that a reader would look for.

    A cell counts where the paper's column is shown, or where our number is missing too.
    """
    found = []
    for row in rows:
        here = row.target == row.dataset and row.budget["backbone"] == BACKBONE
        paper = published(row.method, row.target, row.budget["epochs"]) if here else None
        if paper is None:
            continue
        found += [
            f"{paper.name} on {row.target}, {TASKS[task]}"
            for task in LAYOUTS["main"]
            if getattr(paper, task) is None and (row.paper or not row.cells[task].n)
        ]
    return found


def _of_other_protocols(records: Records, protocol: str, layout: str) -> list[str]:
    """Name the records, and the evaluations of a layout, that exist only for another protocol."""
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


def _of_earlier_epochs(records: Records, protocol: str, layout: str) -> list[str]:
    """Name the records whose latest evaluation is of a checkpoint before the last epoch."""
    found = []
    for _, record in records:
        latest: dict[tuple[str, str], int] = {}
        for e in record.evaluations:
            if e["protocol"] == protocol and e["task"] in LAYOUTS[layout]:
                key = (e["task"], evaluated_on(e))
                latest[key] = max(latest.get(key, 0), e["epoch"] or 0)
        found += [
            f"{record.method} on {record.dataset}, seed {record.seed} ({TASKS[task]}, "
            f"epoch {epoch} of {record.epochs})"
            for (task, _), epoch in latest.items()
            if record.epochs is not None and 0 < epoch < record.epochs
        ]
    return found


def _notes(records: Records, protocol: str, rows: Sequence[Row], layout: str) -> list[str]:
    """Return the notes that a reader of the table needs, as sentences."""
    notes = []
    if layout == "main" and (empty := _left_empty(rows)):
        notes.append(f"The paper leaves empty: {'; '.join(empty)}.")
    cells = [cell for row in rows for cell in row.cells.values()]
    if any(cell.stale for cell in cells):
        notes.append(f"{STALE} made by other numerics than those of this version; run it again.")
    if changed := dict.fromkeys(name for cell in cells for name in cell.changed):
        notes.append(
            f"{CHANGED} made by other settings than its configuration has today "
            f"({', '.join(changed)}); run it again."
        )
    if early := _of_earlier_epochs(records, protocol, layout):
        notes.append(f"Evaluated before the training ended: {'; '.join(early)}.")
    if other := _of_other_protocols(records, protocol, layout):
        notes.append(f"Evaluated with another protocol alone and left out: {'; '.join(other)}.")
    known = {*DATASETS, *DOWNSTREAM, ELSEWHERE}
    named = (d.split(" [")[0] for row in rows for d in (row.dataset, row.target))
    strange = dict.fromkeys(dataset for dataset in named if dataset not in known)
    if strange:
        notes.append(f"Not data sets that this version knows: {', '.join(strange)}.")
    return notes


def _beside_ours(records: Records) -> Records:
    """Name the images of encoders from elsewhere as the runs do that were evaluated on the same.

    So both stand in one column, though only a run's evaluation is described by how its images
    differ from those of the pre-training.
    """
    own = {
        _same_images(e): e["images"]
        for _, record in records
        for e in record.evaluations
        if not record.from_elsewhere and e["dataset"] == record.dataset and _same_images(e)
    }
    return [
        (path, replace(record, evaluations=[_as_ours(e, own) for e in record.evaluations]))
        if record.from_elsewhere
        else (path, record)
        for path, record in records
    ]


def _as_ours(
    evaluation: dict[str, Any], own: Mapping[tuple[str, ...], Mapping[str, Any]]
) -> dict[str, Any]:
    same = own.get(_same_images(evaluation))
    if same is None:
        return evaluation
    return {**evaluation, "images": {**evaluation["images"], "part": same.get("part", "")}}


def _same_images(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what identifies the images of an evaluation; nothing if that was not noted."""
    images = evaluation.get("images") or {}
    train, test = images.get("train"), images.get("test")
    return () if train is None or test is None else (evaluation["dataset"], train, test)


def _group(record: Record, variant: str, by: Sequence[str], point: Mapping[str, Any]) -> tuple:
    budget = (getattr(record, name) for name in BUDGET)
    values = (as_word(point[key]) if key in point else setting(record, key) for key in by)
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
    """Refuse a setting in ``by`` that no record has, since its column would be empty."""
    for key in by:
        if records and not any(
            key in points.get(path, {}) or setting(record, key, NONE) is not NONE
            for path, record in records
        ):
            known = {name for point in points.values() for name in point}
            for _, record in records:
                known |= {name.removeprefix(".") for name in dotted(settings(record), "")}
            raise ClspError(f"--by {key}: no record has this setting{nearest(key, known)}")


def _check_shown(rows: Sequence[Row], protocol: str, layout: str) -> None:
    """Refuse a layout that would show nothing, except main, which lists unevaluated runs too."""
    cells = [cell for row in rows for cell in row.cells.values()]
    if layout != "main" and not any(cell.n or cell.failed for cell in cells):
        verbs = " or ".join(f"`clsp {task}`" for task in LAYOUTS[layout])
        raise ClspError(
            f"--layout {layout} would be empty: no record has a number of {verbs} with "
            f"the {protocol} protocol; evaluate the runs, or choose another --layout."
        )


def commit_of(record: Record) -> str:
    """The commit of a record's code, for people."""
    if record.commit is None:
        return f"none (clsp-plugin {record.versions.get('clsp_plugin', 'of unknown version')})"
    commit, _, dirty = record.commit.partition("-")
    return commit[:10] + (f"-{dirty}" if dirty else "")


def hardware_of(record: Record) -> str:
    """The hardware of a record's run, for people."""
    hardware = record.hardware
    cpu = f"{hardware.get('cpu', 'unknown CPU')} ({counted(hardware.get('cores', '?'), 'core')})"
    return f"{hardware['gpu']}, {cpu}" if hardware.get("gpu") else cpu
