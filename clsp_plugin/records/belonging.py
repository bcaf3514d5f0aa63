"""Find the checkpoints, candidates, reports and images that belong to a record.

A record names paths as its run saw them. The run may have been started from another directory, and
folders may have been moved since. So a path is looked for from the current directory, and then from
every folder above the record. A store is also looked for by the end of its path, since its manifest
identifies it.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsp_plugin.candidates.manifest import MANIFEST
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.foreign import check_literal
from clsp_plugin.config.training import Data
from clsp_plugin.config.typed import typed
from clsp_plugin.data.holder import Images
from clsp_plugin.data.images import open_images
from clsp_plugin.data.sources.choosing import is_there
from clsp_plugin.errors import ClspError
from clsp_plugin.records.checkpoint import epoch_of
from clsp_plugin.records.record import Record, read_index
from clsp_plugin.records.report_types import Report
from clsp_plugin.system.json_files import read_json

__all__ = [
    "check_store",
    "checkpoints_of",
    "images_of",
    "read_reports",
    "reports_of_suites",
    "some_of_each",
    "store_of",
    "store_report",
]

_REPORT = "report.json"
_FETCHED = ("cifar10", "cifar100", "stl10")  # downloaded by torchvision into the named folder


def _located(
    name: str | Path, record: Path, there: Callable[[str], bool] = os.path.exists
) -> Path | None:
    """Return where a path that a record names is now; None if it is nowhere."""
    places = [Path(), *record.resolve().parents]
    return next((place / name for place in places if there(str(place / name))), None)


def _moved(name: str, path: Path, candidates: Mapping[str, Any]) -> Path | None:
    """Find a store that moved with its run: the end of its path, in a folder above the record."""
    ends = [Path(*Path(name).parts[start:]) for start in range(1, len(Path(name).parts))]
    for place in (folder / end for end in ends for folder in path.resolve().parents):
        manifest = CandidateStore(place).manifest if (place / MANIFEST).is_file() else None
        if manifest is not None and _same(vars(manifest), candidates):
            return place
    return None


def checkpoints_of(path: Path, record: Record) -> list[Path]:
    """Return the checkpoints that are left of a run, earliest first."""
    if record.checkpoint is None:
        return []
    last = path.parent / record.checkpoint
    if last.suffix != ".ckpt":  # a file without a run's folder
        return [last] if last.is_file() else []
    return sorted(path.parent.glob("*.ckpt"), key=epoch_of)


def store_of(path: Path, record: Record) -> CandidateStore:
    """Return the candidate store that a run drew from.

    Raises:
        ClspError: the run drew from none, or the store is gone, or another one is in its place.
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
    """Whether two manifests are of one store; its number of candidates may have grown."""
    return all(ours.get(k) == v for k, v in theirs.items() if k != "num_candidates")


def read_reports(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read reports of ``clsp inspect``.

    Args:
        paths: reports, or folders that are searched recursively for ``report.json``.

    Raises:
        ClspError: a path does not exist, or a file is no report.
    """
    out = []
    for path in map(Path, paths):
        if not path.exists():
            raise ClspError(f"{path} does not exist; name a report of `clsp inspect`.")
        for file in sorted(path.rglob(_REPORT)) if path.is_dir() else [path]:
            out.append(_read(file))
    return out


def reports_of_suites(paths: Iterable[str | Path]) -> list[Path]:
    """Return the reports that the suites among some paths made on their stores, if still there."""
    found = (read_index(path) for path in dict.fromkeys(map(Path, paths)))
    return [report for index in found if index for report in index["reports"] if report.is_file()]


def _read(file: Path) -> dict[str, Any]:
    advice = "run that again on the store"
    return {**read_json(file, Report, "a report of `clsp inspect`", advice)}


def store_report(
    path: Path, record: Record, reports: Sequence[Mapping[str, Any]] = ()
) -> Mapping[str, Any]:
    """Return what ``clsp inspect`` reported about the candidates that a run drew from.

    Args:
        path: path of the record.
        record: record of the run.
        reports: reports to look through before the one in the store.

    Raises:
        ClspError: see :func:`store_of`; or there is no report, or it is of another store.
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


def images_of(path: Path, record: Record, split: str) -> Images:
    """Open the ``train`` or ``val`` images of a record's run; nothing is downloaded.

    Raises:
        ClspError: the images are not there.
    """
    own = record.config.get("data") or {}
    check_literal(own, f"data of {path} has")
    data = typed({k: v for k, v in own.items() if k in Data.__dataclass_fields__}, Data)
    for key in ("train_path", "val_path"):
        if data[key] is not None:
            data[key] = str(_located(data[key], path, is_there) or data[key])
    if data.dataset in _FETCHED:
        given = data.train_path if split == "train" else data.val_path or data.train_path
        found = _located(given or "datasets", path)
        if found is None:
            raise ClspError(
                f"The images of {data.dataset} are not in {given or 'datasets'}; go to the folder "
                f"that has them."
            )
        data["train_path" if split == "train" else "val_path"] = str(found)
    array = open_images(data, split)
    if array is None:
        raise ClspError(f"{_who(record)} has no validation images.")
    return array


def check_store(store: CandidateStore, images: Images) -> None:
    """Refuse a store that is for other images.

    Raises:
        ClspError: it is.
    """
    size, fingerprint = images.anchors(store.height, store.width)
    store.check(len(images), *size, fingerprint, images.name)


def some_of_each(array: Images, number: int) -> list[int]:
    """Return indexes of at most ``number`` images, the first of evenly spaced classes.

    With fewer classes than that, or no labels, the images themselves are evenly spaced.
    """
    labels = array.targets.numpy()
    _, firsts = np.unique(labels, return_index=True)
    if len(firsts) < number:
        firsts = np.arange(len(labels))
    places = np.linspace(0, len(firsts) - 1, min(number, len(firsts))).round().astype(int)
    return [int(row) for row in firsts[places]]


def _who(record: Record) -> str:
    return f"{record.method} on {record.dataset}, seed {record.seed}"
