"""The record of a run: a JSON file with its results and all that is needed to trust them."""

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
from clsp_plugin.system.files import write_whole
from clsp_plugin.system.json_files import checked, read_json
from clsp_plugin.system.locks import locked

__all__ = [
    "ELSEWHERE",
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
INDEX = "records.json"  # of a suite: lists the records that its tables show
FORMAT = 1
# Stands for the data set of an encoder that was not trained here, see ``evaluation.encoders``.
ELSEWHERE = "elsewhere"
# Fields that were added later: a record without them is valid.
_LATER = {"candidates", "images", "source"}
# An evaluation replaces an earlier one that agrees in these keys and in the images.
_SAME = ("task", "protocol", "dataset", "epoch")


@dataclass
class Record:
    """A pre-training run and what was measured on it.

    Attributes:
        method: name of the method in ``METHODS``; of an encoder from elsewhere its own name, such
            as ``timm:resnet18``.
        dataset: name of the data set pre-trained on, or ``ELSEWHERE``.
        backbone: name of the backbone.
        epochs: number of epochs of pre-training.
        seed: seed of pre-training.
        num_train: number of images pre-trained on; None where a foreign checkpoint does not say.
        checkpoint: path of the last checkpoint, relative to the record; None if none was kept.
        curve: one dict per epoch: ``epoch``, ``train_loss``, ``val_acc1``, ...
        timings: name to seconds, and ``images_per_second``.
        hardware: see :func:`environment`.
        versions: see :func:`environment`.
        commit: see :func:`environment`.
        config: the whole configuration.
        evaluations: results of ``evaluation.protocol``, each with the further keys ``dataset``
            (evaluated on), ``epoch`` (of the checkpoint), ``images`` (see ``evaluation.verbs``),
            ``numerics`` (see ``records.numerics``) and, if a configuration was named, ``source``.
        candidates: manifest of the candidate store that the run drew from; None if it drew from
            none.
        source: the configuration that was named, see :func:`made_from`; None if none was.
        images: identity of the training images, see ``ImageArray.identity``; None if not known.
        format: version of the file format.
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

    @property
    def from_elsewhere(self) -> bool:
        """Whether it is of an encoder that was not trained here."""
        return self.dataset == ELSEWHERE

    def save(self, path: str | Path) -> None:
        """Write the record whole or not at all, and set ``digest``.

        Numbers that are not finite become null, since JSON has no such numbers.
        """
        content = _plain(asdict(self))
        self.digest = content["digest"] = _digest(content)
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_whole(Path(path), lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | Path) -> "Record":
        """Read a record.

        Raises:
            ClspError: the file is absent, not a record, of another format, edited by hand, or has a
                field of another type.
            OSError: the system refuses to read it.
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
    """Return what JSON would give back for a value; NaN and infinities become None."""
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
    """Return the SHA-256 of the canonical JSON (sorted keys, no spaces) of all but ``digest``."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def check_record(path: Path) -> None:
    """Check that a record can be read, before the work that will add a result to it.

    Args:
        path: path of the record, which may not exist yet.

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
    """Add an evaluation to a record on disk.

    It replaces an earlier one of the same task, protocol, data set, epoch and images. The folder is
    locked meanwhile, so evaluations of one run that end at the same time do not lose each other,
    not even where the record does not exist yet.

    Args:
        path: path of the record.
        evaluation: as ``Record.evaluations`` holds them.
        make: makes the record of a checkpoint that came without one.
        num_train: number of images pre-trained on, for a record that does not say.

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
    if None in (new.get("images"), old.get("images")):  # older versions did not note them
        return all(new.get(key) == old.get(key) for key in ("num_train", "num_test"))
    return _images(new) == _images(old)


def _images(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies an evaluation's images; ``part`` only describes them to people."""
    return {key: value for key, value in evaluation["images"].items() if key != "part"}


def _told_apart(new: dict[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an evaluation, marked in ``images`` if tables would take it for one of ``others``.

    That happens where the same folders held other images.
    """
    alike = [e for e in others if all(e.get(key) == new[key] for key in _SAME)]
    if new.get("images") is None or evaluated_on(new) not in map(evaluated_on, alike):
        return new
    content = json.dumps(_images(new), sort_keys=True).encode()
    mark = f"images {hashlib.sha256(content).hexdigest()[:8]}"
    parts = [part for part in (new["images"].get("part"), mark) if part]
    return {**new, "images": {**new["images"], "part": ", ".join(parts)}}


def evaluated_on(evaluation: Mapping[str, Any]) -> str:
    """Return the data set of an evaluation, for people: ``custom [data.fraction=0.5]``.

    The brackets say how its images differ from those of the pre-training; without a difference
    there are none.
    """
    part = (evaluation.get("images") or {}).get("part")
    return f"{evaluation['dataset']} [{part}]" if part else evaluation["dataset"]


def record_path(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's record.

    A ``.ckpt`` file has the record of the run in its folder; any other file has a record of its
    own.
    """
    if checkpoint.suffix == ".ckpt":
        return checkpoint.parent / RECORD
    return checkpoint.with_suffix(f".{RECORD}")


def find_records(paths: Iterable[str | Path]) -> list[tuple[Path, Record]]:
    """Load records, each once, in the order of ``paths`` and by name inside a directory.

    Args:
        paths: records or directories. The directory of a suite stands for the records that its
            ``records.json`` names; any other is searched recursively for ``record.json`` and
            ``*.record.json``.

    Raises:
        ClspError: a path does not exist, there is no record at all, or one cannot be read.
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
    walked = os.walk(path, onerror=_raise)  # without onerror, it skips unreadable folders
    return sorted(
        Path(folder, name)
        for folder, folders, files in walked
        for name in (*folders, *files)  # a folder of that name is refused when it is read
        if name.endswith(RECORD)
    )


def _raise(error: OSError) -> None:
    raise error


def read_index(path: Path) -> dict[str, Any] | None:
    """Read the index of a suite's directory.

    Args:
        path: path of the directory, or of its ``records.json``.

    Returns:
        None where there is no index. Otherwise ``by``: the settings that tell the suite's rows
        apart; ``records``: pairs of a record's path and what the suite says of it, ``variant`` and
        ``point``; ``failed``: what the suite says of the runs that failed; ``reports``: paths of
        those on its stores.

    Raises:
        ClspError: the index cannot be read, or names a record that does not exist any more.
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
    index["reports"] = [Path(os.path.normpath(file.parent / r)) for r in content.get("reports", [])]
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
