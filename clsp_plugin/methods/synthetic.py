"""CLSP, once: a synthetic positive for every method on solo-learn's contract.

Contrastive Learning with Synthetic Positives (Zeng et al., ECCV 2024): beside its ordinary views
each image gets a third, drawn from candidates that a diffusion model made for it, and

    L = L_method(view 1, view 2) + weight * mean || n(z_1) - n(z_3) ||^2

with ``n`` the L2 normalisation. The third view takes no part in ``L_method``.
"""

from collections.abc import MutableMapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from clsp_plugin.data.augmentation import AugmentationConfig, BatchAugmentation
from clsp_plugin.data.images import ImageArray
from clsp_plugin.data.random import Purpose, derive_key, keys_for
from clsp_plugin.data.store import CandidateStore
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.losses.alignment import alignment_loss
from clsp_plugin.methods.joint import JointForward

__all__ = ["SyntheticPositives", "register", "with_synthetic_positives"]

_DEFAULTS = {"path": None, "num_candidates": None, "weight": 1.0, "augmentation": None}
# Names that the paper uses for solo-learn's.
_PAPER_NAMES = {"mocov2plus": "mocov2"}


def _with_defaults(cfg: DictConfig) -> DictConfig:
    """A copy whose ``synthetic`` block is complete and checked."""
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    given = OmegaConf.to_container(cfg.get("synthetic") or OmegaConf.create({}))
    for key in given:
        if key not in _DEFAULTS:
            raise ClspError(f"synthetic.{key} is not a setting{nearest(key, _DEFAULTS)}")
    cfg.synthetic = {**_DEFAULTS, **given}
    weight = cfg.synthetic.weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
        raise ClspError(f"synthetic.weight={weight} is not a number of at least 0.")
    return cfg


class SyntheticPositives(JointForward):
    """The third view and its term; see :func:`with_synthetic_positives`.

    Attributes:
        third_view: ``"candidate"``, or ``"anchor"`` for the control whose third view is one more
            augmentation of the image itself.
    """

    third_view = "candidate"

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self._pool: ImageArray | CandidateStore | None = None
        self._images: torch.Tensor | None = None
        self._augment: BatchAugmentation | None = None
        self._first: dict[str, torch.Tensor] | None = None

    @property
    def _weight(self) -> float:
        return float(self.cfg.synthetic.weight)

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
        settings = self.cfg.synthetic
        augmentation = settings.augmentation or self.cfg.augmentations[0]
        self._augment = BatchAugmentation(
            AugmentationConfig.from_cfg(augmentation), mean, std, compile=compile
        )
        if self._weight == 0:
            return
        if self.third_view == "anchor":
            self._pool = array
            return
        if settings.path is None:
            raise ClspError(
                f"{self.cfg.method} needs candidates: set synthetic.path to a candidate store "
                f"(`clsp generate` makes one), or synthetic.weight=0 to train without."
            )
        self._pool = CandidateStore(settings.path, settings.num_candidates, self.cfg.get("data"))
        self._pool.check(len(array), *array.size, array.fingerprint, array.name)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self._weight == 0:
            return
        if self._pool is None:
            raise ClspError(
                f"{self.cfg.method} was not told which images it trains on; call "
                f"attach(images, mean, std) before fitting."
            )
        if isinstance(self._pool, ImageArray):
            self._images = self._pool.images.to(self.device)
        elif _fits(self._pool.nbytes, self.device):
            self._pool.load_to(self.device)

    def synthetic_view(self, indexes: torch.Tensor) -> torch.Tensor:
        """The third view of a batch, on its device: float32 (B, 3, crop, crop).

        Args:
            indexes: int64 (B,), image indexes.
        """
        seed, epoch = self.cfg.seed, self.current_epoch
        if self._images is not None:
            images = self._images[indexes]
        else:
            images = self._pool.gather(indexes, self._pool.choose(indexes, seed, epoch))
        # the view's number keeps its randomness apart from that of the method's own views
        base = derive_key(seed, Purpose.AUGMENTATION, epoch, self.num_crops)
        return self._augment(images, keys_for(base, indexes))

    def base_training_step(self, X: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        out = super().base_training_step(X, targets)
        if self._first is None:
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
        self._first = None
        with self.joint_forward([*large, third]) if joint else nullcontext():
            loss = super().training_step(batch, batch_idx)
            z_third = self(third)["z"]
        alignment = alignment_loss(self._first["z"], z_third)
        self._first = None
        self.log("train_alignment", alignment, on_step=False, on_epoch=True, sync_dist=True)
        return loss + self._weight * alignment


def _fits(nbytes: int, device: torch.device) -> bool:
    """Whether a store may live on the training device; the host maps it from disk instead."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes < 0.25 * free


def with_synthetic_positives(method: type, third_view: str = "candidate") -> type:
    """Give a method class a third view and its term.

    Args:
        method: a class on solo-learn's contract: ``Method(cfg)``, ``forward(X)`` returning a dict
            with ``z`` (B, D), ``base_training_step`` called once a view, ``training_step``
            returning the loss.
        third_view: ``"candidate"``, or ``"anchor"`` for the ``*_aug`` control.

    Returns:
        A subclass. With ``synthetic.weight`` 0 it is the method itself, to the last bit.
    """
    assert third_view in ("candidate", "anchor")

    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        return _with_defaults(method.add_and_assert_specific_cfg(cfg))

    return type(
        f"{'Clsp' if third_view == 'candidate' else 'Aug'}{method.__name__}",
        (SyntheticPositives, method),
        {
            "__doc__": f"{method.__name__} with a {third_view} as an extra positive.",
            "__module__": method.__module__,
            "third_view": third_view,
            "add_and_assert_specific_cfg": staticmethod(add_and_assert_specific_cfg),
        },
    )


def register(methods: MutableMapping[str, type]) -> None:
    """Add ``clsp_<name>`` and ``<name>_aug`` for every method of a registry, in place.

    ``mocov2plus`` also answers to the paper's ``clsp_mocov2`` and ``mocov2_aug``. Registering
    twice changes nothing.

    Raises:
        ValueError: a name is taken by something else.
    """
    added: dict[str, type] = {}
    for name, method in methods.items():
        if issubclass(method, SyntheticPositives):
            continue
        clsp = with_synthetic_positives(method)
        control = with_synthetic_positives(method, third_view="anchor")
        for base in {name, _PAPER_NAMES.get(name, name)}:
            added[f"clsp_{base}"] = clsp
            added[f"{base}_aug"] = control
    for name, method in added.items():
        if name not in methods:
            methods[name] = method
        elif not issubclass(methods[name], SyntheticPositives):
            raise ValueError(f"the method name {name} is taken by {methods[name].__name__}")
