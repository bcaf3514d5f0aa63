"""What the rest of the package asks of labelled images, however they are held."""

import hashlib
import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from clsp_plugin.data.image_array import ImageArray

__all__ = ["LABELLED", "Images"]

LABELLED = "[labelled]"  # behind the name of images that some without a label were left out of

S = TypeVar("S", bound="Images")


class Images(ABC):
    """Labelled images: ``ImageArray`` has them in memory, ``PackedImages`` on the disk.

    Indexes, fingerprints and keyed random numbers mean the same for both.

    Attributes:
        targets: int64 (N,), class numbers; -1 where there are no labels.
        classes: the names of the classes, in the order of their numbers.
        name: name of the data set, for messages.
    """

    targets: torch.Tensor
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.targets)

    @property
    @abstractmethod
    def digests(self) -> np.ndarray:
        """Digest of each image: uint8 (N, 16)."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Digest of the images and their order."""

    @property
    @abstractmethod
    def form(self) -> dict[str, Any]:
        """What all images have in common, such as their size, fit for JSON."""

    @abstractmethod
    def anchors(self, height: int, width: int) -> tuple[tuple[int, int], str]:
        """Return size and fingerprint by which a candidate store of that size knows the images.

        Args:
            height: of the candidates, in pixels.
            width: of the candidates, in pixels.
        """

    @abstractmethod
    def subset(self: S, indexes: torch.Tensor, name: str) -> S:
        """Return some of the images, int64 indexes, under another name."""

    @abstractmethod
    def taken(self, indexes: torch.Tensor, size: int) -> "ImageArray":
        """Return some images in memory: as they are, or of packed ones squares of ``size`` pixels.

        Args:
            indexes: int64, on the host.
            size: side of the squares.
        """

    @abstractmethod
    def relabelled(self: S, targets: torch.Tensor, classes: tuple[str, ...]) -> S:
        """Return the same images with other labels."""

    @property
    def identity(self) -> dict[str, Any]:
        """Values that identify the images, their order, classes and labels, fit for JSON.

        Whatever is computed from images with the same identity is the same.

        Returns:
            ``count``; the images' ``form``; ``fingerprint`` of the images; ``classes``, SHA-256 of
            the names of the classes; ``targets``, SHA-256 of the labels.
        """
        names = json.dumps(list(self.classes)).encode()
        return {
            "count": len(self),
            **self.form,
            "fingerprint": self.fingerprint,
            "classes": hashlib.sha256(names).hexdigest(),
            "targets": hashlib.sha256(self.targets.numpy().astype("<i8").tobytes()).hexdigest(),
        }

    def labelled(self: S) -> S:
        """Return the labelled images, or all if none has a label.

        STL-10's training images are partly unlabelled.
        """
        indexes = torch.nonzero(self.targets >= 0)[:, 0]
        whole = len(indexes) in (0, len(self))
        return self if whole else self.subset(indexes, f"{self.name}{LABELLED}")
