"""Checkpoints in solo-learn's layout, and finding the one to continue from.

``<dir>/<method>/<id>/<name>-<id>-ep=<epoch>.ckpt`` beside ``args.json``.
"""

import json
import random
import re
import string
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from clsp_plugin.errors import ClspError

__all__ = ["ARGS", "Checkpointer", "find_checkpoint", "find_resumable", "new_run_dir"]

ARGS = "args.json"
# Where and how fast a run runs, not what it computes: may differ when it is continued.
_MAY_DIFFER = {
    "accelerator", "auto_resume", "auto_umap", "checkpoint", "dali", "debug_augmentations",
    "devices", "name", "num_nodes", "performance", "resume_from_checkpoint", "strategy", "wandb",
}  # fmt: skip


def new_run_dir(cfg: DictConfig) -> Path:
    """A directory that no run has yet: ``<checkpoint.dir>/<method>/offline-<id>``."""
    generator = random.Random(time.time_ns())
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
    """The epoch in a checkpoint's name, ours or the authors', from 0; -1 where there is none."""
    match = re.search(r"(?:ep=(\d+)\.ckpt|ckpt_(\d+)\.pt)$", checkpoint.name)
    return int(match.group(1) or match.group(2)) if match else -1


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means.

    Args:
        path: a ``.ckpt`` file; the directory of a run, for its newest epoch; or the directory of
            a method, for its newest run.

    Raises:
        ClspError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    found = sorted(path.glob("*.ckpt"), key=epoch_of)
    found = found or sorted(path.glob("*/*.ckpt"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise ClspError(
            f"There is no checkpoint at {path}; give a .ckpt file or the directory of a run "
            f"(<checkpoint.dir>/<method>/<id>)."
        )
    return found[-1]


def load_args(run_dir: Path) -> dict[str, Any] | None:
    """A run's ``args.json``; None where there is none or it is not readable."""
    try:
        args = json.loads((run_dir / ARGS).read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(args, dict) and all(
        isinstance(args.get(key), dict) for key in ("backbone", "data")
    )
    return args if whole else None


def _comparable(args: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in args.items() if key not in _MAY_DIFFER | {"wandb_run_id"}}


def find_resumable(cfg: DictConfig) -> Path | None:
    """The newest checkpoint of a run of exactly this configuration, if it is not too old.

    Args:
        cfg: a parsed configuration; runs are looked for in ``checkpoint.dir/method``.
    """
    wanted = _comparable(json.loads(json.dumps(OmegaConf.to_container(cfg))))
    oldest = time.time() - cfg.auto_resume.max_hours * 3600
    found = []
    for checkpoint in (Path(cfg.checkpoint.dir) / cfg.method).glob("*/*.ckpt"):
        args = load_args(checkpoint.parent)
        if args is not None and _comparable(args) == wanted:
            modified = checkpoint.stat().st_mtime
            if modified >= oldest:
                found.append((modified, epoch_of(checkpoint), checkpoint))
    return max(found)[2] if found else None


class Checkpointer(Callback):
    """Saves every so many epochs and after the last; a file appears whole or not at all.

    Args:
        cfg: the parsed configuration, written to ``args.json``.
        run_dir: where to save.
    """

    def __init__(self, cfg: DictConfig, run_dir: Path):
        self.cfg, self.run_dir = cfg, Path(run_dir)
        self.last: Path | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        existing = sorted(self.run_dir.glob("*.ckpt"), key=epoch_of)
        self.last = existing[-1] if existing else None
        if trainer.is_global_zero:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            args = OmegaConf.to_container(self.cfg)
            args["wandb_run_id"] = getattr(trainer.logger, "version", None)
            (self.run_dir / ARGS).write_text(json.dumps(args, indent=1))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        if epoch % self.cfg.checkpoint.frequency and epoch + 1 != trainer.max_epochs:
            return
        path = self.run_dir / f"{self.cfg.name}-{self.run_dir.name}-ep={epoch}.ckpt"
        trainer.save_checkpoint(path)
        stale = self.last not in (None, path) and not self.cfg.checkpoint.keep_prev
        if stale and trainer.is_global_zero:
            self.last.unlink(missing_ok=True)
        self.last = path
