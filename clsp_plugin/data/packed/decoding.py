"""Decode packed images, and crop and resize them where they are decoded, by threads of the host."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from clsp_plugin.data.folders import NotReadNow, reading
from clsp_plugin.errors import ClspError
from clsp_plugin.system.processes import cores

__all__ = ["begun_ahead", "changed", "crop", "decode"]

T = TypeVar("T")
R = TypeVar("R")

_RGB = 3  # torchvision's ImageReadMode.RGB
_AHEAD = 2  # batches that are being decoded while the device works on another


def decode(content: np.ndarray, encoding: str, height: int, width: int, name: str) -> torch.Tensor:
    """Decode a packed image: uint8 (H, W, 3).

    Args:
        content: uint8 (length,).
        encoding: ``"jpeg"`` or ``"raw"``.
        height: H in pixels.
        width: W in pixels.
        name: name of the image, for messages.

    Raises:
        NotReadNow: there was no memory for it.
        ClspError: the bytes are not such an image.
    """
    # torch has no read-only tensors, and a copy of some KB costs nothing beside the decoding
    data = torch.from_numpy(content.copy())
    if encoding == "raw":
        if len(data) != height * width * 3:
            raise changed(name)
        return data.view(height, width, 3)
    decoder = by_torchvision if _has_torchvisions() else by_pillow
    try:
        pixels = reading(name, lambda: decoder(data))
    except NotReadNow:
        raise
    except ClspError as error:
        raise changed(name) from error
    if tuple(pixels.shape) != (height, width, 3):
        raise changed(name)
    return pixels


@cache
def _has_torchvisions() -> bool:
    """Whether torchvision decodes; it will not for ever, as it says since version 0.29."""
    import torchvision.io

    return hasattr(torchvision.io, "decode_jpeg") and hasattr(torch.ops.image, "decode_jpeg")


def by_torchvision(data: torch.Tensor) -> torch.Tensor:
    """Decode a JPEG, uint8 (length,), to uint8 (H, W, 3)."""
    return torch.ops.image.decode_jpeg(data, _RGB, False).permute(1, 2, 0)


def by_pillow(data: torch.Tensor) -> torch.Tensor:
    """Decode to the same pixels as :func:`by_torchvision`, in a third more time."""
    with Image.open(io.BytesIO(data.numpy().data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def changed(name: str) -> ClspError:
    """Return the error of an image whose packed form is not what it was."""
    return ClspError(
        f"{name} changed on the disk since it was packed; delete the folder of packed images and "
        f"give the same command again, which packs them anew."
    )


def crop(pixels: torch.Tensor, box: np.ndarray, size: int, how: str) -> torch.Tensor:
    """Cut out a box and resize it as torchvision's RandomResizedCrop does, rounded to 8 bits.

    Args:
        pixels: uint8 (H, W, 3).
        box: top, left, height, width in whole pixels.
        size: side of the result in pixels.
        how: ``"bicubic"`` or ``"bilinear"``, with antialiasing.

    Returns:
        uint8 (3, size, size).
    """
    top, left, height, width = box.tolist()
    # a copy by numpy: torch would wake threads of its own for it
    part = np.ascontiguousarray(pixels.numpy()[top : top + height, left : left + width])
    x = torch.from_numpy(part).permute(2, 0, 1)[None]
    if (height, width) == (size, size):
        return x[0]
    return F.interpolate(x, (size, size), mode=how, align_corners=False, antialias=True)[0]


def begun_ahead(
    batches: Iterable[T], begin: Callable[[T, ThreadPoolExecutor], tuple[R, list[Future]]]
) -> Iterator[R]:
    """Yield results in order, while threads work on those of the next batches.

    Args:
        batches: what to work on; taken up not more than two ahead.
        begin: submits the work on one, and returns its result to be and what to wait for.

    Raises:
        Exception: what the work raises.
    """
    pool = ThreadPoolExecutor(cores(), "decode")
    waiting: deque[tuple[R, list[Future]]] = deque()
    try:
        for batch in batches:
            waiting.append(begin(batch, pool))
            if len(waiting) > _AHEAD:
                yield _finished(waiting.popleft())
        while waiting:
            yield _finished(waiting.popleft())
    finally:  # also when an epoch is broken off
        pool.shutdown(cancel_futures=True)


def _finished(begun: tuple[R, list[Future]]) -> R:
    result, futures = begun
    for future in futures:
        future.result()
    return result
