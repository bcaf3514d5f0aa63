"""The random resized crops of packed images, made on the host where the images are decoded.

The boxes have torchvision's distribution over the whole picture. They are drawn from the same keys
as those of images in memory, so a run that was stopped and continued sees the same crops.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.parameters import sample_boxes, uniform_numbers
from clsp_plugin.data.image_array import squares
from clsp_plugin.data.packed.cutting import Cutter
from clsp_plugin.data.packed.decoding import crop
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.data.packed.workers import Boxes

__all__ = ["Crops"]


class Crops(Cutter[tuple[torch.Tensor, Sequence[torch.Tensor]]]):
    """Cuts the views of batches out of packed images.

    Batches are pairs of indexes, int64 (B,), and the views' keys, int64 (B,) each, which the
    pipelines are given too. All on the host.

    Args:
        images: the images.
        configs: the pipeline of each view, of which crop and size are used here.
    """

    def __init__(self, images: PackedImages, configs: Sequence[AugmentationConfig]):
        super().__init__(images, [(3, cfg.crop_size, cfg.crop_size) for cfg in configs])
        self.configs = configs

    def __call__(self, indexes: torch.Tensor, keys: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Make the crops of one batch; see :meth:`ahead`."""
        (out,) = self.ahead([(indexes, keys)])
        return out

    def ahead(
        self, batches: Iterable[tuple[torch.Tensor, Sequence[torch.Tensor]]]
    ) -> Iterator[list[torch.Tensor]]:
        """Yield the crops of batches; those of the next ones are made meanwhile.

        Yields:
            uint8 (B, size, size, 3) for each view, not mirrored.

        Raises:
            ClspError: an image changed on the disk.
        """
        for views in self.cut(batches):
            yield [view.permute(0, 2, 3, 1) for view in views]

    def task(self, batch: tuple[torch.Tensor, Sequence[torch.Tensor]]) -> tuple[list[int], Boxes]:
        indexes, keys = batch
        return indexes.tolist(), self._boxes(indexes, keys)

    def fill(self, indexes: list[int], boxes: Boxes, out: list[np.ndarray]) -> None:
        for place, index in enumerate(indexes):
            pixels = self.images.pixels(index)
            for view, box, cfg in zip(out, boxes, self.configs, strict=True):
                view[place] = _cut(pixels, None if box is None else box[place], cfg)

    def _boxes(self, indexes: torch.Tensor, keys: Sequence[torch.Tensor]) -> Boxes:
        """Draw the boxes of each view: int64 (B, 4); None if it has no random crop."""
        if not any(cfg.crop for cfg in self.configs):
            return [None for _ in self.configs]
        height, width = torch.from_numpy(self.images.sizes(indexes)).unbind(dim=1)
        return [
            sample_boxes(
                uniform_numbers(own), height, width, cfg.crop_min_scale, cfg.crop_max_scale
            ).long().numpy() if cfg.crop else None
            for own, cfg in zip(keys, self.configs, strict=True)
        ]  # fmt: skip


def _cut(pixels: torch.Tensor, box: np.ndarray | None, cfg: AugmentationConfig) -> np.ndarray:
    """Return one view of an image: uint8 (3, size, size)."""
    if box is not None:
        return crop(pixels, box, cfg.crop_size, cfg.interpolation).numpy()
    centre = squares(pixels[None], cfg.crop_size, interpolation=cfg.interpolation)[0]
    return centre.permute(2, 0, 1).numpy()
