"""CLSP for every method with solo-learn's interface: a synthetic positive as a third view.

Contrastive Learning with Synthetic Positives (Zeng et al., ECCV 2024): beside its ordinary views
each image gets a third, drawn from candidates that a diffusion model made for it, and the loss is

    L = L_method(view 1, view 2) + weight * mean || n(z_1) - n(z_3) ||^2

with ``n`` the L2 normalisation. The third view takes no part in ``L_method``.

The paper has this for SimCLR and MoCoV2, where ``z`` is the projector's output. For other methods
the term follows what the method itself does with a positive:

- A method with a predictor (BYOL, SimSiam, MoCoV3, NNCLR, ..) compares the prediction of one view
  with the embedding of the other, in both directions, without a gradient into the embedding. This
  asymmetry is what keeps a method without negatives from collapsing; a term that pulls two
  embeddings together directly would undo it.
- DINO uses the embedding before its prototypes.
- All others (Barlow Twins, VICReg, SwAV, W-MSE, ..) use ``z`` before any whitening, since the
  statistics of a batch belong to the method's own loss.
"""

from collections.abc import Collection, MutableMapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.third_view import ThirdView
from clsp_plugin.config.training import Synthetic
from clsp_plugin.config.typed import with_block
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.alignment import alignment_loss
from clsp_plugin.methods.epoch_means import EpochMeans
from clsp_plugin.methods.joint import JointForward

__all__ = ["SyntheticPositives", "register", "with_synthetic_positives"]

# solo-learn's names of methods, and the paper's names of the same methods.
_PAPER_NAMES = {"mocov2plus": "mocov2"}


def _with_defaults(cfg: DictConfig) -> DictConfig:
    """Return a copy of a configuration with its ``synthetic`` block completed and checked."""
    return with_block(cfg, "synthetic", Synthetic)


if TYPE_CHECKING:
    from clsp_plugin.methods.base import BaseMethod as _Method
else:

    class _Method(JointForward, EpochMeans):
        """What a method of another package lacks."""


