"""Checkpoints in solo-learn's layout: finding, reading, verifying and saving them.

A checkpoint is ``<dir>/<method>/<id>/<name>-<id>-ep=<epoch>.ckpt``, beside ``args.json``. Ours also
have a key ``clsp_plugin`` with digests of what they were trained with: the settings, the images,
...
"""

import hashlib
import json
import pickle
import random
import re
import string
import time
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from clsp_plugin.config.plain import plain
from clsp_plugin.config.training import Stem
from clsp_plugin.errors import ClspError, first_line
from clsp_plugin.records.lock import one_training
from clsp_plugin.system.files import check_regular, write_text
from clsp_plugin.system.json_files import checked, read_json

__all__ = [
    "ARGS",
    "Checkpointer",
    "check_bound",
    "comparable",
    "epoch_of",
    "find_checkpoint",
    "in_order",
    "load_args",
    "new_run_dir",
    "read_checkpoint",
    "read_newest",
    "why_unreadable",
]

# ruff: noqa: UP045  as OmegaConf reads Optional[...], so do the types of args.json here

ARGS = "args.json"
# The key of a checkpoint under which it says what it was trained with.
_BOUND = "clsp_plugin"
# Settings of where and how fast a run is computed, not what: they may differ when it goes on.
_MAY_DIFFER = {
    "accelerator", "auto_resume", "auto_umap", "checkpoint", "dali", "debug_augmentations",
    "devices", "logger", "name", "num_nodes", "performance", "resume_from_checkpoint", "strategy",
    "wandb", "wandb_run_id",
}  # fmt: skip
# Where the images lie, which may be another place when a run is evaluated.
_PLACES = {"train_path", "val_path", "num_workers"}
# Settings of ``data`` that say how packed images are packed.
_PACKING = {"packed", "pack_size", "pack_format", "skip_damaged"}
# Settings of ``data`` that older runs do not have and that do nothing where they are null.
_COLUMNS = {"image_column", "label_column"}

# Settings that every args.json must have, solo-learn's too, with their types.
_NEEDED: dict[str, Any] = {"method": str, "backbone.name": str, "data.dataset": str}
_block = dict[str, Any]
_statistics = Optional[list[float]]
# Settings that it may have, with their types.
_KNOWN: dict[str, Any] = {
    "backbone.kwargs": Optional[_block],
    "backbone.stem": Optional[Stem],
    "data.train_path": Optional[str],
    "data.val_path": Optional[str],
    "data.format": Optional[str],
    "data.fraction": Optional[float],
    "data.no_labels": Optional[bool],
    "data.image_column": Optional[str],
    "data.label_column": Optional[str],
    "data.image_size": Optional[int],
    "data.packed": Optional[bool],
    "data.pack_size": Optional[int],
    "data.pack_format": Optional[str],
    "data.skip_damaged": Optional[bool],
    "data.cache": Optional[str],
    "data.num_train": Optional[int],
    "data.num_val": Optional[int],
    "data.seed": Optional[int],
    "data.extra": Optional[str],
    "data.replicate": Optional[int],
    "data.num_classes": Optional[int],
    "data.mean": _statistics,
    "data.std": _statistics,
    "method_kwargs": Optional[_block],
    "momentum": Optional[_block],
    "optimizer": Optional[_block],
    "max_epochs": Optional[int],
    "seed": Optional[int],
    "wandb_run_id": Optional[str],
    "continued": Optional[list[_block]],
}
_PIPELINE: dict[str, Any] = {
    "rrc": Optional[_block],
    "horizontal_flip": Optional[dict[str, float]],
    "crop_size": Optional[int],
    "num_crops": Optional[int],
    "mean": _statistics,
    "std": _statistics,
}


