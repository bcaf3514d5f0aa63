"""SimCLR's loss for any number of views, with positives found by image index."""

import torch
import torch.nn.functional as F

from clsp_plugin.losses.distributed import gather, rank

__all__ = ["nt_xent_loss", "similarities"]


def nt_xent_loss(
    z: torch.Tensor,
    indexes: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Normalised temperature-scaled cross entropy (Chen et al., ICML 2020, eq. 1).

    For a row ``i`` with positives ``P(i)`` (other rows of the same image) and the cosine
    similarity ``s``::

        loss_i = -log( sum_{p in P(i)} exp(s_ip / T) / sum_{j != i} exp(s_ij / T) )

    averaged over the rows. With two views per image this is the paper's formula. lightly's loss
    cannot be used instead: it takes exactly two views and does not know the image indexes, so an
    image that is drawn twice in one batch would be its own negative.

    Args:
        z: (V * B, D) embeddings of any norm, the views one after another.
        indexes: int64 (V * B,), the index of the image that each row shows.
        temperature: T > 0.
        weights: (V * B,) weights of mean 1, which the loss of each row is multiplied by.

    Returns:
        The loss, a scalar. With a process group, negatives come from all processes.

    Example:
        >>> z = torch.eye(2).repeat(2, 1)
        >>> round(nt_xent_loss(z, torch.tensor([0, 1, 0, 1]), 1.0).item(), 4)
        0.5514
    """
    logits, positive, itself = similarities(z, indexes, temperature)
    lowest = torch.finfo(logits.dtype).min
    everything = logits.masked_fill(itself, lowest).logsumexp(1)
    positives = logits.masked_fill(~positive, lowest).logsumexp(1)
    losses = everything - positives
    return (losses if weights is None else weights * losses).mean()


def similarities(
    z: torch.Tensor, indexes: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compare every row with the rows of all processes.

    Args:
        z: (N, D) embeddings of any norm.
        indexes: int64 (N,), the index of the image that each row shows.
        temperature: T > 0.

    Returns:
        Three tensors (N, N * world size): the cosine similarities divided by T, a mask of each
        row's positives (other rows of the same image), and a mask of the row itself.
    """
    z = F.normalize(z.float(), dim=-1)
    all_z, all_indexes = gather(z), gather(indexes)
    logits = z @ all_z.T / temperature
    # compared, not assigned: to assign a value at places would make the host wait for a GPU
    row, column = (torch.arange(n, device=z.device) for n in logits.shape)
    itself = (row + rank() * len(z))[:, None] == column[None, :]
    positive = (indexes[:, None] == all_indexes[None, :]) & ~itself
    return logits, positive, itself
