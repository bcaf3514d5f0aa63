"""``clsp bench SUITE``: plan, run what is missing, and make the tables and figures.

Units run as child processes of ours, so many at a time. Hydra's launchers run one application's
configurations; a suite's runs have an order (denoiser, candidates, run), several verbs each, and
must go on when one of them dies, so on one machine a pool of processes is the simpler thing. There
is no path to a cluster's scheduler.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from clsp_plugin.benchmark.figures import candidate_sheet, store_caption, training_curves
from clsp_plugin.benchmark.figures.draw import write_figures
from clsp_plugin.benchmark.grid import FORMATS
from clsp_plugin.benchmark.suite import Plan, Step, Unit, make_plan, measure, read_suite
from clsp_plugin.benchmark.table import Absent, make_table
from clsp_plugin.benchmark.unit import describe
from clsp_plugin.cli import compose
from clsp_plugin.data.files import write_whole
from clsp_plugin.data.images import load_images
from clsp_plugin.data.store import CandidateStore
from clsp_plugin.engine.config import Data, typed
from clsp_plugin.engine.record import Record, find_records
from clsp_plugin.errors import ClspError

__all__ = ["Outcome", "bench", "run_plan", "show_plan", "write_results"]

_POLL = 0.5  # seconds
_SHEET_ROWS = 8


@dataclass
class Outcome:
    """What became of a plan.

    Attributes:
        runs: those with a number, whole and evaluated.
        failures: the others, each with why.
    """

    runs: list[Unit] = field(default_factory=list)
    failures: list[tuple[Unit, str]] = field(default_factory=list)


def default_jobs() -> int:
    """Networks this small gain from a process a core, not from threads; a GPU is not shared."""
    return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8)


class Rates:
    """Seconds a cost unit by verb, measured on the units of a plan that are done."""

    def __init__(self, plan: Plan):
        self.seconds: dict[str, float] = {}
        self.cost: dict[str, float] = {}
        for unit in plan.units:
            for note in unit.done.values():
                if note["cost"]:
                    self.add(note["verb"], note["cost"], note["seconds"])

    def add(self, verb: str, cost: float, seconds: float) -> None:
        self.seconds[verb] = self.seconds.get(verb, 0.0) + seconds
        self.cost[verb] = self.cost.get(verb, 0.0) + cost

    def of(self, step: Step) -> float | None:
        """Seconds that a step takes; None while no such step was measured."""
        if not step.cost or step.verb not in self.cost:
            return None
        return step.cost * self.seconds[step.verb] / self.cost[step.verb]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _state(unit: Unit) -> str:
    if unit.made and not unit.missing:
        return "done"
    if unit.failure:
        return "failed before, to do again"
    return "to continue" if (unit.path / "unit.json").exists() else "to do"


def show_plan(plan: Plan, jobs: int) -> str:
    """What would be run, with its cost; time where a step of its kind was measured here."""
    rates = Rates(plan)
    width = max(len(unit.label) for unit in plan.units)
    lines, total, unmeasured, costs = [], 0.0, set(), {}
    for unit in plan.units:
        words = []
        for step in unit.missing:
            cost = "size not known" if step.cost is None else f"{step.cost:,} {measure(step.verb)}"
            seconds = rates.of(step)
            words.append(f"{step.verb}: {cost}" + (f", {_duration(seconds)}" if seconds else ""))
            costs[step.verb] = costs.get(step.verb, 0) + (step.cost or 0)
            total += seconds or 0.0
            if seconds is None:
                unmeasured.add(step.verb)
        lines.append(f"{unit.label:<{width}}  {_state(unit):<12} {'; '.join(words)}".rstrip())
    todo = sum(bool(unit.missing) for unit in plan.units)
    lines.append(f"\n{todo} of {len(plan.units)} to do, {jobs} at a time, in {plan.out}.")
    for verb, cost in costs.items():
        lines.append(f"  {verb:<10} {cost:>18,} {measure(verb)}")
    if total:
        at_least = "at least " if unmeasured else ""
        lines.append(f"Time, as measured on the units that are done: {at_least}"
                     f"{_duration(total / jobs)}.")  # fmt: skip
    if unmeasured:
        lines.append(f"Not measured here yet: {', '.join(sorted(unmeasured))}.")
    return "\n".join(lines)


class _Child:
    """A unit's process, and how far it is by what its progress bar last said."""

    def __init__(self, unit: Unit):
        self.unit, self.began = unit, time.perf_counter()
        file = describe(unit)
        (unit.path / "failed.json").unlink(missing_ok=True)
        self.log = unit.path / "log.txt"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if not torch.cuda.is_available():
            # sums over threads differ in their last bits: the numbers must not depend on --jobs
            environment.setdefault("OMP_NUM_THREADS", "1")
        with open(self.log, "ab") as log:
            self.start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "clsp_plugin.benchmark.unit", str(file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip

    def said(self) -> str:
        with open(self.log, "rb") as log:
            log.seek(self.start)
            return log.read().decode(errors="replace")

    def left(self, rates: Rates) -> float | None:
        """Seconds until it ends; None where there is nothing to tell it from."""
        missing = self.unit.missing
        parts = [rates.of(step) for step in missing]
        if not missing or None in parts:
            return None
        share = self._share(len(self.unit.steps) - len(missing) + 1)
        return sum(parts) - share * parts[0]

    def _share(self, number: int) -> float:
        text = self.said()
        at = text.rfind(f"[{number}/{len(self.unit.steps)}] clsp")
        found = re.findall(r"(\d+)%\|", text[at:]) if at >= 0 else []
        return int(found[-1]) / 100 if found else 0.0

    def failure(self) -> str | None:
        """Why it failed, after it ended."""
        code = self.process.returncode
        if code == 0:
            return None
        if code < 0:
            return f"killed by signal {-code}"
        lines = [line.strip() for line in re.split(r"[\r\n]+", self.said()) if line.strip()]
        told = [line for line in lines if line.startswith("clsp: ")]
        last = told[-1].removeprefix("clsp: ") if told else (lines or ["no output"])[-1]
        return f"{last} (exit code {code})"


def _note_failure(unit: Unit, reason: str) -> None:
    content = json.dumps({"reason": reason}).encode()
    write_whole(unit.path / "failed.json", lambda file: file.write(content))


class _Pool:
    """Runs a plan's units, so many at a time, each when those it needs are there."""

    def __init__(self, plan: Plan, jobs: int):
        self.plan, self.jobs = plan, jobs
        self.rates = Rates(plan)
        self.running: list[_Child] = []
        self.waiting = [unit for unit in plan.units if unit.missing]
        self.pending = {unit.path for unit in self.waiting}
        self.failed: dict[Path, str] = {}
        self.labels = {unit.path: unit.label for unit in plan.units}

    def run(self) -> dict[Path, str]:
        done = len(self.plan.units) - len(self.waiting)
        bar = tqdm(
            total=len(self.plan.units), initial=done, desc=self.plan.name, unit="unit",
            dynamic_ncols=True, bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}",
            disable=None,  # where it is not seen it is not drawn; what ends is told all the same
        )  # fmt: skip
        with bar, self._ended():
            while self.waiting or self.running:
                self._drop_hopeless(bar)
                self._start()
                time.sleep(_POLL)
                for child in [c for c in self.running if c.process.poll() is not None]:
                    self._end(child, bar)
                bar.set_postfix_str(self._status())
        return self.failed

    def _drop_hopeless(self, bar: tqdm) -> None:
        for unit in list(self.waiting):
            broken = [path for path in unit.needs if path in self.failed]
            if broken:
                self.waiting.remove(unit)
                reason = f"{self.labels[broken[0]]} failed: {self.failed[broken[0]]}"
                self._fail(unit, reason, bar)
                bar.update()

    def _start(self) -> None:
        for unit in list(self.waiting):
            if len(self.running) < self.jobs and not self.pending & set(unit.needs):
                self.waiting.remove(unit)
                self.running.append(_Child(unit))

    def _end(self, child: _Child, bar: tqdm) -> None:
        self.running.remove(child)
        reason = child.failure()
        if reason is None and child.unit.missing:
            reason = "it ended without a word"
        bar.update()
        if reason is not None:
            self._fail(child.unit, reason, bar)
            return
        self.pending.discard(child.unit.path)
        self.rates = Rates(self.plan)
        seconds = time.perf_counter() - child.began
        bar.write(f"{child.unit.label}: {_score(child.unit)}{_duration(seconds)}", file=sys.stderr)

    def _fail(self, unit: Unit, reason: str, bar: tqdm) -> None:
        self.failed[unit.path] = reason
        _note_failure(unit, reason)
        bar.write(f"{unit.label}: FAILED, {reason}; see {unit.path / 'log.txt'}", file=sys.stderr)

    def _status(self) -> str:
        left = [child.left(self.rates) for child in self.running]
        steps = [step for unit in self.waiting for step in unit.missing]
        left += [self.rates.of(step) for step in steps]
        known = [seconds for seconds in left if seconds is not None]
        names = ", ".join(child.unit.label for child in self.running)
        if not known:
            return names
        more = "more than " if len(known) < len(left) else ""
        return f"{names} | {more}{_duration(sum(known) / self.jobs)} left"

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """However this ends, no process is left behind."""
        try:
            yield
        finally:
            for child in self.running:
                child.process.terminate()
            for child in self.running:
                try:
                    child.process.wait(10)
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()


