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
    """SimCLR with all images of a class as positives of each other; learns from labels.

    The loss is ``nt_xent_loss`` with labels in place of image indexes. The sum over positives is
    inside the logarithm, as in solo-learn; the paper's preferred form has it outside. An image
    without a label (-1) has only its own views as positives.
    """

    weighs_pairs = False  # its pairs are of different images

    @dataclass
    class Kwargs(SimCLR.Kwargs):
        """Settings of SupCon.

        Attributes:
            temperature: temperature of the similarities.
        """

        temperature: float = ranged(MISSING, above=0)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Run SimCLR's step with the label of an image in place of its index."""
        indexes, views, targets = batch
        # an image without a label gets a negative key of its own, which is no label
        keys = torch.where(targets >= 0, targets, -1 - indexes)
        return super().training_step([keys, views, targets], batch_idx)
