"""How large a store of candidates at 224 pixels is, and how fast it is read, raw and encoded.

    OMP_NUM_THREADS=1 python benchmarks/stores.py FOLDER_OF_PHOTOGRAPHS

Photographs stand for candidates: shorter side to 224 pixels, centre crop, as pre-training sees
them. Reading is what a third view does: a candidate of each of a batch of random images. Its
processor time is that of all threads together.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image

from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.writer import StoreWriter

SIDE, BATCH, BATCHES = 224, 256, 8
IMAGES, CANDIDATES = 126_689, 8  # ImageNet-100's
ROWS = [
    ("raw", 0), ("jpeg", 95), ("jpeg", 90), ("jpeg", 80), ("webp", 90), ("webp", 80),
]  # fmt: skip


def photographs(folder: Path) -> Iterator[np.ndarray]:
    for file in sorted(folder.rglob("*.JPEG")) + sorted(folder.rglob("*.jpg")):
        with Image.open(file) as image:
            small = F.resize(image.convert("RGB"), SIDE, antialias=True)
        yield np.asarray(F.center_crop(small, [SIDE, SIDE]))


def write(
    images: np.ndarray, encoding: str, quality: int, out: str
) -> tuple[CandidateStore, float]:
    """Write a store of one candidate an image; return it, and the processor seconds it took."""
    manifest = StoreManifest(
        num_images=len(images), num_candidates=1, height=SIDE, width=SIDE, fingerprint="",
        dataset="", denoiser="", w=0.0, sampler="", steps=0, eta=0.0, seed=0, dtype="",
        clip=False, share_anchor=False, shard_size=256,
    ).encoded_with(encoding, quality)  # fmt: skip
    began = time.process_time()
    writer = StoreWriter(out, manifest)
    with writer.lock():
        for shard, start, stop in writer.missing():
            writer.write(shard, images[start:stop, None])
    return CandidateStore(out), time.process_time() - began


def read(store: CandidateStore) -> tuple[float, float]:
    """Return processor milliseconds and elapsed milliseconds per candidate read at random."""
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(BATCH, dtype=torch.int64)
    found = []
    for _ in range(BATCHES + 1):
        indexes = torch.randint(store.num_images, (BATCH,), generator=generator)
        began = time.process_time(), time.perf_counter()
        store.gather(indexes, none)
        found.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    processor, elapsed = np.median(np.array(found[1:]), axis=0) / BATCH * 1000
    return float(processor), float(elapsed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    images = np.stack(list(photographs(parser.parse_args().folder)))
    print(f"{len(images)} photographs; all: {IMAGES:,} images with {CANDIDATES} candidates each\n")
    print("| encoding | KB a candidate | all, GB | written, ms | read, ms | elapsed, ms | error |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for encoding, quality in ROWS:
        with tempfile.TemporaryDirectory() as out:
            store, seconds = write(images, encoding, quality, f"{out}/store")
            processor, elapsed = read(store)
            each = store.stored_bytes / len(images)
            some = range(0, len(images), max(1, len(images) // 100))
            off = np.abs(store.images(some)[:, 0].astype(int) - images[list(some)]).mean()
        name = encoding if encoding == "raw" else f"{encoding} {quality}"
        print(
            f"| {name} | {each / 1000:.1f} | {each * IMAGES * CANDIDATES / 1e9:.1f} | "
            f"{seconds / len(images) * 1000:.2f} | {processor:.2f} | {elapsed:.2f} | {off:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
