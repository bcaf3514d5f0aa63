"""The package from Python: what the verbs of the command line do, as functions.

Every function composes a configuration by its name, as ``--config-name`` does, and runs what the
verb of the command line runs. Settings are given as a mapping, ``{"optimizer.lr": 0.1}``; images
may be given as objects. Bad input raises :class:`clsp_plugin.ClspError`, a ``ValueError``. The
caller's random generators are left as they were.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch import nn

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.config.compose import compose
from clsp_plugin.config.overrides import TEXTS, literal, written
from clsp_plugin.config.shipped import fingerprint
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.objects import as_images, images_given
from clsp_plugin.data.preparation import Preparation
from clsp_plugin.data.splits import numbered_as
from clsp_plugin.engine.pretrain import pretrain as run_pretrain
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.evaluation.encoders import load_encoder
from clsp_plugin.inspection.frechet import denoiser as run_denoiser
from clsp_plugin.methods.backbones import resolve_stem
from clsp_plugin.records.environment import made_from
from clsp_plugin.records.record import Record, find_records
from clsp_plugin.verbs import EVALUATIONS, VERBS

if TYPE_CHECKING:
    import pandas

__all__ = [
    "Preparation",
    "Run",
    "evaluate",
    "generate",
    "load_backbone",
    "pretrain",
    "read_records",
    "train_denoiser",
]


@dataclass(frozen=True)
class Run:
    """A finished pre-training.

    Attributes:
        folder: the run's directory, which the evaluations take.
        checkpoint: the last checkpoint; None with ``checkpoint.enabled=False``.
    """

    folder: Path
    checkpoint: Path | None

    @property
    def record(self) -> Record:
        """What the run was and what it reached, read from ``record.json`` in its folder."""
        return Record.load(self.folder / "record.json")


def pretrain(
    config: str,
    settings: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    val_data: Any = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Run:
    """Pre-train a method, or continue an unfinished run of the same configuration.

    Args:
        config: name of a configuration, such as ``"cifar/clsp_simclr"``, or path of a YAML file.
        settings: dotted settings in place of the configuration's, such as
            ``{"max_epochs": 100, "optimizer.lr": 0.1}``.
        data: the training images as an object, see
            :func:`clsp_plugin.data.objects.as_images`; None for those that the configuration names.
        val_data: the test images for the accuracy that is shown meanwhile, with the same classes;
            only with ``data``.
        callbacks: further callbacks of Lightning.
        loggers: further loggers of Lightning.

    Returns:
        The run.

    Raises:
        ClspError: the configuration, the images or the candidates are invalid, or the training
            fails.
    """
    images = _objects(data, val_data, settings)
    with _composed("pretrain", config, settings, *images) as cfg:
        done = run_pretrain(cfg, callbacks=callbacks, loggers=loggers)
    return Run(done.run_dir, done.checkpoint)


def train_denoiser(
    config: str = "digits/denoiser",
    settings: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Path:
    """Train a denoiser, or continue an unfinished training.

    Args:
        config: as in :func:`pretrain`, of ``clsp denoiser``.
        settings: as in :func:`pretrain`; ``out`` is the directory that is written.
        data: as in :func:`pretrain`.
        callbacks: as in :func:`pretrain`.
        loggers: as in :func:`pretrain`.

    Returns:
        The denoiser's directory, a diffusers pipeline.

    Raises:
        ClspError: the configuration or the images are invalid, or the training fails.
    """
    train, _ = _objects(data, None, settings)
    with _composed("denoiser", config, settings, train) as cfg:
        run_denoiser(cfg, callbacks=callbacks, loggers=loggers)
        return Path(str(cfg.out))


def generate(
    config: str = "digits/generate",
    settings: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
) -> CandidateStore:
    """Draw candidates for every training image, or those that a store still lacks.

    Args:
        config: as in :func:`pretrain`, of ``clsp generate``.
        settings: as in :func:`pretrain`; ``denoiser`` is the directory to draw with and ``out`` the
            store to write.
        data: as in :func:`pretrain`; the same images in the same order as in the pre-training.

    Returns:
        The store.

    Raises:
        ClspError: the configuration, the images or the denoiser are invalid, or the store was made
            with other settings.
    """
    if (settings or {}).get("dry_run"):
        raise ClspError("dry_run=True makes no store; use `clsp generate dry_run=True`.")
    train, _ = _objects(data, None, settings)
    with _composed("generate", config, settings, train) as cfg:
        VERBS["generate"].run(cfg)
        return CandidateStore(str(cfg.out))


def evaluate(
    checkpoint: str | Path | Run,
    task: str = "knn",
    settings: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    test_data: Any = None,
    config: str | None = None,
) -> Any:
    """Evaluate a pre-training's backbone, and add the result to its record.

    Args:
        checkpoint: a run, its directory, a checkpoint, or for ``linear``, ``knn`` and ``transfer``
            an encoder from elsewhere as in :func:`load_backbone`.
        task: ``linear``, ``knn``, ``transfer`` or ``finetune``.
        settings: as in :func:`pretrain`, such as ``{"protocol": "paper"}``.
        data: the labelled training images as an object, as in :func:`pretrain`; None for those of
            the pre-training.
        test_data: the test images, with ``data``.
        config: name of a configuration in place of the task's own.

    Returns:
        The evaluation as it stands in the record, with ``top1`` in percent among others; for
        ``transfer`` a list of them.

    Raises:
        ClspError: the task is not known, the checkpoint is of another architecture, images have no
            labels, ...
    """
    if task not in EVALUATIONS:
        raise ClspError(f"task={task} is not known{nearest(task, EVALUATIONS)}")
    if (data is None) != (test_data is None):
        raise ClspError("An evaluation needs both data and test_data, or neither.")
    if data is not None and task == "transfer":
        raise ClspError(
            "transfer reads the data sets that it names; to evaluate on images of your own take "
            "task='linear'."
        )
    folder = checkpoint.folder if isinstance(checkpoint, Run) else checkpoint
    given = {**(settings or {}), "pretrained_feature_extractor": str(folder)}
    name = config or VERBS[task].configuration
    assert name is not None
    images = _objects(data, test_data, given)
    with _composed(task, name, given, *images) as cfg:
        return VERBS[task].run(cfg)


def load_backbone(encoder: str | Path | Run) -> nn.Module:
    """Load the backbone of a pre-training, or an encoder from elsewhere, for evaluation on the CPU.

    Args:
        encoder: a run, its directory, a checkpoint of ours or of solo-learn, or one of the
            authors'; or a network from elsewhere, such as ``"timm:resnet50"``, see
            :func:`clsp_plugin.evaluation.encoders.load_encoder`.

    Returns:
        The network, prepared images (B, 3, S, S) to features (B, D). ``num_features`` is D, and
        ``prepare`` a :class:`Preparation`: ``backbone(backbone.prepare(images))``.

    Raises:
        ClspError: there is no such checkpoint or network, or it is of another architecture than its
            ``args.json`` says.
    """
    path = encoder.folder if isinstance(encoder, Run) else encoder
    with isolate_rng(include_cuda=False):  # weights are drawn before they are loaded
        loaded = load_encoder(path)
    module = loaded.backbone.eval()
    setattr(module, "prepare", loaded.prepare)  # noqa: B010 for mypy
    return module


def read_records(*paths: str | Path) -> "pandas.DataFrame":
    """Read the records of runs, with a row per evaluation.

    Args:
        paths: run directories, folders of runs or of suites, or ``record.json`` files; without any,
            ``trained_models``.

    Returns:
        Columns ``method``, ``dataset``, ``backbone``, ``epochs``, ``seed``, ``num_train``,
        ``task``, ``protocol``, ``evaluated_on``, ``epoch``, ``top1`` and ``top5`` (percent),
        ``images_per_second``, ``commit`` and ``path``. A run without evaluations has one row.

    Raises:
        ClspError: a record is damaged, a path has none, or pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ClspError(
            "read_records() needs pandas; `pip install pandas`, or make a CSV with "
            "`clsp table --format csv`."
        ) from None
    rows = []
    for path, record in find_records([Path(p) for p in paths or ("trained_models",)]):
        names = ("method", "dataset", "backbone", "epochs", "seed", "num_train")
        about = {name: getattr(record, name) for name in names}
        after = {
            "images_per_second": record.timings.get("images_per_second"),
            "commit": record.commit,
            "path": str(path),
        }
        for evaluation in record.evaluations or [{}]:
            found = {name: evaluation.get(name) for name in ("task", "protocol")}
            found["evaluated_on"] = evaluation.get("dataset")
            found |= {name: evaluation.get(name) for name in ("epoch", "top1", "top5")}
            rows.append({**about, **found, **after})
    return pandas.DataFrame(rows)


