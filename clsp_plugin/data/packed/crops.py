"""The random resized crops of packed images, made on the host where the images are decoded.

The boxes have torchvision's distribution over the whole picture. They are drawn from the same keys
as those of images in memory, so a run that was stopped and continued sees the same crops.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.parameters import sample_boxes, uniform_numbers
from clsp_plugin.data.image_array import squares
from clsp_plugin.data.packed.decoding import begun_ahead, crop
from clsp_plugin.data.packed.images import CHUNK, PackedImages

__all__ = ["Crops"]


class Crops:
    """Cuts the views of batches out of packed images; each image is decoded once a batch.

    Args:
        images: the images.
        configs: the pipeline of each view, of which crop and size are used here.
        pin: whether the crops lie in memory from which a GPU copies without waiting.
    """

    def __init__(
        self, images: PackedImages, configs: Sequence[AugmentationConfig], pin: bool = False
    ):
        self.images, self.configs, self.pin = images, configs, pin

    def __call__(self, indexes: torch.Tensor, keys: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Make the crops of one batch; see :meth:`ahead`."""
        (out,) = self.ahead([(indexes, keys)])
        return out

    def ahead(
        self, batches: Iterable[tuple[torch.Tensor, Sequence[torch.Tensor]]]
    ) -> Iterator[list[torch.Tensor]]:
        """Yield the crops of batches; those of the next two are made meanwhile.

        Args:
            batches: pairs of indexes, int64 (B,), and the views' keys, int64 (B,) each, which the
                pipelines are given too. All on the host.

        Yields:
            uint8 (B, size, size, 3) for each view, not mirrored.

        Raises:
            ClspError: an image changed on the disk.
        """
        yield from begun_ahead(batches, self._begin)

    def _begin(
        self, batch: tuple[torch.Tensor, Sequence[torch.Tensor]], pool: ThreadPoolExecutor
    ) -> tuple[list[torch.Tensor], list[Future]]:
        indexes, keys = batch
        boxes = [
            self._boxes(indexes, own, cfg) for own, cfg in zip(keys, self.configs, strict=True)
        ]
        out = [
            torch.empty(len(indexes), 3, c.crop_size, c.crop_size, dtype=torch.uint8,
                        pin_memory=self.pin)
            for c in self.configs
        ]  # fmt: skip

        def work(start: int) -> None:
            for place, index in enumerate(indexes[start : start + CHUNK].tolist(), start):
                pixels = self.images.pixels(index)
                for view, box, cfg in zip(out, boxes, self.configs, strict=True):
                    # numpy copies without threads of torch
                    view.numpy()[place] = _cut(pixels, None if box is None else box[place], cfg)

        views = [view.permute(0, 2, 3, 1) for view in out]
        return views, [pool.submit(work, start) for start in range(0, len(indexes), CHUNK)]

    def _boxes(
        self, indexes: torch.Tensor, keys: torch.Tensor, cfg: AugmentationConfig
    ) -> np.ndarray | None:
        """Draw the boxes of a view: int64 (B, 4); None if it has no random crop."""
        if not cfg.crop:
            return None
        height, width = torch.from_numpy(self.images.sizes(indexes)).unbind(dim=1)
        u = uniform_numbers(keys)
        return sample_boxes(u, height, width, cfg.crop_min_scale, cfg.crop_max_scale).long().numpy()


def _cut(pixels: torch.Tensor, box: np.ndarray | None, cfg: AugmentationConfig) -> np.ndarray:
    """Return one view of an image: uint8 (3, size, size)."""
    if box is not None:
        return crop(pixels, box, cfg.crop_size, cfg.interpolation).numpy()
    centre = squares(pixels[None], cfg.crop_size, interpolation=cfg.interpolation)[0]
    return centre.permute(2, 0, 1).numpy()
