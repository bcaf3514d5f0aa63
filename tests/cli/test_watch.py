"""`clsp watch` reads what trainings and suites write, and writes nothing."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.suites import bench as benching
from clsp_plugin.suites import watch
from clsp_plugin.suites.planner import make_plan
from clsp_plugin.suites.suite import read_suite
from clsp_plugin.suites.trainings import read_training
from clsp_plugin.suites.watch import show
from clsp_plugin.system.locks import locked

HEAD = "epoch,train_loss,val_acc1,seconds,images_per_second\n"


def write_run(folder, done, epochs=10, **more):
    folder.mkdir(parents=True)
    rows = [f"{e},{4 - e / 10},{10 + e},2.0,1500.0\n" for e in range(1, done + 1)]
    (folder / "metrics.csv").write_text(HEAD + "".join(rows))
    args = {"method": "simclr", "data": {"dataset": "digits"}, "max_epochs": epochs, **more}
    (folder / "args.json").write_text(json.dumps(args))
    return folder


def content(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_real_run(tiny, clsp, tmp_path):
    finished = pretrain(tiny("simclr"))
    before = content(tmp_path)
    for place in (finished.run_dir, tmp_path / "trained", "."):
        code, out, _ = clsp("watch", place, "--once")
        assert code == 0
        assert re.search(r"simclr on digits, done, in .*offline-", out)
        assert re.search(r"epoch 2 of 2, loss [\d.]+, val_acc1 [\d.]+, \d+(,\d{3})* images/s", out)
        assert re.search(r"(?m)^  val_rankme +[\d.]+  ([▁▂▃▄▅▆▇█]{2}|[_.=+*#@-]{2})$", out)
    assert content(tmp_path) == before


def test_a_running_one_and_its_time_left(tmp_path):
    folder = write_run(tmp_path / "run", 4)
    with locked(folder / "lock"):
        view = show(folder)
    assert view.running
    assert "simclr on digits, running" in view.text
    assert re.search(
        r"epoch 4 of 10, about 1[0-2] s left, loss 3.6, val_acc1 14.0, 1,500 images/s", view.text
    )
    assert not show(folder).running
    assert "stopped" in show(folder).text  # its lock is left by a process that was killed


def test_several_runs_those_that_run_first(tmp_path):
    write_run(tmp_path / "runs/a", 10)
    write_run(tmp_path / "runs/b", 3)
    running = write_run(tmp_path / "runs/c", 5, pretrain_method="byol")
    with locked(running / "lock"):
        head, _, *rows = show(tmp_path).text.splitlines()
    assert head == f"3 trainings in {tmp_path}, 1 running"
    assert [row.split()[0] for row in rows] == ["running", "stopped", "done"]
    assert "fine-tuning of byol on digits" in rows[0]
    assert rows[1].endswith("runs/b")


def test_a_denoiser_in_training_is_found_by_its_out(tmp_path):
    folder = tmp_path / "denoisers/mine.training"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,loss,seconds\n1,0.5,100\n2,0.25,100\n")
    (folder / "settings.json").write_text(json.dumps({"max_epochs": 400}))
    with locked(folder / "lock"):
        text = show(tmp_path / "denoisers/mine").text
    assert "denoiser mine, running" in text
    assert "epoch 2 of 400, about 11.1 h left, loss 0.25" in text


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [("nowhere", None, "is no folder"), ("empty", "", "nothing to watch"),
     ("run", "epoch,loss\n1,spam\n", "metrics.csv is damaged"),
     ("run", "a,b\n1,2\n", "names no epochs"), ("run", "\x00\x00", "metrics.csv is")],
)  # fmt: skip
def test_nothing_to_watch(clsp, tmp_path, name, given, told):
    if given is not None:
        (tmp_path / name).mkdir()
        (tmp_path / name / ("metrics.csv" if given else "other.txt")).write_text(given)
    code, out, errors = clsp("watch", tmp_path / name)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"clsp: .*{told}.*\n", errors)


def test_a_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, suite = read_suite("digits", [], ())
    suite.methods, suite.seeds = ["simclr", "byol", "clsp_simclr"], [0]
    plan = make_plan(name, suite, Path("runs/digits"), False, Path("runs/artifacts"))
    with benching._claimed(plan):
        view = show(plan.out)
    units = {unit.label: unit for unit in plan.units}
    assert view.running
    assert view.text.startswith(
        f"suite digits in runs/digits: {len(units)} waiting, of {len(units)}"
    )
    assert "not running now" in show(plan.out).text

    denoiser, byol, simclr = (
        units[label]
        for label in ("denoiser, digits", "byol, digits, seed 0", "simclr, digits, seed 0")
    )
    for step in denoiser.steps:
        denoiser.finish(step, 5.0)
    byol.path.mkdir(parents=True)
    (byol.path / "failed.json").write_text(json.dumps({"reason": "no memory (exit code 2)"}))
    write_run(simclr.path / "simclr/offline-a", 7)
    (simclr.path / "unit.json").write_text("{}")
    with benching._claimed(plan), locked(simclr.path / "lock"):
        rows = show(plan.out).text.splitlines()[2:]
    assert re.match(
        r"running +simclr, digits, seed 0 +pretrain, epoch 7 of 10, .*\(step 1 of 3\)", rows[0]
    )
    assert re.match(r"failed +byol, digits, seed 0 +no memory \(exit code 2\)", rows[1])
    assert re.match("waiting +(clsp_simclr|candidates)", rows[2])
    assert rows[-1].split()[:2] == ["done", "denoiser,"]
    assert show(plan.out).text.splitlines()[3].startswith("stopped  simclr, digits, seed 0")


def test_it_ends_when_nothing_runs_and_with_ctrl_c(tmp_path, monkeypatch, capsys):
    folder, views = write_run(tmp_path / "run", 4), []
    monkeypatch.setenv("TERM", "xterm")

    def sleep(seconds):
        views.append(seconds)
        if len(views) == 2:
            held.__exit__(None, None, None)
        elif len(views) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    held = locked(folder / "lock")
    held.__enter__()
    watch.watch_folder(folder, 0.5)
    assert views == [0.5, 0.5]
    assert capsys.readouterr().out.count("\x1b[H\x1b[2J") == 3
    with locked(folder / "lock"):
        watch.watch_folder(folder, 0.5)  # Ctrl-C is no error
    assert len(views) == 3


def test_a_view_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "5")
    cut = watch._fit("\n".join(["x" * 50] * 9)).splitlines()
    assert cut == ["x" * 20] * 3 + ["and 6 more lines; --"]
    assert watch._fit("short\nenough") == "short\nenough"


def test_a_curve(monkeypatch):
    monkeypatch.setattr(watch, "_signs", lambda: "01234567")
    assert watch._curve([0, 7, 3.5, float("nan"), 1]) == "07" + "4" + "1"
    assert watch._curve([5, 5, 5]) == "333"
    assert watch._curve([1]) == ""
    assert watch._curve(range(80)) == watch._curve(range(0, 80, 2))  # means of two


def test_a_metric_that_only_some_epochs_have(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,frechet,loss\n1,,3\n2,1.5,2\n3,,1\n")
    training = read_training(tmp_path / "metrics.csv")
    assert training.values("frechet") == [1.5]
    assert training.last("loss") == 1
    assert training.left is None


def test_a_look_takes_no_torch():
    code = "import sys, clsp_plugin.suites.watch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
