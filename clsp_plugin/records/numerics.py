"""Versions of the numerics: what tells whether a number would come out the same today.

Every stage between images and a number has a version here, an integer. Records, the folders of a
suite's units and the cache of features carry the versions that they were made by; what is of
another version than today's is stale.

Bump a version, by hand, in the commit that changes what the stage computes from the same settings:
another formula, another order of random draws, another default that no configuration says, a
repaired mistake. Do not bump it for what leaves the numbers alone: words, names, files that move,
speed, memory, a setting whose default is what was done before, rounding in another order of
summation. ``tests/golden`` holds numbers of every stage and fails where they change and the version
does not; ``python -m tests.golden.compare`` says the same of any two commits.

A method states the version of what is its own in its class, as ``numerics``; one that does not has
that of the class it derives from.
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
    "features": 1,  # what a frozen network says of images
    "knn": 1,
    "linear": 1,
    "transfer": 1,
    "finetune": 1,
    "quality": 1,  # what `clsp inspect` measures on a store
}

# What the cache of features keeps is of no verb.
_WAYS = {name: verb.stages for name, verb in VERBS.items() if verb.stages}
_WAYS["features"] = ("images", "features")


def numerics_of(
    verb: str, dataset: str | None = None, method: str | None = None
) -> dict[str, int] | None:
    """The versions of all that a number goes through.

    Args:
        verb: that makes it.
        dataset: whose images it is of.
        method: of a pre-training, whose own version is ``method``.

    Returns:
        Stages to their versions; None for a method or a verb that is not ours.
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
    """The stages whose version was another when a number was made.

    Args:
        made: the versions it was made by; a stage that was not told apart then had its first.
            None where nothing says it, which accuses of nothing.
        today: of the same verb, data set and method, see :func:`numerics_of`.
    """
    if made is None or today is None:
        return []
    return [stage for stage, version in today.items() if made.get(stage, 1) != version]


def numerics_label(numerics: Mapping[str, int] | None) -> str:
    """Versions as part of a folder's name: ``v1``, and what is beyond it, ``v1-linear2``.

    A stage that is told apart later does not change the names that there are.
    """
    if numerics is None:
        return "unknown"
    later = (f"-{stage}{version}" for stage, version in numerics.items() if version != 1)
    return "v1" + "".join(later)
