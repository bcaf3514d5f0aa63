"""Generation of candidates: from images and a denoiser to a candidate store."""

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from tqdm import tqdm

from clsp_plugin.data.store import StoreManifest, StoreWriter
from clsp_plugin.diffusion.denoiser import denoiser_hash, load_denoiser
from clsp_plugin.diffusion.sampling import make_scheduler, sample_candidates
from clsp_plugin.diffusion.settings import Settings, precision_name, read_settings, setting
from clsp_plugin.errors import ClspError

__all__ = ["GenerationSettings", "generate_candidates"]


@dataclasses.dataclass(frozen=True)
class GenerationSettings(Settings):
    """How candidates are drawn; the defaults are the paper's.

    Attributes:
        num_candidates: K, candidates an image.
        w: weight of the SAMPLE's middle feature, 0 to 1; 0.1 is 90 % anchor.
        steps: sampling steps, a divisor of the steps of training.
        eta: DDIM's, 0 (no fresh noise) to 1.
        seed: of the sampling noise.
        batch_size: images that the denoiser sees at once, so ``batch_size // num_candidates``
            anchors with all their candidates, but at least one. Lower it when the memory of the
            device does not suffice.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        clip: clip every step's estimate of the image to [-1, 1]; the paper clips at the end
            alone, a denoiser that was trained briefly needs it.
        share_anchor: noise an anchor once a step for all its candidates, instead of afresh for
            each as in the paper; nearly halves the time.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        shard_size: images a file of the store.
    """

    num_candidates: int = setting(8, int, low=1)
    w: float = setting(0.1, float, low=0.0, high=1.0)
    steps: int = setting(100, int, low=1, high=1000)
    eta: float = setting(0.1, float, low=0.0, high=1.0)
    seed: int = setting(0, int)
    batch_size: int = setting(256, int, low=1)
    precision: str | int = setting("32-true", None)
    clip: bool = setting(False, bool)
    share_anchor: bool = setting(False, bool)
    device: str = setting("auto", str)
    shard_size: int = setting(1024, int, low=1)

    @property
    def anchors_per_batch(self) -> int:
        return max(1, self.batch_size // self.num_candidates)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "precision", precision_name(self.precision))


def _process() -> tuple[int, int]:
    """Number of this process and how many there are, as torchrun tells."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _device(name: str) -> torch.device:
    """The device of a name; under torchrun every process of a machine has its own GPU."""
    try:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ClspError(
            f"device={name!r} cannot be used here ({reason}); give device=auto or device=cpu."
        ) from error
    return device


def _check_size(images: torch.Tensor, unet: UNet2DModel) -> None:
    """Refuse images of another size than the denoiser was trained for."""
    assert images.dtype == torch.uint8
    assert images.ndim == 4
    assert images.shape[3] == 3
    size = unet.config.sample_size
    expected = (size, size) if isinstance(size, int) else tuple(size or images.shape[1:3])
    if tuple(images.shape[1:3]) != expected:
        raise ClspError(
            f"The denoiser draws images of {expected[0]}x{expected[1]} pixels, the images are "
            f"{images.shape[1]}x{images.shape[2]}; train one for these with `clsp denoiser`, or "
            f"resize them."
        )


def _manifest(
    images: torch.Tensor,
    fingerprint: str,
    dataset: str,
    unet: UNet2DModel,
    settings: GenerationSettings,
) -> StoreManifest:
    return StoreManifest(
        num_images=len(images),
        num_candidates=settings.num_candidates,
        height=images.shape[1],
        width=images.shape[2],
        fingerprint=fingerprint,
        dataset=dataset,
        denoiser=denoiser_hash(unet),
        w=settings.w,
        sampler="ddim",
        steps=settings.steps,
        eta=settings.eta,
        seed=settings.seed,
        dtype=settings.precision,
        clip=settings.clip,
        share_anchor=settings.share_anchor,
        shard_size=settings.shard_size,
    )


def _draw_shard(
    images: torch.Tensor,
    start: int,
    stop: int,
    unet: UNet2DModel,
    scheduler: DDIMScheduler,
    settings: GenerationSettings,
    progress: tqdm,
) -> np.ndarray:
    """Candidates of images start .. stop - 1: uint8 (stop - start, K, H, W, 3)."""
    parts = []
    for first in range(start, stop, settings.anchors_per_batch):
        indexes = torch.arange(first, min(first + settings.anchors_per_batch, stop))
        candidates = sample_candidates(
            unet,
            scheduler,
            images[first : first + len(indexes)],
            seed=settings.seed,
            indexes=indexes,
            candidates=range(settings.num_candidates),
            w=settings.w,
            eta=settings.eta,
            share_anchor=settings.share_anchor,
            precision=settings.precision,
        )
        parts.append(candidates.cpu().numpy())
        progress.update(len(indexes))
    return np.concatenate(parts)


def generate_candidates(
    images: torch.Tensor,
    fingerprint: str,
    denoiser_path: str | Path,
    out: str | Path,
    cfg: GenerationSettings | Mapping[str, Any] | None = None,
    *,
    dataset: str = "",
    desc: str = "candidates",
    digests: np.ndarray | None = None,
) -> dict[str, Any]:
    """Draw the candidates of a data set into a store, continuing an unfinished one.

    Under torchrun each process draws the shards whose number is its own modulo the number of
    processes; they do not talk. On the same device and with the same ``batch_size`` the bytes of
    a store are reproducible, stopped and continued or not. Another batch size draws from the same
    noise, and differs by what floating point does in another order: rarely a level of a pixel.

    Args:
        images: uint8 (N, H, W, 3).
        fingerprint: of the images and their order.
        denoiser_path: what :func:`~clsp_plugin.diffusion.denoiser.load_denoiser` takes.
        out: directory of the store.
        cfg: keys of :class:`GenerationSettings`.
        dataset: name of the images, for people.
        desc: what the progress bar calls the work.
        digests: uint8 (N, 16), names of the single images, see ``ImageArray.digests``.

    Returns:
        ``images`` and ``candidates`` drawn by this process in this call, the ``seconds`` they
        took, ``candidates_per_second`` (None if there was nothing left to draw), the
        ``denoiser``'s hash, ``out`` and the ``device``.

    Raises:
        ClspError: a setting, the denoiser or the device is not valid, the denoiser is for images
            of another size, or the store holds something else.
    """
    settings = read_settings(GenerationSettings, cfg)
    unet, scheduler_config = load_denoiser(denoiser_path)
    _check_size(images, unet)
    scheduler = make_scheduler(scheduler_config, settings.steps, settings.clip)
    device = _device(settings.device)
    writer = StoreWriter(out, _manifest(images, fingerprint, dataset, unet, settings), digests)
    unet.to(device)
    rank, world_size = _process()
    # by number and not by place in the list: the others may have begun to fill the list's gaps
    shards = [shard for shard in writer.missing() if shard[0] % world_size == rank]
    total = sum(stop - start for _, start, stop in shards)
    began = time.perf_counter()
    with tqdm(total=total, desc=desc, unit="image", disable=rank != 0) as progress:
        for shard, start, stop in shards:
            drawn = _draw_shard(images, start, stop, unet, scheduler, settings, progress)
            writer.write(shard, drawn)
    seconds = time.perf_counter() - began
    return {
        "images": total,
        "candidates": total * settings.num_candidates,
        "seconds": seconds,
        "candidates_per_second": total * settings.num_candidates / seconds if total else None,
        "denoiser": writer.manifest.denoiser,
        "out": str(out),
        "device": str(device),
    }
