"""Results are data: one record a run, with everything a number needs to be believed."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from clsp_plugin.errors import ClspError
from clsp_plugin.records.environment import SOURCE
from clsp_plugin.records.numerics import numerics_of
from clsp_plugin.system.files import locked, write_whole
from clsp_plugin.system.json_files import checked, read_json

__all__ = [
    "FORMAT",
    "INDEX",
    "RECORD",
    "Record",
    "add_evaluation",
    "check_record",
    "evaluated_on",
    "find_records",
    "read_index",
    "record_path",
]

RECORD = "record.json"
INDEX = "records.json"  # of a suite: which records, wherever they lie, its tables are made from
FORMAT = 1
# Fields that came later: a record that was written without them is a record all the same.
_LATER = {"candidates", "images", "source"}
# An evaluation replaces an earlier one that has the same of these, and the same images.
_SAME = ("task", "protocol", "dataset", "epoch")


@dataclass
class Record:
    """A pre-training run and what was measured on it.

    Attributes:
        method: its name in ``METHODS``.
        dataset: that it was pre-trained on.
        backbone: its name.
        epochs: of pre-training.
        seed: of pre-training.
        num_train: images pre-trained on; None where a checkpoint of others does not say.
        checkpoint: path of the last checkpoint, relative to the record; None if none was kept.
        curve: one dict an epoch: ``epoch``, ``train_loss``, ``val_acc1``, ...
        timings: name to seconds.
        hardware: see :func:`environment`.
        versions: see :func:`environment`.
        commit: see :func:`environment`.
        config: the whole configuration.
        evaluations: of ``evaluation.protocol``, each with ``dataset`` (evaluated on), ``epoch``
            (of the checkpoint), ``images`` (see ``evaluation.verbs``), ``numerics`` (see
            ``records.numerics``) and, if a configuration was named, ``source`` besides.
        candidates: the manifest of the candidate store that was drawn from, if one was.
        source: the configuration that was named, see :func:`made_from`; None if none was.
        images: what names the training images, see ``ImageArray.identity``; None if not known.
        format: of the file.
        digest: SHA-256 of everything else; set when saved, checked when loaded.
    """

    method: str
    dataset: str
    backbone: str
    epochs: int
    seed: int
    num_train: int | None
    checkpoint: str | None
    curve: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    candidates: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    images: dict[str, Any] | None = None
    format: int = FORMAT
    digest: str = ""

    def save(self, path: str | Path) -> None:
        """Write the record whole or not at all, and set ``digest``.

        A number that is not finite becomes null: JSON has no other word for it.
        """
        content = _plain(asdict(self))
        self.digest = content["digest"] = _digest(content)
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_whole(Path(path), lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | Path) -> "Record":
        """Read a record.

        Raises:
            ClspError: absent, not a record, of another format, edited by hand, or with a field of
                another type.
            OSError: the system does not let it be read.
        """
        from clsp_plugin.records.record_types import RecordFile

        advice = "restore it, or move it away and give the command again"
        try:
            content = read_json(path, dict[str, Any], "a readable record", advice)
        except FileNotFoundError as error:
            raise ClspError(f"{path} is not a readable record ({error}).") from error
        if "format" not in content:
            raise ClspError(f"{path} is not a record of a run; name a {RECORD}.")
        if content["format"] != FORMAT:
            raise ClspError(
                f"{path} has format {content['format']} and this version of clsp-plugin reads "
                f"{FORMAT}; use the version that wrote it ({_writer(content)})."
            )
        if content.get("digest") != _digest(content):
            raise ClspError(
                f"{path} was edited by hand: its digest does not match its content; restore it or "
                f"run the evaluation again on a record that was not touched."
            )
        names = {field.name for field in fields(cls)}
        other = (set(content) ^ names) - (_LATER - set(content))
        if other:
            raise ClspError(
                f"{path} is not a record of this version; it differs in the fields "
                f"{', '.join(sorted(other))}."
            )
        checked(content, RecordFile, f"{path} is not a record: it has", advice)
        return cls(**content)


def _writer(content: Mapping[str, Any]) -> str:
    versions = content.get("versions")
    known = isinstance(versions, dict) and versions.get("clsp_plugin")
    return f"clsp-plugin {known}" if known else "its version is not recorded"


def _plain(value: Any) -> Any:
    """What JSON gives back after writing ``value``; NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a scalar of torch or NumPy
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces) of all but the digest."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def check_record(path: Path) -> None:
    """Look at a record before the work whose outcome is put into it.

    Args:
        path: of it; there may be none yet.

    Raises:
        ClspError: see :meth:`Record.load`.
    """
    if path.exists():
        Record.load(path)


