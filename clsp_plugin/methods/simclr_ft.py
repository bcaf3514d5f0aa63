"""SimCLR-FT: SimCLR with transformed features (Zhu et al., ICCV 2021)."""

from dataclasses import dataclass

import torch

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.distributed import world_size
from clsp_plugin.losses.feature_transform import draw_weight, transformed_nt_xent_loss
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.simclr import SimCLR


@dataclass
class FeatureTransformKwargs:
    """Settings of the feature transformation; each weight follows a Beta(alpha, alpha).

    Extrapolated positives attract more strongly than negatives repel, so a training that transforms
    from the first step on may collapse, as ours on ``digits`` did.

    Attributes:
        pos_alpha: alpha of the positives' extrapolation.
        neg_alpha: alpha of the negatives' interpolation.
        mix_start_epoch: number of first epochs that train without transformation; the authors have
            none.
    """

    pos_alpha: float = ranged(2.0, above=0)
    neg_alpha: float = ranged(1.6, above=0)
    mix_start_epoch: int = ranged(0, low=0)


@register_method("simclr_ft")
class SimCLRFT(SimCLR):
    """SimCLR with extrapolated positives and interpolated negatives.

    See :func:`transformed_nt_xent_loss` for the formula. The weight of the positives is
    1 + Beta(pos_alpha, pos_alpha), that of the negatives Beta(neg_alpha, neg_alpha), each drawn
    once per step, as the authors' code does by default. Their code has only MoCo. For SimCLR we
    had to guess that negatives are blended with one permutation of all rows of the step, and that
    a blend with a part of the anchor's own image is left out, since it would be partly a
    positive. CLSP's table gives no settings for this method; ours are SimCLR's, with the alphas
    that Zhu et al. train with.
    """

    takes_small_crops = takes_more_views = weighs_pairs = False

    @dataclass
    class Kwargs(FeatureTransformKwargs, SimCLR.Kwargs):
        """SimCLR's settings and those of the feature transformation."""

    def contrast(self, z: torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
        kwargs = self.cfg.method_kwargs
        if self.current_epoch < kwargs.mix_start_epoch:
            return super().contrast(z, indexes)
        return transformed_nt_xent_loss(
            z,
            indexes,
            kwargs.temperature,
            extrapolation=1 + draw_weight(kwargs.pos_alpha),
            interpolation=draw_weight(kwargs.neg_alpha),
            order=torch.randperm(len(z) * world_size(), device=z.device),
        )
