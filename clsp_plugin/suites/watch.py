"""``clsp watch``: a training or a suite in the terminal, from the files that it writes."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from clsp_plugin.errors import ClspError, Terminated
from clsp_plugin.suites.trainings import Training, is_begun, read_note, read_training
from clsp_plugin.system.durations import duration
from clsp_plugin.system.json_files import checked
from clsp_plugin.system.locks import is_locked

__all__ = ["PLAN", "View", "show", "watch_folder"]

PLAN = "plan.json"  # of a suite: its units
_CURVE = 40  # signs of a curve, at most
_BLOCKS, _PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
# What is shown of a training, in this order, where it is there.
_SHOWN = (
    "loss", "train_loss", "train_alignment", "train_views_alignment", "train_acc1", "val_acc1",
    "val_rankme", "val_uniformity", "val_feats_spread", "val_z_spread", "frechet", "grad_norm",
    "weight_norm", "synthetic_weight", "ema_decay", "lr", "images_per_second",
)  # fmt: skip
_ORDER = ("running", "failed", "stopped", "waiting", "done")


@dataclass
class View:
    """One view: its text, and whether something is still running."""

    text: str
    running: bool


def show(folder: Path) -> View:
    """Look at a folder once; nothing is written.

    Args:
        folder: of a run, of several runs, of a denoiser (its ``out``), or of a suite.

    Raises:
        ClspError: there is nothing to watch, or a file is damaged.
    """
    if (folder / PLAN).is_file():
        return _suite(folder)
    unfinished = folder.parent / f"{folder.name}.training"  # of a denoiser that is being trained
    for place in (folder, unfinished):
        if (place / "metrics.csv").is_file():
            return _one(read_training(place / "metrics.csv"))
    if not folder.is_dir():
        raise ClspError(f"{folder} is no folder; name that of a run, of runs or of a suite.")
    found = []
    for metrics in folder.rglob("metrics.csv"):
        try:
            found.append(read_training(metrics))
        except FileNotFoundError:  # a denoiser that has just been finished
            continue
    if not found:
        raise ClspError(
            f"There is nothing to watch in {folder}: no training in it has ended its first epoch; "
            f"name the folder of a run, of runs, of a denoiser or of a suite."
        )
    return _one(found[0]) if len(found) == 1 else _several(folder, found)


def watch_folder(folder: Path, every: float) -> None:
    """Draw the view of a folder in the terminal until nothing runs any more, or Ctrl-C.

    Args:
        folder: see :func:`show`.
        every: seconds between two views.

    Raises:
        ClspError: see :func:`show`.
    """
    clear = "" if os.environ.get("TERM", "dumb") == "dumb" else "\x1b[H\x1b[2J"
    try:
        while True:
            view = show(folder)
            print(clear + _fit(view.text), flush=True)
            if not view.running:
                return
            time.sleep(every)
    except Terminated:
        raise
    except KeyboardInterrupt:
        print()


def _fit(text: str) -> str:
    """Cut a text to the size of the terminal."""
    width, height = shutil.get_terminal_size()
    lines = [line[:width] for line in text.splitlines()]
    if len(lines) >= height:
        more = len(lines) - height + 2
        lines = [*lines[: height - 2], f"and {more} more lines; --once prints all"[:width]]
    return "\n".join(lines)


def _one(training: Training) -> View:
    lines = [f"{training.title}, {training.state}, in {training.folder}", _progress(training), ""]
    names = [name for name in _SHOWN if training.values(name)]
    width = max((len(name) for name in names), default=0)
    for name in names:
        values = training.values(name)
        lines.append(f"  {name:<{width}}  {_short(values[-1]):>9}  {_curve(values)}")
    return View("\n".join(lines), training.running)


def _progress(training: Training) -> str:
    of = "" if training.epochs is None else f" of {training.epochs}"
    parts = [f"epoch {training.done}{of}"]
    if training.left is not None:
        parts.append(f"about {duration(training.left)} left")
    elif not training.ended:
        parts.append(f"last epoch {duration(training.age)} ago")
    loss, accuracy = training.last("loss", "train_loss"), training.last("val_acc1")
    parts += [] if loss is None else [f"loss {_short(loss)}"]
    parts += [] if accuracy is None else [f"val_acc1 {accuracy:.1f}"]
    speed = training.last("images_per_second")
    parts += [] if speed is None else [f"{speed:,.0f} images/s"]
    return ", ".join(parts)


def _several(folder: Path, trainings: Sequence[Training]) -> View:
    found = sorted(trainings, key=lambda one: (_ORDER.index(one.state), one.age))
    rows = [
        [one.state, one.title, _progress(one), os.path.relpath(one.folder, folder)] for one in found
    ]
    running = sum(one.running for one in found)
    head = f"{len(found)} trainings in {folder}, {running} running"
    return View("\n".join([head, "", *_columns(rows)]), running > 0)


def _suite(folder: Path) -> View:
    advice = "`clsp bench` writes it anew"
    kind = list[dict[str, Any]]
    units = checked((read_note(folder / PLAN) or {}).get("units"), kind, f"{folder / PLAN}", advice)
    running = is_locked(folder)
    rows = [_unit(folder, unit, running) for unit in units]
    rows.sort(key=lambda row: _ORDER.index(row[0]))
    counts = [f"{sum(row[0] == state for row in rows)} {state}" for state in reversed(_ORDER)]
    counts = [count for count in counts if not count.startswith("0 ")]
    name = (read_note(folder / "suite.json") or {}).get("suite", "")
    ended = "" if running else ", not running now"
    head = f"suite {name} in {folder}{ended}: {', '.join(counts)}, of {len(rows)} units"
    return View("\n".join([head, "", *_columns(rows)]), running)


def _unit(folder: Path, unit: dict[str, Any], suite_runs: bool) -> list[str]:
    """Return the state of a unit, its name, and what it is at."""
    path, steps = folder / unit["path"], unit["steps"]
    done = read_note(path / "done.json") or {}
    missing = [verb for key, verb in steps.items() if key not in done]
    training = _training(path)
    if not missing:
        return ["done", unit["label"], _score(training)]
    failed = read_note(path / "failed.json")
    if failed is not None:
        return ["failed", unit["label"], str(failed.get("reason"))]
    at = missing[0]
    if training is not None and at in ("denoiser", "pretrain", "finetune") and not training.ended:
        at = f"{at}, {_progress(training)}"
    elif at == "generate":
        at = f"{at}, {len(list(path.glob('*/shard-*.npy')))} shards so far"
    if is_locked(path / "lock"):
        return ["running", unit["label"], f"{at} (step {len(steps) - len(missing) + 1} of "
                f"{len(steps)})"]  # fmt: skip
    begun = is_begun(path)
    return [
        "stopped" if begun and not suite_runs else "waiting",
        unit["label"],
        at if begun else "",
    ]


def _training(path: Path) -> Training | None:
    """Return the newest training of a unit; None before its first epoch has ended."""
    files = [*path.glob("*/metrics.csv"), *path.glob("*/*/metrics.csv")]
    try:
        newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
        return None if newest is None else read_training(newest)
    except FileNotFoundError:  # a denoiser that has just been finished
        return None


def _score(training: Training | None) -> str:
    for name in ("val_acc1", "loss"):
        value = None if training is None else training.last(name)
        if value is not None:
            return f"{name} {_short(value)}"
    return ""


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))] if rows else []
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _curve(values: Sequence[float]) -> str:
    """Draw values from the lowest sign to the highest; many of them by the means of parts."""
    finite = [value for value in values if abs(value) < float("inf")]  # False for nan
    if len(finite) < 2:
        return ""
    count = min(_CURVE, len(finite))
    edges = [round(part * len(finite) / count) for part in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    signs = _signs()
    if high == low:
        return signs[3] * count
    top = len(signs) - 1
    return "".join(signs[round((mean - low) / (high - low) * top)] for mean in means)


def _signs() -> str:
    """The signs of a curve that the terminal's encoding has."""
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _PLAIN
    return _BLOCKS
