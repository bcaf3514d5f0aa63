"""Schemas of training configurations: solo-learn's YAML keys and ours, with types and ranges."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any, Optional

from lightning.pytorch import Trainer
from omegaconf import MISSING, DictConfig, OmegaConf

from clsp_plugin.config.loggers import logger_names
from clsp_plugin.config.plain import plain
from clsp_plugin.config.rules import SEED, Rule, ranged
from clsp_plugin.config.trainer_arguments import PRECISIONS, TrainerArguments, refuse_arguments
from clsp_plugin.config.typed import typed
from clsp_plugin.errors import ClspError, nearest, short
from clsp_plugin.system.processes import cores

__all__ = ["Data", "Pretrain", "Training", "parse_cfg", "trainer_kwargs", "training_cfg"]

_LARGEST_SIDE = 4096  # pixels
# A larger learning rate is a mistake: the largest in use, of LARS and linear probes, are below 100.
RATE = Rule(low=0, high=10_000)

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support


@dataclass
class Stem:
    kernel_size: int = ranged(3, low=1)
    stride: int = ranged(1, low=1)
    padding: int = ranged(1, low=0)
    max_pool: bool = False


@dataclass
class Backbone:
    name: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    stem: Optional[Stem] = None


@dataclass
class Data:
    """The training and validation images.

    ``num_train``, ``num_val`` and ``seed`` apply to ``digits`` only.

    ``extra`` and ``replicate`` add generated images to pre-training; see
    ``candidates.extra.inflate``.

    ``packed`` keeps images of folders on the disk, packed once as ``pack_size`` (pixels of the
    shorter side) and ``pack_format`` say, in the folder ``cache``; by default so where
    ``image_size`` is null and the images have several sizes or do not fit in memory. See
    ``data.packed``.
    """

    dataset: str = MISSING
    train_path: Optional[str] = None
    val_path: Optional[str] = None
    format: str = "image_folder"
    num_workers: int = ranged(4, low=0)  # for solo-learn's loaders; batches here need no workers
    no_labels: bool = False
    fraction: float = ranged(-1, above=0, below=1, also=(-1,))
    extra: Optional[str] = None
    replicate: int = ranged(1, low=1)
    image_size: Optional[int] = ranged(None, low=1, high=_LARGEST_SIDE)
    packed: Optional[bool] = None
    pack_size: int = ranged(256, low=1, high=_LARGEST_SIDE)
    pack_format: str = ranged("jpeg", choices=("jpeg", "raw"))
    skip_damaged: bool = False
    cache: Optional[str] = None
    num_train: int = ranged(2000, low=1)
    num_val: int = ranged(1000, low=1)
    seed: int = ranged(0, SEED)
    mean: Optional[list[float]] = ranged(None)
    std: Optional[list[float]] = ranged(None, above=0)
    num_classes: Optional[int] = ranged(None, low=1)
    num_large_crops: Optional[int] = ranged(None, low=0)
    num_small_crops: Optional[int] = ranged(None, low=0)


@dataclass
class Optimizer:
    """The optimiser.

    ``scale_lr`` multiplies learning rates by images per step / 256, as solo-learn always does.
    """

    name: str = MISSING
    batch_size: int = ranged(MISSING, low=1)
    lr: float = ranged(MISSING, RATE)
    weight_decay: float = ranged(0.0, low=0)
    exclude_bias_n_norm_wd: bool = False
    scale_lr: bool = True
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ProbedOptimizer(Optimizer):
    """An optimiser that also trains an online probe, at the learning rate ``classifier_lr``."""

    classifier_lr: float = ranged(0.1, RATE)


@dataclass
class Scheduler:
    name: str = "warmup_cosine"
    warmup_epochs: float = ranged(10, low=0)
    warmup_start_lr: float = ranged(3e-5, RATE)
    min_lr: float = ranged(0.0, RATE)
    interval: str = "step"
    lr_decay_steps: Optional[list[int]] = ranged(None, low=0)


@dataclass
class Momentum:
    base_tau: float = ranged(0.99, low=0, high=1)
    final_tau: float = ranged(1.0, low=0, high=1)
    classifier: bool = False


@dataclass
class Checkpoint:
    enabled: bool = True
    dir: str = "trained_models"
    frequency: int = ranged(1, low=1)
    keep_prev: bool = False


@dataclass
class AutoResume:
    """``max_hours``: older checkpoints are not continued; by default age does not matter."""

    enabled: bool = False
    max_hours: Optional[float] = ranged(None, low=0)


@dataclass
class KnnEval:
    """Accepted so that solo-learn's configurations can be read; enabling it is refused."""

    enabled: bool = False
    k: int = ranged(20, low=1)
    distance_func: str = "cosine"


