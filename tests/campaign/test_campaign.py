"""Run a few rounds of each campaign, and check that campaigns see what is broken."""

import random
import re
import shlex
import stat
import sys
import time
from pathlib import Path

import pytest

from tests.campaign import __main__ as campaign
from tests.campaign import commands, damage
from tests.campaign.bad_input import bad_input
from tests.campaign.commands import Broken, Told, check_told
from tests.campaign.kill import kill
from tests.campaign.two import two
from tests.campaign.works import WORKS, Base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    commands.warm()
    return Base(tmp_path_factory.mktemp("campaign") / "base")


@pytest.mark.parametrize("name", ["generate", "pretrain"])
def test_what_is_killed_ends_as_if_it_were_not(base, tmp_path, name):
    kill(base, random.Random("a kill"), tmp_path / "place", name)


@pytest.mark.parametrize("name", ["generate", "knn"])
def test_two_at_once(base, tmp_path, name):
    two(base, random.Random("two"), tmp_path / "place", name)


@pytest.mark.parametrize("number", range(3))
def test_odd_numbers(base, tmp_path, number):
    bad_input(base, random.Random(f"a number {number}"), tmp_path / "place", "numbers")


@pytest.mark.parametrize("kind", ["knn", "generate", "table", "yaml", "suite", "images"])
def test_damaged_files(base, tmp_path, kind):
    bad_input(base, random.Random(f"bad {kind}"), tmp_path / "place", kind)


def test_a_result_that_is_not_the_same_is_seen(base, tmp_path):
    work = WORKS["generate"]
    where = base.copy(work, tmp_path / "place")
    base.command(work.commands[0], where)
    base.check(work, where)
    shard = next(where.rglob("shard-*.npy"))
    (shard.parent / "x.tmp").touch()
    with pytest.raises(Broken, match=r"x\.tmp"):
        base.check(work, where)
    (shard.parent / "x.tmp").unlink()
    damage.flip(shard, random.Random(0))
    with pytest.raises(Broken, match=f"bytes of {shard.name}"):
        base.check(work, where)


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        (Told(None, "", "", 5.0), "hangs"),
        (Told(1, "", "Traceback (most recent call last):\nKeyError: 1", 5.0), "KeyError"),
        (Told(-9, "", "", 5.0), "exit code -9"),
        (Told(2, "", "", 5.0), "0 sentences"),
        (Told(2, "", "clsp: a.\nclsp: b.", 5.0), "2 sentences"),
    ],
)
def test_an_end_that_is_none_is_seen(told, problem):
    with pytest.raises(Broken, match=problem):
        check_told(told)


def test_an_end_with_a_sentence():
    told = Told(2, "", "progress\nclsp: k=0 must be at least 1.\n", 5.0)
    check_told(told)
    with pytest.raises(Broken, match="refuses: clsp: k=0"):
        check_told(told, refusable=False)


def test_a_process_that_hangs_and_one_that_dies_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(commands.cli, "main", lambda: time.sleep(60))
    assert commands.run(["x"], tmp_path, tmp_path / "log", 0.2).code is None
    assert commands.start(["x"], tmp_path, tmp_path / "log").kill(0.1).code == -9


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".npy"])
def test_every_damage_is_one(tmp_path, suffix):
    def seen(folder):
        out = {}
        for file in folder.iterdir():
            plain = stat.S_ISREG(file.lstat().st_mode)
            out[file.name] = (file.lstat().st_mode, file.read_bytes() if plain else None)
        return out

    drawn, told = random.Random(0), set()
    for number in range(60):
        file = tmp_path / str(number) / f"a{suffix}"
        file.parent.mkdir()
        file.write_text('{"a": {"b": [1, 2]}}' if suffix == ".json" else "a: 1\nb:\n  c: 2\n")
        before = seen(file.parent)
        told.add(damage.damage(file, drawn))
        assert seen(file.parent) != before
    assert len(told) > 20


PAGE = (Path(__file__).parents[2] / "docs/breaking.md").read_text()


def test_the_page_s_commands(monkeypatch, capsys):
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    lines = [shlex.split(line) for line in block.splitlines()]
    assert [words[3] for words in lines] == list(campaign.ROUNDS)
    for words in lines:
        assert words[:3] == ["python", "-m", "tests.campaign"]
        monkeypatch.setattr(sys, "argv", [*words[2:], "--minutes", "0"])
        assert campaign.main() == 0
        assert capsys.readouterr().out == "0 rounds, 0 broken\n"


def test_what_breaks_is_told_with_the_command_that_repeats_it(monkeypatch, capsys, tmp_path):
    def breaks(base, drawn, where, only):
        raise Broken(f"{drawn.random()} of {only}")

    monkeypatch.setattr(campaign, "ROUNDS", {"kill": breaks})
    monkeypatch.setattr(campaign.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["x", "kill", "--seed", "4", "--only", "knn", "--round", "3"])
    assert campaign.main() == 1
    first = capsys.readouterr().out
    assert "python -m tests.campaign kill --seed 4 --only knn --round 3" in first
    assert "1 rounds, 1 broken" in first
    assert campaign.main() == 1
    assert capsys.readouterr().out == first  # the same numbers are drawn
