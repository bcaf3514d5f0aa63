"""How images are brought to what a frozen network takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clsp_plugin.data.image_array import squares
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.data.objects import as_images
from clsp_plugin.data.packed.images import customary_resize
from clsp_plugin.errors import ClspError

__all__ = ["Preparation", "preparation_of"]


@dataclass(frozen=True)
class Preparation:
    """Prepares images as a network was given them in its training.

    Attributes:
        image_size: side in pixels of the square that the network takes; None for images as they
            are.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        resize: pixels that the shorter side is brought to before the centre is cut out; None for
            ``image_size``.
        interpolation: of the resizing, ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
    """

    image_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bicubic"

    @property
    def resizing(self) -> dict[str, Any]:
        """What is not the usual resizing, as arguments of ``image_array.squares``."""
        usual = {"resize": (None, self.image_size), "interpolation": ("bicubic",)}
        return {
            name: getattr(self, name) for name in usual if getattr(self, name) not in usual[name]
        }

    def squares(self, images: torch.Tensor) -> torch.Tensor:
        """Resize and cut out the centre: uint8 (N, H, W, 3) to (N, S, S, 3).

        Without a size, images that are not square are cut to their height.
        """
        return squares(images, self.image_size or images.shape[1], **self.resizing)

    def __call__(self, images: Any) -> torch.Tensor:
        """Resize, cut out the centre and normalise.

        Args:
            images: uint8 (N, H, W, 3), or what :func:`clsp_plugin.data.objects.as_images` takes.

        Returns:
            float32 (N, 3, S, S).

        Raises:
            ClspError: the images are of another type or shape.
        """
        if isinstance(images, (np.ndarray, torch.Tensor)) and len(images):
            pixels = torch.as_tensor(images)
        else:
            pixels = as_images(images, self.image_size, "images").images
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ClspError(
                f"images are {pixels.dtype} {tuple(pixels.shape)}; give uint8 (N, H, W, 3)."
            )
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        pixels = self.squares(pixels) if self.image_size else pixels
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def preparation_of(args: Mapping[str, Any]) -> Preparation:
    """Return how a pre-training's configuration prepares images that are not augmented.

    The size is that of the first pipeline's crops; None if the configuration does not say. After a
    training on packed photographs more than that is resized, as is customary for them.
    """
    mean, std = channel_statistics(args["data"], args.get("augmentations"))
    size = (args.get("augmentations") or [{}])[0].get("crop_size")
    resize = customary_resize(size) if size and args["data"].get("packed") else None
    return Preparation(size, tuple(mean), tuple(std), resize)
