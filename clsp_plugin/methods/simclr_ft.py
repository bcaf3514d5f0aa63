"""SimCLR-FT: SimCLR with transformed features (Zhu et al., ICCV 2021)."""

import torch
from omegaconf import DictConfig

from clsp_plugin.errors import ClspError
from clsp_plugin.losses.distributed import world_size
from clsp_plugin.losses.feature_transform import draw_weight, transformed_nt_xent_loss
from clsp_plugin.methods.base import BaseMethod, check_method_kwargs
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.simclr import KWARGS, SimCLR

FT_KWARGS = {"pos_alpha": 2.0, "neg_alpha": 1.6, "mix_start_epoch": 0}


def check_alphas(cfg: DictConfig) -> None:
    """Refuse parameters that no Beta distribution has."""
    for name in ("pos_alpha", "neg_alpha"):
        if not cfg.method_kwargs[name] > 0:
            raise ClspError(f"method_kwargs.{name}={cfg.method_kwargs[name]} must be above 0.")


@register_method("simclr_ft")
class SimCLRFT(SimCLR):
    """SimCLR with extrapolated positives and interpolated negatives.

    See :func:`transformed_nt_xent_loss` for the formula. The weight of the positives is
    1 + Beta(pos_alpha, pos_alpha), that of the negatives Beta(neg_alpha, neg_alpha), each drawn
    once a step, as the authors' code does unless told otherwise. Their code has MoCo alone.
    What we had to guess for SimCLR: negatives are blended with one permutation of all rows of the
    step, and a blend with a part of the anchor's own image is left out, since it would be partly
    a positive. CLSP's table gives its rows no settings: ours are SimCLR's, with the alphas that
    Zhu et al. train with.

    ``method_kwargs``: SimCLR's, ``pos_alpha`` (default 2.0), ``neg_alpha`` (default 1.6),
    ``mix_start_epoch`` (epochs of plain SimCLR before, default 0 as theirs). Extrapolation
    pulls positives harder than negatives push, so from the first step on a training may collapse,
    as ours on ``digits`` did.
    """

    takes_small_crops = False

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        cfg = BaseMethod.add_and_assert_specific_cfg(cfg)
        cfg = check_method_kwargs(cfg, {**KWARGS, **FT_KWARGS})
        check_alphas(cfg)
        return cfg

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
