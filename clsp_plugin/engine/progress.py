"""The progress of a training: a bar on the screen, and the curve and times for the record."""

import csv
import io
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar

from clsp_plugin.data.loader import IndexBatches
from clsp_plugin.system.files import write_text
from clsp_plugin.system.progress import Progress

__all__ = ["METRICS", "Bar", "History", "MetricsFile", "metrics_csv", "quiet"]

METRICS = "metrics.csv"

# Warnings that Lightning gives in every run and that no user can act on.
_NO_NEWS = (
    ".*does not have many workers.*",
    ".*available but not used.*",
    ".*Checkpoint directory.*exists.*",
    ".*The number of training batches.*",
    ".*LeafSpec.*",
    ".*is not supported by the model summary.*",
    ".*but have no `validation_step`.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's hints about hardware and workers inside the block."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _NO_NEWS:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class Bar(ProgressBar):
    """A progress bar over all steps of a training, with metrics of the last epoch.

    Args:
        title: the text in front of the bar; a suite puts the number of the stage here.
        metrics: the names of the logged metrics to show, in this order.
        position: the line of the bar, when several processes show one each.
    """

    def __init__(
        self,
        title: str,
        metrics: tuple[str, ...] = ("train_loss", "val_acc1"),
        position: int | None = None,
    ):
        super().__init__()
        self.title, self.metrics, self.position = title, metrics, position
        self._bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._enabled:
            steps = trainer.num_training_batches
            self._bar = Progress(
                total=trainer.max_epochs * steps,
                initial=trainer.current_epoch * steps,
                desc=self.title,
                position=self.position,
                unit="step",
                dynamic_ncols=True,
                mininterval=1.0,
            )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._bar is not None:
            shown = {
                name: f"{trainer.callback_metrics[name].item():.4g}"
                for name in self.metrics
                if name in trainer.callback_metrics
            }
            epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._bar.set_postfix(epoch=epoch, **shown)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer, module, exception) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class History(Callback):
    """Collects what a record needs to know of a training, and saves it in the checkpoint.

    Args:
        about: facts that the record needs and that only this process knows, such as the machine.

    Attributes:
        curve: the mean metrics of every epoch, kept when a run is continued.
        seconds: the seconds of every epoch, kept as well.
        about: as given, with the number of ``steps`` per epoch, of ``processes`` and of ``images``
            per epoch at the last start.
        pictures: of the epoch that ends, by name: uint8 (H, W, 3).
    """

    def __init__(self, about: dict[str, Any] | None = None) -> None:
        self.curve: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.about: dict[str, Any] = dict(about or {})
        self.pictures: dict[str, np.ndarray] = {}
        self._added: dict[str, torch.Tensor | float] = {}
        self._since: float | None = None
        self._validated = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.about |= {"steps": trainer.num_training_batches, "processes": trainer.world_size}
        batches = getattr(trainer.train_dataloader, "sampler", None)
        each = batches.batch_size if isinstance(batches, IndexBatches) else 0
        self.about["images"] = self.about["steps"] * each * trainer.world_size

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.pictures, self._added, self._validated = {}, {}, False
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._validated = True

    def add(self, **metrics: torch.Tensor | float) -> None:
        """Add metrics to those of the epoch that ends, before this callback collects them."""
        self._added |= metrics

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # reading the metrics waits for the device, so the time below includes all of its work
        metrics = {**trainer.callback_metrics, **self._added}
        row = {
            name: float(value)
            for name, value in sorted(metrics.items())
            # Lightning keeps those of the last validation, which may be epochs ago
            if self._validated or not name.startswith("val_")
        }
        assert self._since is not None
        self.seconds.append(time.perf_counter() - self._since)
        self.curve.append({"epoch": trainer.current_epoch + 1, **row})

    def rows(self) -> list[dict[str, float]]:
        """Return the curve with the ``seconds`` and ``images_per_second`` of every epoch."""
        images = self.about.get("images") or 0
        return [
            {**row, "seconds": seconds, "images_per_second": images / max(seconds, 1e-9)}
            for row, seconds in zip(self.curve, self.seconds, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.curve, "seconds": self.seconds, "about": self.about}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve, seconds = list(state["curve"]), state["seconds"]
        if isinstance(seconds, float):  # of older checkpoints: the sum
            seconds = [seconds / max(1, len(self.curve))] * len(self.curve)
        self.seconds = list(seconds)
        self.about = {**state["about"], **self.about}


class MetricsFile(Callback):
    """Writes ``metrics.csv`` after every epoch, a line for each epoch so far.

    To be called after the callback that makes the folder of the run: without a folder, as when no
    checkpoints are saved, there is no file.

    Args:
        history: the collected metrics.
        folder: the folder of the run.
    """

    def __init__(self, history: History, folder: Path):
        self.history, self.folder = history, folder

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.folder.is_dir():
            write_text(self.folder / METRICS, metrics_csv(self.history))


def metrics_csv(history: History) -> str:
    """Return a line for every epoch, with a column for every metric of any epoch.

    A metric that an epoch lacks is empty in its line.
    """
    out, rows = io.StringIO(), history.rows()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
