"""The commands under torchrun: two real processes do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clsp_plugin import cli
from clsp_plugin.candidates.store import CandidateStore

DENOISER = ["denoiser", "data.num_train=48", "block_out_channels=[8,8]", "max_epochs=2",
            "batch_size=16", "out=denoiser"]  # fmt: skip
GENERATE = ["generate", "data.num_train=48", "denoiser=denoiser", "num_candidates=2", "steps=2",
            "shard_size=10", "batch_size=8", "device=cpu"]  # fmt: skip


@pytest.fixture
def clsp(tmp_path, monkeypatch):
    """Run a command in this process or in two others: ``clsp(processes, folder, *args)``."""

    def run(processes, folder, *args):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        if processes == 1:
            with monkeypatch.context() as patch:
                patch.chdir(place)
                patch.setattr(sys, "argv", ["clsp", *args])
                cli.main()
            return ""
        begin = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run(
            [sys.executable, *begin, "-m", "clsp_plugin.cli", *args],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_denoiser_and_its_candidates(clsp, tmp_path):
    trainings = {}
    for processes, folder in ((1, "one"), (2, "two")):
        clsp(processes, folder, *DENOISER, f"devices={processes}", "accelerator=cpu")
        text = (tmp_path / folder / "denoiser/training.json").read_text()
        trainings[folder] = json.loads(text)
    one, two = trainings["one"], trainings["two"]
    # the same images in the same batches, with the same noise
    assert (one["settings"], one["steps"]) == (two["settings"], two["steps"])
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-4)

    clsp(1, "one", *GENERATE, "out=candidates")
    out = clsp(2, "one", *GENERATE, "out=shared", "export_npy=all.npy")
    assert "once all are done, the same command in one process writes all.npy" in out
    folders = [tmp_path / "one" / name for name in ("candidates", "shared")]
    whole, shared = ({file.name: file.read_bytes() for file in f.iterdir()} for f in folders)
    assert len([name for name in whole if name.endswith(".npy") and name.startswith("shard-")]) == 5
    assert whole == shared
    assert CandidateStore(folders[1]).num_images == 48

    clsp(1, "one", *GENERATE, "out=shared", "export_npy=all.npy")
    assert np.load(tmp_path / "one/all.npy").shape == (48, 2, 16, 16, 3)
