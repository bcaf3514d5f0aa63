"""``clsp pretrain``: from images to a checkpoint and a record."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from clsp_plugin.data.augmentation import can_compile
from clsp_plugin.data.extra import inflate
from clsp_plugin.data.images import ImageArray, channel_statistics
from clsp_plugin.data.loader import PretrainData
from clsp_plugin.data.random import Purpose, derive_key
from clsp_plugin.data.splits import load_splits
from clsp_plugin.engine.checkpoint import (
    Checkpointer,
    epoch_of,
    find_checkpoint,
    find_resumable,
    load_args,
    new_run_dir,
)
from clsp_plugin.engine.config import parse_cfg, trainer_kwargs
from clsp_plugin.engine.progress import Bar, History, quiet
from clsp_plugin.engine.record import RECORD, Record, environment
from clsp_plugin.engine.trainer import fit, new_trainer
from clsp_plugin.errors import ClspError
from clsp_plugin.memory import keep_freed_memory
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.synthetic import SyntheticPositives

__all__ = ["Finished", "continue_from", "make_trainer", "pretrain", "worth_compiling"]

# Compiling takes about half a minute; it pays from about this many augmented images on.
_WORTH_COMPILING = 3_000_000


@dataclass
class Finished:
    """What a pre-training leaves: its directory, its last checkpoint and its record's path."""

    run_dir: Path
    checkpoint: Path
    record: Path


class SeedSteps(Callback):
    """Start every step from a seed of its own, so that a continued run draws the same numbers.

    Order, augmentation and candidates are keyed and need no state; this is for layers with
    randomness of their own, such as dropout and stochastic depth.
    """

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        key = derive_key(module.cfg.seed, Purpose.TRAINING, trainer.current_epoch, batch_idx)
        torch.manual_seed((key + trainer.global_rank) & 0x7FFFFFFF)


@quiet()
def pretrain(
    given: DictConfig, *, title: str | None = None, position: int | None = None
) -> Finished:
    """Pre-train as a configuration says; continues an unfinished run of the same one.

    Args:
        given: solo-learn's keys and ours, see ``engine.config.Pretrain``.
        title: what the progress bar says.
        position: the bar's line, where several processes show one each.

    Raises:
        ClspError: anything about the configuration, the images or the candidates that is wrong,
            before a file is written.
    """
    cfg = parse_cfg(given, METHODS)
    real, val = load_splits(cfg.data)
    train, places = inflate(real, cfg.data)
    _check_extra(cfg)
    cfg.data.num_classes = max(1, len(train.classes))
    cfg.data.mean, cfg.data.std = channel_statistics(cfg.data, cfg.augmentations)
    checkpoint = continue_from(cfg)
    if checkpoint is not None and epoch_of(checkpoint) + 1 >= cfg.max_epochs:
        print(f"Already complete: {checkpoint} (auto_resume.enabled=False trains anew).")
        return _complete(cfg, checkpoint, train)

    pl.seed_everything(cfg.seed)
    model = METHODS[cfg.method](cfg)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    compiled = worth_compiling(cfg, len(train if places is None else places))
    model.attach_images(train)
    if isinstance(model, SyntheticPositives):
        model.attach(train, cfg.data.mean, cfg.data.std, compile=compiled)
    if val is not None:  # to the size of the views, as an evaluation does
        val = val.squared(cfg.augmentations[0].crop_size or val.size[0])
    data = PretrainData(
        train, val, cfg.augmentations, cfg.optimizer.batch_size, cfg.seed,
        cfg.data.mean, cfg.data.std, compile=compiled, places=places,
    )  # fmt: skip
    run_dir = checkpoint.parent if checkpoint is not None else new_run_dir(cfg)
    history = History({"environment": environment(cfg.method), "candidates": _candidates(model)})
    bar = Bar(title or f"pre-train {cfg.method}", position=position)
    trainer = make_trainer(cfg, run_dir, [bar, history], val is not None, checkpoint)
    keep_freed_memory(trainer.strategy.root_device)
    if checkpoint is not None and trainer.is_global_zero:
        print(f"Continuing from {checkpoint}.")
    started = time.perf_counter()
    if cfg.debug_augmentations:
        print("Views:", *(pipeline.cfg for pipeline in data.pipelines), sep="\n  ")
    fit(trainer, model, data, checkpoint)
    checkpoint = run_dir / f"{cfg.name}-{run_dir.name}-ep={trainer.max_epochs - 1}.ckpt"
    finished = Finished(run_dir, checkpoint, run_dir / RECORD)
    if trainer.is_global_zero:
        timings = {"last_start_seconds": time.perf_counter() - started}
        _record(cfg, finished, history, train, timings).save(finished.record)
    return finished


def _check_extra(cfg: DictConfig) -> None:
    """Third views are keyed by image, and candidates are of the real ones."""
    third = issubclass(METHODS[cfg.method], SyntheticPositives)
    if third and cfg.data.extra is not None and cfg.synthetic.weight > 0:
        raise ClspError(
            f"{cfg.method} makes a third view of every image and data.extra={cfg.data.extra} has "
            f"none; take the method without it, or leave data.extra and data.replicate out."
        )


