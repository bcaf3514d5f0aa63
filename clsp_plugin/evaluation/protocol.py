"""Evaluation protocols: ``strict`` chooses nothing on test images, ``paper`` the k of kNN."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.features import Features
from clsp_plugin.evaluation.knn import weighted_knn
from clsp_plugin.evaluation.linear import train_probe
from clsp_plugin.evaluation.names import check_protocol

__all__ = [
    "KS",
    "evaluate_knn",
    "evaluate_linear",
    "num_classes",
    "split_heldout",
]

KS = (5, 10, 20, 50, 100, 200)

V = TypeVar("V", bound=float)  # type of the value to choose: k or a learning rate


def split_heldout(
    targets: torch.Tensor, fraction: float = 0.1, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hold out the same part of every class, and at least one image of a class that has two.

    Args:
        targets: int64 (N,).
        fraction: the part of each class to hold out, in (0, 1).
        seed: decides which images are held out.

    Returns:
        Ascending indexes of the images that stay and of those held out, both int64.

    Raises:
        ClspError: every class has a single image.
    """
    keys = keys_for(derive_key(seed, Purpose.PROBE, Purpose.ORDER), torch.arange(len(targets)))
    held = torch.zeros(len(targets), dtype=torch.bool)
    for label in targets.unique():
        members = (targets == label).nonzero()[:, 0]
        number = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held[members[keys[members].argsort()[:number]]] = True
    if not held.any():
        raise ClspError(
            f"{len(targets)} training images are too few for the strict protocol, which holds out "
            f"a tenth of each class and needs a class with two; take more images."
        )
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def _best(scores: Mapping[V, tuple[float, float]]) -> V:
    """Return the value with the highest top-1; the first of equals, and never one that diverged."""
    return max(scores, key=lambda value: -1.0 if math.isnan(scores[value][0]) else scores[value][0])


