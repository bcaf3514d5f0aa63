"""Generation of candidates: from images and a denoiser to a candidate store."""

import contextlib
import dataclasses
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import nn
from tqdm import tqdm

from clsp_plugin.data.augmentation import can_compile
from clsp_plugin.data.condition import condition_digest
from clsp_plugin.data.files import write_whole
from clsp_plugin.data.store import MANIFEST, StoreManifest
from clsp_plugin.data.writer import Left, StoreWriter, left_to_draw, replace_begun
from clsp_plugin.diffusion.denoiser import denoiser_hash, load_denoiser
from clsp_plugin.diffusion.interpolation import is_conditional
from clsp_plugin.diffusion.sampling import (
    SAMPLERS,
    CandidateNoise,
    begin_candidates,
    denoise,
    make_scheduler,
    to_float,
)
from clsp_plugin.diffusion.settings import Settings, precision_name, read_settings, setting
from clsp_plugin.errors import ClspError
from clsp_plugin.memory import available_memory, keep_freed_memory, memory_of
from clsp_plugin.processes import device_of, number_of, process

__all__ = [
    "Drawer",
    "GenerationSettings",
    "estimate_generation",
    "generate_candidates",
    "in_bytes",
]

T = TypeVar("T")

# Where batch_size is null, if memory does not allow less. More makes a CPU no faster.
_LARGEST_BATCH = {"cuda": 8192, "cpu": 256}
_TRIED = 8  # images of the batch whose memory is measured
_GRAPHS = 4096  # of a process: one a block and size of batch


@dataclasses.dataclass(frozen=True)
class GenerationSettings(Settings):
    """How candidates are drawn; the defaults are the paper's.

    Attributes:
        num_candidates: K, candidates an image.
        w: weight of the SAMPLE's middle feature, 0 to 1; 0.1 is 90 % anchor.
        sampler: ``ddim``, the paper's; ``ddpm``; or ``dpmpp``, DPM-Solver++ of second order, for
            few steps.
        steps: sampling steps; of ``ddim`` and ``ddpm`` a divisor of the steps of training, or
            nearly: 12 of 1000.
        eta: DDIM's, 0 (no fresh noise) to 1; None is the paper's 0.1. The other samplers have
            none.
        seed: of the sampling noise.
        batch_size: images that the denoiser sees at once, in whole anchors with all their
            candidates where it is large enough; None takes as many as the memory has room for, up
            to 8192 on a GPU and 256 on a CPU, and for a store that was begun so as many as then.
            Where the memory of a GPU does not suffice, it is halved until it does.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        clip: clip every step's estimate of the image to [-1, 1]; the paper clips at the end
            alone, a denoiser that was trained briefly needs it.
        share_anchor: noise an anchor once a step for all its candidates, instead of afresh for
            each as in the paper; saves about a fifth of the time, and was measured to draw as well.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        shard_size: images a file of the store.
        guidance: of a conditional denoiser by the anchors' condition, 0 to 100; the authors'
            second recipe is ``w=1 guidance=1.8 eta=1``, in which the anchor gives only its label.
        channels_last: keep the channels of a pixel side by side in memory; None does on a GPU
            alone, since convolutions of few channels gain nothing from it on a CPU.
        compile: compile the blocks of the denoiser, which takes a minute or more before the first
            candidate. Like another batch size it changes the rounding of sums, and nothing else.
    """

    num_candidates: int = setting(8, int, low=1)
    w: float = setting(0.1, float, low=0.0, high=1.0)
    sampler: str = setting("ddim", str, choices=tuple(SAMPLERS))
    steps: int = setting(100, int, low=1, high=1000)
    eta: float | None = setting(None, float, low=0.0, high=1.0, optional=True)
    seed: int = setting(0, int, low=0, high=2**32 - 1)
    batch_size: int | None = setting(None, int, low=1, optional=True)
    precision: str | int = setting("32-true", None)
    clip: bool = setting(False, bool)
    share_anchor: bool = setting(False, bool)
    device: str = setting("auto", str)
    shard_size: int = setting(1024, int, low=1)
    guidance: float = setting(0.0, float, low=0.0, high=100.0)
    channels_last: bool | None = setting(None, bool, optional=True)
    compile: bool = setting(False, bool)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "precision", precision_name(self.precision))
        if self.eta is None:
            object.__setattr__(self, "eta", SAMPLERS[self.sampler])
        elif self.sampler != "ddim" and self.eta != SAMPLERS[self.sampler]:
            raise ClspError(
                f"eta={self.eta:g} is DDIM's and sampler={self.sampler} has none; leave it out, "
                f"or set eta=null."
            )