@dataclass
class Performance:
    """Settings of speed.

    ``compile_augmentation: auto`` compiles if there is a compiler and the run is long.
    ``compile_network`` compiles the backbone for training, which changes the rounding of sums and
    what a dropout inside of it drops; ``auto`` compiles a ResNet in a long run on one CUDA GPU,
    where it was measured to be faster. A run that goes on stays with ``auto`` as it was.
    """

    disable_channel_last: bool = False
    compile_augmentation: Any = "auto"
    compile_network: Any = "auto"


@dataclass
class Synthetic:
    path: Optional[str] = None
    num_candidates: Optional[int] = ranged(None, low=1)
    warmup_epochs: int = ranged(0, low=0)
    weight: float = ranged(1.0, low=0)
    augmentation: Optional[dict[str, Any]] = None


@dataclass
class Wandb:
    enabled: bool = False
    entity: Optional[str] = None
    project: str = "solo-learn"
    offline: bool = False


@dataclass
class AutoUmap:
    enabled: bool = False
    dir: str = "auto_umap"
    frequency: int = ranged(1, low=1)


@dataclass
class Training:
    """The settings of every training by Lightning; other keys may be arguments of the Trainer."""

    name: str = ranged(MISSING, name=True)
    data: Data = field(default_factory=Data)
    augmentations: Any = MISSING
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    auto_resume: AutoResume = field(default_factory=AutoResume)
    resume_from_checkpoint: Optional[str] = None
    performance: Performance = field(default_factory=Performance)
    wandb: Wandb = field(default_factory=Wandb)
    logger: Any = "csv"
    max_epochs: int = ranged(MISSING, low=1)
    seed: int = ranged(5, SEED)
    devices: Any = "auto"
    num_nodes: int = ranged(1, low=1)
    accelerator: str = "auto"
    strategy: Optional[str] = "auto"
    precision: Any = ranged("32-true", choices=PRECISIONS)
    sync_batchnorm: bool = False
    accumulate_grad_batches: int = ranged(1, low=1)


@dataclass
class Pretrain(Training):
    """All settings of ``clsp pretrain``."""

    method: str = MISSING
    method_kwargs: dict[str, Any] = field(default_factory=dict)
    backbone: Backbone = field(default_factory=Backbone)
    augmentations: list[Any] = MISSING
    optimizer: ProbedOptimizer = field(default_factory=ProbedOptimizer)
    momentum: Momentum = field(default_factory=Momentum)
    synthetic: Synthetic = field(default_factory=Synthetic)
    joint_forward: bool = False
    knn_eval: KnnEval = field(default_factory=KnnEval)
    auto_umap: AutoUmap = field(default_factory=AutoUmap)
    dali: Any = None
    debug_augmentations: bool = False


_TRAINER = {f.name for f in fields(TrainerArguments)}
_TRAINER |= {f.name for f in fields(Training)} & set(inspect.signature(Trainer).parameters)


def parse_cfg(cfg: Mapping[str, Any] | DictConfig, methods: Mapping[str, type]) -> DictConfig:
    """Check and complete a user's configuration of a pre-training, by solo-learn's rules.

    Args:
        cfg: solo-learn's keys and ours; not changed.
        methods: the registry that ``method`` must be in.

    Returns:
        A new, complete configuration, with learning rates scaled and crops counted. The caller
        sets ``data.num_classes`` when the images are loaded.

    Raises:
        ClspError: the configuration cannot be run as written.
    """
    cfg = training_cfg(cfg, Pretrain)
    if cfg.method not in methods:
        raise ClspError(f"method={cfg.method} is not known{nearest(cfg.method, methods)}")
    if cfg.knn_eval.enabled:
        raise ClspError(
            "knn_eval while training is solo-learn's alone; set knn_eval.enabled=False and run "
            "`clsp knn` on the checkpoint."
        )
    if cfg.auto_umap.enabled:
        raise ClspError("auto_umap is solo-learn's alone; set auto_umap.enabled=False.")
    _count_crops(cfg)
    return cfg


def training_cfg(cfg: Mapping[str, Any] | DictConfig, schema: type[Training]) -> DictConfig:
    """Check and complete the configuration of any training.

    Args:
        cfg: the configuration that was given; not changed.
        schema: the dataclass that it has to follow.

    Returns:
        A new configuration, with learning rates scaled.

    Raises:
        ClspError: the configuration cannot be run as written.
    """
    refuse_arguments(cfg, schema)
    passed = {f.name for f in fields(TrainerArguments)}
    cfg = typed(cfg, schema, extra=passed)
    typed({key: cfg[key] for key in passed if key in cfg}, TrainerArguments)
    _check_ranges(cfg)
    _scale_rates(cfg)
    cfg.logger = logger_names([*logger_names(cfg.logger), *["wandb"] * cfg.wandb.enabled])
    if cfg.optimizer.name in ("sgd", "lars"):
        cfg.optimizer.kwargs = {"momentum": 0.9, **cfg.optimizer.kwargs}
    return cfg


