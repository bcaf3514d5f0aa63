"""The benchmark of uses runs, and says which are refused."""

import runpy
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks/uses.py"


def test_every_use_has_a_row(monkeypatch, capsys):
    words = ["--methods", "mocov2plus", "--batch", "4", "--steps", "1", "--rounds", "2"]
    words += ["--uses", "align", "view", "multi, 2 candidates", "align, by quality"]
    monkeypatch.setattr(sys, "argv", [str(FILE), *words])
    runpy.run_path(str(FILE), run_name="__main__")
    rows = [
        line.split("|") for line in capsys.readouterr().out.splitlines() if "mocov2plus" in line
    ]
    times = {row[2].strip(): row[3].strip() for row in rows}
    assert times.pop("view") == "refused"
    assert len(times) == 4
    assert all(float(value) > 0 for value in times.values())
