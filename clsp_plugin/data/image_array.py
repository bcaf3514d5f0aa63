"""Images in memory with their labels, and digests that identify them."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F

from clsp_plugin.data.holder import Images

__all__ = ["ImageArray", "fingerprint_of", "image_digest", "pixels_sha256", "squares"]


@dataclass(frozen=True)
class ImageArray(Images):
    """Images held in memory.

    Attributes:
        images: uint8 (N, H, W, 3).
        targets: int64 (N,), class numbers; -1 where there are no labels.
        classes: the names of the classes, in the order of their numbers.
        name: name of the data set, for messages.
    """

    images: torch.Tensor
    targets: torch.Tensor
    classes: tuple[str, ...]
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.images.shape[1:3]
        return height, width

    @cached_property
    def digests(self) -> np.ndarray:
        """Digest of the pixels of each image: uint8 (N, 16), see :func:`image_digest`."""
        return np.stack([image_digest(image) for image in self.images.numpy()])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the images and their order, see :func:`fingerprint_of`."""
        return fingerprint_of(self.digests, *self.size)

    @cached_property
    def sha256(self) -> str:
        """By what a training knows its images again, see :func:`pixels_sha256`."""
        return pixels_sha256(self.images)

    @property
    def form(self) -> dict[str, Any]:
        """Height and width in pixels."""
        return {"height": self.size[0], "width": self.size[1]}

    def anchors(self, height: int, width: int) -> tuple[tuple[int, int], str]:
        """Return the size and the fingerprint of the images as they are."""
        return self.size, self.fingerprint

    def subset(self, indexes: torch.Tensor, name: str) -> "ImageArray":
        return ImageArray(self.images[indexes], self.targets[indexes], self.classes, name)

    def taken(self, indexes: torch.Tensor, size: int) -> "ImageArray":
        return self.subset(indexes, self.name)

    def squared(self, size: int) -> "ImageArray":
        """The images brought to squares of ``size`` pixels, see :func:`squares`."""
        if self.size == (size, size):
            return self
        return ImageArray(squares(self.images, size), self.targets, self.classes, self.name)

    def relabelled(self, targets: torch.Tensor, classes: tuple[str, ...]) -> "ImageArray":
        return replace(self, targets=targets, classes=classes)


def squares(
    images: torch.Tensor, size: int, resize: int | None = None, interpolation: str = "bicubic"
) -> torch.Tensor:
    """Resize the shorter side and cut out the centre: uint8 (N, H, W, 3) to (N, size, size, 3).

    Args:
        images: the images.
        size: side of the result in pixels.
        resize: pixels that the shorter side is brought to, at least ``size``; None for ``size``.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
    """
    if resize in (None, size) and images.shape[1:3] == (size, size):
        return images
    how, antialias = F.InterpolationMode(interpolation), interpolation != "nearest"
    parts = [
        F.center_crop(F.resize(part, [resize or size], how, antialias=antialias), [size])
        for part in images.permute(0, 3, 1, 2).split(1024)
    ]
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous()


def image_digest(image: np.ndarray) -> np.ndarray:
    """Return the BLAKE2b digest of an image's pixels.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        uint8 (16,).
    """
    pixels = np.ascontiguousarray(image).data
    return np.frombuffer(hashlib.blake2b(pixels, digest_size=16).digest(), np.uint8)


def pixels_sha256(images: torch.Tensor) -> str:
    """Return the SHA-256 of the pixels of images in their order, to compare training images by."""
    return hashlib.sha256(images.cpu().contiguous().numpy().data).hexdigest()


def fingerprint_of(digests: np.ndarray, height: int, width: int) -> str:
    """Return the SHA-256 of the images' shape and of their digests (N, 16) in their order."""
    shape = repr((len(digests), height, width, 3)).encode()
    return hashlib.sha256(shape + digests.tobytes()).hexdigest()
