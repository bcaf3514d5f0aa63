"""CLSP, once: a synthetic positive for every method on solo-learn's contract.

Contrastive Learning with Synthetic Positives (Zeng et al., ECCV 2024): beside its ordinary views
each image gets a third, drawn from candidates that a diffusion model made for it, and

    L = L_method(view 1, view 2) + weight * mean || n(z_1) - n(z_3) ||^2

with ``n`` the L2 normalisation. The third view takes no part in ``L_method``.

The paper has this for SimCLR and MoCoV2, where ``z`` is the projector's output. Elsewhere the
term follows what the method itself does with a positive:

- a method with a predictor (BYOL, SimSiam, MoCoV3, NNCLR, ..) compares the prediction of one view
  with the embedding of the other, in both directions, and no gradient flows into the latter. A
  method without negatives does not collapse because of just that; a term that pulls two
  embeddings together directly would undo it.
- DINO's embedding is what lies before its prototypes.
- everything else (Barlow Twins, VICReg, SwAV, W-MSE, ..) has ``z``, before any whitening, since
  statistics of a batch are the method's own business.
"""

from collections.abc import Collection, MutableMapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.third_view import ThirdView
from clsp_plugin.config.training import Synthetic
from clsp_plugin.config.typed import typed_block
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.alignment import alignment_loss
from clsp_plugin.methods.joint import JointForward

__all__ = ["SyntheticPositives", "register", "with_synthetic_positives"]

# Names that the paper uses for solo-learn's.
_PAPER_NAMES = {"mocov2plus": "mocov2"}


def _with_defaults(cfg: DictConfig) -> DictConfig:
    """A copy whose ``synthetic`` block is complete and checked."""
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.synthetic = typed_block(cfg.get("synthetic"), Synthetic, "synthetic")
    return cfg


if TYPE_CHECKING:
    from clsp_plugin.methods.base import BaseMethod as _Method
else:
    _Method = JointForward