class SyntheticPositives(_Method):
    """Mixin that adds the third view and its loss term; see :func:`with_synthetic_positives`.

    Attributes:
        third_view: ``"candidate"``, or ``"anchor"`` for the control with one more augmentation of
            the image itself as the third view.
        base_method: the method class that gets the third view.
    """

    third_view = "candidate"
    base_method: type
    check_synthetic = staticmethod(_with_defaults)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self._third: ThirdView | None = None
        self._first: dict[str, torch.Tensor] = {}  # the outputs of view 1, within a step

    @property
    def _weight(self) -> float:
        return float(self.cfg.synthetic.weight)

    def augmentation(
        self, mean: Sequence[float], std: Sequence[float], compile: bool = False
    ) -> BatchAugmentation:
        """Make the augmentation of the third view: ``synthetic.augmentation``, or view 1's.

        Args:
            mean: per channel, for pixels in [0, 1].
            std: per channel, for pixels in [0, 1].
            compile: whether to compile the augmentation.

        Raises:
            ClspError: ``synthetic.augmentation`` is invalid.
        """
        block = self.cfg.synthetic.augmentation or self.cfg.augmentations[0]
        return BatchAugmentation(AugmentationConfig.from_cfg(block), mean, std, compile=compile)

    def open_store(self) -> CandidateStore:
        """Open the candidate store that ``synthetic.path`` names.

        Raises:
            ClspError: no path is set, or there is no complete store.
        """
        settings = self.cfg.synthetic
        if settings.path is None:
            raise ClspError(
                f"{self.cfg.method} needs candidates: set synthetic.path to a candidate store "
                f"(`clsp generate` makes one), or synthetic.weight=0 to train without."
            )
        return CandidateStore(settings.path, settings.num_candidates, self.cfg.get("data"))

    def attach(
        self, images: Images, mean: Sequence[float], std: Sequence[float], compile: bool = False
    ) -> None:
        """Set the training images; open the candidate store and check that it is for them.

        Args:
            images: the training images, in the order of the indexes in a batch.
            mean: per channel, for pixels in [0, 1].
            std: per channel, for pixels in [0, 1].
            compile: whether to compile the augmentation.

        Raises:
            ClspError: there is no store, it is for other images, or ``synthetic.augmentation`` is
                invalid.
        """
        augmentation = self.augmentation(mean, std, compile)
        if self._weight == 0:
            return
        source: torch.Tensor | PackedImages | CandidateStore
        if self.third_view == "candidate":
            store = source = self.open_store()
            size, fingerprint = images.anchors(store.height, store.width)
            store.check(len(images), *size, fingerprint, images.name)
        else:
            assert isinstance(images, (ImageArray, PackedImages))
            source = images.images if isinstance(images, ImageArray) else images
        self._third = ThirdView(source, augmentation, self.cfg.seed)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._weight == 0:
            return
        if self._third is None:
            self._third = self.find_images()
        self._third.to(self.device)

    def find_images(self) -> ThirdView:
        """Make the third view when training starts without :meth:`attach`; a hook for subclasses.

        Raises:
            ClspError: always, in this class.
        """
        raise ClspError(
            f"{self.cfg.method} was not told which images it trains on; call "
            f"attach(images, mean, std) before fitting."
        )

    def begin_view(self, indexes: torch.Tensor) -> None:
        """Begin to load the third view of the next batch; see ``ThirdView.begin``.

        Args:
            indexes: int64 (B,), image indexes, on the host.
        """
        if self._third is not None:
            self._third.begin(indexes, self.current_epoch, self.device)

    def synthetic_view(self, indexes: torch.Tensor) -> torch.Tensor:
        """Return the third view of a batch, on the batch's device: float32 (B, 3, crop, crop).

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
        """Return the method's own loss plus the weighted distance of views 1 and 3."""
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
        self.log_epoch(train_alignment=alignment)
        return loss + self.weight_at(self.current_epoch) * alignment

    def weight_at(self, epoch: int) -> float:
        """The weight lambda in epoch ``epoch``, counted from 0.

        It rises linearly from 0 to ``weight`` over ``warmup_epochs``; the paper has no warm-up. A
        new network's embeddings are nearly equal, and the attraction of the third view can keep
        them so; in a short training it helps to let it begin later.
        """
        warmup = self.cfg.synthetic.warmup_epochs
        return self._weight * min(1.0, epoch / warmup if warmup else 1.0)

    def watched(self) -> dict[str, float]:
        return {**super().watched(), "synthetic_weight": self.weight_at(self.current_epoch)}

    def alignment(
        self, first: dict[str, torch.Tensor], third: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the distance of views 1 and 3, in [0, 4]; see the module for its definition.

        Args:
            first: the output of ``forward`` for view 1.
            third: the output of ``forward`` for view 3.
        """
        z_first, z_third = self.embedding(first), self.embedding(third)
        prediction = getattr(self, "prediction", None)  # methods of other packages may lack it
        if prediction is None:
            return alignment_loss(z_first, z_third)
        there = alignment_loss(first[prediction], z_third.detach())
        back = alignment_loss(third[prediction], z_first.detach())
        return (there + back) / 2

    def embedding(self, out: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the embedding (B, D) in the output of ``forward``."""
        return out["z"]


def with_synthetic_positives(
    method: type[Any],
    third_view: str = "candidate",
    mixin: type[SyntheticPositives] = SyntheticPositives,
) -> type[Any]:
    """Make a subclass of a method that has a third view and its loss term.

    Args:
        method: a class with solo-learn's interface: ``Method(cfg)``; ``forward(X)``, which returns
            a dict with ``z`` (B, D); ``base_training_step``, which is called once per view;
            ``training_step``, which returns the loss; and optionally ``prediction``, as in
            ``BaseMethod``.
        third_view: ``"candidate"``, or ``"anchor"`` for the ``*_aug`` control.
        mixin: :class:`SyntheticPositives`, or a subclass for methods of the real solo-learn.

    Returns:
        The subclass. With ``synthetic.weight=0`` it gives the method's results, bit for bit.
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

    The versions of ``mocov2plus`` also get the paper's names, ``clsp_mocov2`` and ``mocov2_aug``.
    Registering twice changes nothing.

    Args:
        methods: the registry, names to classes.
        skip: names of methods that get no such versions.
        mixin: see :func:`with_synthetic_positives`.

    Raises:
        ValueError: a name is taken by a method without a third view.
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
