"""Latents of training images, computed once before a latent denoiser is trained.

They are kept in files of a thousand images, each there whole or not at all, so that a training
that was killed while it encoded goes on from there.
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from clsp_plugin.diffusion.autoencoder import Autoencoder
from clsp_plugin.diffusion.sampling import to_float
from clsp_plugin.system.arrays import read_npy
from clsp_plugin.system.devices import to_device
from clsp_plugin.system.files import unfinished, write_whole
from clsp_plugin.system.progress import Progress

__all__ = ["Latents"]

_PART = 1024  # images of a file
_BATCH = 64


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
        missing = [part for part in self._parts() if not part[0].exists()]
        if not missing:
            return
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

        Raises:
            ClspError: a file is damaged.
        """
        advice = (
            "delete that file and start the training again, which encodes only what is missing."
        )
        parts = [torch.from_numpy(read_npy(path, advice)) for path, _, _ in self._parts()]
        return torch.cat(parts)
