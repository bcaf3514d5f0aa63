"""A folder of images, with one folder inside for each class unless there are no labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clsp_plugin.data.folders import EXTENSIONS, class_folders, image_files
from clsp_plugin.data.imagenet100 import IMAGENET100
from clsp_plugin.data.sources.source import Source, without_labels
from clsp_plugin.errors import ClspError

__all__ = ["from_folder", "some_files"]


def from_folder(root: Path, data: Mapping[str, Any]) -> Source:
    """Return the images of class folders, or with ``no_labels`` all images in a folder.

    Raises:
        ClspError: a class is empty, there are no class folders, a link is broken, ...
    """
    if data.get("no_labels", False):
        files = some_files(root)
        targets, classes = without_labels(len(files))
    else:
        only = IMAGENET100 if data["dataset"] == "imagenet100" else ()  # out of all of ImageNet
        files, numbers, classes = class_folders(root, only)
        targets = torch.tensor(numbers)

    def names() -> list[str]:
        return [Path(file).relative_to(root).with_suffix("").as_posix() for file in files]

    return Source(str(root), root, files, targets, classes, names)


def some_files(root: Path) -> list[str]:
    """Return the images under a folder; refuse a folder that has none."""
    files = image_files(root)
    if not files:
        raise ClspError(f"{root} holds no images ({', '.join(sorted(EXTENSIONS))}).")
    return files
