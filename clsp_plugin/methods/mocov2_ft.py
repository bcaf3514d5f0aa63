"""MoCoV2-FT: MoCo v2+ with transformed features (Zhu et al., ICCV 2021)."""

from dataclasses import dataclass

import torch

from clsp_plugin.losses.feature_transform import draw_weight, extrapolate, interpolate
from clsp_plugin.losses.info_nce import info_nce_loss
from clsp_plugin.methods.mocov2plus import MoCoV2Plus
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.simclr_ft import FeatureTransformKwargs


@register_method("mocov2_ft")
class MoCoV2FT(MoCoV2Plus):
    """MoCo v2+ with extrapolated query and key, and an interpolated queue.

    The weights are drawn as in :class:`SimCLRFT`, anew for each of the two directions of the
    symmetric loss. As in the authors' code, the extrapolated query is also compared with the
    negatives, nothing is normalised again, and the queue takes the keys before extrapolation. The
    authors' MoCo has one direction. CLSP's table gives no settings for this row, so we use the
    symmetric loss of its other MoCoV2 rows.
    """

    weighs_pairs = False

    @dataclass
    class Kwargs(FeatureTransformKwargs, MoCoV2Plus.Kwargs):
        """MoCo v2+'s settings and those of the feature transformation."""

    def contrast(self, query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
        kwargs = self.cfg.method_kwargs
        if self.current_epoch < kwargs.mix_start_epoch:
            return super().contrast(query, key, queue)
        query, key = extrapolate(query, key, 1 + draw_weight(kwargs.pos_alpha))
        order = torch.randperm(queue.shape[1], device=queue.device)
        queue = interpolate(queue.T, order, draw_weight(kwargs.neg_alpha)).T
        return info_nce_loss(query, key, queue, self.temperature)