def continue_from(cfg: DictConfig) -> Path | None:
    """The checkpoint that a complete configuration goes on from: the one it names, or its own.

    Raises:
        ClspError: the one it names is of another method or network.
    """
    if cfg.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(cfg.resume_from_checkpoint)
        args = load_args(checkpoint.parent)
        if args is not None and (args["method"], args["backbone"]["name"]) != (
            cfg.method,
            cfg.backbone.name,
        ):
            raise ClspError(
                f"{checkpoint} is of {args['method']} on {args['backbone']['name']}, the "
                f"configuration says {cfg.method} on {cfg.backbone.name}; give a checkpoint of it."
            )
        return checkpoint
    return find_resumable(cfg) if cfg.auto_resume.enabled else None


def worth_compiling(cfg: DictConfig, num_images: int) -> bool:
    """Whether to compile the augmentation: as the configuration says, or in long runs."""
    wanted = cfg.performance.compile_augmentation
    if wanted != "auto":
        return bool(wanted)
    views = num_images * cfg.max_epochs * (cfg.data.num_large_crops + cfg.data.num_small_crops + 1)
    return views >= _WORTH_COMPILING and can_compile()


def make_trainer(
    cfg: DictConfig,
    run_dir: Path,
    callbacks: list[Callback],
    validate: bool,
    checkpoint: Path | None,
) -> pl.Trainer:
    """Lightning's trainer as a complete configuration says.

    Args:
        cfg: of any ``engine.config.Training``, with ``method``.
        run_dir: where to save checkpoints.
        callbacks: besides those that seed the steps and save.
        validate: whether there are validation batches.
        checkpoint: that is gone on from, if one is.

    Raises:
        ClspError: devices or a precision that this machine does not have.
    """
    callbacks = [SeedSteps(), *callbacks]
    if cfg.checkpoint.enabled:
        callbacks.append(Checkpointer(cfg, run_dir))
    kwargs = trainer_kwargs(cfg)
    kwargs.update(
        logger=_wandb(cfg, checkpoint) if cfg.wandb.enabled else False,
        callbacks=callbacks,
        use_distributed_sampler=False,  # the order is already shared out, and keyed
        num_sanity_val_steps=0,
    )
    if not validate:
        kwargs["limit_val_batches"] = 0
    return new_trainer(**kwargs)


def _wandb(cfg: DictConfig, checkpoint: Path | None) -> Any:
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise ClspError(
            "wandb.enabled=True but wandb is not installed; `pip install wandb` or set "
            "wandb.enabled=False."
        ) from None
    from lightning.pytorch.loggers import WandbLogger

    args = load_args(checkpoint.parent) if checkpoint is not None else None
    logger = WandbLogger(
        name=cfg.name,
        project=cfg.wandb.project,
        entity=cfg.wandb.entity,
        offline=cfg.wandb.offline,
        id=(args or {}).get("wandb_run_id"),
        resume="allow",
    )
    logger.log_hyperparams(OmegaConf.to_container(cfg))
    return logger


def _candidates(model: pl.LightningModule) -> dict[str, Any] | None:
    """The manifest of the candidate store that a method draws from, if it draws from one."""
    manifest = getattr(getattr(getattr(model, "_third", None), "source", None), "manifest", None)
    return None if manifest is None else asdict(manifest)


def _complete(cfg: DictConfig, checkpoint: Path, train: ImageArray) -> Finished:
    """A run that needs no more training; one killed before its record was written gets it now."""
    finished = Finished(checkpoint.parent, checkpoint, checkpoint.parent / RECORD)
    if not finished.record.exists():
        history = History()
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        history.load_state_dict(content["callbacks"][history.state_key])
        _record(cfg, finished, history, train, {}).save(finished.record)
        print(f"Its record was missing and is written from the checkpoint: {finished.record}")
    return finished


def _record(
    cfg: DictConfig,
    finished: Finished,
    history: History,
    train: ImageArray,
    timings: dict[str, float],
) -> Record:
    about = history.about
    images = about["steps"] * cfg.optimizer.batch_size * about["processes"] * len(history.curve)
    return Record(
        method=cfg.method,
        dataset=cfg.data.dataset,
        backbone=cfg.backbone.name,
        epochs=history.curve[-1]["epoch"],
        seed=cfg.seed,
        num_train=len(train),
        images=train.identity,
        checkpoint=finished.checkpoint.name if cfg.checkpoint.enabled else None,
        curve=history.curve,
        timings={
            "train_seconds": history.seconds,
            "images_per_second": images / max(history.seconds, 1e-9),
            "processes": about["processes"],
            **timings,
        },
        candidates=about["candidates"],
        config=OmegaConf.to_container(cfg),
        evaluations=[],
        **about["environment"],
    )