def _check_ranges(cfg: DictConfig) -> None:
    num_devices(cfg)
    if cfg.data.format != "image_folder":
        raise ClspError(
            f"data.format={cfg.data.format} is solo-learn's; the engine reads torchvision's files "
            f"and class folders: set data.format=image_folder."
        )
    for name in ("compile_augmentation", "compile_network"):
        if cfg.performance[name] not in ("auto", True, False):
            raise ClspError(f"performance.{name} must be auto, True or False.")


def _rates(cfg: DictConfig) -> list[str]:
    return [key for key in ("lr", "classifier_lr") if key in cfg.optimizer]


def _count_crops(cfg: DictConfig) -> None:
    blocks = cfg.augmentations
    if not isinstance(OmegaConf.to_container(blocks), list) or not blocks:
        raise ClspError("augmentations must be a list of at least one pipeline.")
    for number, block in enumerate(blocks):
        if not block or "crop_size" not in block or "num_crops" not in block:
            raise ClspError(f"augmentations.{number} needs crop_size and num_crops.")
        for key, most in (("crop_size", _LARGEST_SIDE), ("num_crops", 100)):
            if type(block[key]) is not int or not 1 <= block[key] <= most:
                raise ClspError(
                    f"augmentations.{number}.{key}={short(block[key])} must be a whole number, "
                    f"1 to {most}."
                )
    sizes = [block.crop_size for block in blocks]
    if sizes != sorted(sizes, reverse=True):
        raise ClspError(
            f"augmentations make crops of {sizes} pixels, in this order; put the large ones first."
        )
    large = [b.num_crops for b in blocks if b.crop_size == sizes[0]]
    cfg.data.num_large_crops = sum(large)
    cfg.data.num_small_crops = sum(b.num_crops for b in blocks) - sum(large)
    if cfg.data.num_large_crops != 2:
        raise ClspError(
            f"augmentations make {cfg.data.num_large_crops} large crops; the methods here take "
            f"two: set num_crops so that they add up to 2."
        )


def num_devices(cfg: DictConfig | SimpleNamespace) -> int:
    """Return the number of devices per node; ``auto`` stands for those of this machine."""
    devices = cfg.devices
    if devices in ("auto", "-1") or (devices == -1 and not isinstance(devices, bool)):
        import torch

        cpu = cfg.accelerator == "cpu" or not torch.cuda.is_available()
        return 1 if cpu else torch.cuda.device_count()
    try:
        if isinstance(devices, Sequence) and not isinstance(devices, str):
            numbers = [_whole(number) for number in devices]
        elif isinstance(devices, str) and "," in devices:
            numbers = [_whole(number) for number in devices.split(",") if number.strip()]
        else:
            numbers = list(range(min(_whole(devices), _MOST_DEVICES)))
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers):
        raise ClspError(
            f"devices={short(devices)} is neither a number of at least 1, a list of different "
            f"numbers nor auto."
        )
    return len(numbers)


_MOST_DEVICES = 1024


def _whole(value: Any) -> int:
    """Convert a whole number of at least 0, or its digits; raise ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isascii():
        raise ValueError
    number = int(value)
    if number < 0:
        raise ValueError
    return number


def _scale_rates(cfg: DictConfig) -> None:
    """Scale learning rates by solo-learn's two rules: images per step / 256, and accumulation."""
    optimizer, scheduler = cfg.optimizer, cfg.scheduler
    if optimizer.scale_lr:
        factor = optimizer.batch_size * num_devices(cfg) * cfg.num_nodes / 256
        accumulated = cfg.accumulate_grad_batches
        for key in _rates(cfg):
            optimizer[key] *= factor
            optimizer[key] *= accumulated
        scheduler.min_lr *= accumulated
        scheduler.warmup_start_lr *= accumulated


def _processes(number: int) -> int:
    """Refuse more processes on the CPU than it has cores."""
    if number > cores():
        raise ClspError(
            f"devices={number} means {number} processes on the CPU, which has {cores()} cores; set "
            f"devices=1, or accelerator=gpu."
        )
    return number


def trainer_kwargs(cfg: DictConfig) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer in a parsed configuration."""
    import torch

    kwargs = {k: v for k, v in plain(cfg).items() if k in _TRAINER}
    kwargs["strategy"] = kwargs["strategy"] or "auto"
    cpu = cfg.accelerator == "cpu" or (cfg.accelerator == "auto" and not torch.cuda.is_available())
    if cpu:
        # solo-learn's YAMLs list GPU numbers; on the CPU, their count is the number of processes
        kwargs["devices"] = _processes(num_devices(cfg))
        if str(cfg.precision) in ("16", "16-mixed"):
            raise ClspError(
                f"precision={cfg.precision} needs a GPU; set precision=bf16-mixed or 32-true."
            )
    if kwargs["strategy"] == "ddp" and num_devices(cfg) * cfg.num_nodes == 1:
        kwargs["strategy"] = "auto"  # one process needs no process group
    return kwargs
