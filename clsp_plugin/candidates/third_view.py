"""The third view: one of an image's candidates, augmented, by the image's index."""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from clsp_plugin.candidates.matching import digests_of, size_of
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.errors import ClspError

__all__ = ["SyntheticPositiveLoader", "ThirdView", "match"]

_VERIFIED = 2**30  # bytes of a store that is held against its digests though it stays on disk


class ThirdView:
    """Makes the third view of a batch, on the batch's device.

    Every draw is keyed by (seed, epoch, image index), so batches, processes and restarts change
    nothing.

    Args:
        source: the candidates; or the images themselves, uint8 (N, H, W, 3), for the control
            whose third view is one more augmentation.
        augmentation: of the view.
        seed: of the choice of a candidate and of the augmentation.
        rows: int64 (M,), the place in ``source`` of each image that indexes name; None where it
            is the index.
    """

    def __init__(
        self,
        source: CandidateStore | torch.Tensor,
        augmentation: BatchAugmentation,
        seed: int,
        rows: torch.Tensor | None = None,
    ):
        self.source, self.augmentation = source, augmentation
        self.seed, self.rows = seed, rows

    def to(self, device: torch.device) -> "ThirdView":
        """Move what is small enough to a training device, in place; large stores stay on disk.

        Raises:
            ClspError: a shard does not agree with its digest; looked at where the store is moved,
                and where it is so small that reading it takes no more than a second or two.
        """
        fits = device.type == "cuda" and (
            self.source.nbytes < 0.25 * torch.cuda.mem_get_info(device)[0]
        )
        if isinstance(self.source, torch.Tensor):
            self.source = self.source.to(device) if fits else self.source
        elif fits:
            self.source.load_to(device)
        elif self.source.nbytes <= _VERIFIED:
            self.source.verify()
        if self.rows is not None:
            self.rows = self.rows.to(device)
        return self

    def __call__(self, indexes: torch.Tensor, epoch: int, number: int) -> torch.Tensor:
        """Views of images: float32 (B, 3, crop, crop), normalised.

        Args:
            indexes: int64 (B,), as batches carry them.
            epoch: 0-based.
            number: of the view among the image's views, which keeps their randomness apart.
        """
        if self.rows is not None and self.rows.device != indexes.device:
            self.rows = self.rows.to(indexes.device)
        rows = indexes if self.rows is None else self.rows[indexes]
        if isinstance(self.source, torch.Tensor):
            images = self.source[rows.to(self.source.device)].to(rows.device)
        else:
            images = self.source.gather(rows, self.source.choose(rows, self.seed, epoch))
        base = derive_key(self.seed, Purpose.AUGMENTATION, epoch, number)
        return self.augmentation(images, keys_for(base, rows))


def match(store: CandidateStore, images: Any, name: str) -> torch.Tensor | None:
    """Where the images that a host's indexes name are in a store.

    Args:
        store: the candidates.
        images: the host's data set, or its images; see ``digests_of``.
        name: what to call them.

    Returns:
        int64 (N,), rows of the store; None for the authors' array, which names no images: only
        their number and size are compared.

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
    are, and its attributes are reached through this object. The view is made in the process that
    iterates, where the batch lies.

    Args:
        loader: yields ``(indexes (B,), views, targets)``, ``views`` a list of (B, 3, H, W) or one
            tensor; solo-learn's loaders do.
        store: the candidates, or the path of their store.
        augmentation: of the third view.
        seed: of the choice of a candidate and of the augmentation.
        images: the images that the indexes name, to match the candidates with: a data set, or
            uint8 (N, H, W, 3). By default ``loader.dataset``.

    Raises:
        ClspError: no store, or one without candidates for each of the images.
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
        """Name the epoch that is iterated next, here and to the loader's sampler if it asks."""
        self.epoch = epoch
        for sampler in ("sampler", "batch_sampler"):
            tell = getattr(getattr(self.loader, sampler, None), "set_epoch", None)
            if tell is not None:
                tell(epoch)

    def __iter__(self) -> Iterator[list[Any]]:
        epoch = self.epoch
        self.epoch += 1  # for loops that never name it
        for indexes, views, targets in self.loader:
            views = [views] if isinstance(views, torch.Tensor) else list(views)
            third = self.third(indexes.to(views[0].device), epoch, len(views))
            if views[0].is_pinned():
                third = third.pin_memory()
            yield [indexes, [*views, third], targets]
