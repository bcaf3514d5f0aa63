"""The schemas of the evaluations' configurations."""

from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING, DictConfig

from clsp_plugin.config.plain import plain
from clsp_plugin.config.rules import SEED, Rule, ranged
from clsp_plugin.config.training import RATE
from clsp_plugin.config.typed import typed

__all__ = ["Knn", "Linear", "Transfer", "complete"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support


PROBE_RATE = Rule(above=0, high=RATE.high)


@dataclass
class _Evaluation:
    """Settings that the linear probe and kNN share.

    Attributes:
        pretrained_feature_extractor: a ``.ckpt``, the directory of a run, or an encoder from
            elsewhere such as ``timm:resnet18``.
        record_dir: folder of the record of an encoder from elsewhere; null is its own folder, or
            ``trained_models/encoders/NAME``.
        protocol: ``strict`` chooses on a tenth of the training images and looks at the test images
            once; ``paper`` chooses as published.
        data: keys of the pre-training's ``data`` block that differ.
        batch_size: images, or features, per step.
        seed: seed of the held-out images and of the probe.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        cache: whether features are kept in ``features`` beside the checkpoint.
    """

    pretrained_feature_extractor: str = MISSING
    record_dir: Optional[str] = None
    protocol: str = "strict"
    data: dict[str, Any] = field(default_factory=dict)
    batch_size: int = ranged(256, low=1)
    seed: int = ranged(5, SEED)
    device: str = "auto"
    cache: bool = True


@dataclass
class Linear(_Evaluation):
    """Settings of the linear probe.

    Attributes:
        finetune: true runs ``clsp finetune`` instead, as in solo-learn.
        flip: whether to train on mirror images too; null does if the pre-training did.
        lr: a learning rate, or several: ``strict`` chooses one of them, ``paper`` takes the first.
        max_epochs: number of passes over the features.
        lr_decay_steps: epochs after which the learning rate is divided by ten.
    """

    finetune: bool = False
    flip: Optional[bool] = None
    lr: Any = ranged(1.0, PROBE_RATE)
    max_epochs: int = ranged(100, low=1)
    lr_decay_steps: list[int] = ranged([60, 80], low=0)


@dataclass
class Knn(_Evaluation):
    """Settings of the nearest neighbours.

    Attributes:
        k: numbers of neighbours that the protocol chooses from.
        temperature: T of the weight exp(cosine similarity / T) of a neighbour's vote.
    """

    k: list[int] = ranged([5, 10, 20, 50, 100, 200], low=1)
    temperature: float = ranged(0.07, above=0)


@dataclass
class _DownstreamData:
    """The ``data`` block of a transfer.

    Attributes:
        path: folder of the data sets, as torchvision keeps them.
        dataset: data set of the pre-training, for checkpoints that do not say.
        image_size: side in pixels that images are resized to; null takes that of the pre-training.
        mean: mean of the pre-training, for checkpoints that do not say.
        std: standard deviation of the pre-training, for checkpoints that do not say.
    """

    path: str = "datasets"
    dataset: Optional[str] = None
    image_size: Optional[int] = ranged(None, low=1, high=4096)
    mean: Optional[list[float]] = ranged(None)
    std: Optional[list[float]] = ranged(None, above=0)


@dataclass
class Transfer:
    """Settings of ``clsp transfer``.

    Attributes:
        pretrained_feature_extractor: a ``.ckpt``, the directory of a run, or an encoder from
            elsewhere such as ``timm:resnet18``.
        record_dir: folder of the record of an encoder from elsewhere; null is its own folder, or
            ``trained_models/encoders/NAME``.
        protocol: ``strict`` chooses ``l2`` on validation images; ``paper`` trains the authors'
            probe and chooses nothing.
        dataset: what to transfer to, such as ``pets``; see also ``datasets``.
        datasets: several of them; with neither, those that the paper has for the data set of the
            pre-training.
        data: where the images are.
        partition: number of one of DTD's ten official splits.
        l2: penalties that ``strict`` chooses from; null takes 45 from 1e-6 to 1e5.
        max_iter: iterations of L-BFGS for one penalty, with ``strict``.
        flip: whether to train on mirror images too, with ``paper``; null does if the pre-training
            did.
        lr: learning rate, with ``paper``.
        max_epochs: number of passes over the features, with ``paper``.
        lr_decay_steps: epochs after which the learning rate is divided by ten, with ``paper``.
        batch_size: images, or features, per step.
        num_workers: processes that read images.
        seed: seed of the held-out images and of Caltech-101's split.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        cache: whether features are kept in ``features`` beside the checkpoint.
    """

    pretrained_feature_extractor: str = MISSING
    record_dir: Optional[str] = None
    protocol: str = "strict"
    dataset: Optional[str] = None
    datasets: list[str] = field(default_factory=list)
    data: _DownstreamData = field(default_factory=_DownstreamData)
    partition: int = ranged(1, low=1)
    l2: Optional[list[float]] = ranged(None, low=0)
    max_iter: int = ranged(1000, low=1)
    flip: Optional[bool] = None
    lr: float = ranged(1.0, PROBE_RATE)
    max_epochs: int = ranged(100, low=1)
    lr_decay_steps: list[int] = ranged([60, 80], low=0)
    batch_size: int = ranged(256, low=1)
    num_workers: int = ranged(4, low=0)
    seed: int = ranged(5, SEED)
    device: str = "auto"
    cache: bool = True


def complete(schema: type, cfg: DictConfig) -> DictConfig:
    """Return a complete configuration of an evaluation, with a placeholder for its checkpoint.

    Args:
        schema: :class:`Linear`, :class:`Knn` or :class:`Transfer`.
        cfg: the composed configuration; not changed.

    Raises:
        ClspError: an unknown key, a wrong type or a value out of range.
    """
    return typed({**plain(cfg), "pretrained_feature_extractor": "."}, schema)
