"""Several processes of the same commands in one folder at once."""

import json
import random
from pathlib import Path

from tests.campaign.commands import Broken, check_told, start
from tests.campaign.works import WORKS, Base

__all__ = ["two"]

_TASKS = {"knn", "linear"}


def two(base: Base, random_: random.Random, where: Path, only: str | None = None) -> str:
    """Run one round: two or three processes that begin within a moment.

    Returns:
        What was done, for people.

    Raises:
        Broken: one of them ends badly, its result is missing, or a command refuses afterwards.
    """
    work = WORKS[only or random_.choice(sorted(WORKS))]
    whole = base.undisturbed(work)[1]
    base.copy(work, where)
    number = random_.choice((2, 2, 3))
    chosen = [work.commands[i % len(work.commands)] for i in range(number)]
    running = []
    for i, words in enumerate(chosen):
        log = where.with_name(f"log-{i}")
        running.append(start(words, where, log))
        running[-1].join(random_.choice((0, random_.uniform(0, 0.5 * whole))))
    ended = [one.wait(300) for one in running]
    for told in ended:
        check_told(told)
    good = [words for words, told in zip(chosen, ended, strict=True) if told.code == 0]
    if not good:
        raise Broken(f"each refuses: {[told.err[-300:] for told in ended]}")
    wanted = {words[0] for words in good} & _TASKS
    if wanted:
        records = [json.loads(file.read_text()) for file in where.rglob("record.json")]
        there = {one["task"] for record in records for one in record["evaluations"]}
        if not wanted <= there:
            raise Broken(f"evaluations {sorted(wanted - there)} that were told are not recorded")
    if len({words[0] for words in good}) == len(work.commands):
        base.check(work, where)  # what was made must be whole before the commands run again
    for words in work.commands:
        base.command(words, where)
    base.check(work, where)
    codes = ", ".join(str(told.code) for told in ended)
    return f"{work.name}, {number} processes ended with {codes}"
