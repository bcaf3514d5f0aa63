"""``clsp linear`` and ``clsp knn``: a checkpoint's features once, then a score on them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
import torchvision.transforms.v2.functional as F
from omegaconf import MISSING, DictConfig, OmegaConf

from clsp_plugin.data.images import ImageArray, channel_statistics, load_images
from clsp_plugin.engine.checkpoint import epoch_of
from clsp_plugin.engine.config import Data, typed
from clsp_plugin.engine.record import Record, add_evaluation, environment, record_path
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.backbone import load_backbone
from clsp_plugin.evaluation.features import Features, extract_features
from clsp_plugin.evaluation.finetune import finetune_cfg, train_and_test
from clsp_plugin.evaluation.protocol import check_protocol, evaluate_knn, evaluate_linear

__all__ = ["evaluate", "finetune", "knn", "linear"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support


@dataclass
class _Evaluation:
    """``data`` is that of the pre-training, with what is given here on top."""

    pretrained_feature_extractor: str = MISSING
    protocol: str = "strict"
    data: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 256
    seed: int = 5
    device: str = "auto"


@dataclass
class Linear(_Evaluation):
    """``lr`` is a rate, or several that the protocol chooses from."""

    finetune: bool = False
    flip: Optional[bool] = None
    lr: Any = 1.0
    max_epochs: int = 100
    lr_decay_steps: list[int] = field(default_factory=lambda: [60, 80])


@dataclass
class Knn(_Evaluation):
    k: list[int] = field(default_factory=lambda: [5, 10, 20, 50, 100, 200])
    temperature: float = 0.07


def linear(given: DictConfig) -> dict[str, Any]:
    """Linear probe on frozen features; prints the score and adds it to the run's record.

    With ``finetune=True``, solo-learn's key, it is :func:`finetune`.
    """
    if given.get("finetune"):
        return finetune(given)
    return evaluate(typed(given, Linear))


def knn(given: DictConfig) -> dict[str, Any]:
    """Weighted nearest neighbours; prints the score and adds it to the run's record."""
    return evaluate(typed(given, Knn))


def finetune(given: DictConfig) -> dict[str, Any] | None:
    """Train a checkpoint's backbone and a classifier on labels; prints and records the score.

    Args:
        given: keys of :class:`~clsp_plugin.evaluation.finetune.Finetune`.

    Returns:
        The evaluation, as it stands in the record; None on every process but the first.

    Raises:
        ClspError: a checkpoint of another architecture, images without labels, divergence, ...
    """
    given = OmegaConf.to_container(given, resolve=True)
    if given.get("pretrained_feature_extractor") in (None, "???"):
        raise ClspError("pretrained_feature_extractor is not set; give a .ckpt or a run's folder.")
    if given.get("finetune") is False:
        raise ClspError("finetune=False is the linear probe: `clsp linear`.")
    own = given.get("data") or {}
    backbone, args, checkpoint = load_backbone(given["pretrained_feature_extractor"], own)
    cfg = finetune_cfg({**given, "pretrained_feature_extractor": str(checkpoint)}, args)
    result = train_and_test(cfg, backbone)
    if result is None:
        return None
    result = {"dataset": cfg.data.dataset, "epoch": epoch_of(checkpoint) + 1, **result}
    record = record_path(checkpoint)
    if not record.exists():
        _record_of(args, checkpoint, result["num_train"]).save(record)
    add_evaluation(record, result)
    print(
        f"fine-tuning of {args['method']} on {result['dataset']}: top-1 {result['top1']:.2f} %, "
        f"top-5 {result['top5']:.2f} % (after {cfg.max_epochs} epochs, "
        f"{result['num_test']} test images) -> {record}"
    )
    return result


def _score_linear(cfg: DictConfig, train: Features, test: Features) -> dict[str, Any]:
    rates = [cfg.lr] if isinstance(cfg.lr, int | float) else list(cfg.lr)
    return evaluate_linear(
        train,
        test,
        cfg.protocol,
        rates[:1] if cfg.protocol == "paper" else rates,
        epochs=cfg.max_epochs,
        milestones=tuple(cfg.lr_decay_steps),
        batch_size=cfg.batch_size,
        seed=cfg.seed,
    )