class SyntheticPositives(_Method):
    """The third view and its term; see :func:`with_synthetic_positives`.

    Attributes:
        third_view: ``"candidate"``, or ``"anchor"`` for the control whose third view is one more
            augmentation of the image itself.
        base_method: the class that this is a version of.
    """

    third_view = "candidate"
    base_method: type
    check_synthetic = staticmethod(_with_defaults)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self._third: ThirdView | None = None
        self._first: dict[str, torch.Tensor] = {}  # of view 1, within a step

    @property
    def _weight(self) -> float:
        return float(self.cfg.synthetic.weight)

    def augmentation(
        self, mean: Sequence[float], std: Sequence[float], compile: bool = False
    ) -> BatchAugmentation:
        """What the third view goes through: ``synthetic.augmentation``, or as the first view.

        Args:
            mean: per channel, for pixels in [0, 1].
            std: per channel, for pixels in [0, 1].
            compile: compile it.

        Raises:
            ClspError: a bad ``synthetic.augmentation``.
        """
        block = self.cfg.synthetic.augmentation or self.cfg.augmentations[0]
        return BatchAugmentation(AugmentationConfig.from_cfg(block), mean, std, compile=compile)

    def open_store(self) -> CandidateStore:
        """The candidates that ``synthetic`` names.

        Raises:
            ClspError: none, or not a whole store.
        """
        settings = self.cfg.synthetic
        if settings.path is None:
            raise ClspError(
                f"{self.cfg.method} needs candidates: set synthetic.path to a candidate store "
                f"(`clsp generate` makes one), or synthetic.weight=0 to train without."
            )
        return CandidateStore(settings.path, settings.num_candidates, self.cfg.get("data"))

    def attach(
        self, array: ImageArray, mean: Sequence[float], std: Sequence[float], compile: bool = False
    ) -> None:
        """Name the training images; opens the candidate store and checks that it is theirs.

        Args:
            array: the images that batches index, in their order.
            mean: per channel, for pixels in [0, 1].
            std: per channel, for pixels in [0, 1].
            compile: compile the augmentation.

        Raises:
            ClspError: no store, a store for other images, a bad ``synthetic.augmentation``.
        """
        augmentation = self.augmentation(mean, std, compile)
        if self._weight == 0:
            return
        source: torch.Tensor | CandidateStore = array.images
        if self.third_view == "candidate":
            store = source = self.open_store()
            store.check(len(array), *array.size, array.fingerprint, array.name)
        self._third = ThirdView(source, augmentation, self.cfg.seed)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._weight == 0:
            return
        if self._third is None:
            self._third = self.find_images()
        self._third.to(self.device)

    def find_images(self) -> ThirdView:
        """Called when training starts and nobody has called :meth:`attach`."""
        raise ClspError(
            f"{self.cfg.method} was not told which images it trains on; call "
            f"attach(images, mean, std) before fitting."
        )

    def synthetic_view(self, indexes: torch.Tensor) -> torch.Tensor:
        """The third view of a batch, on its device: float32 (B, 3, crop, crop).

        Args:
            indexes: int64 (B,), image indexes.
        """
        assert self._third is not None  # training has started
        return self._third(indexes, self.current_epoch, self.num_crops)

    def base_training_step(self, X: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        out = super().base_training_step(X, targets)
        if not self._first:
            self._first = out
        return out

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The method's own loss plus ``weight`` times the distance of views 1 and 3."""
        if self._weight == 0:
            return super().training_step(batch, batch_idx)
        indexes, views, _ = batch
        third = self.synthetic_view(indexes)
        large = list(views[: self.num_large_crops])
        joint = self.cfg.get("joint_forward", False)
        self._first = {}
        with self.joint_forward([*large, third]) if joint else nullcontext():
            loss = super().training_step(batch, batch_idx)
            out = self(third)
        alignment = self.alignment(self._first, out)
        self._first = {}
        self.log("train_alignment", alignment, on_step=False, on_epoch=True, sync_dist=True)
        return loss + self.weight_at(self.current_epoch) * alignment

    def weight_at(self, epoch: int) -> float:
        """Lambda in an epoch, counted from 0: ``weight``, reached on a line over
        ``warmup_epochs``.

        The paper has no warm-up. A network's first embeddings are nearly equal, and where
        training is too short to leave that state against the pull, it helps to wait.
        """
        warmup = self.cfg.synthetic.warmup_epochs
        return self._weight * min(1.0, epoch / warmup if warmup else 1.0)

    def alignment(
        self, first: dict[str, torch.Tensor], third: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Distance of two views in [0, 4], as the method compares positives; see this module.

        Args:
            first: what ``forward`` returned for view 1.
            third: what ``forward`` returned for view 3.
        """
        z_first, z_third = self.embedding(first), self.embedding(third)
        prediction = getattr(self, "prediction", None)  # classes of others need not have it
        if prediction is None:
            return alignment_loss(z_first, z_third)
        there = alignment_loss(first[prediction], z_third.detach())
        back = alignment_loss(third[prediction], z_first.detach())
        return (there + back) / 2

    def embedding(self, out: dict[str, torch.Tensor]) -> torch.Tensor:
        """The embedding (B, D) among what ``forward`` returned."""
        return out["z"]


def with_synthetic_positives(
    method: type[Any],
    third_view: str = "candidate",
    mixin: type[SyntheticPositives] = SyntheticPositives,
) -> type[Any]:
    """Give a method class a third view and its term.

    Args:
        method: a class on solo-learn's contract: ``Method(cfg)``, ``forward(X)`` returning a dict
            with ``z`` (B, D), ``base_training_step`` called once a view, ``training_step``
            returning the loss; ``prediction``, if it has it, as in ``BaseMethod``.
        third_view: ``"candidate"``, or ``"anchor"`` for the ``*_aug`` control.
        mixin: :class:`SyntheticPositives`, or a host's version of it.

    Returns:
        A subclass. With ``synthetic.weight`` 0 it is the method itself, to the last bit.
    """
    assert third_view in ("candidate", "anchor")

    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        return mixin.check_synthetic(method.add_and_assert_specific_cfg(cfg))

    return type(
        f"{'Clsp' if third_view == 'candidate' else 'Aug'}{method.__name__}",
        (mixin, method),
        {
            "__doc__": f"{method.__name__} with a {third_view} as an extra positive.",
            "__module__": method.__module__,
            "third_view": third_view,
            "base_method": method,
            "add_and_assert_specific_cfg": staticmethod(add_and_assert_specific_cfg),
        },
    )


def register(
    methods: MutableMapping[str, type[Any]],
    skip: Collection[str] = (),
    mixin: type[SyntheticPositives] = SyntheticPositives,
) -> None:
    """Add ``clsp_<name>`` and ``<name>_aug`` for every method of a registry, in place.

    ``mocov2plus`` also answers to the paper's ``clsp_mocov2`` and ``mocov2_aug``. Registering
    twice changes nothing.

    Args:
        methods: the registry.
        skip: names that get no such version.
        mixin: see :func:`with_synthetic_positives`.

    Raises:
        ValueError: a name is taken by something else.
    """
    added: dict[str, type[Any]] = {}
    for name, method in methods.items():
        if name in skip or issubclass(method, SyntheticPositives):
            continue
        clsp = with_synthetic_positives(method, mixin=mixin)
        control = with_synthetic_positives(method, third_view="anchor", mixin=mixin)
        for base in {name, _PAPER_NAMES.get(name, name)}:
            added[f"clsp_{base}"] = clsp
            added[f"{base}_aug"] = control
    for name, method in added.items():
        if name not in methods:
            methods[name] = method
        elif not issubclass(methods[name], SyntheticPositives):
            raise ValueError(f"the method name {name} is taken by {methods[name].__name__}")
