"""Which arguments of Lightning's Trainer a configuration may give, and why not the others."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Optional

from clsp_plugin.config.rules import ranged
from clsp_plugin.errors import ClspError

__all__ = ["PRECISIONS", "TrainerArguments", "known_arguments", "refuse_arguments"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support

# Lightning's names. Views are float32, which its other *-true precisions do not accept.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16", 32, 16)


@dataclass
class TrainerArguments:
    """Arguments of Lightning's Trainer that a configuration may give and that are passed on.

    They change how a step is computed or what is monitored, but not what an epoch is.

    Attributes:
        benchmark: whether cuDNN tries its algorithms and takes the fastest.
        check_val_every_n_epoch: epochs between validations.
        detect_anomaly: whether to look for the operation that made a gradient NaN; slow.
        deterministic: whether only deterministic algorithms are used; ``warn`` tells of others.
        gradient_clip_algorithm: whether ``gradient_clip_val`` limits the ``norm`` of the gradient
            or each ``value`` of it.
        gradient_clip_val: limit of the gradient; null means no clipping.
        inference_mode: whether validation runs in torch's inference mode.
        log_every_n_steps: steps between entries of loggers that log steps.
    """

    benchmark: Optional[bool] = None
    check_val_every_n_epoch: int = ranged(1, low=1)
    detect_anomaly: bool = False
    deterministic: Any = ranged(None, choices=(True, False, "warn"))
    gradient_clip_algorithm: Optional[str] = ranged(None, choices=("norm", "value"))
    gradient_clip_val: Optional[float] = ranged(None, low=0)
    inference_mode: bool = True
    log_every_n_steps: int = ranged(50, low=1)


_EPOCHS = "max_epochs says how long a training is"
_IMAGES = "an epoch is every training image once: data.fraction takes a share of them"
_OURS = "the engine decides it"
_INSTEAD = {
    "min_epochs": _EPOCHS,
    "max_steps": _EPOCHS,
    "min_steps": _EPOCHS,
    "max_time": f"{_EPOCHS}, and one that is stopped is continued with auto_resume.enabled=True",
    "fast_dev_run": "for a quick look set max_epochs=1 and data.fraction",
    "limit_train_batches": _IMAGES,
    "overfit_batches": _IMAGES,
    "limit_val_batches": "all validation images are looked at; data.val_path=null leaves them out",
    "limit_test_batches": "all test images are looked at",
    "limit_predict_batches": "nothing is predicted while training",
    "val_check_interval": "validation follows an epoch; check_val_every_n_epoch makes it rarer",
    "default_root_dir": "checkpoint.dir says where runs are written",
    "enable_checkpointing": "checkpoint.enabled says it",
    "barebones": "for a quick look set max_epochs=1 and data.fraction",
}


@cache
def known_arguments() -> frozenset[str]:
    """Return the names of all arguments of Lightning's Trainer."""
    from lightning.pytorch import Trainer  # takes seconds, which tables need not wait for

    return frozenset(inspect.signature(Trainer).parameters)


def refuse_arguments(cfg: Mapping[str, Any], schema: type) -> None:
    """Refuse the arguments of the Trainer that the engine does not take from a configuration.

    Args:
        cfg: the configuration that was given.
        schema: the dataclass of the training, which may have fields of the same names.

    Raises:
        ClspError: one is given; the message says what to set instead.
    """
    if not hasattr(cfg, "keys"):
        return  # not a block of settings, which `typed` refuses
    taken = {f.name for cls in (schema, TrainerArguments) for f in fields(cls)}
    known = known_arguments() - taken
    for key in cfg:
        if key in known:
            raise ClspError(
                f"{key} is an argument of Lightning's Trainer that is not taken here: "
                f"{_INSTEAD.get(key, _OURS)}. Leave {key} out."
            )
