"""Generation by processes that are killed, run out of room, or meet each other.

The processes are real ones and SIGKILL ends them; each is forked from this one, which saves it
the seconds of importing torch.
"""

import multiprocessing
import os
import resource
import signal
import time

import numpy as np
import pytest
import torch

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.diffusion import sampling
from clsp_plugin.diffusion.denoiser import save_denoiser
from clsp_plugin.diffusion.generation import generate_candidates
from clsp_plugin.errors import ClspError

# so slow that a process does not end before the moment at which it is to be killed
CFG = {"num_candidates": 2, "steps": 40, "batch_size": 4, "shard_size": 2, "device": "cpu"}
REFUSED = 2


@pytest.fixture
def generate(images, unet, tmp_path):
    """Generate into a folder: ``generate(name, **settings)``."""
    save_denoiser(unet, tmp_path / "denoiser")

    def run(name, **cfg):
        keys = {**CFG, **cfg}
        return generate_candidates(images, "abc", tmp_path / "denoiser", tmp_path / name, keys)

    return run


@pytest.fixture
def begin():
    """Call a function in a process of its own; whatever still runs is killed at the end."""
    started = []

    def start(function, *args, environment=(), **keys):
        def body():
            os.environ.update(dict(environment))
            torch.set_num_threads(1)
            try:
                function(*args, **keys)
            except ClspError as error:
                print(error, flush=True)
                os._exit(REFUSED)
            os._exit(0)

        process = multiprocessing.get_context("fork").Process(target=body)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def count(folder):
    return len(list(folder.glob("shard-*.npy")))


def test_killed_again_and_again(generate, begin, tmp_path):
    generate("whole")
    out, kills = tmp_path / "killed", 0
    generator = np.random.default_rng(0)
    while True:
        before, process = count(out), begin(generate, "killed")
        # at a random moment after the next shard, or after the one behind it
        wait_for(lambda b=before, p=process: count(out) > b or not p.is_alive())
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was done
            break
        kills += 1
        for shard in out.glob("shard-*.npy"):  # all that can be seen is whole
            assert np.load(shard).shape == (2, 2, 8, 8, 3)
    assert kills >= 2
    assert contents(out) == contents(tmp_path / "whole")


def test_interrupted(generate, begin, tmp_path):
    generate("whole")
    process, out = begin(generate, "stopped"), tmp_path / "stopped"
    wait_for(lambda: count(out) > 1)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 1
    assert 1 < count(out) < 8
    assert not list(out.glob(".*"))  # neither a lock nor a part of a file
    generate("stopped")
    assert contents(out) == contents(tmp_path / "whole")


def test_killed_in_the_middle_of_a_file(generate, begin, tmp_path, monkeypatch):
    generate("whole")

    def dies(file, array):
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", dies)
        begin(generate, "killed").join()
    out = tmp_path / "killed"
    assert count(out) == 0
    assert list(out.glob(".shard-*.tmp"))
    generate("killed")
    assert contents(out) == contents(tmp_path / "whole")  # and what was left is cleared away


def test_no_room_for_a_file(generate, begin, tmp_path, capfd):
    large = {"shard_size": 16, "num_candidates": 8, "steps": 2}
    generate("whole", **large)

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))  # too little for the shard
        generate("full", **large)

    process = begin(limited)
    process.join()
    assert process.exitcode == REFUSED
    assert "no room for another shard" in capfd.readouterr().out
    assert not (tmp_path / "full").exists()  # nothing is left that another command minds
    generate("full", **large)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_one_process_of_two_is_lost(generate, begin, tmp_path):
    generate("whole")
    out = tmp_path / "shared"
    lost, other = (
        begin(generate, "shared", environment={"RANK": str(rank), "WORLD_SIZE": "2"})
        for rank in (0, 1)
    )
    wait_for(lambda: any(number in (0, 2, 4, 6) for number in numbers(out)))
    kill(lost)
    other.join()
    assert other.exitcode == 0
    assert numbers(out) >= {1, 3, 5, 7}
    with pytest.raises(ClspError, match="incomplete"):
        CandidateStore(out)
    generate("shared")
    assert contents(out) == contents(tmp_path / "whole")


def numbers(folder):
    return {int(path.stem.split("-")[1]) for path in folder.glob("shard-*.npy")}


def test_a_store_that_another_process_writes_is_refused(generate, begin, tmp_path, monkeypatch):
    out = tmp_path / "store"
    other = begin(generate, "store", steps=1000)
    wait_for(lambda: list(out.glob(".0-of-1.lock")) and (out / ".0-of-1.lock").stat().st_size)
    with pytest.raises(ClspError, match=rf"is being written by .*process {other.pid} on .*wait"):
        generate("store", steps=1000)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ClspError, match="is being written by another"):
        generate("store", steps=1000)
    monkeypatch.delenv("WORLD_SIZE")
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    monkeypatch.setattr(sampling, "denoise", lambda unet, s, x, noise, *_, **keys: noise.sample(0))
    assert generate("store", steps=1000)["images"] == 16  # a lock ends with its process


def test_killed_while_extending(generate, begin, tmp_path):
    generate("calm")
    generate("calm", num_candidates=4)
    generate("killed")
    process = begin(generate, "killed", num_candidates=4)
    out = tmp_path / "killed"
    wait_for(lambda: np.load(out / "shard-00001.npy").shape[1] == 4)
    kill(process)
    with pytest.raises(ClspError, match="being extended from 2 to 4"):
        CandidateStore(out)
    assert CandidateStore(out, 2).num_candidates == 2
    generate("killed", num_candidates=4)
    assert contents(out) == contents(tmp_path / "calm")


def test_one_that_was_killed_before_its_first_shard_is_in_nobodys_way(
    generate, begin, tmp_path, capfd
):
    generate("whole", steps=2)
    process, out = begin(generate, "other", steps=1000, seed=7), tmp_path / "other"
    wait_for(lambda: list(out.glob(".0-of-1.lock")) and (out / ".0-of-1.lock").stat().st_size)
    with pytest.raises(ClspError, match=r"is being written by .*wait"):  # it may yet draw one
        generate("other", steps=2)
    kill(process)
    assert count(out) == 0
    (out / "shard-00000.k2.b2").touch()
    (out / ".batch-size-cpu").write_text("3")
    generate("other", steps=2)
    assert "begun with other settings and had no candidates" in capfd.readouterr().out
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(ClspError, match=r"seed=0 \(now 1\)"):
        generate("other", steps=2, seed=1)
