"""``clsp bench SUITE``: plan, run what is missing, and make the tables and figures.

A suite's units have an order (denoiser, candidates, run) and several verbs each, and must go on
when one of them dies. So each unit is a process of its own, in a pool of processes on this machine;
one of Hydra's launchers can start the processes instead, see ``suites.launchers``.
"""

import csv
import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.compose import compose
from clsp_plugin.config.training import Data
from clsp_plugin.config.typed import typed
from clsp_plugin.data.images import load_images
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.names import check_protocol
from clsp_plugin.figures import candidate_sheet, store_caption, training_curves
from clsp_plugin.figures.draw import write_figures
from clsp_plugin.figures.picture import Options
from clsp_plugin.records.belonging import read_reports
from clsp_plugin.records.recipe import Records
from clsp_plugin.records.record import INDEX, Record, find_records
from clsp_plugin.suites.launchers import check_launcher, launch
from clsp_plugin.suites.planner import make_plan
from clsp_plugin.suites.pool import Pool, Rates, default_jobs
from clsp_plugin.suites.report import write_report
from clsp_plugin.suites.suite import read_suite
from clsp_plugin.suites.trainings import is_begun
from clsp_plugin.suites.unit import Plan, Unit
from clsp_plugin.suites.watch import PLAN
from clsp_plugin.system.alone import alone
from clsp_plugin.system.durations import duration
from clsp_plugin.system.files import unfinished, write_text
from clsp_plugin.system.json_files import read_json
from clsp_plugin.tables.formats import FORMATS, csv_cell
from clsp_plugin.tables.make import Listing, make_table
from clsp_plugin.tables.rows import Absent
from clsp_plugin.verbs import VERBS

__all__ = ["Outcome", "bench", "run_plan", "show_plan", "write_results"]

_SHEET_ROWS = 8
_SUITE = "suite.json"


@dataclass
class Outcome:
    """The outcome of running a plan.

    Attributes:
        runs: the runs that are complete and evaluated.
        failures: the other runs, each with the reason.
        others: units besides runs that failed, each with the reason.
    """

    runs: list[Unit] = field(default_factory=list)
    failures: list[tuple[Unit, str]] = field(default_factory=list)
    others: list[tuple[Unit, str]] = field(default_factory=list)


def _state(unit: Unit) -> str:
    if unit.made and not unit.missing:
        return "done"
    if unit.failure:
        return "failed before, to do again"
    return "to continue" if is_begun(unit.path) else "to do"


def show_plan(plan: Plan, jobs: int) -> str:
    """Return what would be run, with its cost, and its time where such steps were measured here."""
    rates = Rates(plan.artifacts)
    width = max(len(unit.label) for unit in plan.units)
    lines, total, unmeasured = [], 0.0, set()
    costs: dict[str, int] = {}
    for unit in plan.units:
        words = []
        for step in unit.missing:
            work = "" if step.cost is None else f": {step.cost:,} {VERBS[step.verb].counts}"
            seconds = rates.of(step)
            words.append(f"{step.verb}{work}" + (f", {duration(seconds)}" if seconds else ""))
            if step.cost:
                costs[step.verb] = costs.get(step.verb, 0) + step.cost
            total += seconds or 0.0
            if seconds is None:
                unmeasured.add(step.verb)
        lines.append(f"{unit.label:<{width}}  {_state(unit):<12} {'; '.join(words)}".rstrip())
    todo = sum(bool(unit.missing) for unit in plan.units)
    lines.append(f"\n{todo} of {len(plan.units)} to do, {jobs} at a time, in {plan.artifacts}.")
    for verb, cost in costs.items():
        lines.append(f"  {verb:<10} {cost:>18,} {VERBS[verb].counts}")
    if total:
        at_least = "at least " if unmeasured else ""
        lines.append(f"Time, as measured on the units that are done: {at_least}"
                     f"{duration(total / jobs)}.")  # fmt: skip
    if unmeasured:
        lines.append(f"Not measured here yet: {', '.join(sorted(unmeasured))}.")
    lines += [f"Before it can be run: {line}" for line in plan.absent]
    return "\n".join(lines)


