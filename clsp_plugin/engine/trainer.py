"""Lightning's trainer with whole checkpoints, checks of its numbers, and errors for users."""

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
from clsp_plugin.methods.epoch_means import EpochMeans
from clsp_plugin.records.checkpoint import read_checkpoint
from clsp_plugin.system.emulation import warn_if_emulated
from clsp_plugin.system.files import write_whole

__all__ = ["Finite", "fit", "new_trainer"]


class _WholeFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, without the system's temporary folder."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        content = io.BytesIO()  # torch would raise its own type of error when the disk is full
        torch.save(checkpoint, content)
        write_whole(Path(path), lambda file: file.write(content.getbuffer()))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class _Means(Callback):
    """Logs the means of an epoch before other callbacks read them.

    Lightning calls the callbacks at the end of an epoch before the module.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if isinstance(module, EpochMeans):
            module.log_means()


def new_trainer(**kwargs: Any) -> pl.Trainer:
    """Make Lightning's trainer; by default it saves no checkpoints.

    Args:
        kwargs: arguments of the Trainer.

    Raises:
        ClspError: this machine does not have the devices, the strategy or the precision.
    """
    kwargs = {"enable_checkpointing": False, "enable_model_summary": False, **kwargs}
    try:
        callbacks = [_Means(), *kwargs.pop("callbacks", [])]
        trainer = pl.Trainer(plugins=[_WholeFiles()], callbacks=callbacks, **kwargs)
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        names = ("accelerator", "devices", "strategy", "precision")
        given = ", ".join(f"{name}={kwargs[name]}" for name in names if name in kwargs)
        raise ClspError(f"{given} do not fit this machine: {first_line(error)}") from error
    warn_if_emulated(trainer.precision, trainer.strategy.root_device)
    return trainer


class Finite(Callback):
    """Ends a training when its loss, weights or moments are not finite, before they are saved.

    The losses are checked on the device. The result is read every hundredth step and at the end
    of an epoch, where the host waits for the device anyway.

    Args:
        whose: the name of what is trained, for the message.
        advice: what the user can change, for the message.
    """

    every = 100

    def __init__(self, whose: str, advice: str):
        self.whose, self.advice = whose, advice

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # the step of the first loss that is not finite, from 1 in each epoch; 0 if there is none
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
        # summed over the processes, so that all of them stop if one has to
        if float(trainer.strategy.reduce((~finite).float(), reduce_op="sum")) > 0:
            self._stop(trainer, "weights", "are", "from its last step on")

    def _check_losses(self, trainer: pl.Trainer) -> None:
        # the largest of the processes (0 where all is well), so that all stop if one has to
        step = float(trainer.strategy.reduce(self._first, reduce_op="max"))
        if step > 0:
            self._stop(trainer, "loss", "is", f"from step {step:.0f} on")

    def _stop(self, trainer: pl.Trainer, what: str, verb: str, when: str) -> None:
        raise ClspError(
            f"The {what} of {self.whose} {verb} not finite in epoch {trainer.current_epoch + 1}, "
            f"{when}, with precision={trainer.precision}; {self.advice}. A checkpoint that was "
            f"saved before is kept."
        )


def _state(trainer: pl.Trainer) -> Iterator[torch.Tensor]:
    """Return the floating-point weights, running statistics and moments of the optimisers."""
    module = trainer.lightning_module
    tensors = [*module.parameters(), *module.buffers()]
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return (tensor.detach() for tensor in tensors if tensor.is_floating_point())


class _Began(Callback):
    """Notes that the training has begun, so everything in the checkpoint has been restored."""

    began = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began = True


def fit(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    checkpoint: Path | None,
) -> None:
    """Train, from a checkpoint on if there is one.

    Raises:
        ClspError: the checkpoint has other weights or is incomplete, the memory is too small, or
            Lightning refuses the configuration.
        Terminated: the system or a scheduler ended the training by SIGTERM; Lightning would exit
            with code 0.
        KeyboardInterrupt: the user ended the training.
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
    if trainer.interrupted:  # older versions of Lightning return instead of raising
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


# Parts of a checkpoint and their types. Without ``loops`` Lightning would begin at epoch 0, without
# ``callbacks`` the curve would be lost.
_WHOLE = {
    "state_dict": dict, "loops": dict, "callbacks": dict, "optimizer_states": list,
    "lr_schedulers": list,
}  # fmt: skip


def _check_whole(model: pl.LightningModule, content: Any, checkpoint: Path) -> None:
    """Check that a checkpoint has the parts that Lightning saves, and weights of a model's shapes.

    Raises:
        ClspError: it does not.
    """
    for key, kind in _WHOLE.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise _unfit(checkpoint, KeyError(f"{key} is not in it"))
    if not content["optimizer_states"]:  # Lightning would accept this
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
