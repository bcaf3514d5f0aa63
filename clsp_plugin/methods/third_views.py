"""Third views of the images of a training step: candidates, or the images themselves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.third_view import ThirdView
from clsp_plugin.config.training import Synthetic
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.epoch_means import EpochMeans
from clsp_plugin.methods.joint import JointForward

__all__ = ["ThirdViews"]


if TYPE_CHECKING:
    from clsp_plugin.methods.base import BaseMethod as _Method
else:

    class _Method(JointForward, EpochMeans):
        """What a method of another package lacks."""


class ThirdViews(_Method):
    """Mixin that opens the store of candidates and draws the third views of every batch.

    Attributes:
        third_view: ``"candidate"``, or ``"anchor"`` for the control with one more augmentation of
            the image itself as the third view.
    """

    third_view = "candidate"

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self._third: ThirdView | None = None

    @property
    def uses_candidates(self) -> bool:
        """Whether there is anything to do with third views; if not, this is the base method."""
        return Synthetic.candidates_used(self.cfg.synthetic)

    @property
    def _begun(self) -> bool:
        """Whether third views are used in this epoch; before ``from_epoch`` there are none."""
        return self.uses_candidates and self.current_epoch >= self.cfg.synthetic.from_epoch

    def augmentation(
        self, mean: Sequence[float], std: Sequence[float], compile: bool = False
    ) -> BatchAugmentation:
        """Make the augmentation of the third view: ``synthetic.augmentation``, or view 1's.

        A view that takes the place of view 2 is augmented as view 2.

        Args:
            mean: per channel, for pixels in [0, 1].
            std: per channel, for pixels in [0, 1].
            compile: whether to compile the augmentation.

        Raises:
            ClspError: ``synthetic.augmentation`` is invalid.
        """
        blocks = self.cfg.augmentations
        usual = blocks[0]
        if self.cfg.synthetic.use == "replace" and blocks[0].num_crops == 1:
            usual = blocks[1]
        block = self.cfg.synthetic.augmentation or usual
        return BatchAugmentation(AugmentationConfig.from_cfg(block), mean, std, compile=compile)

    def open_store(self) -> CandidateStore:
        """Open the candidate store that ``synthetic.path`` names.

        Raises:
            ClspError: no path is set, or there is no complete store.
        """
        settings = self.cfg.synthetic
        if settings.path is None:
            raise ClspError(
                f"{self.cfg.method} needs candidates: set synthetic.path to a candidate store "
                f"(`clsp generate` makes one), or synthetic.weight=0 to train without."
            )
        return CandidateStore(settings.path, settings.num_candidates, self.cfg.get("data"))

    def attach(
        self, images: Images, mean: Sequence[float], std: Sequence[float], compile: bool = False
    ) -> None:
        """Set the training images; open the candidate store and check that it is for them.

        Args:
            images: the training images, in the order of the indexes in a batch.
            mean: per channel, for pixels in [0, 1].
            std: per channel, for pixels in [0, 1].
            compile: whether to compile the augmentation.

        Raises:
            ClspError: there is no store, it is for other images, or ``synthetic.augmentation`` is
                invalid.
        """
        augmentation = self.augmentation(mean, std, compile)
        if not self.uses_candidates:
            return
        source: torch.Tensor | PackedImages | CandidateStore
        if self.third_view == "candidate":
            store = source = self.open_store()
            size, fingerprint = images.anchors(store.height, store.width)
            store.check(len(images), *size, fingerprint, images.name)
        else:
            assert isinstance(images, (ImageArray, PackedImages))
            source = images.images if isinstance(images, ImageArray) else images
        self._third = self.third_views(source, augmentation)

    def third_views(
        self,
        source: torch.Tensor | PackedImages | CandidateStore,
        augmentation: BatchAugmentation,
        rows: torch.Tensor | None = None,
    ) -> ThirdView:
        """Make what makes the third views of a batch, as many as the use takes; see ``ThirdView``.

        Raises:
            ClspError: the store has too few candidates.
        """
        settings, number = self.cfg.synthetic, self.number
        if settings.choice != "uniform":
            number = settings.choice_of
            if number is None:
                assert isinstance(source, CandidateStore)  # `check_use` refuses images
                number = source.num_candidates
            if number <= self.number:
                raise ClspError(
                    f"synthetic.choice={settings.choice} has nothing to choose: {self.number} of "
                    f"{number} candidates of each image; set synthetic.choice=uniform, or make "
                    f"more of them (`clsp generate`)."
                )
        return ThirdView(source, augmentation, self.cfg.seed, rows, number)

    @property
    def number(self) -> int:
        """How many third views of each image a step uses."""
        return self.cfg.synthetic.per_step if self.cfg.synthetic.use == "multi" else 1

    def on_train_start(self) -> None:
        super().on_train_start()
        if not self.uses_candidates:
            return
        if self._third is None:
            self._third = self.find_images()
        self._third.to(self.device)

    def find_images(self) -> ThirdView:
        """Make the third view when training starts without :meth:`attach`; a hook for subclasses.

        Raises:
            ClspError: always, in this class.
        """
        raise ClspError(
            f"{self.cfg.method} was not told which images it trains on; call "
            f"attach(images, mean, std) before fitting."
        )

    def begin_view(self, indexes: torch.Tensor) -> None:
        """Begin to load the third view of the next batch; see ``ThirdView.begin``.

        Args:
            indexes: int64 (B,), image indexes, on the host.
        """
        if self._third is not None and self._begun:
            self._third.begin(indexes, self.current_epoch, self.device)

    def synthetic_view(self, indexes: torch.Tensor) -> torch.Tensor:
        """Return the first third view of a batch, on its device: float32 (B, 3, crop, crop).

        Args:
            indexes: int64 (B,), image indexes.
        """
        return self.synthetic_views(indexes)[0]

    def synthetic_views(self, indexes: torch.Tensor) -> list[torch.Tensor]:
        """Return all third views of a batch, see :meth:`synthetic_view`; those to choose from.

        Args:
            indexes: int64 (B,), image indexes.
        """
        assert self._third is not None  # training has started
        views = self._third(indexes, self.current_epoch, self.num_crops)
        return list(views.split(len(indexes)))
