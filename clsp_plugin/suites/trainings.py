"""What a training in progress shows of itself: its settings, its lines of metrics, its lock.

The names of the files are written out here: the modules that write them import torch, and a look
at a training should not take seconds.
"""

import csv
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsp_plugin.errors import ClspError
from clsp_plugin.system.json_files import read_json
from clsp_plugin.system.locks import is_locked

__all__ = ["Training", "is_begun", "read_note", "read_training"]

_RECENT = 5  # epochs whose time tells how long the next ones take


@dataclass
class Training:
    """A training as its files show it.

    Attributes:
        folder: the folder of ``metrics.csv``.
        title: what is trained, for people.
        rows: the lines of ``metrics.csv``; a number that is not there is left out.
        epochs: how many there will be; None if that is not known.
        running: whether a process is training.
        age: seconds since the last epoch ended.
    """

    folder: Path
    title: str
    rows: list[dict[str, float]]
    epochs: int | None
    running: bool
    age: float

    @property
    def done(self) -> int:
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    @property
    def ended(self) -> bool:
        return self.epochs is not None and self.done >= self.epochs and not self.running

    @property
    def state(self) -> str:
        return "running" if self.running else "done" if self.ended else "stopped"

    @property
    def left(self) -> float | None:
        """The seconds until the last epoch ends; None if they cannot be estimated."""
        times = [row["seconds"] for row in self.rows[-_RECENT:] if "seconds" in row]
        if not self.running or not times or self.epochs is None:
            return None
        each = statistics.median(times)
        return max(0.0, (self.epochs - self.done) * each - min(self.age, each))

    def last(self, *names: str) -> float | None:
        """The newest value of the first of these metrics that there is."""
        for name in names:
            values = self.values(name)
            if values:
                return values[-1]
        return None

    def values(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


def read_training(metrics: Path) -> Training:
    """Read a training.

    Args:
        metrics: path of its ``metrics.csv``.

    Raises:
        ClspError: a file of it is damaged.
        FileNotFoundError: it is gone.
    """
    folder = metrics.parent
    title, epochs = _settings(folder)
    return Training(
        folder,
        title,
        _lines(metrics),
        epochs,
        is_locked(folder / "lock"),
        max(0.0, time.time() - metrics.stat().st_mtime),
    )


def _lines(metrics: Path) -> list[dict[str, float]]:
    try:
        with open(metrics, newline="", encoding="utf-8") as file:
            rows = [
                {key: float(value) for key, value in row.items() if value}
                for row in csv.DictReader(file, strict=True)
            ]
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ClspError(
            f"{metrics} is damaged ({error}); the next epoch writes it anew."
        ) from error
    if not rows or not all("epoch" in row for row in rows):
        raise ClspError(f"{metrics} is no file of metrics of a training: it names no epochs.")
    return rows


def _settings(folder: Path) -> tuple[str, int | None]:
    """Return what is trained, and for how many epochs."""
    args = read_note(folder / "args.json")
    if args:
        data = args.get("data")
        dataset = data.get("dataset") if isinstance(data, dict) else None
        what = f"{args.get('method')} on {dataset}"
        if "pretrain_method" in args:
            what = f"fine-tuning of {args['pretrain_method']} on {dataset}"
        return what, _number(args.get("max_epochs"))
    unfinished = folder.name.endswith(".training")
    name = folder.name.removesuffix(".training")
    settings = read_note(folder / "settings.json") if unfinished else None
    if settings is None:
        settings = (read_note(folder / "training.json") or {}).get("settings")
    epochs = settings.get("max_epochs") if isinstance(settings, dict) else None
    return name if name == "denoiser" else f"denoiser {name}", _number(epochs)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_begun(unit: Path) -> bool:
    """Return whether a process was started for the unit of a suite in a directory."""
    return any(unit.glob("unit*.json"))


def read_note(file: Path) -> dict[str, Any] | None:
    """Return the content of a small JSON file; None where there is none.

    Raises:
        ClspError: it is damaged.
    """
    try:
        return read_json(file, dict[str, Any], "a note of a training or a suite", "look at it")
    except (FileNotFoundError, NotADirectoryError):
        return None
