"""Versions of the numerics: they tell whether a number would come out the same today.

Every stage between the images and a number has a version here, an integer. Records, the folders of
a suite's units and the cache of features carry the versions that they were made by; what was made
by another version than today's is stale.

Bump a version, by hand, in the commit that changes what the stage computes from the same settings:
another formula, another order of random draws, another value of a default that no configuration
sets, a repaired mistake. Do not bump it for what leaves the numbers alone: wording, names, moved
files, speed, memory, a new setting with the old behaviour as its default, rounding in another order
of summation. ``tests/golden`` holds numbers of every stage and fails where they change and the
version does not; ``python -m tests.golden.compare`` compares any two commits in the same way.

A method states the version of its own part in its class, as ``numerics``; a subclass without one
inherits it.
"""

from collections.abc import Mapping
from typing import Any

from clsp_plugin.verbs import VERBS

__all__ = ["NUMERICS", "numerics_label", "numerics_of", "older_than_today"]

NUMERICS = {
    "digits": 1,  # the offline data set: its handwriting, textures and colours
    "images": 1,  # reading images, their size, mean and deviation, the held-out part
    "augmentation": 1,  # parameters drawn and operations done
    "pretrain": 1,  # what all methods share: network, probe, optimisers, schedules, order, seeds
    "synthetic": 1,  # the third view: which candidate, its pairs and its weight
    "denoiser": 1,  # training of the denoiser
    "sampling": 1,  # anchors, samples and their blend, the schedulers
    "features": 1,  # features of a frozen network
    "knn": 1,
    "linear": 1,
    "transfer": 1,
    "finetune": 1,
    "quality": 1,  # what `clsp inspect` measures on a store
}

# The cache of features belongs to no verb.
_WAYS = {name: verb.stages for name, verb in VERBS.items() if verb.stages}
_WAYS["features"] = ("images", "features")


def numerics_of(
    verb: str, dataset: str | None = None, method: str | None = None
) -> dict[str, int] | None:
    """Return the versions of all stages that a number goes through.

    Args:
        verb: the verb that makes the number.
        dataset: name of the data set of the images.
        method: the pre-trained method; its own version is listed as ``method``.

    Returns:
        Stage to version; None for a method or a verb that is not ours.
    """
    if verb not in _WAYS:
        return None
    stages = [*(["digits"] if dataset == "digits" else []), *_WAYS[verb]]
    own = {}
    if verb == "pretrain":
        from clsp_plugin.methods import METHODS
        from clsp_plugin.methods.synthetic import SyntheticPositives

        if method not in METHODS:
            return None
        if issubclass(METHODS[method], SyntheticPositives):
            stages.append("synthetic")
        own = {"method": METHODS[method].numerics}
    return {**{stage: NUMERICS[stage] for stage in stages}, **own}


def older_than_today(made: Mapping[str, Any] | None, today: Mapping[str, int] | None) -> list[str]:
    """Return the stages that had another version when a number was made.

    Args:
        made: the versions that the number was made by; a stage that is missing had version 1. None
            if they are not known; then no stage is returned.
        today: today's versions for the same verb, data set and method, see :func:`numerics_of`.
    """
    if made is None or today is None:
        return []
    return [stage for stage, version in today.items() if made.get(stage, 1) != version]


def numerics_label(numerics: Mapping[str, int] | None) -> str:
    """Return versions as part of a folder's name: ``v1``, or ``v1-linear2`` where linear has 2.

    A stage of version 1 is not named, so adding a stage later does not change existing names.
    """
    if numerics is None:
        return "unknown"
    later = (f"-{stage}{version}" for stage, version in numerics.items() if version != 1)
    return "v1" + "".join(later)
