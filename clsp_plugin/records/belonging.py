"""What a record's run was made from and left behind, where that is still there.

A record names paths as its run saw them, which may have been started from another directory, and
the folders may have been moved since: they are looked for there, from the current directory, and
beside the record, upwards; a store also by the end of its path, since its manifest tells it apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsp_plugin.candidates.manifest import MANIFEST
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.foreign import check_literal
from clsp_plugin.config.training import Data
from clsp_plugin.config.typed import typed
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import load_images
from clsp_plugin.errors import ClspError
from clsp_plugin.records.checkpoint import epoch_of
from clsp_plugin.records.record import Record
from clsp_plugin.records.report_types import Report
from clsp_plugin.system.json_files import read_json

__all__ = [
    "checkpoints_of",
    "images_of",
    "read_reports",
    "some_of_each",
    "store_of",
    "store_report",
]

_REPORT = "report.json"
_FETCHED = ("cifar10", "cifar100", "stl10")  # by torchvision, into the folder that is named


def _located(name: str | Path, record: Path) -> Path | None:
    """A path that a record names, wherever it is now."""
    places = [Path(), *record.resolve().parents]
    return next((place / name for place in places if (place / name).exists()), None)


def _moved(name: str, path: Path, candidates: Mapping[str, Any]) -> Path | None:
    """A store that was moved together with its run: the end of its path, in a folder above."""
    ends = [Path(*Path(name).parts[start:]) for start in range(1, len(Path(name).parts))]
    for place in (folder / end for end in ends for folder in path.resolve().parents):
        manifest = CandidateStore(place).manifest if (place / MANIFEST).is_file() else None
        if manifest is not None and _same(vars(manifest), candidates):
            return place
    return None


def checkpoints_of(path: Path, record: Record) -> list[Path]:
    """A run's checkpoints that were kept, early ones first."""
    if record.checkpoint is None:
        return []
    last = path.parent / record.checkpoint
    if last.suffix != ".ckpt":  # without a run around it
        return [last] if last.is_file() else []
    return sorted(path.parent.glob("*.ckpt"), key=epoch_of)


def store_of(path: Path, record: Record) -> CandidateStore:
    """The candidates that a run drew from.

    Raises:
        ClspError: it drew from none, or they are not there any more, or others are.
    """
    synthetic = record.config.get("synthetic") or {}
    if record.candidates is None or not synthetic.get("path"):
        raise ClspError(f"{_who(record)} drew from no candidate store.")
    found = _located(synthetic["path"], path) or _moved(synthetic["path"], path, record.candidates)
    if found is None:
        raise ClspError(
            f"The candidate store {synthetic['path']} of {_who(record)} is neither there nor, by "
            f"the end of that path, in a folder above {path}; if runs were moved, move the store "
            f"with them, or make it again with `clsp generate`."
        )
    manifest = CandidateStore(found).manifest
    if manifest is None or not _same(vars(manifest), record.candidates):
        raise ClspError(
            f"The candidate store {found} is not the one that {_who(record)} drew from: their "
            f"manifests differ; put that one back."
        )
    return CandidateStore(found, record.candidates.get("num_candidates"))


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two manifests are of one store, which may have grown to more candidates."""
    return all(ours.get(k) == v for k, v in theirs.items() if k != "num_candidates")


def read_reports(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Reports of ``clsp inspect``.

    Args:
        paths: of them, or folders that are searched for ``report.json``.

    Raises:
        ClspError: a path that does not exist, or a file that is no report.
    """
    out = []
    for path in map(Path, paths):
        if not path.exists():
            raise ClspError(f"{path} does not exist; name a report of `clsp inspect`.")
        for file in sorted(path.rglob(_REPORT)) if path.is_dir() else [path]:
            out.append(_read(file))
    return out


def _read(file: Path) -> dict[str, Any]:
    advice = "run that again on the store"
    return {**read_json(file, Report, "a report of `clsp inspect`", advice)}


def store_report(
    path: Path, record: Record, reports: Sequence[Mapping[str, Any]] = ()
) -> Mapping[str, Any]:
    """What ``clsp inspect`` wrote about the candidates that a run drew from.

    Args:
        path: of the record.
        record: of the run.
        reports: that are looked through before the one in the store.

    Raises:
        ClspError: see :func:`store_of`, or there is no report, or one of another store.
    """
    for report in reports:
        if record.candidates is not None and _same(report["manifest"], record.candidates):
            return report
    file = store_of(path, record).path / "report" / _REPORT
    assert record.candidates is not None
    try:
        report = _read(file)
    except FileNotFoundError as error:
        raise ClspError(
            f"There is no report on {file.parents[1]}; run `clsp inspect` on it."
        ) from error
    if not _same(report["manifest"], record.candidates):
        raise ClspError(f"{file} is about other candidates; run `clsp inspect` on the store again.")
    return report


def images_of(path: Path, record: Record, split: str) -> ImageArray:
    """The images of a record's run: ``train`` or ``val``. Nothing is downloaded.

    Raises:
        ClspError: they are not there.
    """
    own = record.config.get("data") or {}
    check_literal(own, f"data of {path} has")
    data = typed({k: v for k, v in own.items() if k in Data.__dataclass_fields__}, Data)
    for key in ("train_path", "val_path"):
        if data[key] is not None:
            data[key] = str(_located(data[key], path) or data[key])
    if data.dataset in _FETCHED:
        given = data.train_path if split == "train" else data.val_path or data.train_path
        found = _located(given or "datasets", path)
        if found is None:
            raise ClspError(
                f"The images of {data.dataset} are not in {given or 'datasets'}; go to the folder "
                f"that has them."
            )
        data["train_path" if split == "train" else "val_path"] = str(found)
    array = load_images(data, split)
    if array is None:
        raise ClspError(f"{_who(record)} has no validation images.")
    return array


def some_of_each(array: ImageArray, number: int) -> list[int]:
    """The first image of each of so many classes, evenly spaced; of any images without labels."""
    labels = array.targets.numpy()
    _, firsts = np.unique(labels, return_index=True)
    if len(firsts) < number:
        firsts = np.arange(len(labels))
    places = np.linspace(0, len(firsts) - 1, min(number, len(firsts))).round().astype(int)
    return [int(row) for row in firsts[places]]


def _who(record: Record) -> str:
    return f"{record.method} on {record.dataset}, seed {record.seed}"
