"""Training batches: the host yields image indexes, the views are made on the training device."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.data.packed.crops import Crops
from clsp_plugin.data.packed.cutting import CHUNK, Centres
from clsp_plugin.data.packed.decoding import begun_ahead
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.errors import ClspError
from clsp_plugin.system.devices import fits

__all__ = ["HostLoader", "IndexBatches", "PretrainData", "index_loader", "row_loader"]


class _Passthrough(Dataset):
    """A data set that returns the index it is given; the sampler gives whole batches of indexes.

    Args:
        num_images: length of the data set.
    """

    def __init__(self, num_images: int):
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, indexes: torch.Tensor) -> torch.Tensor:
        return indexes


class IndexBatches(Sampler[torch.Tensor]):
    """Batches of image indexes, int64 (B,), in an order that depends only on seed and epoch.

    Args:
        num_images: N, the number of images.
        batch_size: B, the images per batch of one process.
        seed: seed of the shuffled order, in which an incomplete last batch is dropped; None keeps
            the natural order and every image, with a short last batch.
        rank: number of this process.
        world_size: number of processes; together they see every image of an epoch at most once
            when shuffled, exactly once otherwise. They have equally many batches; when not
            shuffled these may differ by an image, and those of a process may be empty if there
            are fewer images than processes.
    """

    def __init__(
        self, num_images: int, batch_size: int, seed: int | None, rank: int = 0, world_size: int = 1
    ):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which the order depends; Lightning calls this when an epoch starts."""
        self.epoch = epoch

    def _order(self) -> torch.Tensor:
        if self.seed is None:
            return torch.arange(self.num_images)
        keys = keys_for(
            derive_key(self.seed, Purpose.ORDER, self.epoch), torch.arange(self.num_images)
        )
        return torch.argsort(keys)

    def __len__(self) -> int:
        step = self.batch_size * self.world_size
        if self.seed is None:
            return math.ceil(self.num_images / step)
        return self.num_images // step

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = self._order()
        if self.seed is None and self.world_size > 1:
            # all processes need equally many batches, and none of them an image twice
            yield from order[self.rank :: self.world_size].tensor_split(len(self))
            return
        step = self.batch_size * self.world_size
        for number in range(len(self)):
            batch = order[number * step : (number + 1) * step]
            yield batch[self.rank :: self.world_size]


def index_loader(
    batches: IndexBatches, device: torch.device, num_images: int | None = None
) -> DataLoader:
    """Return a loader of index batches; training gathers the images on its own device.

    Args:
        batches: the batches that it yields.
        device: where the batches go.
        num_images: length of the loader's ``dataset``; by default ``batches.num_images``.
    """
    dataset = _Passthrough(batches.num_images if num_images is None else num_images)
    pinned = device.type == "cuda"  # so that the copy to a GPU does not wait for its work
    return DataLoader(dataset, sampler=batches, batch_size=None, pin_memory=pinned)


class HostLoader:
    """A loader of batches that threads of the host make ahead of the device.

    Args:
        batches: the batches of indexes.
        make: makes what goes to the device, from an iterator of batches of indexes on.
        num_images: length of ``dataset``.
        pin: whether the indexes lie in memory from which a GPU copies without waiting.

    Attributes:
        sampler: ``batches``, in which Lightning sets the epoch.
        batch_sampler: None, as Lightning expects of a loader that has a sampler of whole batches.
        dataset: has the length of the data set, as in torch's ``DataLoader``.
    """

    def __init__(
        self,
        batches: IndexBatches,
        make: Callable[[Iterator[torch.Tensor]], Iterator[Any]],
        num_images: int,
        pin: bool,
    ):
        self.sampler, self._make, self._pin = batches, make, pin
        self.dataset, self.batch_sampler = _Passthrough(num_images), None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Any]]:
        batches = list(self.sampler)
        for indexes, made in zip(batches, self._make(iter(batches)), strict=True):
            yield [indexes.pin_memory() if self._pin else indexes, made]


