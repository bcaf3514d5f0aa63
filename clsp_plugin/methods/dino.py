"""DINO: self-distillation with no labels (Caron et al., ICCV 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import MISSING, DictConfig
from torch import nn

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.distributed import gather
from clsp_plugin.losses.prototypes import swapped_prediction_loss
from clsp_plugin.methods.base import WIDTH, BaseMomentumMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.prototypes import Prototypes
from clsp_plugin.methods.registry import register_method

_CENTER_MOMENTUM = 0.9


class DINOHead(nn.Module):
    """Three linear layers with GELU, a normalised bottleneck, and prototypes.

    Args:
        sizes: widths of the features, the hidden layers and the bottleneck.
        num_prototypes: K.
        norm: whether to put batch normalisation before each GELU.
        scaled: whether the norm of the prototypes is learnt.
    """

    def __init__(self, sizes: tuple[int, int, int], num_prototypes: int, norm: bool, scaled: bool):
        super().__init__()
        features, hidden, out = sizes
        self.mlp = mlp(features, hidden, hidden, out, norm=norm, activation=nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(out, num_prototypes, scaled)

    def forward(self, feats: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map features (B, D) to the bottleneck ``z`` and the scores ``p`` (B, K)."""
        z = F.normalize(self.mlp(feats), dim=-1)
        return {"z": z, "p": self.last_layer(z)}


@register_method("dino")
class DINO(BaseMomentumMethod):
    """Every view of the student predicts the teacher's distribution for the other large views.

    The teacher is the momentum network; its distribution is
    ``softmax((p - center) / teacher temperature)``, with ``center`` the moving mean of its scores.
    See :func:`swapped_prediction_loss` for the formula.

    ``z`` is the head's normalised bottleneck, an embedding like that of other methods, and ``p``
    are the scores of the prototypes, which solo-learn calls ``z``.
    """

    takes_small_crops = takes_more_views = True
    center: torch.Tensor

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of DINO; ``proj_output_dim`` is the width of the bottleneck.

        Attributes:
            num_prototypes: number of prototypes.
            use_bn_in_head: whether the head has batch normalisation.
            norm_last_layer: whether the prototypes have unit norm.
            freeze_last_layer: number of first epochs in which the prototypes do not learn.
            clip_grad: largest norm of the gradient of each parameter of the backbone; 0 means no
                clipping.
            student_temperature: temperature of the student.
            teacher_temperature: temperature of the teacher after its warm-up.
            warmup_teacher_temperature: temperature of the teacher at the start.
            warmup_teacher_temperature_epochs: epochs over which the teacher's temperature goes
                linearly from the one to the other.
        """

        num_prototypes: int = ranged(MISSING, WIDTH)
        use_bn_in_head: bool = False
        norm_last_layer: bool = True
        freeze_last_layer: int = ranged(1, low=0)
        clip_grad: float = ranged(0.0, low=0)
        student_temperature: float = ranged(0.1, above=0)
        teacher_temperature: float = ranged(0.07, above=0)
        warmup_teacher_temperature: float = ranged(0.04, above=0)
        warmup_teacher_temperature_epochs: int = ranged(0, low=0)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.kwargs = kwargs = self.cfg.method_kwargs
        sizes = (self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim)
        settings = (kwargs.num_prototypes, kwargs.use_bn_in_head, not kwargs.norm_last_layer)
        self.add_momentum_head("head", lambda: DINOHead(sizes, *settings))
        self.register_buffer("center", torch.zeros(1, kwargs.num_prototypes))

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim), unit norm, and ``p`` (B, num_prototypes)."""
        out = super().forward(X)
        return {**out, **self.head(out["feats"])}

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        out = super().momentum_forward(X)
        return {**out, **self.momentum_head(out["feats"])}

    def teacher_temperature(self, epoch: int) -> float:
        """The teacher's temperature in epoch ``epoch``, counted from 0."""
        kwargs = self.kwargs
        first, last = kwargs.warmup_teacher_temperature, kwargs.teacher_temperature
        epochs = kwargs.warmup_teacher_temperature_epochs
        return last if epoch >= epochs else first + (last - first) * epoch / max(epochs - 1, 1)

    @torch.no_grad()
    def _teach(self, scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the teacher's distributions for its scores, then update the center."""
        temperature = self.teacher_temperature(self.current_epoch)
        center = self.center
        out = [F.softmax((p.float() - center) / temperature, dim=-1) for p in scores]
        mean = gather(torch.cat(list(scores)).float()).mean(0, keepdim=True)
        self.center = center * _CENTER_MOMENTUM + mean * (1 - _CENTER_MOMENTUM)
        return out

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The distillation over all pairs of views plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        targets = self._teach(out["momentum_p"])
        loss = swapped_prediction_loss(out["p"], targets, self.kwargs.student_temperature)
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]

    def on_after_backward(self) -> None:
        super().on_after_backward()
        if self.kwargs.clip_grad:
            for parameter in self.backbone.parameters():
                if parameter.grad is not None:
                    nn.utils.clip_grad_norm_(parameter, self.kwargs.clip_grad)
        if self.current_epoch < self.kwargs.freeze_last_layer:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None
