"""Views of packed images that processes cut, since a GPU is faster than the threads of one.

On an H100's 16 cores threads made 1,200 pairs of views a second, no more than two cores do. Each
image takes some dozen calls of torch and numpy, and the likely reason is that threads hand Python's
lock to each other between them. Processes share no lock. They write into memory that they share
with the one that trains, which is not that of ``/dev/shm``, of which containers have little.
"""

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clsp_plugin.errors import ClspError

__all__ = ["Boxes", "Workers"]

Boxes: TypeAlias = Sequence[np.ndarray | None]
# a slot, the indexes of images, and the boxes of each view
_Task: TypeAlias = tuple[int, list[int], Boxes]

_IMAGES = 32  # that a worker cuts at a time
_AHEAD = 2  # times that many each worker has to do


class _Cutting(Dataset):
    """Does tasks in a worker; the message of what it raises is returned."""

    def __init__(self, cut: Callable[[list[int], Boxes, list[np.ndarray]], None],
                 slots: list[np.ndarray]):  # fmt: skip
        self.cut, self.slots = cut, slots

    def __getitem__(self, task: _Task) -> str:
        slot, indexes, boxes = task
        try:
            self.cut(indexes, boxes, [view[slot] for view in self.slots])
        except ClspError as error:
            return str(error)  # the loader would raise it with a worker's traceback
        return ""


class _Tasks:
    """The tasks of an epoch, for the loader; they are made as workers are free for them."""

    def __init__(self, slots: int):
        self.slots = slots
        self.batches: Iterator[tuple[list[int], Boxes]] = iter(())
        self.sizes: deque[int] = deque()  # of the batches whose tasks were given out

    def __iter__(self) -> Iterator[_Task]:
        number = count()
        for indexes, boxes in self.batches:
            self.sizes.append(len(indexes))
            for start in range(0, len(indexes), _IMAGES):
                part = slice(start, start + _IMAGES)
                own = [None if view is None else view[part] for view in boxes]
                yield next(number) % self.slots, indexes[part], own


class Workers:
    """Processes that cut views of images.

    They are forked with the first batch, stay for the next epochs, and end with this process.

    Args:
        cut: writes the views of images, uint8 (B, *shape) each, of the indexes and boxes given.
        shapes: shape of each view of an image.
        number: processes.
    """

    def __init__(
        self,
        cut: Callable[[list[int], Boxes, list[np.ndarray]], None],
        shapes: Sequence[tuple[int, ...]],
        number: int,
    ):
        # A task is given out for every one that is taken: so many are under way, one is copied,
        # and the next is given out before that.
        slots = number * _AHEAD + 2
        held = [(slots, _IMAGES, *shape) for shape in shapes]
        self.slots = [
            np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
            for shape in held
        ]
        self.tasks = _Tasks(slots)
        self.loader = DataLoader(
            _Cutting(cut, self.slots), sampler=self.tasks, batch_size=None, num_workers=number,
            prefetch_factor=_AHEAD, persistent_workers=True, multiprocessing_context="fork",
            generator=torch.Generator(),  # by default the loader draws from the global one
        )  # fmt: skip

    def views(
        self, batches: Iterable[tuple[list[int], Boxes]], new: Callable[[int], list[torch.Tensor]]
    ) -> Iterator[list[torch.Tensor]]:
        """Yield the views of batches in order; a thread collects the next batch meanwhile.

        Args:
            batches: the indexes of images and the boxes of each view.
            new: makes the tensors of a batch of so many images, uint8 (B, *shape) each.

        Raises:
            ClspError: an image changed on the disk, or a worker was killed.
        """
        made = self._collected(batches, new)
        with ThreadPoolExecutor(1, "collect") as thread:
            waiting = thread.submit(next, made, None)
            try:
                while (batch := waiting.result()) is not None:
                    waiting = thread.submit(next, made, None)
                    yield batch
            finally:  # also when an epoch is broken off
                waiting.cancel()

    def _collected(
        self, batches: Iterable[tuple[list[int], Boxes]], new: Callable[[int], list[torch.Tensor]]
    ) -> Iterator[list[torch.Tensor]]:
        tasks = self.tasks
        tasks.batches, tasks.sizes = iter(batches), deque()
        done = iter(self.loader)
        slot = count()
        told = self._next(done)
        while told is not None:
            views = new(tasks.sizes.popleft())
            for start in range(0, len(views[0]), _IMAGES):
                if start:
                    told = self._next(done)
                if told:
                    raise ClspError(told)
                place = next(slot) % tasks.slots
                for view, held in zip(views, self.slots, strict=True):
                    part = view.numpy()[start : start + _IMAGES]
                    part[:] = held[place, : len(part)]
            yield views
            told = self._next(done)

    @staticmethod
    def _next(done: Iterator[str]) -> str | None:
        """Return the message of the next task, empty if all is well; None after the last one."""
        try:
            return next(done, None)
        except RuntimeError as error:
            raise ClspError(
                "A process that cuts views was killed, perhaps for want of memory; the same "
                "command continues from the last checkpoint, with fewer cores (taskset) in less "
                "memory."
            ) from error
