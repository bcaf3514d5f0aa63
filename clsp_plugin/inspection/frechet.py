"""Frechet distances between sets of images, and ``clsp denoiser`` with those of its samples."""

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn
from torchmetrics import Metric

from clsp_plugin.diffusion.verbs import denoiser as train
from clsp_plugin.errors import ClspError, first_line
from clsp_plugin.evaluation.frozen import Encoder, device_name

__all__ = ["denoiser", "frechet_distance", "frechet_from"]


Images = torch.Tensor | Iterable[torch.Tensor]  # all of them, or batch after batch


def frechet_distance(feature: int | nn.Module, real: Images, drawn: Images) -> float:
    """Return the Frechet distance of two sets of images, see :func:`frechet_from`."""
    return frechet_from(feature, real)(drawn)


def frechet_from(feature: int | nn.Module, real: Images) -> Callable[[Images], float]:
    """Return a function that computes the Frechet distance of images from a set of real images.

    Args:
        feature: 2048 for the Inception network of the FID, with weights that torch-fidelity
            downloads, on a GPU if there is one; or a module with ``num_features`` that maps uint8
            (N, 3, H, W) to features (N, D), and then the distance is not an FID.
        real: uint8 (N, H, W, 3), or an iterable of such batches; their features are computed once,
            when they are first needed.

    Returns:
        A function from images, uint8 (M, H, W, 3) or an iterable of such batches, to their
        distance from ``real``.

    Raises:
        ClspError: torch-fidelity is not installed, or its weights cannot be fetched or read.
    """
    metric = _frechet_metric(feature)

    def update(images: Images, is_real: bool) -> None:
        for part in images.split(256) if isinstance(images, torch.Tensor) else images:
            metric.update(part.permute(0, 3, 1, 2).to(metric.device), real=is_real)

    def distance(drawn: Images) -> float:
        metric.reset()  # keeps the features of the real images
        if metric.real_features_num_samples == 0:
            update(real, True)
        update(drawn, False)
        return float(metric.compute())

    return distance


def _frechet_metric(feature: int | nn.Module) -> Metric:
    from torchmetrics.image.fid import FrechetInceptionDistance

    try:
        metric = FrechetInceptionDistance(feature=feature, reset_real_features=False)
    except ModuleNotFoundError as error:
        raise ClspError(
            "The FID needs torch-fidelity: `pip install 'clsp-plugin[fid]'`, or leave the FID out "
            "and name an encoder instead."
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        file = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rsplit("/", 1)[1])
        raise ClspError(
            f"The weights of the FID's network could not be fetched or read "
            f"({first_line(error)}); put the file {URL_INCEPTION_V3} at {file}, or leave "
            f"the FID out and name an encoder instead."
        ) from error
    # an Encoder is on its device already, and returns its features on the CPU
    return metric.to(device_name()) if isinstance(feature, int) else metric


def denoiser(
    given: DictConfig, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = ()
) -> dict[str, Any]:
    """Run ``clsp denoiser`` with ``fid``: ``inception``, or an encoder for Frechet distances.

    Args:
        given: see :func:`clsp_plugin.diffusion.verbs.denoiser`.
        callbacks: further callbacks of Lightning.
        loggers: further loggers of Lightning.
    """
    return train(given, frechet=_of_samples, callbacks=callbacks, loggers=loggers)


def _of_samples(
    name: str, real: torch.Tensor, data: Mapping[str, Any]
) -> Callable[[Images], float]:
    return frechet_from(2048 if name == "inception" else Encoder(name, data), real)
