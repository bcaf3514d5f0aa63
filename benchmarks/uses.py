"""Measure the time of a training step with each use of synthetic positives beside the base's.

A step makes the views of a batch, runs forward and backward and updates the weights. The uses take
turns with their base method for a number of rounds in one process, so that other load affects all
of them alike; ratios are computed within one round only. Without a GPU the time is that of the
processor, of all threads.

    python benchmarks/uses.py --methods simclr byol --rounds 5
    python benchmarks/uses.py --device cuda --config cifar --batch 512
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.candidates.writer import StoreWriter
from clsp_plugin.config.compose import compose
from clsp_plugin.config.training import parse_cfg
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.errors import ClspError
from clsp_plugin.methods import METHODS

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
K = 8  # candidates an image
USES = {
    "align": [],
    "replace": ["use=replace"],
    "view": ["use=view"],
    "multi, 2 candidates": ["use=multi", "per_step=2"],
    "multi, 4 candidates": ["use=multi", "per_step=4"],
    "align, by quality": ["pair_weight=quality"],
    "align, the hardest of 4": ["choice=hardest", "choice_of=4"],
}


def write_store(folder: Path, images: ImageArray) -> Path:
    """Write a store of random candidates."""
    height, width = images.size
    manifest = StoreManifest(
        num_images=len(images), num_candidates=K, height=height, width=width,
        fingerprint=images.fingerprint, dataset=images.name, denoiser="none", w=0.1,
        sampler="ddim", steps=1, eta=0.0, seed=0, dtype="32-true", clip=False,
        share_anchor=False, shard_size=len(images),
    )  # fmt: skip
    writer = StoreWriter(folder, manifest, images.digests)
    for shard, _, _ in writer.missing():
        drawn = torch.randint(256, manifest.shard_shape(shard), dtype=torch.uint8)
        writer.write(shard, drawn.numpy())
    return folder


def stepper(
    args: argparse.Namespace, base: str, use: list[str] | None, images: ImageArray, store: Path
) -> Callable[[], None]:
    """Return a function that does one step of a method, or of a use of candidates over it."""
    method = base if use is None else f"clsp_{base}"
    given = [f"method={method}", f"optimizer.batch_size={args.batch}", "joint_forward=False"]
    if use is not None:
        given += [f"synthetic.{one}" for one in (f"path={store}", *use)]
    cfg = compose("pretrain", f"{args.config}/{base}", [*given, *args.overrides])
    cfg = parse_cfg(cfg, METHODS)
    cfg.data.num_classes = 10
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = METHODS[method](cfg).to(device, memory_format=torch.channels_last)
    if use is not None:
        model.attach(images, MEAN, STD)
        if device.type == "cuda":
            model._third.to(device)
    pixels = images.images.to(device)
    block = AugmentationConfig.from_cfg(cfg.augmentations[0])
    augmentation = BatchAugmentation(block, MEAN, STD)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    number = 0

    def step() -> None:
        nonlocal number
        rows = torch.randint(len(images), (args.batch,), device=device)
        keys = [keys_for(derive_key(0, Purpose.AUGMENTATION, number, v), rows) for v in (0, 1)]
        views = augmentation(pixels[rows].repeat(2, 1, 1, 1), torch.cat(keys)).chunk(2)
        number += 1
        loss = model.training_step([rows, list(views), rows % 10], number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def milliseconds(step: Callable[[], None], args: argparse.Namespace) -> float:
    """Return the time of a step, on average over the steps of a turn."""
    cuda = args.device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    began = clock()
    for _ in range(args.steps):
        step()
    if cuda:
        torch.cuda.synchronize()
    return (clock() - began) * 1000 / args.steps


def measure(args: argparse.Namespace, base: str, images: ImageArray, store: Path) -> None:
    """Print the rows of one method."""
    steps = {"alone": stepper(args, base, None, images, store)}
    for name in args.uses:
        try:
            steps[name] = stepper(args, base, USES[name], images, store)
        except ClspError as error:
            print(f"| {base} | {name} | refused | {str(error).partition(';')[0]} |")
    for step in steps.values():
        step()  # what only a first step does
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(milliseconds(step, args))
    for name, values in times.items():
        ratios = [value / alone for value, alone in zip(values, times["alone"], strict=True)]
        print(
            f"| {base} | {name} | {statistics.median(values):.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every training")
    parser.add_argument("--methods", nargs="+", default=["simclr", "mocov2plus", "byol", "vicreg"])
    parser.add_argument("--uses", nargs="+", default=[*USES], choices=[*USES], metavar="USE")
    parser.add_argument("--config", default="digits", help="folder of scripts/pretrain")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument("--steps", type=int, default=5, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_intermixed_args()

    size = compose("pretrain", f"{args.config}/{args.methods[0]}").augmentations[0].crop_size
    pixels = torch.randint(256, (4 * args.batch, size, size, 3), dtype=torch.uint8)
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    images = ImageArray(pixels, labels, ("one",), "random")
    on_gpu = args.device.startswith("cuda")
    device = torch.cuda.get_device_name(args.device) if on_gpu else platform.machine()
    print(
        f"{args.config}, {size}x{size} pixels, batch {args.batch}, {args.rounds} rounds of "
        f"{args.steps} steps; {device}, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}\n\n| method | use | ms a step | "
        f"of the method alone |\n|---|---|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "candidates", images)
        for base in args.methods:
            measure(args, base, images, store)


if __name__ == "__main__":
    main()
