"""From a denoiser's directory to a candidate store, killed and continued."""

import functools
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.writer import StoreWriter
from clsp_plugin.config.typed import settings_of
from clsp_plugin.diffusion import drawer as drawing
from clsp_plugin.diffusion import generation
from clsp_plugin.diffusion.denoiser import denoiser_hash, load_denoiser, save_denoiser
from clsp_plugin.diffusion.generation import generate_candidates
from clsp_plugin.diffusion.sampling import Sampling, sample_candidates
from clsp_plugin.diffusion.schedulers import make_scheduler
from clsp_plugin.errors import ClspError
from clsp_plugin.system import compiling
from clsp_plugin.system.processes import _gpu

CFG = {"num_candidates": 2, "steps": 2, "batch_size": 6, "shard_size": 5, "device": "cpu"}


@pytest.fixture
def denoiser(unet, tmp_path):
    save_denoiser(unet, tmp_path / "denoiser", beta_end=0.01)
    return tmp_path / "denoiser"


def read(path):
    return CandidateStore(path).images(range(16))


def test_a_store_holds_what_the_sampler_draws(images, denoiser, tmp_path):
    summary = generate_candidates(images, "abc", denoiser, tmp_path / "store", CFG, dataset="toy")
    unet, config = load_denoiser(denoiser)
    expected = sample_candidates(
        unet,
        make_scheduler(config, 2),
        images,
        Sampling(seed=0, w=0.1, eta=0.1),
        indexes=torch.arange(16),
        candidates=[0, 1],
    )
    drawn = read(tmp_path / "store")
    assert drawn.shape == (16, 2, 8, 8, 3)
    assert np.abs(drawn.astype(int) - expected.numpy()).max() <= 1
    manifest = CandidateStore(tmp_path / "store").manifest
    assert manifest.denoiser == summary["denoiser"] == denoiser_hash(unet, config)
    assert (manifest.fingerprint, manifest.dataset, manifest.sampler) == ("abc", "toy", "ddim")
    assert (manifest.w, manifest.steps, manifest.eta, manifest.seed) == (0.1, 2, 0.1, 0)
    assert (manifest.dtype, manifest.share_anchor) == ("32-true", False)
    assert (summary["images"], summary["candidates"]) == (16, 32)
    assert summary["candidates_per_second"] == pytest.approx(32 / summary["seconds"])


