"""The loggers of a training: TensorBoard, Weights & Biases, MLflow and trackio.

They get the lines of ``metrics.csv``, each once, however often the training is stopped and goes on:
``loggers.json`` in the run's folder says for each which run it writes to and which epochs it has.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from clsp_plugin.config.plain import plain
from clsp_plugin.engine.pictures import ViewSheet
from clsp_plugin.engine.progress import History
from clsp_plugin.engine.resume import Start
from clsp_plugin.errors import ClspError, first_line
from clsp_plugin.records.checkpoint import Checkpointer, load_args
from clsp_plugin.system.files import write_text
from clsp_plugin.system.json_files import read_json

__all__ = ["NOTES", "Journal", "Run", "attach_loggers", "check_installed", "log_training"]

NOTES = "loggers.json"
_PROJECT = "clsp"


@dataclass
class Run:
    """What loggers are told of a training.

    Attributes:
        folder: the folder of the run, for ``loggers.json``.
        name: the name of the run.
        config: its configuration.
        tensorboard: the folder of TensorBoard's files.
        wandb: ``project``, ``entity`` and ``offline`` for Weights & Biases.
        noted: what ``loggers.json`` says; empty for a new training.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    tensorboard: Path
    wandb: Mapping[str, Any] = field(default_factory=dict)
    noted: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, name: str) -> dict[str, Any]:
        """What is noted of a logger: ``run``, its identifier; ``epochs`` and ``step``, its last."""
        return self.noted.setdefault(name, {})

    def read(self) -> None:
        """Take up the notes of the same training before it was stopped."""
        try:
            kind = dict[str, dict[str, Any]]
            self.noted = read_json(
                self.folder / NOTES, kind, "a note on loggers", "delete it; loggers then begin anew"
            )
        except FileNotFoundError:
            self.noted = {}


class _Trackio(Logger):
    """Lightning's interface over trackio, whose functions are those of wandb."""

    def __init__(self, name: str, resume: bool):
        self._name, self._resume = name, resume
        self._run: Any = None

    @property
    def name(self) -> str:
        return os.environ.get("TRACKIO_PROJECT") or _PROJECT

    @property
    def version(self) -> str:
        return self._name

    @property
    def experiment(self) -> Any:
        import trackio

        if self._run is None and rank_zero_only.rank == 0:
            self._run = trackio.init(
                self.name, name=self._name, resume="allow" if self._resume else "never", embed=False
            )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **keys: Any) -> None:
        self.experiment.config.update(json.loads(json.dumps(params)))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


def _tensorboard(run: Run, noted: Mapping[str, Any]) -> Logger:
    purge = {"purge_step": noted["step"] + 1} if "step" in noted else {}
    folder = run.tensorboard
    return TensorBoardLogger(
        folder.parent, folder.name, version=noted.get("run"), default_hp_metric=False, **purge
    )


def _wandb(run: Run, noted: Mapping[str, Any]) -> Logger:
    given = {"project": os.environ.get("WANDB_PROJECT") or _PROJECT, **run.wandb}
    return WandbLogger(name=run.name, id=noted.get("run"), resume="allow", **given)


def _mlflow(run: Run, noted: Mapping[str, Any]) -> Logger:
    import mlflow

    return MLFlowLogger(
        os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT,
        run_name=run.name,
        run_id=noted.get("run"),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or mlflow.get_tracking_uri(),
    )


def _trackio(run: Run, noted: Mapping[str, Any]) -> Logger:
    name = noted.get("run") or f"{run.name}-{os.urandom(4).hex()}"
    return _Trackio(name, resume="run" in noted)


