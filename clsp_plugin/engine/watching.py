"""Numbers that show how a training goes, once an epoch: rates, norms, collapse of features.

They are computed from what the training and its validation have computed anyway, after the last
step of an epoch, and nothing of the training depends on them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from clsp_plugin.engine.progress import History
from clsp_plugin.losses.alignment import alignment_loss
from clsp_plugin.losses.distributed import as_many, gather
from clsp_plugin.methods.base import spread
from clsp_plugin.methods.epoch_means import EpochMeans

__all__ = ["Watching", "norm", "rankme", "uniformity"]

# Validation images that the features of an epoch are measured on, at most; evenly spaced.
_MOST = 1024


def rankme(features: torch.Tensor) -> torch.Tensor:
    """RankMe: how many directions the features fill.

    ``exp(-sum_k p_k log p_k)`` with ``p_k = s_k / sum_j s_j + 1e-7``, where ``s`` are the singular
    values of the matrix of features, which is not centred (Garrido et al., "RankMe: Assessing the
    Downstream Performance of Pretrained Self-Supervised Representations by Their Rank", ICML
    2023, eq. 3).

    Args:
        features: (N, D), of any norm.

    Returns:
        A scalar from 1 (all on one line) to min(N, D); nan if a feature is not finite.
    """
    if not torch.isfinite(features).all():
        return features.new_tensor(torch.nan)
    # the roots of the eigenvalues of the smaller Gram matrix: several times as fast, and in double
    # precision exact to 1e-8 of the largest, which the 1e-7 above hides; Apple's GPUs have none
    x = (features.cpu() if features.device.type == "mps" else features).double()
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = values / values.sum().clamp(min=1e-30) + 1e-7
    return torch.exp(-(p * p.log()).sum()).float()


def uniformity(features: torch.Tensor) -> torch.Tensor:
    """How evenly features lie on the sphere; the smaller the more evenly.

    ``log mean_{i<j} exp(-2 || n(x_i) - n(x_j) ||^2)``, with ``n`` the L2 normalisation (Wang and
    Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on
    the Hypersphere", ICML 2020, with t = 2).

    Args:
        features: (N, D), of any norm.

    Returns:
        A scalar: 0 where all are one point, about -4 spread out in many dimensions; nan if N < 2.
    """
    x = F.normalize(features.float(), dim=1)
    if len(x) < 2:
        return x.new_tensor(torch.nan)
    lengths = x.square().sum(1)  # 1, or 0 where a feature is
    near = (-2 * (lengths[:, None] + lengths - 2 * x @ x.T)).exp()
    # of all pairs: twice each, and each with itself
    return ((near.sum() - near.diagonal().sum()) / (len(x) * (len(x) - 1))).log()


def norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the L2 norm of all entries of tensors together."""
    return torch.stack([tensor.detach().float().norm() for tensor in tensors]).norm()


class Watching(Callback):
    """Adds to the history of a training, every epoch:

    - ``lr``: the learning rate of the first group of parameters, after the epoch's last step;
    - ``weight_norm``: the L2 norm of all trained weights;
    - ``grad_norm``: that of the gradient of the epoch's last step, clipped where it is clipped;
    - what the module's ``watched`` says, such as ``synthetic_weight``, which is lambda;
    - ``train_views_alignment``: the mean squared distance of the normalised features of an image's
      two views in the epoch's last batch, in [0, 4] (Wang and Isola, ICML 2020, alpha = 2);
    - of the features of at most 1024 validation images: ``val_feats_spread`` (``methods.base``'s
      ``spread``), ``val_rankme`` and ``val_uniformity``; and of the projector's output, where there
      is one, ``val_z_spread``.

    Args:
        history: receives the numbers.
    """

    def __init__(self, history: History):
        self.history = history
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._gradient: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.is_last_batch:  # Lightning drops the gradient before the validation
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self._gradient = {"grad_norm": norm(gradients)} if gradients else {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._kept = {}

    def on_validation_batch_end(
        self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        if not isinstance(outputs, Mapping):  # a module of another kind
            return
        each = -(-_MOST // max(1, int(trainer.num_val_batches[0]) * trainer.world_size))
        for name in ("feats", "z"):
            rows = outputs.get(name)
            if isinstance(rows, torch.Tensor) and rows.ndim == 2:
                # the numbers of rows are on the host, so it does not wait
                some = rows[:: max(1, len(rows) // each)][:each].clone()  # the others are freed
                self._kept.setdefault(name, []).append(some)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        self.history.add(weight_norm=norm(weights), **self._gradient)
        self.history.add(**_rates(trainer, module), **self._features(module))

    def _features(self, module: pl.LightningModule) -> dict[str, Any]:
        found: dict[str, Any] = {}
        positives, module.positives = getattr(module, "positives", None), []
        if positives:
            pairs = [gather(features) for features in positives]
            found["train_views_alignment"] = alignment_loss(*pairs)
        kept = {name: gather(as_many(torch.cat(parts))) for name, parts in self._kept.items()}
        self._kept = {}
        for name, features in kept.items():
            found[f"val_{name}_spread"] = spread([features])
        if "feats" in kept:
            found["val_rankme"] = rankme(kept["feats"])
            found["val_uniformity"] = uniformity(kept["feats"])
        return found


def _rates(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
    found = {}
    if trainer.optimizers:
        found["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
    return found | module.watched() if isinstance(module, EpochMeans) else found
