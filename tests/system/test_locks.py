"""Locks keep out, threads and processes alike, and are given back by a process that is killed.

These tests also run without POSIX' locks, see ``test_elsewhere.py``.
"""

import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from clsp_plugin.system import files
from clsp_plugin.system.alone import alone
from clsp_plugin.system.locks import is_locked, locked, unlink_held

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, pathlib
from clsp_plugin.system.locks import locked
with locked(pathlib.Path(sys.argv[1]), shared=sys.argv[2] == "shared") as free:
    print(free, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["file", "folder"])
def place(request, tmp_path):
    path = tmp_path / "run, (1)"
    path.mkdir()
    return path if request.param == "folder" else path / "lock"


@pytest.fixture
def another():
    """Start a process that holds a lock until its input ends: ``another(place, how)``."""
    with ExitStack() as stack:

        def begin(place, how="alone"):
            process = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(place), how], cwd=ROOT, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout.readline() == "True\n"
            return process

        yield begin


def free(place, **keys):
    with locked(place, **keys) as is_free:
        return is_free


def test_one_holds_a_lock_or_several_share_it(place):
    assert not is_locked(place)
    with locked(place) as first:
        assert (first, free(place), free(place, shared=True)) == (True, False, False)
        assert is_locked(place)
    with locked(place, shared=True) as first, locked(place, shared=True) as second:
        assert (first, second, free(place)) == (True, True, False)
    assert free(place)


def test_to_look_at_a_lock_creates_nothing(tmp_path):
    assert free(tmp_path / "lock", shared=True)
    assert not is_locked(tmp_path / "lock")
    assert not list(tmp_path.iterdir())


def test_the_file_of_a_lock_can_be_written_and_read(tmp_path):
    with locked(tmp_path / "lock"):
        (tmp_path / "lock").write_text("process 1", encoding="utf-8")
        assert (tmp_path / "lock").read_text(encoding="utf-8") == "process 1"
        unlink_held(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


def test_a_process_that_is_killed_gives_its_lock_back(place, another):
    process = another(place)
    assert not free(place)
    process.kill()
    process.wait()
    assert free(place)


def test_processes_share_a_lock(place, another):
    assert free(place)  # creates it
    process = another(place, "shared")
    assert free(place, shared=True)
    assert not free(place)
    process.stdin.close()
    process.wait()
    assert free(place)


def test_another_process_is_waited_for(place, another, capsys):
    process, entered = another(place), threading.Event()

    def work():
        with alone(place, "works there"):
            entered.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not entered.wait(0.3)
    process.stdin.close()
    assert entered.wait(20)
    thread.join()
    assert capsys.readouterr().err == "Waiting for another process that works there.\n"


def test_a_file_that_somebody_has_open_is_replaced_a_moment_later(tmp_path, monkeypatch):
    """As on Windows, which refuses it meanwhile."""
    replace, refused = files.os.replace, []

    def refuse(*paths):
        if len(refused) < 3:
            refused.append(paths)
            raise PermissionError(13, "Access is denied")
        replace(*paths)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(PermissionError):
        files.write_text(tmp_path / "a", "1")  # where it is refused for good
    monkeypatch.setattr(files, "_PATIENCE", 20.0)
    files.write_text(tmp_path / "a", "2")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "2"
    assert len(refused) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