def new_run_dir(cfg: DictConfig) -> Path:
    """Return a directory that no run has yet, ``<checkpoint.dir>/<method>/offline-<id>``.

    The directory is not created.
    """
    generator = random.SystemRandom()
    parent = Path(cfg.checkpoint.dir) / cfg.method
    while True:
        letters = [generator.choice(string.ascii_lowercase) for _ in range(4)]
        digits = [generator.choice(string.digits) for _ in range(4)]
        identifier = letters + digits
        generator.shuffle(identifier)
        path = parent / f"offline-{''.join(identifier)}"
        if not path.exists():
            return path


def epoch_of(checkpoint: Path) -> int:
    """Return the epoch in a checkpoint's name, from 0; -1 where there is none.

    The names of our checkpoints and those of the authors' scripts are known.
    """
    match = re.search(r"(?:ep=(\d+)\.ckpt|ckpt_(\d+)\.pt)$", checkpoint.name)
    return int(match.group(1) or match.group(2)) if match else -1


def in_order(checkpoints: Iterable[Path]) -> list[Path]:
    """Order checkpoints: the runs by when they last wrote one, and those of a run by their epoch.

    The times of a copied folder's files say in which order they were copied, so they order runs
    only.

    Args:
        checkpoints: paths of files; one that is gone since counts as written now.
    """
    times: dict[Path, float] = {}
    for checkpoint in (checkpoints := list(checkpoints)):
        try:
            times[checkpoint] = checkpoint.stat().st_mtime
        except FileNotFoundError:  # a training has replaced it
            times[checkpoint] = time.time()
    last: dict[Path, float] = {}
    for checkpoint, written in times.items():
        last[checkpoint.parent] = max(written, last.get(checkpoint.parent, written))
    return sorted(
        checkpoints, key=lambda c: (last[c.parent], c.parent, epoch_of(c), times[c], c.name)
    )


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint that a path stands for.

    Args:
        path: a ``.ckpt`` file; the directory of a run, for its newest epoch; or the directory of a
            method, for its newest run.

    Raises:
        ClspError: there is no checkpoint.
    """
    path = Path(path)
    if path.is_file():
        return path
    found = in_order(path.glob("*.ckpt")) or in_order(path.glob("*/*.ckpt"))
    if not found:
        raise ClspError(
            f"There is no checkpoint at {path}; give a .ckpt file or the directory of a run "
            f"(<checkpoint.dir>/<method>/<id>)."
        )
    return found[-1]


def read_checkpoint(path: Path, *, foreign: Any = None) -> Any:
    """Load a checkpoint onto the CPU, without changing it and without running code from it.

    A TorchScript program would run, but torch itself refuses one since 2.6: it recognises the
    program with the reader that would load it.

    Args:
        path: path of the file.
        foreign: a pickle module for files with classes that ``weights_only`` does not know.

    Raises:
        ClspError: the file is damaged, truncated, no checkpoint, or has such classes and
            ``foreign`` is None.
        OSError: the system refuses to read it.
    """
    check_regular(path)
    with open(path, "rb") as file:  # so that errors of the system are not torch's
        if not file.read(1):
            raise ClspError(f"{path} is not a readable checkpoint (it is empty); {_ADVICE}")
    packed = zipfile.is_zipfile(path)
    try:
        if packed:
            _check_sums(path)
        try:
            with warnings.catch_warnings():  # torch warns of TorchScript programs
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            if not packed or foreign is None:  # no zip: not torch's or Lightning's format
                raise
            return torch.load(path, map_location="cpu", pickle_module=foreign, weights_only=False)
    except (ClspError, MemoryError):
        raise
    except Exception as error:  # a broken pickle can raise anything
        reason = why_unreadable(error)
        if "TorchScript" in str(error):
            raise ClspError(f"{path} is a TorchScript program and no checkpoint.") from error
        raise ClspError(f"{path} is not a readable checkpoint ({reason}); {_ADVICE}") from error


def why_unreadable(error: Exception) -> str:
    """Return what torch says of a file that it cannot read, in a line for people.

    Raises:
        OSError: ``error`` itself, where the system refuses to read the file, since that says
            nothing about its content.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    reason = first_line(error)
    # torch's message advises weights_only=False, which lets the file run any code
    if "weights_only" in reason or "Weights only" in reason:
        return "it is damaged, or has objects in it that are neither weights nor numbers"
    return reason


