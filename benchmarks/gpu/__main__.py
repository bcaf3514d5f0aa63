"""Run the stages one after another, each in a process of its own, until the time is over.

A stage that fails or hangs costs the others nothing, and each row of a stage is saved as soon as it
is measured. The process of the next stage imports what it needs while the one before it runs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.report import summary

# The most important first, and the largest share of a stage in all minutes.
STAGES = {
    "tests": 0.35,
    "training": 0.5,
    "data": 0.15,
    "generation": 0.35,
    "denoiser": 0.2,
    "evaluation": 0.2,
    "photographs": 0.2,
}
BEGUN: list[subprocess.Popen] = []  # all processes of stages


def waiting(stage: str, args: argparse.Namespace) -> subprocess.Popen:
    """Start the process of a stage, which begins to work when it reads a line."""
    command = [sys.executable, "-m", "benchmarks.gpu.stage", stage, str(args.out), args.device]
    log = (args.out / f"{stage}.log").open("wb")
    process = subprocess.Popen(
        [*command, *(["--small"] if args.small else [])],
        stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    BEGUN.append(process)
    return process


def kill(process: subprocess.Popen) -> None:
    """Kill a stage's process and those that it started, such as the workers of the tests."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(process: subprocess.Popen, seconds: float) -> str:
    """Let a stage work for so many seconds; return how it ended."""
    assert process.stdin is not None
    try:
        process.stdin.write(b"go\n")
        process.stdin.close()
    except BrokenPipeError:
        pass  # it failed while it imported
    try:
        code = process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        kill(process)
        return f"stopped after {seconds:.0f} s"
    return "complete" if code == 0 else f"failed with code {code}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the records")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it stops by itself")
    parser.add_argument("--stages", default=",".join(STAGES), help="those to run, in this order")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    args = parser.parse_args()
    stages = args.stages.split(",")
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        parser.error(f"there is no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    ended: dict[str, str] = {}
    process = waiting(stages[0], args)
    try:
        run(stages, process, args, end, ended)
    except BaseException:  # such as Ctrl-C, which does not reach sessions of their own
        for begun in BEGUN:
            kill(begun)
        raise
    print(f"\n{summary(args.out)}")
    return int(not all(told.startswith("complete") for told in ended.values()))


def run(
    stages: list[str],
    process: subprocess.Popen,
    args: argparse.Namespace,
    end: float,
    ended: dict[str, str],
) -> None:
    """Run the stages until the time ``end``; ``ended`` is told how each of them ended."""
    for number, stage in enumerate(stages):
        began, current = time.monotonic(), process
        if number + 1 < len(stages):
            process = waiting(stages[number + 1], args)
        left = end - began
        if left < 5:
            ended[stage] = "not begun, the time was over"
            kill(current)
        else:
            told = finish(current, min(left - 2, 60 * args.minutes * STAGES[stage]))
            ended[stage] = f"{told} ({time.monotonic() - began:.0f} s)"
        print(f"{stage}: {ended[stage]}", flush=True)
        (args.out / "stages.json").write_text(json.dumps(ended, indent=2))
        (args.out / "summary.md").write_text(summary(args.out))


if __name__ == "__main__":
    sys.exit(main())
