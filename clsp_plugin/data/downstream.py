"""Labelled data sets for transfer evaluation, in torchvision's format."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from clsp_plugin.data.datasets import DOWNSTREAM
from clsp_plugin.data.folders import reading, to_pixels
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import open_torchvision
from clsp_plugin.data.splits import load_splits
from clsp_plugin.errors import ClspError, nearest

__all__ = ["Downstream", "ImageStream", "load_downstream", "to_fetch"]


@dataclass(frozen=True)
class _Source:
    """A data set class of torchvision and how it is usually evaluated.

    Attributes:
        loader: name of the class.
        folder: its folder below ``data.path``; without it the data set counts as absent.
        metric: ``top1``, or ``mean_class``, the mean over classes of the top-1 of each.
        parts: our name of each part to the arguments of the class that select it; ``all`` is the
            only part of a data set without a split of its own.
        by_hand: files and folders, below the first component of ``folder``, that the user has to
            fetch; empty if torchvision can download the data set.
    """

    loader: str
    folder: str
    metric: str
    parts: Mapping[str, Mapping[str, Any]]
    by_hand: tuple[str, ...] = ()


def _splits(**names: str) -> dict[str, dict[str, Any]]:
    return {part: {"split": name} for part, name in names.items()}


# Metrics as in Kornblith et al., "Do better ImageNet models transfer better?", CVPR 2019.
_SOURCES = {
    "caltech101": _Source(
        "Caltech101", "caltech101/101_ObjectCategories", "mean_class", {"all": {}}
    ),
    "cars": _Source(
        "StanfordCars", "stanford_cars/devkit", "top1",
        _splits(train="train", test="test"),
        by_hand=("cars_train", "cars_test", "devkit", "cars_test_annos_withlabels.mat"),
    ),
    "dtd": _Source("DTD", "dtd/dtd", "top1", _splits(train="train", val="val", test="test")),
    "flowers": _Source(
        "Flowers102", "flowers-102/jpg", "mean_class",
        _splits(train="train", val="val", test="test"),
    ),
    "food101": _Source(
        "Food101", "food-101/images", "top1", _splits(train="train", test="test")
    ),
    "pets": _Source(
        "OxfordIIITPet", "oxford-iiit-pet/images", "mean_class",
        _splits(train="trainval", test="test"),
    ),
    "stl10": _Source("STL10", "stl10_binary", "top1", _splits(train="train", test="test")),
}  # fmt: skip
_IN_MEMORY = ("cifar10", "cifar100")
assert sorted((*_SOURCES, *_IN_MEMORY)) == list(DOWNSTREAM)


class ImageStream(Dataset):
    """Images of any size that are read when they are needed, each as a square.

    An item is the pixels, uint8 (size, size, 3), the class number, and an error message, which is
    empty if the image could be read.

    Args:
        source: a torchvision data set of pairs (PIL image, class number).
        size: side in pixels; see ``folders.to_pixels``.
        name: name of the data set and its part, for messages.
        identity: the data set's files, which identify the images.
        resizing: further arguments of ``folders.to_pixels``.
    """

    def __init__(
        self, source: Any, size: int, name: str, identity: "_Folder",
        resizing: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self.source, self.size, self.name, self.identity = source, size, name, identity
        self.resizing = dict(resizing or {})

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        def read() -> tuple[torch.Tensor, int]:
            image, target = self.source[index]
            return torch.from_numpy(to_pixels(image, self.size, **self.resizing).copy()), int(
                target
            )

        try:
            return *reading(self._path(index), read), ""
        except ClspError as error:  # for the caller to raise: a worker would add a traceback
            return torch.zeros(self.size, self.size, 3, dtype=torch.uint8), -1, str(error)

    @property
    def key(self) -> dict[str, Any]:
        """Values that identify the images and their order, found without reading the images."""
        return {"name": self.name, "files": self.identity.fingerprint, **self.resizing}

    def _path(self, index: int) -> str:
        """Return the image's file for error messages, or its index if the source has no files."""
        for name in ("_images", "_image_files", "_samples"):
            files = getattr(self.source, name, None)
            if files:
                found = files[index]
                return str(found[0] if isinstance(found, tuple) else found)
        return f"Image {index} of {self.name}"


