"""All steps of the augmentation, from whole images to normalised views.

Twice, to the same bits: :func:`augment` is one graph without a choice in it, for a GPU and for a
compiler; :func:`augment_where_needed` is for a CPU without a compiler, where an image that has no
part in a step costs nothing and a step writes over what it read.
"""

import numpy as np
import torch

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.operations import (
    adjust_hue,
    blend,
    center_weights,
    color_jitter,
    crop_resize,
    equalize,
    gaussian_blur,
    jitter_steps,
    resize_weights,
    resized_shape,
    solarize,
    to_gray,
)
from clsp_plugin.data.augmentation.parameters import Parameters, parameters_from

__all__ = ["augment", "augment_where_needed", "draw_and_augment"]


def _geometry(images: torch.Tensor, p: Parameters, cfg: AugmentationConfig) -> torch.Tensor:
    """Crop, resize and flip uint8 (B, H, W, 3) to float32 (B, 3, crop_size, crop_size)."""
    _, height, width, _ = images.shape
    out, how = cfg.crop_size, cfg.interpolation
    if cfg.crop:
        top, left, h, w = p.box.unbind(dim=1)
        if height == width:  # both axes at once, which is cheaper
            both = resize_weights(torch.cat([top, left]), torch.cat([h, w]), height, out, how)
            rows, columns = both.chunk(2)
        else:
            rows = resize_weights(top, h, height, out, how)
            columns = resize_weights(left, w, width, out, how)
    elif height == width == out:
        x = images.to(torch.float32).div(255.0).permute(0, 3, 1, 2)
        return _choose(p.flip, x.flip(3), x) if cfg.flip_prob else x.contiguous()
    else:
        new_height, new_width = resized_shape(height, width, out)
        rows = center_weights(height, new_height, out, how, images.device)
        columns = center_weights(width, new_width, out, how, images.device)
    if cfg.flip_prob:
        # every later step commutes with a flip, so it costs nothing here
        columns = torch.where(p.flip[:, None, None], columns.flip(1), columns)
    return crop_resize(images, rows, columns)


def _choose(flag: torch.Tensor, changed: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return torch.where(flag[:, None, None, None], changed, images)


def augment(
    images: torch.Tensor,
    p: Parameters,
    mean: torch.Tensor,
    std: torch.Tensor,
    cfg: AugmentationConfig,
) -> torch.Tensor:
    """Augment a batch with parameters already drawn; a step of probability 0 is not computed.

    Args:
        images: (B, H, W, 3) uint8.
        p: the parameters, see :func:`sample_parameters`.
        mean, std: (3, 1, 1), for pixels in [0, 1].
        cfg: the pipeline.
    """
    x = _geometry(images, p, cfg)
    if cfg.jitter_prob:
        x = color_jitter(x, p, hue=cfg.hue > 0)
    if cfg.grayscale_prob:
        x = _choose(p.gray, to_gray(x), x)
    if cfg.blur_prob:
        x = _choose(p.blur, gaussian_blur(x, p.sigma), x)
    if cfg.solarize_prob:
        x = _choose(p.solarize, solarize(x), x)
    if cfg.equalize_prob:
        x = _choose(p.equalize, equalize(x), x)
    return (x - mean) / std


def draw_and_augment(
    images: torch.Tensor,
    u: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    slots: torch.Tensor,
    cfg: AugmentationConfig,
) -> torch.Tensor:
    """Make the parameters of a batch from its numbers and augment it; see :func:`augment`.

    Args:
        images: (B, H, W, 3) uint8.
        u: (B, 34), see :func:`uniform_numbers`.
        mean, std: (3, 1, 1), for pixels in [0, 1].
        slots: :func:`jitter_slots` of ``cfg``.
        cfg: the pipeline.
    """
    p = parameters_from(u, cfg, images.shape[1], images.shape[2], slots)
    return augment(images, p, mean, std, cfg)


def augment_where_needed(
    images: torch.Tensor,
    p: Parameters,
    mean: torch.Tensor,
    std: torch.Tensor,
    cfg: AugmentationConfig,
) -> torch.Tensor:
    """Do what :func:`augment` does, on a CPU, without what a step does to no image.

    Args:
        images, p, mean, std, cfg: as there.
    """
    if not cfg.jitter_prob:
        return _augment_rows(images, p, None, mean, std, cfg)
    order, has = _together(p, hue=cfg.hue > 0)
    p = Parameters(*(values[order] for values in p))
    x = _augment_rows(images[order], p, has, mean, std, cfg)
    return torch.empty_like(x).index_copy_(0, order, x)


def _augment_rows(
    images: torch.Tensor,
    p: Parameters,
    has: np.ndarray | None,
    mean: torch.Tensor,
    std: torch.Tensor,
    cfg: AugmentationConfig,
) -> torch.Tensor:
    """Augment images each step of whose jitter is done to those that ``has`` says, if there is one.

    Those that have a step of the jitter should lie together, see :func:`_together`.
    """
    x = _geometry(images, p, cfg)
    if has is not None:
        _jitter(x, p, has, hue=cfg.hue > 0)
    if cfg.grayscale_prob:
        rows = _rows(p.gray)
        x[rows] = to_gray(x[rows])
    if cfg.blur_prob:
        rows = _rows(p.blur)
        x[rows] = gaussian_blur(x[rows], p.sigma[rows])
    if cfg.solarize_prob:
        rows = _rows(p.solarize)
        x[rows] = solarize(x[rows])
    if cfg.equalize_prob:
        rows = _rows(p.equalize)
        x[rows] = equalize(x[rows])
    return x.sub_(mean).div_(std)


def _rows(flag: torch.Tensor) -> torch.Tensor:
    return flag.nonzero()[:, 0]


def _together(p: Parameters, hue: bool) -> tuple[torch.Tensor, np.ndarray]:
    """Order images so that those that have a step of the jitter lie together, for every step.

    An order of the steps is filled in from the hue's two sides: who has more of the blends before
    it has fewer of those after it.

    Returns:
        The order, and whether a step changes an image: bool (B, steps), in that order.
    """
    has = p.keep.numpy() != 1  # a blend that keeps all of an image, and a shift of 0, do nothing
    before = has.shape[1] // 2 if hue else has.shape[1]
    if hue:
        turned = p.hue.numpy()[:, None] != 0
        has = np.concatenate([has[:, :before], turned, has[:, before:]], axis=1)
    order = np.argsort(-(2 * has[:, :before].sum(1) + has.any(1)), kind="stable")
    return torch.from_numpy(order), has[order]


def _jitter(x: torch.Tensor, p: Parameters, has: np.ndarray, hue: bool) -> None:
    """Do each step of the jitter to the images between the first and the last that has it.

    To one that lies between them and has it not, the step does nothing.
    """
    for weights, own in zip(jitter_steps(p, hue), has.T, strict=True):
        rows = own.nonzero()[0]
        if len(rows):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            step = blend if len(weights) == 3 else adjust_hue
            step(x[part], *(w[part] for w in weights), out=x[part])
