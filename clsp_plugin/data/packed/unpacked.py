"""Photographs that are read where they lie, each time one is needed: for a look, without a pack."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clsp_plugin.data.encoded import ImageFile, openable, state_of
from clsp_plugin.data.folders import reading
from clsp_plugin.data.packed.pack import Packing, encode, named_after, packed_size

__all__ = ["Unpacked"]


class Unpacked:
    """Stands in the place of a ``Pack``: gives the pixels that a raw one would hold.

    Args:
        root: the folder that the files are in; only their names below it identify them.
        files: the images.
        packing: the shorter side that images are brought to.
        cache: folder of packs; only the digests that find candidates are written there.
    """

    def __init__(self, root: Path, files: Sequence[ImageFile], packing: Packing, cache: Path):
        self.root, self.files, self.packing, self.cache = root, files, packing, cache
        self._sizes = np.zeros((len(files), 2), np.int64)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def folder(self) -> Path:
        """The folder of what is kept of these images."""
        digest = hashlib.sha256(self.digests.tobytes()).hexdigest()
        return self.cache / named_after(self.root, digest[:16])

    @property
    def rows(self) -> np.ndarray:
        """The rows that hold an image: all of them, as far as is known."""
        return np.arange(len(self))

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Return height and width of images in pixels, int64 (B, 2), from the heads of the files.

        Raises:
            ClspError: an image cannot be read.
        """
        for row in rows[self._sizes[rows, 0] == 0].tolist():
            self._sizes[row] = self._size(self.files[row])
        return self._sizes[rows]

    def _size(self, file: ImageFile) -> tuple[int, int]:
        def read() -> tuple[int, int]:
            with Image.open(openable(file)) as image:
                return packed_size(image.size, self.packing)

        return reading(str(file), read)

    def pixels(self, row: int) -> torch.Tensor:
        """Read an image: uint8 (H, W, 3).

        Raises:
            ClspError: it is not a readable image, or has more than 8 bits per channel.
        """
        content, height, width = encode(self.files[row], self.packing)
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(height, width, 3)

    @cached_property
    def digests(self) -> np.ndarray:
        """BLAKE2b of what identifies each image without reading it: uint8 (N, 16)."""
        start = os.path.join(self.root, "")
        out = np.zeros((len(self), 16), np.uint8)
        for row, file in enumerate(self.files):
            digest = hashlib.blake2b(state_of(file, start), digest_size=16)
            digest.update(str(self.packing.side).encode())
            out[row] = np.frombuffer(digest.digest(), np.uint8)
        return out
