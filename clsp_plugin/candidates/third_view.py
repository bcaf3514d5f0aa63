"""The third view of an image: its candidates, found by the image's index and augmented."""

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from clsp_plugin.candidates.matching import digests_of, size_of
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.data.packed.crops import Crops
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.distributed import world_size
from clsp_plugin.system.devices import fits, to_device

__all__ = ["SyntheticPositiveLoader", "ThirdView", "match"]

_VERIFIED = 2**30  # bytes of the largest store that is verified though it stays on disk


class ThirdView:
    """Makes the third view of a batch, on the batch's device.

    Every draw is keyed by (seed, epoch, image index), so batches, processes and restarts change
    nothing.

    Args:
        source: the candidates; or the images themselves, uint8 (N, H, W, 3) or packed, for the
            control experiment with one more augmentation of the image as its third view.
        augmentation: the augmentation of the third view.
        seed: seed of the choice of a candidate and of the augmentation.
        rows: int64 (M,), the index in ``source`` of each image of the data set; None if the two
            indexes are the same.
        number: how many different candidates of each image make a view; or, of the images
            themselves, how many views of each.

    Raises:
        ClspError: the store holds fewer candidates of an image.
    """

    def __init__(
        self,
        source: CandidateStore | torch.Tensor | PackedImages,
        augmentation: BatchAugmentation,
        seed: int,
        rows: torch.Tensor | None = None,
        number: int = 1,
    ):
        if isinstance(source, CandidateStore) and number > source.num_candidates:
            raise ClspError(
                f"{number} candidates of each image are drawn in a step and {source.path} has "
                f"{source.num_candidates} to draw from; set a smaller synthetic.per_step or "
                f"synthetic.choice_of, or make more of them (`clsp generate`)."
            )
        self.source, self.augmentation = source, augmentation
        self._crops: Crops | None = None
        if isinstance(source, PackedImages):
            self._crops = Crops(source, [augmentation.cfg])
            self.augmentation = augmentation.without_geometry()
        self.seed, self.rows, self.number = seed, rows, number
        self._begun: Future[torch.Tensor] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._here: torch.Tensor | None = None  # the next indexes, on the host

    def to(self, device: torch.device) -> "ThirdView":
        """Move the source to a training GPU if it is small enough, in place.

        A store that is not moved stays on disk.

        Raises:
            ClspError: a shard does not agree with its digest. This is checked when the store is
                moved, and otherwise only up to 1 GiB, which takes a second or two to read.
        """
        self._begun = None  # by a training that was broken off
        if isinstance(self.source, PackedImages):
            assert self._crops is not None
            self._crops.beside(device, world_size())
            return self
        moves = device.type == "cuda" and fits(self.source.nbytes, device)
        if isinstance(self.source, torch.Tensor):
            self.source = self.source.to(device) if moves else self.source
        elif moves:
            self.source.load_to(device)
        elif self.source.stored_bytes <= _VERIFIED:
            self.source.verify()
        if self.rows is not None:
            self.rows = self.rows.to(device)
        return self

    def begin(self, indexes: torch.Tensor, epoch: int, device: torch.device) -> None:
        """Begin to load the images of the next batch, if they are read from the disk.

        To be called while the indexes are still on the host: later the host would have to wait for
        a GPU to read them.

        Args:
            indexes: int64 (B,), on the host, those of the next call of this object.
            epoch: its epoch.
            device: its device.
        """
        if isinstance(self.source, CandidateStore) and not self.source.resident:
            assert self.rows is None
            self._begun = self._start(self.source, indexes, epoch, device)
        self._here = indexes

    def _start(
        self, store: CandidateStore, rows: torch.Tensor, epoch: int, device: torch.device
    ) -> "Future[torch.Tensor]":
        """Begin to read candidates; encoded ones are decoded while this process goes on."""
        if store.encoded:
            self._thread = self._thread or ThreadPoolExecutor(1, "third-view")
            return self._thread.submit(self._images, rows, epoch)
        done: Future[torch.Tensor] = Future()
        done.set_result(to_device(self._images(rows, epoch), device))
        return done

    def _images(self, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return what the views are made of: uint8 (number * B, H, W, 3)."""
        if isinstance(self.source, torch.Tensor):
            images = self.source[rows.to(self.source.device)].to(rows.device)
            return images.repeat(self.number, 1, 1, 1)
        assert isinstance(self.source, CandidateStore)
        choice = self.source.choose_several(rows, self.seed, epoch, self.number)
        return self.source.gather(rows.repeat(self.number), choice.T.reshape(-1))

    def __call__(self, indexes: torch.Tensor, epoch: int, first: int) -> torch.Tensor:
        """Make the third views of a batch: float32 (number * B, 3, crop, crop), normalised.

        One candidate of every image comes after another.

        Args:
            indexes: int64 (B,), image indexes as batches carry them.
            epoch: the epoch, counted from 0.
            first: position of the first of these views among the image's views, so that it is
                augmented independently of the others.
        """
        if self.rows is not None and self.rows.device != indexes.device:
            self.rows = self.rows.to(indexes.device)
        rows = indexes if self.rows is None else self.rows[indexes]
        bases = [
            derive_key(self.seed, Purpose.AUGMENTATION, epoch, first + place)
            for place in range(self.number)
        ]
        if self._begun is not None:
            begun, self._begun = self._begun, None
            images = to_device(begun.result(), rows.device)
        elif self._crops is not None:
            here = indexes.cpu() if self._here is None else self._here
            batches = ((here, [keys_for(base, here)]) for base in bases)
            parts = [crops for (crops,) in self._crops.ahead(batches)]
            images = to_device(torch.cat(parts), indexes.device)
        else:
            images = self._images(rows, epoch)
        self._here = None
        return self.augmentation(images, torch.cat([keys_for(base, rows) for base in bases]))


def match(store: CandidateStore, images: Any, name: str) -> torch.Tensor | None:
    """Find the images of a host's data set in a store.

    Args:
        store: the candidates.
        images: the host's data set, or its images; see ``digests_of``.
        name: what to call them in messages.

    Returns:
        int64 (N,), the index in the store of each image. None for the authors' array, which has
        no digests of its images: only their number and size are compared.

    Raises:
        ClspError: an image has no candidates in the store.
    """
    if store.manifest is None:
        store.check(len(images), *size_of(images), "", name)
        warnings.warn(
            f"{store.path} does not say which images it was made for: only their number and size "
            f"were compared, so make sure that its order is that of {name}.",
            stacklevel=2,
        )
        return None
    square = store.height if store.height == store.width else None
    return store.rows_of(digests_of(images, square), name)


class SyntheticPositiveLoader:
    """Appends the third view to the batches of any loader, for training loops of one's own.

    Example::

        loader = DataLoader(dataset, batch_size=256, sampler=sampler, num_workers=4)
        loader = SyntheticPositiveLoader(loader, "candidates/cifar10", augmentation)
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for indexes, (view1, view2, synthetic), targets in loader:
                ...

    The loader itself is not changed: its sampler, worker processes and pinned memory stay as they
    are, and its attributes can be read from this object. The third view is made in the process
    that iterates, on the batch's device.

    Args:
        loader: yields ``(indexes (B,), views, targets)``, with ``views`` a list of (B, 3, H, W) or
            one tensor, as solo-learn's loaders do.
        store: the candidates, or the path of their store.
        augmentation: the augmentation of the third view.
        seed: seed of the choice of a candidate and of the augmentation.
        images: the images that the indexes refer to, to match the candidates with: a data set, or
            uint8 (N, H, W, 3). By default ``loader.dataset``.

    Raises:
        ClspError: there is no store, it lacks candidates for some image, or the loader has no
            dataset and ``images`` is not given.
    """

    def __init__(
        self,
        loader: Iterable,
        store: CandidateStore | str | Path,
        augmentation: BatchAugmentation,
        *,
        seed: int = 0,
        images: Any = None,
    ):
        self.loader = loader
        if not isinstance(store, CandidateStore):
            store = CandidateStore(store)
        images = getattr(loader, "dataset", None) if images is None else images
        if images is None:
            raise ClspError("The loader has no dataset to match the candidates with; give images=.")
        self.third = ThirdView(
            store, augmentation, seed, match(store, images, "the loader's data set")
        )
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # an error where it has no length

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet while this object is being unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch to iterate next, here and in the loader's samplers that have set_epoch."""
        self.epoch = epoch
        for sampler in ("sampler", "batch_sampler"):
            tell = getattr(getattr(self.loader, sampler, None), "set_epoch", None)
            if tell is not None:
                tell(epoch)

    def __iter__(self) -> Iterator[list[Any]]:
        epoch = self.epoch
        self.epoch += 1  # for training loops that never call set_epoch
        for indexes, views, targets in self.loader:
            views = [views] if isinstance(views, torch.Tensor) else list(views)
            third = self.third(indexes.to(views[0].device), epoch, len(views))
            if views[0].is_pinned():
                third = third.pin_memory()
            yield [indexes, [*views, third], targets]