def _score(unit: Unit) -> str:
    if unit.kind != "run":
        return ""
    found = Record.load(unit.record).evaluations
    return "".join(f"{e['task']} {e['top1']:.1f} %, " for e in found if e["top1"] is not None)


def run_plan(plan: Plan, jobs: int) -> Outcome:
    """Run what a plan is missing.

    A run that fails does not stop the others. Stopped at any moment and started again, it
    continues: with the units that are not done, and in these where their last checkpoint is.

    Args:
        plan: of a suite.
        jobs: units at a time.
    """
    _claim(plan)
    failures = _Pool(plan, jobs).run()
    outcome = Outcome()
    for unit in plan.runs:
        if unit.path in failures:
            outcome.failures.append((unit, failures[unit.path]))
        else:
            outcome.runs.append(unit)
    return outcome


def _claim(plan: Plan) -> None:
    """A directory belongs to one suite."""
    file = plan.out / "suite.json"
    if file.exists():
        before = json.loads(file.read_text())["suite"]
        if before != plan.name:
            raise ClspError(f"{plan.out} holds the suite {before}; choose another --out.")
    elif plan.out.exists() and any(plan.out.iterdir()):
        raise ClspError(f"{plan.out} holds other files; choose another --out.")
    else:
        write_whole(file, lambda handle: handle.write(json.dumps({"suite": plan.name}).encode()))


