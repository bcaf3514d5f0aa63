"""Synthetic positives for every method with solo-learn's interface.

Beside its ordinary views each image gets views of candidates, which a diffusion model made for it.
``synthetic.use`` says what is done with them:

``align``
    Contrastive Learning with Synthetic Positives (CLSP; Zeng et al., ECCV 2024)::

        L = L_method(view 1, view 2) + weight * mean || n(z_1) - n(z_3) ||^2

    with ``n`` the L2 normalisation. The third view takes no part in ``L_method``.

``replace``
    ``L_method(view 1, c)``, where ``c`` is the third view with ``probability`` and view 2
    otherwise, drawn for every image and epoch. By default it is always the third view, as in
    MixDiff (Bafghi et al., WACV 2025), whose pairs are of a real and a generated image. The third
    view is augmented as view 2.

``view``
    ``L_method(view 1, view 2, view 3)``: the third view is a positive like the others and, where
    the method has negatives, one for other images. For methods whose loss takes more than two
    views (``takes_more_views``).

``multi``
    ``L_method(view 1, view 2) + weight * L_multi(view 1, c_1, .., c_per_step)`` with different
    candidates ``c`` and StableRep's cross entropy (Tian et al., NeurIPS 2023), for which all of
    these are positives of each other; see ``losses.multi_positive``. It is a term beside the
    method's loss, as in ``align``, so that it fits every method; StableRep itself trains with it
    alone, and on generated images alone.

With ``synthetic.pair_weight=quality`` pairs are weighted as in GenView (Li et al., ECCV 2024), see
``losses.pair_quality``: the pair of view 1 and the candidate in ``align``, of views 1 and 2 in
``replace`` (for methods whose loss is a mean over images, ``weighs_pairs``), and all positive pairs
in ``multi``. GenView asks CLIP; here the network in training is asked, or ``synthetic.encoder``.

The paper has ``align`` for SimCLR and MoCoV2, where ``z`` is the projector's output. For other
methods its term follows what the method itself does with a positive:

- A method with a predictor (BYOL, SimSiam, MoCoV3, NNCLR, ..) compares the prediction of one view
  with the embedding of the other, in both directions, without a gradient into the embedding. This
  asymmetry is what keeps a method without negatives from collapsing; a term that pulls two
  embeddings together directly would undo it. ``L_multi`` has negatives and takes ``z`` of all.
- DINO uses the embedding before its prototypes.
- All others (Barlow Twins, VICReg, SwAV, W-MSE, ..) use ``z`` before any whitening, since the
  statistics of a batch belong to the method's own loss.
"""

from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from omegaconf import DictConfig

from clsp_plugin.config.training import Synthetic
from clsp_plugin.config.typed import with_block
from clsp_plugin.data.keyed_random import Purpose, derive_key, key_uniform, keys_for
from clsp_plugin.losses.alignment import alignment_loss
from clsp_plugin.losses.multi_positive import multi_positive_loss
from clsp_plugin.methods.judging import Judging
from clsp_plugin.methods.schedules import strength_at
from clsp_plugin.methods.uses import check_use

__all__ = ["SyntheticPositives", "register", "with_synthetic_positives"]

# solo-learn's names of methods, and the paper's names of the same methods.
_PAPER_NAMES = {"mocov2plus": "mocov2"}


def _with_defaults(cfg: DictConfig) -> DictConfig:
    """Return a copy of a configuration with its ``synthetic`` block completed and checked."""
    return with_block(cfg, "synthetic", Synthetic)


