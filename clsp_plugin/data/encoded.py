"""Encoded images that are no files of their own: members of archives, rows of tables."""

import io
import os
from abc import ABC, abstractmethod
from pathlib import Path

__all__ = ["Encoded", "ImageFile", "content_of", "openable", "state_of"]


class Encoded(ABC):
    """An encoded image in something larger; ``str`` names it for people."""

    __slots__ = ()

    @abstractmethod
    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            ClspError: there is none.
            OSError: what holds it cannot be read.
        """

    @property
    @abstractmethod
    def state(self) -> bytes:
        """What changes when the image does, found without reading it."""


ImageFile = str | Encoded


def openable(file: ImageFile | Path) -> str | Path | io.BytesIO:
    """Return what Pillow opens: the path, or the content in memory."""
    return io.BytesIO(file.read()) if isinstance(file, Encoded) else file


def content_of(file: ImageFile) -> bytes:
    """Return an encoded image."""
    return file.read() if isinstance(file, Encoded) else Path(file).read_bytes()


def state_of(file: ImageFile, root: str) -> bytes:
    """Return what identifies an image without reading it: of a file name, size, time of change.

    Args:
        file: the image.
        root: folder, with a separator at its end; files in it are named from there.
    """
    if isinstance(file, Encoded):
        return file.state
    status = os.stat(file)
    name = os.fsencode(file.removeprefix(root).replace(os.sep, "/"))
    return b"%s\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns)
