"""Oracle candidates, made without a denoiser: those of a perfect generator, and a control.

They are made from information that a generator does not have, the labels or the recipe of the
offline data set, and measure how much better candidates could help. They form an ordinary store;
its manifest has ``oracle: NAME`` in place of the denoiser's hash.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.candidates.writer import StoreWriter
from clsp_plugin.data.digits import on_other_backgrounds
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.keyed_random import Purpose, derive_key, key_uniform, keys_for
from clsp_plugin.errors import ClspError, nearest

__all__ = ["ORACLES", "Oracle", "check_oracle", "write_oracle"]

_PREFIX = "oracle: "


@dataclass
class Oracle:
    """Settings of ``clsp generate`` for oracle candidates.

    Attributes:
        oracle: what a candidate is, one of :data:`ORACLES`.
        num_candidates: K, candidates per image.
        seed: seed of all random choices.
        shard_size: images per shard of the store.
    """

    oracle: str
    num_candidates: int = 4
    seed: int = 0
    shard_size: int = 1024


_Drawn = Callable[[slice], torch.Tensor]  # from some of the anchors to a candidate of each


def _same_class(array: ImageArray, data: Mapping[str, Any], keys: torch.Tensor) -> _Drawn:
    """Draw another training image of each anchor's class: perfect semantics."""
    if bool((array.targets < 0).any()):
        raise ClspError("oracle=class needs the labels of all images, and some have none.")
    order = array.targets.argsort(stable=True)
    sizes = array.targets.bincount()
    if bool((sizes == 1).any()):
        alone = array.classes[int((sizes == 1).nonzero()[0])]
        raise ClspError(f"oracle=class: class {alone} has one image, and no other to take.")
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)  # position of each image among those of its class
    place[order] = torch.arange(len(array)) - first[array.targets[order]]
    others = sizes[array.targets] - 1
    step = 1 + (key_uniform(keys, 1)[:, 0].double() * others).long()
    other = order[first[array.targets] + (place + step) % (others + 1)]
    return lambda anchors: array.images[other[anchors]]


def _any_image(array: ImageArray, data: Mapping[str, Any], keys: torch.Tensor) -> _Drawn:
    """Draw another training image of any class for each anchor: a control that must not help."""
    if len(array) < 2:
        raise ClspError("oracle=other takes another image, and there is only one image.")
    step = 1 + (key_uniform(keys, 1)[:, 0].double() * (len(array) - 1)).long()
    other = (torch.arange(len(array)) + step) % len(array)
    return lambda anchors: array.images[other[anchors]]


def _background(array: ImageArray, data: Mapping[str, Any], keys: torch.Tensor) -> _Drawn:
    """Redraw each digit at its place on another texture in another ink: a perfect background."""
    if data["dataset"] != "digits" or data.get("fraction", -1) > 0:
        raise ClspError(
            "oracle=background knows how the images of data.dataset=digits are made, all of them; "
            "leave data.fraction out, or take oracle=class."
        )
    drawn = on_other_backgrounds(
        torch.arange(len(array)), "train", keys, seed=int(data["seed"]), size=array.size[0]
    )
    return lambda anchors: drawn[anchors]


ORACLES: dict[str, Callable[[ImageArray, Mapping[str, Any], torch.Tensor], _Drawn]] = {
    "background": _background,
    "class": _same_class,
    "other": _any_image,
}


def check_oracle(settings: Oracle) -> None:
    """Refuse an unknown oracle, and numbers below 1."""
    if settings.oracle not in ORACLES:
        raise ClspError(f"oracle={settings.oracle} is not known{nearest(settings.oracle, ORACLES)}")
    for name in ("num_candidates", "shard_size"):
        if getattr(settings, name) < 1:
            raise ClspError(f"{name}={getattr(settings, name)} must be at least 1.")


def write_oracle(
    array: ImageArray, data: Mapping[str, Any], out: str | Path, settings: Oracle
) -> dict[str, Any]:
    """Make a store of oracle candidates, continuing an unfinished one.

    Args:
        array: the training images.
        data: the configuration's ``data`` block, see ``load_images``.
        out: directory of the store.
        settings: which candidates to make.

    Returns:
        ``candidates``, the number made by this call, and ``out``.

    Raises:
        ClspError: there is no such oracle, it does not fit the images, or the store was made with
            other settings or for other images.
    """
    check_oracle(settings)
    drawn = [
        ORACLES[settings.oracle](array, data, keys_for(key, torch.arange(len(array))))
        for key in (
            derive_key(settings.seed, Purpose.ORACLE, number)
            for number in range(settings.num_candidates)
        )
    ]
    manifest = StoreManifest.unsampled(
        array, settings.num_candidates, _PREFIX + settings.oracle,
        seed=settings.seed, shard_size=settings.shard_size,
    )  # fmt: skip
    writer = StoreWriter(out, manifest, array.digests)
    made = 0
    with writer.lock():
        writer.extend()
        for shard, start, stop in writer.missing():
            missing = drawn[writer.present(shard) :]
            new = torch.stack([one(slice(start, stop)) for one in missing], dim=1).numpy()
            writer.write(shard, new)
            made += new.shape[0] * new.shape[1]
    return {"candidates": made, "out": str(out)}
