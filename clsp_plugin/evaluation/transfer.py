"""Linear evaluation of frozen features on another data set."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.features import Features
from clsp_plugin.evaluation.linear import train_probe
from clsp_plugin.evaluation.logistic import L2, Classifier, fit_logistic
from clsp_plugin.evaluation.names import check_protocol
from clsp_plugin.evaluation.protocol import split_heldout

__all__ = ["PAPER_TARGETS", "evaluate_transfer", "split_per_class"]

_STL10 = ("cifar10", "cifar100", "pets", "flowers", "dtd", "caltech101")
# The data sets that the paper transfers to, by the one that it pre-trains on.
PAPER_TARGETS = {
    "cifar10": ("cifar100",),
    "cifar100": ("cifar10",),
    "stl10": _STL10,
    "imagenet100": (*_STL10, "food101", "cars"),
}

_PER_CLASS = 30  # training images of a data set that has no split of its own: Caltech-101


def split_per_class(
    targets: torch.Tensor, number: int = _PER_CLASS, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw ``number`` images of every class to train on; the rest is for testing.

    Args:
        targets: int64 (N,).
        number: training images per class.
        seed: decides which images are drawn.

    Returns:
        Ascending indexes to train and to test on, both int64.

    Raises:
        ClspError: a class has no more than ``number`` images.
    """
    keys = keys_for(derive_key(seed, Purpose.PROBE, Purpose.SPLIT), torch.arange(len(targets)))
    drawn = torch.zeros(len(targets), dtype=torch.bool)
    for label in targets.unique():
        members = (targets == label).nonzero()[:, 0]
        if len(members) <= number:
            raise ClspError(
                f"Class number {int(label)} has {len(members)} images; {number} are trained on "
                f"and at least one is tested on: complete the data set."
            )
        drawn[members[keys[members].argsort()[:number]]] = True
    return drawn.nonzero()[:, 0], (~drawn).nonzero()[:, 0]


def evaluate_transfer(
    parts: Mapping[str, Features],
    metric: str,
    protocol: str = "strict",
    *,
    l2: Sequence[float] = L2,
    max_iter: int = 1000,
    lr: float = 1.0,
    epochs: int = 100,
    milestones: Sequence[int] = (60, 80),
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
    desc: str = "",
) -> dict[str, Any]:
    """Evaluate a linear classifier on frozen features of another data set.

    ``strict`` follows Kornblith et al. and SimCLR: logistic regression without augmentation. Its L2
    penalty is chosen on the validation images (the customary ones, else a stratified tenth of
    training). It is then fitted again to training and validation images together and tested once.
    Of equal penalties the strongest is chosen.

    ``paper`` applies the linear evaluation of the authors' code, the only one that they published,
    to the other data set: SGD at one rate on training and validation images together, mirrored at
    random where there are two views. Nothing is chosen.

    Args:
        parts: features of ``train`` and ``test``, and of ``val`` where there is one; or of ``all``,
            from which 30 images per class are drawn to train on. Of the test features only view 0
            is used.
        metric: ``top1`` or ``mean_class``: the penalty is chosen by it, and tables show it.
        protocol: ``strict`` or ``paper``.
        l2: weights of the penalty to choose from (strict), see ``fit_logistic``.
        max_iter: largest number of solver steps (strict).
        lr: learning rate (paper).
        epochs: epochs of training (paper).
        milestones: epochs at which the rate is divided by ten (paper).
        batch_size: images per step (paper).
        seed: seed of the drawn and held-out images and of the probe.
        device: where the solver runs.
        desc: title of the progress bars; no bars if empty.

    Returns:
        ``task``, ``protocol``, ``metric``, ``top1`` and ``mean_class`` (percent), ``chosen``
        (``l2`` or ``lr``), ``candidates``, ``heldout_<metric>`` and ``converged`` (strict),
        ``split`` (what the choice was made on), ``num_train`` (with ``num_val``), ``num_val``,
        ``num_test``, ``settings``, ``seconds``.

    Raises:
        ClspError: an unknown protocol, classes that training lacks, too few images, ...
    """
    check_protocol(protocol)
    began = time.perf_counter()
    split = "official validation images"
    if "all" in parts:
        whole = parts["all"]
        drawn, rest = split_per_class(whole.targets, seed=seed)
        parts = {"train": whole.subset(drawn), "test": whole.subset(rest)}
    parts, classes = _numbered(parts)
    train, test = parts["train"], parts["test"]
    everything = train if "val" not in parts else _joined(train, parts["val"])
    settings: dict[str, Any] = {"seed": seed}
    if protocol == "paper":
        settings |= {"epochs": epochs, "milestones": list(milestones), "batch_size": batch_size}
        probe = train_probe(everything, classes, [lr], **settings, desc=desc and f"{desc}, probe")
        final = Classifier(probe.weights[0], probe.biases[0])
        found = {"chosen": {"lr": lr}, "candidates": [], "split": "none", "num_val": 0}
    else:
        settings |= {"max_iter": max_iter}
        fit, look = train, parts.get("val")
        if look is None:
            stay, held = split_heldout(train.targets, seed=seed)
            fit, look = train.subset(stay), train.subset(held)
            split = "a tenth of the training images"
        solve = partial(fit_logistic, max_iter=max_iter, device=device)
        fitted = solve(fit, classes, l2, desc=desc and f"{desc}, L2 penalties")
        scores = {value: classifier.scores(look) for value, classifier in fitted.items()}
        best = max(scores, key=lambda value: scores[value][metric])
        final = solve(everything, classes, [best])[best]
        found = {
            "chosen": {"l2": best},
            "candidates": [{"l2": value, **both} for value, both in scores.items()],
            f"heldout_{metric}": scores[best][metric],
            "converged": final.converged,
            "split": split,
            "num_val": len(look),
        }
    return {
        "task": "transfer",
        "protocol": protocol,
        "metric": metric,
        **final.scores(test),
        **found,
        "num_train": len(everything),
        "num_test": len(test),
        "settings": settings,
        "seconds": time.perf_counter() - began,
    }


def _joined(first: Features, second: Features) -> Features:
    return Features(
        torch.cat([first.feats, second.feats], 1), torch.cat([first.targets, second.targets])
    )


def _numbered(parts: Mapping[str, Features]) -> tuple[dict[str, Features], int]:
    """Return features with class numbers from 0 without gaps, and the number of classes.

    The classes are those of the training and validation images. Releases of torchvision differ in
    whether some data sets' first class is 0 or 1.
    """
    known = torch.cat([parts[name].targets for name in ("train", "val") if name in parts]).unique()
    if len(known) < 2:
        raise ClspError("The training images are all of one class; an evaluation needs two.")
    out = {}
    for name, features in parts.items():
        strange = ~torch.isin(features.targets, known)
        if strange.any():
            raise ClspError(
                f"The {name} images have class number {int(features.targets[strange][0])}, which "
                f"the training images lack; give both the same classes."
            )
        out[name] = Features(features.feats, torch.searchsorted(known, features.targets))
    return out, len(known)
