"""Schemas of training configurations: solo-learn's YAML keys and ours, with types and ranges."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import SimpleNamespace
from typing import Any, Optional

from omegaconf import MISSING, DictConfig, OmegaConf

from clsp_plugin.config.loggers import logger_names
from clsp_plugin.config.plain import plain
from clsp_plugin.config.rules import SEED, Rule, ranged
from clsp_plugin.config.trainer_arguments import (
    PRECISIONS,
    TrainerArguments,
    known_arguments,
    refuse_arguments,
)
from clsp_plugin.config.typed import typed
from clsp_plugin.errors import ClspError, nearest, short
from clsp_plugin.system.processes import cores

__all__ = [
    "Data",
    "Pretrain",
    "Synthetic",
    "Training",
    "parse_cfg",
    "trainer_kwargs",
    "training_cfg",
]

_LARGEST_SIDE = 4096  # pixels
# A larger learning rate is a mistake: the largest in use, of LARS and linear probes, are below 100.
RATE = Rule(low=0, high=10_000)
USES = ("align", "replace", "view", "multi")
CHOICES = ("uniform", "hardest", "easiest", "quantile", "curriculum")

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support


@dataclass
class Stem:
    """The first layers of a ResNet, in place of the architecture's own.

    Attributes:
        kernel_size: side of the first convolution, in pixels.
        stride: stride of the first convolution.
        padding: padding of the first convolution, in pixels.
        max_pool: whether a maximum pooling follows it.
    """

    kernel_size: int = ranged(3, low=1)
    stride: int = ranged(1, low=1)
    padding: int = ranged(1, low=0)
    max_pool: bool = False


@dataclass
class Backbone:
    """The network whose features are learnt.

    Attributes:
        name: a model of timm, or one of solo-learn's names, such as ``vit_tiny``.
        kwargs: arguments of timm's constructor, such as ``channels`` and ``layers``.
        stem: stem of a ResNet; null takes the architecture's, and on CIFAR solo-learn's 3x3
            convolution without pooling.
    """

    name: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    stem: Optional[Stem] = None


@dataclass
class Data:
    """The training and validation images.

    Attributes:
        dataset: ``cifar10``, ``cifar100``, ``stl10``, ``imagenet100``, ``custom`` (own images) or
            ``digits`` (drawn offline).
        train_path: folder with a folder of images per class, a list of files, tar shards or a data
            set of Hugging Face (``hf:NAME``), see :mod:`~clsp_plugin.data.sources.choosing`; or the
            folder in which torchvision keeps, or puts, its files; of these null takes
            ``./datasets``.
        val_path: the same for the test images; null takes torchvision's, and none for folders.
        format: must be ``image_folder``; solo-learn's other formats are refused.
        num_workers: for solo-learn's loaders; batches here need no workers.
        no_labels: whether ``train_path`` is one folder of images without classes, or the labels of
            another source are left aside.
        image_column: column of the images in a list or a data set of Hugging Face, or their ending
            in tar shards; null takes the one that can be told.
        label_column: column of the labels, or in tar shards their ending or a key of the ``json``;
            null takes the one that can be told.
        fraction: share of the training images to use, of each class alike; -1 uses all.
        extra: generated images to train on too: a folder, an ``.npy``, an ``.npz`` or a candidate
            store; see :func:`~clsp_plugin.candidates.extra.inflate`.
        replicate: how many times a real image occurs in an epoch, against once for one of
            ``extra``.
        image_size: side in pixels that images are resized to and cut at the centre; null leaves
            them as they are, and packs images of several sizes.
        packed: whether images of folders are kept on the disk, written once: packed where
            ``image_size`` is null, squares otherwise. null packs images that have several sizes or
            do not fit in memory, and keeps squares there that take more than a quarter of it.
        pack_size: pixels of the shorter side of packed images, which are never enlarged.
        pack_format: ``jpeg`` (quality 92) or ``raw``; ``none`` packs nothing and reads each image
            where it lies, whenever it is needed.
        skip_damaged: whether images that cannot be read are left out.
        cache: folder of what is packed; null is ``clsp_plugin`` in the user's cache.
        num_train: number of training images of ``digits``.
        num_val: number of test images of ``digits``.
        seed: seed of the images of ``digits``.
        mean: mean of each channel for pixels in [0, 1]; null takes the data set's.
        std: standard deviation of each channel for pixels in [0, 1]; null takes the data set's.
        num_classes: set when the images are loaded.
        num_large_crops: set from the augmentations.
        num_small_crops: set from the augmentations.
    """

    dataset: str = MISSING
    train_path: Optional[str] = None
    val_path: Optional[str] = None
    format: str = "image_folder"
    num_workers: int = ranged(4, low=0)
    no_labels: bool = False
    image_column: Optional[str] = None
    label_column: Optional[str] = None
    fraction: float = ranged(-1, above=0, below=1, also=(-1,))
    extra: Optional[str] = None
    replicate: int = ranged(1, low=1)
    image_size: Optional[int] = ranged(None, low=1, high=_LARGEST_SIDE)
    packed: Optional[bool] = None
    pack_size: int = ranged(256, low=1, high=_LARGEST_SIDE)
    pack_format: str = ranged("jpeg", choices=("jpeg", "raw", "none"))
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

    Attributes:
        name: ``sgd``, ``lars``, ``adam`` or ``adamw``.
        batch_size: images per step and process.
        lr: learning rate, before ``scale_lr``.
        weight_decay: weight decay.
        exclude_bias_n_norm_wd: whether biases and normalisations go without weight decay.
        scale_lr: whether learning rates are multiplied by images per step / 256, as solo-learn
            always does.
        kwargs: further arguments of the optimiser, such as ``momentum`` (0.9 for ``sgd`` and
            ``lars``), ``nesterov`` or ``betas``; of ``lars`` also ``eta``, ``clip_lr`` and
            ``exclude_bias_n_norm``.
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
    """An optimiser that also trains an online probe.

    Attributes:
        classifier_lr: learning rate of the online probe, before ``scale_lr``.
    """

    classifier_lr: float = ranged(0.1, RATE)


@dataclass
class Scheduler:
    """The schedule of the learning rate.

    Attributes:
        name: ``warmup_cosine``, ``step`` (a tenth at each of ``lr_decay_steps``) or ``none``.
        warmup_epochs: epochs of linear warm-up.
        warmup_start_lr: learning rate at the first step of the warm-up.
        min_lr: learning rate at the end of the cosine.
        interval: whether ``warmup_cosine`` moves at every ``step`` or ``epoch``.
        lr_decay_steps: epochs after which ``step`` divides the learning rate by ten.
    """

    name: str = "warmup_cosine"
    warmup_epochs: float = ranged(10, low=0)
    warmup_start_lr: float = ranged(3e-5, RATE)
    min_lr: float = ranged(0.0, RATE)
    interval: str = "step"
    lr_decay_steps: Optional[list[int]] = ranged(None, low=0)


@dataclass
class Momentum:
    """The momentum network of the methods that have one.

    Attributes:
        base_tau: share of its weights that the momentum network keeps at the first step.
        final_tau: that share at the last step; it follows a cosine in between.
        classifier: whether an online probe is also trained on the momentum features.
    """

    base_tau: float = ranged(0.99, low=0, high=1)
    final_tau: float = ranged(1.0, low=0, high=1)
    classifier: bool = False


@dataclass
class Checkpoint:
    """What is saved while a training goes on.

    Attributes:
        enabled: whether checkpoints and the record are written.
        dir: folder of all runs; a run lies in ``DIR/METHOD/ID``.
        frequency: epochs between checkpoints; the last epoch is always saved.
        keep_prev: whether earlier checkpoints are kept.
    """

    enabled: bool = True
    dir: str = "trained_models"
    frequency: int = ranged(1, low=1)
    keep_prev: bool = False


@dataclass
class AutoResume:
    """How an unfinished run of the same configuration is continued.

    Attributes:
        enabled: whether it is.
        max_hours: age in hours from which a checkpoint is not continued; null for any age.
    """

    enabled: bool = False
    max_hours: Optional[float] = ranged(None, low=0)


@dataclass
class KnnEval:
    """Accepted so that solo-learn's configurations can be read; enabling it is refused.

    Attributes:
        enabled: must be false; ``clsp knn`` evaluates a checkpoint.
        k: solo-learn's number of neighbours; not used.
        distance_func: solo-learn's distance; not used.
    """

    enabled: bool = False
    k: int = ranged(20, low=1)
    distance_func: str = "cosine"


@dataclass
class Performance:
    """Settings of speed.

    Attributes:
        disable_channel_last: whether images keep torch's usual layout, channels first.
        compile_augmentation: whether to compile the augmentation; ``auto`` compiles if there is a
            compiler and the run is long.
        compile_network: whether to compile the backbone for training, which changes the rounding of
            sums and what a dropout inside of it drops; ``auto`` compiles a ResNet in a long run on
            one CUDA GPU, where it was measured to be faster. A run that goes on stays with ``auto``
            as it was.
    """

    disable_channel_last: bool = False
    compile_augmentation: Any = "auto"
    compile_network: Any = "auto"


@dataclass
class Synthetic:
    """Synthetic positives: where they are, what they are used for, which of them, how strongly.

    ``methods.synthetic`` says what each use computes, ``methods.schedules`` how the strength and
    the choice change over the training.

    Attributes:
        path: the candidate store; ``<method>_aug``, the control, needs none.
        num_candidates: how many of a store's candidates per image to choose from; null for all.
        use: ``align`` (the paper's term beside the method's loss), ``replace`` (in the place of
            view 2), ``view`` (a third view in the method's own loss) or ``multi`` (several
            candidates in a multi-positive loss).
        probability: how often ``replace`` replaces.
        per_step: how many candidates of an image ``multi`` takes in a step.
        temperature: of the loss of ``multi``.
        choice: which candidate: ``uniform``, or by its similarity to the anchor ``hardest``,
            ``easiest``, ``quantile`` or ``curriculum`` (from the easiest to the hardest).
        encoder: checkpoint, run, ``timm:NAME``, ``hf:NAME`` or ``torchvision:NAME`` that judges
            similarity, for ``choice`` and ``pair_weight``; null is the network in training.
        choice_of: of how many drawn candidates the choice is made; null for all.
        quantile: of ``choice=quantile``: 0 is the least similar, 1 the most.
        pair_weight: ``equal``, or ``quality``: GenView's weights of pairs, by the network in
            training or by ``encoder``.
        gamma: strength of ``pair_weight=quality``.
        from_epoch: the first epoch with synthetic positives.
        warmup_epochs: epochs over which the strength rises linearly from 0.
        schedule: ``constant``, or ``linear`` or ``cosine`` to ``final`` of it.
        final: share of the strength at the end of a schedule.
        weight: lambda, the weight of the term of ``align`` and ``multi``; 0 is the base method,
            whatever the use.
        augmentation: augmentation of the third view, with the keys of one of ``augmentations``;
            null takes the first of them.
    """

    path: Optional[str] = None
    num_candidates: Optional[int] = ranged(None, low=1)
    use: str = ranged("align", choices=USES)
    probability: float = ranged(1.0, low=0, high=1)
    per_step: int = ranged(2, low=0)
    temperature: float = ranged(0.2, above=0)
    choice: str = ranged("uniform", choices=CHOICES)
    choice_of: Optional[int] = ranged(None, low=2)
    quantile: float = ranged(0.5, low=0, high=1)
    pair_weight: str = ranged("equal", choices=("equal", "quality"))
    gamma: float = ranged(1.0, low=0)
    encoder: Optional[str] = None
    from_epoch: int = ranged(0, low=0)
    warmup_epochs: int = ranged(0, low=0)
    schedule: str = ranged("constant", choices=("constant", "linear", "cosine"))
    final: float = ranged(0.0, low=0, high=1)
    weight: float = ranged(1.0, low=0)
    augmentation: Optional[dict[str, Any]] = None

    @classmethod
    def completed(cls, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return a block with what it lacks, such as one that an older version saved."""
        return {**asdict(cls()), **(given or {})}

    @classmethod
    def candidates_used(cls, given: Mapping[str, Any] | None) -> bool:
        """Whether a block, which need not be complete, leaves candidates anything to do."""
        block = cls.completed(given)
        amount = {"replace": block["probability"], "multi": block["per_step"]}
        return block["weight"] != 0 and amount.get(block["use"]) != 0


