"""Squares of images in one mapped file, written once: for more of them than fit in memory.

The bytes are those of squares in memory, so fingerprints and candidates are the same. The folder of
a set of squares holds ``squares.npy`` with the pixels and ``digests.npy``. Both grow under the name
``*.part``, the pixels of a part before its digests, and the last part is written anew by who goes
on: so a process may be killed at any time, and the machine too.
"""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from clsp_plugin.data.image_array import ImageArray, image_digest, pixels_sha256
from clsp_plugin.data.packed.decoding import begun_ahead
from clsp_plugin.data.packed.pack import alone
from clsp_plugin.errors import ClspError
from clsp_plugin.system.arrays import map_npy, mapped_tensor, read_npy
from clsp_plugin.system.files import write_text
from clsp_plugin.system.memory import in_bytes
from clsp_plugin.system.progress import Progress

__all__ = ["MappedArray", "open_squares"]

_BINARY = getattr(os, "O_BINARY", 0)  # Windows translates the ends of lines without it
_PART = 128  # images that are written at a time; two more parts are decoded meanwhile
_SQUARES, _DIGESTS, _SHA256 = "squares.npy", "digests.npy", "squares.sha256"
_ADVICE = "delete that folder and give the same command again, which makes the squares anew."


@dataclass(frozen=True)
class MappedArray(ImageArray):
    """Squares on the disk, whose pixels are read when they are asked for.

    Attributes:
        folder: where they are, with what is computed from all of them.
    """

    folder: Path

    @cached_property
    def digests(self) -> np.ndarray:
        return read_npy(self.folder / _DIGESTS, _ADVICE)

    @cached_property
    def sha256(self) -> str:
        kept = self.folder / _SHA256
        if not kept.exists():
            write_text(kept, pixels_sha256(self.images))
        return kept.read_text(encoding="utf-8")


def open_squares(
    folder: Path,
    number: int,
    size: int,
    read: Callable[[int], np.ndarray],
    targets: torch.Tensor,
    classes: tuple[str, ...],
    name: str,
    why: str,
) -> MappedArray:
    """Open the squares of images; they are made, or completed, if they are not there yet.

    Of several processes one makes them and the others wait.

    Args:
        folder: where they are; its name identifies the images and the size.
        number: N, the number of images.
        size: side of the squares in pixels.
        read: reads the square of an image, uint8 (size, size, 3), by its index; called by threads.
        targets, classes, name: see ``ImageArray``.
        why: reason for it, for the line that says what is written where.

    Raises:
        ClspError: an image cannot be read; there is no room or no permission to write; the files
            are damaged.
    """
    squares = _Growing(folder / _SQUARES, (number, size, size, 3))
    digests = _Growing(folder / _DIGESTS, (number, 16))
    if not (squares.path.exists() and digests.path.exists()):
        with alone(folder, f"writes squares to {folder}"):
            _fill(squares, digests, read, why)
    digests.mapped()
    return MappedArray(mapped_tensor(squares.mapped()), targets, classes, name, folder)


class _Growing:
    """A ``.npy`` file of uint8 rows that are written one after another, over several processes."""

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, shape
        self.part = path.with_name(f"{path.name}.part")
        self.row = int(np.prod(shape[1:]))
        head = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, header)
        self.header = head.getvalue()

    @property
    def rows(self) -> int:
        """The number of whole rows there are."""
        if self.path.exists():
            return self.shape[0]
        size = self.part.stat().st_size if self.part.exists() else 0
        return max(0, size - len(self.header)) // self.row

    def mapped(self) -> np.ndarray:
        """Map the whole file; refuse one that is of other images."""
        array = map_npy(self.path, _ADVICE)
        if array.dtype != np.uint8 or array.shape != self.shape:
            raise ClspError(
                f"{self.path} holds {array.dtype} {array.shape}, not uint8 {self.shape}; {_ADVICE}"
            )
        return array

    @contextmanager
    def opened(self, row: int) -> Iterator[BinaryIO]:
        """Open the file to write from a row on.

        Nothing is cut off: where a file system has no locks another process may be writing too, and
        then both write the same bytes to the same places.
        """
        with open(os.open(self.part, os.O_RDWR | os.O_CREAT | _BINARY, 0o666), "r+b") as file:
            file.write(self.header)
            file.seek(len(self.header) + row * self.row)
            yield file

    def finish(self) -> None:
        """Give the file its name, unless another process did."""
        with suppress(FileNotFoundError):
            os.replace(self.part, self.path)


def _fill(
    squares: _Growing, digests: _Growing, read: Callable[[int], np.ndarray], why: str
) -> None:
    """Write what is missing, under the folder's lock."""
    number, size = squares.shape[:2]
    rows = min(squares.rows, digests.rows)
    named = squares.path.exists() or digests.path.exists()
    if not (named and rows == number):  # else it was killed between the names of the two
        done = 0 if named else max(0, rows // _PART - 1) * _PART
        folder = squares.path.parent
        _check_room((number - squares.rows) * squares.row, folder)
        print(
            f"Writing {number} squares of {size} pixels to {folder} "
            f"({in_bytes(number * squares.row)}; {why})."
        )
        with (
            squares.opened(done) as pixels,
            digests.opened(done) as known,
            Progress(total=number, initial=done, desc="squares", unit="image") as bar,
        ):
            for part, own in _parts(done, number, size, read):
                for file, array in ((pixels, part), (known, own)):
                    file.write(array.data)
                    file.flush()
                    os.fsync(file.fileno())
                bar.update(len(part))
    for grown in (squares, digests):
        grown.finish()


def _check_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ClspError(
            f"The squares need {in_bytes(needed)} and there are {in_bytes(free)} free at {folder}; "
            f"make room, set data.cache=DIR, or a smaller data.image_size."
        )


def _parts(
    start: int, number: int, size: int, read: Callable[[int], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield squares and their digests, a part after another; the next ones are read meanwhile."""

    def begin(
        rows: range, pool: ThreadPoolExecutor
    ) -> tuple[tuple[np.ndarray, np.ndarray], list[Future]]:
        squares = np.empty((len(rows), size, size, 3), np.uint8)
        digests = np.empty((len(rows), 16), np.uint8)

        def work(place: int) -> None:
            squares[place] = read(rows[place])
            digests[place] = image_digest(squares[place])

        return (squares, digests), [pool.submit(work, place) for place in range(len(rows))]

    parts = (range(first, min(first + _PART, number)) for first in range(start, number, _PART))
    yield from begun_ahead(parts, begin)
