"""Which images a folder holds: those of torchvision's ``ImageFolder``, and none silently not.

Links to folders are followed on every level. What tools leave beside images is left out on every
level: names that begin with a dot (``.ipynb_checkpoints``, ``.Trash-1000``, ``._a.png``) and those
of ``_LITTER``.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from clsp_plugin.errors import ClspError

__all__ = ["EXTENSIONS", "class_folders", "has_class_folders", "image_files"]

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
# of macOS' archives, Synology's thumbnails, Windows, ext4
_LITTER = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def class_folders(root: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """The images of class folders, sorted by class and path, with the numbers of their classes.

    Returns:
        Files, a class number for each, and the names of the classes in the order of their numbers.

    Raises:
        ClspError: no class folder, one without images, or see :func:`image_files`.
    """
    folders = sorted((f for f in _entries(root) if f.is_dir()), key=lambda folder: folder.name)
    if not folders:
        raise ClspError(
            f"{root} holds no class folders; put the images of each class into a folder of its "
            f"own, or set data.no_labels=True."
        )
    files, targets = [], []
    for number, folder in enumerate(folders):
        inside = sorted(_walk(folder))
        if not inside:
            raise ClspError(f"The class folder {folder} holds no images; fill it or remove it.")
        files += inside
        targets += [number] * len(inside)
    return files, targets, tuple(folder.name for folder in folders)


def has_class_folders(root: Path) -> bool:
    """Whether a folder inside ``root`` has an image in it, directly."""
    if not root.is_dir():
        return False
    folders = [entry for entry in _entries(root) if entry.is_dir()]
    return any(_is_image(file) for folder in folders for file in _entries(folder))


def image_files(root: Path) -> list[Path]:
    """All images under a folder, on every level, in the order of their paths.

    Raises:
        ClspError: no images, a folder that cannot be read, a link that leads nowhere or round in
            a circle, or a pipe, socket or device that is named like an image.
    """
    files = sorted(_walk(root))
    if not files:
        raise ClspError(f"{root} holds no images ({', '.join(sorted(EXTENSIONS))}).")
    return files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, without what tools leave there."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ClspError(
            f"The folder {folder} cannot be read ({error.strerror}); make it readable or move it "
            f"out of the images."
        ) from error
    return [folder / name for name in names if not name.startswith(".") and name not in _LITTER]


def _walk(root: Path) -> Iterator[Path]:
    """The images under a folder, in no order. A stack, since folders may lie deeper than calls."""
    todo: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while todo:
        folder, above = todo.pop()
        here = _status(folder)
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            raise ClspError(
                f"{folder} is a link to a folder that it lies in, so that its images have no end; "
                f"remove the link."
            )
        for entry in _entries(folder):
            mode = _status(entry).st_mode
            if stat.S_ISDIR(mode):
                todo.append((entry, above | {identity}))
            elif not _is_image(entry):
                continue
            elif stat.S_ISREG(mode):
                yield entry
            else:
                raise ClspError(f"{entry} is not a file but a pipe, socket or device; remove it.")


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise ClspError(
            f"{path} is a link to {os.readlink(path)}, which is not there; mend or remove the link."
            if path.is_symlink()
            else f"{path} was removed while the images were listed; start again."
        ) from error
    except OSError as error:
        raise ClspError(f"{path} cannot be read ({error.strerror}); mend or remove it.") from error