def write_results(plan: Plan, outcome: Outcome) -> str:
    """Write the suite's table in every format, and its pictures.

    Returns:
        The table as Markdown.
    """
    paths = [unit.record for unit in outcome.runs]
    records = find_records(paths) if paths else []
    points = {unit.record: unit.about["point"] for unit in outcome.runs}
    absent = [Absent(**{**unit.about, "reason": reason}) for unit, reason in outcome.failures]
    settings = plan.suite.table
    table = make_table(
        records, protocol=settings.protocol, published=settings.published,
        by=list(plan.suite.vary), layout=settings.layout, absent=absent, points=points,
    )  # fmt: skip
    for name, suffix in FORMATS.items():
        text = table.render(name, plan.out).encode()
        write_whole(plan.out / f"table{suffix}", lambda file, text=text: file.write(text))
    if any(record.curve for _, record in records):
        for suffix in ("png", "svg"):
            training_curves(records, plan.out / f"curves.{suffix}")
    if records:
        folder = plan.out / "figures"
        write_figures(records, folder, protocol=settings.protocol, published=settings.published)
    for unit in plan.units:
        if unit.kind == "candidates" and unit.made:
            _sheet(unit, plan.out)
    return table.to_markdown()


def _sheet(unit: Unit, out: Path) -> None:
    """Anchors beside their candidates, for each store; the first images, whatever they are."""
    step = unit.steps[0]
    store = CandidateStore(unit.product)
    data = typed(compose("generate", step.config, step.overrides).data, Data)
    train = load_images(data, "train")
    rows = list(range(min(_SHEET_ROWS, len(train))))
    candidate_sheet(
        train.images[rows].numpy(),
        store.images(rows),
        out / f"{unit.kind}-{unit.path.name}.png",
        title="Anchors and their candidates",
        caption=store_caption(store.manifest),
    )


def bench(
    name: str,
    out: Path | None = None,
    *,
    jobs: int | None = None,
    dry_run: bool = False,
    keep_stale: bool = False,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
) -> Outcome | None:
    """Run a suite and write its tables and figures.

    Args:
        name: of a suite that ships with us, or a YAML file.
        out: the directory of everything; by default ``runs/<name>``.
        jobs: units at a time; by default one a core, or one with a GPU.
        dry_run: print the plan and its cost, and stop.
        keep_stale: take what older code made where its settings are the same; the table marks it.
        methods: in place of the suite's.
        seeds: in place of the suite's.
        overrides: ``key=value`` for every run.

    Raises:
        ClspError: a suite that cannot be read; or, after everything else was run, runs failed.
    """
    name, suite = read_suite(name, overrides)
    suite.methods = list(methods) or suite.methods
    suite.seeds = list(seeds) or suite.seeds
    jobs = default_jobs() if jobs is None else jobs
    if jobs < 1:
        raise ClspError(f"--jobs {jobs} must be at least 1.")
    plan = make_plan(name, suite, out or Path("runs") / name, keep_stale)
    if dry_run:
        print(show_plan(plan, jobs))
        return None
    outcome = run_plan(plan, jobs)
    print(f"{suite.title}\n\n{write_results(plan, outcome)}\nWritten to {plan.out}.")
    if outcome.failures:
        raise ClspError(
            f"{len(outcome.failures)} of {len(plan.runs)} runs failed; the table says why, and "
            f"the same command tries them again."
        )
    return outcome
