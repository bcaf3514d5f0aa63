"""Draw candidates on a device: batches that fit into its memory, and compilation."""

import dataclasses
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, TypeVar

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import nn

from clsp_plugin.candidates.encoded import ENCODINGS
from clsp_plugin.config.rules import ranged
from clsp_plugin.diffusion.autoencoder import Autoencoder
from clsp_plugin.diffusion.compiling import compile_blocks, pays
from clsp_plugin.diffusion.denoiser import ViewUNet
from clsp_plugin.diffusion.interpolation import is_conditional
from clsp_plugin.diffusion.sampling import (
    CandidateNoise,
    Sampling,
    begin_candidates,
    check_latent,
    denoise,
    to_float,
)
from clsp_plugin.diffusion.schedulers import make_scheduler
from clsp_plugin.errors import ClspError, first_line, short
from clsp_plugin.system.compiling import to_compile
from clsp_plugin.system.emulation import warn_if_emulated
from clsp_plugin.system.files import write_whole
from clsp_plugin.system.memory import available_memory, in_bytes, keep_freed_memory, memory_of
from clsp_plugin.system.processes import device_of, number_of
from clsp_plugin.system.progress import Progress

__all__ = ["Drawer", "FoundBatch", "GenerationSettings"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class GenerationSettings(Sampling):
    """How candidates are drawn; the defaults are the paper's.

    The settings of :class:`~clsp_plugin.diffusion.sampling.Sampling`, and these:

    Attributes:
        num_candidates: K, candidates per image.
        batch_size: number of samples that the denoiser processes at once. If it is large enough, a
            batch holds whole anchors with all their candidates. None takes as many as fit into
            memory, up to 8192 on a CUDA GPU and 256 elsewhere; a store that was begun keeps the
            number it was begun with. It is halved whenever memory runs out.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        shard_size: images per shard of the store.
        encoding: how candidates are stored: ``raw``, as pixels, or ``jpeg`` or ``webp``, which
            takes a seventh of the room or less at 224 pixels and changes the pixels a little.
        quality: quality of the encoding, 1 to 100.
        noise_level: for a Stable unCLIP pipeline, noise of the anchor's embedding, 0 to 999; the
            more, the less a candidate has of its anchor.
        draw_size: for an image-variation pipeline, side in pixels of what is drawn, before it gets
            the size of the images; None is the pipeline's own.
        channels_last: whether to keep the channels of a pixel side by side in memory; None does so
            if the denoiser is compiled for a CUDA GPU. Elsewhere torch's normalisation of groups
            copies such images back and forth.
        compile: whether to compile the blocks of the denoiser, which takes half a minute or more
            before the first candidate; None does so on a CUDA GPU for a store of at least ten
            million candidates times steps. Like another batch size it changes the rounding of
            sums, and nothing else.
    """

    num_candidates: int = ranged(8, low=1)
    batch_size: Optional[int] = ranged(None, low=1)
    device: str = "auto"
    shard_size: int = ranged(1024, low=1)
    encoding: str = ranged("raw", choices=("raw", *ENCODINGS))
    quality: int = ranged(90, low=1, high=100)
    noise_level: int = ranged(0, low=0, high=999)
    draw_size: Optional[int] = ranged(None, low=1)
    channels_last: Optional[bool] = None
    compile: Optional[bool] = None


# The batch size if none is given and memory allows it. A larger one is not faster on a CPU.
_LARGEST_BATCH = {"cuda": 8192, "cpu": 256}
_TRIED = 8  # batch size at which the memory of a step is measured


def _out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the machine's memory does not suffice."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    words = (
        "out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED",
        "could not create a primitive", "could not create a memory",  # oneDNN's
    )  # fmt: skip
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _checked_condition(
    unet: UNet2DModel, condition: torch.Tensor | None, settings: GenerationSettings
) -> torch.Tensor | None:
    """Return the images' classes or features if the denoiser takes them, otherwise None.

    Raises:
        ClspError: they do not fit the denoiser, an unconditional one is to be guided, or one with
            the middle feature of a view is to blend it.
    """
    if isinstance(unet, ViewUNet):
        if settings.w not in (0.0, 1.0):
            raise ClspError(
                f"This denoiser was trained with middle=view and takes its middle feature from the "
                f"anchor alone, so w={settings.w:g} does not fit; set w=0, or w=1 for images "
                f"without an anchor."
            )
        return None
    if not is_conditional(unet):
        if settings.guidance:
            raise ClspError(
                f"guidance={settings.guidance:g} needs a conditional denoiser or one with "
                f"middle=view, and this one is neither; leave it out."
            )
        return None
    takes = unet.class_embedding
    if isinstance(takes, nn.Linear):
        if condition is None or condition.ndim != 2 or condition.shape[1] != takes.in_features:
            raise ClspError(
                f"This denoiser is conditioned on {takes.in_features} features of each image; give "
                f"condition=FILE, the file of `clsp embed` that it was trained with."
            )
        return condition
    if condition is None or condition.ndim != 1 or bool((condition < 0).any()):
        raise ClspError(
            "This denoiser is class-conditional, and the images have no labels; give "
            "condition=FILE if it was trained with the clusters of `clsp embed`."
        )
    # one row more than classes: the first stands for none
    known, there = unet.class_embedding.num_embeddings - 1, int(condition.max()) + 1
    if there > known:
        raise ClspError(
            f"This denoiser knows {known} classes, the images have {there}; use one that was "
            f"trained on them."
        )
    return condition


