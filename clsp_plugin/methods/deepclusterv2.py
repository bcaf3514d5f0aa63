"""DeepCluster-v2: classify images into clusters of their embeddings from the previous epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from clsp_plugin.config.rules import ranged
from clsp_plugin.data.keyed_random import Purpose, derive_key
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.distributed import gather
from clsp_plugin.losses.prototypes import assignment_loss
from clsp_plugin.methods.base import WIDTH, BaseMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.prototypes import cluster
from clsp_plugin.methods.registry import register_method

_STATE = ("memory", "assignments")


@register_method("deepclusterv2")
class DeepClusterV2(BaseMethod):
    """Views are classified into clusters of their images (Caron et al., NeurIPS 2020, section 4).

    A memory keeps the last embedding (unit norm) of each large view of every image. At the start
    of an epoch, these are clustered once for each set of prototypes; the sets take the large views
    in turn. The centroids become the weights of a classifier that does not learn. The loss is the
    mean of :func:`assignment_loss` over the sets. As in solo-learn, nothing is clustered before
    the first epoch, which only fills the memory and has a loss of 0. An image that was left out of
    an epoch keeps its older embedding; one that was never seen has no cluster.
    """

    takes_small_crops = True
    memory: torch.Tensor | None  # None until the number of images is known
    assignments: torch.Tensor | None

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of DeepCluster v2.

        Attributes:
            num_prototypes: clusters of each set of prototypes.
            temperature: temperature of the classification into clusters.
            kmeans_iters: iterations of k-means at the start of an epoch.
        """

        num_prototypes: list[int] = ranged([3000, 3000, 3000], WIDTH)
        temperature: float = ranged(0.1, above=0)
        kmeans_iters: int = ranged(10, low=1)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.kwargs = kwargs = self.cfg.method_kwargs
        out = kwargs.proj_output_dim
        sizes = (self.features_dim, kwargs.proj_hidden_dim, out)
        self.add_head("projector", mlp(*sizes, norm=True))
        self.prototypes = nn.ModuleList(
            nn.Linear(out, number, bias=False) for number in kwargs.num_prototypes
        ).requires_grad_(False)
        # one row per image; their number is known only when training starts
        self.register_buffer("memory", None, persistent=False)
        self.register_buffer("assignments", None, persistent=False)

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        cfg = super().add_and_assert_specific_cfg(cfg)
        if not cfg.method_kwargs.num_prototypes:
            raise ClspError(
                "method_kwargs.num_prototypes=[] must be a number for each set of prototypes."
            )
        return cfg

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim), unit norm."""
        out = super().forward(X)
        return {**out, "z": F.normalize(self.projector(out["feats"]), dim=-1)}

    def prepare(self, num_images: int) -> None:
        """Make an empty memory, or keep the one that a checkpoint has restored.

        Args:
            num_images: N; batches index images in [0, N).

        Raises:
            ClspError: there are fewer images than prototypes in a set, or the restored memory has
                another number of images.
        """
        largest = max(self.kwargs.num_prototypes)
        if num_images < largest:
            raise ClspError(
                f"method_kwargs.num_prototypes={list(self.kwargs.num_prototypes)} asks for "
                f"{largest} clusters of {num_images} images; set fewer than there are images."
            )
        if self.memory is None:
            shape = (self.num_large_crops, num_images, self.kwargs.proj_output_dim)
            self.memory = torch.zeros(shape, device=self.device)
            sets = len(self.prototypes)
            self.assignments = torch.full((sets, num_images), -1, device=self.device)
        elif self.memory.shape[1] != num_images:
            raise ClspError(
                f"The checkpoint remembers {self.memory.shape[1]} images and there are "
                f"{num_images}; continue with the images that it was trained on."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["deepclusterv2"] = {name: getattr(self, name) for name in _STATE}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for name, value in checkpoint["deepclusterv2"].items():
            setattr(self, name, value.to(self.device))

    def on_train_start(self) -> None:
        super().on_train_start()
        self.prepare(len(self.trainer.train_dataloader.dataset))

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.cluster_memory(self.current_epoch)

    @torch.no_grad()
    def cluster_memory(self, epoch: int) -> None:
        """Compute new assignments and prototypes from the embeddings in the memory.

        Nothing changes while the memory holds fewer images than the largest set has prototypes.

        Args:
            epoch: the current epoch, which the random start of k-means depends on.
        """
        assert self.memory is not None
        assert self.assignments is not None
        seen = self.memory[0].any(dim=1).nonzero()[:, 0]
        if len(seen) < max(self.kwargs.num_prototypes):
            return
        for number, layer in enumerate(self.prototypes):
            assert isinstance(layer, nn.Linear)
            points = self.memory[number % self.num_large_crops, seen]
            key = derive_key(self.cfg.seed, Purpose.CLUSTERING, epoch, number)
            found, centroids = cluster(points, layer.out_features, self.kwargs.kmeans_iters, key)
            layer.weight.copy_(centroids)
            self.assignments[number, seen] = found

    @torch.no_grad()
    def remember(self, indexes: torch.Tensor, z: Sequence[torch.Tensor]) -> None:
        """Store the embeddings of a step from all processes in the memory.

        Args:
            indexes: int64 (B,), image indexes.
            z: one tensor (B, D) per large view.
        """
        assert self.memory is not None
        indexes = gather(indexes)
        for view, embeddings in enumerate(z):
            self.memory[view, indexes] = gather(embeddings.detach()).to(self.memory.dtype)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The classification of all views into clusters plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        assert self.assignments is not None
        assignments = self.assignments[:, batch[0]]
        losses = [
            assignment_loss([layer(z) for z in out["z"]], found, self.kwargs.temperature)
            for layer, found in zip(self.prototypes, assignments, strict=True)
        ]
        loss = sum(losses) / len(losses)
        self.remember(batch[0], out["z"][: self.num_large_crops])
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]