def run_plan(
    plan: Plan, jobs: int, launcher: str | None = None, settings: Sequence[str] = ()
) -> Outcome:
    """Run what a plan is missing.

    A run that fails does not stop the others. Stopped at any moment and called again, it continues
    with the units that are not done, each from its last checkpoint.

    Args:
        plan: plan of a suite.
        jobs: units at a time.
        launcher: one of Hydra's launchers, in place of a pool of processes here; see
            ``suites.launchers``.
        settings: settings of the launcher.
    """
    failures = launch(plan, launcher, settings) if launcher else Pool(plan, jobs).run()
    outcome = Outcome()
    for unit in plan.units:
        if unit.path in failures:
            failed = outcome.failures if unit.kind == "run" else outcome.others
            failed.append((unit, failures[unit.path]))
        elif unit.kind == "run":
            outcome.runs.append(unit)
    return outcome


@contextmanager
def _claimed(plan: Plan) -> Iterator[None]:
    """Hold the directory of a suite's tables, which belongs to one suite and to one process.

    Raises:
        ClspError: it is another suite's, or not of a suite.
    """
    _check_claim(plan)  # before it waits for the lock
    plan.out.mkdir(parents=True, exist_ok=True)
    with alone(plan.out, f"runs the suite in {plan.out}"):
        _check_claim(plan)
        write_text(plan.out / _SUITE, json.dumps({"suite": plan.name}))
        write_text(plan.out / PLAN, json.dumps({"units": _units(plan)}, indent=1))
        yield


def _units(plan: Plan) -> list[dict[str, Any]]:
    """Return what `clsp watch` has to know of the units of a plan."""
    return [
        {
            "label": unit.label,
            "path": Path(os.path.relpath(unit.path, plan.out)).as_posix(),
            "steps": {step.key: step.verb for step in unit.steps},
        }
        for unit in plan.units
    ]


def _check_claim(plan: Plan) -> None:
    out = plan.out
    if out.exists() and not out.is_dir():
        raise ClspError(f"{out} is a file; choose another --out.")
    try:
        kind = dict[Literal["suite"], str]
        before = read_json(out / _SUITE, kind, "a suite's note", "choose another --out")
    except FileNotFoundError:
        if out.exists() and set(out.iterdir()) - set(unfinished(out, _SUITE)):
            raise ClspError(f"{out} holds other files; choose another --out.") from None
        return
    if before.get("suite") != plan.name:
        raise ClspError(f"{out} holds the suite {before.get('suite')}; choose another --out.")


def write_results(plan: Plan, outcome: Outcome) -> str:
    """Write the suite's tables in every format, and its figures.

    Returns:
        The tables as Markdown.
    """
    # what a run measured before it failed is kept; the rest is absent
    found: dict[Path, Unit] = {}
    for unit in [*outcome.runs, *(unit for unit, _ in outcome.failures if unit.record)]:
        record = unit.record
        assert record is not None  # those of `outcome.runs` are done
        found[record] = unit
    records = find_records(found) if found else []
    told = Listing(
        list(plan.suite.vary),
        {record: unit.about["point"] for record, unit in found.items()},
        {record: unit.about["variant"] for record, unit in found.items()},
        [_absent(plan, unit, reason) for unit, reason in outcome.failures],
    )
    _write_index(plan, found, told.absent)
    settings, texts = plan.suite.table, []
    for layout in settings.layout:
        table = make_table(
            records, protocol=settings.protocol, published=settings.published,
            layout=layout, **vars(told),
        )  # fmt: skip
        texts.append(table.to_markdown())
        for name, suffix in FORMATS.items():
            write_text(
                plan.out / f"{_table_name(plan, layout)}{suffix}", table.render(name, plan.out)
            )
    _draw(plan, records, told)
    stores = [unit for unit in plan.units if unit.kind == "candidates" and unit.made]
    for unit in stores:
        name = "candidates" if len(stores) == 1 else f"candidates-{unit.path.name}"
        _sheet(unit, plan.out / f"{name}.png", alone=len(stores) == 1)
    _write_quality(plan)
    return "\n".join(texts)


