"""Fine-tuning: a pre-trained backbone and a new classifier learn together from labels.

It follows ``main_linear.py finetune=True`` of solo-learn: cross entropy on one augmented view, one
learning rate for both, batch normalisation in training mode.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Optional, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import nn

from clsp_plugin.config.plain import plain
from clsp_plugin.config.rules import ranged
from clsp_plugin.config.training import Data, Training, training_cfg
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.data.loader import PretrainData
from clsp_plugin.data.packed.cutting import Centres
from clsp_plugin.data.packed.images import PackedImages, customary_resize
from clsp_plugin.data.splits import named_images
from clsp_plugin.engine.compiling import parts_to_compile
from clsp_plugin.engine.loggers import check_installed, log_training
from clsp_plugin.engine.pretrain import make_trainer
from clsp_plugin.engine.progress import Bar, History, quiet
from clsp_plugin.engine.resume import find_start
from clsp_plugin.engine.trainer import fit
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.features import load_labelled
from clsp_plugin.evaluation.protocol import num_classes
from clsp_plugin.methods.backbones import check_network, mend_layout, resolve_stem
from clsp_plugin.methods.epoch_means import EpochMeans
from clsp_plugin.methods.optim import build_optimizers
from clsp_plugin.records.backbone import weights_digest
from clsp_plugin.records.checkpoint import Checkpointer
from clsp_plugin.system.compiling import uncompiled
from clsp_plugin.system.processes import check_launch

__all__ = ["Finetune", "finetune_cfg", "train_and_test"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support

# solo-learn's name for what main_linear.py trains, and for the folder it is saved in
_METHOD = "linear"
# solo-learn's crops, for checkpoints that name none
_CROP = {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0}


@dataclass
class Finetune(Training):
    """Settings of ``clsp finetune``.

    Attributes:
        data: keys of the pre-training's ``data`` block that differ.
        pretrained_feature_extractor: a ``.ckpt``, or the directory of a run.
        finetune: true; false is the linear probe.
        augmentations: a list of one pipeline that makes one view; null takes the pre-training's
            first without its colour operations.
        label_smoothing: share of the target that is spread over all classes.
    """

    name: str = ranged("finetune", name=True)
    pretrained_feature_extractor: str = MISSING
    finetune: bool = True
    augmentations: Optional[list[Any]] = None
    label_smoothing: float = ranged(0.0, low=0, below=1)


def finetune_cfg(given: Mapping[str, Any], args: Mapping[str, Any]) -> DictConfig:
    """Return the complete configuration of a fine-tuning.

    Args:
        given: keys of :class:`Finetune`; not changed.
        args: the configuration that the checkpoint was trained with.

    Returns:
        A new configuration, with the ``backbone`` of the checkpoint.

    Raises:
        ClspError: something that cannot be run as it is written.
    """
    said = given.get("data") or {}
    own = {key: value for key, value in args["data"].items() if key in Data.__dataclass_fields__}
    check_launch()
    data = {**own, **said} if said.get("dataset", own["dataset"]) == own["dataset"] else said
    cfg = training_cfg({**given, "data": data}, Finetune)
    first = (args.get("augmentations") or [{}])[0]
    blocks = cfg.augmentations or [
        {
            "rrc": first.get("rrc") or _CROP,
            "horizontal_flip": first.get("horizontal_flip"),
            "crop_size": first.get("crop_size"),
        }
    ]
    if len(blocks) != 1 or blocks[0].get("num_crops", 1) != 1:
        raise ClspError("Fine-tuning trains on one view; give augmentations of one, num_crops=1.")
    backbone = {**args["backbone"]}
    backbone["stem"] = resolve_stem(backbone, args["data"]["dataset"])
    method = {"method": _METHOD, "pretrain_method": args["method"], "backbone": backbone}
    cfg = OmegaConf.create({**plain(cfg), **method})
    cfg.augmentations = [{**blocks[0], "num_crops": 1}]
    cfg.data.num_large_crops, cfg.data.num_small_crops = 1, 0
    cfg.data.mean, cfg.data.std = channel_statistics(args["data"], args.get("augmentations"))
    return cfg


class _Classifier(EpochMeans, pl.LightningModule):
    """A backbone and a linear layer on it.

    Args:
        cfg: configuration from :func:`finetune_cfg`.
        backbone: images (B, 3, H, W) to features (B, D).
    """

    def __init__(self, cfg: DictConfig, backbone: nn.Module):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone
        self.classifier = nn.Linear(cast(int, backbone.num_features), cfg.data.num_classes)

    def configure_optimizers(self):
        groups = [
            {"name": name, "params": getattr(self, name).parameters()}
            for name in ("backbone", "classifier")
        ]
        return build_optimizers(groups, self.cfg, self.trainer.estimated_stepping_batches)

    def training_step(self, batch: list[Any], batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch ``[indexes (B,), [view (B, 3, H, W)], targets (B,)]``."""
        _, (view,), targets = batch
        if not self.cfg.performance.disable_channel_last:
            view = view.contiguous(memory_format=torch.channels_last)
        logits = self.classifier(self.backbone(view)).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.cfg.label_smoothing)
        accuracy = (logits.argmax(1) == targets).float().mean() * 100
        self.log_epoch(train_loss=loss, train_acc1=accuracy)
        return loss


