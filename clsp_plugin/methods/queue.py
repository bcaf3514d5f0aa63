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
        num_processes: number of processes; their batches enter the queue together.

    Raises:
        ClspError: the size does not fit; the message names one that does.
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
    """Mixin that adds a buffer ``queue`` and ``queue_ptr``, the position of its oldest entry.

    Both are saved in the checkpoint, so a continued run finds the queue as it was.
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
        """Register the buffers.

        Args:
            start: the initial content of ``queue``, with ``queue_size`` entries.
        """
        self.queue_size: int = self.cfg.method_kwargs.queue_size
        self.register_buffer("queue", start)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.queue_size:  # SwAV's may be 0
            check_queue_size(self.cfg, self.trainer.world_size)

    @torch.no_grad()
    def enqueue(self, *buffers: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Replace the oldest entries of buffers by new rows.

        Args:
            buffers: pairs of a buffer (queue_size, ...), or a view of one, and the new rows
                (B, ...) of this process. The rows of all processes are entered, in the order of
                the ranks.
        """
        for buffer, rows in buffers:
            rows = gather(rows.detach())
            assert self.queue_size % len(rows) == 0, (self.queue_size, len(rows))
            # the position stays on the device: to read it, the host would wait for all work there
            places = self.queue_ptr + torch.arange(len(rows), device=rows.device)
            buffer.index_copy_(0, places, rows.to(buffer.dtype))
        self.queue_ptr.add_(len(rows)).remainder_(self.queue_size)


class NearestNeighbours(Queue):
    """Mixin that adds a queue of unit-norm embeddings and finds nearest neighbours in it.

    The support set of NNCLR (Dwibedi et al., ICCV 2021): an embedding is replaced by its nearest
    neighbour, by cosine similarity, among past embeddings. ``queue_y`` holds the labels of the
    entries, -1 for none; they are only used for the logged ``train_nn_acc``.
    """

    queue_y: torch.Tensor

    def register_support_set(self, dim: int) -> None:
        """Make ``queue`` (queue_size, dim), ``queue_ptr`` and ``queue_y`` (queue_size,)."""
        size = self.cfg.method_kwargs.queue_size
        self.register_queue(F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("queue_y", torch.full((size,), -1))

    @torch.no_grad()
    def find_nn(self, z: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the entries of the queue that are nearest to embeddings.

        Args:
            z: (B, D) embeddings of any norm.
            k: number of neighbours.

        Returns:
            The positions of the neighbours in the queue, int64 (B, k), nearest first, and the
            neighbours (B, k, D).
        """
        places = (z @ self.queue.T.to(z.dtype)).topk(k, dim=1).indices
        return places, self.queue[places]

    @torch.no_grad()
    def neighbours(
        self, views: Sequence[torch.Tensor], targets: torch.Tensor, k: int = 1
    ) -> list[torch.Tensor]:
        """Find the neighbours of every view in the queue, then enqueue the first view.

        Args:
            views: one tensor (B, D) of unit norm per view.
            targets: (B,) labels of the images, -1 for none.
            k: number of neighbours.

        Returns:
            One tensor (B, k, D) per view.
        """
        places, found = zip(*(self.find_nn(z, k) for z in views), strict=True)
        same = (targets == self.queue_y[places[0][:, 0]]) & (targets >= 0)
        self.log_epoch(train_nn_acc=same.float().mean())
        self.enqueue((self.queue, views[0]), (self.queue_y, targets))
        return list(found)
