"""Shards of encoded candidates: JPEG or WebP images and a table of where each begins.

A shard is a ``.npy`` file of bytes, uint8 (B,), so that it is mapped, digested and replaced like
one of pixels. It holds int64 values and then the images one after another: the number of images n,
the candidates of an image k, and n * k + 1 offsets from the first image's first byte.
"""

import functools
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from clsp_plugin.errors import ClspError

__all__ = ["ENCODINGS", "EncodedShard", "encode_images", "joined", "packed", "threads"]

# Encodings of candidates, and what PIL calls their settings besides the quality.
ENCODINGS: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "optimize": True},
    "webp": {"format": "WEBP", "method": 4},
}
_WORD = np.dtype("<i8")


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="candidates")


def threads() -> ThreadPoolExecutor:
    """Return the threads of this process that encode and decode; a forked process has its own."""
    return _pool(os.getpid())


def encode_images(images: np.ndarray, encoding: str, quality: int) -> list[bytes]:
    """Encode images by threads.

    Args:
        images: uint8 (N, H, W, 3).
        encoding: one of :data:`ENCODINGS`.
        quality: PIL's, 1 to 100.
    """

    def encode(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, quality=quality, **ENCODINGS[encoding])
        return file.getvalue()

    return list(threads().map(encode, images))


def packed(images: Sequence[bytes], number: int) -> np.ndarray:
    """Return the content of a shard: uint8 (B,).

    Args:
        images: the encoded candidates of the first image, of the second, ..
        number: n, the number of images that they belong to.
    """
    sizes = np.array([len(image) for image in images], _WORD)
    head = np.concatenate([[number, len(images) // number, 0], sizes.cumsum()]).astype(_WORD)
    return np.frombuffer(head.tobytes() + b"".join(images), np.uint8)


def joined(before: Sequence[bytes], after: Sequence[bytes], number: int) -> list[bytes]:
    """Append further candidates to those of each of ``number`` images."""
    first, second = len(before) // number, len(after) // number
    return [
        image
        for row in range(number)
        for image in (
            *before[row * first : (row + 1) * first],
            *after[row * second : (row + 1) * second],
        )
    ]


class EncodedShard:
    """A shard that decodes what it is asked for, and is indexed like an array of its pixels.

    Args:
        content: uint8 (B,), see :func:`packed`; memory-mapped.
        shape: (n, K, H, W, 3) as the manifest says; the shard may have fewer candidates.
        broken: makes an error of the sentence that says why the content is damaged.

    Attributes:
        shape: (n, k, H, W, 3).
        nbytes: size in bytes.

    Raises:
        ClspError: the content is not that of such a shard.
    """

    def __init__(
        self, content: np.ndarray, shape: tuple[int, ...], broken: Callable[[str], ClspError]
    ):
        self._content, self._broken = content, broken
        self.nbytes = content.nbytes
        number, candidates = self._words(0, 2).tolist()
        if number != shape[0] or not 1 <= candidates <= shape[1]:
            raise broken(
                f"it is of {number} images with {candidates} candidates, its manifest says "
                f"{shape[0]} with {shape[1]}"
            )
        self.shape = (number, candidates, *shape[2:])
        self._ends = self._words(2, number * candidates + 1)
        self._first = (2 + len(self._ends)) * _WORD.itemsize
        whole = self._first + self._ends[-1] == content.size
        if self._ends[0] != 0 or (np.diff(self._ends) <= 0).any() or not whole:
            raise broken("its table of images is not one")

    def _words(self, start: int, count: int) -> np.ndarray:
        size = _WORD.itemsize
        part = self._content[start * size : (start + count) * size]
        if part.size != count * size:
            raise self._broken(f"it has only {self._content.size} bytes")
        return np.frombuffer(part.tobytes(), _WORD)

    def __len__(self) -> int:
        return self.shape[0]

    def encoded(self, number: int) -> bytes:
        """Return an encoded candidate; they are numbered n * k, image by image."""
        first, last = self._first + self._ends[number], self._first + self._ends[number + 1]
        return self._content[first:last].tobytes()

    def all_encoded(self) -> list[bytes]:
        """Return all encoded candidates, image by image."""
        return [self.encoded(number) for number in range(len(self._ends) - 1)]

    def _decode(self, number: int) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(self.encoded(number))) as image:
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # PIL may raise almost anything on a damaged image
            raise self._broken(f"candidate {number} is damaged: {error}") from error
        if pixels.shape != self.shape[2:]:
            raise self._broken(f"candidate {number} is of {pixels.shape[0]}x{pixels.shape[1]}")
        return pixels

    def __getitem__(self, key: Any) -> np.ndarray:
        """Decode what numpy's index into (n, k) selects, by threads: uint8 (.., H, W, 3)."""
        numbers = np.arange(self.shape[0] * self.shape[1]).reshape(self.shape[:2])[key]
        out = np.empty((numbers.size, *self.shape[2:]), np.uint8)
        for place, pixels in enumerate(threads().map(self._decode, numbers.ravel().tolist())):
            out[place] = pixels
        return out.reshape(*numbers.shape, *self.shape[2:])
