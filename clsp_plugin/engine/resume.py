"""Continue a training from a checkpoint: which one, in which directory, with which settings.

With ``auto_resume``, a stopped run is found by its settings and its images, and continues in its
own directory as if it had not been stopped. ``resume_from_checkpoint`` continues from any other
checkpoint, which stays as it is, in a new directory. Weights, moments of the optimiser and counters
are then the checkpoint's. The settings are the new configuration's, with learning rates and
schedule moved to the step of the checkpoint. ``docs/continuing.md`` lists all of them.
"""

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from clsp_plugin.config.plain import plain
from clsp_plugin.config.training import Synthetic
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.optim import at_step
from clsp_plugin.records.checkpoint import (
    bound,
    check_bound,
    comparable,
    find_checkpoint,
    in_order,
    load_args,
    new_run_dir,
    read_checkpoint,
    read_newest,
)
from clsp_plugin.records.lock import is_first, one_training
from clsp_plugin.records.record import RECORD

__all__ = ["Resumed", "Start", "find_start"]

# Settings that must be the checkpoint's: they decide the network and what it learns from, which
# moments the optimiser keeps for which parameters, and how many steps an epoch has.
_FIXED = (
    "pretrain_method", "pretrained_feature_extractor", "backbone", "optimizer.name",
    "optimizer.exclude_bias_n_norm_wd", "optimizer.kwargs.exclude_bias_n_norm",
    "optimizer.kwargs.amsgrad", "optimizer.batch_size", "accumulate_grad_batches",
    "data.num_classes",
)  # fmt: skip
# Settings in ``data`` that do not change the training images, so they may differ even if the
# checkpoint does not identify its images.
_OF_IMAGES = {"val_path", "num_val", "num_workers"}
# Names in messages for what else a training depends on.
_TOLD = {
    "images": "training images", "weights": "weights to start from",
    "encoder": "weights in synthetic.encoder",
}  # fmt: skip
# Of these, those that a configuration may change for a checkpoint that it names.
_FREE = ("candidates", "encoder")


@dataclass
class Start:
    """Where a training begins.

    Attributes:
        run_dir: the directory of the run; that of a new run does not exist yet.
        checkpoint: the checkpoint to continue from; None for a training from the beginning.
        done: the number of epochs that the checkpoint has completed.
        complete: whether no epoch is left to train.
        other: whether the settings differ from the checkpoint's, or the checkpoint's are unknown.
        compiled: which parts of the training were compiled; None if the checkpoint does not say.
    """

    run_dir: Path
    checkpoint: Path | None = None
    done: int = 0
    complete: bool = False
    other: bool = False
    compiled: dict[str, bool] | None = None

    @property
    def source(self) -> Path:
        """The checkpoint of a start that has one."""
        assert self.checkpoint is not None
        return self.checkpoint

    @property
    def told(self) -> str:
        """One line that tells the user where the training continues."""
        more = f", in {self.run_dir}" if self.run_dir != self.source.parent else ""
        return f"Continuing from {self.checkpoint}{more}."


def find_start(cfg: DictConfig, identity: Mapping[str, Any], held: ExitStack) -> Start:
    """Decide where a training begins: at the named checkpoint, at its own last one, or anew.

    Args:
        cfg: a complete configuration of any ``config.training.Training``, with ``method``. If a
            checkpoint with other settings is continued, ``continued`` is added to it: a list that
            has, for each such checkpoint, its path, its number of epochs and the settings that
            have changed, with their old values.
        identity: identities of what else the training depends on, by name, such as its images.
        held: receives the lock of the run's directory, so that no other process trains in it.

    Raises:
        ClspError: a checkpoint does not fit or is damaged, or another process is training the
            run.
        PermissionError: the run's directory could not be made.
    """
    named = None
    if cfg.resume_from_checkpoint is not None:
        named = _named(cfg, identity)
        if named.complete:
            return named
    if cfg.auto_resume.enabled:
        own = _newest(cfg, identity, None if named is None else named.source.parent)
        if own is not None and (named is None or own.done >= named.done):
            if not (own.complete and (own.run_dir / RECORD).exists()):
                held.enter_context(one_training(own.run_dir))
                # another process may have continued the run before it was locked here
                if is_first() and find_checkpoint(own.run_dir) != own.checkpoint:
                    held.close()
                    return find_start(cfg, identity, held)
            return own
    start = Start(new_run_dir(cfg)) if named is None else named
    _check_writable(start.run_dir)
    return start