@dataclass
class Wandb:
    """Weights & Biases, as in solo-learn's configurations; ``logger=wandb`` does the same.

    Attributes:
        enabled: whether the run is logged there.
        entity: user or team.
        project: project.
        offline: whether nothing is sent while the run goes on.
    """

    enabled: bool = False
    entity: Optional[str] = None
    project: str = "solo-learn"
    offline: bool = False


@dataclass
class AutoUmap:
    """Accepted so that solo-learn's configurations can be read; enabling it is refused.

    Attributes:
        enabled: must be false.
        dir: solo-learn's folder; not used.
        frequency: solo-learn's epochs between plots; not used.
    """

    enabled: bool = False
    dir: str = "auto_umap"
    frequency: int = ranged(1, low=1)


@dataclass
class Training:
    """The settings of every training by Lightning; other keys may be arguments of the Trainer.

    Attributes:
        name: name of the run; it begins the names of its checkpoints.
        data: the images.
        augmentations: a list of pipelines, each with the number of views that it makes.
        optimizer: the optimiser.
        scheduler: the schedule of the learning rate.
        checkpoint: what is saved.
        auto_resume: how an unfinished run is continued.
        resume_from_checkpoint: a checkpoint, or the folder of a run, to continue in a new run.
        performance: settings of speed.
        wandb: Weights & Biases.
        logger: where the numbers of every epoch go besides ``metrics.csv``: ``tensorboard``,
            ``wandb``, ``mlflow``, ``trackio``, or several with commas.
        max_epochs: number of passes over the images.
        seed: seed of weights, order, views and candidates.
        devices: number of devices per node, a list of their numbers, or ``auto``; on the CPU the
            number of processes.
        num_nodes: number of machines.
        accelerator: ``auto``, ``cpu``, ``gpu`` or another of Lightning's.
        strategy: Lightning's, such as ``ddp``; null and ``auto`` leave it to Lightning.
        precision: Lightning's precision of the network; views are always float32.
        sync_batchnorm: whether batch normalisation is computed over all processes.
        accumulate_grad_batches: batches whose gradients are added up for one step.
    """

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
    """All settings of ``clsp pretrain``.

    Attributes:
        method: name of the method; ``clsp_<method>`` adds synthetic positives, ``<method>_aug`` is
            the control with one more augmentation of the image itself.
        method_kwargs: settings of the method.
        backbone: the network.
        momentum: the momentum network.
        synthetic: synthetic positives.
        joint_forward: whether all views pass through the network as one batch, so that batch
            normalisation sees them together, as the authors do for SimCLR.
        knn_eval: solo-learn's alone.
        auto_umap: solo-learn's alone.
        dali: solo-learn's alone; not used.
        debug_augmentations: whether to print the augmentations at the start.
    """

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

    taken = {f.name for f in fields(TrainerArguments)}
    taken |= {f.name for f in fields(Training)} & known_arguments()
    kwargs = {k: v for k, v in plain(cfg).items() if k in taken}
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