@dataclasses.dataclass
class _Batch:
    """A batch that the device may still be working on."""

    start: int  # the first image
    stop: int  # one past the last
    candidates: range
    last: bool  # whether it completes the range of images asked for
    finish: Callable[[], np.ndarray]


class Drawer:
    """Draws candidates of any images in batches that fit into memory.

    Args:
        images: uint8 (N, H, W, 3).
        unet: the denoiser; moved to the settings' device.
        scheduler_config: configuration of its training's scheduler, as ``load_denoiser`` returns.
        settings: how to draw.
        condition: condition of the images, for a conditional denoiser: classes, int64 (N,), or
            features, float32 (N, D).
        autoencoder: that of a latent denoiser; moved to the settings' device.

    Attributes:
        batch_size: number of samples that the denoiser processes at once; halved whenever memory
            runs out.
        ahead: number of batches that are begun before an earlier one is fetched: 1 on CUDA,
            otherwise 0.
    """

    def __init__(
        self,
        images: torch.Tensor,
        unet: UNet2DModel,
        scheduler_config: Mapping[str, Any],
        settings: GenerationSettings,
        condition: torch.Tensor | None = None,
        autoencoder: Autoencoder | None = None,
    ):
        self.device = device_of(settings.device)
        warn_if_emulated(settings.precision, self.device)
        self.condition = self._checked(unet, condition, settings)
        if autoencoder is not None:
            check_latent(settings)
            autoencoder.to(self.device)
        self.autoencoder = autoencoder
        self.images, self.settings = images, settings
        self.scheduler = make_scheduler(
            scheduler_config, settings.steps, settings.clip, settings.sampler
        )
        passes = len(images) * settings.num_candidates * settings.steps
        compiled = to_compile(
            settings.compile, self.device, "compile", pays=pays(self.device, passes)
        )
        self.unet = self._prepared(unet, compiled)
        self.ahead = 1 if self.device.type == "cuda" else 0
        keep_freed_memory(self.device)
        self.batch_size = settings.batch_size or self._largest_batch()
        if compiled:
            # the batch that fits is found first: there is a graph for every size that is tried
            self._fitting(lambda: self._try_steps(1, self.batch_size))
            compile_blocks(self.unet)

    def _checked(
        self, unet: UNet2DModel, condition: torch.Tensor | None, settings: GenerationSettings
    ) -> torch.Tensor | None:
        return _checked_condition(unet, condition, settings)

    def _prepared(self, unet: UNet2DModel, compiled: bool) -> UNet2DModel:
        """Return the denoiser on its device, in the memory layout that was asked for."""
        wanted = self.settings.channels_last
        last = compiled and self.device.type == "cuda" if wanted is None else wanted
        layout = torch.channels_last if last else torch.contiguous_format
        return unet.to(self.device, memory_format=layout)

    def _largest_batch(self) -> int:
        """Return the batch size if none is given: on a CPU by measurement, else a first try."""
        largest = _LARGEST_BATCH.get(self.device.type, 256)
        if self.device.type != "cpu":
            return largest
        # A system without memory left kills the process, where a GPU only raises an error; so the
        # need is measured. An unmeasured trial comes first, for what a step does only once.
        self.batch_size = _TRIED
        tried = self._fitting(lambda: self._try_steps(1, self.batch_size))
        needed, free = memory_of(lambda: self._try_steps(1, tried)), available_memory()
        if needed is None or free is None:
            return largest
        # a shard's candidates are in memory up to three times: in parts, whole, and being written
        settings, image = self.settings, self.images[0].numel()
        file = min(settings.shard_size, len(self.images)) * settings.num_candidates * image
        share = free / number_of("LOCAL_WORLD_SIZE", 1) - 3 * file
        batch = int(min(largest, max(1, 0.75 * share * tried / max(1, needed))))
        batch = 2 ** (batch.bit_length() - 1)  # so that another run most likely finds the same
        if batch < largest:
            Progress.write(f"There is memory for batch_size={batch} ({in_bytes(free)} are free).")
        return batch

    def _begin(self, indexes: torch.Tensor, candidates: range) -> Callable[[], torch.Tensor]:
        return begin_candidates(
            self.unet,
            self.scheduler,
            self.images[indexes],
            self.settings,
            indexes=indexes,
            candidates=candidates,
            condition=None if self.condition is None else self.condition[indexes],
            autoencoder=self.autoencoder,
        )

    def _halve(self, error: BaseException) -> None:
        """Halve the batch size after memory ran out; raise ClspError if it is 1 already."""
        if self.batch_size == 1:
            raise ClspError(
                f"The memory of {self.device} does not suffice for the candidates of a single "
                f"image ({short(first_line(error))}); free some, or use another device=."
            ) from error
        self.batch_size = (self.batch_size + 1) // 2
        Progress.write(f"Out of memory: continuing with batch_size={self.batch_size}.")

    def _fitting(self, attempt: Callable[..., T], *args: Any) -> T:
        """Call a function; while memory runs out, halve the batch size and call it again."""
        while True:
            try:
                return attempt(*args)
            except Exception as error:
                if not _out_of_memory(error):
                    raise
                self._halve(error)
            # after the handler, when the failed attempt's tensors are no longer referenced
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _batch(self, start: int, stop: int, candidates: range) -> _Batch:
        """Begin the candidates of the first images of a range, as many as fit into one batch."""
        size = self.batch_size
        indexes = torch.arange(start, min(start + max(1, size // len(candidates)), stop))
        parts = [candidates[first : first + size] for first in range(0, len(candidates), size)]
        begun = [self._begin(indexes, part) for part in parts]

        def finish() -> np.ndarray:
            return np.concatenate([drawn().numpy() for drawn in begun], axis=1)

        end = start + len(indexes)
        return _Batch(start, end, candidates, end == stop, finish)

    def _finished(self, batch: _Batch) -> np.ndarray:
        """Return a batch's candidates; if memory runs out only now, redraw in smaller batches."""
        try:
            return batch.finish()
        except Exception as error:
            if not _out_of_memory(error):
                raise
            self._halve(error)
        return self.draw(batch.start, batch.stop, batch.candidates)

    def draw(self, start: int, stop: int, candidates: range) -> np.ndarray:
        """Draw candidates of images start to stop - 1: uint8 (images, len(candidates), H, W, 3).

        All noise is keyed, so the division into batches affects only the rounding.
        """
        return next(self.draw_each([(start, stop, candidates)]))

    def draw_each(
        self, jobs: Iterable[tuple[int, int, range]], done: Callable[[int], None] | None = None
    ) -> Iterator[np.ndarray]:
        """Draw several ranges of images; yield the candidates of each as :func:`draw` returns them.

        On a GPU the next batch, possibly of the next range, begins before the last one is fetched.

        Args:
            jobs: start, stop and candidates of each range, none of them empty.
            done: called with the number of images of every batch that was fetched.
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
        """Measure the seconds that one sampling step takes per candidate, in a full batch."""
        return self._fitting(self._time_steps)

    def seconds_beside(self) -> float:
        """Measure the seconds a candidate takes beside its steps: the decoding of its latents.

        The encoding of its anchor, which counts for all candidates of it, is in it once.
        """
        if self.autoencoder is None:
            return 0.0
        x = to_float(self.images[:1].to(self.device))
        for _ in range(2):  # the first is a warm-up
            began = time.perf_counter()
            self.autoencoder.decode(self.autoencoder.encode(x)).sum().item()
            seconds = time.perf_counter() - began
        return seconds

    def _time_steps(self) -> float:
        for steps in (1, 3):  # the first is a warm-up
            began = time.perf_counter()
            candidates = self._try_steps(steps, self.batch_size)
            seconds = (time.perf_counter() - began) / steps
        return seconds / candidates

    def _try_steps(self, steps: int, batch_size: int) -> int:
        """Run the first steps of as large a batch as possible; return its number of candidates."""
        settings = self.settings
        numbers = torch.arange(min(batch_size, settings.num_candidates))
        rows = min(batch_size // len(numbers), len(self.images), settings.shard_size)
        indexes = torch.arange(rows)
        x = to_float(self.images[indexes].to(self.device))
        x = x if self.autoencoder is None else self.autoencoder.encode(x)
        noise = CandidateNoise(
            settings.seed,
            indexes.to(self.device),
            numbers.to(self.device),
            tuple(x.shape[1:]),
            settings.share_anchor,
        )
        x = x if settings.share_anchor else x.repeat_interleave(len(numbers), dim=0)
        own = None
        if self.condition is not None:
            own = self.condition[indexes].to(self.device).repeat_interleave(len(numbers), dim=0)
        drawn = denoise(
            self.unet, self.scheduler, x, noise, settings, num_steps=steps, condition=own
        )
        if self.autoencoder is not None and steps == 1:
            drawn = self.autoencoder.decode(drawn)  # for the memory that it takes
        drawn.sum().item()
        return rows * len(numbers)


class FoundBatch:
    """The batch size that fitted into memory, kept in a file beside the shards.

    A continued run uses it again, because another batch size rounds sums differently.
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
