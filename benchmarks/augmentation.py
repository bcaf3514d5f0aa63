"""Measure samples per second of the augmentation and of the PIL pipeline that it replaces.

A sample is one 32x32 image and all its views, made with the CIFAR configuration of SimCLR. The
contestants take turns for a number of rounds in one process, so that other load on the machine
affects all of them alike; ratios are computed within one round only.

    python benchmarks/augmentation.py --batch 256 --seconds 5 --views 3 --device cpu

On a machine shared with other busy processes set ``OMP_WAIT_POLICY=PASSIVE``: by default, threads
that have finished a step spin while they wait for one that has no core, which can cost a factor
of ten.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation, can_compile_augmentation
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for

SIZE, IMAGES = 32, 8192
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
CONFIG = AugmentationConfig(
    crop_size=SIZE,
    crop=True,
    jitter_prob=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale_prob=0.2,
    flip_prob=0.5,
)


class Views(Dataset):
    """Several views of each image, one image at a time, through PIL."""

    def __init__(self, images: np.ndarray, views: int) -> None:
        self.images, self.views = images, views
        jitter = transforms.ColorJitter(
            CONFIG.brightness, CONFIG.contrast, CONFIG.saturation, CONFIG.hue
        )
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    SIZE,
                    scale=(CONFIG.crop_min_scale, CONFIG.crop_max_scale),
                    interpolation=transforms.InterpolationMode(CONFIG.interpolation),
                ),
                transforms.RandomApply([jitter], p=CONFIG.jitter_prob),
                transforms.RandomGrayscale(CONFIG.grayscale_prob),
                transforms.RandomHorizontalFlip(CONFIG.flip_prob),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        image = Image.fromarray(self.images[index])
        return [self.transform(image) for _ in range(self.views)]


def loader_rate(images: np.ndarray, args: argparse.Namespace, device: torch.device) -> float:
    """Measure samples/s of a loader with workers, once its queues are full."""
    loader = DataLoader(
        Views(images, args.views),
        args.batch,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )

    def forever():
        while True:
            yield from loader

    batches = forever()
    for _ in range(2 * args.workers + 1):
        next(batches)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.seconds or done == 0:
        for view in next(batches):
            view.to(device, non_blocking=True)
        done += args.batch
    synchronize(device)
    rate = done / (time.perf_counter() - start)
    batches.close()
    return rate


def batched_rate(
    augmentation: BatchAugmentation,
    images: torch.Tensor,
    args: argparse.Namespace,
) -> float:
    """Measure samples/s of gathering batches by index and augmenting all their views at once."""
    device = images.device
    views = torch.arange(args.views, device=device)

    def step(i: int) -> None:
        index = torch.randint(len(images), (args.batch,), device=device)
        base = keys_for(derive_key(0, Purpose.AUGMENTATION, i), views)
        keys = keys_for(base[:, None], index[None, :])
        batch = images[index].expand(args.views, -1, -1, -1, -1)
        augmentation(batch.reshape(-1, SIZE, SIZE, 3), keys.reshape(-1))

    step(0)  # warm-up, which compiles the first time
    synchronize(device)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.seconds or done == 0:
        step(done)
        synchronize(device)
        done += args.batch
    return done / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def contestants(args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    device = torch.device(args.device)
    array = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    images = torch.from_numpy(array).to(device)
    eager = BatchAugmentation(CONFIG, MEAN, STD)
    result = {
        f"torchvision on PIL images, {args.workers} workers": lambda: loader_rate(
            array, args, device
        ),
        "batched, eager": lambda: batched_rate(eager, images, args),
    }
    if can_compile_augmentation(device):
        compiled = BatchAugmentation(CONFIG, MEAN, STD, compile=True)
        start = time.perf_counter()
        batched_rate(compiled, images, argparse.Namespace(**{**vars(args), "seconds": 0}))
        print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)
        result["batched, compiled"] = lambda: batched_rate(compiled, images, args)
    else:
        print("no compiler on this machine: the compiled variant is left out")
    return result


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(rates: dict[str, list[float]]) -> str:
    base = next(iter(rates.values()))
    lines = ["| pipeline | samples/s, median (min..max) | ratio, median (min..max) |"]
    lines.append("|---|---:|---:|")
    for name, values in rates.items():
        ratios = [value / reference for value, reference in zip(values, base, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(values):,.0f} ({min(values):,.0f}..{max(values):,.0f}) "
            f"| {statistics.median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256, help="samples a batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--views", type=int, default=3, help="views a sample")
    parser.add_argument("--device", default="cpu", help="where the batched augmentation runs")
    parser.add_argument("--workers", type=int, default=2, help="of the loader of PIL images")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    runs = contestants(args)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            rates[name].append(run())
    on_cuda = torch.device(args.device).type == "cuda"
    device = torch.cuda.get_device_name(args.device) if on_cuda else "no GPU"
    policy = os.environ.get("OMP_WAIT_POLICY", "default")
    print(
        f"{args.views} views of {SIZE}x{SIZE}, batch {args.batch}, {args.rounds} rounds of "
        f"{args.seconds:g} s; {processor()}, {torch.get_num_threads()} threads "
        f"(wait policy {policy}), {device}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}\n"
    )
    print(table(rates))


if __name__ == "__main__":
    main()