def _check_size(images: torch.Tensor, unet: UNet2DModel) -> None:
    """Refuse images of another size than the denoiser was trained for."""
    assert images.dtype == torch.uint8
    assert images.ndim == 4
    assert images.shape[3] == 3
    size = unet.config.sample_size
    if size is None:
        return
    expected = [size, size] if isinstance(size, int) else list(size)
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
        eta=settings.eta,
        seed=settings.seed,
        dtype=settings.precision,
        clip=settings.clip,
        share_anchor=settings.share_anchor,
        shard_size=settings.shard_size,
        guidance=settings.guidance,
        condition=condition,
    )


def _out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the machine's memory does not suffice."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    words = (
        "out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED",
        "could not create a primitive", "could not create a memory",  # oneDNN's
    )  # fmt: skip
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _condition(
    unet: UNet2DModel, labels: torch.Tensor | None, settings: GenerationSettings
) -> torch.Tensor | None:
    """The images' classes or features, where the denoiser takes them."""
    if not is_conditional(unet):
        if settings.guidance:
            raise ClspError(
                f"guidance={settings.guidance:g} needs a conditional denoiser, and this one is "
                f"not; leave it out."
            )
        return None
    takes = unet.class_embedding
    if isinstance(takes, nn.Linear):
        if labels is None or labels.ndim != 2 or labels.shape[1] != takes.in_features:
            raise ClspError(
                f"This denoiser is conditioned on {takes.in_features} features of each image; give "
                f"condition=FILE, the file of `clsp embed` that it was trained with."
            )
        return labels
    if labels is None or labels.ndim != 1 or bool((labels < 0).any()):
        raise ClspError(
            "This denoiser is class-conditional, and the images have no labels; give "
            "condition=FILE if it was trained with the clusters of `clsp embed`."
        )
    # one row more than classes: the first stands for none
    known, there = unet.class_embedding.num_embeddings - 1, int(labels.max()) + 1
    if there > known:
        raise ClspError(
            f"This denoiser knows {known} classes, the images have {there}; use one that was "
            f"trained on them."
        )
    return labels


@dataclasses.dataclass
class _Batch:
    """A batch that the device may still be at work on."""

    start: int  # the first image
    stop: int  # one past the last
    candidates: range
    last: bool  # of the images asked for
    finish: Callable[[], np.ndarray]