def _absent(plan: Plan, unit: Unit, reason: str) -> Absent:
    """Return what a run that failed lacks: all, or evaluations by the suite's protocol."""
    protocol = plan.suite.table.protocol if unit.record else ""
    tasks = tuple(step.verb for step in unit.missing)
    return Absent(**unit.about, reason=reason, tasks=tasks, protocol=protocol)


def _write_index(plan: Plan, runs: Mapping[Path, Unit], absent: Sequence[Absent]) -> None:
    """Write ``records.json``, the list of the suite's records for other commands."""
    records = [
        {
            "path": Path(os.path.relpath(record, plan.out)).as_posix(),
            **{key: unit.about[key] for key in ("variant", "point")},
        }
        for record, unit in runs.items()
    ]
    failed = [asdict(run) for run in absent]
    reports = [
        Path(os.path.relpath(report, plan.out)).as_posix() for _, report in _quality_reports(plan)
    ]
    content = {"by": list(plan.suite.vary), "records": records, "failed": failed}
    content |= {"reports": reports} if reports else {}
    write_text(plan.out / INDEX, json.dumps(content, indent=1) + "\n")


def _draw(plan: Plan, records: Records, told: Listing) -> None:
    """Write the suite's figures and its report."""
    if any(record.curve for _, record in records):
        for suffix in ("png", "svg"):
            training_curves(records, plan.out / f"curves.{suffix}", told)
    if records:
        settings = plan.suite.table
        reports = read_reports(report for _, report in _quality_reports(plan))
        options = Options(settings.protocol, settings.published, reports=reports, told=told)
        drawn = write_figures(records, plan.out / _named(plan, "figures"), options)
        write_report(records, plan.out / f"{_named(plan, 'report')}.html", options, drawn)


def _table_name(plan: Plan, layout: str) -> str:
    """Return ``table``, then the layout if not the first, then ``paper`` if so evaluated."""
    return _named(plan, "table", *[layout] * (layout != plan.suite.table.layout[0]))


def _named(plan: Plan, *words: str) -> str:
    return "-".join([*words, *["paper"] * (plan.suite.table.protocol == "paper")])


def _quality_reports(plan: Plan) -> list[tuple[Unit, Path]]:
    """Return the units that measured a store, each with the path of its report."""
    made = (unit for unit in plan.units if unit.kind == "quality" and unit.made)
    return [(unit, unit.product / "report.json") for unit in made]


def _write_quality(plan: Plan) -> None:
    """Write ``quality.csv``: a line per store, with its candidates' distance to real images."""
    lines = []
    for unit, file in _quality_reports(plan):
        (report,) = read_reports([file])
        found = {"denoiser": report["manifest"]["denoiser"], "fid": report.get("fid", "")}
        found["frechet"] = report.get("frechet", {}).get("candidates", "")
        lines.append({"dataset": unit.about["dataset"], **unit.about["point"], **found})
    if lines:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writerow({key: csv_cell(key) for key in lines[0]})
        writer.writerows({k: csv_cell(v) for k, v in line.items()} for line in lines)
        write_text(plan.out / "quality.csv", out.getvalue())


def _sheet(unit: Unit, path: Path, alone: bool) -> None:
    """Write a sheet of a store's first anchors and their candidates, not chosen by eye."""
    step = unit.steps[0]
    store = CandidateStore(unit.product)
    data = typed(compose("generate", step.config, step.overrides).data, Data)
    train = load_images(data, "train")
    rows = list(range(min(_SHEET_ROWS, len(train))))
    candidate_sheet(
        train.images[rows].numpy(),
        store.images(rows),
        path,
        title="Anchors and their candidates" + ("" if alone else f": {_told_apart(unit)}"),
        caption=store_caption(store.need_manifest()),
    )


