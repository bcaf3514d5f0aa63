"""A frozen encoder under an evaluation's settings, and the cache of its features."""

import hashlib
import os
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from clsp_plugin.data.downstream import ImageStream
from clsp_plugin.data.holder import Images
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.cache import FeatureCache
from clsp_plugin.evaluation.encoders import Frozen
from clsp_plugin.evaluation.features import (
    Features,
    extract_features,
)
from clsp_plugin.system.processes import device_of

__all__ = ["Network"]


class Network:
    """A frozen encoder with everything that its features depend on, and their cache.

    ``size`` is the side in pixels that images are resized to, by default the encoder's own.
    """

    def __init__(self, cfg: DictConfig, encoder: Frozen, size: int | None = None):
        self.cfg, self.encoder = cfg, encoder
        self.prepare = encoder.prepare
        if size not in (None, self.prepare.image_size):
            self.prepare = replace(self.prepare, image_size=size, resize=None)
        self.device = device_of(cfg.device)
        what = {"backbone": encoder.args["backbone"], "mean": list(self.prepare.mean)}
        what |= {"std": list(self.prepare.std), "size": self.size, "device": self.device.type}
        what |= self.prepare.resizing
        folder = encoder.features if cfg.cache else None
        self.cache = FeatureCache(folder, encoder.backbone, what)

    @property
    def size(self) -> int | None:
        """Side in pixels of the images that the network is given; None for images as they are."""
        return self.prepare.image_size

    def features(self, images: Images | ImageStream, flip: bool, desc: str = "") -> Features:
        """Return the features of labelled images, from the cache if they are there.

        Images in memory and packed ones are resized to the network's size; ``flip`` adds the
        mirrored view.

        Raises:
            ClspError: packed images have several sizes, and the network's is not known.
        """
        if isinstance(images, PackedImages) and self.size is None:
            raise ClspError(
                f"It is not known at which size the network was trained, and the images of "
                f"{images.name} have several; set data.image_size=PIXELS."
            )

        def key() -> dict[str, Any]:
            if isinstance(images, ImageStream):
                return {**images.key, "size": images.size}
            targets = hashlib.sha256(images.targets.numpy().tobytes()).hexdigest()
            return {"pixels": images.fingerprint, "targets": targets}

        def compute() -> Features:
            return extract_features(
                self.encoder.backbone,
                images,
                mean=self.prepare.mean,
                std=self.prepare.std,
                prepare=self.prepare,
                batch_size=self.cfg.batch_size,
                device=self.device,
                flip=flip,
                num_workers=min(self.cfg.get("num_workers", 0), os.cpu_count() or 1),
                desc=desc or f"features of {images.name}",
            )

        return self.cache.features(key, 1 + flip, compute)
