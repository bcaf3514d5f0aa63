"""A frozen encoder that computes features of images in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.evaluation.encoders import load_encoder
from clsp_plugin.evaluation.features import extract_features

__all__ = ["Encoder", "device_name"]

# The views for an encoder from elsewhere, whose augmentation is not known: SimCLR's, with the
# strengths of the paper.
_VIEW = {
    "rrc": {"enabled": True},
    "color_jitter": {
        "prob": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
    },
    "grayscale": {"prob": 0.2},
    "horizontal_flip": {"prob": 0.5},
}


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Encoder(nn.Module):
    """A frozen backbone for uint8 images, on a GPU if there is one.

    Its features are those of the evaluation, and are returned on the CPU.

    Args:
        encoder: a checkpoint, a run's directory or a network from elsewhere, see
            :func:`~clsp_plugin.evaluation.encoders.load_encoder`.
        data: what the user says of the images, which the authors' checkpoints need.
    """

    def __init__(self, encoder: str | Path, data: Mapping[str, Any] | None = None):
        super().__init__()
        loaded = load_encoder(encoder, data)
        self.backbone, self.args, self.name = loaded.backbone, loaded.args, loaded.name
        self.prepare = loaded.prepare
        self.device = torch.device(device_name())
        self.backbone.eval().to(self.device)
        self.num_features: Any = self.backbone.num_features

    def pipelines(self, size: int) -> list[BatchAugmentation]:
        """Return the augmentations of the first two views.

        Args:
            size: crop size in pixels, for configurations that do not say.
        """
        blocks = [
            block
            for block in self.args.get("augmentations") or [_VIEW]
            for _ in range(int(block.get("num_crops", 1)))
        ]
        configs = [
            AugmentationConfig.from_cfg({"crop_size": self.prepare.image_size or size, **block})
            for block in (blocks * 2)[:2]
        ]
        return [
            BatchAugmentation(config, self.prepare.mean, self.prepare.std) for config in configs
        ]

    @torch.no_grad()
    def views(self, pipeline: BatchAugmentation, images: torch.Tensor, view: int) -> torch.Tensor:
        """Return features of augmented images: uint8 (N, H, W, 3) to float32 (N, D)."""
        keys = keys_for(derive_key(0, Purpose.AUGMENTATION, 0, view), torch.arange(len(images)))
        parts = zip(images.split(256), keys.split(256), strict=True)
        return torch.cat(
            [
                self.backbone(pipeline(part.to(self.device), own.to(self.device))).float().cpu()
                for part, own in parts
            ]
        )

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features of images without augmentation: uint8 (N, 3, H, W) to float32 (N, D)."""
        no_labels = torch.zeros(len(images), dtype=torch.int64)
        array = ImageArray(images.permute(0, 2, 3, 1).cpu(), no_labels, (), self.name)
        features = extract_features(
            self.backbone,
            array,
            mean=self.prepare.mean,
            std=self.prepare.std,
            prepare=self.prepare,
            device=self.device,
            flip=False,
        )
        return features.feats[0]
