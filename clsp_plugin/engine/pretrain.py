"""``clsp pretrain``: from images to a checkpoint and a record."""

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from clsp_plugin.candidates.extra import inflate
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.plain import plain
from clsp_plugin.config.training import Synthetic, parse_cfg, trainer_kwargs
from clsp_plugin.data.datasets import DATASETS
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.data.keyed_random import Purpose, derive_key, seed_generators
from clsp_plugin.data.loader import PretrainData
from clsp_plugin.data.packed.images import PackedImages, customary_resize
from clsp_plugin.data.splits import open_splits
from clsp_plugin.engine.compiling import parts_to_compile
from clsp_plugin.engine.loggers import check_installed, log_training
from clsp_plugin.engine.progress import Bar, History, MetricsFile, quiet
from clsp_plugin.engine.resume import Resumed, Start, find_start
from clsp_plugin.engine.trainer import Finite, fit, new_trainer
from clsp_plugin.engine.watching import Watching
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.backbones import check_network, mend_layout
from clsp_plugin.methods.judging import FrozenEncoder
from clsp_plugin.methods.synthetic import SyntheticPositives
from clsp_plugin.records.backbone import frozen_encoder, weights_digest
from clsp_plugin.records.checkpoint import Checkpointer, read_checkpoint
from clsp_plugin.records.environment import environment
from clsp_plugin.records.record import RECORD, Record, check_record
from clsp_plugin.system.locks import locked
from clsp_plugin.system.memory import keep_freed_memory
from clsp_plugin.system.processes import check_launch

__all__ = ["Finished", "check", "make_trainer", "pretrain"]


@dataclass
class Finished:
    """The results of a pre-training: the run's directory, its last checkpoint and its record.

    ``checkpoint`` is None if ``checkpoint.enabled`` is False.
    """

    run_dir: Path
    checkpoint: Path | None
    record: Path


