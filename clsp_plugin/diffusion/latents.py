"""Latents of training images, computed once before a latent denoiser is trained.

They are written in files of a thousand images, each there whole or not at all, so that a training
that was killed while it encoded goes on from there. When all are there they become one file, which
is mapped, so that memory does not limit their number.
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from clsp_plugin.diffusion.autoencoder import Autoencoder
from clsp_plugin.diffusion.sampling import to_float
from clsp_plugin.system.arrays import map_npy, mapped_tensor
from clsp_plugin.system.devices import to_device
from clsp_plugin.system.files import unfinished, write_whole
from clsp_plugin.system.progress import Progress

__all__ = ["Latents"]

_PART = 1024  # images of a file
_BATCH = 64
_ADVICE = "delete that file and start the training again, which encodes only what is missing."


class Latents:
    """The latents of images in files.

    Args:
        images: uint8 (N, H, W, 3).
        autoencoder: what encodes them.
        workspace: folder of the training.
        name: what identifies the images and the autoencoder; latents of another name are deleted.
        mirrored: whether the mirrored images are encoded too.
    """

    def __init__(
        self,
        images: torch.Tensor,
        autoencoder: Autoencoder,
        workspace: Path,
        name: str,
        mirrored: bool,
    ):
        self.images, self.autoencoder, self.mirrored = images, autoencoder, mirrored
        self.workspace, self.folder = workspace, workspace / f"latents-{name}"
        self._whole = self.folder / "all.npy"

    def _parts(self) -> Iterator[tuple[Path, int, int]]:
        for number, start in enumerate(range(0, len(self.images), _PART)):
            stop = min(start + _PART, len(self.images))
            yield self.folder / f"part-{number:05d}.npy", start, stop

    def write(self, device: torch.device) -> None:
        """Encode the images that have no latents yet on a device."""
        for other in self.workspace.glob("latents-*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        for left in unfinished(self.folder):
            left.unlink(missing_ok=True)
        if self._whole.exists():
            self._drop_parts()
            return
        missing = [part for part in self._parts() if not part[0].exists()]
        if missing:
            self._write_parts(missing, device)
        parts = [map_npy(path, _ADVICE) for path, _, _ in self._parts()]
        write_whole(self._whole, partial(_join, parts=parts))
        self._drop_parts()

    def _drop_parts(self) -> None:
        for path, _, _ in self._parts():
            path.unlink(missing_ok=True)

    def _write_parts(self, missing: list[tuple[Path, int, int]], device: torch.device) -> None:
        self.autoencoder.to(device)
        total = sum(stop - start for _, start, stop in missing)
        with Progress(total=total, desc="encode", unit="image") as bar:
            for path, start, stop in missing:
                latents = self._encoded(start, stop, device)
                write_whole(path, partial(np.save, arr=latents))
                bar.update(stop - start)
        self.autoencoder.to(torch.device("cpu"))

    def _encoded(self, start: int, stop: int, device: torch.device) -> np.ndarray:
        parts = []
        for indexes in torch.arange(start, stop).split(_BATCH):
            x = to_float(to_device(self.images[indexes], device))
            views = [x, x.flip(-1)] if self.mirrored else [x]
            parts.append(torch.stack([self.autoencoder.encode(view) for view in views], dim=1))
        return torch.cat(parts).half().cpu().numpy()

    def read(self) -> torch.Tensor:
        """Return the latents: float16 (N, 1 or 2, C, h, w), the image's and the mirrored one's.

        They are mapped, and must not be written to.

        Raises:
            ClspError: a file is damaged.
        """
        return mapped_tensor(map_npy(self._whole, _ADVICE))


def _join(file: BinaryIO, parts: list[np.ndarray]) -> None:
    """Write arrays (n, ...) as one ``.npy`` file."""
    header = np.lib.format.header_data_from_array_1_0(parts[0])
    header["shape"] = (sum(map(len, parts)), *parts[0].shape[1:])
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        file.write(part.data)