class SyntheticPositives(Judging):
    """Mixin that adds the third view and its use; see :func:`with_synthetic_positives`.

    Attributes:
        base_method: the method class that gets the third view.
    """

    base_method: type
    check_synthetic = staticmethod(_with_defaults)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        # the outputs of view 1 within a step; kept longer they would hold its graph
        self._first: dict[str, torch.Tensor] | None = None

    @staticmethod
    def can_take_more(method: type) -> bool:
        """Whether the loss of a method takes more than two large views."""
        return bool(getattr(method, "takes_more_views", False))

    @staticmethod
    def can_weigh(method: type) -> bool:
        """Whether the loss of a method can weigh the images of a step."""
        return bool(getattr(method, "weighs_pairs", False))

    def base_training_step(self, X: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        out = super().base_training_step(X, targets)
        if self._first is not None and not self._first:
            self._first = out
        return out

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Return the method's loss with the third views in their use; see the module."""
        if not self._begun:
            return super().training_step(batch, batch_idx)
        indexes, views, targets = batch
        third = self.chosen(views[0], self.synthetic_views(indexes))
        use = self.cfg.synthetic.use
        if use == "replace":
            replaced = self.replace_second(indexes, views, third[0])
            self.pair_weights = self.weights_of(*replaced[:2])
            return super().training_step([indexes, replaced, targets], batch_idx)
        if use == "view":
            large = self.num_large_crops
            more = [*views[:large], third[0], *views[large:]]
            with self._one_more_view():
                return super().training_step([indexes, more, targets], batch_idx)
        weigh = self.weigher_of([views[0], *third]) if use == "multi" else None
        weights = self.weights_of(views[0], third[0]) if use == "align" else None
        large_views = list(views[: self.num_large_crops])
        joint = self.cfg.get("joint_forward", False)
        self._first = {}
        with self.joint_forward([*large_views, *third]) if joint else nullcontext():
            loss = super().training_step(batch, batch_idx)
            outs = [self(view) for view in third]
        first, self._first = self._first, None
        if use == "align":
            term = self.alignment(first, outs[0], weights)
        else:
            term = self.multi_positive(indexes, [first, *outs], weigh)
        self.log_epoch(**{"train_alignment" if use == "align" else "train_multi_positive": term})
        return loss + self.weight_at(self.current_epoch) * term

    def multi_positive(
        self,
        indexes: torch.Tensor,
        outs: Sequence[dict[str, torch.Tensor]],
        weigh: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the multi-positive loss of view 1 and the candidates.

        Args:
            indexes: int64 (B,), image indexes.
            outs: the output of ``forward`` for each of them.
            weigh: see :func:`multi_positive_loss`.
        """
        z = torch.cat([self.embedding(out) for out in outs])
        temperature = self.cfg.synthetic.temperature
        return multi_positive_loss(z, indexes.repeat(len(outs)), temperature, weigh)

    def replace_second(
        self, indexes: torch.Tensor, views: Sequence[torch.Tensor], third: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return views with the third in the place of the second, for some of the images.

        Which ones is drawn from a key of (seed, epoch, image), so a continued run draws the same.

        Args:
            indexes: int64 (B,), image indexes.
            views: (B, 3, crop, crop) each.
            third: (B, 3, crop, crop).
        """
        base = derive_key(self.cfg.seed, Purpose.REPLACE, self.current_epoch)
        drawn = key_uniform(keys_for(base, indexes), 1)[:, 0]
        replaced = drawn < self.probability_at(self.current_epoch)
        second = torch.where(replaced[:, None, None, None], third.to(views[1].dtype), views[1])
        return [views[0], second, *views[2:]]

    @contextmanager
    def _one_more_view(self) -> Iterator[None]:
        """Within a training step, let the method take a large view more than it is given."""
        self.num_large_crops += 1
        self.num_crops += 1
        try:
            yield
        finally:
            self.num_large_crops -= 1
            self.num_crops -= 1

    def weight_at(self, epoch: int) -> float:
        """The weight lambda in epoch ``epoch``, counted from 0; see ``schedules.strength_at``.

        A new network's embeddings are nearly equal, and the attraction of the third view can keep
        them so; in a short training it helps to let it begin later, which the paper does not.
        """
        return float(self.cfg.synthetic.weight) * self.strength_at(epoch)

    def probability_at(self, epoch: int) -> float:
        """The probability of ``replace`` in epoch ``epoch``, with the schedule of the weight."""
        return float(self.cfg.synthetic.probability) * self.strength_at(epoch)

    def strength_at(self, epoch: int) -> float:
        """The share of the full weight or probability in epoch ``epoch``, in [0, 1]."""
        return strength_at(self.cfg.synthetic, epoch, self.cfg.get("max_epochs") or 1)

    def watched(self) -> dict[str, float]:
        epoch, use = self.current_epoch, self.cfg.synthetic.use
        if use == "replace":
            return {**super().watched(), "synthetic_probability": self.probability_at(epoch)}
        if use == "view":
            return super().watched()
        return {**super().watched(), "synthetic_weight": self.weight_at(epoch)}

    def alignment(
        self,
        first: dict[str, torch.Tensor],
        third: dict[str, torch.Tensor],
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the distance of views 1 and 3, in [0, 4]; see the module for its definition.

        Args:
            first: the output of ``forward`` for view 1.
            third: the output of ``forward`` for view 3.
            weights: weights (B,) of the images, of mean 1.
        """
        z_first, z_third = self.embedding(first), self.embedding(third)
        prediction = getattr(self, "prediction", None)  # methods of other packages may lack it
        if prediction is None:
            return alignment_loss(z_first, z_third, weights)
        there = alignment_loss(first[prediction], z_third.detach(), weights)
        back = alignment_loss(third[prediction], z_first.detach(), weights)
        return (there + back) / 2

    def embedding(self, out: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the embedding (B, D) in the output of ``forward``."""
        return out["z"]


def with_synthetic_positives(
    method: type[Any],
    third_view: str = "candidate",
    mixin: type[SyntheticPositives] = SyntheticPositives,
) -> type[Any]:
    """Make a subclass of a method that uses a third view.

    Args:
        method: a class with solo-learn's interface: ``Method(cfg)``; ``forward(X)``, which returns
            a dict with ``z`` (B, D); ``base_training_step``, which is called once per view;
            ``training_step``, which returns the loss; and optionally ``prediction``, as in
            ``BaseMethod``.
        third_view: ``"candidate"``, or ``"anchor"`` for the ``*_aug`` control.
        mixin: :class:`SyntheticPositives`, or a subclass for methods of the real solo-learn.

    Returns:
        The subclass. With ``synthetic.weight=0``, and with nothing that its use could do, it gives
        the method's results, bit for bit.
    """
    assert third_view in ("candidate", "anchor")

    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        cfg = mixin.check_synthetic(method.add_and_assert_specific_cfg(cfg))
        check_use(cfg, third_view, mixin.can_take_more(method), mixin.can_weigh(method))
        return cfg

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
