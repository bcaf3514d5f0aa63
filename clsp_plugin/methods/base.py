"""Base classes of the methods: solo-learn's interface, implemented without solo-learn."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from omegaconf import MISSING, DictConfig
from torch import nn

from clsp_plugin.config.rules import Rule, ranged
from clsp_plugin.config.typed import with_block
from clsp_plugin.data.holder import Images
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.backbones import build_backbone, of_method
from clsp_plugin.methods.epoch_means import EpochMeans
from clsp_plugin.methods.joint import JointForward
from clsp_plugin.methods.optim import build_optimizers, ema_tau, ema_update
from clsp_plugin.system.compiling import uncompiled

__all__ = ["WIDTH", "BaseMethod", "BaseMomentumMethod", "ProjectorKwargs", "mlp", "spread"]


WIDTH = Rule(low=1, high=2**24)  # a wider layer would not fit on any device


@dataclass
class ProjectorKwargs:
    """The sizes of a projector, which have no default.

    Attributes:
        proj_hidden_dim: width of the hidden layers.
        proj_output_dim: width of the output.
    """

    proj_hidden_dim: int = ranged(MISSING, WIDTH)
    proj_output_dim: int = ranged(MISSING, WIDTH)


def mlp(
    *sizes: int,
    norm: bool = False,
    activation: type[nn.Module] = nn.ReLU,
    hidden_bias: bool = True,
    bias: bool = True,
) -> nn.Sequential:
    """Make linear layers with activations between them.

    Args:
        sizes: widths from input to output.
        norm: whether to put batch normalisation before each activation.
        activation: class of the activation between two layers.
        hidden_bias: whether the layers before the last have a bias; batch normalisation cancels
            it.
        bias: whether the last layer has a bias.
    """
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        if number:
            layers += [nn.BatchNorm1d(inputs)] if norm else []
            layers.append(activation())
        last = number == len(sizes) - 2
        layers.append(nn.Linear(inputs, outputs, bias=bias if last else hidden_bias))
    return nn.Sequential(*layers)


def _become_copy(momentum: nn.Module, online: nn.Module) -> None:
    """Initialise a momentum network as a copy of the online network that takes no gradient."""
    momentum.load_state_dict(online.state_dict())
    momentum.requires_grad_(False)


@torch.no_grad()
def spread(views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Measure how far embeddings are from collapse.

    Args:
        views: one tensor (B, D) of embeddings of any norm per view.

    Returns:
        The standard deviation over the batch of the entries of the normalised embeddings, averaged
        to a scalar: 1 / sqrt(D) when spread out, 0 when collapsed.
    """
    return F.normalize(torch.stack(list(views)).float(), dim=-1).std(dim=1).mean()