def test_killed_and_continued_gives_the_same_bytes(images, denoiser, tmp_path, monkeypatch):
    generate_candidates(images, "abc", denoiser, tmp_path / "whole", CFG)
    write, written = StoreWriter.write, []

    def killed(self, shard, candidates):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, candidates)

    monkeypatch.setattr(StoreWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        generate_candidates(images, "abc", denoiser, tmp_path / "killed", CFG)
    monkeypatch.undo()
    with pytest.raises(ClspError, match="incomplete"):
        read(tmp_path / "killed")
    summary = generate_candidates(images, "abc", denoiser, tmp_path / "killed", CFG)
    assert summary["images"] == 16 - 2 * 5
    assert np.array_equal(read(tmp_path / "killed"), read(tmp_path / "whole"))
    nothing = generate_candidates(images, "abc", denoiser, tmp_path / "killed", CFG)
    assert (nothing["images"], nothing["candidates_per_second"]) == (0, None)


def test_a_shard_is_written_while_the_next_is_drawn(images, denoiser, tmp_path, monkeypatch):
    write, begin, met = StoreWriter.write, drawing.begin_candidates, []
    second = threading.Event()

    def waits(self, shard, candidates):
        if shard == 0:
            met.append(second.wait(20))
        write(self, shard, candidates)

    def spy(*args, **keys):
        if int(keys["indexes"][-1]) >= 5:
            second.set()
        return begin(*args, **keys)

    monkeypatch.setattr(StoreWriter, "write", waits)
    monkeypatch.setattr(drawing, "begin_candidates", spy)
    generate_candidates(images, "abc", denoiser, tmp_path / "store", CFG)
    assert met == [True]
    monkeypatch.undo()
    generate_candidates(images, "abc", denoiser, tmp_path / "again", CFG)
    assert np.array_equal(read(tmp_path / "store"), read(tmp_path / "again"))


def test_what_goes_wrong_in_writing_stops_the_drawing(images, denoiser, tmp_path, monkeypatch):
    begin, failed, begun = drawing.begin_candidates, threading.Event(), []

    def fails(self, shard, candidates):
        failed.set()
        raise ClspError("no room")

    def spy(*args, **keys):
        begun.extend(keys["indexes"].tolist())
        if begun[-1] >= 5:
            failed.wait(20)
        return begin(*args, **keys)

    monkeypatch.setattr(StoreWriter, "write", fails)
    monkeypatch.setattr(drawing, "begin_candidates", spy)
    with pytest.raises(ClspError, match="no room"):
        generate_candidates(images, "abc", denoiser, tmp_path / "s", {**CFG, "batch_size": 2})
    assert 5 in begun
    assert 9 not in begun  # in the middle of the next shard


def test_a_batch_ahead_changes_nothing(images, denoiser):
    unet, config = load_denoiser(denoiser)
    cfg = settings_of(drawing.GenerationSettings, CFG)
    drawer = drawing.Drawer(images, unet, config, cfg)
    jobs, counts = [(0, 5, range(2)), (5, 7, range(1)), (7, 16, range(2))], []
    plain = list(drawer.draw_each(jobs))
    assert [part.shape[:2] for part in plain] == [(5, 2), (2, 1), (9, 2)]
    begin, failed = drawer._begin, []

    def fails_once(indexes, candidates):
        finish = begin(indexes, candidates)

        def wait():
            if not failed:
                failed.append(indexes)
                cuda_error()
            return finish()

        return wait

    drawer.ahead = 1  # as on a GPU
    for again in (list(drawer.draw_each(jobs, counts.append)), None):
        if again is None:  # and where memory runs out while the next batch is there already
            drawer._begin = fails_once
            again = list(drawer.draw_each(jobs))
            assert drawer.batch_size == 3
        for one, other in zip(plain, again, strict=True):
            assert np.abs(one.astype(int) - other).max() <= 1
    assert counts == [3, 2, 2, 3, 3, 3]


def test_processes_divide_the_shards(images, denoiser, tmp_path, monkeypatch):
    generate_candidates(images, "abc", denoiser, tmp_path / "alone", CFG)
    counts = []
    for rank in (1, 0, 2):  # one after the other: the others' shards are no longer missing
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        summary = generate_candidates(images, "abc", denoiser, tmp_path / "shared", CFG)
        counts.append(summary["images"])
    assert counts == [5, 6, 5]
    assert np.array_equal(read(tmp_path / "shared"), read(tmp_path / "alone"))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_next_to_nothing(images, denoiser, tmp_path, batch_size):
    generate_candidates(images, "abc", denoiser, tmp_path / "a", CFG)
    generate_candidates(images, "abc", denoiser, tmp_path / "b", {**CFG, "batch_size": batch_size})
    difference = np.abs(read(tmp_path / "a").astype(int) - read(tmp_path / "b"))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_batch_counts_what_the_denoiser_sees(images, denoiser, tmp_path, monkeypatch):
    rows, begin = [], drawing.begin_candidates

    def spy(unet, scheduler, anchors, sampling, **keys):
        rows.append(len(anchors) * len(keys["candidates"]))
        return begin(unet, scheduler, anchors, sampling, **keys)

    monkeypatch.setattr(drawing, "begin_candidates", spy)
    cfg = {**CFG, "num_candidates": 3, "batch_size": 6, "shard_size": 8}
    generate_candidates(images, "abc", denoiser, tmp_path / "a", cfg)
    assert rows == [6] * 8
    rows.clear()
    generate_candidates(images, "abc", denoiser, tmp_path / "b", {**cfg, "batch_size": 2})
    assert rows == [2, 1] * 16


@pytest.mark.parametrize(
    "change",
    [
        {"w": 0.9}, {"eta": 0.0}, {"seed": 1}, {"share_anchor": True}, {"steps": 4},
        {"precision": "bf16-mixed"}, {"clip": True}, {"sampler": "ddpm"}, {"sampler": "dpmpp"},
    ],
)  # fmt: skip
def test_every_setting_counts(images, denoiser, tmp_path, change):
    generate_candidates(images, "abc", denoiser, tmp_path / "a", CFG)
    generate_candidates(images, "abc", denoiser, tmp_path / "b", {**CFG, **change})
    assert not np.array_equal(read(tmp_path / "a"), read(tmp_path / "b"))
    with pytest.raises(ClspError, match=next(iter(change)).replace("precision", "dtype")):
        generate_candidates(images, "abc", denoiser, tmp_path / "a", {**CFG, **change})


def test_errors(images, denoiser, tmp_path):
    def generate(images=images, denoiser=denoiser, **cfg):
        generate_candidates(images, "abc", denoiser, tmp_path / "store", {**CFG, **cfg})

    larger = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(ClspError, match=r"draws images of 8x8 pixels, the images are 16x16"):
        generate(images=larger)
    with pytest.raises(ClspError, match="no denoiser directory"):
        generate(denoiser=tmp_path / "absent")
    with pytest.raises(ClspError, match=r"steps=30 does not divide .* sampler=dpmpp takes any"):
        generate(steps=30)
    with pytest.raises(ClspError, match="device='abacus' cannot be used here"):
        generate(device="abacus")
    with pytest.raises(ClspError, match="weight is not a setting"):
        generate(weight=0.1)
    with pytest.raises(ClspError, match=r"eta=0.5 is DDIM's and sampler=dpmpp has none"):
        generate(sampler="dpmpp", eta=0.5)
    with pytest.raises(ClspError, match="sampler=euler must be one of ddim, ddpm"):
        generate(sampler="euler")
    assert not (tmp_path / "store").exists()


def test_the_bar_says_what_is_done(images, denoiser, tmp_path, capfd):
    generate_candidates(images, "abc", denoiser, tmp_path / "store", CFG, desc="[2/9] candidates")
    assert "[2/9] candidates: 100%" in capfd.readouterr().err


def test_a_store_is_extended_to_more_candidates(images, denoiser, tmp_path):
    first = generate_candidates(images, "abc", denoiser, tmp_path / "grown", CFG)
    two = read(tmp_path / "grown")
    cfg = {**CFG, "num_candidates": 5}
    more = generate_candidates(images, "abc", denoiser, tmp_path / "grown", cfg)
    assert (first["candidates"], more["candidates"]) == (16 * 2, 16 * 3)
    five = read(tmp_path / "grown")
    assert np.array_equal(five[:, :2], two)
    generate_candidates(images, "abc", denoiser, tmp_path / "at once", cfg)
    assert np.abs(five.astype(int) - read(tmp_path / "at once")).max() <= 1
    with pytest.raises(ClspError, match=r"num_candidates=5 \(now 2\)"):
        generate_candidates(images, "abc", denoiser, tmp_path / "grown", CFG)


def test_a_refused_extension_leaves_the_store_as_it_was(images, denoiser, tmp_path, monkeypatch):
    out, more = tmp_path / "store", {**CFG, "num_candidates": 5}
    generate_candidates(images, "abc", denoiser, out, CFG)
    two, manifest = read(out), CandidateStore(out).manifest
    with (
        StoreWriter(out, manifest).lock(0, 1),
        pytest.raises(ClspError, match="is being written by another"),
    ):
        generate_candidates(images, "abc", denoiser, out, more)
    assert np.array_equal(read(out), two)
    full = type("Usage", (), {"free": 10})
    monkeypatch.setattr(generation.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ClspError, match="room"):
        generate_candidates(images, "abc", denoiser, out, more)
    assert np.array_equal(read(out), two)


def test_ranks_that_are_none_are_refused(images, denoiser, tmp_path, monkeypatch):
    for rank, world, told in (
        ("a", "2", "RANK=a, which is not a whole number"),
        ("2", "2", "RANK=2 and WORLD_SIZE=2"),
        ("0", "0", "WORLD_SIZE=0, which is not a whole number of at least 1"),
    ):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(ClspError, match=told):
            generate_candidates(images, "abc", denoiser, tmp_path / "store", CFG)


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for environment, number in (
        ({}, 0),
        ({"RANK": "6", "WORLD_SIZE": "8"}, 2),  # started by hand, without a local rank
        ({"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, 1),
        ({"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "5"}, 1),  # more processes than GPUs
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert _gpu() == number


def test_the_batch_of_a_cpu_is_what_memory_has_room_for(
    images, denoiser, tmp_path, monkeypatch, capfd
):
    tried = []

    def memory_of(work):
        tried.append(work())
        return tried[-1] * 2**20  # a MiB for every candidate

    monkeypatch.setattr(drawing, "memory_of", memory_of)
    cfg = {**CFG, "batch_size": None}
    for free, processes, batch in (
        (2**40, "1", 256),
        (2**26, "1", 32),  # of the 47 that three quarters of it have room for
        (2**26, "4", 8),
        (2**10, "1", 1),
        (None, "1", 256),
    ):
        monkeypatch.setattr(drawing, "available_memory", lambda free=free: free)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        found = generate_candidates(images, "abc", denoiser, tmp_path / f"{free}", cfg)
        assert found["batch_size"] == batch
        assert (f"memory for batch_size={batch} (" in capfd.readouterr().out) == (batch < 256)
        shutil.rmtree(tmp_path / f"{free}")
    assert set(tried) == {8}


def run_out_of_memory(monkeypatch, rows, how):
    """Let the first layer of the denoiser that is loaded fail on more images than so many."""
    load = generation.load_denoiser

    def fail(module, args):
        if len(args[0]) > rows:
            how()

    def spoilt(path):
        unet, config = load(path)
        unet.conv_in.register_forward_pre_hook(fail)
        return unet, config

    monkeypatch.setattr(generation, "load_denoiser", spoilt)


def cuda_error():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


def onednn_error():
    raise RuntimeError("could not create a primitive")  # what it says where memory is short


@pytest.mark.parametrize(
    "how",
    [cuda_error, onednn_error, lambda: torch.empty(2**52)],  # the last is real
)
def test_out_of_memory_halves_the_batch(images, denoiser, tmp_path, monkeypatch, how):
    generate_candidates(images, "abc", denoiser, tmp_path / "a", {**CFG, "batch_size": 3})
    run_out_of_memory(monkeypatch, 4, how)
    for batch_size in (12, None):
        out = tmp_path / f"b{batch_size}"
        cfg = {**CFG, "batch_size": batch_size}
        found = generate_candidates(images, "abc", denoiser, out, cfg)
        assert found["batch_size"] in (3, 4)
        assert np.abs(read(tmp_path / "a").astype(int) - read(out)).max() <= 1
    assert estimate(images, denoiser, tmp_path / "c", CFG)["seconds"] > 0


def test_memory_for_not_even_one_is_refused(images, denoiser, tmp_path, monkeypatch):
    run_out_of_memory(monkeypatch, 0, cuda_error)
    with pytest.raises(ClspError, match=r"memory of cpu does not suffice .* of a single image"):
        generate_candidates(images, "abc", denoiser, tmp_path / "a", CFG)


def estimate(images, denoiser, out, cfg):
    return generation.estimate_generation(images, "abc", denoiser, out, cfg)


def test_a_dry_run_says_how_long_and_writes_nothing(images, denoiser, tmp_path):
    out = tmp_path / "store"
    found = estimate(images, denoiser, out, {**CFG, "steps": 10})
    assert (found["images"], found["candidates"], found["total"]) == (16, 32, 32)
    assert found["bytes"] == 32 * 8 * 8 * 3
    assert found["seconds"] > 0
    twice = {**CFG, "steps": 1000}  # not slower for it: only a few steps are run
    assert estimate(images, denoiser, out, twice)["seconds"] > found["seconds"]
    assert not out.exists()


def test_a_dry_run_refuses_what_would_be_refused(images, denoiser, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ClspError, match="file is a file; a candidate store is a directory"):
        estimate(images, denoiser, tmp_path / "file", CFG)
    with pytest.raises(ClspError, match="holds files that are not a candidate store"):
        estimate(images, denoiser, tmp_path, CFG)


def test_a_dry_run_counts_what_is_there(images, denoiser, tmp_path):
    out, more = tmp_path / "store", {**CFG, "num_candidates": 5}
    generate_candidates(images, "abc", denoiser, out, CFG)
    assert estimate(images, denoiser, out, CFG)["candidates"] == 0
    (out / "shard-00001.npy").unlink()
    found = estimate(images, denoiser, out, CFG)
    assert (found["images"], found["candidates"], found["total"]) == (5, 10, 32)
    found = estimate(images, denoiser, out, more)
    assert (found["images"], found["candidates"], found["total"]) == (16, 16 * 5 - 11 * 2, 80)
    assert found["bytes"] == found["candidates"] * 8 * 8 * 3
    with pytest.raises(ClspError, match=r"w=0.1 \(now 0.5\)"):
        estimate(images, denoiser, out, {**CFG, "w": 0.5})


def test_a_store_is_extended_where_there_is_room_for_that(images, denoiser, tmp_path, monkeypatch):
    out, more = tmp_path / "store", {**CFG, "num_candidates": 3}
    generate_candidates(images, "abc", denoiser, out, CFG)
    # one candidate more of each image, beside the old file of 5 images with 2
    needed = (16 + 5 * 2) * 8 * 8 * 3
    usage = generation.shutil.disk_usage(tmp_path)
    for free in (needed - 1, needed):
        found = usage._replace(free=free)
        monkeypatch.setattr(generation.shutil, "disk_usage", lambda path, found=found: found)
        if free < needed:
            with pytest.raises(ClspError, match="room"):
                generate_candidates(images, "abc", denoiser, out, more)
        else:
            generate_candidates(images, "abc", denoiser, out, more)
    assert read(out).shape[1] == 3


def test_too_small_a_disk_is_refused(images, denoiser, tmp_path, monkeypatch):
    usage = generation.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(generation.shutil, "disk_usage", lambda path: usage)
    problem = "need 6.0 KiB and there are 1.0 KiB free"
    assert problem in estimate(images, denoiser, tmp_path / "no/store", CFG)["no_room"]
    with pytest.raises(ClspError, match=problem):
        generate_candidates(images, "abc", denoiser, tmp_path / "store", CFG)


def test_a_continued_store_takes_the_batch_that_was_found(images, denoiser, tmp_path, monkeypatch):
    out, cfg = tmp_path / "store", {**CFG, "batch_size": None}
    monkeypatch.setattr(drawing, "available_memory", lambda: 0)  # not even for two
    assert generate_candidates(images, "abc", denoiser, out, cfg)["batch_size"] == 1
    whole = read(out)
    monkeypatch.undo()
    (out / "shard-00001.npy").unlink()
    found = generate_candidates(images, "abc", denoiser, out, cfg)
    assert (found["images"], found["batch_size"]) == (5, 1)
    assert np.array_equal(read(out), whole)
    given = generate_candidates(images, "abc", denoiser, out, {**CFG, "num_candidates": 3})
    assert given["batch_size"] == CFG["batch_size"]  # one that is given counts, and is not kept
    assert (out / ".batch-size-cpu").read_text() == "1"
    (out / ".batch-size-cpu").write_text("by hand")
    assert generate_candidates(images, "abc", denoiser, out, {**cfg, "num_candidates": 3})


def test_the_batch_that_is_kept_is_the_one_that_fitted(images, denoiser, tmp_path, monkeypatch):
    run_out_of_memory(monkeypatch, 4, cuda_error)
    monkeypatch.setattr(drawing.Drawer, "_largest_batch", lambda self: 16)  # as on a GPU
    cfg = {**CFG, "batch_size": None}
    assert generate_candidates(images, "abc", denoiser, tmp_path / "s", cfg)["batch_size"] == 4
    assert (tmp_path / "s/.batch-size-cpu").read_text() == "4"


def test_a_condition_that_nobody_takes_is_refused(images, denoiser, tmp_path):
    with pytest.raises(ClspError, match="A condition was given, and this denoiser takes none"):
        generate_candidates(images, "abc", denoiser, tmp_path / "s", CFG,
                            condition=torch.zeros(16, dtype=torch.int64))  # fmt: skip
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("size", [[16], [8, 9], "8", 16])
def test_a_denoiser_of_another_size(images, unet, size, tmp_path):
    unet.register_to_config(sample_size=size)
    save_denoiser(unet, tmp_path / "other")
    told = "pixels, the images are 8x8; train one for these"
    told = "sample_size=8, which is not valid" if size == "8" else told
    with pytest.raises(ClspError, match=told):
        generate_candidates(images, "abc", tmp_path / "other", tmp_path / "s", CFG)


@pytest.fixture
def compiled(monkeypatch):
    """The graphs that are compiled; they run as they were traced."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    traced = functools.partialmethod(nn.Module.compile, backend=backend)
    monkeypatch.setattr(nn.Module, "compile", traced)
    monkeypatch.setattr(compiling, "can_compile", lambda device: True)
    torch.compiler.reset()
    return graphs


def test_only_the_size_that_fits_is_compiled(make_unet, compiled):
    """Each size of a batch has graphs of its own, and making them takes half a minute."""
    unet = make_unet(16, block_out_channels=[8, 8], attention_resolutions=[])
    images = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)
    settings = drawing.GenerationSettings(
        **{**CFG, "num_candidates": 1, "compile": True, "batch_size": 8, "shard_size": 8}
    )
    sizes = []

    def fail(module, args):  # after the blocks, as where the memory of a GPU runs out
        sizes.append(len(args[0]))
        if sizes[-1] > 2:
            cuda_error()

    unet.conv_out.register_forward_pre_hook(fail)
    drawing.Drawer(images, unet, {}, settings).draw(0, 8, range(1))
    assert {8, 4, 2} == set(sizes)
    first = len(compiled)
    compiled.clear()
    torch.compiler.reset()
    drawing.Drawer(images, unet, {}, replace(settings, batch_size=2)).draw(0, 8, range(1))
    assert first == len(compiled) > 0


@torch._dynamo.config.patch(cache_size_limit=8)  # torch's own; timm sets another
def test_every_size_of_batch_is_compiled(make_unet, compiled):
    unet = make_unet(16, block_out_channels=[8, 8, 8, 8])
    images, settings = torch.zeros(9, 16, 16, 3, dtype=torch.uint8), {**CFG, "num_candidates": 1}
    settings = drawing.GenerationSettings(**{**settings, "compile": True, "batch_size": 9})
    drawer = drawing.Drawer(images, unet, {}, settings)
    graphs = []
    for number in (9, 8, 7, 6):  # blocks of one class share what torch lets them compile
        drawer.draw(0, number, range(1))
        graphs.append(len(compiled))
        compiled.clear()
    assert graphs == [graphs[0]] * 4
    assert graphs[0] >= 9


@pytest.mark.parametrize("change", [{"channels_last": True}, {"compile": True}])
def test_another_form_of_the_network_draws_the_same(
    images, denoiser, tmp_path, monkeypatch, change
):
    # traced into graphs that run as they are: a real compilation takes a minute, and
    # benchmarks/generation.py compares what comes out of it
    traced = functools.partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", traced)
    monkeypatch.setattr(compiling, "can_compile", lambda device: True)
    cfg = {**CFG, "shard_size": 8, "batch_size": 16, "clip": True}
    for name, keys in (("plain", {}), ("other", change)):
        generate_candidates(images, "abc", denoiser, tmp_path / name, {**cfg, **keys})
    plain, other = (read(tmp_path / name).astype(int) for name in ("plain", "other"))
    assert np.abs(plain - other).max() <= 1
    manifests = [CandidateStore(tmp_path / name).manifest for name in ("plain", "other")]
    assert manifests[0] == manifests[1]  # the same store, its denoiser has the same name


def test_compiling_without_a_compiler_is_refused(images, denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "can_compile", lambda device: False)
    with pytest.raises(ClspError, match=r"compile=True needs a C\+\+ compiler"):
        generate_candidates(images, "abc", denoiser, tmp_path / "s", {**CFG, "compile": True})
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("there", [[], ["new"], ["new", "new/folder"]])
def test_a_refused_command_leaves_nothing(images, denoiser, tmp_path, monkeypatch, there):
    before = sorted(tmp_path.rglob("*"))
    for name in there:
        (tmp_path / name).mkdir()
        before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "new" / "folder"
    refusals = [{"num_candidates": 10**12}, {"num_candidates": 2, "device": "meta"}]
    for cfg in refusals:
        with pytest.raises(ClspError, match=r"need .* and there are|device='meta'"):
            generate_candidates(images, "abc", denoiser, out, {**CFG, **cfg})
        assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setenv("RANK", "\u00b2")
    with pytest.raises(ClspError, match="RANK"):
        generate_candidates(images, "abc", denoiser, out, CFG)
    monkeypatch.delenv("RANK")
    run_out_of_memory(monkeypatch, 0, cuda_error)  # while the first shard is drawn
    with pytest.raises(ClspError, match="memory of cpu does not suffice"):
        generate_candidates(images, "abc", denoiser, out, CFG, digests=np.zeros((16, 16), "u1"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_shard_that_changed_is_named_before_anything_is_drawn(images, denoiser, tmp_path):
    out, cfg = tmp_path / "store", {**CFG, "num_candidates": 1}
    generate_candidates(images, "abc", denoiser, out, cfg)
    shard = sorted(out.glob("shard-*.npy"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = read(out)
    for changed in (cfg, {**cfg, "num_candidates": 2}):
        with pytest.raises(ClspError, match=rf"{shard} changed since being written.*delete it"):
            generate_candidates(images, "abc", denoiser, out, changed)
    assert np.array_equal(read(out), before)
    shard.unlink()
    generate_candidates(images, "abc", denoiser, out, cfg)
    assert shard.read_bytes() == whole