def read_newest(path: str | Path, *, foreign: Any = None) -> tuple[Path, Any]:
    """Return the path and the content of the checkpoint that a path stands for.

    The search is repeated if a running training replaces the checkpoint meanwhile.

    Args:
        path: see :func:`find_checkpoint`.
        foreign: see :func:`read_checkpoint`.

    Raises:
        ClspError: see both.
        OSError: see :func:`read_checkpoint`.
    """
    for left in reversed(range(20)):
        try:
            checkpoint = find_checkpoint(path)
            return checkpoint, read_checkpoint(checkpoint, foreign=foreign)
        except FileNotFoundError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


_ADVICE = "restore it from a copy, or delete it."
_MOST_UNPACKED = 100  # in multiples of the file's size


def _check_sums(path: Path) -> None:
    """Check the checksums of the files in a zip, which torch does not look at.

    A zip that claims to unpack to far more than its size is refused before: reading it would take
    hours, and torch does not compress its checkpoints.
    """
    with zipfile.ZipFile(path) as file:
        said, has = sum(entry.file_size for entry in file.infolist()), path.stat().st_size
        if said > _MOST_UNPACKED * has:
            raise ClspError(
                f"{path} is not a readable checkpoint (its {has:,} bytes say that they unpack to "
                f"{said:,}); {_ADVICE}"
            )
        broken = file.testzip()
    if broken is not None:
        raise ClspError(f"{path} is damaged: {broken} in it does not match its checksum; {_ADVICE}")


def load_args(run_dir: Path) -> dict[str, Any] | None:
    """Load a run's ``args.json``, ours or solo-learn's; None where there is none.

    Raises:
        ClspError: the file is damaged, lacks a setting, or has one of another type.
        OSError: the system refuses to read it.
    """
    path = run_dir / ARGS
    advice = "restore it as the pre-training wrote it."
    try:
        args = read_json(path, dict[str, Any], "the settings of a run", advice)
    except FileNotFoundError:
        return None
    for key, kind in {**_NEEDED, **_KNOWN}.items():
        *blocks, name = key.split(".")
        block = args
        for outer in blocks:
            block = checked(args.get(outer, {}), _block, f"{path} has {outer}", advice)
        if name in block:
            checked(block[name], kind, f"{path} has {key}", advice)
        elif key in _NEEDED:
            raise ClspError(f"{path} does not say {key}; {advice}")
    if isinstance(args.get("augmentations"), dict):  # of solo-learn's main_linear.py, not a list
        args["augmentations"] = [args["augmentations"]]
    _check_pipelines(args.get("augmentations"), path, advice)
    return args


def _check_pipelines(given: Any, path: Path, advice: str) -> None:
    if given is None:
        return
    blocks = checked(given, list[_block], f"{path} has augmentations", advice)
    for number, block in enumerate(blocks):
        for key in block.keys() & _PIPELINE.keys():
            name = f"{path} has augmentations[{number}].{key}"
            checked(block[key], _PIPELINE[key], name, advice)


