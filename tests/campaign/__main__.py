"""``python -m tests.campaign {kill,bad-input,two} [--minutes N] [--seed N] [--round N]``."""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes compute at once

import torch

from tests.campaign.bad_input import bad_input
from tests.campaign.commands import Broken, warm
from tests.campaign.kill import kill
from tests.campaign.two import two
from tests.campaign.works import Base

ROUNDS = {"kill": kill, "bad-input": bad_input, "two": two}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("campaign", choices=ROUNDS)
    parser.add_argument("--minutes", type=float, default=1.0, help="rounds begin for so long")
    parser.add_argument("--seed", type=int, default=0, help="each has rounds of its own")
    parser.add_argument("--round", type=int, help="this one alone, and keep its folder")
    parser.add_argument("--only", help="one of the things that are tried, such as pretrain")
    return parser.parse_args()


def main() -> int:
    """Run rounds until the time is over; return 1 if something broke."""
    options, broken, number = _options(), 0, 0
    warm()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="campaign-"))
    base, end = Base(root / "whole"), time.monotonic() + 60 * options.minutes
    repeat = f"python -m tests.campaign {options.campaign} --seed {options.seed}"
    repeat += f" --only {options.only}" if options.only else ""
    while time.monotonic() < end and (options.round is None or number == 0):
        this = number if options.round is None else options.round
        drawn = random.Random(f"{options.seed} {this}")
        where = root / f"round-{this}" / "place"
        try:
            said = ROUNDS[options.campaign](base, drawn, where, options.only)
            print(f"round {this}: {said}", flush=True)
        except Broken as error:
            broken += 1
            print(
                f"round {this}: BROKEN: {error}\n  {repeat} --round {this}\n  {where}", flush=True
            )
        else:
            if options.round is None:
                shutil.rmtree(where.parent)
        number += 1
    print(f"{number} rounds, {broken} broken", flush=True)
    if not broken and options.round is None:
        shutil.rmtree(root)
    else:
        print(f"Left: {root}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
