"""The data path: views that are made in a second, for CIFAR and for photographs."""

import dataclasses
import time

import torch

from benchmarks.augmentation import CONFIG as CIFAR
from benchmarks.augmentation import MEAN, STD
from benchmarks.gpu.report import Rows
from benchmarks.gpu.stage import Options
from benchmarks.gpu.timing import rates, synchronize
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation, can_compile_augmentation
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for

PHOTOGRAPHS = dataclasses.replace(
    CIFAR, crop_size=224, interpolation="bicubic", blur_prob=0.5, solarize_prob=0.1
)


def measure(options: Options, rows: Rows) -> None:
    compiler = can_compile_augmentation(options.device)
    for name, cfg, size, batch, expected in (
        ("32x32, as SimCLR on CIFAR", CIFAR, 32, options.pick(1024, 16),
         ("1,000,000: memory-bound", "3,000,000")),
        ("224x224 of 256x256, with blur", PHOTOGRAPHS, 256, options.pick(128, 1),
         ("15,000", "50,000")),
    ):  # fmt: skip
        shape = (4 * batch, size, size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=options.device)
        for compiled in (False, True) if compiler and not options.small else (False,):
            augmentation = BatchAugmentation(cfg, MEAN, STD, compile=compiled)

            def step(images=images, augmentation=augmentation, batch=batch) -> None:
                chosen = torch.arange(batch, device=images.device)
                key = derive_key(0, Purpose.AUGMENTATION, 0)
                # two views of each image in one call, as in training
                augmentation(images[chosen].repeat(2, 1, 1, 1), keys_for(key, chosen).repeat(2))

            began = time.perf_counter()
            step()
            synchronize(options.device)
            first = time.perf_counter() - began
            rows.add(
                f"{name}, {'compiled' if compiled else 'eager'}",
                rates(step, options.device, number=2 * batch, steps=options.pick(30, 1)),
                "views/s",
                expected[compiled],
                f"first call {first:.1f} s",
            )
