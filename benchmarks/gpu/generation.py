"""Candidates with the paper's network: the generator against the authors' procedure."""

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.generation import ours, plain
from benchmarks.gpu.report import Rows
from benchmarks.gpu.stage import Options
from benchmarks.gpu.timing import peak_flops, rates
from clsp_plugin.diffusion.compiling import compile_blocks
from clsp_plugin.diffusion.denoiser import build_unet
from clsp_plugin.diffusion.interpolation import decode, encode, interpolated_noise


def measure(options: Options, rows: Rows) -> None:
    size = options.pick(32, 16)
    torch.manual_seed(0)
    small = {"block_out_channels": [8, 8], "layers_per_block": 1, "attention_resolutions": []}
    unet = build_unet(size, small if options.small else {}).eval().to(options.device)
    args = argparse.Namespace(
        images=options.pick(128, 2), candidates=options.pick(8, 2), steps=options.pick(10, 2),
        batch=options.pick(1024, 4), device=options.device.type,
    )  # fmt: skip
    shape = (args.images, size, size, 3)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    work = operations(unet, size)
    peak = max(peak_flops(options.device, torch.bfloat16, options.pick(8192, 64)))
    total = 2 * work["encode"] + work["decode"]  # the encoder sees the sample and the anchor
    rows.add("operations of a step of a candidate", total / 1e9, "GFLOP", "17")
    half = {"precision": "bf16-mixed"}
    # name, settings, and the candidates/s that are expected
    contestants: list[tuple[str, dict[str, Any], str]] = [
        ("ours, the same work", {}, "50"),
        ("ours, bfloat16", half, "80"),
        ("ours, bfloat16 and shared anchors", {**half, "share_anchor": True}, "90"),
    ]
    if options.compiles:
        fast = {**half, "share_anchor": True, "compile": True}
        contestants[1:1] = [
            ("ours, bfloat16, compiled", {**half, "compile": True}, "180"),
            ("ours, bfloat16, compiled, shared anchors", fast, "220"),
            ("the same, by dpmpp", {**fast, "sampler": "dpmpp", "steps": 12}, "1,800"),
            ("ours, the same work, compiled", {"compile": True}, "90"),
        ]
    number = args.images * args.candidates

    def measured(name: str, draw: Callable[[], object], steps: int, expected: str) -> None:
        """Add the candidates/s for the steps of a real store, which are 100 or 12."""
        began = time.perf_counter()
        draw()
        first = time.perf_counter() - began
        passes = number * steps
        per_step = rates(draw, options.device, number=passes, steps=1, rounds=2, warm_up=0)
        total = 12 if "dpmpp" in name else 100
        anchors = args.candidates if "shared" in name or "dpmpp" in name else 1
        operated = work["encode"] * (1 + 1 / anchors) + work["decode"]
        note = f"{operated * max(per_step) / peak:.2f} of the bf16 rate; first call {first:.1f} s"
        values = [value / total for value in per_step]
        rows.add(f"{name}, {total} steps", values, "candidates/s", expected, note)

    theirs = "the authors' procedure, plainly"
    measured(theirs, lambda: plain(unet, images, args), args.steps, "40")
    for name, keys, expected in contestants:
        draw = ours(copy.deepcopy(unet), images, args, **keys)
        measured(name, draw, keys.get("steps", args.steps), expected)
    graphs(options, rows, copy.deepcopy(unet), size)
    forms(options, rows, unet, size)


@torch.no_grad()
def forms(options: Options, rows: Rows, unet: UNet2DModel, size: int) -> None:
    """Compare forms of the network in one step of blended sampling, without the sampler."""
    number = options.pick(1024, 2)
    for name, last, compiled, expected in (
        ("contiguous", False, False, "66"),
        ("channels last", True, False, "53"),
        ("channels last, compiled", True, True, "178"),
    ):
        if compiled and not options.compiles:
            continue
        layout = torch.channels_last if last else torch.contiguous_format
        form = copy.deepcopy(unet).to(memory_format=layout)
        if compiled:
            compile_blocks(form)
        x = torch.randn(number, 3, size, size, device=options.device).to(memory_format=layout)

        def step(form=form, x=x) -> torch.Tensor:
            with torch.autocast(options.device.type, torch.bfloat16):
                return interpolated_noise(form, x, x, 10, 0.1)

        values = rates(step, options.device, number=number, steps=2, rounds=2, warm_up=2)
        values = [value / 100 for value in values]
        rows.add(f"network alone, bfloat16, {name}, 100 steps", values, "candidates/s", expected)


@torch.no_grad()
def operations(unet: UNet2DModel, size: int) -> dict[str, float]:
    """Count the operations of the encoder (done twice in a step) and of the decoder."""
    x = torch.randn(1, 3, size, size, device=unet.device)
    with FlopCounterMode(display=False) as first:
        h, skips, emb = encode(unet, x, 10)
    with FlopCounterMode(display=False) as second:
        decode(unet, h, skips, emb)
    return {"encode": first.get_total_flops(), "decode": second.get_total_flops()}


@torch.no_grad()
def graphs(options: Options, rows: Rows, unet: UNet2DModel, size: int) -> None:
    """Compare the network alone with and without a CUDA graph, in a small and a large batch."""
    if options.device.type != "cuda":
        return
    unet = unet.to(memory_format=torch.channels_last)
    for batch in (64, 1024):
        x = torch.randn(batch, 3, size, size, device=options.device)
        x = x.contiguous(memory_format=torch.channels_last)
        t = torch.full((batch,), 10, device=options.device)

        def step(x=x, t=t) -> torch.Tensor:
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return unet(x, t).sample

        eager = rates(step, options.device, number=batch, steps=10)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replayed = rates(graph.replay, options.device, number=batch, steps=10)
        rows.add(f"network forward, batch {batch}, eager", eager, "images/s")
        note = f"{max(replayed) / max(eager):.2f} of eager"
        expected = "faster in the small batch only"
        name = f"network forward, batch {batch}, CUDA graph"
        rows.add(name, replayed, "images/s", expected, note)
