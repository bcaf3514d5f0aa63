"""Similarity of positive pairs in an encoder's features, and whether candidates keep the label."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.evaluation.frozen import Encoder
from clsp_plugin.evaluation.knn import weighted_knn

__all__ = ["label_agreement", "others", "pair_similarities"]


def others(number: int) -> torch.Tensor:
    """Return a fixed random permutation that pairs each of ``number`` images with another one."""
    order = keys_for(derive_key(0, Purpose.ORDER), torch.arange(number)).argsort()
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


_NEIGHBOURS = 20
_AT_ONCE = 1024  # images that are read before they are encoded


def pair_similarities(
    encoder: Encoder, anchors: torch.Tensor, candidates: torch.Tensor
) -> dict[str, np.ndarray]:
    """Cosine similarities of the features of positive pairs, as in the paper's figure 2.

    Args:
        encoder: computes the features.
        anchors: uint8 (A, H, W, 3).
        candidates: uint8 (A, K, H, W, 3); only the first of each anchor is used.

    Returns:
        float32 (A,) each: two augmented views of an image, a view and an augmented candidate, and a
        view and the candidate of another image.
    """
    first, second = encoder.pipelines(anchors.shape[1])
    view = F.normalize(encoder.views(first, anchors, 0), dim=1)
    other = F.normalize(encoder.views(second, anchors, 1), dim=1)
    third = F.normalize(encoder.views(first, candidates[:, 0], 2), dim=1)
    pairs = {
        "two augmented views": other,
        "a view and a candidate": third,
        "a view and another image's candidate": third[others(len(anchors))],
    }
    return {name: (view * features).sum(1).numpy() for name, features in pairs.items()}


def _encoded(
    encode: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Return the features of some images; these may not fit in memory, so a part after another."""
    features = torch.empty(0)
    start = 0
    for part in rows.split(_AT_ONCE):
        found = encode(images[part].permute(0, 3, 1, 2))
        if not start:  # at once: what is kept of each part would scatter the memory of the next
            features = found.new_empty(len(rows), found.shape[1])
        features[start : start + len(part)] = found
        start += len(part)
    return features


def label_agreement(
    encode: Callable[[torch.Tensor], torch.Tensor],
    array: ImageArray,
    candidates: torch.Tensor,
    rows: Sequence[int],
) -> dict[str, float]:
    """Measure whether the nearest real images give candidates the labels of their anchors.

    Args:
        encode: uint8 (N, 3, H, W) to features (N, D).
        array: the labelled images; those that are not anchors here are the neighbours.
        candidates: uint8 (A, K, H, W, 3).
        rows: the anchors' indexes, A of them.

    Returns:
        In percent: ``candidates``, the share that nearest neighbours give the label of its anchor;
        ``anchors``, the same of the anchors themselves, which is as good as the encoder gets;
        ``chance``, the same of candidates compared with the label of another anchor; and ``error``,
        an upper bound of the standard error of ``candidates``, for which those of an anchor count
        as one. Also ``neighbours``, the number of neighbours: 20, or as many as there are.
    """
    rest = np.setdiff1d(np.arange(len(array)), rows)
    train = _encoded(encode, array.images, torch.from_numpy(rest))
    labels, targets = array.targets[rest], array.targets[list(rows)]
    count = candidates.shape[1]
    feats = encode(candidates.flatten(0, 1).permute(0, 3, 1, 2))
    anchors = encode(array.images[list(rows)].permute(0, 3, 1, 2))

    def score(features: torch.Tensor, wanted: torch.Tensor) -> float:
        number = int(array.targets.max()) + 1
        found = weighted_knn(train, labels, features, wanted, ks=[_NEIGHBOURS], num_classes=number)
        return found[_NEIGHBOURS][0]

    strangers = targets[others(len(targets))].repeat_interleave(count)
    found = {
        "candidates": score(feats, targets.repeat_interleave(count)),
        "anchors": score(anchors, targets),
        "chance": score(feats, strangers),
        "neighbours": min(_NEIGHBOURS, len(rest)),
    }
    share = found["candidates"] / 100
    return found | {"error": 100 * (share * (1 - share) / len(targets)) ** 0.5}
