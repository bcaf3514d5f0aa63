"""Redraw candidates with a store's denoiser, to show the effect of w and of the middle feature."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from clsp_plugin.candidates.condition import condition_digest
from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.diffusion.autoencoder import Autoencoder
from clsp_plugin.diffusion.denoiser import (
    ViewUNet,
    denoiser_hash,
    load_autoencoder_of,
    load_denoiser,
)
from clsp_plugin.diffusion.sampling import Sampling, sample_candidates
from clsp_plugin.diffusion.schedulers import make_scheduler
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.frozen import Encoder, device_name
from clsp_plugin.figures import candidate_sheet
from clsp_plugin.inspection.hardness import closeness
from clsp_plugin.inspection.middle_features import masked_samples, masked_sheet

__all__ = ["SHEET_ROWS", "denoiser_of", "denoiser_report", "draw_like", "spread_rows"]

WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
SHEET_ROWS = 8


def denoiser_of(
    manifest: StoreManifest, denoiser: str | Path, condition: torch.Tensor
) -> tuple[UNet2DModel, dict[str, Any], Autoencoder | None]:
    """Load the denoiser that a store was made with.

    Returns:
        The network, the configuration of its scheduler, and a latent denoiser's autoencoder.

    Raises:
        ClspError: the store was made with another denoiser, or with another condition.
    """
    unet, config = load_denoiser(denoiser)
    autoencoder = load_autoencoder_of(denoiser, unet)
    name = denoiser_hash(unet, config, autoencoder)
    if name != manifest.denoiser:
        raise ClspError(
            f"{denoiser} is not the denoiser of this store ({name} instead of "
            f"{manifest.denoiser}); name that one."
        )
    if manifest.condition not in (None, condition_digest(condition)):
        raise ClspError(
            "The store was made with another condition; give --condition what `clsp generate` was "
            "given as condition=."
        )
    if isinstance(unet, ViewUNet):
        raise ClspError(
            "--denoiser shows what w and the blended middle feature do, and this denoiser "
            "(middle=view) blends none; leave it out."
        )
    device = torch.device(device_name())
    return unet.to(device), config, None if autoencoder is None else autoencoder.to(device)


def draw_like(
    manifest: StoreManifest,
    unet: UNet2DModel,
    config: dict[str, Any],
    array: ImageArray,
    rows: Sequence[int],
    condition: torch.Tensor,
    autoencoder: Autoencoder | None = None,
) -> Callable[[float], torch.Tensor]:
    """Return a function of w that draws the first candidate of each anchor, uint8 (A, H, W, 3).

    Apart from w, all settings are those of the store.
    """
    names = (one.name for one in fields(Sampling) if one.name != "precision")
    sampling = Sampling(
        precision=manifest.dtype, **{name: getattr(manifest, name) for name in names}
    )
    keys: dict[str, Any] = {
        "condition": condition[rows],
        "indexes": torch.tensor(rows),
        "candidates": [0],
        "autoencoder": autoencoder,
    }
    scheduler = make_scheduler(config, sampling.steps, sampling.clip, sampling.sampler)

    def draw(w: float) -> torch.Tensor:
        drawn = sample_candidates(
            unet, scheduler, array.images[rows], replace(sampling, w=w), **keys
        )
        return drawn[:, 0].cpu()

    return draw


def _weight_report(
    drawn: torch.Tensor, anchors: torch.Tensor, encoder: Encoder | None
) -> list[dict[str, float]]:
    out = []
    for column, w in enumerate(WEIGHTS):
        images = drawn[:, column : column + 1]
        row = {"w": w}
        for name, found in closeness(anchors, images).items():
            row |= {f"{name}_own": found["own"], f"{name}_closer": found["closer"]}
        if encoder is not None:
            feats = [
                F.normalize(encoder(x.permute(0, 3, 1, 2)), dim=1) for x in (anchors, images[:, 0])
            ]
            row["similarity"] = (feats[0] * feats[1]).sum(1).mean().item()
        out.append(row)
    return out


def spread_rows(number: int, total: int) -> list[int]:
    """Return up to ``number`` indexes below ``total``, evenly spaced to cover all class folders."""
    return [int(row) for row in np.linspace(0, total - 1, min(number, total)).round()]


def denoiser_report(
    draw: Callable[[float], torch.Tensor],
    unet: UNet2DModel,
    anchors: torch.Tensor,
    w: float,
    encoder: Encoder | None,
    out: Path,
) -> dict[str, Any]:
    """Report the effect of w and of masking the middle feature; write a picture of each."""
    drawn = torch.stack([draw(weight) for weight in WEIGHTS], dim=1)
    shown = spread_rows(SHEET_ROWS, len(anchors))
    candidate_sheet(
        anchors[shown].numpy(),
        drawn[shown].numpy(),
        out / "weights.png",
        title="One candidate under several weights of the sample's middle feature",
        caption="w = 0 is the anchor's middle feature alone, 1 an unconditional sample.",
        columns=[f"w = {weight:g}" for weight in WEIGHTS],
    )
    columns = masked_samples(unet, draw, w)
    masked_sheet(anchors[shown], columns[shown], w, out / "masked.png")
    return {
        "weights": _weight_report(drawn, anchors, encoder),
        "masked": closeness(anchors, columns[:, 2:]),
    }
