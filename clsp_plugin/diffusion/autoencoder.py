"""The autoencoder of a latent denoiser: from images to latents and back.

Latent diffusion (Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
CVPR 2022) denoises what an autoencoder makes of an image. Three kinds of diffusers are read:
``AutoencoderKL``, ``AutoencoderTiny`` and ``VQModel``.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from torch import nn

from clsp_plugin.diffusion.folders import (
    INDEX,
    fetched,
    invalid_setting,
    load_network,
    read_config,
)
from clsp_plugin.errors import ClspError

__all__ = ["Autoencoder", "load_autoencoder", "part_of", "weights_digest"]

_ADVICE = (
    "an autoencoder is a directory of diffusers' AutoencoderKL, AutoencoderTiny or VQModel, "
    "`clsp autoencoder` trains one."
)
_KINDS = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, VQModel)}
# What pipelines call the autoencoder.
_PARTS = ("vqvae", "vae")
# Largest accepted settings, as of denoisers.
_LARGEST = {"latent_channels": 2**10, "layers_per_block": 64, "num_vq_embeddings": 2**20}
_LARGEST_LISTS = {
    "block_out_channels": 2**14, "encoder_block_out_channels": 2**14, "num_encoder_blocks": 64,
    "decoder_block_out_channels": 2**14, "num_decoder_blocks": 64,
}  # fmt: skip
# Pixels that are encoded or decoded at once: an autoencoder needs a hundred times the memory of
# the images, which a batch for the denoiser of small latents would not leave room for.
_PIXELS = 2**20


class Autoencoder:
    """An autoencoder with the scale and the shift that its latents are denoised in.

    Args:
        network: an ``AutoencoderKL``, ``AutoencoderTiny`` or ``VQModel`` of RGB images.

    Attributes:
        network: the same, in evaluation mode and without gradients.
        channels: channels of the latents.
        factor: how many pixels a place of the latents has in height and in width.

    Raises:
        ClspError: it is not one of RGB images.
    """

    def __init__(self, network: Any):
        self.network = network.eval().requires_grad_(False)
        config = network.config
        given = (config.in_channels, config.out_channels)
        if given != (3, 3):
            raise ClspError(
                f"This autoencoder maps {given[0]} channels to {given[1]}, and 3 to 3 are needed "
                f"(RGB); use another, `clsp autoencoder` trains one."
            )
        self.channels = getattr(config, "vq_embed_dim", None) or config.latent_channels
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        scale, shift = config.scaling_factor, getattr(config, "shift_factor", None)
        self.scale = 1.0 if scale is None else float(scale)
        self.shift = 0.0 if shift is None else float(shift)
        if not (math.isfinite(self.scale) and math.isfinite(self.shift) and self.scale > 0):
            raise ClspError(
                f"This autoencoder has scaling_factor={scale} and shift_factor={shift}; the first "
                f"must be positive and both finite."
            )

    def to(self, device: torch.device) -> "Autoencoder":
        """Move the network to a device, in place."""
        self.network.to(device)
        return self

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the latents of images.

        Args:
            height: height of the images in pixels.
            width: width of the images in pixels.

        Raises:
            ClspError: the autoencoder does not divide the images evenly.
        """
        if height % self.factor or width % self.factor:
            raise ClspError(
                f"This autoencoder makes one place of {self.factor}x{self.factor} pixels, and the "
                f"images are {height}x{width}; resize them to a multiple of {self.factor} "
                f"(data.image_size=)."
            )
        return height // self.factor, width // self.factor

    @torch.inference_mode()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latents of images; of a distribution of latents (AutoencoderKL) its mode.

        Args:
            x: float32 (B, 3, H, W) in [-1, 1].

        Returns:
            float32 (B, C, H / factor, W / factor), shifted and scaled for the denoiser.
        """
        latents = _in_parts(self._encoded, x, x.shape[2] * x.shape[3])
        return (latents - self.shift) * self.scale

    def _encoded(self, x: torch.Tensor) -> torch.Tensor:
        found = self.network.encode(x)
        return found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents

    @torch.inference_mode()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return the images of latents.

        Args:
            z: float32 (B, C, h, w), as :meth:`encode` returns them.

        Returns:
            float32 (B, 3, h * factor, w * factor), in about [-1, 1].
        """
        pixels = z.shape[2] * z.shape[3] * self.factor**2
        z = z / self.scale + self.shift
        return _in_parts(lambda part: self.network.decode(part).sample, z, pixels)

    @property
    def hash(self) -> str:
        """Hash of the weights and of what their shapes do not show: 16 hexadecimal digits."""
        digest = weights_digest(self.network)
        config = {k: v for k, v in sorted(self.network.config.items()) if k[0] != "_"}
        for name in _NOT_CONTENT:
            config.pop(name, None)
        digest.update(json.dumps([type(self.network).__name__, config]).encode())
        return digest.hexdigest()[:16]


# Settings of an autoencoder that its results do not depend on.
_NOT_CONTENT = ("force_upcast", "sample_size")


def _in_parts(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, pixels: int
) -> torch.Tensor:
    """Apply a function to a batch, a few images at a time."""
    parts = x.split(max(1, _PIXELS // max(1, pixels)))
    return torch.cat([function(part) for part in parts])


def weights_digest(network: nn.Module) -> Any:
    """Return a SHA-256 object that was given the names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest


def part_of(pipeline: Path) -> Path | None:
    """Return the folder of the autoencoder in a pipeline's folder, None if it has none.

    Raises:
        ClspError: the pipeline names one that is not there.
    """
    parts = read_config(pipeline / INDEX)
    # a part that is left out is named [null, null]
    names = [n for n in _PARTS if isinstance(parts.get(n), list) and all(parts[n])]
    if not names:
        return None
    folder = pipeline / names[0]
    if not folder.is_dir():
        raise ClspError(
            f"{pipeline / INDEX} names an autoencoder, and there is no {folder}; take the pipeline "
            f"from a whole copy, or make it again."
        )
    return folder


def _problem_with(config: Mapping[str, Any]) -> str | None:
    """Return why the network of a configuration file is not an autoencoder, or None."""
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in _KINDS:
        return f"is a {str(kind)[:60]}, not an {', '.join(_KINDS)}"
    return invalid_setting(config, {**_LARGEST, **_LARGEST_LISTS}, _LARGEST_LISTS)


def _download(source: str) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(source, allow_patterns=["*.json", "*.safetensors"])


def load_autoencoder(source: str | Path) -> Autoencoder:
    """Load an autoencoder in diffusers' format.

    Args:
        source: a directory of one (``config.json`` and weights), a pipeline's directory that has
            one, or an id on the Hugging Face hub. An existing directory is never looked up there.

    Returns:
        The autoencoder, on the CPU.

    Raises:
        ClspError: there is no such directory, it is of another kind, weights are missing or
            changed since they were written, or it is not one of RGB images.
    """
    if Path(source).is_file():
        raise ClspError(f"{source} is a file; {_ADVICE}")
    folder = Path(source)
    if not folder.is_dir():
        folder = fetched(str(source), _download, "autoencoder", "madebyollin/taesd")
    if (folder / INDEX).exists():
        part = part_of(folder)
        if part is None:
            raise ClspError(f"The pipeline in {folder} has no autoencoder; {_ADVICE}")
        folder = part
    config = read_config(folder / "config.json", _ADVICE)
    problem = _problem_with(config)
    if problem:
        raise ClspError(f"The network in {folder} {problem}; `clsp autoencoder` trains one.")
    return Autoencoder(load_network(_KINDS[config["_class_name"]], folder, _ADVICE))
