"""Folders of images: which files count as images, and how one is read."""

import os
import stat
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from clsp_plugin.data.encoded import ImageFile, openable
from clsp_plugin.errors import ClspError

__all__ = [
    "EXTENSIONS", "UNREADABLE", "NotReadNow", "check_depth", "class_folders", "has_class_folders",
    "image_files", "open_image", "reading", "to_pixels",
]  # fmt: skip

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
# Folders that operating systems put beside images, with copies or parts of them. Other such files
# and folders begin with a dot: .ipynb_checkpoints, .Trash-1000, ._x.png.
_OF_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
# Pillow's modes of integers above 8 bits and of floats, which its conversion clips to 0 .. 255.
_WIDE = ("I", "F")
# What Pillow raises on files that are damaged, too large or not images; its manual has no list.
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    EOFError, MemoryError, RuntimeError, AssertionError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


class NotReadNow(ClspError):
    """The system did not let an image be read, which says nothing about the image."""


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _OF_SYSTEMS


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not _hidden(name)


def _refuse(error: OSError) -> NoReturn:
    """Raise that a path cannot be read; ``os.walk`` would otherwise skip it without a word."""
    raise ClspError(
        f"{error.filename} cannot be read ({error.strerror or error}); make it readable, or move "
        f"it away."
    ) from error


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder in ``root``, itself included, with its file names; hidden ones left out.

    Links to folders are followed, as torchvision does.
    """
    above: dict[str, list[str]] = {}  # a folder's path to the real paths of it and its parents
    for path, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        trail = [*above.get(os.path.dirname(path), []), os.path.realpath(path)]
        if trail[-1] in trail[:-1]:
            raise ClspError(
                f"{path} leads back to {trail[-1]}, a folder that it is in; remove the link."
            )
        above[path] = trail
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield Path(path), [name for name in files if not _hidden(name)]


def image_files(root: Path) -> list[str]:
    """Return the paths of all images under a folder, in their order as pathlib has it.

    Hidden files and folders are left out; links to folders are followed. For hundreds of thousands
    of files, Path objects would take longer than all else.

    Raises:
        ClspError: a folder cannot be read or contains itself, a link is broken, or something with
            an image's name is not a file.
    """
    found = []
    for folder, files in _walk(root):
        for name in files:
            path = os.path.join(folder, name)
            if _is_image(name):
                _check_file(path)
                found.append(path)
            elif os.path.islink(path):  # perhaps a broken link to a folder of images
                _check_link(Path(path))
    return sorted(found, key=lambda path: os.path.normcase(path).split(os.sep))


def _check_link(path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        raise ClspError(
            f"{path} is a link to what is not there or cannot be reached "
            f"({error.strerror or error}); repair or remove it."
        ) from error


def _check_file(path: str) -> None:
    """Refuse what has an image's name but is not a file; opening a pipe would block forever."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            _check_link(Path(path))
        _refuse(error)
    if not stat.S_ISREG(mode):
        raise ClspError(f"{path} is not a file but a pipe, a socket or a device; remove it.")


def _inside(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the links directly in a folder, hidden ones left out."""
    try:
        inside = sorted(path for path in root.iterdir() if not _hidden(path.name))
    except OSError as error:
        _refuse(error)
    return [path for path in inside if path.is_dir()], [
        path for path in inside if path.is_symlink()
    ]


def has_class_folders(root: Path) -> bool:
    """Whether a folder has subfolders that contain images directly."""
    if not root.is_dir():
        return False
    return any(_is_image(name) for folder in _inside(root)[0] for name in os.listdir(folder))


def class_folders(
    root: Path, only: Collection[str] = ()
) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Return the images of a folder's subfolders, one class each, numbered in the order of names.

    torchvision numbers the classes in the same way.

    Args:
        root: the folder.
        only: names of the subfolders to take, if all of them are there; otherwise, and by default,
            all subfolders are taken.

    Returns:
        The files' paths, their class numbers, and the names of the classes.

    Raises:
        ClspError: as :func:`image_files`, or there are no subfolders, or one has no images.
    """
    folders, links = _inside(root)
    for link in links:
        _check_link(link)
    if not folders:
        raise ClspError(
            f"{root} holds no class folders; put the images of each class into a folder of its "
            f"own, or set data.no_labels=True."
        )
    if only and {folder.name for folder in folders} >= set(only):
        folders = [folder for folder in folders if folder.name in only]
    files: list[str] = []
    targets: list[int] = []
    for number, folder in enumerate(folders):
        inside = image_files(folder)
        if not inside:
            raise ClspError(f"The class folder {folder} holds no images; fill it or remove it.")
        files += inside
        targets += [number] * len(inside)
    return files, targets, tuple(folder.name for folder in folders)


def check_depth(image: Image.Image) -> None:
    """Refuse an image with more than 8 bits per channel, which Pillow would clip or cut.

    Raises:
        ValueError: it has more.
    """
    # of colours, Pillow keeps the upper 8 bits without a word; the file's form is in the tile
    parts = [str(part) for tile in getattr(image, "tile", None) or [] for part in tile[3:]]
    if image.mode.split(";")[0] in _WIDE or any(";16" in part for part in parts):
        raise ValueError(
            f"its mode {image.mode} has more than 8 bits a channel; bring it to 8 bits first"
            if image.mode != "RGB"
            else "it has 16 bits a channel; bring it to 8 bits first"
        )


def to_pixels(
    image: Image.Image,
    image_size: int | None,
    resize: int | None = None,
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Convert an image to uint8 (H, W, 3) as it is stored: EXIF's orientation is not applied.

    Args:
        image: an image of any size, with at most 8 bits per channel.
        image_size: side of a square in pixels; the shorter side is resized to it and the centre
            is cut out. None leaves the size as it is.
        resize: pixels that the shorter side is resized to in place of ``image_size``.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.

    Raises:
        ValueError: the image has more than 8 bits per channel.
    """
    check_depth(image)
    image = image.convert("RGB")
    if image_size:
        scale = (resize or image_size) / min(image.size)
        width, height = (max(image_size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling[interpolation.upper()])
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)


def reading(name: str, read: Callable[[], Any]) -> Any:
    """Call a function that reads an image, and turn Pillow's errors into a ClspError.

    Every image is read through this function.

    Args:
        name: name of the image, for error messages.
        read: the function, called once.

    Returns:
        What ``read`` returns.

    Raises:
        NotReadNow: the system refused, or there was no memory for it.
        ClspError: the image is not readable.
    """
    try:
        return read()
    except ClspError:
        raise
    except UNREADABLE as error:
        # torch's error of memory is a RuntimeError
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise NotReadNow(
                f"There was not enough memory to read {name}; give the same command again when "
                f"there is more."
            ) from error
        # an error of the system, not of Pillow
        if isinstance(error, OSError) and error.errno is not None:
            path = str(error.filename or name)
            which = name if path in name else f"{name} ({path})"
            raise NotReadNow(
                f"{which} cannot be read ({error.strerror}), which says nothing against what is in "
                f"it; see to that, and give the same command again."
            ) from error
        why = str(error).strip() or type(error).__name__
        raise ClspError(f"{name} is not a readable image ({why}); repair or remove it.") from error


def open_image(file: ImageFile | Path, image_size: int | None) -> np.ndarray:
    """Read an encoded image: uint8 (H, W, 3), see :func:`to_pixels`.

    Raises:
        ClspError: it is not a readable image, or has more than 8 bits per channel.
    """

    def read() -> np.ndarray:
        with Image.open(openable(file)) as image:
            return to_pixels(image, image_size)

    return reading(str(file), read)
