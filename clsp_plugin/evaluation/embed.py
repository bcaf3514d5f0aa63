"""``clsp embed``: the representations that RCG conditions a denoiser on.

RCG samples an image given its representation in a pre-trained self-supervised encoder (Li, Katabi
and He, "Return of Unconditional Generation", NeurIPS 2024). Where it generates positives (Zeng et
al., ECCV 2024, appendix), the condition is the anchor's own representation, or the cluster that the
anchor belongs to.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from clsp_plugin.candidates.condition import save_condition
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.frozen import Encoder

__all__ = ["cluster", "embed"]


def cluster(features: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Cluster features by k-means on the unit sphere: float (N, D) to int64 (N,), clusters from 0.

    Raises:
        ClspError: fewer images than clusters, fewer than 2 clusters, or a seed beyond 32 bits.
    """
    if not 2 <= number <= len(features):
        raise ClspError(f"--clusters {number} is not 2 to {len(features)}, the number of images.")
    if not 0 <= seed < 2**32:
        raise ClspError(f"--seed {seed} is not 0 to {2**32 - 1}.")
    found = KMeans(number, n_init=4, random_state=seed).fit(F.normalize(features, dim=1).numpy())
    return torch.from_numpy(found.labels_).long()


def embed(
    encoder: str | Path,
    array: ImageArray,
    out: str | Path,
    clusters: int | None = None,
    seed: int = 0,
    data: Mapping[str, Any] | None = None,
) -> str:
    """Write the features of images, or their clusters, to a file to condition a denoiser on.

    Args:
        encoder: a checkpoint or the directory of a run, as the evaluation takes them.
        array: the images.
        out: path of the file to write. Features are float32 (N, D), each image's brought to mean 0
            and variance 1 over its D as in RCG; clusters are int64 (N,).
        clusters: number of clusters; None writes features.
        seed: seed of k-means.
        data: the configuration's block of the images, which the authors' checkpoints need.

    Returns:
        What was done, in one line.

    Raises:
        ClspError: the checkpoint cannot be read, or ``out`` exists.
    """
    if Path(out).exists():
        raise ClspError(f"{out} already exists; choose another --out or delete it.")
    network = Encoder(encoder, data)
    features = network(array.images.permute(0, 3, 1, 2))
    condition = F.layer_norm(features, features.shape[1:])
    what = f"{features.shape[1]} features"
    if clusters is not None:
        condition = cluster(features, clusters, seed)
        what = f"{clusters} clusters"
    save_condition(out, condition, array)
    return f"Condition: {out} ({what} of {len(array)} images, {network.name})"
