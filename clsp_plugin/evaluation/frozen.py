"""A frozen encoder that computes features of images in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.image_array import ImageArray, squares
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.evaluation.features import extract_features, input_size
from clsp_plugin.records.backbone import load_backbone

__all__ = ["Encoder", "device_name"]


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Encoder(nn.Module):
    """A frozen backbone for uint8 images, on a GPU if there is one.

    Its features are those of the evaluation, and are returned on the CPU.

    Args:
        path: a checkpoint or a run's directory, as the evaluation takes them.
        data: what the user says of the images, which the authors' checkpoints need.
    """

    def __init__(self, path: str | Path, data: Mapping[str, Any] | None = None):
        super().__init__()
        self.backbone, self.args, checkpoint = load_backbone(path, data)
        self.device = torch.device(device_name())
        self.backbone.eval().to(self.device)
        self.mean, self.std = channel_statistics(self.args["data"], self.args.get("augmentations"))
        self.size = input_size(self.args)
        self.name = f"{self.args['method']} ({self.args['backbone']['name']}, {checkpoint.name})"
        self.num_features = self.backbone.num_features

    def pipelines(self, size: int) -> list[BatchAugmentation]:
        """Return the augmentations of the first two views.

        Args:
            size: crop size in pixels, for configurations that do not say.
        """
        blocks = [
            block
            for block in self.args["augmentations"]
            for _ in range(int(block.get("num_crops", 1)))
        ]
        configs = [
            AugmentationConfig.from_cfg({"crop_size": size, **block}) for block in (blocks * 2)[:2]
        ]
        return [BatchAugmentation(config, self.mean, self.std) for config in configs]

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
        pixels = squares(images.permute(0, 2, 3, 1).cpu(), self.size or images.shape[2])
        no_labels = torch.zeros(len(pixels), dtype=torch.int64)
        array = ImageArray(pixels, no_labels, (), self.name)
        features = extract_features(
            self.backbone, array, mean=self.mean, std=self.std, device=self.device, flip=False
        )
        return features.feats[0]
