"""Which kind of source a path names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clsp_plugin.data.folders import EXTENSIONS
from clsp_plugin.data.imagenet100 import IMAGENET100
from clsp_plugin.data.sources import file_list, hugging_face, tar_shards
from clsp_plugin.data.sources.class_folders import from_folder
from clsp_plugin.data.sources.source import Source
from clsp_plugin.errors import ClspError

__all__ = ["is_there", "open_source"]

_NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet100": 100}
_FILES = (*file_list.SUFFIXES, *hugging_face.SUFFIXES, tar_shards.SUFFIX)
_KINDS = (
    "a folder of class folders, a list of files (.csv, .tsv, .txt), tar shards "
    "('train-{000..010}.tar'), a data set of Hugging Face (hf:NAME, its folder, .parquet or .arrow)"
)


def open_source(path: str | Path, data: Mapping[str, Any], split: str) -> Source:
    """Return the images that a path names, found but not read.

    Args:
        path: a folder of images; a list, see :mod:`~clsp_plugin.data.sources.file_list`; a data set
            of Hugging Face, see :mod:`~clsp_plugin.data.sources.hugging_face`: ``hf:NAME`` or
            ``hf:NAME:CONFIG``, a folder that ``save_to_disk`` wrote, a Parquet or Arrow file or a
            folder of them, each with or without ``@SPLIT`` behind it; tar files, see
            :mod:`~clsp_plugin.data.sources.tar_shards`: one, a folder of them, or names with
            ``{000..010}`` or ``*``.
        data: the configuration's ``data`` block.
        split: ``"train"`` or ``"val"``, which chooses among the splits of a data set.

    Raises:
        ClspError: there is nothing, or something is wrong with it, see the modules.
    """
    dataset = data["dataset"]
    source = _opened(str(path), data, split)
    classes = set(source.classes)
    if dataset == "imagenet100" and classes > IMAGENET100:
        source = source.of_classes(IMAGENET100)
    expected = _NUM_CLASSES.get(dataset)
    if not data.get("no_labels", False) and expected not in (None, len(source.classes)):
        what = "class folders" if Path(path).is_dir() else "classes"
        raise ClspError(
            f"{path} has {len(source.classes)} {what}, {dataset} has {expected} classes; point "
            f"data.train_path and data.val_path at the folders that hold them, or set "
            f"data.dataset=custom."
        )
    return source


def is_there(path: str) -> bool:
    """Whether there is something on the disk at a path as :func:`open_source` takes it."""
    where, _ = _parted(path)
    if where.exists():
        return True
    if where.suffix.lower() != tar_shards.SUFFIX:
        return False
    try:
        return bool(_tars(path))
    except ClspError:
        return False


def _parted(path: str) -> tuple[Path, str]:
    """Return what is on the disk and the name of its split; a name may hold an ``@`` of its own."""
    before, at, behind = path.rpartition("@")
    if at and not Path(path).exists() and Path(before).exists():
        return Path(before), behind
    return Path(path), ""


def _opened(path: str, data: Mapping[str, Any], split: str) -> Source:
    if path.startswith(hugging_face.PREFIX):
        return hugging_face.from_hub(path.removeprefix(hugging_face.PREFIX), data, split)
    where, part = _parted(path)
    if where.is_dir():
        return _from_folder(where, part, data, split)
    suffix = where.suffix.lower()
    if suffix == tar_shards.SUFFIX:
        return tar_shards.from_tars(path, _tars(path), data)
    if not where.exists():
        what = "file" if suffix in _FILES else "image folder"
        # of a run that was started elsewhere, perhaps
        seen_from = "" if where.is_absolute() else f" in {Path.cwd()}"
        raise ClspError(
            f"The {what} {path} does not exist{seen_from}; set data.train_path and data.val_path "
            f"to {_KINDS}."
        )
    if suffix in hugging_face.SUFFIXES:
        return hugging_face.from_files([where], where.parent, str(where), part, data, split)
    if suffix in file_list.SUFFIXES and not part:
        return file_list.from_list(where, data)
    raise ClspError(f"{path} is no source of images; name {_KINDS}.")


def _from_folder(folder: Path, part: str, data: Mapping[str, Any], split: str) -> Source:
    if hugging_face.is_saved(folder):
        return hugging_face.from_saved(folder, part, data, split)
    inside = _only_containers(folder)
    suffixes = {file.suffix for file in inside}
    if len(suffixes) > 1:
        raise ClspError(
            f"{folder} holds {' and '.join(sorted(suffixes))} files; name one kind of them."
        )
    if suffixes == {tar_shards.SUFFIX} and not part:
        return tar_shards.from_tars(str(folder), inside, data)
    if suffixes and suffixes <= set(hugging_face.SUFFIXES):
        return hugging_face.from_files(inside, folder, str(folder), part, data, split)
    if part:
        raise ClspError(f"{folder} is no data set with splits; leave @{part} out.")
    return from_folder(folder, data)


def _only_containers(folder: Path) -> list[Path]:
    """Return the archives and tables in a folder that holds neither folders nor images itself."""
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:  # told when the folder is walked through
        return []
    if any(path.is_dir() or path.suffix.lower() in EXTENSIONS for path in inside):
        folders = [path for path in inside if path.is_dir()]
        # as repositories of the hub are laid out
        return _only_containers(folders[0]) if [f.name for f in folders] == ["data"] else []
    return [path for path in inside if path.suffix in (*hugging_face.SUFFIXES, tar_shards.SUFFIX)]


def _tars(path: str) -> list[Path]:
    """Return the tar files that a path stands for."""
    if Path(path).exists():
        return [Path(path)]
    found: list[Path] = []
    for name in tar_shards.expanded(path):
        whole = Path(name)
        if "*" in whole.name:
            found += sorted(whole.parent.glob(whole.name))
        elif whole.exists():
            found.append(whole)
        else:
            raise ClspError(
                f"{whole} does not exist; correct data.train_path and data.val_path, or put the "
                f"file there."
            )
    if not found:
        raise ClspError(f"There are no files {path}; correct data.train_path and data.val_path.")
    return found
