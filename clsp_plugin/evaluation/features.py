"""Features of a frozen backbone, computed once and read by every evaluation."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from clsp_plugin.data.downstream import ImageStream
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.packed.cutting import Centres
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.data.preparation import Preparation
from clsp_plugin.data.splits import open_splits
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.modes import evaluating
from clsp_plugin.system.devices import fetch, to_device
from clsp_plugin.system.progress import Progress

__all__ = ["Features", "extract_features", "load_labelled"]


@dataclass(frozen=True)
class Features:
    """Features of labelled images, from a frozen backbone.

    Attributes:
        feats: float32 (V, N, D). View 0 is the image as it is, view 1 (if any) its mirror image.
        targets: int64 (N,), class numbers from 0.
    """

    feats: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def dim(self) -> int:
        """D, the width of the backbone's output."""
        return self.feats.shape[-1]

    def subset(self, indexes: torch.Tensor) -> "Features":
        """Return the features of some images, in the order of ``indexes`` (int64)."""
        return Features(self.feats[:, indexes], self.targets[indexes])


def extract_features(
    backbone: nn.Module,
    images: Images | ImageStream,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    flip: bool,
    prepare: Preparation | None = None,
    num_workers: int = 0,
    desc: str = "",
) -> Features:
    """Run every image through a backbone once, or once plain and once mirrored.

    Args:
        backbone: images (B, 3, H, W) to features (B, D); moved to ``device``, otherwise left as it
            was.
        images: labelled images, in memory, packed, or read as they are needed.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        batch_size: images per forward pass.
        device: where the backbone runs; the features come back to the CPU.
        flip: whether view 1, the horizontal mirror image, is computed too.
        prepare: brings images in memory and packed ones to the size that the backbone takes, a
            batch at a time; None for images in memory as they are. Packed images need its size.
        num_workers: processes that read a stream of images; none for 0.
        desc: title of the progress bar; no bar if empty.

    Raises:
        ClspError: the images have no labels or cannot be read, or features are not finite.
    """
    centre, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
    backbone.to(device)
    # One block: parts that are kept, and joined at the end, take nearly four times the memory.
    feats, broken = torch.empty(0), torch.zeros(len(images), dtype=torch.bool)
    begun: deque[tuple[slice, Callable[[], tuple[torch.Tensor, ...]]]] = deque()

    def collect(most: int) -> None:
        """Wait for the features of all batches but so many."""
        nonlocal feats
        while len(begun) > most:
            rows, wait = begun.popleft()
            outputs = wait()
            if not len(feats):
                width = outputs[0].shape[1:]
                assert len(width) == 1, f"a backbone gives (B, D), this one (B, {tuple(width)})"
                feats = torch.empty(len(outputs), len(images), *width)
            for view, found in zip(feats, outputs, strict=True):
                view[rows] = found
                broken[rows] |= ~torch.isfinite(found).all(1)

    done = 0
    targets: list[torch.Tensor] = []
    batches = _batches(images, batch_size, num_workers, prepare, centre.device)
    total = -(-len(images) // batch_size)
    with torch.no_grad(), evaluating(backbone):
        bar = Progress(batches, desc=desc, total=total, disable=not desc, unit="batch")
        for pixels, labels in bar:
            targets.append(labels)
            # NHWC in memory, seen as NCHW: that is what channels_last means
            X = to_device(pixels, centre.device).permute(0, 3, 1, 2)
            X = X.float().div_(255).sub_(centre).div_(scale)
            outputs = [backbone(X).float()]
            if flip:
                X = X.flip(3).contiguous(memory_format=torch.channels_last)
                outputs.append(backbone(X).float())
            begun.append((slice(done, done + len(labels)), fetch(*outputs)))
            done += len(labels)
            collect(1)  # meanwhile a GPU works on the next batch
    collect(0)
    if bool(broken.any()):
        raise ClspError(
            f"The backbone's features of {int(broken.sum())} of the {len(images)} images of "
            f"{images.name} are not finite: the training of this checkpoint diverged; evaluate an "
            f"earlier one, or train again with a smaller optimizer.lr."
        )
    return Features(feats, torch.cat(targets).to(torch.int64).cpu())


def load_labelled(data: Any) -> tuple[Images, Images]:
    """Load the labelled training and test images of a configuration's ``data`` block.

    Packed ones are opened.

    Raises:
        ClspError: there are no test images, or some of a class that is not trained on.
    """
    train, test = open_splits(data)
    if test is None:
        raise ClspError(
            "There are no images to test on: set data.val_path to a folder of class folders."
        )
    return train.labelled(), test.labelled()


def _batches(
    images: Images | ImageStream,
    batch_size: int,
    num_workers: int,
    prepare: Preparation | None,
    device: torch.device,
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of pixels uint8 (B, H, W, 3) and targets (B,), in the order of the images.

    They are on the host; the device is the one that they will go to.
    """
    if isinstance(images, ImageStream):
        own = torch.Generator()  # by default the loader draws from the global one
        return _read(DataLoader(images, batch_size, num_workers=num_workers, generator=own))
    if bool((images.targets < 0).any()):
        raise ClspError(
            f"{int((images.targets < 0).sum())} of the {len(images)} images of {images.name} have "
            f"no labels and an evaluation needs them; put each class into a folder of its own and "
            f"set data.no_labels=False."
        )
    labels = images.targets.split(batch_size)
    if isinstance(images, PackedImages):
        assert prepare is not None
        assert prepare.image_size is not None
        numbers = torch.arange(len(images)).split(batch_size)
        centres = Centres(images, prepare.image_size, **prepare.resizing)
        centres.beside(device)
        return zip(centres(numbers), labels, strict=True)
    assert isinstance(images, ImageArray)
    parts: Iterable[torch.Tensor] = images.images.split(batch_size)
    return zip(parts if prepare is None else map(prepare.squares, parts), labels, strict=True)


def _read(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for pixels, targets, wrong in loader:
        told = next(filter(None, wrong), None)
        if told is not None:  # raised here, without a worker's traceback
            raise ClspError(told)
        yield pixels, targets
