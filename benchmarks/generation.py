"""Measure candidates per second of the generator and of the authors' procedure done plainly.

The plain implementation does what the authors' script does, in its order: one candidate of every
image, then the next candidate of every image; fresh noise from the global generator; in every step
two passes of the encoder and one of the decoder, in float32. All rows have the same network,
weights, images, batch size and, unless a row names another, number of steps. Since the plain one
draws one candidate per image at a time, its batches have at most as many samples as there are
images. ``ours`` does the same work in every step; the names of the other rows say what they save.
The contestants take turns for a number of rounds in one process, so that other load on the machine
affects all of them alike; ratios are computed within one round only.

    python benchmarks/generation.py --images 32 --candidates 4 --steps 10 --device cpu

With ``--few N`` there is one row of ours, with all savings and N steps of the fast solver instead
of ``--steps`` of DDIM. ``benchmarks/samplers.py`` measures what that costs in quality.
"""

import argparse
import copy
import itertools
import platform
import statistics
import time
from collections.abc import Callable

import diffusers
import numpy as np
import torch
from diffusers import UNet2DModel

from clsp_plugin.diffusion.denoiser import build_unet, load_denoiser
from clsp_plugin.diffusion.drawer import Drawer, GenerationSettings
from clsp_plugin.diffusion.interpolation import decode, encode
from clsp_plugin.diffusion.schedulers import LINEAR_BETAS


@torch.no_grad()
def plain(unet: UNet2DModel, images: torch.Tensor, args: argparse.Namespace) -> np.ndarray:
    """Draw candidates by the authors' procedure: uint8 (N, K, H, W, 3)."""
    device, w, eta = unet.device, 0.1, 0.1
    betas = torch.linspace(LINEAR_BETAS["beta_start"], LINEAR_BETAS["beta_end"], 1000)
    abar = torch.cumprod(1 - betas.double(), 0).to(device)
    times = torch.linspace(-1, 999, args.steps + 1).int().tolist()[::-1]
    collected = []
    for _ in range(args.candidates):
        out = np.zeros((*images.shape,), np.uint8)
        for first in range(0, len(images), args.batch):
            batch = images[first : first + args.batch].to(device)
            anchor = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
            x = torch.randn_like(anchor)
            for t, then in itertools.pairwise(times):
                a = abar[t].float()
                noised = a.sqrt() * anchor + (1 - a).sqrt() * torch.randn_like(anchor)
                h, skips, emb = encode(unet, x, t)
                h = w * h + (1 - w) * encode(unet, noised, t)[0]
                noise = decode(unet, h, skips, emb)
                x_0 = (x - (1 - a).sqrt() * noise) / a.sqrt()
                if then < 0:
                    x = x_0
                    continue
                b = abar[then].float()
                sigma = eta * ((1 - a / b) * (1 - b) / (1 - a)).sqrt()
                fresh = torch.randn_like(x)
                x = b.sqrt() * x_0 + (1 - b - sigma**2).sqrt() * noise + sigma * fresh
            pixels = (x.clamp(-1, 1) * 0.5 + 0.5).cpu().permute(0, 2, 3, 1).numpy() * 255
            out[first : first + len(pixels)] = pixels.astype(np.uint8)
        collected.append(out)
    return np.stack(collected, axis=1)


def ours(
    unet: UNet2DModel, images: torch.Tensor, args: argparse.Namespace, **keys
) -> Callable[[], np.ndarray]:
    """Return a function that draws candidates with this package's generator and these settings."""
    cfg = {
        "num_candidates": args.candidates,
        "steps": args.steps,
        "batch_size": args.batch,
        "device": args.device,
        **keys,
    }
    drawer = Drawer(images, unet, LINEAR_BETAS, GenerationSettings(**cfg))
    return lambda: drawer.draw(0, len(images), range(args.candidates))