def check(cfg: DictConfig) -> None:
    """Refuse a configuration that :func:`pretrain` would refuse for any images.

    Args:
        cfg: the composed configuration; not changed.

    Raises:
        ClspError: the configuration is refused; the message names the setting.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    cfg = parse_cfg(cfg, METHODS)
    if cfg.data.dataset not in DATASETS:
        name = cfg.data.dataset
        raise ClspError(f"data.dataset={name} is not known{nearest(name, DATASETS)}")
    check_installed(cfg.logger)
    _check_generated(cfg)
    METHODS[cfg.method].add_and_assert_specific_cfg(cfg)


class SeedSteps(Callback):
    """Seed every step, so that a continued run draws the same random numbers.

    The order of the images, augmentations and candidates are drawn from keys and need no state.
    This is for layers that draw random numbers, such as dropout and stochastic depth.
    """

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        key = derive_key(module.cfg.seed, Purpose.TRAINING, trainer.current_epoch, batch_idx)
        seed_generators((key + trainer.global_rank) & 0x7FFFFFFF, module.device)


@quiet()
def pretrain(
    given: DictConfig,
    *,
    title: str | None = None,
    position: int | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Finished:
    """Pre-train as a configuration says, or continue an unfinished run of this configuration.

    Args:
        given: solo-learn's keys and ours, see ``config.training.Pretrain``.
        title: the text in front of the progress bar.
        position: the line of the bar, when several processes show one each.
        callbacks: further callbacks of Lightning.
        loggers: further loggers of Lightning.

    Raises:
        ClspError: the configuration, the images, the candidates or the record of the run to be
            continued are invalid (found before a file is written), or the training fails.
    """
    check_launch()
    cfg = parse_cfg(given, METHODS)
    check_installed(cfg.logger)
    _check_generated(cfg)
    METHODS[cfg.method].add_and_assert_specific_cfg(cfg)  # before images are read
    real, val = open_splits(cfg.data)
    cfg.data.packed = isinstance(real, PackedImages) or None  # so are those of an evaluation
    train, places = inflate(real, cfg.data)
    cfg.data.num_classes = max(1, len(train.classes))
    cfg.data.mean, cfg.data.std = channel_statistics(cfg.data, cfg.augmentations)
    encoder, refused = _judge(cfg)
    identity = {"images": train.identity, **_digest_of_candidates(cfg)}
    if encoder is not None:
        identity["encoder"] = weights_digest(encoder.backbone)
    with ExitStack() as held:
        start = find_start(cfg, identity, held)
        check_record(start.run_dir / RECORD)
        if start.complete:
            print(f"Already complete: {start.checkpoint} (auto_resume.enabled=False trains anew).")
            return _complete(cfg, start, train)
        if refused is not None:
            raise refused
        bar = Bar(title or f"pre-train {cfg.method}", position=position)
        made_from = _Given(train, val, places, encoder, identity)
        return _train(cfg, start, made_from, [bar, *callbacks], loggers, held)


@dataclass(frozen=True)
class _Given:
    """What a training is made from.

    Attributes:
        train: the images to train on.
        val: those to validate on, if there are any.
        places: of an epoch, see ``candidates.extra.inflate``.
        encoder: the trained network that judges candidates, if there is one.
        identity: see :func:`find_start`.
    """

    train: Images
    val: Images | None
    places: torch.Tensor | None
    encoder: FrozenEncoder | None
    identity: dict[str, Any]


def _has_third_views(cfg: DictConfig) -> bool:
    third = issubclass(METHODS[cfg.method], SyntheticPositives)
    return third and Synthetic.candidates_used(cfg.synthetic)


def _judge(cfg: DictConfig) -> tuple[FrozenEncoder | None, ClspError | None]:
    """Load the network that judges candidates, if there is one, or return why it cannot be loaded.

    A run that is complete does not need it.
    """
    encoder = cfg.synthetic.encoder
    if encoder is None or not _has_third_views(cfg):
        return None, None
    if Path(encoder).resolve() == (Path(cfg.checkpoint.dir) / cfg.method).resolve():
        raise ClspError(
            f"synthetic.encoder={encoder} holds the runs of {cfg.method}, this one among them, so "
            f"the training would judge by itself once it is continued; name one run in it."
        )
    try:
        return frozen_encoder(encoder, cfg.data), None
    except ClspError as error:
        return None, error


def _digest_of_candidates(cfg: DictConfig) -> dict[str, str]:
    """Return what identifies the candidates, nothing where they cannot be opened.

    A run that is complete does not need them; all others are told by ``attach`` what is wrong.
    """
    drawn = _has_third_views(cfg) and METHODS[cfg.method].third_view == "candidate"
    if not drawn or cfg.synthetic.path is None:
        return {}
    try:
        store = CandidateStore(cfg.synthetic.path, cfg.synthetic.num_candidates)
    except ClspError:
        return {}
    return {"candidates": store.digest()}


def _train(
    cfg: DictConfig,
    start: Start,
    given: _Given,
    callbacks: list[Callback],
    loggers: Sequence[Logger],
    held: ExitStack,
) -> Finished:
    """Train from a start on."""
    train, val, places = given.train, given.val, given.places
    pl.seed_everything(cfg.seed)
    model = METHODS[cfg.method](cfg)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    check_network(
        cfg.backbone, model.backbone, [b.crop_size for b in cfg.augmentations],
        min(cfg.optimizer.batch_size, len(train)),
    )  # fmt: skip
    _check_batch(cfg, model)
    history = History({"environment": environment(cfg.method, cfg.data.dataset)})
    saver = Checkpointer(cfg, start.run_dir, given.identity, held)
    trainer = make_trainer(cfg, start, saver, [*callbacks, history], val is not None)
    device = trainer.strategy.root_device
    compiled = saver.compiled = parts_to_compile(
        cfg, device, processes=trainer.world_size, start=start,
        num_images=len(train if places is None else places),
    )  # fmt: skip
    if compiled["network"]:
        model.compile_networks()
    model.attach_images(train)
    if isinstance(model, SyntheticPositives):
        model.attach(train, cfg.data.mean, cfg.data.std, compile=compiled["augmentation"])
        if given.encoder is not None:
            model.judge_by(given.encoder)
    size = cfg.augmentations[0].crop_size
    if isinstance(val, ImageArray):  # resized to the size of the views, as in an evaluation
        val = val.squared(size or val.size[0])
    data = PretrainData(
        train, val, cfg.augmentations, cfg.optimizer.batch_size, cfg.seed,
        cfg.data.mean, cfg.data.std, compile=compiled["augmentation"], places=places,
        announce=model.begin_view if isinstance(model, SyntheticPositives) else None,
        squares={"size": size, "resize": customary_resize(size)},
    )  # fmt: skip
    history.about["candidates"] = _candidates(model)
    if not cfg.performance.disable_channel_last:
        mend_layout(model, device)
    keep_freed_memory(device)
    log_training(trainer, cfg, start, saver, history, loggers)
    if start.checkpoint is not None and trainer.is_global_zero:
        print(start.told)
    began = time.perf_counter()
    if cfg.debug_augmentations:
        print("Views:", *data.configs, sep="\n  ")
    fit(trainer, model, data, start.checkpoint)
    if not history.curve:
        raise ClspError("Nothing was trained: the Trainer's limits leave no step to do.")
    # each process names a new run by itself, and the first one's is the one that is there
    run_dir, last = trainer.strategy.broadcast((start.run_dir, saver.last))
    finished = Finished(run_dir, last, run_dir / RECORD)
    if trainer.is_global_zero:
        timings = {"last_start_seconds": time.perf_counter() - began}
        _save(_record(cfg, finished, history, train, timings), finished.record)
    return finished


def _check_batch(cfg: DictConfig, model: torch.nn.Module) -> None:
    """Refuse a batch of one image for a method that normalises vectors over the batch."""
    normalised = any(isinstance(part, torch.nn.BatchNorm1d) for part in model.modules())
    if cfg.optimizer.batch_size == 1 and normalised:
        raise ClspError(
            f"optimizer.batch_size=1 leaves the batch normalisation of {cfg.method} nothing to "
            f"compare; give at least 2."
        )


def _check_generated(cfg: DictConfig) -> None:
    """Refuse generated images that the method would not use.

    These are candidates for a method without a third view, and ``data.extra`` for one with it,
    since only real images have candidates.
    """
    third = issubclass(METHODS[cfg.method], SyntheticPositives)
    if not third and cfg.synthetic.path is not None:
        raise ClspError(
            f"method={cfg.method} has no third view and would not use synthetic.path="
            f"{cfg.synthetic.path}; take method=clsp_{cfg.method}, or set synthetic.path=null."
        )
    if third and cfg.data.extra is not None and Synthetic.candidates_used(cfg.synthetic):
        raise ClspError(
            f"{cfg.method} makes a third view of every image and data.extra={cfg.data.extra} has "
            f"none; take the method without it, or leave data.extra and data.replicate out."
        )


def make_trainer(
    cfg: DictConfig,
    start: Start,
    saver: Checkpointer,
    callbacks: list[Callback],
    validate: bool,
) -> pl.Trainer:
    """Make Lightning's trainer for a complete configuration.

    Args:
        cfg: the configuration, of any ``config.training.Training``, with ``method``.
        start: where the training begins.
        saver: the callback that saves checkpoints, which is used if ``checkpoint.enabled``.
        callbacks: further callbacks, a ``History`` among them, besides those that seed the steps,
            check that numbers are finite, continue from a checkpoint, and log.
        validate: whether there are validation batches.

    Raises:
        ClspError: this machine does not have the devices or the precision, its processes cannot
            synchronise their batch normalisation, or a logger cannot be opened.
    """
    finite = Finite(
        cfg.method,
        f"give a smaller optimizer.lr (it is {cfg.optimizer.lr:g} after scaling), a longer "
        f"scheduler.warmup_epochs, a larger temperature where there is one, or precision=32-true",
    )
    (history,) = (one for one in callbacks if isinstance(one, History))
    callbacks = [SeedSteps(), finite, Watching(history), *callbacks]
    if start.checkpoint is not None:
        callbacks.append(Resumed(start))
    if cfg.checkpoint.enabled:
        callbacks.append(saver)
    callbacks.append(MetricsFile(history, start.run_dir))
    kwargs = trainer_kwargs(cfg)
    kwargs.update(
        logger=False,
        callbacks=callbacks,
        use_distributed_sampler=False,  # the loader already divides the order among processes
        num_sanity_val_steps=0,
    )
    if not validate:
        kwargs["limit_val_batches"] = 0
    trainer = new_trainer(**kwargs)
    on_gpus = trainer.strategy.root_device.type == "cuda"
    if cfg.sync_batchnorm and trainer.world_size > 1 and not on_gpus:
        raise ClspError(
            "sync_batchnorm=True needs GPUs; set sync_batchnorm=False, with which each of the "
            f"{trainer.world_size} processes normalises its own images."
        )
    return trainer


def _candidates(model: pl.LightningModule) -> dict[str, Any] | None:
    """Return the manifest of the candidate store that a method draws from; None without one."""
    manifest = getattr(getattr(getattr(model, "_third", None), "source", None), "manifest", None)
    return None if manifest is None else asdict(manifest)


def _complete(cfg: DictConfig, start: Start, train: Images) -> Finished:
    """Return a run that needs no more training.

    If it was killed before its record was written, the record is written now.
    """
    finished = Finished(start.run_dir, start.checkpoint, start.run_dir / RECORD)
    if not finished.record.exists():
        history = History()
        content = read_checkpoint(start.source)
        try:
            history.load_state_dict(content["callbacks"][history.state_key])
            record = _record(cfg, finished, history, train, {})
        except (LookupError, TypeError) as error:  # a checkpoint of solo-learn has no history
            raise ClspError(
                f"{start.checkpoint} does not say how its training went, so there is no record to "
                f"write; evaluate it (clsp knn, clsp linear) or train anew with "
                f"auto_resume.enabled=False and without resume_from_checkpoint."
            ) from error
        _save(record, finished.record)
        print(f"Its record was missing and is written from the checkpoint: {finished.record}")
    return finished


def _save(record: Record, path: Path) -> None:
    """Write a record, and keep the evaluations in the file that it replaces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, wait=True):  # evaluations are added under the same lock
        if path.exists():
            record.evaluations = Record.load(path).evaluations
        record.save(path)


def _record(
    cfg: DictConfig,
    finished: Finished,
    history: History,
    train: Images,
    timings: dict[str, float],
) -> Record:
    about, seconds = history.about, sum(history.seconds)
    images = about["steps"] * cfg.optimizer.batch_size * about["processes"] * len(history.curve)
    return Record(
        method=cfg.method,
        dataset=cfg.data.dataset,
        backbone=cfg.backbone.name,
        epochs=int(history.curve[-1]["epoch"]),
        seed=cfg.seed,
        num_train=len(train),
        images=train.identity,
        checkpoint=None if finished.checkpoint is None else finished.checkpoint.name,
        curve=history.curve,
        timings={
            "train_seconds": seconds,
            "images_per_second": images / max(seconds, 1e-9),
            # the median leaves out what only some epochs do, such as compiling
            "epoch_seconds": statistics.median(history.seconds),
            "processes": about["processes"],
            **timings,
        },
        candidates=about["candidates"],
        config=plain(cfg),
        evaluations=[],
        **about["environment"],
    )
