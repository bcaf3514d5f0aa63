"""Labelled data sets that features are transferred to, as torchvision keeps them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from clsp_plugin.data.folders import reading, to_pixels
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import open_torchvision
from clsp_plugin.data.splits import load_splits
from clsp_plugin.errors import ClspError, nearest

__all__ = ["DOWNSTREAM", "Downstream", "ImageStream", "load_downstream", "to_fetch"]


@dataclass(frozen=True)
class _Source:
    """A class of torchvision's, and how the field uses it.

    Attributes:
        loader: the class's name.
        folder: below ``data.path``, without which the data set counts as absent.
        metric: ``top1``, or ``mean_class``, the mean over classes of their top-1.
        parts: ours to the arguments that make it. ``all`` has no split of its own.
        by_hand: what of it a person has to fetch where torchvision cannot, below the first part
            of ``folder``; none: torchvision can.
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
DOWNSTREAM = tuple(sorted((*_SOURCES, *_IN_MEMORY)))


class ImageStream(Dataset):
    """Images of any size that are read as they are needed, each as a square.

    An item is pixels, uint8 (size, size, 3), the class number, and what is wrong with the image:
    empty, or a sentence for people.

    Args:
        source: a data set of torchvision's, of pairs (image of PIL's, class number).
        size: in pixels; see ``folders.to_pixels``.
        name: of the data set and its part, for people.
        identity: what names the images.
    """

    def __init__(self, source: Any, size: int, name: str, identity: "_Folder"):
        self.source, self.size, self.name, self.identity = source, size, name, identity

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        def read() -> tuple[torch.Tensor, int]:
            image, target = self.source[index]
            return torch.from_numpy(to_pixels(image, self.size).copy()), int(target)

        try:
            return *reading(self._path(index), read), ""
        except ClspError as error:  # raised by whoever collects: from a worker it has a traceback
            return torch.zeros(self.size, self.size, 3, dtype=torch.uint8), -1, str(error)

    @property
    def key(self) -> dict[str, Any]:
        """What names the images and their order, without reading them."""
        return {"name": self.name, "files": self.identity.fingerprint}

    def _path(self, index: int) -> str:
        """The image's file where the source tells, for people."""
        for name in ("_images", "_image_files", "_samples"):
            files = getattr(self.source, name, None)
            if files:
                found = files[index]
                return str(found[0] if isinstance(found, tuple) else found)
        return f"Image {index} of {self.name}"


class _Folder:
    """The state of a data set's files: paths, sizes, times of change."""

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
    """A data set to transfer to.

    Attributes:
        name: in ``DOWNSTREAM``.
        metric: ``top1``, or ``mean_class``, the mean over classes of their top-1.
        parts: ``train`` and ``test``, with ``val`` where one is customary; or ``all``, for one
            that has no split of its own.
        partition: of the official ones, where there are several.
    """

    name: str
    metric: str
    parts: Mapping[str, ImageArray | ImageStream] = field(default_factory=dict)
    partition: int | None = None


def load_downstream(name: str, root: Path, size: int, partition: int = 1) -> Downstream:
    """Open a data set in torchvision's format, downloaded where its folder is not there.

    Caltech-101 is torchvision's 101 classes, without the background images. CIFAR may lie in
    class folders too.

    Args:
        name: in ``DOWNSTREAM``.
        root: where torchvision keeps, or puts, its folders.
        size: of a square in pixels; the shorter side is resized to it, bicubic, and the centre
            is cut out.
        partition: of DTD, 1 to 10.

    Raises:
        ClspError: an unknown name; neither disk nor network has it, or it is not complete.
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
        parts[part] = ImageStream(opened, size, label, identity)
    return Downstream(name, source.metric, parts, own.get("partition"))


def to_fetch(name: str, root: Path) -> str | None:
    """What a person has to fetch before a data set can be opened, and where to put it.

    Args:
        name: in ``DOWNSTREAM``.
        root: see :func:`load_downstream`.

    Returns:
        A sentence; None where all is there, or torchvision can download it.
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
    except ClspError as error:  # it names the keys of another verb
        text = str(error).replace("data.train_path and data.val_path", "data.path")
        raise ClspError(text) from error
    assert test is not None  # CIFAR has test images
    return {"train": train, "test": test}