def network(args: argparse.Namespace) -> UNet2DModel:
    if args.denoiser:
        unet, config = load_denoiser(args.denoiser)
        assert all(config[key] == value for key, value in LINEAR_BETAS.items())
        args.size, args.channels = unet.config.sample_size, list(unet.config.block_out_channels)
        args.layers = unet.config.layers_per_block
        return unet.to(args.device)
    torch.manual_seed(0)
    settings = {
        "block_out_channels": args.channels,
        "layers_per_block": args.layers,
        "attention_resolutions": [16] if args.size % 16 == 0 and args.size >= 16 else [],
    }
    return build_unet(args.size, settings).eval().to(args.device)


def contestants(args: argparse.Namespace) -> dict[str, Callable[[], np.ndarray]]:
    unet = network(args)

    def fresh() -> UNet2DModel:
        """Copy the network, because a memory layout or a compilation changes it."""
        return copy.deepcopy(unet)

    shape = (args.images, args.size, args.size, 3)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    low = {"precision": "bf16-mixed"}
    everything = {"share_anchor": True, "compile": args.compile, **low}
    compiled = {}
    if args.compile:
        compiled["ours, compiled"] = ours(fresh(), images, args, compile=True)
        compiled["ours, all of it"] = ours(fresh(), images, args, **everything)
    the_plain_one = {"the authors' procedure, plainly": lambda: plain(unet, images, args)}
    if args.few:
        fast = {**everything, "sampler": "dpmpp", "steps": args.few, "clip": args.clip}
        name = f"ours, all of it, {args.few} steps of dpmpp"
        return {**the_plain_one, name: ours(fresh(), images, args, **fast)}
    return {
        **the_plain_one,
        "ours": ours(unet, images, args),
        "ours, bfloat16": ours(unet, images, args, **low),
        "ours, anchors shared by their candidates": ours(unet, images, args, share_anchor=True),
        "ours, both": ours(unet, images, args, share_anchor=True, **low),
        "ours, channels last": ours(fresh(), images, args, channels_last=True),
        **compiled,
    }


def table(seconds: dict[str, list[float]], args: argparse.Namespace) -> str:
    number = args.images * args.candidates
    base = next(iter(seconds.values()))
    lines = ["| generator | candidates/s, median (min..max) | ratio, median (min..max) |"]
    lines.append("|---|---:|---:|")
    for name, values in seconds.items():
        rates = [number / value for value in values]
        ratios = [reference / value for value, reference in zip(values, base, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(rates):.2f} ({min(rates):.2f}..{max(rates):.2f}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def differences(drawn: dict[str, np.ndarray]) -> str:
    """Return how far rows with the same noise are from ``ours``, in pixel levels (0 to 255)."""
    lines = []
    for name, images in drawn.items():
        if name in ("ours, bfloat16", "ours, channels last", "ours, compiled"):
            gap = np.abs(images.astype(int) - drawn["ours"])
            lines.append(
                f"{name}: at most {gap.max()} levels from ours, {gap.mean():.4f} on average"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=4, help="an image")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="images the denoiser sees at once")
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 64])
    parser.add_argument("--layers", type=int, default=1, help="residual blocks a resolution")
    parser.add_argument("--denoiser", help="a trained one, instead of one by the three above")
    parser.add_argument("--few", type=int, help="steps of dpmpp, for a row with everything")
    parser.add_argument("--clip", action="store_true", help="in that row")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compiled networks too")
    args = parser.parse_args()

    runs = contestants(args)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    drawn: dict[str, np.ndarray] = {}
    for number in range(args.rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            drawn[name] = run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    on_cuda = torch.device(args.device).type == "cuda"
    device = torch.cuda.get_device_name(args.device) if on_cuda else "no GPU"
    print(
        f"{args.candidates} candidates of each of {args.images} images of {args.size}x{args.size}, "
        f"{args.steps} steps, batch {args.batch}, UNet {args.channels} x {args.layers}, "
        f"{args.rounds} rounds; {platform.machine()}, {torch.get_num_threads()} threads, {device}; "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}\n"
    )
    print(table(seconds, args), end="\n\n")
    print(differences(drawn))


if __name__ == "__main__":
    main()
