"""The frozen backbone of a checkpoint, and the cache of its features."""

import hashlib
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clsp_plugin.data.downstream import ImageStream
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.evaluation.cache import FeatureCache, cache_folder
from clsp_plugin.evaluation.features import (
    Features,
    extract_features,
    input_size,
)
from clsp_plugin.system.processes import device_of

__all__ = ["Network"]


class Network:
    """A frozen backbone with everything that its features depend on, and their cache.

    ``size`` is the side in pixels that images are resized to, by default that of the pre-training.
    """

    def __init__(
        self, cfg: DictConfig, backbone, args: dict[str, Any], checkpoint: Path,
        size: int | None = None,
    ):  # fmt: skip
        self.cfg, self.backbone, self.args = cfg, backbone, args
        self.size = size or input_size(args)
        self.mean, self.std = channel_statistics(args["data"], args.get("augmentations"))
        self.device = device_of(cfg.device)
        what = {"backbone": args["backbone"], "mean": self.mean, "std": self.std}
        what |= {"size": self.size, "device": self.device.type}
        self.cache = FeatureCache(cache_folder(checkpoint) if cfg.cache else None, backbone, what)

    def features(self, images: ImageArray | ImageStream, flip: bool, desc: str = "") -> Features:
        """Return the features of labelled images, from the cache if they are there.

        Images in memory are resized to the network's size; ``flip`` adds the mirrored view.
        """

        def key() -> dict[str, Any]:
            if isinstance(images, ImageStream):
                return {**images.key, "size": images.size}
            targets = hashlib.sha256(images.targets.numpy().tobytes()).hexdigest()
            return {"pixels": images.fingerprint, "targets": targets}

        def compute() -> Features:
            array = images
            if isinstance(images, ImageArray):
                array = images.squared(self.size or images.size[0])
            return extract_features(
                self.backbone,
                array,
                mean=self.mean,
                std=self.std,
                batch_size=self.cfg.batch_size,
                device=self.device,
                flip=flip,
                num_workers=min(self.cfg.get("num_workers", 0), os.cpu_count() or 1),
                desc=desc or f"features of {images.name}",
            )

        return self.cache.features(key, 1 + flip, compute)
