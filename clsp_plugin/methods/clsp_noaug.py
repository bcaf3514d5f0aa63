"""CLSP-noaug: the candidates are the only positives."""

from typing import Any

from omegaconf import DictConfig

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.simclr import SimCLR
from clsp_plugin.methods.synthetic import with_synthetic_positives

_CLSP: Any = with_synthetic_positives(SimCLR)


@register_method("clsp_noaug")
class ClspNoaug(_CLSP):
    """CLSP-SimCLR without augmentation, a row of CLSP's table (Zeng et al., ECCV 2024).

    The paper gives only the name and the numbers; this is our reading of them. Views 1 and 2 are
    the image itself, and view 3 is a candidate as it is. Views 1 and 2 are equal and cannot be
    pulled closer, so SimCLR's loss can only push different images apart, and the distance to the
    candidate is the only attraction. A configuration with augmentation is refused.
    """

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        cfg = super().add_and_assert_specific_cfg(cfg)
        given = cfg.synthetic.augmentation
        for block in [*cfg.augmentations, *([given] if given else [])]:
            pipeline = AugmentationConfig.from_cfg(block)
            active = [name for name in vars(pipeline) if name.endswith("_prob")]
            active = [name for name in ["crop", *active] if getattr(pipeline, name)]
            if active:
                raise ClspError(
                    f"{cfg.method} trains without augmentation and the configuration has "
                    f"{', '.join(active)}; take augmentations=none.yaml, or method=clsp_simclr."
                )
        return cfg
