"""Lightning's trainer as we use it: files appear whole, a stop is told, devices are checked."""

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from clsp_plugin.data.files import unfinished, write_whole
from clsp_plugin.errors import ClspError, Terminated

__all__ = ["fit", "new_trainer"]


class _WholeFiles(TorchCheckpointIO):
    """Writes checkpoints beside their place, and not by way of the system's temporary folder."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        for left in unfinished(path.parent, f"*{path.suffix}"):  # of a process that was killed
            left.unlink(missing_ok=True)
        content = io.BytesIO()  # torch has an error of its own for a disk that is full
        torch.save(checkpoint, content)
        write_whole(path, lambda file: file.write(content.getbuffer()))


def new_trainer(**kwargs: Any) -> pl.Trainer:
    """Lightning's trainer, which saves no checkpoint unless told to.

    Args:
        kwargs: its own; a checkpoint that it saves appears whole or not at all.

    Raises:
        ClspError: devices, a strategy or a precision that this machine does not have.
    """
    kwargs = {"enable_checkpointing": False, "enable_model_summary": False, **kwargs}
    try:
        return pl.Trainer(plugins=[_WholeFiles()], **kwargs)
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        names = ("accelerator", "devices", "strategy", "precision")
        given = ", ".join(f"{name}={kwargs[name]}" for name in names if name in kwargs)
        raise ClspError(f"{given} do not fit this machine: {str(error).splitlines()[0]}") from error


def fit(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    checkpoint: Path | None,
) -> None:
    """Train, on from a checkpoint if there is one.

    Raises:
        Terminated: the system or a scheduler ended it (SIGTERM); Lightning would exit with code 0.
        KeyboardInterrupt: the user did.
    """
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    except SIGTERMException as error:
        raise Terminated from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    if trainer.interrupted:  # older versions return
        raise KeyboardInterrupt
