"""Photographs: decoding by the host and by nvJPEG, and two views of 224 pixels on the device."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from benchmarks.gpu.report import Rows
from benchmarks.gpu.stage import Options
from benchmarks.gpu.timing import rates, synchronize
from benchmarks.photographs import Ours, packed
from clsp_plugin.data.augmentation.pipeline import can_compile_augmentation
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.system.processes import cores


def picture(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    """Draw noise whose amplitude falls with its frequency, as that of photographs does."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = frequency[0, 1]
    spectrum = np.fft.rfft2(generator.standard_normal((3, height, width))) / frequency**1.2
    noise = np.fft.irfft2(spectrum, (height, width))
    noise = 128 + 50 * noise / noise.std(axis=(1, 2), keepdims=True)
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def photographs(folder: Path, number: int, side: int) -> PackedImages:
    """Write a few pictures as JPEG, each several times, and pack them."""
    generator = np.random.default_rng(0)
    root = folder / "photographs" / "one"
    root.mkdir(parents=True, exist_ok=True)
    for each in range(min(number, 32)):
        drawn = picture(generator, side, side * 4 // 3)
        for again in range(each, number, 32):
            drawn.save(root / f"{again:05d}.jpg", quality=92)
    return packed(root.parent, folder / "cache")


def measure(options: Options, rows: Rows) -> None:
    number, batch = options.pick(1024, 8), options.pick(256, 4)
    images = photographs(options.out, number, options.pick(256, 32))
    files = [torch.from_numpy(images.pack[int(row)].copy()) for row in images.rows]
    size = sum(map(len, files)) / number / 1024
    with ThreadPoolExecutor(cores()) as pool:

        def host() -> None:
            list(pool.map(images.pixels, range(number)))

        values = rates(host, torch.device("cpu"), number=number, steps=2, warm_up=1)
    note = f"{cores()} threads, {size:.0f} KiB an image"
    rows.add("decoding on the host", values, "images/s", "20,000", note)
    if options.device.type == "cuda":
        try:
            compare_nvjpeg(options, rows, images, files, batch)
        except RuntimeError as error:  # torchvision may be built without it
            rows.add("decoding by nvJPEG", [], "images/s", "", str(error).splitlines()[0][:200])
    compiled = can_compile_augmentation(options.device) and not options.small
    path = Ours(images, batch, options.device.type, compiled)
    values = rates(path.host, torch.device("cpu"), number=number, steps=1, warm_up=1)
    rows.add("two views cut on the host", values, "images/s", "10,000")
    began = time.perf_counter()
    path.whole()
    synchronize(options.device)
    note = f"first call {time.perf_counter() - began:.1f} s"
    values = rates(path.whole, options.device, number=number, steps=1, warm_up=1)
    rows.add("two views cut there and coloured on the device", values, "images/s", "10,000", note)


def compare_nvjpeg(
    options: Options, rows: Rows, images: PackedImages, files: list[torch.Tensor], batch: int
) -> None:
    """Add the rate of nvJPEG, and how far its pixels are from the host's."""

    def decoded() -> None:
        for start in range(0, len(files), batch):
            decode_jpeg(files[start : start + batch], device=options.device)

    far = decode_jpeg(files[:1], device=options.device)[0].permute(1, 2, 0).cpu().float()
    off = (far - images.pixels(0).float()).abs()
    note = f"levels from the host's pixels: {off.mean():.2f}, at most {off.max():.0f}"
    values = rates(decoded, options.device, number=len(files), steps=2, warm_up=1)
    rows.add("decoding by nvJPEG", values, "images/s", "5,000", note)
