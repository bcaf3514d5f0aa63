"""The command for a GPU runs to its end without one, stage by stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = ["tests", "training", "data", "generation", "denoiser", "evaluation", "photographs"]


def gpu(out, *args):
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", str(out), "--device", "cpu", "--small", "--minutes", "7",
         *args],
        cwd=ROOT, env={**os.environ, "PATH": python}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def test_every_stage_leaves_its_record(tmp_path):
    done = gpu(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = json.loads((tmp_path / "stages.json").read_text())
    assert list(ended) == STAGES
    assert all(told.startswith("complete") for told in ended.values())
    for stage in STAGES:
        content = json.loads((tmp_path / f"{stage}.json").read_text())
        assert {"device", "torch", "commit"} <= content["about"].keys()
        assert len(content["rows"]) >= 2
        assert all(value >= 0 for row in content["rows"] for value in row["values"])
    tests = json.loads((tmp_path / "tests.json").read_text())["rows"]
    counts = {row["what"]: row["values"] for row in tests}
    assert counts["tests failed"] == [0]
    assert counts["tests passed"] > [0]
    assert "clsp pretrain, clsp_simclr" in (tmp_path / "summary.md").read_text()


def test_it_stops_at_its_time_and_keeps_what_there_is(tmp_path):
    done = gpu(tmp_path, "--minutes", "0.12", "--stages", "training,data")
    assert done.returncode == 1
    ended = json.loads((tmp_path / "stages.json").read_text())
    assert "stopped after" in ended["training"]
    assert ended["data"] == "not begun, the time was over"


def test_an_unknown_stage_is_named(tmp_path):
    done = gpu(tmp_path, "--stages", "training,date")
    assert done.returncode == 2
    assert "there is no stage date; there are tests, training" in done.stderr
