"""Progress: a bar on a terminal, lines elsewhere, and how a suite reads them."""

import io
import re
import sys

import pytest

from clsp_plugin.suites.pool import Child
from clsp_plugin.suites.unit import Step, Unit
from clsp_plugin.system import progress
from clsp_plugin.system.progress import LINES_EVERY, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that lines are timed by, and that only moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.delenv(LINES_EVERY, raising=False)
    return now


def test_a_terminal_has_a_bar_without_colours(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in Progress(range(3), desc="work"):
        pass
    shown = sys.stderr.getvalue()
    assert shown.startswith("\rwork:   0%|")
    assert "\rwork: 100%|###" in shown
    assert not re.search(r"\x1b\[[\d;]*m", shown)


def test_elsewhere_there_are_lines_now_and_then(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Progress(total=8, desc="work", unit="step", position=2, mininterval=0, miniters=1)
    for seconds in (10, 10, 15, 10, 10, 10, 1):
        clock[0] += seconds
        bar.update()
        bar.set_postfix(loss=1)
        Progress.write("a sentence", file=sys.stderr)
    bar.close()
    bar.close()
    told = sys.stderr.getvalue()
    assert "\r" not in told
    assert "\x1b" not in told
    lines = [line for line in told.splitlines() if line != "a sentence"]
    assert [line[:15] for line in lines] == [
        "work:  38%| 3/8",
        "work:  75%| 6/8",
        "work:  88%| 7/8",
    ]
    assert "step/s, loss=1]" in lines[-1]


@pytest.mark.parametrize("disable", [False, True])
def test_short_work_ends_in_one_line(monkeypatch, clock, disable):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(Progress(range(2), desc="work", disable=disable)) == [0, 1]
    told = sys.stderr.getvalue()
    assert not told if disable else re.fullmatch(r"work: 100%\| 2/2 \[.*it/s\]\n", told)


def test_a_suite_reads_how_far_a_unit_is(monkeypatch, clock, tmp_path):
    """By the lines of its process, of which the first comes at once and the others soon."""
    monkeypatch.setenv(LINES_EVERY, "2")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    step = Step("pretrain", "digits/simclr", (), {"out": str(tmp_path)}, None, "key")
    child = Child.__new__(Child)
    child.unit, child.start, child.log = Unit("run", "", tmp_path, (step,)), 0, tmp_path / "log"
    child._step, child._since = step, 0.0
    shares = []
    bar = Progress(total=4, desc="train", mininterval=0, miniters=1)
    for seconds in (0, 1, 1, 2):
        clock[0] += seconds
        child.log.write_text(f"\n[1/1] clsp pretrain\n{sys.stderr.getvalue()}", encoding="utf-8")
        shares.append(child.progress()[1])
        bar.update()
    bar.close()  # has been told already
    assert len(sys.stderr.getvalue().splitlines()) == 3
    child.log.write_text(sys.stderr.getvalue(), encoding="utf-8")
    assert [*shares, child.progress()[1]] == [0, 0, 0, 0.75, 1]