def _evaluate(
    names: tuple[str, str],
    train: Features,
    test: Features,
    protocol: str,
    values: Sequence[V],
    score: Callable[[Features, Features, Sequence[V]], dict[V, tuple[float, float]]],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Choose a value as the protocol allows and report it on the test images.

    Args:
        names: name of the task, and of the value to choose.
        train: features to learn from.
        test: features to report on.
        protocol: one of ``PROTOCOLS``.
        values: what to choose from; of equals the first wins.
        score: function of (features to learn from, features to score, values) to top-1 and top-5 in
            percent for each value.
        settings: recorded with the result; ``seed`` also draws the held-out images.
    """
    began = time.perf_counter()
    task, name = names
    if protocol == "paper":
        scores = score(train, test, values)
        chosen = _best(scores)
        final = scores[chosen]
    else:
        stay, held = split_heldout(train.targets, seed=settings["seed"])
        scores = score(train.subset(stay), train.subset(held), values)
        chosen = _best(scores)
        final = score(train, test, (chosen,))[chosen]
    candidates = [
        {name: value, **_percentages(both)} for value, both in scores.items()
    ]  # on the held-out images if strict, on the test images if not
    return {
        "task": task,
        "protocol": protocol,
        **_percentages(final),
        "chosen": {name: chosen},
        "candidates": candidates,
        **({"heldout_top1": scores[chosen][0]} if protocol == "strict" else {}),
        "num_train": len(train),
        "num_test": len(test),
        "settings": settings,
        "seconds": time.perf_counter() - began,
    }


def _percentages(both: tuple[float, float]) -> dict[str, float | None]:
    top1, top5 = (None if math.isnan(value) else value for value in both)
    return {"top1": top1, "top5": top5}


def num_classes(train: torch.Tensor, test: torch.Tensor) -> int:
    """Return the number of classes: one more than the largest training label.

    Args:
        train: labels, int64 (N,).
        test: labels, int64 (M,).

    Raises:
        ClspError: a test label is above all training labels.
    """
    classes, unknown = int(train.max()) + 1, int(test.max())
    if unknown >= classes:
        raise ClspError(
            f"The test images have class number {unknown} and the training images only 0 to "
            f"{classes - 1}; give both sets the same classes."
        )
    return classes


def evaluate_knn(
    train: Features,
    test: Features,
    protocol: str = "strict",
    ks: Sequence[int] = KS,
    *,
    temperature: float = 0.07,
    seed: int = 0,
) -> dict[str, Any]:
    """Weighted kNN accuracy on the plain images (view 0).

    The authors' bank holds randomly mirrored training images. Ours holds plain ones, so that the
    result does not depend on chance.

    Args:
        train: features of the bank.
        test: features to classify.
        protocol: ``"strict"`` chooses k on a held-out stratified tenth of ``train`` (the bank is
            the rest), then reports that k on ``test`` with the whole bank. ``"paper"`` reports the
            best k on ``test``, as published numbers do. Of equal ks the smallest is chosen.
        ks: numbers of neighbours to choose from.
        temperature: temperature of the votes, above 0.
        seed: decides which images are held out.

    Returns:
        ``task``, ``protocol``, ``top1``, ``top5`` (percent), ``chosen`` ``{"k": k}``,
        ``candidates`` (each k with its ``top1`` and ``top5``: on the held-out images if strict,
        else on ``test``), ``heldout_top1`` (strict only), ``num_train``, ``num_test``,
        ``settings``, ``seconds``.

    Raises:
        ClspError: an unknown protocol, a k below 1, too few images, unknown classes in ``test``.
    """
    check_protocol(protocol)
    classes = num_classes(train.targets, test.targets)

    def score(
        bank: Features, queries: Features, ks: Sequence[int]
    ) -> dict[int, tuple[float, float]]:
        return weighted_knn(
            bank.feats[0],
            bank.targets,
            queries.feats[0],
            queries.targets,
            ks,
            temperature,
            classes,
        )

    settings = {"temperature": temperature, "seed": seed}
    ks = sorted({int(k) for k in ks})
    return _evaluate(("knn", "k"), train, test, protocol, ks, score, settings)


def evaluate_linear(
    train: Features,
    test: Features,
    protocol: str = "strict",
    lrs: Sequence[float] = (1.0,),
    *,
    epochs: int = 100,
    milestones: Sequence[int] = (60, 80),
    batch_size: int = 256,
    seed: int = 0,
    desc: str = "",
) -> dict[str, Any]:
    """Accuracy of a linear probe, tested on the plain images (view 0).

    Args:
        train: features to train on, with the mirrored view for the paper's augmentation.
        test: features to test on.
        protocol: ``"strict"`` chooses the learning rate on a held-out stratified tenth of
            ``train``, then trains with it on all of ``train``. ``"paper"`` takes the one rate that
            is given. Of equal rates the first is chosen; one that diverged never is.
        lrs: learning rates to choose from; exactly one with ``"paper"``.
        epochs: epochs of training.
        milestones: epochs at which the rate is divided by ten.
        batch_size: images per step.
        seed: seed of the probe and of the held-out images.
        desc: title of the progress bar; no bar if empty.

    Returns:
        As :func:`evaluate_knn`, with ``chosen`` ``{"lr": lr}``.

    Raises:
        ClspError: an unknown protocol, several rates with ``"paper"``, too few images, unknown
            classes in ``test``, or training diverged.
    """
    check_protocol(protocol)
    if protocol == "paper" and len(lrs) != 1:
        raise ClspError(
            f"protocol=paper takes the one published learning rate and {len(lrs)} were given "
            f"({', '.join(map(str, lrs))}); give one, or choose among them with protocol=strict."
        )
    classes = num_classes(train.targets, test.targets)
    settings: dict[str, Any] = {"epochs": epochs, "milestones": list(milestones)}
    settings |= {"batch_size": batch_size, "seed": seed}

    def score(
        train: Features, test: Features, lrs: Sequence[float]
    ) -> dict[float, tuple[float, float]]:
        return train_probe(train, classes, lrs, **settings, desc=desc).accuracy(test)

    told = {**settings, "flip": len(train.feats) > 1}
    return _evaluate(("linear", "lr"), train, test, protocol, lrs, score, told)
