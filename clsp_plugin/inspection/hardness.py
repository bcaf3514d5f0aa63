"""How hard the candidates of a store are, and how much those of one anchor differ.

A copy of its anchor is right and teaches nothing; a stranger differs in everything and is wrong.
So distances are given as shares of that between images which have nothing to do with each other:
0 is a copy, 1 a stranger. Whether candidates are right is for the agreement of labels to say.
"""

import torch
import torch.nn.functional as F

from clsp_plugin.evaluation.similarity import others

__all__ = ["closeness", "hardness", "looks"]


def looks(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What images look like, of a 4x4 grid of mean colours, in levels of a pixel.

    Args:
        images: uint8 (.., H, W, 3).

    Returns:
        The ``colour`` (.., 3), the mean of the image; the ``layout`` (.., 48), the grid less that
        mean; the ``background`` (.., 36), the outer cells of the grid, where what an image is of
        seldom is.
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
    """How far candidates are from their anchors, and from each other.

    Both are root mean square distances, as shares of that of two anchors, which are images that
    have nothing to do with each other.

    Args:
        anchors: any one thing that is measured of A images, float (A, D), A at least 2.
        candidates: the same of their candidates, float (A, K, D).

    Returns:
        ``share``, of the candidates' distance from their own anchor, and its standard ``error``
        over the anchors; where K is above 1 ``variety`` and ``variety_error``, of two candidates
        of an anchor.
    """
    unrelated = (anchors - anchors[others(len(anchors))]).square().sum(1)
    own = (candidates - anchors[:, None]).square().sum(2).mean(1)
    found = dict(zip(("share", "error"), _share(own, unrelated), strict=True))
    if candidates.shape[1] > 1:
        # two draws differ, in the mean of squares, by twice their variance
        between = 2 * candidates.var(dim=1).sum(1)
        found |= dict(zip(("variety", "variety_error"), _share(between, unrelated), strict=True))
    return found


def _share(own: torch.Tensor, unrelated: torch.Tensor) -> tuple[float, float]:
    """Root of the ratio of two means over anchors, (A,) each, and its error to first order."""
    own, unrelated = own.double(), unrelated.double()
    whole = unrelated.mean().clamp(min=1e-12)  # anchors may all be the same
    ratio = own.mean() / whole
    residuals = (own - ratio * unrelated) / whole
    share = ratio.sqrt()
    error = residuals.std() / len(own) ** 0.5 / (2 * share)
    return share.item(), 0.0 if share == 0 else error.item()


def closeness(anchors: torch.Tensor, candidates: torch.Tensor) -> dict[str, dict[str, float]]:
    """How near candidates are to their anchors, and to images they were not made for.

    Each candidate is held against its own anchor and against another one, drawn at random.

    Args:
        anchors: uint8 (A, H, W, 3), A at least 2.
        candidates: uint8 (A, K, H, W, 3).

    Returns:
        For ``colour`` and ``layout``: ``own`` and ``other``, the root mean square differences in
        levels of a pixel, ``ratio`` of the two, ``closer``, the share of candidates that are
        nearer to their own anchor (0.5 is chance), and ``error``, its standard error over the
        anchors.
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
