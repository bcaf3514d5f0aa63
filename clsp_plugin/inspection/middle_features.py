"""What a denoiser's middle feature holds: the analyses of figure 1 of Zeng et al., ECCV 2024.

They are a t-SNE of the middle features of slightly noised images, coloured by label; and samples
drawn with the middle feature masked, by the skip connections alone, beside unmasked samples from
the same noise.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from sklearn.manifold import TSNE

from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.keyed_random import Purpose, derive_key, key_normal, keys_for
from clsp_plugin.diffusion.autoencoder import Autoencoder
from clsp_plugin.diffusion.interpolation import encode, known, masked_middle, unknown
from clsp_plugin.diffusion.sampling import to_float
from clsp_plugin.diffusion.schedulers import make_scheduler
from clsp_plugin.evaluation.knn import weighted_knn
from clsp_plugin.figures import candidate_sheet, label_map

__all__ = ["STEP", "masked_samples", "masked_sheet", "middle_features", "middle_report"]

STEP = 50  # the paper's, of 1000
_BATCH, _NEIGHBOURS, _LEAST = 256, 20, 12
_COLUMNS = ("candidate", "w = 1", "masked")


@torch.inference_mode()
def middle_features(
    unet: UNet2DModel,
    scheduler_config: Mapping[str, Any],
    images: torch.Tensor,
    condition: torch.Tensor | None = None,
    step: int = STEP,
    autoencoder: Autoencoder | None = None,
) -> torch.Tensor:
    """Compute the middle features of images noised to a step.

    Args:
        unet: a denoiser in evaluation mode.
        scheduler_config: configuration of the scheduler that it was trained with.
        images: uint8 (N, H, W, 3).
        condition: condition of the images, (N,) or (N, D), if the denoiser is conditional; only
            its shape and type are used, since the denoiser is run without a condition.
        step: training step that the noise level is taken from, 0 to T - 1.
        autoencoder: that of a latent denoiser, on the denoiser's device.

    Returns:
        float32 (N, C * h * w).
    """
    signal = make_scheduler(scheduler_config, 1).alphas_cumprod[step].sqrt()
    sigma, parts = (1 - signal**2).sqrt(), []
    keys = keys_for(derive_key(0, Purpose.ANCHOR_NOISE, step), torch.arange(len(images)))
    for rows in torch.arange(len(images)).split(_BATCH):
        x = to_float(images[rows])
        x = x if autoencoder is None else autoencoder.encode(x.to(unet.device)).cpu()
        noised = signal * x + sigma * key_normal(keys[rows], x[0].numel()).view_as(x)
        # no condition: with it, the feature would contain the label that it is tested for
        none = None if condition is None else unknown(known(condition[rows])).to(unet.device)
        h = encode(unet, noised.to(unet.device), step, none)[0]
        parts.append(h.flatten(1).float().cpu())
    return torch.cat(parts)


def _neighbours(features: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Return how well neighbours in one half of the images predict the labels of the other half."""
    order = keys_for(derive_key(0, Purpose.ORDER), torch.arange(len(targets))).argsort()
    one, other = order.chunk(2)
    votes = weighted_knn(
        features[one], targets[one], features[other], targets[other], [_NEIGHBOURS],
        num_classes=int(targets.max()) + 1,
    )  # fmt: skip
    most = targets.bincount().max().item() / len(targets)
    return {
        "agreement": votes[_NEIGHBOURS][0],
        "largest_class": 100 * most,
        "neighbours": min(_NEIGHBOURS, len(one)),
    }


def middle_report(
    unet: UNet2DModel,
    scheduler_config: Mapping[str, Any],
    array: ImageArray,
    rows: Sequence[int],
    condition: torch.Tensor | None,
    path: str | Path,
    autoencoder: Autoencoder | None = None,
) -> dict[str, float] | None:
    """Write a t-SNE of middle features at step 50, and measure how well they separate the labels.

    Args:
        unet: a denoiser in evaluation mode.
        scheduler_config: configuration of the scheduler that it was trained with.
        array: labelled images.
        rows: indexes of the images that are used.
        condition: condition of all images, for a conditional denoiser; otherwise None.
        path: the PNG file to write.
        autoencoder: that of a latent denoiser, on the denoiser's device.

    Returns:
        ``agreement``, percent of a random half of the images with the label that nearest
        neighbours in the other half give; ``neighbours``, how many these are, at most 20;
        ``largest_class``, percent of all images in the largest class, which is what always naming
        it would give; and ``step``. None if an image has no label or there are fewer than 12.
    """
    targets = array.targets[rows]
    if len(rows) < _LEAST or bool((targets < 0).any()):
        return None
    own = None if condition is None else condition[rows]
    features = middle_features(
        unet, scheduler_config, array.images[rows], own, autoencoder=autoencoder
    )
    perplexity = min(30, (len(rows) - 1) / 3)
    places = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(features.numpy())
    found = {"step": STEP, **_neighbours(features, targets)}
    label_map(
        places,
        targets.numpy(),
        array.classes,
        path,
        title=f"t-SNE of the middle features at step {STEP}",
        caption=f"{len(rows)} images; 20 nearest neighbours agree on the label in "
        f"{found['agreement']:.0f} %, the largest class has {found['largest_class']:.0f} %",
    )
    return found


def masked_samples(
    unet: UNet2DModel, draw: Callable[[float], torch.Tensor], w: float
) -> torch.Tensor:
    """Draw candidates, unconditional samples, and samples with a masked middle feature.

    Args:
        unet: the denoiser that ``draw`` samples with.
        draw: function of w that draws one candidate of each anchor, uint8 (A, H, W, 3), from the
            same noise each time.
        w: weight of the sample in the candidates.

    Returns:
        uint8 (A, 3, H, W, 3), in the order above.
    """
    drawn = [draw(w), draw(1.0)]
    with masked_middle(unet):
        drawn.append(draw(1.0))
    return torch.stack(drawn, dim=1)


def masked_sheet(anchors: torch.Tensor, columns: torch.Tensor, w: float, path: str | Path) -> None:
    """Write a sheet of anchors, uint8 (A, H, W, 3), beside what :func:`masked_samples` drew."""
    candidate_sheet(
        anchors.numpy(),
        columns.numpy(),
        path,
        title="Without the middle feature",
        caption=f"The images of a row begin with the same noise. The candidate has w = {w:g}; the "
        f"last one is drawn by the skip connections alone.",
        columns=_COLUMNS,
    )
