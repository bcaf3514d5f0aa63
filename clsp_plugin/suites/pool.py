"""Run the units of a plan as processes, several at a time, and tell how long the rest takes."""

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

from clsp_plugin.records.record import Record
from clsp_plugin.suites.unit import Plan, Step, Unit, notes_of
from clsp_plugin.suites.worker import describe
from clsp_plugin.system.child import environment_of_a_child
from clsp_plugin.system.durations import duration
from clsp_plugin.system.files import write_text
from clsp_plugin.system.progress import LINES_EVERY, Progress

__all__ = ["Child", "Pool", "Rates", "default_jobs"]

_POLL = 0.5  # seconds
_TAIL = 8192  # bytes at the end of a log, in which the last line of progress lies
_TELLING = 0.02  # share of a step after which the time of the rest is estimated


def default_jobs() -> int:
    """Return how many units run at a time by default: one with a GPU, else one per core, at most 8.

    Networks this small gain more from processes than from threads.
    """
    return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8)


class Rates:
    """Estimates how long steps take, from all units that were made in a folder, of any suite.

    A step takes its cost times the seconds per unit of cost or, where its cost is not known, the
    mean time of steps of its kind. Time before a training starts is averaged apart from that, where
    it is known. The estimate is made from steps with the same configuration; while there are none,
    from those with a configuration in the same folder, and then from all of the same verb. Only
    steps with the same network and image size are compared.
    """

    def __init__(self, artifacts: Path):
        # (verb, network, configuration, whether the cost is known) to the sums of the seconds of
        # work, of the seconds before it, of the costs (or steps), and to the number of steps
        self.sums: dict[tuple[str, str, str | None, bool], tuple[float, ...]] = {}
        for file in artifacts.glob("*/*/done.json"):
            for note in notes_of(file.parent).values():
                if note.get("network"):  # older notes do not name it
                    step = Step(note["verb"], note["config"], (), {}, note["cost"], "",
                                note["network"])  # fmt: skip
                    self.add(step, note["seconds"], note.get("work"))

    def add(self, step: Step, seconds: float, work: float | None = None) -> None:
        """Add a step that took ``seconds``, ``work`` of these (default: all) for its training."""
        work = seconds if work is None else work
        before = max(0.0, seconds - work)  # a continued step has work from before
        for name in _kinds(step.config):
            for known, amount in ((True, step.cost), (False, 1)):
                if amount:
                    key = (step.verb, step.network, name, known)
                    sums = self.sums.get(key, (0.0,) * 4)
                    more = (work, before, amount, 1)
                    self.sums[key] = tuple(a + b for a, b in zip(sums, more, strict=True))

    def of(self, step: Step) -> float | None:
        """Return the seconds that a step takes; None while no such step was measured."""
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
    """Return what to look up: a configuration, its folder, and None for any configuration."""
    return list(dict.fromkeys([config, config and str(Path(config).parent), None]))


class Child:
    """The process of a unit; how far it is, is read from the last line of its progress."""

    def __init__(self, unit: Unit):
        self.unit, self.began = unit, time.perf_counter()
        file = describe(unit)
        (unit.path / "failed.json").unlink(missing_ok=True)
        self.log = unit.path / "log.txt"
        self._step, self._since = next(iter(unit.missing), None), self.began
        environment = {**environment_of_a_child(), "PYTHONUNBUFFERED": "1", LINES_EVERY: "2"}
        if not torch.cuda.is_available():
            # the number of threads changes the last bits of sums: results must not depend on --jobs
            environment.setdefault("OMP_NUM_THREADS", "1")
        with open(self.log, "ab") as log:
            self.start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "clsp_plugin.suites.worker", str(file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip

    def said(self, last: int | None = None) -> str:
        """Return what the process wrote to its log, or the last so many bytes of it."""
        with open(self.log, "rb") as log:
            log.seek(max(self.start, log.seek(0, os.SEEK_END) - last) if last else self.start)
            return log.read().decode(errors="replace")

    def progress(self) -> tuple[Step | None, float, float]:
        """Return the current step, the share of it that is done, and the seconds that it took."""
        step = next(iter(self.unit.missing), None)
        if step != self._step:
            self._step, self._since = step, time.perf_counter()
        text = self.said(_TAIL)
        found = re.findall(r"(\d+)%\|", text[max(0, text.rfind("] clsp ")) :])
        return step, int(found[-1]) / 100 if found else 0.0, time.perf_counter() - self._since

    def left(self, rates: Rates) -> float | None:
        """Return the seconds until the process ends; None where they cannot be estimated."""
        step, share, seconds = self.progress()
        parts = [rates.of(other) for other in self.unit.missing if other != step]
        if step is not None:
            guess = seconds / share if share >= _TELLING else None
            whole = rates.of(step) or guess
            parts.append((1 - share) * whole if whole else None)
        told = [part for part in parts if part is not None]
        return sum(told) if len(told) == len(parts) else None

    def failure(self) -> str | None:
        """Return why the process failed, after it ended; None if it did not fail."""
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
        """Write the reason of a failure to ``failed.json``."""
        write_text(self.unit.path / "failed.json", json.dumps({"reason": reason}))


class Pool:
    """Runs a plan's units, ``jobs`` at a time, each after the units that it needs."""

    def __init__(self, plan: Plan, jobs: int):
        self.plan, self.jobs = plan, jobs
        self.rates = Rates(plan.artifacts)
        self.running: list[Child] = []
        self.waiting = [unit for unit in plan.units if unit.missing]
        self.pending = {unit.path for unit in self.waiting}
        self.failed: dict[Path, str] = {}
        self.labels = {unit.path: unit.label for unit in plan.units}

    def run(self) -> dict[Path, str]:
        """Run the units; return the directories of those that failed, each with the reason."""
        done = len(self.plan.units) - len(self.waiting)
        bar = Progress(
            total=len(self.plan.units), initial=done, desc=self.plan.name, unit="unit",
            dynamic_ncols=True, bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}",
            line_format="{desc}: {n_fmt}/{total_fmt} {elapsed}{postfix}",
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

    def _drop_hopeless(self, bar: Progress) -> None:
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

    def _end(self, child: Child, bar: Progress) -> None:
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

    def _tell(self, unit: Unit, reason: str | None, bar: Progress, what: str = "") -> None:
        """Print a line for a unit that ended, with the number of units that have ended."""
        bar.update()
        if reason is not None:
            self.failed[unit.path] = reason
            what = f"FAILED, {reason}; see {unit.path / 'log.txt'}"
        ended = len(self.plan.units) - len(self.waiting) - len(self.running)
        line = f"[{ended}/{len(self.plan.units)}] {unit.label}: {what}"
        bar.write(line, file=sys.stderr)

    def _status(self) -> str:
        """Return what runs, how far it is, and how long all of it still takes."""
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
        """End all running processes when the block ends, however it ends."""
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
    record = unit.record
    assert record is not None  # it is done
    scores = [(e["task"], e[e.get("metric") or "top1"]) for e in Record.load(record).evaluations]
    return "".join(f"{task} {score:.1f} %, " for task, score in scores if score is not None)
