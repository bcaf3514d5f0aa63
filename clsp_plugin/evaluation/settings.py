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

    ``pretrained_feature_extractor`` is a checkpoint, the directory of a run, or an encoder from
    elsewhere, see ``evaluation.encoders``; ``record_dir`` is the folder of the record of the last.
    ``data`` is that of the pre-training, with what is given here on top. ``cache`` keeps features
    beside the checkpoint; see ``evaluation.cache``.
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
    """Settings of the linear probe; ``lr`` is a rate, or several that the protocol chooses from."""

    finetune: bool = False
    flip: Optional[bool] = None
    lr: Any = ranged(1.0, PROBE_RATE)
    max_epochs: int = ranged(100, low=1)
    lr_decay_steps: list[int] = ranged([60, 80], low=0)


@dataclass
class Knn(_Evaluation):
    k: list[int] = ranged([5, 10, 20, 50, 100, 200], low=1)
    temperature: float = ranged(0.07, above=0)


@dataclass
class _DownstreamData:
    """The ``data`` block of a transfer.

    ``path`` is the folder of the data sets, ``image_size`` the side in pixels that images are
    resized to, by default that of the pre-training. The other settings describe the pre-training,
    for checkpoints that do not say.
    """

    path: str = "datasets"
    dataset: Optional[str] = None
    image_size: Optional[int] = ranged(None, low=1, high=4096)
    mean: Optional[list[float]] = ranged(None)
    std: Optional[list[float]] = ranged(None, above=0)


@dataclass
class Transfer:
    """Settings of ``clsp transfer``.

    It evaluates on one ``dataset`` or on several ``datasets``, by default those that the paper has
    for the data set of the pre-training. ``l2`` and ``max_iter`` belong to the strict protocol,
    ``flip``, ``lr``, ``max_epochs`` and ``lr_decay_steps`` to the paper's. ``record_dir`` is the
    folder of the record of an encoder from elsewhere.
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
