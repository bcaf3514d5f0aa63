"""Candidates with the paper's network: the generator against the authors' procedure."""

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.generation import ours, plain
from benchmarks.gpu.report import Rows
from benchmarks.gpu.stage import Options
from benchmarks.gpu.timing import peak_flops, rates
from clsp_plugin.data.augmentation.pipeline import can_compile
from clsp_plugin.diffusion.denoiser import build_unet
from clsp_plugin.diffusion.interpolation import decode, encode


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
    rows.add("operations of a step of a candidate", sum(work.values()) / 1e9, "GFLOP", "17")
    fast = {"precision": "bf16-mixed", "share_anchor": True}
    # name, settings, copy of the network, steps, candidates/s that are expected at 100 steps
    contestants: list[tuple[str, Callable[[], object], int, str]] = [
        ("the authors' procedure, plainly", lambda: plain(unet, images, args), args.steps, "40"),
        ("ours, the same work", ours(copy.deepcopy(unet), images, args), args.steps, "50"),
        (
            "ours, contiguous",
            ours(copy.deepcopy(unet), images, args, channels_last=False), args.steps, "40",
        ),
        (
            "ours, bfloat16",
            ours(copy.deepcopy(unet), images, args, precision="bf16-mixed"), args.steps, "120",
        ),
        (
            "ours, bfloat16 and shared anchors",
            ours(copy.deepcopy(unet), images, args, **fast), args.steps, "160",
        ),
        (
            "the same, 12 steps of dpmpp",
            ours(
                copy.deepcopy(unet), images, args, **fast, sampler="dpmpp",
                steps=options.pick(12, 2),
            ),
            options.pick(12, 2), "1,300 a store of 12 steps",
        ),
    ]  # fmt: skip
    number = args.images * args.candidates
    for name, draw, steps, expected in contestants:
        measured(rows, options, name, draw, number, steps, work, peak, expected)
    graphs(options, rows, copy.deepcopy(unet), size)
    if can_compile(options.device) and not options.small:
        draw = ours(copy.deepcopy(unet), images, args, **fast, compile=True)
        name = "ours, bfloat16, shared anchors, compiled"
        measured(rows, options, name, draw, number, args.steps, work, peak, "220")


def measured(
    rows: Rows, options: Options, name: str, draw: Callable[[], object], number: int, steps: int,
    work: dict[str, float], peak: float, expected: str,
) -> None:  # fmt: skip
    """Add the candidates a second for the stores of the paper: of as many steps as it takes."""
    began = time.perf_counter()
    draw()
    first = time.perf_counter() - began
    per_step = rates(draw, options.device, number=number * steps, steps=1, rounds=2, warm_up=0)
    total = 12 if "dpmpp" in name else 100
    shared = work["encode"] / 8 if "shared" in name else work["encode"]
    used = (work["encode"] + shared + work["decode"]) * max(per_step) / peak
    rows.add(
        f"{name}, {total} steps", [value / total for value in per_step], "candidates/s", expected,
        f"{used:.2f} of the device's bf16 rate; first {first:.1f} s",
    )  # fmt: skip


@torch.no_grad()
def operations(unet, size: int) -> dict[str, float]:
    """Count the operations of the encoder (done twice in a step) and of the decoder."""
    x = torch.randn(1, 3, size, size, device=unet.device)
    with FlopCounterMode(display=False) as first:
        h, skips, emb = encode(unet, x, 10)
    with FlopCounterMode(display=False) as second:
        decode(unet, h, skips, emb)
    return {"encode": first.get_total_flops(), "decode": second.get_total_flops()}


@torch.no_grad()
def graphs(options: Options, rows: Rows, unet, size: int) -> None:
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
