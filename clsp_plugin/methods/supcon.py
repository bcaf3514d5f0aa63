"""SupCon: supervised contrastive learning (Khosla et al., NeurIPS 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING

from clsp_plugin.config.rules import ranged
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.simclr import SimCLR


@register_method("supcon")
class SupCon(SimCLR):
    """SimCLR where all images of a class are positives of each other: it learns from labels.

    ``nt_xent_loss`` with the labels as keys: the sum over positives stands inside the
    logarithm, as in solo-learn; the paper's preferred form has it outside. An image without a
    label (-1) matches its own views and nothing else.

    ``method_kwargs``: ``proj_hidden_dim``, ``proj_output_dim`` (sizes of the projector),
    ``temperature``.
    """

    @dataclass
    class Kwargs(SimCLR.Kwargs):
        temperature: float = ranged(MISSING, above=0)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """SimCLR's step, with the label of an image in the place of its index."""
        indexes, views, targets = batch
        # negative numbers are no labels, so an image's own never meets a class
        keys = torch.where(targets >= 0, targets, -1 - indexes)
        return super().training_step([keys, views, targets], batch_idx)
