"""How hard the candidates of a store are, and how much those of one anchor differ.

A copy of the anchor is a correct positive but teaches nothing; an unrelated image differs in
everything and is wrong. So distances are given as shares of the distance between unrelated images:
0 is a copy, 1 an unrelated image. Whether candidates are correct is measured separately, by the
agreement of labels.
"""

import torch
import torch.nn.functional as F

from clsp_plugin.evaluation.similarity import others

__all__ = ["closeness", "hardness", "looks"]


def looks(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Describe how images look by a 4x4 grid of mean colours, in pixel levels (0 to 255).

    Args:
        images: uint8 (.., H, W, 3).

    Returns:
        ``colour`` (.., 3), the mean of the image; ``layout`` (.., 48), the grid minus that mean;
        ``background`` (.., 36), the 12 outer cells of the grid, which rarely show the object.
    """
    flat = images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2).float()
    colour = flat.mean((2, 3))
    grid = F.adaptive_avg_pool2d(flat, 4)
    outer = torch.ones(4, 4, dtype=torch.bool)
    outer[1:3, 1:3] = False
    shape = images.shape[:-3]
    return {
        "colour": colour.view(*shape, 3),
        "layout": (grid - colour[:, :, None, None]).reshape(*shape, 48),
        "background": grid[:, :, outer].reshape(*shape, 36),
    }


def hardness(anchors: torch.Tensor, candidates: torch.Tensor) -> dict[str, float]:
    """Measure how far candidates are from their anchors, and from each other.

    Both are root mean square distances, divided by that between two anchors, which are unrelated
    images.

    Args:
        anchors: any feature of the A anchors, float (A, D), A at least 2.
        candidates: the same feature of their candidates, float (A, K, D).

    Returns:
        ``share``, the relative distance of candidates from their own anchor, and ``error``, its
        standard error over the anchors. If K is above 1 also ``variety``, the relative distance
        between two candidates of an anchor, and ``variety_error``.
    """
    unrelated = (anchors - anchors[others(len(anchors))]).square().sum(1)
    own = (candidates - anchors[:, None]).square().sum(2).mean(1)
    found = dict(zip(("share", "error"), _share(own, unrelated), strict=True))
    if candidates.shape[1] > 1:
        # the mean squared difference of two draws is twice their variance
        between = 2 * candidates.var(dim=1).sum(1)
        found |= dict(zip(("variety", "variety_error"), _share(between, unrelated), strict=True))
    return found


def _share(own: torch.Tensor, unrelated: torch.Tensor) -> tuple[float, float]:
    """Return sqrt(mean(own) / mean(unrelated)), both (A,), and its first-order standard error."""
    own, unrelated = own.double(), unrelated.double()
    whole = unrelated.mean().clamp(min=1e-12)  # 0 if all anchors are the same
    ratio = own.mean() / whole
    residuals = (own - ratio * unrelated) / whole
    share = ratio.sqrt()
    error = residuals.std() / len(own) ** 0.5 / (2 * share)
    return share.item(), 0.0 if share == 0 else error.item()


def closeness(anchors: torch.Tensor, candidates: torch.Tensor) -> dict[str, dict[str, float]]:
    """Measure how near candidates are to their anchors, compared with other anchors.

    Each candidate is compared with its own anchor and with another one, drawn at random.

    Args:
        anchors: uint8 (A, H, W, 3), A at least 2.
        candidates: uint8 (A, K, H, W, 3).

    Returns:
        For ``colour`` and ``layout``: ``own`` and ``other``, the root mean square differences from
        the two anchors in pixel levels; ``ratio``, own by other; ``closer``, the share of
        candidates that are nearer to their own anchor (0.5 is chance); and ``error``, the standard
        error of ``closer`` over the anchors.
    """
    theirs, ours = looks(anchors), looks(candidates)
    another, out = others(len(anchors)), {}
    for name in ("colour", "layout"):
        own = (ours[name] - theirs[name][:, None]).square().mean(2)
        other = (ours[name] - theirs[name][another][:, None]).square().mean(2)
        closer = (own < other).float() + 0.5 * (own == other).float()
        distances = own.mean().sqrt().item(), other.mean().sqrt().item()
        out[name] = {
            "own": distances[0],
            "other": distances[1],
            "ratio": distances[0] / max(distances[1], 1e-9),
            "closer": closer.mean().item(),
            "error": (closer.mean(1).std() / len(anchors) ** 0.5).item(),
        }
    return out
