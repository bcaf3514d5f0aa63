"""Generation of candidates: from images and a denoiser to a candidate store."""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from clsp_plugin.candidates.condition import condition_digest
from clsp_plugin.candidates.encoded import encode_images
from clsp_plugin.candidates.manifest import MANIFEST, StoreManifest
from clsp_plugin.candidates.writer import Left, StoreWriter, left_to_draw, replace_begun
from clsp_plugin.config.typed import settings_of
from clsp_plugin.diffusion.autoencoder import Autoencoder
from clsp_plugin.diffusion.denoiser import (
    ViewUNet,
    denoiser_hash,
    load_autoencoder_of,
    load_denoiser,
)
from clsp_plugin.diffusion.drawer import Drawer, FoundBatch, GenerationSettings
from clsp_plugin.diffusion.interpolation import is_conditional
from clsp_plugin.diffusion.variations import VariationDrawer, is_variation, load_variations
from clsp_plugin.errors import ClspError
from clsp_plugin.system.memory import in_bytes
from clsp_plugin.system.processes import process
from clsp_plugin.system.progress import Progress

__all__ = ["estimate_generation", "generate_candidates"]


def _check_size(images: torch.Tensor, unet: UNet2DModel, autoencoder: Autoencoder | None) -> None:
    """Refuse images of another size than the denoiser was trained for."""
    assert images.dtype == torch.uint8
    assert images.ndim == 4
    assert images.shape[3] == 3
    factor = 1
    if autoencoder is not None:
        factor = autoencoder.factor
        autoencoder.latent_size(*images.shape[1:3])
    size = unet.config.sample_size
    if size is None:
        return
    expected = [side * factor for side in ([size, size] if isinstance(size, int) else size)]
    if list(images.shape[1:3]) != expected:
        raise ClspError(
            f"The denoiser draws images of {'x'.join(map(str, expected))} pixels, the images are "
            f"{images.shape[1]}x{images.shape[2]}; train one for these with `clsp denoiser`, or "
            f"resize them."
        )


def _manifest(
    images: torch.Tensor,
    fingerprint: str,
    dataset: str,
    denoiser: str,
    settings: GenerationSettings,
    condition: str | None,
    middle: str | None,
) -> StoreManifest:
    return StoreManifest(
        num_images=len(images),
        num_candidates=settings.num_candidates,
        height=images.shape[1],
        width=images.shape[2],
        fingerprint=fingerprint,
        dataset=dataset,
        denoiser=denoiser,
        w=settings.w,
        sampler=settings.sampler,
        steps=settings.steps,
        eta=settings.chosen_eta,
        seed=settings.seed,
        dtype=settings.precision,
        clip=settings.clip,
        share_anchor=settings.share_anchor,
        shard_size=settings.shard_size,
        guidance=settings.guidance,
        condition=condition,
        middle=middle,
    ).encoded_with(settings.encoding, settings.quality)


class _Shards:
    """Writes shards in a thread while the next ones are drawn; at most one is pending."""

    def __init__(self, writer: StoreWriter, thread: ThreadPoolExecutor):
        self.writer, self.thread = writer, thread
        self.pending: Future | None = None

    def check(self) -> None:
        """Raise the error of the pending shard if writing it has failed already."""
        if self.pending is not None and self.pending.done():
            self.pending.result()

    def write(self, shard: int, candidates: np.ndarray) -> None:
        """Begin to write a shard after the one before; raises an error of the one before."""
        self.wait()
        self.pending = self.thread.submit(self.writer.write, shard, candidates)

    def wait(self) -> None:
        if self.pending is not None:
            self.pending.result()


@contextlib.contextmanager
def _writing(writer: StoreWriter) -> Iterator[_Shards]:
    """Write shards in a thread while the block runs, and wait for all of them when it ends.

    This is also done if it ends with an error, since a shard handed over is complete and worth
    writing.
    """
    with ThreadPoolExecutor(1, "shards") as thread:
        shards = _Shards(writer, thread)
        yield shards
        shards.wait()


def _work(writer: StoreWriter, rank: int, world_size: int) -> list[tuple[int, int, int, range]]:
    """List a process's unfinished shards: (shard, first image, one past the last, candidates)."""
    # by number, not by position in the list, which other processes may be shortening right now
    return [
        (shard, start, stop, range(writer.present(shard), writer.manifest.num_candidates))
        for shard, start, stop in writer.missing()
        if shard % world_size == rank
    ]