def _score_knn(cfg: DictConfig, train: Features, test: Features) -> dict[str, Any]:
    return evaluate_knn(
        train, test, cfg.protocol, tuple(cfg.k), temperature=cfg.temperature, seed=cfg.seed
    )


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score a checkpoint.

    Args:
        cfg: a complete :class:`Linear` or :class:`Knn` configuration.

    Returns:
        The evaluation, as it stands in the record.

    Raises:
        ClspError: a checkpoint of another architecture, images without labels, ...
    """
    check_protocol(cfg.protocol)
    is_linear = "lr" in cfg
    backbone, args, checkpoint = load_backbone(
        cfg.pretrained_feature_extractor, OmegaConf.to_container(cfg.data)
    )
    flip = False
    if is_linear:
        flip = _flips(args) if cfg.flip is None else cfg.flip
    train, test = _features(cfg, backbone, args, flip)
    score: Callable = _score_linear if is_linear else _score_knn
    result = score(cfg, train[1], test[1])
    result = {"dataset": _dataset(cfg, args), "epoch": epoch_of(checkpoint) + 1, **result}
    record = record_path(checkpoint)
    if not record.exists():
        _record_of(args, checkpoint, len(train[0])).save(record)
    add_evaluation(record, result)
    what = "linear probe" if is_linear else "kNN"
    chosen = ", ".join(f"{key}={value:g}" for key, value in result["chosen"].items())
    print(
        f"{what} of {args['method']} on {result['dataset']}: top-1 {result['top1']:.2f} %, "
        f"top-5 {result['top5']:.2f} % ({cfg.protocol} protocol, {chosen}, "
        f"{result['num_test']} test images) -> {record}"
    )
    return result


def _flips(args: dict[str, Any]) -> bool:
    """Mirror images only where pre-training held them for the same thing."""
    blocks = args.get("augmentations") or [{}]
    return any((block.get("horizontal_flip") or {}).get("prob", 0) > 0 for block in blocks)


def _dataset(cfg: DictConfig, args: dict[str, Any]) -> str:
    return cfg.data.get("dataset", args["data"]["dataset"])


def _features(cfg: DictConfig, backbone, args: dict[str, Any], flip: bool):
    """(images, features) of the training and of the test images."""
    own = {k: v for k, v in args["data"].items() if k in Data.__dataclass_fields__}
    same = _dataset(cfg, args) == own["dataset"]
    data = typed({**(own if same else {}), **OmegaConf.to_container(cfg.data)}, Data)
    mean, std = channel_statistics(args["data"], args.get("augmentations"))
    device = cfg.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    out = []
    for split in ("train", "val"):
        array = load_images(data, split)
        if array is None:
            raise ClspError(
                "There are no images to test on: set data.val_path to a folder of class folders."
            )
        array = _resized(array.labelled(), args)
        features = extract_features(
            backbone,
            array,
            mean=mean,
            std=std,
            batch_size=cfg.batch_size,
            device=device,
            flip=flip and split == "train",
            desc=f"features of {array.name}",
        )
        out.append((array, features))
    return out


def _resized(array: ImageArray, args: dict[str, Any]) -> ImageArray:
    """Bring images to the size that the network was pre-trained at."""
    crop = (args.get("augmentations") or [{}])[0].get("crop_size", array.size[0])
    if array.size == (crop, crop):
        return array
    images = array.images.permute(0, 3, 1, 2)
    parts = [
        F.center_crop(F.resize(part, [crop], F.InterpolationMode.BICUBIC, antialias=True), [crop])
        for part in images.split(1024)
    ]
    resized = torch.cat(parts).permute(0, 2, 3, 1).contiguous()
    return ImageArray(resized, array.targets, array.classes, array.name)


def _record_of(args: dict[str, Any], checkpoint: Path, num_train: int) -> Record:
    """A record for a checkpoint that came without one, such as solo-learn's."""
    return Record(
        method=args["method"],
        dataset=args["data"]["dataset"],
        backbone=args["backbone"]["name"],
        epochs=args["max_epochs"],
        seed=args.get("seed", 0),
        num_train=num_train,
        checkpoint=checkpoint.name,
        curve=[],
        timings={},
        config=args,
        evaluations=[],
        **environment(),
    )
