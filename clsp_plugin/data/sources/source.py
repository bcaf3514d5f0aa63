"""What every source gives: encoded images in an order, with labels and names."""

import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import torch

from clsp_plugin.data.encoded import Encoded, ImageFile
from clsp_plugin.errors import ClspError, nearest, short

__all__ = [
    "IMAGES",
    "LABELS",
    "Items",
    "Source",
    "column_of",
    "no_images",
    "numbered",
    "without_labels",
]

# Usual names of what holds the image and the label, the first that is there.
IMAGES = ("image", "img", "path", "file", "file_name", "filename", "filepath", "image_path")
LABELS = ("label", "labels", "fine_label", "target", "targets", "class", "cls", "class_name")
_NONE = ("", "-1")  # labels of what has none


@dataclass(frozen=True)
class Source:
    """Labelled images where they come from, not yet decoded.

    Attributes:
        shown: what messages call them.
        root: folder that the names of files are below, by which a pack knows them again.
        files: the images, in their order.
        targets: int64 (N,), class numbers; -1 where there are no labels.
        classes: the names of the classes, in the order of their numbers.
        names: returns the names by which candidates from elsewhere find the images, in their order;
            none if they go by their number.
    """

    shown: str
    root: Path
    files: Sequence[ImageFile]
    targets: torch.Tensor
    classes: tuple[str, ...]
    names: Callable[[], list[str]]

    def of_classes(self, wanted: Collection[str]) -> "Source":
        """Return the images of some classes, numbered in the order of names."""
        classes = tuple(sorted(wanted))
        table = torch.full((len(self.classes) + 1,), -1)
        for number, name in enumerate(classes):
            table[self.classes.index(name)] = number
        targets = table[self.targets]  # index -1 reads the last entry
        found = replace(self, targets=targets, classes=classes)
        return found.part(torch.nonzero(targets >= 0)[:, 0])

    def part(self, rows: torch.Tensor) -> "Source":
        """Return some of the images, int64 indexes, in their order there."""
        wanted = rows.tolist()

        def names() -> list[str]:
            everything = self.names()
            return [everything[row] for row in wanted] if everything else []

        files = [self.files[row] for row in wanted]
        return replace(self, files=files, targets=self.targets[rows], names=names)


class Items(Sequence[Encoded]):
    """Encoded images that are made when they are asked for: there may be millions."""

    @abstractmethod
    def item(self, index: int) -> Encoded:
        """Return an image, ``index`` from 0."""

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        rows = range(len(self))[index]
        return self.item(rows) if isinstance(rows, int) else [self.item(row) for row in rows]


def numbered(
    labels: Sequence[str], where: Callable[[int], str]
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Number the classes in the order of their names; whole numbers in the order of their values.

    Args:
        labels: a name or a number of each image; empty or ``-1`` where it has no label.
        where: returns the name of an image, for messages.

    Returns:
        Class numbers, int64 (N,), and the names of the classes.

    Raises:
        ClspError: a number is below -1.
    """
    found = set(labels).difference(_NONE)
    for label in found:
        if re.fullmatch(r"-\d+", label):
            raise ClspError(
                f"{where(labels.index(label))} has the label {short(label)}; give the name of a "
                f"class, a number from 0, or -1 for an image without a label."
            )
    whole = all(re.fullmatch(r"0|[1-9]\d*", label, re.ASCII) for label in found)
    classes = sorted(found, key=lambda name: (int(name) if whole else 0, name))
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers.get(label, -1) for label in labels]), tuple(classes)


def without_labels(number: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Return class numbers, int64 (number,), and class names of images that have no labels."""
    return torch.full((number,), -1), ()


def column_of(
    what: str, given: str | None, usual: Sequence[str], columns: Collection[str], shown: str
) -> str | None:
    """Return the column of images or labels: the one that is asked for, else one of usual names.

    Args:
        what: ``image`` or ``label``, for the key ``data.image_column`` or ``data.label_column``.
        given: what the user asks for.
        usual: names to look for otherwise; case does not matter.
        columns: the columns that there are.
        shown: what messages call the source.

    Raises:
        ClspError: the column that is asked for does not exist.
    """
    if given is None:
        lower = {column.lower(): column for column in reversed(list(columns))}
        return next((lower[name] for name in usual if name in lower), None)
    if given not in columns:
        raise ClspError(
            f"data.{what}_column={given} is no column of {shown}{nearest(given, columns)}"
        )
    return given


def no_images(shown: str) -> ClspError:
    """Return the error that a source is empty."""
    return ClspError(f"{shown} holds no images; name another one.")