_WEIGHED = 64  # images that are encoded to estimate the size of a store


def _left(out: str | Path, manifest: StoreManifest, images: torch.Tensor) -> Left:
    """Return what is left to draw; encoded candidates are expected to be as large as the images."""
    if manifest.encoding is None:
        return left_to_draw(out, manifest)
    assert manifest.quality is not None
    some = images[:: -(-len(images) // _WEIGHED)].numpy()
    sizes = [len(one) for one in encode_images(some, manifest.encoding, manifest.quality)]
    return left_to_draw(out, manifest, sum(sizes) / len(sizes))


def _no_room(left: Left, out: Path) -> str | None:
    """Return why the disk has no room for what a store lacks, or None if it has."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    needed, free = left.nbytes + left.rewritten, shutil.disk_usage(there).free
    if needed <= free:
        return None
    return (
        f"The candidates still to draw need {in_bytes(needed)} and there are {in_bytes(free)} "
        f"free at {out}; make room, or choose another out=."
    )


def _check_room(left: Left, out: Path) -> None:
    problem = _no_room(left, out)
    if problem:
        raise ClspError(problem)


def _condition_of(
    unet: UNet2DModel, labels: torch.Tensor | None, condition: torch.Tensor | None
) -> torch.Tensor | None:
    """Return the condition to use: the one that was given, else the labels.

    Raises:
        ClspError: a condition was given for an unconditional denoiser.
    """
    if condition is not None and not is_conditional(unet):
        raise ClspError("A condition was given, and this denoiser takes none; leave it out.")
    return labels if condition is None else condition


def _prepared(
    images: torch.Tensor,
    fingerprint: str,
    denoiser_path: str | Path,
    out: Path,
    cfg: GenerationSettings | Mapping[str, Any] | None,
    dataset: str,
    labels: torch.Tensor | None,
    condition: torch.Tensor | None,
) -> tuple[Drawer, StoreManifest, FoundBatch]:
    """Return the drawer of the candidates, their store's manifest, and the stored batch size."""
    settings = settings_of(GenerationSettings, cfg)
    batch = FoundBatch(out, settings)
    if is_variation(denoiser_path):
        if condition is not None:
            raise ClspError(
                "A condition was given, and an image-variation pipeline takes the embeddings of "
                "the images; leave it out."
            )
        variations = load_variations(denoiser_path)
        varied = VariationDrawer(images, variations, batch.settings)
        given = (images, fingerprint, dataset, variations.hash, settings, None, None)
        manifest = replace(
            _manifest(*given), noise_level=settings.noise_level, draw_size=varied.size
        )
        return varied, manifest, batch
    _check_not_varied(settings)
    unet, scheduler_config = load_denoiser(denoiser_path)
    autoencoder = load_autoencoder_of(denoiser_path, unet)
    _check_size(images, unet, autoencoder)
    condition = _condition_of(unet, labels, condition)
    drawer = Drawer(images, unet, scheduler_config, batch.settings, condition, autoencoder)
    digest = None if drawer.condition is None else condition_digest(drawer.condition)
    name = denoiser_hash(unet, scheduler_config, autoencoder)
    middle = "view" if isinstance(unet, ViewUNet) else None
    manifest = _manifest(images, fingerprint, dataset, name, settings, digest, middle)
    return drawer, manifest, batch


def _check_not_varied(settings: GenerationSettings) -> None:
    for name, unset in (("noise_level", 0), ("draw_size", None)):
        given = getattr(settings, name)
        if given != unset:
            raise ClspError(
                f"{name}={given} is of image-variation pipelines, and this denoiser is none; "
                f"leave it out."
            )


def estimate_generation(
    images: torch.Tensor,
    fingerprint: str,
    denoiser_path: str | Path,
    out: str | Path,
    cfg: GenerationSettings | Mapping[str, Any] | None = None,
    *,
    dataset: str = "",
    labels: torch.Tensor | None = None,
    condition: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Time a few sampling steps and estimate the generation from them; nothing is written.

    Takes the arguments of :func:`generate_candidates`.

    Returns:
        ``images``, the number of images that lack candidates; ``candidates``, the number left to
        draw; ``total``, the number of candidates in the whole store; ``bytes``, the size of those
        left to draw; ``no_room``, why the disk has no room for them, or None; ``seconds``, the
        expected time to draw them in one process; and ``device``, where it was measured.

    Raises:
        ClspError: as :func:`generate_candidates`.
    """
    drawer, manifest, _ = _prepared(
        images, fingerprint, denoiser_path, Path(out), cfg, dataset, labels, condition
    )
    left = _left(out, manifest, images)
    each = drawer.seconds_per_step() * manifest.steps + drawer.seconds_beside()
    seconds = each * left.candidates
    return {
        "images": left.images,
        "candidates": left.candidates,
        "total": len(images) * manifest.num_candidates,
        "bytes": left.nbytes,
        "no_room": _no_room(left, Path(out)),
        "seconds": seconds,
        "device": str(drawer.device),
    }


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
    labels: torch.Tensor | None = None,
    condition: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Draw the candidates of a data set into a store, continuing an unfinished one.

    A store with fewer candidates per image that was made with the same settings is extended: its
    candidates are kept, and the new ones are drawn.

    Under torchrun, process r of n draws the shards r, r + n, r + 2n, ..; the processes do not
    communicate. On the same device and with the same ``batch_size`` the bytes of a store are
    reproducible, whether the run was interrupted or not. Another batch size draws from the same
    noise and differs only by rounding: in float32 rarely by one pixel level, in half precision in
    many pixels by a few levels.

    Args:
        images: uint8 (N, H, W, 3).
        fingerprint: digest of the images and their order.
        denoiser_path: what :func:`~clsp_plugin.diffusion.denoiser.load_denoiser` takes.
        out: directory of the store.
        cfg: keys of :class:`GenerationSettings`.
        dataset: name of the images, for messages.
        desc: label of the progress bar.
        digests: uint8 (N, 16), digests of the single images, see ``ImageArray.digests``.
        labels: classes from 0, int64 (N,), used only by a conditional denoiser.
        condition: used instead of ``labels``: classes from 0, int64 (N,), or features, float32
            (N, D); the denoiser must be conditional.

    Returns:
        ``images`` and ``candidates``, the numbers drawn by this process in this call; the
        ``seconds`` they took; ``candidates_per_second`` (None if there was nothing left to draw);
        ``denoiser``, its hash; ``out``; ``device``; and ``batch_size``, the one that fitted.

    Raises:
        ClspError: a setting, the denoiser or the device is not valid, the denoiser is for images
            of another size, the store was made differently or is being written by another
            process, there is no room on the disk, or not even one image fits into memory.
    """
    drawer, manifest, batch = _prepared(
        images, fingerprint, denoiser_path, Path(out), cfg, dataset, labels, condition
    )
    # all checks come before anything is written
    rank, world_size = process()
    left = _left(out, manifest, images)
    if not (Path(out) / MANIFEST).exists():  # in a store, leftovers are deleted before the check
        _check_room(left, Path(out))
    if replace_begun(out, manifest):
        Progress.write(f"{out} was begun with other settings and had no candidates: begun anew.")
    writer = StoreWriter(out, manifest, digests)
    try:
        drawn = _draw_into(writer, drawer, batch, rank, world_size, desc)
    except (ClspError, OSError):
        if world_size == 1:
            writer.undo()
        raise
    return {**drawn, "out": str(out)}


def _draw_into(
    writer: StoreWriter, drawer: Drawer, batch: FoundBatch, rank: int, world_size: int, desc: str
) -> dict[str, Any]:
    """Draw what is left of this process's share; see :func:`generate_candidates`."""
    began = time.perf_counter()
    with writer.lock(rank, world_size):
        _check_room(_left(writer.path, writer.manifest, drawer.images), writer.path)
        writer.verify(rank, world_size)
        writer.extend()
        work = _work(writer, rank, world_size)
        total = sum(stop - start for _, start, stop, _ in work)
        bar = Progress(total=total, desc=desc, unit="image", disable=rank != 0)
        with bar, _writing(writer) as shards:

            def done(number: int) -> None:
                bar.update(number)
                shards.check()  # reports a full disk before the next shard is drawn

            drawn = drawer.draw_each([(start, stop, own) for _, start, stop, own in work], done)
            for (shard, *_), candidates in zip(work, drawn, strict=True):
                shards.write(shard, candidates)
                batch.keep(drawer.batch_size)
        number = sum((stop - start) * len(candidates) for _, start, stop, candidates in work)
    seconds = time.perf_counter() - began
    return {
        "images": total,
        "candidates": number,
        "seconds": seconds,
        "candidates_per_second": number / seconds if number else None,
        "denoiser": writer.manifest.denoiser,
        "device": str(drawer.device),
        "batch_size": drawer.batch_size,
    }