def _objects(
    data: Any, test: Any, settings: Mapping[str, Any] | None
) -> tuple[ImageArray | None, ImageArray | None]:
    """Read images given as objects; test images are numbered by the training images' classes."""
    if data is None:
        if test is not None:
            raise ClspError("Test images were given without training images; give data too.")
        return None, None
    size = (settings or {}).get("data.image_size")
    train = as_images(data, size, "data")
    return train, None if test is None else numbered_as(as_images(test, size, "test data"), train)


@contextmanager
def _composed(
    verb: str,
    config: str,
    settings: Mapping[str, Any] | None,
    train: ImageArray | None = None,
    test: ImageArray | None = None,
) -> Iterator[DictConfig]:
    """Compose a configuration for images, and restore the caller's random generators afterwards."""
    overrides = [_typed(key, value) for key, value in (settings or {}).items()]
    cfg = compose(verb, config, overrides)
    OmegaConf.set_struct(cfg, False)
    source = made_from(config, overrides, fingerprint(cfg))
    if train is not None and verb not in EVALUATIONS:
        if "backbone" in cfg:  # the stem for the data set that the configuration names
            cfg.backbone.stem = resolve_stem(cfg.backbone, cfg.data.dataset)
        cfg.data.dataset, cfg.data.train_path, cfg.data.val_path = "custom", None, None
    with isolate_rng(include_cuda=torch.cuda.is_initialized()), source, images_given(train, test):
        yield cfg


def _typed(key: str, value: Any) -> str:
    """Return a setting as it is typed, ``key=value``."""
    if isinstance(value, Path) or (isinstance(value, str) and key.rpartition(".")[2] in TEXTS):
        return literal(key, str(value))
    return f"{key}={written(value)}"