class _Folder:
    """The state of a data set's files: paths, sizes, modification times."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(metadata.version("torchvision").encode())
        for file in sorted(file for file in self.path.rglob("*") if file.is_file()):
            status = file.stat()
            name = file.relative_to(self.path).as_posix()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Downstream:
    """A data set for transfer evaluation.

    Attributes:
        name: one of ``DOWNSTREAM``.
        metric: ``top1``, or ``mean_class``, the mean over classes of the top-1 of each.
        parts: ``train`` and ``test``, with ``val`` if the data set has one; or only ``all``, if it
            has no split of its own.
        partition: number of the official partition, if there are several; otherwise None.
    """

    name: str
    metric: str
    parts: Mapping[str, ImageArray | ImageStream] = field(default_factory=dict)
    partition: int | None = None


def load_downstream(
    name: str,
    root: Path,
    size: int,
    partition: int = 1,
    resizing: Mapping[str, Any] | None = None,
) -> Downstream:
    """Open a data set in torchvision's format; it is downloaded if its folder is missing.

    Caltech-101 is torchvision's 101 classes, without the background images. CIFAR may also be
    given as class folders.

    Args:
        name: one of ``DOWNSTREAM``.
        root: the folder in which torchvision keeps its data sets, or puts them.
        size: side of the square images in pixels: the shorter side is resized to it, bicubic, and
            the centre is cut out. CIFAR is not resized.
        partition: number of DTD's official partition, 1 to 10.
        resizing: further arguments of ``folders.to_pixels``: another size that the shorter side is
            resized to, another interpolation.

    Raises:
        ClspError: the name or the partition is not known, or the data set is incomplete or can
            neither be found nor downloaded.
    """
    if name not in DOWNSTREAM:
        raise ClspError(f"dataset={name} is not known{nearest(name, DOWNSTREAM)}")
    if name in _IN_MEMORY:
        return Downstream(name, "top1", _cifar(name, root))
    if not 1 <= partition <= 10:
        raise ClspError(f"partition={partition} is not one of DTD's, 1 to 10.")
    source = _SOURCES[name]
    own = {"partition": partition} if name == "dtd" else {}
    identity = _Folder(root / source.folder.split("/")[0])
    parts = {}
    for part, which in source.parts.items():
        opened = open_torchvision(
            name, source.loader, root, source.folder, "set data.path to the folder it is in",
            download=not source.by_hand, **which, **own,
        )  # fmt: skip
        label = "/".join([name, *(str(v) for v in {**which, **own}.values())])
        parts[part] = ImageStream(opened, size, label, identity, resizing)
    return Downstream(name, source.metric, parts, own.get("partition"))


def to_fetch(name: str, root: Path) -> str | None:
    """Say what the user has to fetch before a data set can be opened, and where to put it.

    Args:
        name: one of ``DOWNSTREAM``.
        root: see :func:`load_downstream`.

    Returns:
        A sentence; None if nothing is missing or torchvision can download it.
    """
    source = _SOURCES.get(name)
    if source is None:
        return None
    folder = root / source.folder.split("/")[0]
    absent = [part for part in source.by_hand if not (folder / part).exists()]
    if not absent:
        return None
    return (
        f"{name} is not complete and torchvision cannot download it: fetch {', '.join(absent)} of "
        f"{source.loader} and put them in {folder}."
    )


def _cifar(name: str, root: Path) -> dict[str, ImageArray]:
    data = {"dataset": name, "train_path": str(root), "val_path": None}
    try:
        train, test = load_splits(data)
    except ClspError as error:  # its message names the keys of another command
        text = str(error).replace("data.train_path and data.val_path", "data.path")
        raise ClspError(text) from error
    assert test is not None  # CIFAR has test images
    return {"train": train, "test": test}