def add_evaluation(
    path: str | Path,
    evaluation: Mapping[str, Any],
    make: Callable[[], Record] | None = None,
    num_train: int | None = None,
) -> Record:
    """Put an evaluation into a record on disk.

    One of the same task, protocol, data set, epoch and images is replaced; others stay. Evaluations
    of one run that end at the same time do not lose each other, the first two neither.

    Args:
        path: of the record.
        evaluation: as ``Record.evaluations`` holds them.
        make: the record of a checkpoint that came without one.
        num_train: images pre-trained on, for a record that does not say.

    Returns:
        The new record.

    Raises:
        ClspError: see :meth:`Record.load`.
    """
    path = Path(path)
    assert all(key in evaluation for key in _SAME), f"an evaluation has {', '.join(_SAME)}"
    versions = numerics_of(evaluation["task"], evaluation["dataset"])
    evaluation = {**_plain(evaluation), "numerics": versions}
    if SOURCE.get() is not None:
        evaluation["source"] = SOURCE.get()
    with locked(path.parent, wait=True):
        record = make() if make is not None and not path.exists() else Record.load(path)
        if record.num_train is None:
            record.num_train = num_train
        kept = [e for e in record.evaluations if not _replaces(evaluation, e)]
        record.evaluations = [*kept, _told_apart(evaluation, kept)]
        record.save(path)
    return record


def _replaces(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    if any(new[key] != old.get(key) for key in _SAME):
        return False
    if None in (new.get("images"), old.get("images")):  # of a version that did not note them
        return all(new.get(key) == old.get(key) for key in ("num_train", "num_test"))
    return _images(new) == _images(old)


def _images(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What names an evaluation's images; ``part`` says it to people."""
    return {key: value for key, value in evaluation["images"].items() if key != "part"}


def _told_apart(new: dict[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An evaluation that tables can tell from others: of the same folders with other content."""
    alike = [e for e in others if all(e.get(key) == new[key] for key in _SAME)]
    if new.get("images") is None or evaluated_on(new) not in map(evaluated_on, alike):
        return new
    content = json.dumps(_images(new), sort_keys=True).encode()
    mark = f"images {hashlib.sha256(content).hexdigest()[:8]}"
    parts = [part for part in (new["images"].get("part"), mark) if part]
    return {**new, "images": {**new["images"], "part": ", ".join(parts)}}


def evaluated_on(evaluation: Mapping[str, Any]) -> str:
    """The data set that an evaluation is of, for people: ``custom [data.fraction=0.5]``.

    What is in brackets tells its images from the pre-training's; there are none where they are
    the same.
    """
    part = (evaluation.get("images") or {}).get("part")
    return f"{evaluation['dataset']} [{part}]" if part else evaluation["dataset"]


def record_path(checkpoint: Path) -> Path:
    """Where the record of a checkpoint is: one a run, and one a file that is without a run."""
    if checkpoint.suffix == ".ckpt":
        return checkpoint.parent / RECORD
    return checkpoint.with_suffix(f".{RECORD}")


def find_records(paths: Iterable[str | Path]) -> list[tuple[Path, Record]]:
    """Load records, each once, in the order of ``paths`` and by name inside a directory.

    Args:
        paths: records, or directories. One of a suite stands for the records that its
            ``records.json`` names; any other is searched recursively for ``record.json`` and
            ``*.record.json``.

    Raises:
        ClspError: a path that does not exist, no record at all, or one that cannot be read.
    """
    places = [Path(path) for path in paths]
    found: dict[Path, Path] = {}
    for path in places:
        if not path.exists():
            raise ClspError(f"{path} does not exist; name a {RECORD} or a directory of runs.")
        for file in _files(path):
            found.setdefault(file.resolve(), file)
    if not found:
        raise ClspError(
            f"There is no {RECORD} under {', '.join(map(str, places)) or 'no path'}; name the "
            f"directory of a run that `clsp pretrain` finished."
        )
    return [(file, Record.load(file)) for file in found.values()]


def _files(path: Path) -> list[Path]:
    index = read_index(path)
    if index is not None:
        return [file for file, _ in index["records"]]
    if not path.is_dir():
        return [path]
    walked = os.walk(path, onerror=_raise)  # which else passes over what it may not read
    return sorted(
        Path(folder, name)
        for folder, folders, files in walked
        for name in (*folders, *files)  # a folder in a record's place is told when it is read
        if name.endswith(RECORD)
    )


def _raise(error: OSError) -> None:
    raise error


def read_index(path: Path) -> dict[str, Any] | None:
    """The index of a suite's directory.

    Args:
        path: of the directory, or of its ``records.json``.

    Returns:
        ``by``, the settings that tell its rows apart; ``records``: of each its path and what
        the suite says of it, ``variant`` and ``point``; ``failed``: what it says of the runs that
        have none. None where there is no index.

    Raises:
        ClspError: it cannot be read, or names a record that is not there any more.
    """
    file = path / INDEX if path.is_dir() else path
    if file.name != INDEX or not file.is_file():
        return None
    content = _index_file(file)
    records = [
        (Path(os.path.normpath(file.parent / about.pop("path"))), about)
        for about in content["records"]
    ]
    index = {"by": content["by"], "records": records, "failed": content.get("failed", [])}
    for record, _ in records:
        if not record.is_file():
            raise ClspError(
                f"{file} names {record}, which is not there any more; the suite's `clsp bench` "
                f"makes what is missing."
            )
    return index


def _index_file(file: Path) -> dict[str, Any]:
    from clsp_plugin.records.record_types import IndexFile

    content = read_json(file, IndexFile, "the index of a suite", "`clsp bench` writes it anew")
    return {**content}
