"""A data set whose images come with one of their candidates, for training loops of other packages.

``SyntheticPositiveLoader`` serves loops whose batches carry the indexes of their images; those of
most other packages do not, so here the candidate is chosen where the image is read.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import DatasetFolder

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.third_view import match
from clsp_plugin.data.objects import read_item
from clsp_plugin.errors import ClspError

__all__ = ["SyntheticViews"]


class SyntheticViews(Dataset):
    """Views of each image, and as the last one a view of one of its candidates.

    Example::

        dataset = SyntheticViews(ImageFolder("my/train"), "candidates/mine", two_views, one_view)
        for (view1, view2, synthetic), targets in DataLoader(dataset, batch_size=256, shuffle=True):
            ...

    The candidate is drawn uniformly, anew whenever an item is read, from torch's global generator,
    as torchvision's augmentations are; a ``DataLoader`` seeds it in each of its workers.

    Args:
        dataset: the images without transforms, as
            :func:`clsp_plugin.data.objects.as_images` takes them. They are read once, to find each
            one's candidates by its pixels: they may have another order than those that the
            candidates were drawn for, or be some of them.
        store: the candidates, or the path of their store.
        transform: makes the views of an image: a PIL image to a list of tensors, or to one tensor.
        synthetic_transform: makes the view of a candidate: a PIL image to a tensor.

    Raises:
        ClspError: there is no store, it lacks candidates for some image, or an item of ``dataset``
            is no image.
    """

    def __init__(
        self,
        dataset: Any,
        store: CandidateStore | str | Path,
        transform: Callable[[Image.Image], Any],
        synthetic_transform: Callable[[Image.Image], torch.Tensor],
    ):
        if not hasattr(dataset, "__len__") or len(dataset) == 0:
            raise ClspError(
                f"The data set ({type(dataset).__name__}) has no length, or is empty; give one "
                f"that is read by index."
            )
        self.dataset = dataset
        self.store = store if isinstance(store, CandidateStore) else CandidateStore(store)
        self.transform, self.synthetic_transform = transform, synthetic_transform
        self._rows = match(self.store, _Numbered(dataset), "the data set")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int]:
        """Return the views of an image, the synthetic one last, and its label, -1 without one."""
        image, label = read_item(self.dataset[index], f"Item {index} of the data set")
        views = self.transform(image.convert("RGB"))
        views = [views] if isinstance(views, torch.Tensor) else list(views)
        choice = int(torch.randint(self.store.num_candidates, ()))
        return [*views, self.synthetic_transform(self.candidate(index, choice))], label

    def candidate(self, index: int, number: int) -> Image.Image:
        """Return candidate ``number``, in [0, K), of the image with an index in the data set."""
        row = index if self._rows is None else int(self._rows[index])
        return Image.fromarray(self.store.images([row])[0, number])


class _Numbered:
    """A data set's items as :func:`match` reads them: the index, the image, the label."""

    transform = None

    def __init__(self, dataset: Any):
        self.dataset = dataset
        # images are read by threads, which objects with an open file need not allow
        files = isinstance(dataset, DatasetFolder)
        self.alone: AbstractContextManager = nullcontext() if files else Lock()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Image.Image, int]:
        with self.alone:
            item = self.dataset[index]
        return index, *read_item(item, f"Item {index} of the data set")
