"""Killed at any moment, or two at once: the same command goes on, and no process is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from clsp_plugin.errors import ClspError
from clsp_plugin.figures import draw as drawing
from clsp_plugin.figures.draw import write_figures
from clsp_plugin.figures.picture import Options, Picture
from clsp_plugin.records.record import Record
from clsp_plugin.suites.bench import _claimed
from clsp_plugin.suites.trainings import is_begun
from clsp_plugin.suites.unit import Plan, Step, Unit, notes_of
from clsp_plugin.suites.worker import describe, read_unit
from clsp_plugin.system.child import end_with_parent, environment_of_a_child


def run():
    curve = [{"epoch": epoch, "val_acc1": 10.0 * epoch} for epoch in (1, 2, 3)]
    return Path("a"), Record("simclr", "digits", "resnet18", 3, 0, 9, None, curve=curve)


class Killed(BaseException):
    pass


@pytest.fixture
def small(monkeypatch):
    """Figures that take no time to render."""

    def draw(records, options, only):
        return drawing.Drawn([Picture(name, name, "", Figure((1, 1))) for name in ("a", "b")])

    monkeypatch.setattr(drawing, "draw", draw)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("moment", range(7))
def test_figures_killed_at_any_moment_are_drawn_by_the_same_call(tmp_path, monkeypatch, moment):
    out, steps = tmp_path / "figures", iter(range(9))

    def dying(write):
        def at_last(*args):
            if next(steps) == moment:
                raise Killed
            return write(*args)

        return at_last

    with monkeypatch.context() as patched:
        for name in ("save", "write_text"):
            patched.setattr(drawing, name, dying(getattr(drawing, name)))
        try:
            write_figures([run()], out, Options(), ["epochs"])
        except Killed:
            # what a process leaves that is killed within a file
            (out / ".a.svg.5.5.tmp").touch()
        else:
            assert moment == 6  # index, four files, index
    drawn = write_figures([run()], out, Options(), ["epochs"])
    assert sorted(out.iterdir()) == sorted([*drawn.files, out / "figures.json"])
    assert json.loads((out / "figures.json").read_text())["files"] == [p.name for p in drawn.files]


@pytest.mark.usefixtures("small")
def test_a_stranger_s_file_is_refused_all_the_same(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(ClspError, match="no figure of ours"):
        write_figures([run()], tmp_path, Options(), ["epochs"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.usefixtures("small")
def test_two_that_draw_into_one_folder_follow_each_other(tmp_path):
    problems = []

    def draw():
        try:
            write_figures([run()], tmp_path / "f", Options(), ["epochs"])
        except Exception as error:
            problems.append(error)

    both = [threading.Thread(target=draw) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert problems == []


def plan(out, name="mine"):
    return Plan(name, None, out, out, ())


def test_a_folder_of_tables_is_one_suite_s_and_one_process_s(tmp_path, capsys):
    out, ended = tmp_path / "out", threading.Event()
    other = threading.Thread(target=lambda: [_enter(plan(out)), ended.set()])
    with _claimed(plan(out)):
        with pytest.raises(ClspError, match="holds the suite mine"), _claimed(plan(out, "else")):
            pass
        other.start()
        assert not ended.wait(0.3)
    assert ended.wait(10)
    assert "Waiting for another process" in capsys.readouterr().err
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/notes.txt").touch()
    with pytest.raises(ClspError, match="holds other files"), _claimed(plan(tmp_path / "strange")):
        pass
    for name in (".suite.json.5.5.tmp",):  # killed while the note was written
        (tmp_path / "begun").mkdir()
        (tmp_path / "begun" / name).touch()
        _enter(plan(tmp_path / "begun"))
    (out / "suite.json").write_text('{"suite": 5}')
    with pytest.raises(ClspError, match=r"suite\.json is not .* suite=5"), _claimed(plan(out)):
        pass


def _enter(one):
    with _claimed(one):
        pass


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "[]", '{"a": 1}', '{"a": {"verb": 1}}'])
def test_a_damaged_note_is_a_step_that_is_not_done(tmp_path, capsys, text):
    (tmp_path / "done.json").write_text(text)
    (tmp_path / "failed.json").write_text(text)
    unit = Unit("run", "x", tmp_path, (Step("knn", "knn", (), {}, None, "key"),))
    assert notes_of(tmp_path) == {}
    assert unit.missing == list(unit.steps)
    assert unit.failure is None
    told = capsys.readouterr().err
    assert f"{tmp_path}/done.json is not a note of `clsp bench`" in told
    assert told.count("done.json") == 1  # said once
    unit.finish(unit.steps[0], 1.0)
    assert list(notes_of(tmp_path)) == ["key"]
    assert notes_of(tmp_path / "absent") == {}


def test_a_run_that_is_made_anew_is_evaluated_anew(tmp_path):
    made, *scored = (
        Step("pretrain", "c", (), {}, 1, "made"),
        *(Step("knn", "c", (f"protocol={name}",), {}, 1, name) for name in ("strict", "paper")),
    )
    unit, shared = (Unit("run", "x", tmp_path, (made, step)) for step in scored)

    def make(name):
        record = tmp_path / "simclr" / name / "record.json"
        record.parent.mkdir(parents=True)
        run()[1].save(record)

    make("first")
    for one in (unit, shared):
        for step in one.steps:
            one.finish(step, 1.0)
    unit.begin()
    assert unit.missing == shared.missing == []
    shutil.rmtree(tmp_path / "simclr")
    assert unit.missing == list(unit.steps)
    unit.begin()
    make("second")  # and it is killed before it notes so
    assert unit.missing == list(unit.steps)
    unit.finish(unit.steps[0], 1.0)
    assert unit.missing == [unit.steps[1]]
    assert shared.missing == [shared.steps[1]]


def test_what_may_not_be_read_is_not_taken_for_undone(tmp_path):
    (tmp_path / "done.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        notes_of(tmp_path)


def test_a_unit_comes_back_as_it_was_described(tmp_path):
    step = Step("pretrain", "a", ("x=1",), {"checkpoint.dir": "d", "n": 1e9}, 5, "k", "n")
    unit = Unit("run", "x", tmp_path, (step,), (), {"point": {"w": 0.1, "k": 1}, "seed": 0})
    file = describe(unit)
    assert read_unit(file) == unit
    assert type(read_unit(file).steps[0].cost) is int
    describe(Unit("run", "x", tmp_path, (), ()))  # a suite that shares it and wants other steps
    assert read_unit(file) == unit
    assert is_begun(tmp_path)
    assert not is_begun(tmp_path / "other")
    file.write_text('{"kind": "run"}')
    with pytest.raises(ClspError, match="unit"):
        read_unit(file)


# A parent starts a child as the pool does and ends, or is ended, at once or later; the child would
# start one of its own, and both would live on.
CHILD = """
import os, subprocess, sys, time
time.sleep({sleep})  # the interpreter's start, in which the parent may end
from clsp_plugin.system.child import end_with_parent
end_with_parent()
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1] + "2"])
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""
PARENT = """
import signal, subprocess, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, which ignores it
from clsp_plugin.system.child import environment_of_a_child
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env=environment_of_a_child())
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("early", [True, False])
def test_no_process_outlives_its_parent(tmp_path, how, early):
    first, second = CHILD.format(sleep=2.5 if early else 0), CHILD.format(sleep=0)
    pids = [tmp_path / "pid", tmp_path / "pid2"]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, first, str(pids[0]), second],
        stdout=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    parent.stdout.readline()
    if not early:
        _until(lambda: all(file.exists() and file.read_text() for file in pids))
    parent.send_signal(how)
    parent.wait()
    if early:
        time.sleep(3.5)
        assert not pids[0].exists()  # it ended before it did anything
    else:
        _until(lambda: not any(map(_alive, pids)))


def _alive(file):
    """Whether the process runs; one that nobody waits for is a zombie at most."""
    try:
        state = (
            Path(f"/proc/{file.read_text()}/stat")
            .read_text(encoding="utf-8")
            .rpartition(")")[2]
            .split()[0]
        )
    except FileNotFoundError:
        return False
    return state not in "ZX"


def _until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_process_that_nobody_named_has_the_parent_it_has(monkeypatch):
    monkeypatch.setenv("CLSP_PARENT", "0")  # so that it is put back
    del os.environ["CLSP_PARENT"]
    end_with_parent()
    assert os.environ["CLSP_PARENT"] == str(os.getpid())
    assert environment_of_a_child({})["CLSP_PARENT"] == str(os.getpid())
