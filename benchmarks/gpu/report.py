"""The measured rows of a stage, saved one by one, and a summary of all stages."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Row", "Rows", "summary"]


@dataclass
class Row:
    """One measurement.

    Attributes:
        what: what was measured.
        values: the value of every round.
        unit: of the values.
        expected: what was expected before the first measurement on a GPU, in words.
        note: what else was seen.
    """

    what: str
    values: list[float]
    unit: str
    expected: str = ""
    note: str = ""


class Rows:
    """The rows of a stage; the file is written anew with every row.

    Args:
        file: the JSON file.
        about: facts of the machine, the versions and the commit.
    """

    def __init__(self, file: Path, about: dict[str, str]):
        self.file, self.about = file, about
        self.rows: list[Row] = []
        self._save()

    def add(
        self,
        what: str,
        values: float | Sequence[float],
        unit: str,
        expected: str = "",
        note: str = "",
    ) -> None:
        """Add a row, print it and save all rows."""
        values = [float(v) for v in (values if isinstance(values, Sequence) else [values])]
        self.rows.append(Row(what, values, unit, expected, note))
        print(_line(asdict(self.rows[-1])), flush=True)
        self._save()

    def _save(self) -> None:
        content = {"about": self.about, "rows": [asdict(row) for row in self.rows]}
        self.file.write_text(json.dumps(content, indent=2))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(row: dict) -> str:
    values = row["values"]
    shown = _number(statistics.median(values)) if values else "-"
    if len(values) > 1:
        shown += f" ({_number(min(values))}..{_number(max(values))})"
    return f"| {row['what']} | {shown} {row['unit']} | {row['expected']} | {row['note']} |"


def summary(out: Path) -> str:
    """Return the Markdown tables of all stages that have been measured in a folder."""
    ended = json.loads((out / "stages.json").read_text())
    parts = []
    for stage, told in ended.items():
        parts.append(f"## {stage}: {told}\n")
        file = out / f"{stage}.json"
        if file.exists():
            content = json.loads(file.read_text())
            parts.append("; ".join(f"{k} {v}" for k, v in content["about"].items()) + "\n")
            parts.append("| what | median (min..max) | expected | note |\n|---|---:|---|---|")
            parts.append("\n".join(_line(row) for row in content["rows"]) + "\n")
    return "\n".join(parts)