def comparable(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings that decide what is computed."""
    kept = {key: value for key, value in args.items() if key not in _MAY_DIFFER}
    data = kept.get("data") or {}
    idle = {"cache", *(() if data.get("packed") else _PACKING)}  # older runs do not have them
    if data.get("skip_damaged"):  # of squares too
        idle.discard("skip_damaged")
    idle |= {key for key in _COLUMNS if data.get(key) is None}
    if idle & data.keys():
        kept["data"] = {key: value for key, value in data.items() if key not in idle}
    return kept


def _digest(args: Mapping[str, Any]) -> str:
    kept = comparable(args)
    kept["data"] = {k: v for k, v in kept.get("data", {}).items() if k not in _PLACES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def bound(content: Any) -> dict[str, Any]:
    """Return what a checkpoint says it was trained with; empty for a foreign or an older one."""
    said = content.get(_BOUND) if isinstance(content, dict) else None
    return said if isinstance(said, dict) else {}


def check_bound(args: Mapping[str, Any] | None, content: Any, checkpoint: Path) -> None:
    """Check that an ``args.json`` is the one that its checkpoint was trained with.

    Args:
        args: the settings, see :func:`load_args`.
        content: content of the checkpoint; without a digest of its settings it passes.
        checkpoint: path of the checkpoint.

    Raises:
        ClspError: a setting that decides what was computed differs.
    """
    said = bound(content).get("args")
    if args is not None and said is not None and said != _digest(args):
        raise ClspError(
            f"{checkpoint.parent / ARGS} was changed, or is of another run: {checkpoint.name} was "
            f"trained with other settings than it says; restore it as the training wrote it."
        )


def _is_last(trainer: pl.Trainer) -> bool:
    """Whether the ending epoch is the last, by ``max_epochs`` or by a limit of Lightning's own."""
    steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.current_epoch + 1 == trainer.max_epochs or steps or trainer.should_stop


class Checkpointer(Callback):
    """Saves a checkpoint every so many epochs and after the last, whole or not at all.

    The directory of a new run is created when its first file is written, or claimed before.

    Args:
        cfg: the parsed configuration, written to ``args.json``.
        run_dir: where to save; if it exists, this process holds its lock.
        identity: digests of what else the training depends on, such as its images, by name.
        held: stack that the lock of a newly created directory is added to.

    Attributes:
        last: the newest checkpoint of this run, None if there is none.
        compiled: which parts of the training are compiled; a checkpoint says so.
    """

    def __init__(
        self, cfg: DictConfig, run_dir: Path, identity: Mapping[str, Any], held: ExitStack
    ):
        self.cfg, self.run_dir = cfg, Path(run_dir)
        self.identity, self.held = dict(identity), held
        existing = sorted(self.run_dir.glob("*.ckpt"), key=epoch_of)
        self.last: Path | None = existing[-1] if existing else None
        self.compiled: dict[str, bool] = {}
        self._args: dict[str, Any] | None = None
        self._claimed = False

    def claim(self) -> None:
        """Make the directory of a new run, if it is not made yet, and lock it."""
        if self.last is None and not self._claimed:
            self.run_dir.mkdir(parents=True)  # fails if it exists: then it is another run's
            self.held.enter_context(one_training(self.run_dir))
            self._claimed = True

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # through JSON and back, so that the digest is that of the file's content
        args = json.loads(json.dumps(plain(self.cfg)))
        runs = (one.version for one in trainer.loggers if isinstance(one, WandbLogger))
        self._args = {**args, "wandb_run_id": next(runs, None)}
        if trainer.is_global_zero and self.last is not None:
            self._write_args()

    def _write_args(self) -> None:
        write_text(self.run_dir / ARGS, json.dumps(self._args, indent=1))

    def on_save_checkpoint(self, trainer, module, checkpoint: dict[str, Any]) -> None:
        assert self._args is not None  # the training has started
        known = {"args": _digest(self._args), "compiled": self.compiled}
        checkpoint[_BOUND] = {**known, **self.identity}

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        if epoch % self.cfg.checkpoint.frequency and not _is_last(trainer):
            return
        if trainer.is_global_zero and self.last is None:
            self.claim()
            self._write_args()
        path = self.run_dir / f"{self.cfg.name}-{self.run_dir.name}-ep={epoch}.ckpt"
        trainer.save_checkpoint(path)
        before, self.last = self.last, path
        stale = before != path and not self.cfg.checkpoint.keep_prev
        if before is not None and stale and trainer.is_global_zero:
            before.unlink(missing_ok=True)
