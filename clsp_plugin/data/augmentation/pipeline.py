"""Augmentation of a whole batch, on the device where the batch lies.

The pipeline and its configuration keys are solo-learn's: random resized crop, colour jitter,
greyscale, Gaussian blur, solarisation, equalisation, horizontal flip, normalisation, in that
order. Every image has its own random parameters, which depend only on its key, so an image is
augmented in the same way whatever batch it is in.

Crop, resize and flip are one linear map per axis, hence two small matrix products per image; so
is the blur. The images stay float32 in [0, 1] between the steps: nothing is rounded to 8 bits,
which is why the result differs from that of a pipeline of PIL images. Each step computes what
``torchvision.transforms.functional`` computes on a single float image.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.parameters import (
    Parameters,
    jitter_slots,
    sample_parameters,
    uniform_numbers,
)
from clsp_plugin.data.augmentation.steps import augment, augment_where_needed, draw_and_augment
from clsp_plugin.errors import ClspError
from clsp_plugin.system.compiling import can_compile

__all__ = ["BatchAugmentation", "can_compile_augmentation"]


_PIECE = 2**18  # pixels; 256 images of 32x32


def augment_in_pieces(
    augment: Callable[..., torch.Tensor],
    images: torch.Tensor,
    p: Parameters,
    mean: torch.Tensor,
    std: torch.Tensor,
    cfg: AugmentationConfig,
) -> torch.Tensor:
    """Augment a batch; on a CPU in pieces small enough to stay in its cache between the steps.

    On two cores that is up to twice as fast. All pieces have one size, so that one compiled graph
    does for all: the last piece overlaps the one before, and the images in both are computed twice
    with the same result.

    Args:
        augment: the function of this name, or its compiled form.
        images, p, mean, std, cfg: its arguments.
    """
    n, piece = len(images), max(1, _PIECE // cfg.crop_size**2)
    if images.device.type != "cpu" or n <= piece:
        return augment(images, p, mean, std, cfg)
    out = torch.empty(n, 3, cfg.crop_size, cfg.crop_size)
    for start in range(0, n, piece):
        start = min(start, n - piece)
        part = slice(start, start + piece)
        out[part] = augment(images[part], Parameters(*(x[part] for x in p)), mean, std, cfg)
    return out


class BatchAugmentation:
    """Augment and normalise a batch on the device of its images.

    Args:
        cfg: the pipeline.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        compile: run the steps as one compiled graph, built at the first call and again for
            every new shape (on a CPU, large batches share one). That takes ten seconds or more,
            so it pays off on longer runs (see :func:`can_compile_augmentation`). If that fails, or
            torch is too old for it, the steps run eagerly after one warning.

    Raises:
        ClspError: a mean or std that is not three finite numbers, or a std that is not positive.

    Example::

        augmentation = BatchAugmentation(cfg, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        base = derive_key(seed, Purpose.AUGMENTATION, epoch, view)
        view = augmentation(images, keys_for(base, indexes))
    """

    def __init__(
        self,
        cfg: AugmentationConfig,
        mean: Sequence[float],
        std: Sequence[float],
        compile: bool = False,
    ) -> None:
        self.cfg = cfg
        self._mean = _statistic("mean", mean)
        self._std = _statistic("std", std)
        if not (self._std > 0).all():
            raise ClspError(f"std must be positive in every channel, not {list(std)}")
        self._slots = jitter_slots(cfg)
        self._compile = compile
        self._compiled: Callable | None = None

    def __call__(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Augment a batch: ``(B, 3, crop_size, crop_size)`` float32, normalised.

        Args:
            images: (B, H, W, 3) uint8.
            keys: (B,) int64 from :func:`clsp_plugin.data.keyed_random.keys_for`, on the same
                device.

        Raises:
            ClspError: images or keys of another shape, dtype or device.
        """
        _check_batch(images, keys)
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
            self._slots = self._slots.to(images.device)
        # float32, whatever the precision of the training
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self._run(images, keys)

    def without_geometry(self) -> "BatchAugmentation":
        """Return the same pipeline for images that are cropped and resized already.

        It draws the same numbers for all other steps.
        """
        cfg = replace(self.cfg, crop=False)
        mean, std = (v.flatten().tolist() for v in (self._mean, self._std))
        return BatchAugmentation(cfg, mean, std, compile=self._compile)

    def _run(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        if self._compile and not _compiled_rightly(images.device):
            self._compile = False
            warnings.warn(
                f"torch {torch.__version__} compiles the augmentation wrongly for a CPU, so it "
                f"runs uncompiled; {_RIGHT_ON_CPU} or newer does not.",
                stacklevel=3,
            )
        eager = augment_where_needed if images.device.type == "cpu" else augment
        if not self._compile:
            return self._augment(eager, images, keys)
        try:
            if images.device.type == "cuda":
                self._compiled = self._compiled or _compiled(draw_and_augment)
                u = uniform_numbers(keys)  # Triton takes no constants as large as those of the hash
                return self._compiled(images, u, self._mean, self._std, self._slots, self.cfg)
            self._compiled = self._compiled or _compiled(augment)
            return self._augment(self._compiled, images, keys)
        except Exception as error:
            # this raises if the fault is not the compiler's
            result = self._augment(eager, images, keys)
            self._compile, self._compiled = False, None
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(
                f"compiling the augmentation failed, it runs uncompiled ({reason})", stacklevel=3
            )
            return result

    def _augment(
        self, augment: Callable[..., torch.Tensor], images: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        # Outside the compiled graph: the hash relies on integer products that wrap around, as they
        # do in eager torch but not necessarily in compiled C++.
        p = sample_parameters(keys, self.cfg, images.shape[1], images.shape[2], self._slots)
        return augment_in_pieces(augment, images, p, self._mean, self._std, self.cfg)


def _compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def _statistic(name: str, values: Sequence[float]) -> torch.Tensor:
    values = list(values)
    if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise ClspError(f"{name} must be three finite numbers, one a channel, not {values}")
    return torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1)


def _check_batch(images: torch.Tensor, keys: torch.Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ClspError(
            "images must be uint8 of shape (batch, height, width, 3), "
            f"not {images.dtype} of {tuple(images.shape)}"
        )
    if keys.dtype != torch.int64 or keys.shape != images.shape[:1]:
        raise ClspError(
            f"keys must be int64 of shape ({images.shape[0]},), one an image, "
            f"not {keys.dtype} of {tuple(keys.shape)}"
        )
    if keys.device != images.device:
        raise ClspError(f"keys are on {keys.device}, images on {images.device}; move one of them")


# In the code that torch 2.6 to 2.8 generate for a CPU, a crop and a shift of hue in one graph write
# outside of their memory. 2.9.1 is the oldest version that was seen not to.
_RIGHT_ON_CPU = "2.9.1"


def _compiled_rightly(device: torch.device) -> bool:
    return device.type != "cpu" or torch.__version__ >= _RIGHT_ON_CPU


def can_compile_augmentation(device: torch.device | str) -> bool:
    """Whether ``torch.compile`` has what it needs, and this torch compiles the augmentation right.

    Args:
        device: the device to compile for, or its name.
    """
    return _compiled_rightly(torch.device(device)) and can_compile(device)
