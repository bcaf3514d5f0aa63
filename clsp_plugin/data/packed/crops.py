"""The random resized crops of packed images, made on the host where the images are decoded.

The boxes have torchvision's distribution over the whole picture. They are drawn from the same keys
as those of images in memory, so a run that was stopped and continued sees the same crops.
"""

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.parameters import sample_boxes, uniform_numbers
from clsp_plugin.data.image_array import squares
from clsp_plugin.data.packed.decoding import begun_ahead, crop
from clsp_plugin.data.packed.images import CHUNK, PackedImages
from clsp_plugin.data.packed.workers import Boxes, Workers

__all__ = ["Crops"]


class Crops:
    """Cuts the views of batches out of packed images; each image is decoded once a batch.

    Args:
        images: the images.
        configs: the pipeline of each view, of which crop and size are used here.

    Attributes:
        pin: whether the crops lie in memory from which a GPU copies without waiting.
        processes: number of processes that cut the views of :meth:`ahead`; threads do for 0, and
            where processes cannot be forked.
    """

    pin = False
    processes = 0

    def __init__(self, images: PackedImages, configs: Sequence[AugmentationConfig]):
        self.images, self.configs = images, configs
        self._workers: Workers | None = None

    def __call__(self, indexes: torch.Tensor, keys: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Make the crops of one batch; see :meth:`ahead`."""
        (out,) = begun_ahead([(indexes, keys)], self._begin)
        return out

    def ahead(
        self, batches: Iterable[tuple[torch.Tensor, Sequence[torch.Tensor]]]
    ) -> Iterator[list[torch.Tensor]]:
        """Yield the crops of batches; those of the next ones are made meanwhile.

        Args:
            batches: pairs of indexes, int64 (B,), and the views' keys, int64 (B,) each, which the
                pipelines are given too. All on the host.

        Yields:
            uint8 (B, size, size, 3) for each view, not mirrored.

        Raises:
            ClspError: an image changed on the disk.
        """
        if not self.processes or "fork" not in multiprocessing.get_all_start_methods():
            yield from begun_ahead(batches, self._begin)
            return
        sizes = [cfg.crop_size for cfg in self.configs]
        if self._workers is None:
            self._workers = Workers(self._fill, sizes, self.processes)
        given = ((indexes.tolist(), self._boxes(indexes, keys)) for indexes, keys in batches)
        for views in self._workers.views(given, self._empty):
            yield [view.permute(0, 2, 3, 1) for view in views]

    def _begin(
        self, batch: tuple[torch.Tensor, Sequence[torch.Tensor]], pool: ThreadPoolExecutor
    ) -> tuple[list[torch.Tensor], list[Future]]:
        indexes, boxes, out = batch[0].tolist(), self._boxes(*batch), self._empty(len(batch[0]))

        def work(start: int) -> None:
            part = slice(start, start + CHUNK)
            own = [None if view is None else view[part] for view in boxes]
            self._fill(indexes[part], own, [view.numpy()[part] for view in out])

        views = [view.permute(0, 2, 3, 1) for view in out]
        return views, [pool.submit(work, start) for start in range(0, len(indexes), CHUNK)]

    def _empty(self, number: int) -> list[torch.Tensor]:
        """Return memory for the crops of a batch: uint8 (B, 3, size, size) for each view."""
        return [
            torch.empty(number, 3, cfg.crop_size, cfg.crop_size, dtype=torch.uint8,
                        pin_memory=self.pin)
            for cfg in self.configs
        ]  # fmt: skip

    def _fill(self, indexes: list[int], boxes: Boxes, out: list[np.ndarray]) -> None:
        """Write the views of images; by numpy, which copies without threads of torch."""
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
