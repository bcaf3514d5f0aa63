"""Squares cut out of packed images on the host, by threads, or by processes beside a GPU."""

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from clsp_plugin.data.image_array import squares
from clsp_plugin.data.packed.decoding import begun_ahead
from clsp_plugin.data.packed.workers import Boxes, Workers
from clsp_plugin.system.processes import cores

if TYPE_CHECKING:
    from clsp_plugin.data.packed.images import PackedImages

__all__ = ["CHUNK", "Centres", "Cutter"]

B = TypeVar("B")

CHUNK = 8  # images that a thread decodes at a time


class Cutter(ABC, Generic[B]):
    """Cuts one or more squares out of each image of batches; an image is decoded once a batch.

    Args:
        images: the images.
        shapes: shape of each kind of square, such as (3, 224, 224).

    Attributes:
        pin: whether the squares lie in memory from which a GPU copies without waiting.
        processes: number of processes that cut; threads do for 0, and where processes cannot be
            forked.
    """

    pin = False
    processes = 0

    def __init__(self, images: "PackedImages", shapes: Sequence[tuple[int, ...]]):
        self.images, self.shapes = images, shapes
        self._workers: Workers | None = None

    def beside(self, device: torch.device, number: int = 1) -> None:
        """Prepare for a training or an evaluation on a device, which may be faster than threads.

        Args:
            device: where the squares go.
            number: processes on this machine that do the same.
        """
        if device.type == "cuda":
            self.pin, self.processes = True, max(1, cores() // number)

    def cut(self, batches: Iterable[B]) -> Iterator[list[torch.Tensor]]:
        """Yield the squares of batches, uint8 (B, ...) of each kind; the next ones are cut ahead.

        Raises:
            ClspError: an image changed on the disk.
        """
        if not self.processes or "fork" not in multiprocessing.get_all_start_methods():
            yield from begun_ahead(batches, self._begin)
            return
        if self._workers is None:
            self._workers = Workers(self.fill, self.shapes, self.processes)
        yield from self._workers.views(map(self.task, batches), self._empty)

    @abstractmethod
    def task(self, batch: B) -> tuple[list[int], Boxes]:
        """Return the indexes of a batch's images, and a box of each for each kind or None."""

    @abstractmethod
    def fill(self, indexes: list[int], boxes: Boxes, out: list[np.ndarray]) -> None:
        """Write the squares of images; by numpy, which copies without threads of torch."""

    def _begin(self, batch: B, pool: ThreadPoolExecutor) -> tuple[list[torch.Tensor], list[Future]]:
        indexes, boxes = self.task(batch)
        out = self._empty(len(indexes))

        def work(start: int) -> None:
            part = slice(start, start + CHUNK)
            own = [None if kind is None else kind[part] for kind in boxes]
            self.fill(indexes[part], own, [kind.numpy()[part] for kind in out])

        return out, [pool.submit(work, start) for start in range(0, len(indexes), CHUNK)]

    def _empty(self, number: int) -> list[torch.Tensor]:
        return [
            torch.empty(number, *shape, dtype=torch.uint8, pin_memory=self.pin)
            for shape in self.shapes
        ]


class Centres(Cutter[torch.Tensor]):
    """Cuts the centre out of images whose shorter side it resizes; batches are indexes.

    Args:
        images: the images.
        size: side of the squares in pixels.
        resizing: ``resize`` and ``interpolation`` of :func:`~clsp_plugin.data.image_array.squares`.
    """

    def __init__(self, images: "PackedImages", size: int, **resizing: Any):
        super().__init__(images, [(size, size, 3)])
        self.size, self.resizing = size, resizing

    def __call__(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield uint8 (B, size, size, 3) for int64 (B,) indexes, on the host."""
        for (made,) in self.cut(batches):
            yield made

    def task(self, batch: torch.Tensor) -> tuple[list[int], Boxes]:
        return batch.tolist(), [None]

    def fill(self, indexes: list[int], boxes: Boxes, out: list[np.ndarray]) -> None:
        (own,) = out
        for place, index in enumerate(indexes):
            own[place] = squares(self.images.pixels(index)[None], self.size, **self.resizing)[0]