class Drawer:
    """Draws candidates of any images in batches that fit into memory.

    Args:
        images: uint8 (N, H, W, 3).
        unet: the denoiser; moved to the settings' device.
        scheduler_config: of its training, as ``load_denoiser`` gives it.
        settings: how to draw.
        labels: of the images, for a conditional denoiser: classes, int64 (N,), or features,
            float32 (N, D).

    Attributes:
        batch_size: images that the denoiser sees at once; halved where memory did not suffice.
        ahead: batches that are begun before an earlier one is fetched.
    """

    def __init__(
        self,
        images: torch.Tensor,
        unet: UNet2DModel,
        scheduler_config: Mapping[str, Any],
        settings: GenerationSettings,
        labels: torch.Tensor | None = None,
    ):
        self.device = device_of(settings.device)
        self.labels = _condition(unet, labels, settings)
        self.images, self.settings = images, settings
        self.scheduler = make_scheduler(
            scheduler_config, settings.steps, settings.clip, settings.sampler
        )
        self.unet = self._prepared(unet)
        self.ahead = 1 if self.device.type == "cuda" else 0
        keep_freed_memory(self.device)
        self.batch_size = settings.batch_size or self._largest_batch()
        if settings.compile:
            self._compile()

    def _prepared(self, unet: UNet2DModel) -> UNet2DModel:
        """The denoiser on its device, in the layout that was asked for."""
        wanted = self.settings.channels_last
        last = self.device.type == "cuda" if wanted is None else wanted
        layout = torch.channels_last if last else torch.contiguous_format
        return unet.to(self.device, memory_format=layout)

    def _compile(self) -> None:
        if not can_compile():
            raise ClspError("compile=True needs a C++ compiler, and none is here; leave it out.")
        # Blocks of one class count together, and behind the limit they would run as they are, which
        # rounds otherwise.
        limits = torch._dynamo.config
        limits.cache_size_limit = max(limits.cache_size_limit, _GRAPHS)
        limits.accumulated_cache_size_limit = max(limits.accumulated_cache_size_limit, _GRAPHS)
        for block in (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks):
            # a graph for each size of batch: one for all could round otherwise in a run that was
            # continued, where the sizes come in another order
            block.compile(dynamic=False)

    def _largest_batch(self) -> int:
        """The batch where none is given: of a CPU what is measured to fit, of a GPU a first try."""
        largest = _LARGEST_BATCH.get(self.device.type, 256)
        if self.device.type != "cpu":
            return largest
        # A system that is out of memory ends the process, where a GPU only refuses. What a step
        # has to do once is done before it is measured.
        self.batch_size = _TRIED
        tried = self._fitting(lambda: self._try_steps(1, self.batch_size))
        needed, free = memory_of(lambda: self._try_steps(1, tried)), available_memory()
        if needed is None or free is None:
            return largest
        # a file's candidates are there up to three times: in parts, whole, and being written
        settings, image = self.settings, self.images[0].numel()
        file = min(settings.shard_size, len(self.images)) * settings.num_candidates * image
        share = free / number_of("LOCAL_WORLD_SIZE", 1) - 3 * file
        batch = int(min(largest, max(1, 0.75 * share * tried / max(1, needed))))
        batch = 2 ** (batch.bit_length() - 1)  # the same another time, unless much has changed
        if batch < largest:
            tqdm.write(f"There is memory for batch_size={batch} ({in_bytes(free)} are free).")
        return batch

    def _begin(self, indexes: torch.Tensor, candidates: range) -> Callable[[], torch.Tensor]:
        settings = self.settings
        return begin_candidates(
            self.unet,
            self.scheduler,
            self.images[indexes],
            seed=settings.seed,
            indexes=indexes,
            candidates=candidates,
            w=settings.w,
            eta=settings.eta,
            share_anchor=settings.share_anchor,
            precision=settings.precision,
            labels=None if self.labels is None else self.labels[indexes],
            guidance=settings.guidance,
        )

    def _halve(self, error: BaseException) -> None:
        """Take half the batch after memory ran out."""
        if self.batch_size == 1:
            raise ClspError(
                f"The memory of {self.device} does not suffice for the candidates of a single "
                f"image ({str(error).splitlines()[0][:100]}); free some, or use another device=."
            ) from error
        self.batch_size = (self.batch_size + 1) // 2
        tqdm.write(f"Out of memory: continuing with batch_size={self.batch_size}.")

    def _fitting(self, attempt: Callable[..., T], *args: Any) -> T:
        """Call a function again, with half the batch, while memory does not suffice for it."""
        while True:
            try:
                return attempt(*args)
            except Exception as error:
                if not _out_of_memory(error):
                    raise
                self._halve(error)
            # behind the handler, where the failed attempt's tensors are no longer held
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _batch(self, start: int, stop: int, candidates: range) -> _Batch:
        """Begin with the first of these images, as many as one batch has room for."""
        size = self.batch_size
        indexes = torch.arange(start, min(start + max(1, size // len(candidates)), stop))
        parts = [candidates[first : first + size] for first in range(0, len(candidates), size)]
        begun = [self._begin(indexes, part) for part in parts]

        def finish() -> np.ndarray:
            return np.concatenate([drawn().numpy() for drawn in begun], axis=1)

        end = start + len(indexes)
        return _Batch(start, end, candidates, end == stop, finish)

    def _finished(self, batch: _Batch) -> np.ndarray:
        """The candidates of a batch; drawn again in smaller ones if memory runs out only now."""
        try:
            return batch.finish()
        except Exception as error:
            if not _out_of_memory(error):
                raise
            self._halve(error)
        return self.draw(batch.start, batch.stop, batch.candidates)

    def draw(self, start: int, stop: int, candidates: range) -> np.ndarray:
        """Candidates of images start .. stop - 1: uint8 (stop - start, len(candidates), H, W, 3).

        All noise is keyed, so how they are divided into batches changes no more than rounding.
        """
        return next(self.draw_each([(start, stop, candidates)]))

    def draw_each(
        self, jobs: Iterable[tuple[int, int, range]], done: Callable[[int], None] | None = None
    ) -> Iterator[np.ndarray]:
        """Candidates of one range of images after another, as :func:`draw` takes and gives them.

        A GPU is given a batch, of the next range if need be, before it is done with the last one.

        Args:
            jobs: start, stop and candidates of each range, none of them empty.
            done: called with the number of images of every batch that is there.
        """
        begun: deque[_Batch] = deque()
        rows: list[np.ndarray] = []

        def fetched(most: int) -> Iterator[np.ndarray]:
            while len(begun) > most:
                batch = begun.popleft()
                rows.append(self._finished(batch))
                if done is not None:
                    done(batch.stop - batch.start)
                if batch.last:
                    yield np.concatenate(rows)
                    rows.clear()

        for start, stop, candidates in jobs:
            while start < stop:
                begun.append(self._fitting(self._batch, start, stop, candidates))
                start = begun[-1].stop
                yield from fetched(self.ahead)
        yield from fetched(0)

    def seconds_per_step(self) -> float:
        """Measured time of one sampling step of one candidate, in a full batch."""
        return self._fitting(self._time_steps)

    def _time_steps(self) -> float:
        for steps in (1, 3):  # the first time warms up
            began = time.perf_counter()
            candidates = self._try_steps(steps, self.batch_size)
            seconds = (time.perf_counter() - began) / steps
        return seconds / candidates

    def _try_steps(self, steps: int, batch_size: int) -> int:
        """Do the first steps of a batch as large as can be, and wait; the number of candidates."""
        settings = self.settings
        numbers = torch.arange(min(batch_size, settings.num_candidates))
        rows = min(batch_size // len(numbers), len(self.images), settings.shard_size)
        indexes = torch.arange(rows)
        x = to_float(self.images[indexes].to(self.device))
        noise = CandidateNoise(
            settings.seed,
            indexes.to(self.device),
            numbers.to(self.device),
            tuple(x.shape[1:]),
            settings.share_anchor,
        )
        x = x if settings.share_anchor else x.repeat_interleave(len(numbers), dim=0)
        keys = {"w": settings.w, "eta": settings.eta, "precision": settings.precision}
        if self.labels is not None:
            labels = self.labels[indexes].to(self.device).repeat_interleave(len(numbers), dim=0)
            keys |= {"labels": labels, "guidance": settings.guidance}
        denoise(self.unet, self.scheduler, x, noise, num_steps=steps, **keys).sum().item()
        return rows * len(numbers)


class _Shards:
    """Writes shards in a thread of its own while the next are drawn; at most one is waiting."""

    def __init__(self, writer: StoreWriter, thread: ThreadPoolExecutor):
        self.writer, self.thread = writer, thread
        self.pending: Future | None = None

    def check(self) -> None:
        """Raise what went wrong with the shard that is being written, if it is known already."""
        if self.pending is not None and self.pending.done():
            self.pending.result()

    def write(self, shard: int, candidates: np.ndarray) -> None:
        """Write a shard once the one before is written; raises what went wrong with that one."""
        self.wait()
        self.pending = self.thread.submit(self.writer.write, shard, candidates)

    def wait(self) -> None:
        if self.pending is not None:
            self.pending.result()


@contextlib.contextmanager
def _writing(writer: StoreWriter) -> Iterator[_Shards]:
    """Within the block shards are written beside it; all of them are when it ends.

    However it ends: a shard that was handed over is complete, and worth the moment that it takes.
    """
    with ThreadPoolExecutor(1, "shards") as thread:
        shards = _Shards(writer, thread)
        yield shards
        shards.wait()


def _work(writer: StoreWriter, rank: int, world_size: int) -> list[tuple[int, int, int, range]]:
    """This process's unfinished shards: (shard, first image, one past the last, candidates)."""
    # by number and not by place in the list: the others may have begun to fill the list's gaps
    return [
        (shard, start, stop, range(writer.present(shard), writer.manifest.num_candidates))
        for shard, start, stop in writer.missing()
        if shard % world_size == rank
    ]


def _no_room(left: Left, out: Path) -> str | None:
    """Why the disk has no room for what a store lacks, or None."""
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


def in_bytes(number: int) -> str:
    """A number of bytes for people."""
    unit, name = next(
        (unit, name)
        for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
        if number >= unit / 2 or unit == 1
    )
    return f"{number / unit:.1f} {name}" if unit > 1 else f"{number} {name}"


class _FoundBatch:
    """The batch that memory had room for, kept beside the shards.

    A run that is continued takes it again: another batch rounds sums in another order.
    """

    def __init__(self, out: Path, settings: GenerationSettings):
        self.path = out / f".batch-size-{device_of(settings.device).type}"
        self.wanted = settings.batch_size is None
        self.known = None
        if self.wanted and self.path.exists():
            text = self.path.read_bytes()
            self.known = int(text) if re.fullmatch(rb"[1-9][0-9]{0,8}", text) else None
        self.settings = dataclasses.replace(settings, batch_size=settings.batch_size or self.known)

    def keep(self, batch_size: int) -> None:
        if self.wanted and batch_size != self.known:
            write_whole(self.path, lambda file: file.write(str(batch_size).encode()))
            self.known = batch_size


def _told(
    unet: UNet2DModel, labels: torch.Tensor | None, condition: torch.Tensor | None
) -> torch.Tensor | None:
    """What a conditional denoiser is told: a condition that was given, else the labels."""
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
) -> tuple[Drawer, StoreManifest, _FoundBatch]:
    """What draws the candidates, what their store will say of them, and the batch it began with."""
    settings = read_settings(GenerationSettings, cfg)
    unet, scheduler_config = load_denoiser(denoiser_path)
    _check_size(images, unet)
    batch = _FoundBatch(out, settings)
    told = _told(unet, labels, condition)
    drawer = Drawer(images, unet, scheduler_config, batch.settings, told)
    digest = None if drawer.labels is None else condition_digest(drawer.labels)
    name = denoiser_hash(unet, scheduler_config)
    manifest = _manifest(images, fingerprint, dataset, name, settings, digest)
    return drawer, manifest, batch


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
    """Time a few sampling steps and say how long the rest of it would take; nothing is written.

    Takes what :func:`generate_candidates` does.

    Returns:
        ``images`` whose candidates are not all there and the number of ``candidates`` left to
        draw; ``total``, of candidates of the whole store; ``bytes`` of those left, ``no_room``,
        why the disk has none for them, or None; ``seconds`` expected for them on one process, and
        the ``device`` they were measured on.

    Raises:
        ClspError: as :func:`generate_candidates`.
    """
    drawer, manifest, _ = _prepared(
        images, fingerprint, denoiser_path, Path(out), cfg, dataset, labels, condition
    )
    left = left_to_draw(out, manifest)
    seconds = drawer.seconds_per_step() * manifest.steps * left.candidates
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

    A store with fewer candidates an image that was made with the same settings is extended: the
    candidates there are kept, and the new ones are drawn.

    Under torchrun each process draws the shards whose number is its own modulo the number of
    processes; they do not talk. On the same device and with the same ``batch_size`` the bytes of
    a store are reproducible, stopped and continued or not. Another batch size draws from the same
    noise, and differs by what floating point does in another order: in float32 rarely a level of
    a pixel, in half precision a few levels of many.

    Args:
        images: uint8 (N, H, W, 3).
        fingerprint: of the images and their order.
        denoiser_path: what :func:`~clsp_plugin.diffusion.denoiser.load_denoiser` takes.
        out: directory of the store.
        cfg: keys of :class:`GenerationSettings`.
        dataset: name of the images, for people.
        desc: what the progress bar calls the work.
        digests: uint8 (N, 16), names of the single images, see ``ImageArray.digests``.
        labels: classes from 0, int64 (N,), which only a conditional denoiser looks at.
        condition: in their place, classes, or features, float32 (N, D); the denoiser must be
            conditional.

    Returns:
        ``images`` and ``candidates`` drawn by this process in this call, the ``seconds`` they
        took, ``candidates_per_second`` (None if there was nothing left to draw), the
        ``denoiser``'s hash, ``out``, the ``device`` and the ``batch_size`` that fitted.

    Raises:
        ClspError: a setting, the denoiser or the device is not valid, the denoiser is for images
            of another size, the store holds something else or is being written by another
            process, there is no room on the disk, or no image fits into memory.
    """
    drawer, manifest, batch = _prepared(
        images, fingerprint, denoiser_path, Path(out), cfg, dataset, labels, condition
    )
    # what can refuse is asked before anything is written
    rank, world_size = process()
    left = left_to_draw(out, manifest)
    if not (Path(out) / MANIFEST).exists():  # in a store, what was left is cleared away first
        _check_room(left, Path(out))
    if replace_begun(out, manifest):
        tqdm.write(f"{out} was begun with other settings and had no candidates: begun anew.")
    writer = StoreWriter(out, manifest, digests)
    try:
        drawn = _draw_into(writer, drawer, batch, rank, world_size, desc)
    except (ClspError, OSError):
        if world_size == 1:
            writer.undo()
        raise
    return {**drawn, "out": str(out)}


def _draw_into(
    writer: StoreWriter, drawer: Drawer, batch: _FoundBatch, rank: int, world_size: int, desc: str
) -> dict[str, Any]:
    """Draw what is left of this process's share; see :func:`generate_candidates`."""
    began = time.perf_counter()
    with writer.lock(rank, world_size):
        _check_room(left_to_draw(writer.path, writer.manifest), writer.path)
        writer.verify(rank, world_size)
        writer.extend()
        work = _work(writer, rank, world_size)
        total = sum(stop - start for _, start, stop, _ in work)
        bar = tqdm(total=total, desc=desc, unit="image", disable=rank != 0)
        with bar, _writing(writer) as shards:

            def done(number: int) -> None:
                bar.update(number)
                shards.check()  # a full disk is told before the next shard is drawn for it

            drawn = drawer.draw_each([job for _, *job in work], done)
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