def _check_writable(run_dir: Path) -> None:
    """Fail before the first epoch if the run's directory could not be made after it."""
    above = next(folder for folder in run_dir.absolute().parents if folder.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def _say(text: str) -> None:
    if is_first():
        print(text)


def _done(content: Any, checkpoint: Path) -> int:
    """Return the number of epochs that a checkpoint has completed."""
    epoch = content.get("epoch") if isinstance(content, dict) else None
    if type(epoch) is not int or epoch < 0:
        raise ClspError(f"{checkpoint} is not a checkpoint of a training: it has no epoch.")
    return epoch + 1


def _newest(cfg: DictConfig, identity: Mapping[str, Any], besides: Path | None) -> Start | None:
    """Find the newest run of exactly this configuration and identity, but not in ``besides``."""
    for checkpoint in _of_settings(cfg):
        if checkpoint.parent == besides:
            continue
        try:
            content = read_checkpoint(checkpoint)
        except FileNotFoundError:  # the process that trains there has replaced it
            found = _replaced(checkpoint.parent)
            if found is None:
                continue
            checkpoint, content = found
        except ClspError as error:
            raise ClspError(
                f"{str(error).rstrip('.')}, to go on from an older one or from the beginning; "
                f"auto_resume.enabled=False trains anew beside it."
            ) from error
        other = _of_others(content, identity)
        if other:
            _say(f"{checkpoint} is of other {_told(other)}, so it is not continued.")
            continue
        done = _done(content, checkpoint)
        complete = done >= cfg.max_epochs
        compiled = _compiled(content)
        return Start(checkpoint.parent, checkpoint, done, complete, compiled=compiled)
    return None


def _replaced(run_dir: Path) -> tuple[Path, Any] | None:
    """Return the newest checkpoint of a run, after another one was replaced; None without any."""
    try:
        return read_newest(run_dir)
    except (ClspError, FileNotFoundError):
        return None


def _of_settings(cfg: DictConfig) -> Iterator[Path]:
    """Find the checkpoints of runs of exactly this configuration, the newest run's last first."""
    wanted = _of_today(_container(cfg))
    oldest = None
    if cfg.auto_resume.max_hours is not None:
        oldest = time.time() - cfg.auto_resume.max_hours * 3600
    found = []
    for run_dir in (Path(cfg.checkpoint.dir) / cfg.method).glob("*/"):
        checkpoints = list(run_dir.glob("*.ckpt"))
        try:
            args = load_args(run_dir) if checkpoints else None
        except ClspError as error:
            _say(f"{run_dir} is not looked at: {error}")
            continue
        if args is None or _of_today(args) != wanted:
            continue
        for checkpoint in checkpoints:
            try:
                modified = checkpoint.stat().st_mtime
            except FileNotFoundError:
                modified = time.time()
            if oldest is not None and modified < oldest:
                _say(
                    f"{checkpoint} is older than auto_resume.max_hours={cfg.auto_resume.max_hours} "
                    f"and not continued; auto_resume.max_hours=null goes on from it."
                )
                continue
            found.append(checkpoint)
    yield from reversed(in_order(found))


def _container(cfg: DictConfig) -> dict[str, Any]:
    return json.loads(json.dumps(plain(cfg)))


def _of_today(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what is computed, with those that came later by default."""
    kept = comparable(args)
    if isinstance(kept.get("synthetic"), dict):
        kept["synthetic"] = Synthetic.completed(kept["synthetic"])
    return kept


def _compiled(content: Any) -> dict[str, bool] | None:
    """Return which parts of a checkpoint's training were compiled; None if it does not say."""
    said = bound(content).get("compiled")
    return said if isinstance(said, dict) else None


def _of_others(content: Any, identity: Mapping[str, Any]) -> list[str]:
    """Name what a checkpoint was trained on that differs from ``identity``, such as its images.

    What the checkpoint does not record is not compared.
    """
    said = bound(content)
    return [name for name, own in identity.items() if name in said and said[name] != own]


def _told(names: Sequence[str]) -> str:
    return ", ".join(_TOLD.get(name, name) for name in names)


def _named(cfg: DictConfig, identity: Mapping[str, Any]) -> Start:
    """Return the start at ``resume_from_checkpoint``, if it fits the configuration.

    Raises:
        ClspError: it does not fit, or it is complete although settings have changed.
    """
    checkpoint, content = read_newest(cfg.resume_from_checkpoint)
    args = load_args(checkpoint.parent)
    check_bound(args, content, checkpoint)
    other = _of_others(content, identity)
    fixed = [name for name in other if name not in _FREE]
    if fixed:
        raise ClspError(
            f"{checkpoint} was trained on other {_told(fixed)} than the configuration names; "
            f"give the same ones, or leave resume_from_checkpoint out."
        )
    known = "images" in bound(content)
    changed = None if args is None else _changed(args, cfg, known, checkpoint)
    if changed is not None:
        changed |= {name: bound(content)[name][:12] for name in other}
    done = _done(content, checkpoint)
    if done >= cfg.max_epochs and changed:
        raise ClspError(
            f"{checkpoint} has {done} epochs behind it and max_epochs={cfg.max_epochs} leaves "
            f"none to train with {', '.join(changed)}; give a larger max_epochs."
        )
    if done >= cfg.max_epochs:
        return Start(checkpoint.parent, checkpoint, done, complete=True)
    before = (args or {}).get("continued") or []
    if changed or args is None:
        entry = {"checkpoint": str(checkpoint), "epochs": done, "changed": changed}
        before = [*before, entry]
    if before:
        cfg.continued = before
    if changed:
        was = ", ".join(f"{key}={value!r}" for key, value in changed.items())
        _say(f"The settings of the configuration hold from epoch {done + 1} on; before: {was}.")
    new, compiled = changed is None or bool(changed), _compiled(content)
    return Start(new_run_dir(cfg), checkpoint, done, other=new, compiled=compiled)


def _changed(
    args: Mapping[str, Any], cfg: DictConfig, known: bool, checkpoint: Path
) -> dict[str, Any]:
    """Return the settings that differ from a checkpoint's: dotted names to the checkpoint's values.

    Args:
        args: the settings of the checkpoint.
        cfg: the configuration.
        known: whether the checkpoint identifies its images. If so they are compared elsewhere; if
            not, the settings in ``data`` have to be the same.
        checkpoint: its path, for messages.

    Raises:
        ClspError: a setting differs that must be the checkpoint's.
    """
    whose = [f"{each['method']} on {each['backbone']['name']}" for each in (args, cfg)]
    if whose[0] != whose[1]:
        raise ClspError(
            f"{checkpoint} is of {whose[0]}, the configuration says {whose[1]}; give a checkpoint "
            f"of it."
        )
    before, now = (_flat(_of_today(each)) for each in (args, _container(cfg)))
    changed = {
        key: before.get(key)
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith("continued")
    }
    fixed = [
        key
        for key in changed
        if any(key == name or key.startswith(f"{name}.") for name in _FIXED)
        or (key.startswith("data.") and not known and key[5:] not in _OF_IMAGES)
    ]
    if fixed:
        said = ", ".join(f"{key}={before.get(key)!r}" for key in fixed)
        asked = ", ".join(f"{key}={now.get(key)!r}" for key in fixed)
        raise ClspError(
            f"{checkpoint} is of {said} and the configuration says {asked}, which has to be the "
            f"checkpoint's; give a checkpoint of it, or leave resume_from_checkpoint out."
        )
    return changed


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix and value not in (None, {}) else {}
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return out


class Resumed(Callback):
    """Checks that the counters of a checkpoint fit, and applies the configuration's settings.

    If these differ from the checkpoint's, the settings of every parameter group (learning rate,
    weight decay, momentum, ..) and the schedule are made anew, and the schedule is moved to the
    step of the checkpoint.

    Args:
        start: see :class:`Start`.
    """

    def __init__(self, start: Start):
        self.start = start

    def on_load_checkpoint(self, trainer, module, checkpoint: dict[str, Any]) -> None:
        if self.start.other:
            checkpoint["lr_schedulers"] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        if module.automatic_optimization and trainer.global_step != trainer.current_epoch * steps:
            raise ClspError(
                f"{self.start.checkpoint} has {trainer.global_step} steps in "
                f"{trainer.current_epoch} epochs, and here an epoch has {steps}; go on with as "
                f"many processes, images and optimizer.batch_size as it was trained with."
            )
        if self.start.other:
            self._settings_hold(trainer, module)

    def _settings_hold(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        fresh = module.configure_optimizers()
        optimizers = fresh[0] if isinstance(fresh, tuple) else [fresh]
        for restored, new in zip(trainer.optimizers, optimizers, strict=True):
            for group, settings in zip(restored.param_groups, new.param_groups, strict=True):
                group.update({k: v for k, v in settings.items() if k != "params"})
        for config in trainer.lr_scheduler_configs:
            steps = trainer.global_step if config.interval == "step" else trainer.current_epoch
            at_step(config.scheduler, steps)
