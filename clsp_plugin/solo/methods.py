"""CLSP's mixin for solo-learn's own method classes."""

import warnings

import torch
from omegaconf import DictConfig

from clsp_plugin.candidates.matching import pixels_of
from clsp_plugin.candidates.third_view import ThirdView, match
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.synthetic import SyntheticPositives
from clsp_plugin.records.backbone import frozen_encoder
from clsp_plugin.solo.images import host_images

__all__ = ["HostPositives"]

# solo-learn's methods whose losses take any number of large views. DINO's and SwAV's, whose
# configurations can have small crops, take two large ones.
_TAKE_MORE = ("BYOL", "SimCLR", "SupCon", "WMSE")


class HostPositives(SyntheticPositives):
    """Synthetic positives for methods trained by solo-learn, which makes the batches.

    Its data set is found when training starts, and the candidates are matched with its images
    by their pixels. So a ``data.fraction`` or another order cannot lead to wrong candidates:
    they are either found or the training is refused.
    """

    def __init__(self, cfg: DictConfig):
        from solo.methods import METHODS

        base = next(name for name, method in METHODS.items() if method is self.base_method)
        named = cfg.method
        cfg.method = base  # some of solo-learn's backbones are chosen by the method's name
        try:
            super().__init__(cfg)
        finally:
            cfg.method = named
        self.cfg.method = named

    @staticmethod
    def can_take_more(method: type) -> bool:
        """Whether the loss of one of solo-learn's methods takes more than two large views."""
        return method.__name__ in _TAKE_MORE

    @staticmethod
    def can_weigh(method: type) -> bool:
        """Whether a method's loss can weigh images: none of solo-learn's can."""
        return False

    @property
    def prediction(self) -> str | None:  # type: ignore[override]  # elsewhere a value
        """Key of the prediction in a method's outputs, None if the method has no predictor.

        solo-learn's classes do not declare it: MoCoV3 calls it ``q``, the others ``p``.
        """
        if not hasattr(self, "predictor"):
            return None
        names = [parent.__name__ for parent in self.base_method.__mro__]
        return "q" if "MoCoV3" in names else "p"

    def embedding(self, out: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the embedding: ``z``, but for DINO what its head computes before the prototypes.

        solo-learn's DINO calls the scores of the prototypes ``z``.
        """
        before = getattr(getattr(self, "head", None), "mlp", None)
        return out["z"] if before is None else before(out["feats"])

    @staticmethod
    def check_synthetic(cfg: DictConfig) -> DictConfig:
        """Check a configuration and complete its ``synthetic`` block.

        This is done in place, because solo-learn saves this very object.

        Raises:
            ClspError: a setting is not valid, or has no effect in solo-learn.
        """
        cfg.synthetic = SyntheticPositives.check_synthetic(cfg).synthetic
        optimizer = cfg.optimizer
        if optimizer.get("scale_lr") is False:
            factor = optimizer.batch_size * len(cfg.devices) * cfg.num_nodes / 256
            raise ClspError(
                f"optimizer.scale_lr=False has no effect in solo-learn, which multiplies rates by "
                f"images a step / 256 = {factor:g} here; write optimizer.lr="
                f"{optimizer.lr / factor**2:g} for a rate of {optimizer.lr / factor:g}, and leave "
                f"scale_lr out."
            )
        if cfg.backbone.get("stem") is not None:
            warnings.warn(
                "backbone.stem is not used: solo-learn builds its own stem, on CIFAR a 3x3 "
                "convolution with padding 2.",
                stacklevel=2,
            )
            del cfg.backbone.stem  # args.json must describe what was trained
        return cfg

    def find_images(self) -> ThirdView:
        """Match the candidates with the data set of the trainer's loader.

        Raises:
            ClspError: there is no store, it has no candidates for an image, or the loader's batches
                carry no indexes.
        """
        images = host_images(self.trainer.train_dataloader, self.cfg)
        # solo-learn reads custom statistics only for data.dataset=custom
        blocks = self.cfg.augmentations if self.cfg.data.dataset == "custom" else None
        mean, std = channel_statistics(self.cfg.data, blocks)
        augmentation = self.augmentation(mean, std)
        if self.cfg.synthetic.encoder is not None:
            said = {"dataset": self.cfg.data.dataset, "mean": mean, "std": std}
            self.judge_by(frozen_encoder(self.cfg.synthetic.encoder, said))
        if self.third_view == "anchor":
            pixels = pixels_of(images, self.cfg.data.get("image_size"))
            return self.third_views(pixels, augmentation)
        store = self.open_store()
        rows = match(store, images, f"{self.cfg.data.dataset} in {self.cfg.data.train_path}")
        return self.third_views(store, augmentation, rows)
