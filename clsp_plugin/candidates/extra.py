"""Generated images as further training images, beside the real ones.

AdaInf, "Do Generated Data Always Help Contrastive Learning?" (Wang et al., ICLR 2024): each real
image occurs several times in an epoch and each generated image once, and the augmentation is
weaker than without generated images.
"""

import errno
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clsp_plugin.candidates.manifest import MANIFEST
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.image_folder import load_image_files
from clsp_plugin.data.packed.squares import MappedArray
from clsp_plugin.errors import ClspError
from clsp_plugin.system.arrays import read_npy

__all__ = ["inflate", "read_images"]

# Names of the image array in an .npz: AdaInf's, a common variant, and numpy's default.
_IMAGE_NAMES = ("image", "images", "arr_0")


def inflate(real: Images, data: Mapping[str, Any]) -> tuple[Images, torch.Tensor | None]:
    """Add the extra images that ``data.extra`` names to the training images.

    Args:
        real: the training images.
        data: the configuration's ``data`` block: ``extra`` is a folder of images (class folders
            are not used as labels), a ``.npy`` of uint8 (N, H, W, 3) or (N, K, H, W, 3), an
            ``.npz`` with such an array as ``image`` (AdaInf's files; their ``label`` is ignored),
            ``images`` or ``arr_0``, or a candidate store, of which all candidates are taken;
            ``replicate`` is how many times a real image occurs in an epoch.

    Returns:
        The images, real ones first and extra ones with label -1; and the index of the image at
        each position of an epoch, int64. Without ``extra``: ``real`` itself, and None.

    Raises:
        ClspError: there is nothing at ``extra``, its images have another size, or ``replicate`` is
            not valid.
    """
    path, replicate = data.get("extra"), data.get("replicate", 1)
    if replicate < 1:
        raise ClspError(f"data.replicate={replicate} must be at least 1.")
    if path is None:
        if replicate != 1:
            raise ClspError(
                f"data.replicate={replicate} weighs real images against data.extra, which is not "
                f"set; name extra images, or train for more epochs."
            )
        return real, None
    if not isinstance(real, ImageArray) or isinstance(real, MappedArray):
        raise ClspError(
            f"data.extra={path} joins images in memory and {real.name} is on the disk; set "
            f"data.packed=False and data.image_size=PIXELS, or put the images into the folders."
        )
    extra = _load(Path(path), data)
    if tuple(extra.shape[1:]) != (*real.size, 3):
        raise ClspError(
            f"The images of data.extra={path} are {extra.shape[1]}x{extra.shape[2]}, those of "
            f"{real.name} are {real.size[0]}x{real.size[1]}; make them of one size."
        )
    images = ImageArray(
        torch.cat([real.images, extra]),
        torch.cat([real.targets, torch.full((len(extra),), -1)]),
        real.classes,
        f"{real.name}+{len(extra)}",
    )
    places = [torch.arange(len(real)).repeat(replicate), len(real) + torch.arange(len(extra))]
    return images, torch.cat(places)


def _load(path: Path, data: Mapping[str, Any]) -> torch.Tensor:
    """Load the extra images: uint8 (N, H, W, 3)."""
    if path.suffix in (".npy", ".npz") and path.is_file():
        array = read_images(path, "name another data.extra=.")
    elif (path / MANIFEST).is_file():
        store = CandidateStore(path)
        store.verify()
        array = store.images(range(store.num_images))
    elif path.is_dir():
        return torch.from_numpy(load_image_files(path, data.get("image_size")))
    else:
        command = shlex.join(["clsp", "generate", "w=1", f"out={path}"])
        raise ClspError(
            f"There is nothing at data.extra={path}; name a folder of images, a .npy or .npz "
            f"array or a candidate store (`{command}` makes one of unconditional samples)."
        )
    return torch.from_numpy(np.ascontiguousarray(array).reshape(-1, *array.shape[-3:]))


def read_images(path: Path, advice: str) -> np.ndarray:
    """Read images from a ``.npy`` or ``.npz`` file, see :func:`inflate`.

    Args:
        path: the file.
        advice: what to do if it is damaged or holds something else, for the message.

    Returns:
        uint8 (N, H, W, 3) or (N, K, H, W, 3).

    Raises:
        ClspError: it is damaged or holds something else.
    """
    array = read_npy(path, advice) if path.suffix == ".npy" else _read_named(path, advice)
    _check_array(array, path)
    return array


def _read_named(path: Path, advice: str) -> np.ndarray:
    """Read the image array of an ``.npz`` file."""
    try:
        with np.load(path, allow_pickle=False) as content:
            names = list(content)
            name = next((name for name in _IMAGE_NAMES if name in names), None)
            array = None if name is None else content[name]
    except Exception as error:  # numpy and zipfile may raise anything on a damaged file
        # damage also causes seeks before the file's start (EINVAL) and bz2's errors (no errno)
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # an error of the system, which says nothing about the content
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ClspError(f"{path} is not a readable .npz file ({reason}); {advice}") from error
    if array is None:
        found = ", ".join(names[:10]) or "nothing"
        raise ClspError(
            f"{path} has none of {', '.join(_IMAGE_NAMES)}, which images are called in an .npz "
            f"file (found: {found}); save them as image."
        )
    return array


def _check_array(array: np.ndarray, path: Path) -> None:
    if array.ndim not in (4, 5) or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ClspError(
            f"{path} holds {array.dtype} {array.shape}; images are uint8 of shape "
            f"(images, height, width, 3) or (images, candidates, height, width, 3)."
        )
    if not array.size:
        raise ClspError(f"{path} holds no images (its shape is {array.shape}).")
