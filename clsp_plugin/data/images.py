"""Load labelled images of one size as one uint8 array, from any supported source."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image

from clsp_plugin.data.datasets import DATASETS, IMAGENET, MEAN_STD
from clsp_plugin.data.digits import make_digits
from clsp_plugin.data.folders import (
    has_class_folders,
    to_pixels,
)
from clsp_plugin.data.fraction import part_of
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.image_folder import load_source, squares_of
from clsp_plugin.data.objects import given_images
from clsp_plugin.data.sources.choosing import open_source
from clsp_plugin.errors import ClspError, first_line, nearest

__all__ = [
    "channel_statistics",
    "has_own_split",
    "image_names",
    "load_images",
    "open_images",
    "open_torchvision",
]

_CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_STL10 = "stl10_binary"
_PATHS = "or set data.train_path and data.val_path"


def channel_statistics(
    data: Mapping[str, Any], augmentations: Sequence[Mapping[str, Any]] | None
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel: the configured ones, or the data set's.

    Args:
        data: the configuration's ``data`` block: ``dataset``, and ``mean`` and ``std``, which take
            precedence.
        augmentations: the pipelines; solo-learn has custom ``mean`` and ``std`` in the first one.

    Returns:
        Three numbers each, for pixels in [0, 1].

    Raises:
        ClspError: the values are not three finite numbers each, or a ``std`` is not above 0.
    """
    first = augmentations[0] if augmentations else {}
    defaults = MEAN_STD.get(data["dataset"], IMAGENET)
    out = []
    for name, default in zip(("mean", "std"), defaults, strict=True):
        value = list(data.get(name) or first.get(name) or default)
        numbers = all(type(v) in (int, float) and abs(v) < float("inf") for v in value)
        if len(value) != 3 or not numbers or (name == "std" and min(value) <= 0):
            raise ClspError(f"data.{name}={value} must be three numbers, std above 0.")
        out.append([float(v) for v in value])
    return out[0], out[1]


@overload
def load_images(data: Mapping[str, Any], split: Literal["train"]) -> ImageArray: ...
@overload
def load_images(data: Mapping[str, Any], split: str) -> ImageArray | None: ...
def load_images(data: Mapping[str, Any], split: str) -> ImageArray | None:
    """Load the images that a configuration's ``data`` block names into memory.

    Args:
        data: solo-learn's keys: ``dataset``, ``train_path``, ``val_path``, ``no_labels``,
            ``fraction``; ours: ``image_size`` in pixels, and for ``digits`` ``num_train``,
            ``num_val`` and ``seed``.
        split: ``"train"`` or ``"val"``.

    Returns:
        The images; None if there is no validation set, that is if ``val_path`` of a data set in
        folders is None.

    Raises:
        ClspError: the data set is unknown, a folder is missing, a class is empty, an image is
            corrupt, ``packed`` asks for images on the disk, ...
    """
    images = _open(data, split, packs=False)
    assert images is None or isinstance(images, ImageArray)
    return images


@overload
def open_images(data: Mapping[str, Any], split: Literal["train"]) -> Images: ...
@overload
def open_images(data: Mapping[str, Any], split: str) -> Images | None: ...
def open_images(data: Mapping[str, Any], split: str) -> Images | None:
    """Load images as :func:`load_images` does, or open packed ones where the settings say so.

    Args:
        data: see :func:`load_images`; also ``packed``, ``pack_size``, ``pack_format``,
            ``skip_damaged`` and ``cache``, see ``data.packed.choosing``.
        split: ``"train"`` or ``"val"``.
    """
    return _open(data, split, packs=True)


def _open(data: Mapping[str, Any], split: str, packs: bool) -> Images | None:
    assert split in ("train", "val")
    given, held = given_images(split)
    if given:
        return part_of(held, data) if held is not None and split == "train" else held
    array: ImageArray
    dataset = data["dataset"]
    if dataset not in DATASETS:
        raise ClspError(f"data.dataset={dataset} is not known{nearest(dataset, DATASETS)}")
    if dataset not in ("custom", "imagenet100"):
        _refuse_columns(data)
    if dataset == "digits":
        number = int(data["num_train" if split == "train" else "num_val"])
        if number < 10:
            raise ClspError(
                f"data.num_{split}={number} is too few; digits has 10 classes: give 10 or more."
            )
        size = data.get("image_size") or 32
        if size < 12:
            raise ClspError(f"data.image_size={size} is too small for digits; give 12 or more.")
        images, targets = make_digits(number, split, int(data["seed"]), size)
        array = ImageArray(images, targets, tuple("0123456789"), f"digits/{split}")
    elif dataset in _CIFAR:
        folder = _class_folders_of_cifar(dataset, data, split)
        if folder is not None:
            return load_source(folder, f"{dataset}/{split}", data, packs)
        array = _load_cifar(dataset, data, split)
    elif dataset == "stl10":
        array = _load_stl10(data, split)
    else:
        path = data["train_path"] if split == "train" else data["val_path"]
        if path is None:
            if split == "val":
                return None
            raise ClspError(
                "data.train_path is not set; name the folder of your images, or a list of them."
            )
        return load_source(path, f"{dataset}/{split}", data, packs)
    if data.get("packed"):
        raise ClspError(
            f"data.packed=True is for folders of images and {array.name} is held in memory; leave "
            f"it out."
        )
    return part_of(array, data) if split == "train" else array


def _refuse_columns(data: Mapping[str, Any]) -> None:
    for key in ("image_column", "label_column"):
        if data.get(key) is not None:
            raise ClspError(
                f"data.{key}={data[key]} is for lists, tar shards and data sets of Hugging Face, "
                f"which data.dataset={data['dataset']} is not; leave it out."
            )


