"""``clsp bench``, ``demo``, ``watch`` and ``doctor``."""

import argparse
import re
import sys
from pathlib import Path

from clsp_plugin.cli.arguments import words
from clsp_plugin.config.rules import SEED, Rule, check_value
from clsp_plugin.config.shipped import shipped
from clsp_plugin.errors import ClspError, short

__all__ = ["bench", "demo", "doctor", "watch"]


def bench(args: list[str]) -> None:
    """Run ``clsp bench`` with the arguments that follow it."""
    suites = ", ".join(sorted(file.stem for file in (shipped() / "bench").glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="clsp bench",
        description="Run a suite of experiments and make its tables and figures. What is done is "
        "not run again; stopped at any moment and started again, it continues.",
        epilog=f"Suites that ship with the package: {suites}.",
    )
    parser.add_argument("suite", help="a suite's name, or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings for every run of the suite"
    )
    parser.add_argument("--out", type=Path, help="where to write (default runs/SUITE)")
    parser.add_argument(
        "--artifacts", type=Path, help="where denoisers, candidates and runs lie, which suites can "
        "share (default: in --out if it is given, else runs/artifacts)",
    )  # fmt: skip
    parser.add_argument("--protocol", help="strict or paper, in place of the suite's")
    parser.add_argument("--jobs", type=int, help="units at a time (default: one a core or GPU)")
    parser.add_argument(
        "--launcher", help="a launcher of Hydra's instead: joblib, submitit_slurm, submitit_local, "
        "ray or basic; its settings are overrides, such as hydra.launcher.partition=gpu",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost")
    parser.add_argument("--datasets", type=words, default=[], help="such as digits,cifar10")
    parser.add_argument("--methods", type=words, default=[], help="such as simclr,byol")
    parser.add_argument("--seeds", type=words, default=[], help="such as 0,1,2")
    parser.add_argument(
        "--keep-stale",
        action="store_true",
        help="take what older numerics made; the table marks it",
    )
    options = parser.parse_intermixed_args(args)
    if not all(re.fullmatch(r"[0-9]{1,20}", seed) for seed in options.seeds):
        raise ClspError(f"--seeds {short(','.join(options.seeds))} are not numbers, such as 0,1,2.")
    check_value("--seeds", [int(seed) for seed in options.seeds], SEED)

    from clsp_plugin.suites.bench import bench as run_suite

    run_suite(
        options.suite, options.out, artifacts=options.artifacts, jobs=options.jobs,
        launcher=options.launcher, dry_run=options.dry_run, keep_stale=options.keep_stale,
        datasets=options.datasets, methods=options.methods,
        seeds=[int(seed) for seed in options.seeds], protocol=options.protocol,
        overrides=options.overrides,
    )  # fmt: skip


def demo(args: list[str]) -> None:
    """Run ``clsp demo`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp demo",
        description="Train a denoiser, draw candidates, pre-train three methods under one budget, "
        "evaluate them and write a table and pictures; continues where it was stopped.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where to write")
    parser.add_argument("--seeds", type=int, help="runs of each method (default: the suite's)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="size of everything; 0.05 is a quick look"
    )
    options = parser.parse_args(args)
    if options.seeds is not None:
        check_value("--seeds", options.seeds, Rule(low=1, high=1000))
    check_value("--scale", options.scale, Rule(above=0, high=1000))
    from clsp_plugin.suites.demo import demo as run_demo

    run_demo(options.out, seeds=options.seeds, scale=options.scale)


def watch(args: list[str]) -> None:
    """Run ``clsp watch`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp watch",
        description="Show how a training or a suite goes: epochs, losses, accuracy, images a "
        "second, time left. It reads what they write and writes nothing itself.",
        epilog="On a terminal the view is drawn anew until nothing runs any more, or Ctrl-C.",
    )
    parser.add_argument(
        "folder", type=Path, help="of a run, of several, of a denoiser (its out) or of a suite"
    )
    parser.add_argument("--once", action="store_true", help="print one view and end")
    parser.add_argument(
        "--every", type=float, default=2.0, help="seconds between two views (default 2)"
    )
    options = parser.parse_args(args)
    check_value("--every", options.every, Rule(low=0.1, high=3600))
    from clsp_plugin.suites.watch import show, watch_folder

    if options.once or not sys.stdout.isatty():
        print(show(options.folder).text)
    else:
        watch_folder(options.folder, options.every)


def doctor(args: list[str]) -> None:
    """Run ``clsp doctor`` with the arguments that follow it; exit code 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="clsp doctor",
        description="Say what is installed, which solo-learn is seen, whether Hydra finds us, and "
        "what is wrong; ends with exit code 1 if something is.",
    )
    parser.add_argument("folder", nargs="?", default=".", help="a clone of solo-learn (default .)")
    options = parser.parse_args(args)
    from clsp_plugin.solo.doctor import examine

    report = examine(options.folder)
    print(report)
    sys.exit(1 if report.problems else 0)
