"""Data sets of Hugging Face's ``datasets``: of the hub, saved to a folder, Parquet, Arrow."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from clsp_plugin.data.encoded import Encoded
from clsp_plugin.data.sources.source import (
    IMAGES,
    LABELS,
    Items,
    Source,
    column_of,
    no_images,
    numbered,
    without_labels,
)
from clsp_plugin.errors import ClspError, first_line, short
from clsp_plugin.system.json_files import read_json

__all__ = ["PREFIX", "SUFFIXES", "from_files", "from_hub", "from_saved", "is_saved"]

PREFIX = "hf:"
SUFFIXES = (".parquet", ".arrow")
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes
_TESTS = ("validation", "val", "valid", "test")  # what val_path takes, the first that is there


class _Row(Encoded):
    __slots__ = ("index", "rows")

    def __init__(self, rows: "_Rows", index: int):
        self.rows, self.index = rows, index

    def __str__(self) -> str:
        return f"row {self.index} of {self.rows.shown}"

    def read(self) -> bytes:
        value = self.rows.dataset[self.index][self.rows.column] or {}
        if value.get("bytes") is not None:
            return value["bytes"]
        if not value.get("path"):
            raise ClspError(f"{self} holds no image; remove it.")
        return Path(value["path"]).read_bytes()  # images that were not embedded

    @property
    def state(self) -> bytes:
        return b"%s\0%d\n" % (self.rows.state, self.index)


class _Rows(Items):
    """The images of a data set; its column holds encoded images."""

    def __init__(self, dataset: Any, column: str, shown: str, state: bytes):
        self.dataset, self.column, self.shown, self.state = dataset, column, shown, state

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, index: int) -> _Row:
        return _Row(self, index)


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    return any((folder / name).is_file() for name in _SAVED)


def from_hub(name: str, data: Mapping[str, Any], split: str) -> Source:
    """Return the images of a data set that ``datasets`` finds, on the hub or in a folder.

    Args:
        name: ``NAME``, ``NAME:CONFIG``, and behind either ``@SPLIT``, see :func:`from_saved`; a
            split may be a part, such as ``train[:10%]``.
        data: see :func:`from_saved`.
        split: ``"train"`` or ``"val"``.
    """
    datasets = _datasets(PREFIX + name)
    shown = PREFIX + name
    name, _, part = name.partition("@")
    name, _, config = name.partition(":")
    with _told(shown, "check the name and the connection"):
        if not part:
            there = datasets.get_dataset_split_names(name, config or None)
            part = _usual_split(there, split, shown)
        found = datasets.load_dataset(name, config or None, split=part)
    # it says which data set, version, configuration and split, not what was computed of it
    return _source(found, shown, Path(name), found._fingerprint.encode(), data)


def from_saved(folder: Path, part: str, data: Mapping[str, Any], split: str) -> Source:
    """Return the images of a folder that ``save_to_disk`` wrote.

    Args:
        folder: the folder.
        part: name of a split; empty for ``train`` or, of test images, one of the usual names.
        data: the configuration's ``data`` block: ``image_column``, ``label_column``, ``no_labels``.
        split: ``"train"`` or ``"val"``.

    Raises:
        ClspError: ``datasets`` is not installed or cannot read it, the split or a column does not
            exist, the columns of images and labels cannot be told, a label is no class, ...
    """
    datasets = _datasets(str(folder))
    shown = f"{folder}@{part}" if part else str(folder)
    with _told(shown, "save it again"):
        found = datasets.load_from_disk(str(folder))
    part = _part(found, part, split, shown)
    where = folder / part if part else folder
    found = found[part] if part else found
    # not all that is there: what the user computes of the data set is kept there too
    state = read_json(where / "state.json", dict[str, Any], "a data set's", "save it again.")
    names = ["state.json", *(file["filename"] for file in state["_data_files"])]
    return _source(found, shown, folder, _state([where / n for n in names], folder, part), data)


def from_files(
    files: Sequence[Path], folder: Path, shown: str, part: str, data: Mapping[str, Any], split: str
) -> Source:
    """Return the images in Parquet or Arrow files.

    Parquet files are converted by ``datasets``, once, in its own cache.

    Args:
        files: the files; their names say what split each is of, as on the hub.
        folder: the folder that they are in.
        shown: what messages call them.
        part, data, split: see :func:`from_saved`.
    """
    datasets = _datasets(shown)
    shown = f"{shown}@{part}" if part else shown
    with _told(shown, "give files that datasets wrote"):
        found = _opened(datasets, files)
    part = _part(found, part, split, shown)
    return _source(found[part], shown, folder, _state(files, folder, part), data)


def _opened(datasets: Any, files: Sequence[Path]) -> dict[str, Any]:
    """Return the data set of each split."""
    by_split = _by_split(files)
    if files[0].suffix == ".arrow":
        try:  # datasets' own form, which is used where it is
            return {
                part: datasets.concatenate_datasets([datasets.Dataset.from_file(f) for f in own])
                for part, own in by_split.items()
            }
        except Exception:  # the other form of Arrow files; pyarrow raises errors of many types
            pass
    return dict(datasets.load_dataset(files[0].suffix[1:], data_files=by_split))


def _by_split(files: Sequence[Path]) -> dict[str, list[str]]:
    """Return the files of each split, by their names; ``train`` if these say nothing."""
    out: dict[str, list[str]] = {}
    for file in files:
        words = file.stem.lower().replace("_", "-").replace(".", "-").split("-")
        part = next((word for word in words if word in ("train", *_TESTS)), "train")
        out.setdefault(part, []).append(str(file))
    return out


def _datasets(shown: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ClspError(
            f"{shown} is read by Hugging Face's datasets: `pip install 'clsp-plugin[datasets]'`."
        ) from None
    return datasets


@contextmanager
def _told(shown: str, advice: str) -> Iterator[None]:
    """Turn what ``datasets`` raises, of many types, into a sentence."""
    try:
        yield
    except ClspError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # what it raises itself may say little
            cause = cause.__cause__
        raise ClspError(
            f"{shown} cannot be read by Hugging Face's datasets ({short(first_line(cause))}); "
            f"{advice}."
        ) from error


def _part(found: Any, part: str, split: str, shown: str) -> str:
    """Return the split to take, empty for a data set without splits."""
    if not isinstance(found, Mapping):
        if part:
            raise ClspError(f"{shown} has no splits; leave @{part} out.")
        return ""
    if not part:
        return _usual_split(list(found), split, shown)
    if part not in found:
        raise ClspError(f"{shown} has no split {part}, but {', '.join(found)}.")
    return part


def _usual_split(there: Sequence[str], split: str, shown: str) -> str:
    wanted = ("train",) if split == "train" else _TESTS
    usual = next((name for name in wanted if name in there), None)
    if usual is None and len(there) == 1:
        # splits of files whose names say nothing are called train
        usual = there[0]
    if usual is None:
        raise ClspError(
            f"{shown} has the splits {', '.join(there)}; say which one behind the name, such as "
            f"{shown}@{there[0]}."
        )
    return usual


def _state(files: Sequence[Path], folder: Path, part: str) -> bytes:
    digest = hashlib.sha256(part.encode())
    for file in files:
        if file.is_file():
            status = file.stat()
            name = os.fsencode(file.relative_to(folder).as_posix())
            digest.update(b"%s\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
    return digest.hexdigest().encode()


def _source(dataset: Any, shown: str, root: Path, state: bytes, data: Mapping[str, Any]) -> Source:
    if len(dataset) == 0:
        raise no_images(shown)
    features = dataset.features
    image = _image_column(features, data.get("image_column"), shown)
    with _told(shown, f"the column {image} must hold images"):
        images = dataset.with_format(None).select_columns([image])
        images = images.cast_column(image, _datasets(shown).Image(decode=False))
    if data.get("no_labels", False):
        targets, classes = without_labels(len(dataset))
    else:
        column = _label_column(features, data.get("label_column"), shown)
        targets, classes = _labels(dataset, column, lambda row: f"row {row} of {shown}")
    rows = _Rows(images, image, shown, state + image.encode())
    return Source(shown, root, rows, targets, classes, list)  # they go by their number


def _image_column(features: Mapping[str, Any], asked: str | None, shown: str) -> str:
    if asked is None:
        found = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
        if len(found) == 1:
            return found[0]
        if found:
            raise ClspError(
                f"{shown} has the images {', '.join(found)}; set data.image_column to one of them."
            )
    column = column_of("image", asked, IMAGES, features.keys(), shown)
    if column is None:
        raise ClspError(
            f"{shown} has no column of images but {short(', '.join(features))}; set "
            f"data.image_column."
        )
    return column


def _label_column(features: Mapping[str, Any], asked: str | None, shown: str) -> str:
    found = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if asked is None and len(found) == 1:
        return found[0]
    column = column_of(
        "label", asked, LABELS, found if asked is None and found else features, shown
    )
    if column is None:
        raise ClspError(
            f"Which of the columns {short(', '.join(found or features))} of {shown} is the label "
            f"is not clear; set data.label_column, or data.no_labels=True."
        )
    return column


def _labels(
    dataset: Any, column: str, where: Callable[[int], str]
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Return the class numbers, int64 (N,), and the names of the classes."""
    kind = dataset.features[column]
    values = dataset.with_format(None).select_columns([column])[:][column]
    names = getattr(kind, "names", None)
    dtype = getattr(kind, "dtype", None)
    if names is None:
        if not isinstance(dtype, str) or not dtype.startswith(("int", "uint", "string", "large_s")):
            raise ClspError(
                f"The column {column} holds {short(kind)}, and labels are numbers or names of "
                f"classes; set data.label_column, or data.no_labels=True."
            )
        return numbered(["" if value is None else str(value).strip() for value in values], where)
    targets = torch.tensor([-1 if value is None else value for value in values])
    wrong = torch.nonzero((targets < -1) | (targets >= len(names)))[:, 0].tolist()
    if wrong:
        raise ClspError(
            f"{where(wrong[0])} has the label {int(targets[wrong[0]])}, and there are "
            f"{len(names)} classes; a label is a class number from 0, or -1 for none."
        )
    return targets, tuple(names)