_OPEN: dict[str, Callable[[Run, Mapping[str, Any]], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def check_installed(names: list[str]) -> None:
    """Refuse loggers whose package is not installed.

    Raises:
        ClspError: the message names the extra to install.
    """
    for name in (name for name in names if name in _OPEN):
        try:
            import_module(name)
        except ImportError as error:
            raise ClspError(
                f"logger={name} needs {name}: `pip install 'clsp-plugin[{name}]'`, or leave "
                f"{name} out; metrics.csv is written without it."
            ) from error


def _open_loggers(names: list[str], run: Run) -> dict[str, Logger]:
    """Open the loggers that a setting names; ``csv`` is none of them.

    Args:
        names: see ``config.loggers.logger_names``.
        run: what they are told; ``noted`` in it is completed.

    Returns:
        Names to loggers.

    Raises:
        ClspError: a package is missing, or a logger cannot be opened.
    """
    check_installed(names)
    opened = {}
    for name in (name for name in names if name in _OPEN):
        noted = run.of(name)
        try:
            logger = _OPEN[name](run, noted)
            logger.experiment  # noqa: B018  opens it
            if rank_zero_only.rank == 0 and "run" not in noted:
                logger.log_hyperparams(json.loads(json.dumps(run.config)))
        except Exception as error:  # a service, its client and the network may raise anything
            raise ClspError(
                f"logger={name} could not be opened ({first_line(error)}); mend it, or leave it "
                f"out of logger and add it when the training goes on: it then gets all epochs."
            ) from error
        if logger.version is not None:
            noted["run"] = logger.version
        opened[name] = logger
    return opened


def attach_loggers(
    trainer: pl.Trainer,
    history: History,
    names: list[str],
    run: Run,
    more: Sequence[Logger] = (),
) -> None:
    """Open the loggers that a setting names, and have a trainer pass them the history.

    Args:
        trainer: a trainer whose callbacks make the folder of the run and fill the history.
        history: lines and pictures.
        names: see ``config.loggers.logger_names``.
        run: what the loggers are told.
        more: further loggers, open already.

    Raises:
        ClspError: see :func:`_open_loggers`.
    """
    opened = _open_loggers(names, run)
    opened |= {f"loggers[{number}]": logger for number, logger in enumerate(more)}
    if opened:
        trainer.loggers = list(opened.values())
        trainer.callbacks.append(Journal(run, history, opened))


def log_training(
    trainer: pl.Trainer,
    cfg: DictConfig,
    start: Start,
    saver: Checkpointer,
    history: History,
    more: Sequence[Logger] = (),
) -> None:
    """Attach the loggers of a pre-training or a fine-tuning, once nothing else can be refused.

    Args:
        trainer: the trainer.
        cfg: the configuration, of any ``config.training.Training``.
        start: where the training begins.
        saver: the callback that saves checkpoints.
        history: lines and pictures.
        more: further loggers, open already.

    Raises:
        ClspError: see :func:`_open_loggers`.
    """
    folder = start.run_dir
    wandb = {key: cfg.wandb[key] for key in ("project", "entity", "offline")}
    run = Run(folder, cfg.name, plain(cfg), folder / "tensorboard", wandb)
    run.read()
    known = (load_args(folder) or {}).get("wandb_run_id")
    if known is not None:  # of a run that had no notes yet
        run.noted.setdefault("wandb", {"run": known, "epochs": start.done})
    if cfg.checkpoint.enabled and "tensorboard" in cfg.logger and trainer.is_global_zero:
        saver.claim()  # TensorBoard's files begin with the training
    attach_loggers(trainer, history, cfg.logger, run, more)
    if trainer.loggers:
        trainer.callbacks.insert(0, ViewSheet(history))


class Journal(Callback):
    """Passes the history of a training to its loggers after every epoch, each line once.

    Lightning itself would log an epoch again that was trained again after a stop. A logger that
    fails does not end the training: it gets the lines that it lacks after the next epoch.

    To be called after the callbacks that make the folder of the run and fill the history.

    Args:
        run: what the loggers were opened with.
        history: lines and pictures.
        loggers: names to loggers.
    """

    def __init__(self, run: Run, history: History, loggers: Mapping[str, Logger]):
        self.run, self.history, self.loggers = run, history, dict(loggers)
        self._told: set[str] = set()

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        module.for_loggers = False

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        steps = trainer.global_step / (trainer.current_epoch + 1)  # of every epoch, as of this one
        for name, logger in self.loggers.items():
            try:
                self._log(logger, self.run.of(name), steps)
            except Exception as error:  # see _open_loggers
                self._warn(name, error)
        if self.run.folder.is_dir():
            write_text(self.run.folder / NOTES, json.dumps(self.run.noted, indent=1))

    def _log(self, logger: Logger, noted: dict[str, Any], steps: float) -> None:
        rows = [row for row in self.history.rows() if row["epoch"] > noted.get("epochs", 0)]
        for row in rows:
            step = round(row["epoch"] * steps)
            logger.log_metrics(row, step=step)
            if row is rows[-1]:
                for title, picture in self.history.pictures.items():
                    _show(logger, title, picture, step)
                logger.save()
            noted |= {"epochs": int(row["epoch"]), "step": step}

    def _warn(self, name: str, error: Exception) -> None:
        if name not in self._told:
            self._told.add(name)
            warnings.warn(
                f"logger={name} failed ({first_line(error)}); the training goes on, and the logger "
                f"is tried again after every epoch.",
                stacklevel=2,
            )

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer, module, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        """End wandb's run, of which a process has one at a time; Lightning ends the others."""
        if "wandb" in self.loggers and rank_zero_only.rank == 0:
            sys.modules["wandb"].finish()


def _show(logger: Logger, title: str, picture: np.ndarray, step: int) -> None:
    """Log a picture, uint8 (H, W, 3), to a logger that takes pictures."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(title, picture, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(title, [picture], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, picture, key=title, step=step)
    elif isinstance(logger, _Trackio):
        import trackio

        logger.log_metrics({title: trackio.Image(picture)}, step=step)