def _root(data: Mapping[str, Any], split: str) -> Path:
    """Return the folder in which torchvision keeps its files, or puts them."""
    path = data["train_path"] if split == "train" else (data["val_path"] or data["train_path"])
    return Path(path or "datasets")


def has_own_split(data: Mapping[str, Any]) -> bool:
    """Whether the data set itself, not the user's folders, says which images are for testing."""
    dataset = data["dataset"]
    if dataset in _CIFAR:
        return _cifar_folder(dataset, _root(data, "val"), "val") is None
    return dataset in ("digits", "stl10")


def _cifar_folder(dataset: str, root: Path, split: str) -> Path | None:
    """Return the folder that holds CIFAR's class folders; None for torchvision's files."""
    folders = root / dataset / ("train" if split == "train" else "test")
    if (root / _CIFAR[dataset]).is_dir():
        return None
    if folders.is_dir():
        return folders
    return root if has_class_folders(root) else None


def _class_folders_of_cifar(dataset: str, data: Mapping[str, Any], split: str) -> Path | None:
    """Return :func:`_cifar_folder`; refuse training images in the place of test images."""
    root = _root(data, split)
    folder = _cifar_folder(dataset, root, split)
    if folder == root and split == "val" and data["val_path"] is None:
        raise ClspError(
            f"{root} holds class folders, all of them training images, and no test images are "
            f"named: put them into folders train and test under {root / dataset}, {_PATHS}."
        )
    return folder


def _load_cifar(dataset: str, data: Mapping[str, Any], split: str) -> ImageArray:
    root = _root(data, split)
    source = open_torchvision(
        dataset,
        dataset.upper(),
        root,
        _CIFAR[dataset],
        f"put class folders under {root / dataset}/train and test, {_PATHS}",
        train=split == "train",
    )
    images, targets = torch.from_numpy(source.data), torch.tensor(source.targets)
    return ImageArray(images, targets, tuple(source.classes), f"{dataset}/{split}")


def _load_stl10(data: Mapping[str, Any], split: str) -> ImageArray:
    """Load STL-10's 5,000 labelled and 100,000 unlabelled (-1) images, or the 8,000 for testing.

    They have 96x96 pixels, unless ``image_size`` is set.
    """
    source = open_torchvision(
        "stl10",
        "STL10",
        _root(data, split),
        _STL10,
        f"take images of your own with data.dataset=custom, {_PATHS}",
        split="train+unlabeled" if split == "train" else "test",
    )
    images = source.data.transpose(0, 2, 3, 1)
    if data.get("image_size") not in (None, images.shape[1]):
        images = _resized(images, data["image_size"])
    return ImageArray(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(source.labels.astype(np.int64)),
        tuple(source.classes),
        f"stl10/{split}",
    )


def open_torchvision(
    dataset: str,
    loader: str,
    root: Path,
    folder: str,
    otherwise: str,
    download: bool = True,
    **which: Any,
) -> Any:
    """Open a torchvision data set; it is downloaded if its folder is missing.

    Args:
        dataset: name of the data set, for error messages.
        loader: name of a class of ``torchvision.datasets``.
        root: the folder in which torchvision keeps its files, or puts them.
        folder: the data set's folder below ``root``; if it exists, nothing is downloaded.
        otherwise: what else the user can do, for error messages.
        download: whether torchvision can download the data set.
        which: further arguments of the class.

    Raises:
        ClspError: the data set is missing and cannot be downloaded, or it is incomplete.
    """
    from torchvision import datasets

    present, before = (root / folder).is_dir(), root.exists()
    try:
        return getattr(datasets, loader)(root, download=download and not present, **which)
    except Exception as error:  # reading files and the network may raise anything
        if not present:
            _remove_empty(root, folder, whole=not before)
        what = "is corrupt or incomplete" if present else "was not found and cannot be downloaded"
        raise ClspError(
            f"{dataset} {what} at {root} ({first_line(error)}); put torchvision's {folder} there, "
            f"or {otherwise}."
        ) from error


def _remove_empty(root: Path, folder: str, whole: bool) -> None:
    """Remove the empty folders that a failed download left; ``whole``: including ``root``."""
    parts = Path(folder).parts
    for depth in range(len(parts), -1 if whole else 0, -1):
        with suppress(OSError):
            root.joinpath(*parts[:depth]).rmdir()


def image_names(data: Mapping[str, Any]) -> list[str]:
    """Return the names of the training images, in their order.

    Args:
        data: see :func:`load_images`.

    Returns:
        Of images in folders and lists their paths, with ``/`` and without the suffix, such as
        ``cat/7``; of images in tar files their keys; nothing for others, which go by their number.
    """
    dataset = data["dataset"]
    folder: str | Path | None = None
    if dataset in _CIFAR:
        folder = _cifar_folder(dataset, _root(data, "train"), "train")
    elif dataset in ("custom", "imagenet100"):
        folder = data["train_path"]
    if folder is None:
        return []
    return squares_of(open_source(folder, data, "train"), data, "train").names()


def _resized(images: np.ndarray, image_size: int) -> np.ndarray:
    """Resize and cut images: uint8 (N, H, W, 3) to (N, image_size, image_size, 3)."""
    out = np.empty((len(images), image_size, image_size, 3), np.uint8)

    def resize(number: int) -> None:
        out[number] = to_pixels(Image.fromarray(images[number]), image_size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(resize, range(len(images))):
            pass
    return out