def row_loader(
    images: torch.Tensor,
    batches: IndexBatches,
    device: torch.device,
    rows: torch.Tensor | None = None,
) -> HostLoader:
    """Return a loader of ``[indexes, images]`` for images that stay on the host.

    Args:
        images: (N, ...), in memory or mapped.
        batches: the batches of indexes that it yields.
        device: where the batches go.
        rows: int64, the image at each index; by default they are the same.
    """
    pin = device.type == "cuda"

    def begin(indexes: torch.Tensor, pool: ThreadPoolExecutor) -> tuple[torch.Tensor, list[Future]]:
        out = torch.empty(len(indexes), *images.shape[1:], dtype=images.dtype, pin_memory=pin)
        # numpy copies without threads of torch
        source, target = images.numpy(), out.numpy()

        wanted = (indexes if rows is None else rows[indexes]).tolist()

        def work(start: int) -> None:
            for place, row in enumerate(wanted[start : start + CHUNK], start):
                target[place] = source[row]

        return out, [pool.submit(work, start) for start in range(0, len(indexes), CHUNK)]

    return HostLoader(batches, partial(begun_ahead, begin=begin), len(images), pin)


class PretrainData(pl.LightningDataModule):
    """Training batches ``[indexes, views, targets]`` and validation batches ``[images, targets]``.

    Images in memory stay on the training device as uint8, if they are few enough for it; they are
    augmented there, each with its own random parameters, keyed by (seed, epoch, view, position in
    ``places``). Packed images are
    decoded and cropped on the host, ahead of the device, by the same numbers; the rest of the
    augmentation is done on the device.

    Args:
        train: the training images.
        val: the validation images, or None.
        augmentations: one block of solo-learn's keys per pipeline, with ``num_crops`` views each.
        batch_size: images per batch of one process.
        seed: seed of the order and the augmentation.
        mean: mean per channel, for pixels in [0, 1].
        std: standard deviation per channel, for pixels in [0, 1].
        compile: whether to compile the augmentations.
        places: int64, index of the training image at each position of an epoch before shuffling;
            by default each image once. An image at several positions is augmented independently
            at each.
        announce: called with the positions of every training batch, int64 (B,), while they are
            on the host.
        squares: how packed validation images are brought to squares: arguments of
            ``Centres``.
    """

    def __init__(
        self,
        train: Images,
        val: Images | None,
        augmentations: Sequence[Any],
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        compile: bool = False,
        places: torch.Tensor | None = None,
        announce: Callable[[torch.Tensor], None] | None = None,
        squares: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self._squares = squares
        self.places, self.announce = places, announce
        self.arrays = {"train": train, "val": val}
        self.batch_size, self.seed = batch_size, seed
        self.mean, self.std = mean, std
        self.pipelines: list[BatchAugmentation] = []
        for block in augmentations:
            config = AugmentationConfig.from_cfg(block)
            pipeline = BatchAugmentation(config, mean, std, compile=compile)
            self.pipelines += [pipeline] * config.num_crops
        self.configs = [pipeline.cfg for pipeline in self.pipelines]
        self._crops: Crops | None = None
        self._centres: Centres | None = None  # of the validation images, if they are packed
        if isinstance(train, PackedImages):
            self._crops = Crops(train, self.configs)
            bare = {pipeline: pipeline.without_geometry() for pipeline in self.pipelines}
            self.pipelines = [bare[pipeline] for pipeline in self.pipelines]
        self._resident: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._fits: dict[str, bool] = {}

    def _images(self, split: str) -> Images:
        images = self.arrays[split]
        assert images is not None, f"no images to load for {split}"
        return images

    def _batches(self, split: str, shuffle: bool) -> DataLoader | HostLoader:
        images = self._images(split)
        num_images = num_places = len(images)
        if split == "train" and self.places is not None:
            num_places = len(self.places)
        batches = IndexBatches(
            num_places,
            self.batch_size,
            self.seed if shuffle else None,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        if len(batches) == 0:
            raise ClspError(
                f"{num_places} training images do not fill one batch of "
                f"{self.batch_size} x {self.trainer.world_size} processes; set a smaller "
                f"optimizer.batch_size."
            )
        device = self.trainer.strategy.root_device
        if isinstance(images, ImageArray) and not self._resides(split, images, device):
            places = self.places if split == "train" else None
            rows = None if places is None else places.cpu()
            return row_loader(images.images, batches, device, rows)
        if not isinstance(images, PackedImages):
            return index_loader(batches, device, num_images)
        pin = device.type == "cuda"
        if split == "train":
            return HostLoader(batches, self._cut(batches, device), num_images, pin)
        if self._centres is None:
            self._centres = Centres(images, **(self._squares or {}))
            self._centres.beside(device, self.trainer.num_devices)
        return HostLoader(batches, self._centres, num_images, pin)

    def _cut(
        self, batches: IndexBatches, device: torch.device
    ) -> Callable[[Iterator[torch.Tensor]], Iterator[list[torch.Tensor]]]:
        """Return a function from batches of places to the crops of their images."""
        assert self._crops is not None
        crops = self._crops
        crops.beside(device, 1 if self.trainer is None else self.trainer.num_devices)

        def cut(places: Iterator[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
            epoch = batches.epoch
            return crops.ahead((self._rows(batch), self._keys(epoch, batch)) for batch in places)

        return cut

    def _rows(self, places: torch.Tensor) -> torch.Tensor:
        """Return the indexes of the images at places of an epoch, on their device."""
        if self.places is None:
            return places
        self.places = self.places.to(places.device)
        return self.places[places]

    def _keys(self, epoch: int, places: torch.Tensor) -> list[torch.Tensor]:
        """Return the keys of each view: int64 (B,)."""
        return [
            keys_for(derive_key(self.seed, Purpose.AUGMENTATION, epoch, number), places)
            for number in range(len(self.pipelines))
        ]

    def train_dataloader(self) -> DataLoader | HostLoader:
        return self._batches("train", shuffle=True)

    def val_dataloader(self) -> DataLoader | HostLoader | list:
        return self._batches("val", shuffle=False) if self.arrays["val"] is not None else []

    def _on(self, split: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and the labels on a device; the labels alone of images not there."""
        if split not in self._resident:
            held = self._images(split)
            images = torch.empty(0)
            if isinstance(held, ImageArray) and self._resides(split, held, device):
                images = held.images
            self._resident[split] = (images.to(device), held.targets.to(device))
        return self._resident[split]

    def _resides(self, split: str, held: ImageArray, device: torch.device) -> bool:
        """Whether the images of a split are few enough to lie on a device."""
        if split not in self._fits:
            self._fits[split] = fits(held.images.nbytes, device)
        return self._fits[split]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.announce is not None and self.trainer.training:
            self.announce(batch if isinstance(batch, torch.Tensor) else batch[0])
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> list[Any]:
        given, made = (batch, None) if isinstance(batch, torch.Tensor) else batch
        if not self.trainer.training:
            images, targets = self._on("val", given.device)
            return [self.plain(images[given] if made is None else made), targets[given]]
        images, targets = self._on("train", given.device)
        indexes = self._rows(given)
        if isinstance(made, list):
            return [indexes, self._coloured(made, given), targets[indexes]]
        views = self.views(images[indexes] if made is None else made, given)
        return [indexes, views, targets[indexes]]

    def views_of(self, places: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
        """Make the views of some places of this epoch, as in training: see :meth:`views`.

        Args:
            places: int64 (B,), on the host.
            device: where the views are made.
        """
        rows = self._rows(places)
        held = self._images("train")
        if isinstance(held, ImageArray):
            return self.views(held.images[rows.cpu()].to(device), places.to(device))
        assert self._crops is not None
        made = self._crops(rows, self._keys(self.trainer.current_epoch, places))
        return self._coloured([view.to(device) for view in made], places.to(device))

    def views(self, images: torch.Tensor, places: torch.Tensor) -> list[torch.Tensor]:
        """Make all augmented views of a batch: float32 (B, 3, crop, crop) each.

        Args:
            images: uint8 (B, H, W, 3), the images at ``places``.
            places: int64 (B,), positions in the epoch, which key the random parameters.
        """
        return self._augmented(lambda first, count: images.repeat(count, 1, 1, 1), places)

    def _coloured(self, made: list[torch.Tensor], places: torch.Tensor) -> list[torch.Tensor]:
        """Make views of crops, uint8 (B, crop, crop, 3) each; see :meth:`views`."""
        return self._augmented(lambda first, count: torch.cat(made[first : first + count]), places)

    def _augmented(
        self, given: Callable[[int, int], torch.Tensor], places: torch.Tensor
    ) -> list[torch.Tensor]:
        """Augment what ``given(first, count)`` returns for ``count`` views of one pipeline."""
        keys = self._keys(self.trainer.current_epoch, places)
        out: list[torch.Tensor] = []
        for pipeline, group in groupby(self.pipelines):  # views of one pipeline at once
            first, count = len(out), len(list(group))
            together = torch.cat(keys[first : first + count])
            out += pipeline(given(first, count), together).chunk(count)
        return out

    def plain(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images without augmentation: uint8 (B, H, W, 3) to float32 (B, 3, H, W)."""
        x = images.permute(0, 3, 1, 2).float() / 255
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std