def _told_apart(unit: Unit) -> str:
    """Return the data set of a store, and the settings of it that a suite varies."""
    return unit.label.partition(", ")[2]


def bench(
    name: str,
    out: Path | None = None,
    *,
    artifacts: Path | None = None,
    jobs: int | None = None,
    launcher: str | None = None,
    dry_run: bool = False,
    keep_stale: bool = False,
    datasets: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    protocol: str | None = None,
    overrides: Sequence[str] = (),
) -> Outcome | None:
    """Run a suite and write its tables and figures.

    Args:
        name: name of a suite that ships with this package, or path of a YAML file.
        out: the directory of the tables and figures; by default ``runs/<name>``.
        artifacts: the directory of the units, which suites can share; by default ``out`` if that is
            given, else ``runs/artifacts``.
        jobs: units at a time; by default one per core, at most 8, or one with a GPU.
        launcher: one of Hydra's launchers, in place of a pool of processes here.
        dry_run: whether to print the plan and its cost, and stop.
        keep_stale: whether to take what older numerics made from the same settings; the table marks
            it.
        datasets: data sets in place of the suite's.
        methods: methods in place of the suite's.
        seeds: seeds in place of the suite's.
        protocol: protocol in place of the suite's.
        overrides: ``key=value`` for every run; those that begin with ``hydra.`` are for the
            launcher.

    Raises:
        ClspError: a suite, or the record of a done run, cannot be read; or, after everything else
            was run, runs failed.
    """
    settings = [override for override in overrides if override.startswith("hydra.")]
    if settings and launcher is None:
        raise ClspError(f"{settings[0]} is for a launcher; name it with --launcher.")
    own = [override for override in overrides if override not in settings]
    name, suite = read_suite(name, own, datasets)
    suite.methods = list(methods) or suite.methods
    suite.seeds = list(seeds) or suite.seeds
    suite.table.protocol = protocol or suite.table.protocol
    check_protocol(suite.table.protocol)
    jobs = default_jobs() if jobs is None else jobs
    if jobs < 1:
        raise ClspError(f"--jobs {jobs} must be at least 1.")
    if artifacts is None:
        artifacts = Path("runs/artifacts") if out is None else out
    if launcher is not None and not dry_run:  # a dry run needs no plugin
        check_launcher(launcher)
    plan = make_plan(name, suite, out or Path("runs") / name, keep_stale, artifacts)
    for unit in plan.units:
        if unit.kind in ("run", "encoder") and unit.record:
            Record.load(unit.record)  # refused now, not after hours of work
    if dry_run:
        print(show_plan(plan, jobs))
        return None
    if plan.absent and any(unit.missing for unit in plan.runs):
        raise ClspError(f"Nothing was run. {' '.join(plan.absent)} Or name others: "
                        f"transfer.datasets=[NAME,..].")  # fmt: skip
    began = time.perf_counter()
    with _claimed(plan):
        outcome = run_plan(plan, jobs, launcher, settings)
        print(f"{suite.title}\n\n{write_results(plan, outcome)}")
    print(f"Written to {plan.out} in {duration(time.perf_counter() - began)}:")
    for file in _written(plan):
        print(f"  {file}")
    _check_failures(plan, outcome)
    return outcome


def _written(plan: Plan) -> list[str]:
    """Return the written files, for people; a folder of figures counts as one, with a slash."""
    files = [str(path) for path in plan.out.glob("*.*") if path.suffix != ".json"]
    folder = plan.out / _named(plan, "figures")
    return sorted([*files, *([f"{folder}{os.sep}"] if folder.is_dir() else [])])


def _check_failures(plan: Plan, outcome: Outcome) -> None:
    if outcome.failures:
        raise ClspError(
            f"{len(outcome.failures)} of {len(plan.runs)} runs failed; the table says why, and "
            f"the same command tries them again."
        )
    if outcome.others:
        unit, reason = outcome.others[0]
        raise ClspError(f"All runs are there, but {unit.label} failed: {reason}")
