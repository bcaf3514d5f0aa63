"""Sampling of candidates: images with the semantics of an anchor and another background.

There are three samplers, each with the noise estimate of
:mod:`clsp_plugin.diffusion.interpolation`: DDIM (Song, Meng and Ermon, ICLR 2021), the paper's;
DDPM (Ho, Jain and Abbeel, NeurIPS 2020); DPM-Solver++ of second order (Lu et al., 2022), for few
steps.
"""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    UNet2DModel,
)

from clsp_plugin.config.rules import SEED, ranged
from clsp_plugin.data.keyed_random import Purpose, derive_key, key_normal, keys_for
from clsp_plugin.diffusion.autoencoder import Autoencoder
from clsp_plugin.diffusion.denoiser import ViewUNet
from clsp_plugin.diffusion.interpolation import (
    check_unet,
    check_weight,
    guided_noise,
    interpolated_noise,
    is_conditional,
    viewed_middle,
    viewed_noise,
)
from clsp_plugin.diffusion.precision import PRECISIONS, precision_name
from clsp_plugin.diffusion.schedulers import (
    SAMPLERS,
    Scheduler,
    _AncestralScheduler,
)
from clsp_plugin.errors import ClspError
from clsp_plugin.system.devices import fetch, to_device

__all__ = [
    "CandidateNoise",
    "Sampling",
    "advance",
    "autocast",
    "begin_candidates",
    "check_latent",
    "denoise",
    "sample_candidates",
    "to_float",
    "to_uint8",
]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn; the defaults are the paper's.

    Attributes:
        w: weight of the SAMPLE's middle feature, 0 to 1; 0.1 is 90 % anchor, 1 is an unconditional
            sample.
        sampler: ``ddim``, the paper's; ``ddpm``; or ``dpmpp``, DPM-Solver++ of second order, for
            few steps.
        steps: number of sampling steps; for ``ddim`` and ``ddpm`` a divisor of the number of
            training steps, or nearly, such as 12 of 1000.
        eta: DDIM's eta, 0 (no fresh noise, only the initial noise) to 1 (as much as DDPM); None is
            the paper's 0.1. It cannot be set for the other samplers.
        seed: seed of the sampling noise.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``; only the UNet is computed in less
            than float32.
        clip: whether to clip every step's estimate of the image to [-1, 1]. The paper clips only
            at the end; a denoiser that was trained briefly needs clipping in every step.
        share_anchor: whether to noise an anchor once per step for all its candidates, instead of
            afresh for each as in the paper; this saves about a fifth of the time, with measured
            quality as good.
        guidance: strength of the guidance by the anchors' condition, 0 to 100, for a conditional
            denoiser, see :func:`~clsp_plugin.diffusion.interpolation.guided_noise`; the authors'
            second recipe is ``w=1 guidance=1.8 eta=1``, in which only the anchor's label is used.
            For a denoiser with ``middle=view``, strength of the guidance by the anchor, see
            :func:`~clsp_plugin.diffusion.interpolation.viewed_noise`.
    """

    w: float = ranged(0.1, low=0, high=1)
    sampler: str = ranged("ddim", choices=tuple(SAMPLERS))
    steps: int = ranged(100, low=1, high=1000)
    eta: Optional[float] = ranged(None, low=0, high=1)
    seed: int = ranged(0, SEED)
    precision: Any = "32-true"
    clip: bool = False
    share_anchor: bool = False
    guidance: float = ranged(0.0, low=0, high=100)

    @property
    def chosen_eta(self) -> float:
        """``eta``, or the sampler's default if none was given."""
        assert self.eta is not None
        return self.eta

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", precision_name(self.precision))
        if self.eta is None:
            object.__setattr__(self, "eta", SAMPLERS[self.sampler])
        elif self.sampler != "ddim" and self.eta != SAMPLERS[self.sampler]:
            raise ClspError(
                f"eta={self.eta:g} is DDIM's and sampler={self.sampler} has none; leave it out, "
                f"or set eta=null."
            )


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Clip float (B, 3, H, W) to [-1, 1] and round it to uint8 (B, H, W, 3)."""
    pixels = ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round()
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class CandidateNoise:
    """The noise of a batch of images: a hash of seed, image index, candidate number and step.

    Args:
        seed: seed of all the noise.
        indexes: int64 (B,), image indexes in their data set.
        candidates: int64 (K,), candidate numbers.
        shape: shape of an image, (3, H, W), or of its latents, (C, h, w).
        share_anchor: whether the anchor's noise depends on the candidate (False) or not (True).
    """

    def __init__(
        self,
        seed: int,
        indexes: torch.Tensor,
        candidates: torch.Tensor,
        shape: tuple[int, ...],
        share_anchor: bool,
    ):
        sample = keys_for(derive_key(seed, Purpose.NOISE), indexes)
        anchor = keys_for(derive_key(seed, Purpose.ANCHOR_NOISE), indexes)
        own = keys_for(anchor[:, None], candidates).flatten()
        self.sample_keys = keys_for(sample[:, None], candidates).flatten()
        self.anchor_keys = anchor if share_anchor else own
        self.shape = shape

    def _draw(self, keys: torch.Tensor, step: int) -> torch.Tensor:
        # made on the device: copying a tensor from the host would make the host wait
        keys = keys_for(keys, torch.full((), step, dtype=torch.int64, device=keys.device))
        size = self.shape[0] * self.shape[1] * self.shape[2]
        return key_normal(keys, size).view(-1, *self.shape)

    def sample(self, step: int) -> torch.Tensor:
        """Return the noise added after a step, (B * K, 3, H, W); step T gives the initial noise."""
        return self._draw(self.sample_keys, step)

    def anchor(self, step: int) -> torch.Tensor:
        """Return the anchors' noise at a step: (B * K, 3, H, W), or (B, 3, H, W) if shared."""
        return self._draw(self.anchor_keys, step)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    dtype = PRECISIONS[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def advance(
    scheduler: Scheduler,
    estimate: torch.Tensor,
    t: int,
    x: torch.Tensor,
    noise: CandidateNoise,
    eta: float,
) -> torch.Tensor:
    """Return the samples after one step of the sampler."""
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        assert eta == 0.0, "this solver adds no noise"
        return scheduler.step(estimate, t, x).prev_sample
    keys: dict[str, Any] = {"variance_noise": noise.sample(t) if eta > 0 else None}
    keys["use_clipped_model_output"] = scheduler.config.clip_sample
    if isinstance(scheduler, _AncestralScheduler):
        assert eta == 1.0, "DDPM has no other eta"
    else:
        keys["eta"] = eta
    return scheduler.step(estimate, t, x, **keys).prev_sample


@torch.inference_mode()
def denoise(
    unet: UNet2DModel,
    scheduler: Scheduler,
    anchors: torch.Tensor,
    noise: CandidateNoise,
    sampling: Sampling,
    *,
    num_steps: int | None = None,
    condition: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the sampler from pure noise to images, or to latents.

    Args:
        unet: a denoiser in evaluation mode.
        scheduler: from :func:`make_scheduler`.
        anchors: float (B * K, 3, H, W) in [-1, 1], or (B, 3, H, W) if candidates share an anchor;
            for a latent denoiser their latents.
        noise: the noise of B images with K candidates each.
        sampling: how to sample.
        num_steps: stop after this many steps of the sampler; by default after all of them.
        condition: for a conditional denoiser, classes from 0, int64 (B * K,), or features, float
            (B * K, D); else None.

    Returns:
        float32 (B * K, 3, H, W), or latents.
    """
    if isinstance(scheduler, DPMSolverMultistepScheduler):  # reset: it remembers earlier steps
        scheduler.set_timesteps(timesteps=scheduler.timesteps.tolist())
    x = noise.sample(scheduler.config.num_train_timesteps)
    middle = None
    if isinstance(unet, ViewUNet):
        assert sampling.w in (0.0, 1.0), "the anchor's middle feature, or none"
        with autocast(x.device, sampling.precision):
            middle = viewed_middle(unet, anchors) * (1.0 - sampling.w)
    for t in scheduler.timesteps[:num_steps].tolist():
        x_anchor = anchors
        if sampling.w < 1.0 and middle is None:  # an unconditional sample never looks at the anchor
            a = scheduler.alphas_cumprod[t]
            x_anchor = a.sqrt() * anchors + (1 - a).sqrt() * noise.anchor(t)
        with autocast(x.device, sampling.precision):
            if middle is not None:
                estimate = viewed_noise(unet, x, middle, t, sampling.guidance)
            elif condition is None:
                estimate = interpolated_noise(unet, x, x_anchor, t, sampling.w)
            else:
                estimate = guided_noise(
                    unet, x, x_anchor, t, sampling.w, condition, sampling.guidance
                )
        estimate = estimate.float()
        # clipping would hide an infinity, but never hides a NaN
        estimate = estimate.masked_fill(estimate.isinf(), torch.nan)
        x = advance(scheduler, estimate, t, x, noise, sampling.chosen_eta)
    return x


def check_latent(sampling: Sampling) -> None:
    """Refuse to clip latents as if they were pixels."""
    if sampling.clip:
        raise ClspError(
            "clip=True clips every step's estimate to the range of pixels, and this denoiser "
            "draws latents, which have no such range; set clip=False."
        )


def _latents(autoencoder: Autoencoder, x: torch.Tensor, w: float) -> torch.Tensor:
    """Return the latents of anchors; where no anchor is looked at, zeros."""
    if w < 1.0:
        return autoencoder.encode(x)
    return x.new_zeros(len(x), autoencoder.channels, *autoencoder.latent_size(*x.shape[2:]))


def begin_candidates(
    unet: UNet2DModel,
    scheduler: Scheduler,
    anchors: torch.Tensor,
    sampling: Sampling,
    *,
    indexes: torch.Tensor,
    candidates: Sequence[int],
    condition: torch.Tensor | None = None,
    autoencoder: Autoencoder | None = None,
) -> Callable[[], torch.Tensor]:
    """Begin to draw candidates of a batch of anchors, without waiting for the device.

    All noise is a hash of (seed, image index, candidate, step), so an image gets the same noise
    whatever the batch, the order, the number of processes and the other candidates are.

    Args:
        unet: a denoiser; it is put in evaluation mode.
        scheduler: from :func:`make_scheduler`.
        anchors: uint8 (B, H, W, 3).
        sampling: how to sample. If the precision does not suffice for the candidates of an image,
            so that they are not finite, they are sampled again in float32, from the same noise,
            with a warning.
        indexes: int64 (B,), the anchors' indexes in their data set.
        candidates: the candidate numbers to draw, K of them.
        condition: for a conditional denoiser, the anchors' classes from 0, int64 (B,), or
            features, float (B, D).
        autoencoder: that of a latent denoiser, on the denoiser's device. It computes in float32.

    Returns:
        A function that waits for the candidates and returns them: uint8 (B, K, H, W, 3), on the
        CPU.

    Raises:
        ClspError: w is not valid, or the UNet is not supported. The returned function raises it if
            samples are not finite in float32 either.
    """
    check_unet(unet, 3 if autoencoder is None else autoencoder.channels)
    check_weight(sampling.w)
    unet.eval()
    device = unet.device
    x = to_float(to_device(anchors, device))
    if autoencoder is not None:
        check_latent(sampling)
        x = _latents(autoencoder, x, sampling.w)
    numbers = to_device(torch.as_tensor(list(candidates), dtype=torch.int64), device)
    shape = tuple(x.shape[1:])
    noise = CandidateNoise(
        sampling.seed, to_device(indexes, device), numbers, shape, sampling.share_anchor
    )
    if not sampling.share_anchor:
        x = x.repeat_interleave(len(numbers), dim=0)
    own = None
    if is_conditional(unet):
        assert condition is not None, "a conditional denoiser needs the anchors' condition"
        own = to_device(condition, device).repeat_interleave(len(numbers), dim=0)
    x = denoise(unet, scheduler, x, noise, sampling, condition=own)
    if autoencoder is not None:
        x = autoencoder.decode(x)
    out = to_uint8(x).unflatten(0, (len(anchors), len(numbers)))
    wait = fetch(out, torch.isfinite(x).flatten(1).all(1).view(len(anchors), -1).all(1))

    def finish() -> torch.Tensor:
        drawn, finite = wait()
        if finite.all():
            return drawn
        broken = (~finite).nonzero()[:, 0]
        if sampling.precision == "32-true":
            raise ClspError(
                f"The candidates of image {int(indexes[broken[0]])} are not finite in float32: "
                f"this denoiser is broken; use another."
            )
        warnings.warn(
            f"Candidates sampled with precision={sampling.precision} were not finite; their images "
            f"are sampled again in float32.",
            stacklevel=2,
        )
        drawn[broken] = sample_candidates(
            unet,
            scheduler,
            anchors[broken],
            replace(sampling, precision="32-true"),
            indexes=indexes[broken],
            candidates=candidates,
            condition=None if condition is None else condition[broken],
            autoencoder=autoencoder,
        )
        return drawn

    return finish


def sample_candidates(*args: Any, **keys: Any) -> torch.Tensor:
    """Draw candidates as :func:`begin_candidates` does, and wait for them."""
    return begin_candidates(*args, **keys)()
