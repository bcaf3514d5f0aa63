"""Commands that are killed at random moments and started again."""

import random
from pathlib import Path

from tests.campaign.commands import check_told, start
from tests.campaign.works import WORKS, Base

__all__ = ["kill"]

_MOST_KILLS = 4


def kill(base: Base, random_: random.Random, where: Path, only: str | None = None) -> str:
    """Run one round: a command is killed a few times, and must end as if it had not been.

    Returns:
        What was done, for people.

    Raises:
        Broken: what is left differs from an undisturbed command's, or the command refuses.
    """
    work = WORKS[only or random_.choice(sorted(WORKS))]
    whole, log = base.undisturbed(work)[1], where.with_name("log")
    base.copy(work, where)
    kills = random_.randint(1, _MOST_KILLS)
    moments = []
    for words in work.commands:
        for _ in range(kills):
            moment = random_.uniform(0, whole / len(work.commands))
            told = start(words, where, log).kill(moment)
            if told.code == 0:  # it ended before the kill
                break
            if told.code != -9:
                check_told(told, refusable=False)
            moments.append(f"{moment:.2f}")
        base.command(words, where)
    base.check(work, where)
    for words in work.commands:  # a finished command can be repeated
        base.command(words, where)
    base.check(work, where)
    return f"{work.name}, killed after {', '.join(moments) or 'nothing'} s"
