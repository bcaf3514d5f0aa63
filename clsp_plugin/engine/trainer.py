"""Lightning's trainer as we use it: files appear whole, a stop is told, devices are checked."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from clsp_plugin.errors import ClspError, Terminated, first_line
from clsp_plugin.records.checkpoint import read_checkpoint
from clsp_plugin.system.files import write_whole

__all__ = ["Finite", "fit", "new_trainer"]


class _WholeFiles(TorchCheckpointIO):
    """Writes checkpoints beside their place, and not by way of the system's temporary folder."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        content = io.BytesIO()  # torch has an error of its own for a disk that is full
        torch.save(checkpoint, content)
        write_whole(Path(path), lambda file: file.write(content.getbuffer()))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


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
        raise ClspError(f"{given} do not fit this machine: {first_line(error)}") from error


class Finite(Callback):
    """Ends a training whose loss, weights or moments are no numbers any more, before it is saved.

    The losses are looked at on the device; what was found is read every hundredth step and at the
    end of an epoch, where the device is waited for anyway.

    Args:
        whose: that is trained, for people.
        advice: what to change.
    """

    every = 100

    def __init__(self, whose: str, advice: str):
        self.whose, self.advice = whose, advice

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # of the first loss that is none, its number in the epoch from 1; 0 where there is none
        self._first = torch.zeros((), device=module.device)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            bad = (self._first == 0) & ~torch.isfinite(loss.detach()).all()
            self._first = torch.where(bad, float(batch_idx + 1), self._first)
        if (batch_idx + 1) % self.every == 0:
            self._check_losses(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._check_losses(trainer)
        finite = torch.stack([t.isfinite().all().to(module.device) for t in _state(trainer)]).all()
        # the sum of what each process found, so that all of them stop
        if float(trainer.strategy.reduce((~finite).float(), reduce_op="sum")) > 0:
            self._stop(trainer, "weights", "are", "from its last step on")

    def _check_losses(self, trainer: pl.Trainer) -> None:
        # where processes differ, a step between theirs: all of them stop
        step = float(trainer.strategy.reduce(self._first, reduce_op="mean"))
        if step > 0:
            self._stop(trainer, "loss", "is", f"from step {step:.0f} on")

    def _stop(self, trainer: pl.Trainer, what: str, verb: str, when: str) -> None:
        raise ClspError(
            f"The {what} of {self.whose} {verb} not finite in epoch {trainer.current_epoch + 1}, "
            f"{when}, with precision={trainer.precision}; {self.advice}. A checkpoint that was "
            f"saved before is kept."
        )


def _state(trainer: pl.Trainer) -> Iterator[torch.Tensor]:
    """Weights, running statistics and moments."""
    module = trainer.lightning_module
    tensors = [*module.parameters(), *module.buffers()]
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return (tensor.detach() for tensor in tensors if tensor.is_floating_point())


class _Began(Callback):
    """Notes that all that a checkpoint restores is restored."""

    began = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began = True


def fit(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    checkpoint: Path | None,
) -> None:
    """Train, on from a checkpoint if there is one.

    Raises:
        ClspError: the checkpoint is of other weights or not whole, the memory is too small, or
            Lightning refuses what it is told.
        Terminated: the system or a scheduler ended it (SIGTERM); Lightning would exit with code 0.
        KeyboardInterrupt: the user did.
    """
    began = _Began()
    trainer.callbacks.insert(0, began)
    if checkpoint is not None:
        _check_whole(model, read_checkpoint(checkpoint), checkpoint)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    except SIGTERMException as error:
        raise Terminated from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    except MisconfigurationException as error:
        raise ClspError(f"Lightning refuses the configuration: {first_line(error)}") from error
    except (RuntimeError, MemoryError) as error:
        if _is_memory(error):
            raise ClspError(
                f"The memory is too small for this training ({first_line(error)}); give a smaller "
                f"batch size, network or image size."
            ) from error
        if checkpoint is None or began.began:
            raise
        raise _unfit(checkpoint, error) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ClspError) or checkpoint is None or began.began:
            raise
        raise _unfit(checkpoint, error) from error
    if trainer.interrupted:  # older versions return
        raise KeyboardInterrupt


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory"))


def _unfit(checkpoint: Path, error: BaseException) -> ClspError:
    return ClspError(
        f"{checkpoint} cannot be continued, something in it is missing or of another training "
        f"({first_line(error)}); delete it, or train anew with auto_resume.enabled=False."
    )


# Without its loops Lightning begins at epoch 0, without the callbacks' a curve is lost.
_WHOLE = {
    "state_dict": dict, "loops": dict, "callbacks": dict, "optimizer_states": list,
    "lr_schedulers": list,
}  # fmt: skip


def _check_whole(model: pl.LightningModule, content: Any, checkpoint: Path) -> None:
    """Check that a checkpoint has what Lightning saves, and the weights of a model, by shape."""
    for key, kind in _WHOLE.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise _unfit(checkpoint, KeyError(f"{key} is not in it"))
    if not content["optimizer_states"]:  # which Lightning passes over
        raise _unfit(checkpoint, KeyError("no moments of an optimiser are in it"))
    own, state = model.state_dict(), content["state_dict"]
    for key in sorted(own.keys() | state.keys()):
        shapes = [
            list(each[key].shape) if isinstance(each.get(key), torch.Tensor) else "missing"
            for each in (state, own)
        ]
        if shapes[0] != shapes[1]:
            told = f"{key} is {shapes[0]} in it and {shapes[1]} in the configuration's network"
            raise _unfit(checkpoint, ValueError(told))
