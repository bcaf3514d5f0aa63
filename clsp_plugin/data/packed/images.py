"""Photographs on the disk, as pre-training and evaluation see them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from clsp_plugin.data.encoded import ImageFile
from clsp_plugin.data.folders import open_image
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray, fingerprint_of, image_digest
from clsp_plugin.data.packed.cutting import Centres
from clsp_plugin.data.packed.pack import Pack
from clsp_plugin.data.packed.unpacked import Unpacked
from clsp_plugin.errors import ClspError
from clsp_plugin.system.arrays import read_npy
from clsp_plugin.system.files import write_whole
from clsp_plugin.system.locks import locked
from clsp_plugin.system.processes import cores
from clsp_plugin.system.progress import Progress

__all__ = ["PackedImages", "customary_resize"]


def customary_resize(size: int) -> int:
    """Return the shorter side that photographs are resized to before ``size`` pixels are cut out.

    256 for 224, as in most evaluations on ImageNet, and in that proportion.
    """
    return round(size * 256 / 224)


@dataclass(frozen=True)
class PackedImages(Images):
    """Labelled images in a pack, decoded when they are needed.

    Attributes:
        pack: the pack, or what reads the images where they lie.
        files: the images that were packed, in the order of the pack.
        rows: int64 (N,), the row in the pack of each image.
    """

    pack: Pack | Unpacked
    files: Sequence[ImageFile]
    rows: np.ndarray
    targets: torch.Tensor
    classes: tuple[str, ...]
    name: str

    @classmethod
    def of(
        cls, pack: Pack | Unpacked, files: Sequence[ImageFile], targets: torch.Tensor,
        classes: tuple[str, ...], name: str,
    ) -> "PackedImages":  # fmt: skip
        """Return the images of a pack, without those that were left out.

        Raises:
            ClspError: none is left.
        """
        rows = pack.rows
        if not len(rows):
            raise ClspError(f"None of the {len(files)} images of {name} can be read.")
        return cls(pack, files, rows, targets[torch.from_numpy(rows)], classes, name)

    @property
    def digests(self) -> np.ndarray:
        """BLAKE2b of the encoded images: uint8 (N, 16)."""
        return self.pack.digests[self.rows]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the encoded images and their order."""
        return fingerprint_of(self.digests, 0, 0)  # their sizes are part of their encoded form

    @property
    def form(self) -> dict[str, Any]:
        return {"packed": self.pack.packing.told}

    def sizes(self, indexes: torch.Tensor) -> np.ndarray:
        """Return height and width of images in pixels, as packed: int64 (B, 2).

        Args:
            indexes: int64 (B,).
        """
        return self.pack.sizes(self.rows[indexes.numpy()])

    def pixels(self, index: int) -> torch.Tensor:
        """Decode an image: uint8 (H, W, 3), of its own size."""
        return self.pack.pixels(int(self.rows[index]))

    def subset(self, indexes: torch.Tensor, name: str) -> "PackedImages":
        return replace(
            self, rows=self.rows[indexes.numpy()], targets=self.targets[indexes], name=name
        )

    def taken(self, indexes: torch.Tensor, size: int) -> ImageArray:
        pixels = self.squares(indexes, size)
        return ImageArray(pixels, self.targets[indexes], self.classes, self.name)

    def relabelled(self, targets: torch.Tensor, classes: tuple[str, ...]) -> "PackedImages":
        return replace(self, targets=targets, classes=classes)

    def squares(
        self, indexes: torch.Tensor, size: int, resize: int | None = None,
        interpolation: str = "bicubic",
    ) -> torch.Tensor:  # fmt: skip
        """Decode images, resize their shorter side and cut out the centre.

        Args:
            indexes: int64 (B,).
            size, resize, interpolation: see ``image_array.squares``.

        Returns:
            uint8 (B, size, size, 3).
        """
        (made,) = Centres(self, size, resize=resize, interpolation=interpolation)([indexes])
        return made

    def anchors(self, height: int, width: int) -> tuple[tuple[int, int], str]:
        """Return the size of candidates and the fingerprint of the images at that size.

        Candidates are made of squares, read from the image files. Their digests are computed the
        first time, which reads all of them, and kept beside the pack.

        Raises:
            ClspError: an image file is not there any more or cannot be read.
        """
        if height != width:
            return (width, width), ""
        return (width, width), fingerprint_of(self._digests_at(width)[self.rows], width, width)

    def _digests_at(self, size: int) -> np.ndarray:
        """Return digests of the image files' squares, for all rows of the pack: uint8 (N, 16)."""
        self.pack.folder.mkdir(parents=True, exist_ok=True)
        kept = self.pack.folder / f"digests-{size}.npy"
        with locked(self.pack.folder, wait=True):  # one process computes them, the others wait
            if kept.exists():
                return read_npy(kept, "delete it, and it is made again.")
            out = np.zeros((len(self.pack), 16), np.uint8)

            def digest(row: int) -> None:
                out[row] = image_digest(open_image(self.files[row], size))

            rows = self.pack.rows.tolist()
            with ThreadPoolExecutor(cores()) as pool:
                desc = f"images at {size} pixels, to find their candidates"
                for _ in Progress(pool.map(digest, rows), desc=desc, total=len(rows), unit="image"):
                    pass
            write_whole(kept, lambda file: np.save(file, out))
        return out
