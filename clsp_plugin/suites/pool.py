"""The units of a plan as processes of their own, so many at a time, with what is left to do."""

import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from clsp_plugin.records.record import Record
from clsp_plugin.suites.unit import Plan, Step, Unit, notes_of
from clsp_plugin.suites.worker import describe
from clsp_plugin.system.child import environment_of_a_child
from clsp_plugin.system.files import write_text

__all__ = ["Child", "Pool", "Rates", "default_jobs", "duration"]

_POLL = 0.5  # seconds
_TAIL = 8192  # bytes of a log that hold the last state of a bar
_TELLING = 0.02  # share of a step that says how long the rest takes


def default_jobs() -> int:
    """Networks this small gain from a process a core, not from threads; a GPU is not shared."""
    return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Rates:
    """What steps take, measured on all units that were made in a folder, of any suite.

    A step takes its cost times the seconds a cost unit, or, where no cost is known of it, what one
    of its kind took in the mean; what comes before a training, where that is known, is not part of
    the rate. Steps of its own configuration tell; until there are some, those of the
    configuration's folder do, and then all of its verb, but of the same network and image size
    alone.
    """

    def __init__(self, artifacts: Path):
        # of steps with a cost, and of those without: the sums of their seconds, of the seconds
        # before, of their costs (or their number), and their number
        self.sums: dict[tuple[str, str, str | None, bool], tuple[float, ...]] = {}
        for file in artifacts.glob("*/*/done.json"):
            for note in notes_of(file.parent).values():
                if note.get("network"):  # an older note does not say what it was measured on
                    step = Step(note["verb"], note["config"], (), {}, note["cost"], "",
                                note["network"])  # fmt: skip
                    self.add(step, note["seconds"], note.get("work"))

    def add(self, step: Step, seconds: float, work: float | None = None) -> None:
        """Take a step into account that took so long, of it so long for the work itself."""
        work = seconds if work is None else work
        before = max(0.0, seconds - work)  # one that was stopped and went on worked before, too
        for name in _kinds(step.config):
            for known, amount in ((True, step.cost), (False, 1)):
                if amount:
                    key = (step.verb, step.network, name, known)
                    sums = self.sums.get(key, (0.0,) * 4)
                    more = (work, before, amount, 1)
                    self.sums[key] = tuple(a + b for a, b in zip(sums, more, strict=True))

    def of(self, step: Step) -> float | None:
        """Seconds that a step takes; None while no such step was measured."""
        for known, amount in ((True, step.cost), (False, 1)):
            if not amount:
                continue
            for name in _kinds(step.config):
                sums = self.sums.get((step.verb, step.network, name, known))
                if sums is not None:
                    work, before, of, number = sums
                    return amount * work / of + before / number
        return None


def _kinds(config: str | None) -> list[str | None]:
    """A configuration, its folder, and any."""
    return list(dict.fromkeys([config, config and str(Path(config).parent), None]))


