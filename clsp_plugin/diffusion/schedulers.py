"""Noise schedules, and the samplers that follow them."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
)

from clsp_plugin.errors import ClspError, first_line

__all__ = [
    "LINEAR_BETAS",
    "PREDICTIONS",
    "SAMPLERS",
    "Scheduler",
    "is_number",
    "make_scheduler",
    "predicted",
    "training_betas",
]

# What a network may predict, in diffusers' words: the noise, or the velocity.
PREDICTIONS = ("epsilon", "v_prediction")
# The samplers and their default eta: 0 adds no noise after a step, 1 as much as DDPM.
SAMPLERS = {"ddim": 0.1, "ddpm": 1.0, "dpmpp": 0.0}


class _AncestralScheduler(DDIMScheduler):
    """DDPM: DDIM at eta = 1, whose fresh noise has the variance beta of the step.

    DDIM at eta = 1 adds noise of the posterior's variance, the smaller of DDPM's two; the authors
    take the larger one. Their means are the same.
    """

    def step(self, model_output, timestep, sample, *, variance_noise, **keys):
        then = timestep - self.config.num_train_timesteps // self.num_inference_steps
        if then >= 0:  # the last step adds nothing
            now, before = self.alphas_cumprod[timestep], self.alphas_cumprod[then]
            variance_noise = variance_noise * ((1 - now) / (1 - before)).sqrt()
        return super().step(
            model_output, timestep, sample, eta=1.0, variance_noise=variance_noise, **keys
        )


Scheduler: TypeAlias = DDIMScheduler | DPMSolverMultistepScheduler


def _check_division(steps: int, total: int) -> None:
    """Refuse a number of steps that does not divide ``total``, or nearly; see make_scheduler."""
    fitting = [
        n for n in range(1, total + 1) if total % n < (total / 100 if n <= total / 10 else 1)
    ]
    if steps not in fitting:
        near = sorted(sorted(fitting, key=lambda n: abs(n - steps))[:3])
        raise ClspError(
            f"steps={steps} does not divide the {total} steps of the denoiser's training; the "
            f"nearest that do, or nearly, are {', '.join(map(str, near))}. sampler=dpmpp takes any."
        )


def make_scheduler(
    train_config: Mapping[str, Any] | None,
    steps: int,
    clip: bool = False,
    sampler: str = "ddim",
) -> Scheduler:
    """Make the sampler that fits a denoiser's training.

    Steps are evenly spaced and start at the last one of training: 999, 989, .., 9 for 100 of 1000.
    The last one ends at the clean image. If their number does not divide T, such as 12 of 1000,
    DPM-Solver++ rounds each step, and DDIM and DDPM start up to a hundredth of T before the end of
    training (995, 912, .., 82), where an image is still nothing but noise.

    Args:
        train_config: configuration of the scheduler that the denoiser was trained with, in
            diffusers' keys, of which the betas and the type of prediction are used. By default the
            denoiser predicts the noise, with betas linear from 1e-4 to 0.02 in T = 1000 steps.
        steps: number of sampling steps, 1 to T. For DDIM and DDPM it must divide T, since
            diffusers' update goes back by exactly ``T // steps``; up to T / 10, a remainder of
            less than T / 100 is allowed.
        clip: whether every step clips its estimate of the image to [-1, 1]. The paper does not;
            a denoiser that was trained briefly needs it.
        sampler: one of :data:`SAMPLERS`.

    Raises:
        ClspError: the denoiser predicts something else, it was trained with
            ``rescale_betas_zero_snr``, its betas are not valid, or ``steps`` does not fit.
    """
    config = dict(train_config or {})
    prediction = predicted(config)
    if prediction not in PREDICTIONS:
        raise ClspError(
            f"This denoiser predicts {prediction!r}, which is none of {', '.join(PREDICTIONS)}; "
            f"`clsp denoiser` trains one that does."
        )
    if config.get("rescale_betas_zero_snr"):
        raise ClspError(
            "This denoiser was trained with rescale_betas_zero_snr, from whose last step the image "
            "cannot be computed out of the noise; use one trained without."
        )
    betas = training_betas(config)
    total = len(betas)
    if not 1 <= steps <= total:
        raise ClspError(f"steps={steps} is not between 1 and the {total} of the training.")
    if sampler != "dpmpp":
        _check_division(steps, total)
    common = {
        "num_train_timesteps": total,
        "trained_betas": betas.tolist(),
        "prediction_type": prediction,
    }
    if sampler == "dpmpp":
        # with a largest threshold of 1, dynamic thresholding is plain clipping
        scheduler = DPMSolverMultistepScheduler(
            **common, final_sigmas_type="zero", thresholding=clip, sample_max_value=1.0
        )
        # computed here, because for some numbers of steps diffusers adds one at timestep -1
        times = [round(total - step * total / steps) - 1 for step in range(steps)]
        scheduler.set_timesteps(timesteps=times)
    else:
        kind = _AncestralScheduler if sampler == "ddpm" else DDIMScheduler
        # with this offset every step ends exactly where the next one starts, for any T // steps
        spacing = {"timestep_spacing": "leading", "steps_offset": total // steps - 1}
        scheduler = kind(**common, **spacing, clip_sample=clip, set_alpha_to_one=True)
        scheduler.set_timesteps(steps)
    return scheduler


_MOST_STEPS = 10**6  # largest number of training steps that is accepted
_BETA_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
# The schedule of DDPM, which is assumed for a network without a scheduler's configuration.
LINEAR_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


def training_betas(config: Mapping[str, Any]) -> torch.Tensor:
    """Return the betas of a training, float32 (T,), from the configuration of its scheduler.

    Raises:
        ClspError: the configuration is not one of diffusion in discrete steps.
    """
    given = {key: config[key] for key in _BETA_KEYS if config.get(key) is not None}
    steps = given.get("num_train_timesteps", 1)
    try:
        if not is_number(steps, _MOST_STEPS):
            raise ValueError(f"num_train_timesteps={str(steps)[:60]}")
        betas = DDPMScheduler(**given).betas
        problem = None if bool(((betas > 0) & (betas < 1)).all()) else "betas beyond 0 and 1"
    except Exception as error:  # diffusers may raise anything, as in _load_unet
        problem = first_line(error)
    if problem:
        raise ClspError(
            f"The scheduler of this denoiser's training ({str(given)[:200]}) is not one of "
            f"diffusion in discrete steps: {problem}; `clsp denoiser` trains another denoiser."
        )
    return betas


def predicted(config: Mapping[str, Any]) -> str:
    """Return what a denoiser predicts, in diffusers' words, from its scheduler's configuration."""
    return config.get("prediction_type") or "epsilon"


def is_number(value: Any, most: int) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value is None or (whole and 0 <= value <= most)