@quiet()
def train_and_test(cfg: DictConfig, backbone: nn.Module) -> dict[str, Any] | None:
    """Fine-tune for a fixed number of epochs, then look at the test images once.

    Nothing is chosen: learning rate and epochs are the configuration's, and the last epoch counts.
    An unfinished training of the same configuration is continued if ``auto_resume`` is enabled.

    Args:
        cfg: configuration from :func:`finetune_cfg`.
        backbone: images (B, 3, H, W) to features (B, D); trained in place.

    Returns:
        ``task``, ``protocol``, ``top1``, ``top5`` (percent), ``chosen`` (empty), ``num_train``,
        ``num_test``, ``images`` (what identifies them), ``settings``, ``seconds``, ``curve`` (one
        dict per epoch) and ``checkpoint`` (path of the fine-tuned weights, None if they are not
        saved); None on every process but the first.

    Raises:
        ClspError: the images have no labels or are too few for a batch, or training diverged.
    """
    check_installed(cfg.logger)
    train, test = _labelled(cfg.data)
    (block,) = cfg.augmentations
    own = train.size[0] if isinstance(train, ImageArray) else None
    block.crop_size = block.get("crop_size") or own
    if block.crop_size is None:
        raise ClspError(
            f"The checkpoint does not say at which size it was trained, and the images of "
            f"{train.name} have several; give augmentations with a crop_size."
        )
    cfg.data.packed = isinstance(train, PackedImages) or None
    cfg.data.num_classes = num_classes(train.targets, test.targets)
    identity = {"images": train.identity, "weights": weights_digest(backbone)}
    with ExitStack() as held:
        return _train_and_test(cfg, backbone, train, test, identity, held)


def _train_and_test(
    cfg: DictConfig,
    backbone: nn.Module,
    train: Images,
    test: Images,
    identity: dict[str, Any],
    held: ExitStack,
) -> dict[str, Any] | None:
    start = find_start(cfg, identity, held)
    began = time.perf_counter()
    pl.seed_everything(cfg.seed)
    model = _Classifier(cfg, backbone)
    sizes = [cfg.augmentations[0].crop_size]
    check_network(cfg.backbone, backbone, sizes, min(cfg.optimizer.batch_size, len(train)))
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    history = History()
    bar = Bar(f"fine-tune {cfg.pretrain_method}", ("train_loss", "train_acc1"))
    saver = Checkpointer(cfg, start.run_dir, identity, held)
    trainer = make_trainer(cfg, start, saver, [bar, history], False)
    device = trainer.strategy.root_device
    compiled = saver.compiled = parts_to_compile(
        cfg, device, processes=trainer.world_size, num_images=len(train), start=start
    )
    if compiled["network"]:
        backbone.compile(dynamic=False)
    data = PretrainData(
        train, None, cfg.augmentations, cfg.optimizer.batch_size, cfg.seed,
        cfg.data.mean, cfg.data.std, compile=compiled["augmentation"],
    )  # fmt: skip
    if not cfg.performance.disable_channel_last:
        mend_layout(model, device)
    log_training(trainer, cfg, start, saver, history)
    if start.checkpoint is not None and trainer.is_global_zero:
        print(start.told)
    fit(trainer, model, data, start.checkpoint)
    if not trainer.is_global_zero:
        return None
    with uncompiled(compiled["network"]):
        top1, top5 = _accuracy(model, test, device)
    return {
        "task": "finetune",
        "protocol": "strict",
        "top1": top1,
        "top5": top5,
        "chosen": {},
        "num_train": len(train),
        "num_test": len(test),
        "images": {**named_images(train, test), "size": sizes[0]},
        "settings": _settings(cfg),
        "seconds": time.perf_counter() - began,
        "curve": history.curve,
        "checkpoint": None if saver.last is None else str(saver.last),
    }


def _labelled(data: DictConfig) -> tuple[Images, Images]:
    """Load the training and test images, or open packed ones; all must have labels."""
    arrays = load_labelled(data)
    for array in arrays:
        if bool((array.targets < 0).any()):
            raise ClspError(
                f"The images of {array.name} have no labels and fine-tuning needs them; put each "
                f"class into a folder of its own and set data.no_labels=False."
            )
    return arrays


@torch.no_grad()
def _accuracy(model: _Classifier, test: Images, device: torch.device) -> tuple[float, float]:
    """Return top-1 and top-5 in percent on plain images, resized to the size of the views."""
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise ClspError("Fine-tuning diverged; give a smaller optimizer.lr.")
    cfg = model.cfg
    size = AugmentationConfig(crop_size=cfg.augmentations[0].crop_size)
    resize = BatchAugmentation(size, cfg.data.mean, cfg.data.std)
    model.to(device).eval()
    hits = torch.zeros(2)
    labels = test.targets.split(cfg.optimizer.batch_size)
    if isinstance(test, PackedImages):
        numbers = torch.arange(len(test)).split(cfg.optimizer.batch_size)
        centres = Centres(test, size.crop_size, resize=customary_resize(size.crop_size))
        centres.beside(device)
        batches = centres(numbers)
    else:
        assert isinstance(test, ImageArray)
        batches = iter(test.images.split(cfg.optimizer.batch_size))
    for images, targets in zip(batches, labels, strict=True):
        view = resize(images.to(device), torch.zeros(len(images), dtype=torch.int64, device=device))
        logits = model.classifier(model.backbone(view)).cpu()
        hit = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        hits += torch.stack([hit[:, 0].sum(), hit.sum()])
    return tuple((100.0 * hits / len(test)).tolist())


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that the accuracy depends on, besides the checkpoint and the images."""
    names = ("optimizer", "scheduler", "augmentations", "label_smoothing", "max_epochs", "seed")
    out = {name: cfg[name] for name in names}
    return {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in out.items()}