def _classification(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return cross entropy and accuracies in percent; rows with target -1 are left out."""
    labelled = targets >= 0
    count = labelled.sum().clamp(min=1)
    loss = F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="sum") / count
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = (best == targets[:, None]) & labelled[:, None]
    return {
        "loss": loss,
        "acc1": hits[:, 0].sum() * 100.0 / count,
        "acc5": hits.sum() * 100.0 / count,
    }


class BaseMethod(JointForward, EpochMeans, pl.LightningModule):
    """A backbone, an online linear probe on its detached features, and their training steps.

    A batch is ``[indexes (B,), views, targets (B,)]``, where ``views`` is a list of tensors
    (B, 3, H, W): the large crops first, then the small ones.

    Attributes:
        takes_small_crops: whether the method can use small crops (multi-crop).
        takes_more_views: whether the loss takes more than two large views.
        weighs_pairs: whether the loss is a mean over images that ``pair_weights`` can weigh.
        pair_weights: weights (B,) of mean 1 of the images of the step under way, or None.
        positives: the features (B, D) of the two large views in the last training step.
        prediction: for a method that compares a prediction from one view with another view's
            ``z``, the key of that prediction in the output of ``forward``; None for a method that
            compares ``z`` with ``z``. A synthetic positive is compared in the same way.
        Kwargs: the dataclass of ``method_kwargs``, with types, ranges and defaults.
        numerics: the version of the method's own computations; see ``records.numerics``.

    Args:
        cfg: a configuration as ``config.training.parse_cfg`` returns it.
    """

    takes_small_crops = False
    takes_more_views = False
    weighs_pairs = False
    pair_weights: torch.Tensor | None = None
    prediction: str | None = None
    numerics = 1

    @dataclass
    class Kwargs:
        """No settings."""

    def __init__(self, cfg: DictConfig):
        super().__init__()
        self._heads: dict[str, dict[str, Any]] = {}
        self._compiled = False
        cfg = self.add_and_assert_specific_cfg(cfg)
        if cfg.data.num_small_crops and not self.takes_small_crops:
            raise ClspError(
                f"augmentations make {cfg.data.num_small_crops} small crops and {cfg.method} takes "
                f"large ones alone; give every augmentation the same crop_size."
            )
        self.cfg = cfg
        self.backbone, self.features_dim = build_backbone(
            of_method(cfg.backbone, cfg.method), cfg.data.dataset
        )
        self.num_classes: int = cfg.data.num_classes
        self.classifier = nn.Linear(self.features_dim, self.num_classes)
        self.momentum_classifier: nn.Module | None = None
        self.num_large_crops: int = cfg.data.num_large_crops
        self.num_small_crops: int = cfg.data.num_small_crops
        self.num_crops = self.num_large_crops + self.num_small_crops
        self.positives: list[torch.Tensor] = []

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Check the settings of the method and fill in their defaults.

        Args:
            cfg: the whole configuration; not changed.

        Returns:
            A copy with a complete ``method_kwargs``.

        Raises:
            ClspError: a setting is unknown, missing or not acceptable.
        """
        return with_block(cfg, "method_kwargs", cls.Kwargs)

    def attach_images(self, images: Images) -> None:
        """Receive the training images; a hook for methods that need more than the views."""

    def compile_networks(self) -> None:
        """Compile the backbone for training steps; this happens at the first step."""
        self._compiled = True
        self.backbone.compile(dynamic=False)

    def add_head(self, name: str, head: nn.Module, **settings: Any) -> None:
        """Add a network, such as a projector, that the optimiser trains.

        Args:
            name: the name of the attribute and of the parameter group.
            head: the network.
            settings: settings of its parameter group that differ from the optimiser's: ``lr``,
                ``weight_decay``, or ``static_lr=True`` for a learning rate without a schedule.
        """
        setattr(self, name, head)
        self._heads[name] = settings

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups: backbone, probes and the heads that were added."""
        probe = {"lr": self.cfg.optimizer.classifier_lr, "weight_decay": 0.0}
        settings = {"backbone": {}, "classifier": probe}
        if self.momentum_classifier is not None:
            settings["momentum_classifier"] = probe
        return [
            {"name": name, "params": getattr(self, name).parameters(), **own}
            for name, own in {**settings, **self._heads}.items()
        ]

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches
        return build_optimizers(self.learnable_params, self.cfg, steps)

    def _features(self, backbone: nn.Module, X: torch.Tensor) -> torch.Tensor:
        if not self.cfg.performance.disable_channel_last:
            X = X.contiguous(memory_format=torch.channels_last)
        return backbone(X)

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (B, 3, H, W) to ``feats`` (B, D) and ``logits`` (B, classes).

        Methods add ``z``.
        """
        feats = self._features(self.backbone, X)
        return {"feats": feats, "logits": self.classifier(feats.detach())}

    def multicrop_forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the forward pass of small crops, without the probe's ``logits``."""
        out = self.forward(X)
        out.pop("logits")
        return out

    def base_training_step(self, X: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        """Run one large view; return its outputs and the probe's ``loss``, ``acc1``, ``acc5``."""
        out = self(X)
        return {**out, **_classification(out["logits"], targets)}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """Run all views and return their outputs and the probe's metrics.

        A method overrides this step: it calls it and returns its own loss plus the probe's, a
        scalar, as in solo-learn.

        Returns:
            For each output a list with one entry per view, and the probe's ``loss``, ``acc1`` and
            ``acc5`` as means over the large crops.
        """
        _, views, targets = batch
        views = [views] if isinstance(views, torch.Tensor) else views
        assert len(views) == self.num_crops, (len(views), self.num_crops)
        large = views[: self.num_large_crops]
        with self.joint_forward(large) if self.cfg.joint_forward else nullcontext():
            each = [self.base_training_step(view, targets) for view in large]
        outs: dict[str, Any] = {key: [out[key] for out in each] for key in each[0]}
        for view in views[self.num_large_crops :]:
            for key, value in self.multicrop_forward(view).items():
                outs[key].append(value)
        self.positives = [feats.detach() for feats in outs["feats"][:2]]
        for key in ("loss", "acc1", "acc5"):
            outs[key] = sum(outs[key]) / self.num_large_crops
        self.log_epoch(
            train_class_loss=outs["loss"], train_acc1=outs["acc1"], train_acc5=outs["acc5"]
        )
        return outs

    def validation_step(
        self, batch: Sequence[torch.Tensor], batch_idx: int
    ) -> dict[str, torch.Tensor]:
        """Log the probe's loss and accuracies on ``[images (B, 3, H, W), targets (B,)]``.

        Images with the target -1 are left out.

        Returns:
            What :meth:`forward` makes of the images.
        """
        X, targets = batch
        with uncompiled(self._compiled):
            outputs = self(X)
        out = _classification(outputs["logits"], targets)
        means = {f"val_{key}": out[key] for key in ("loss", "acc1", "acc5")}
        self.add_to_validation((targets >= 0).sum(), **means)
        return outputs


class BaseMomentumMethod(BaseMethod):
    """A method with a momentum backbone, which is updated after every optimiser step.

    ``cfg.momentum`` has ``base_tau`` and ``final_tau`` (from step to step, the momentum
    coefficient follows a cosine from the first to the second) and ``classifier`` (whether to
    train a second probe, on the momentum features).
    """

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        cfg = self.cfg
        if not 0 <= cfg.momentum.base_tau <= cfg.momentum.final_tau <= 1:
            raise ClspError(
                f"momentum.base_tau={cfg.momentum.base_tau} and final_tau="
                f"{cfg.momentum.final_tau} must satisfy 0 <= base_tau <= final_tau <= 1."
            )
        self.momentum_backbone, _ = build_backbone(
            of_method(cfg.backbone, cfg.method), cfg.data.dataset
        )
        self._twins = ["backbone"]
        _become_copy(self.momentum_backbone, self.backbone)
        if cfg.momentum.classifier:
            self.momentum_classifier = nn.Linear(self.features_dim, self.num_classes)

    def add_momentum_head(self, name: str, build: Callable[[], nn.Module], **settings: Any) -> None:
        """Add a head as :meth:`add_head` does, and its momentum version ``momentum_<name>``.

        Args:
            name: the name of the attribute and of the parameter group.
            build: function that makes the network; called twice.
            settings: see :meth:`add_head`.
        """
        self.add_head(name, build(), **settings)
        momentum = build()
        _become_copy(momentum, getattr(self, name))
        setattr(self, f"momentum_{name}", momentum)
        self._twins.append(name)

    def compile_networks(self) -> None:
        super().compile_networks()
        self.momentum_backbone.compile(dynamic=False)

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of (online, momentum) networks: the backbones and the heads with both versions."""
        return [(getattr(self, name), getattr(self, f"momentum_{name}")) for name in self._twins]

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (B, 3, H, W) to the momentum ``feats`` (B, D); methods add ``z``."""
        return {"feats": self._features(self.momentum_backbone, X)}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Any:
        """Adds ``momentum_*``: lists of the momentum network's outputs for the large crops."""
        outs = super().training_step(batch, batch_idx)
        _, views, targets = batch
        views = [views] if isinstance(views, torch.Tensor) else views
        each = [self.momentum_forward(view) for view in views[: self.num_large_crops]]
        outs.update({f"momentum_{key}": [out[key] for out in each] for key in each[0]})
        if self.momentum_classifier is not None:
            probes = [
                _classification(self.momentum_classifier(feats.detach()), targets)
                for feats in outs["momentum_feats"]
            ]
            mean = {key: sum(probe[key] for probe in probes) / len(probes) for key in probes[0]}
            outs["loss"] = outs["loss"] + mean["loss"]
            self.log_epoch(**{f"train_momentum_{key}": value for key, value in mean.items()})
        return outs

    def on_train_start(self) -> None:
        super().on_train_start()
        self._updated_step = self.trainer.global_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        step = self.trainer.global_step
        if step == self._updated_step:  # gradients are still being accumulated
            return
        self._updated_step = step
        tau = ema_tau(
            step - 1,
            self.trainer.estimated_stepping_batches,
            self.cfg.momentum.base_tau,
            self.cfg.momentum.final_tau,
        )
        for online, momentum in self.momentum_pairs:
            ema_update(online, momentum, tau)
