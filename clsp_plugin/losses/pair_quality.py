"""GenView's weights of positive pairs: foregrounds alike and backgrounds not."""

import torch

__all__ = ["foreground_background", "quality_weights"]

_SMALLEST = 1e-7  # GenView's


def foreground_background(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool a feature map over its foreground and over its background.

    As GenView (Li et al., ECCV 2024), with a mask ``m`` in [0, 1] of each place of the map ``h``::

        f = sum m h / sum m        b = sum (1 - m) h / sum (1 - m)

    GenView's mask is the first principal component of CLIP's features of patches. Here it is the
    norm of the features, which needs no further network: networks answer strongly where the object
    is (Zagoruyko and Komodakis, ICLR 2017). Like GenView's it is stretched to [0, 1] in each image.

    Args:
        maps: (B, D, h, w) with more than one place.

    Returns:
        The features of the foreground and of the background, float32 (B, D) each.
    """
    flat = maps.float().flatten(2)
    norms = flat.norm(dim=1)
    low, high = norms.amin(1, keepdim=True), norms.amax(1, keepdim=True)
    mask = (norms - low) / (high - low + _SMALLEST)
    pooled = []
    for part in (mask, 1 - mask):
        part = part / (part.sum(1, keepdim=True) + _SMALLEST)
        pooled.append((flat * part[:, None]).sum(2))
    return pooled[0], pooled[1]


def quality_weights(
    foreground: torch.Tensor, background: torch.Tensor, gamma: float = 1.0
) -> torch.Tensor:
    """Weight positive pairs by their quality (Li et al., GenView, ECCV 2024).

    ``w_i = n exp(gamma (s_i - t_i)) / sum_j exp(gamma (s_j - t_j))`` for n pairs with the
    similarities ``s`` of their foregrounds and ``t`` of their backgrounds: the same thing in
    another place counts more than another thing in the same place. The weights have the mean 1, so
    the loss stays of the same size.

    Args:
        foreground: ``s``, of any shape.
        background: ``t``, of the same shape. An entry of ``s`` or ``t`` that is -inf or inf is no
            pair; its weight is 0.
        gamma: how much quality matters; 0 weights all alike, GenView has 1.

    Returns:
        The weights, of the same shape, without a gradient. With a process group they are of this
        process's pairs alone, as GenView's.
    """
    score = (gamma * (foreground - background)).detach().flatten()
    pairs = torch.isfinite(score).sum()
    return (score.softmax(0) * pairs).view(foreground.shape)
