"""First-in-first-out buffers of embeddings, and nearest neighbours in them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from clsp_plugin.errors import ClspError
from clsp_plugin.losses.distributed import gather

__all__ = ["NearestNeighbours", "Queue", "check_queue_size"]


def check_queue_size(cfg: DictConfig, num_processes: int = 1) -> None:
    """Refuse a ``method_kwargs.queue_size`` that the batch does not divide.

    Args:
        cfg: with ``method_kwargs.queue_size`` and ``optimizer.batch_size`` (of one process).
        num_processes: whose batches enter the queue together.

    Raises:
        ClspError: naming the nearest size that fits.
    """
    queue_size, step = cfg.method_kwargs.queue_size, cfg.optimizer.batch_size * num_processes
    if queue_size < step or queue_size % step:
        raise ClspError(
            f"method_kwargs.queue_size={queue_size} is not a multiple of the {step} images of a "
            f"step; set method_kwargs.queue_size={max(1, queue_size // step) * step} or another "
            f"optimizer.batch_size."
        )


if TYPE_CHECKING:
    from clsp_plugin.methods.base import BaseMethod as _Method
else:
    _Method = object


class Queue(_Method):
    """Mixin over a method: the buffer ``queue`` with ``queue_ptr``, the place of the oldest entry.

    Both are part of the checkpoint, so a continued run meets the queue that it left.
    """

    queue: torch.Tensor
    queue_ptr: torch.Tensor

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        cfg = super().add_and_assert_specific_cfg(cfg)
        if cfg.method_kwargs.queue_size:
            check_queue_size(cfg)
        return cfg

    def register_queue(self, start: torch.Tensor) -> None:
        """Make the buffers.

        Args:
            start: what ``queue`` holds before any batch, with ``queue_size`` entries.
        """
        self.queue_size: int = self.cfg.method_kwargs.queue_size
        self.register_buffer("queue", start)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.queue_size:  # SwAV can do without one
            check_queue_size(self.cfg, self.trainer.world_size)

    @torch.no_grad()
    def enqueue(self, *buffers: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Replace the oldest entries.

        Args:
            buffers: pairs of a buffer (queue_size, ...), or a view of one, and its new rows
                (B, ...) of this process; the rows of all processes enter, in the order of the
                ranks.
        """
        start = int(self.queue_ptr)
        for buffer, rows in buffers:
            rows = gather(rows.detach())
            assert self.queue_size % len(rows) == 0, (self.queue_size, len(rows))
            buffer[start : start + len(rows)] = rows.to(buffer.dtype)
        self.queue_ptr[0] = (start + len(rows)) % self.queue_size


class NearestNeighbours(Queue):
    """Mixin over a method: a queue of unit-norm embeddings with labels, searched by cosine.

    The support set of NNCLR (Dwibedi et al., ICCV 2021): an embedding is replaced by its nearest
    neighbour among past ones. ``queue_y`` holds their labels, -1 where there are none; they serve
    the logged ``train_nn_acc`` alone.
    """

    queue_y: torch.Tensor

    def register_support_set(self, dim: int) -> None:
        """Make ``queue`` (queue_size, dim), ``queue_ptr`` and ``queue_y`` (queue_size,)."""
        size = self.cfg.method_kwargs.queue_size
        self.register_queue(F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("queue_y", torch.full((size,), -1))

    @torch.no_grad()
    def find_nn(self, z: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest entries of the queue.

        Args:
            z: (B, D), any norm.
            k: how many.

        Returns:
            Their places (B, k) int64, nearest first, and the entries (B, k, D).
        """
        places = (z @ self.queue.T.to(z.dtype)).topk(k, dim=1).indices
        return places, self.queue[places]

    @torch.no_grad()
    def neighbours(
        self, views: Sequence[torch.Tensor], targets: torch.Tensor, k: int = 1
    ) -> list[torch.Tensor]:
        """The neighbours of every view among past embeddings; then the first view enters the queue.

        Args:
            views: (B, D) of unit norm each.
            targets: (B,) labels of the images, -1 where there are none.
            k: how many neighbours.

        Returns:
            (B, k, D) a view.
        """
        places, found = zip(*(self.find_nn(z, k) for z in views), strict=True)
        same = (targets == self.queue_y[places[0][:, 0]]) & (targets >= 0)
        self.log_epoch(train_nn_acc=same.float().mean())
        self.enqueue((self.queue, views[0]), (self.queue_y, targets))
        return list(found)