class Child:
    """A unit's process, and how far it is by what its progress bar last said."""

    def __init__(self, unit: Unit):
        self.unit, self.began = unit, time.perf_counter()
        file = describe(unit)
        (unit.path / "failed.json").unlink(missing_ok=True)
        self.log = unit.path / "log.txt"
        self._step, self._since = next(iter(unit.missing), None), self.began
        environment = {**environment_of_a_child(), "PYTHONUNBUFFERED": "1"}
        if not torch.cuda.is_available():
            # sums over threads differ in their last bits: the numbers must not depend on --jobs
            environment.setdefault("OMP_NUM_THREADS", "1")
        with open(self.log, "ab") as log:
            self.start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "clsp_plugin.suites.worker", str(file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip

    def said(self, last: int | None = None) -> str:
        """What it wrote, or the end of it, of so many bytes."""
        with open(self.log, "rb") as log:
            log.seek(max(self.start, log.seek(0, os.SEEK_END) - last) if last else self.start)
            return log.read().decode(errors="replace")

    def progress(self) -> tuple[Step | None, float, float]:
        """The step it is at, the share of it that is done, and the seconds that it took."""
        step = next(iter(self.unit.missing), None)
        if step != self._step:
            self._step, self._since = step, time.perf_counter()
        text = self.said(_TAIL)
        found = re.findall(r"(\d+)%\|", text[max(0, text.rfind("] clsp ")) :])
        return step, int(found[-1]) / 100 if found else 0.0, time.perf_counter() - self._since

    def left(self, rates: Rates) -> float | None:
        """Seconds until it ends; None where there is nothing to tell it from."""
        step, share, seconds = self.progress()
        parts = [rates.of(other) for other in self.unit.missing if other != step]
        if step is not None:
            guess = seconds / share if share >= _TELLING else None
            whole = rates.of(step) or guess
            parts.append((1 - share) * whole if whole else None)
        told = [part for part in parts if part is not None]
        return sum(told) if len(told) == len(parts) else None

    def failure(self) -> str | None:
        """Why it failed, after it ended."""
        code = self.process.returncode
        if code == 0:
            stopped = "it ended before it was done, without an error: something stopped it"
            return stopped if self.unit.missing else None
        if code < 0:
            return f"killed by signal {-code}"
        lines = [line.strip() for line in re.split(r"[\r\n]+", self.said()) if line.strip()]
        told = [line for line in lines if line.startswith("clsp: ")]
        last = told[-1].removeprefix("clsp: ") if told else (lines or ["no output"])[-1]
        return f"{last} (exit code {code})"

    def note(self, reason: str) -> None:
        """Leave word of why it failed."""
        write_text(self.unit.path / "failed.json", json.dumps({"reason": reason}))


class Pool:
    """Runs a plan's units, so many at a time, each when those it needs are there."""

    def __init__(self, plan: Plan, jobs: int):
        self.plan, self.jobs = plan, jobs
        self.rates = Rates(plan.artifacts)
        self.running: list[Child] = []
        self.waiting = [unit for unit in plan.units if unit.missing]
        self.pending = {unit.path for unit in self.waiting}
        self.failed: dict[Path, str] = {}
        self.labels = {unit.path: unit.label for unit in plan.units}

    def run(self) -> dict[Path, str]:
        """Returns the units that failed, each with why."""
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
                self._tell(unit, f"{self.labels[broken[0]]} failed: {self.failed[broken[0]]}", bar)

    def _start(self) -> None:
        for unit in list(self.waiting):
            if len(self.running) < self.jobs and not self.pending & set(unit.needs):
                self.waiting.remove(unit)
                self.running.append(Child(unit))

    def _end(self, child: Child, bar: tqdm) -> None:
        self.running.remove(child)
        reason = child.failure()
        if reason is not None:
            child.note(reason)
            self._tell(child.unit, reason, bar)
            return
        self.pending.discard(child.unit.path)
        self.rates = Rates(self.plan.artifacts)
        seconds = duration(time.perf_counter() - child.began)
        self._tell(child.unit, None, bar, f"{_score(child.unit)}{seconds}")

    def _tell(self, unit: Unit, reason: str | None, bar: tqdm, what: str = "") -> None:
        """A line for a unit that ended, with the number of those that have."""
        bar.update()
        if reason is not None:
            self.failed[unit.path] = reason
            what = f"FAILED, {reason}; see {unit.path / 'log.txt'}"
        ended = len(self.plan.units) - len(self.waiting) - len(self.running)
        line = f"[{ended}/{len(self.plan.units)}] {unit.label}: {what}"
        bar.write(line, file=sys.stderr)

    def _status(self) -> str:
        """What runs, how far it is, and how long all of it still takes."""
        far = [(child, *child.progress()) for child in self.running]
        rates = copy.deepcopy(self.rates)
        for _, step, share, seconds in far:  # a first estimate, before anything is done
            if step and share >= _TELLING and step.cost and rates.of(step) is None:
                rates.add(step, seconds / share)
        left = [child.left(rates) for child in self.running]
        left += [rates.of(step) for unit in self.waiting for step in unit.missing]
        known = [seconds for seconds in left if seconds is not None]
        names = ", ".join(f"{child.unit.label} {share:.0%}" for child, _, share, _ in far)
        if not known:
            return names
        more = "more than " if len(known) < len(left) else ""
        return f"{names} | {more}{duration(sum(known) / self.jobs)} left"

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
    record = unit.record
    if unit.kind != "run" or record is None:
        return ""
    scores = [(e["task"], e[e.get("metric") or "top1"]) for e in Record.load(record).evaluations]
    return "".join(f"{task} {score:.1f} %, " for task, score in scores if score is not None)
