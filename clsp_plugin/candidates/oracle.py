"""Candidates that no denoiser drew: what a perfect generator would give, and what none should.

They are made from what a generator does not know, the labels or the recipe of the offline data
set, and measure how much there is to win. They are an ordinary store; its manifest says
``oracle`` where that of another has the denoiser's hash.
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

__all__ = ["ORACLES", "Oracle", "check_oracle", "is_oracle", "write_oracle"]

_PREFIX = "oracle: "


@dataclass
class Oracle:
    """Keys of a configuration of ``clsp generate`` that makes such candidates.

    Attributes:
        oracle: what a candidate is, one of :data:`ORACLES`.
        num_candidates: K, candidates an image.
        seed: of what is random.
        shard_size: images a file of the store.
    """

    oracle: str
    num_candidates: int = 4
    seed: int = 0
    shard_size: int = 1024


def _same_class(array: ImageArray, data: Mapping[str, Any], keys: torch.Tensor) -> torch.Tensor:
    """Another training image of the anchor's class: perfect semantics."""
    if bool((array.targets < 0).any()):
        raise ClspError("oracle=class needs the labels of all images, and some have none.")
    order = array.targets.argsort(stable=True)
    sizes = array.targets.bincount()
    if bool((sizes == 1).any()):
        alone = array.classes[int((sizes == 1).nonzero()[0])]
        raise ClspError(f"oracle=class: class {alone} has one image, and no other to take.")
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)  # of an image among those of its class
    place[order] = torch.arange(len(array)) - first[array.targets[order]]
    others = sizes[array.targets] - 1
    step = 1 + (key_uniform(keys, 1)[:, 0].double() * others).long()
    return array.images[order[first[array.targets] + (place + step) % (others + 1)]]


def _any_image(array: ImageArray, data: Mapping[str, Any], keys: torch.Tensor) -> torch.Tensor:
    """Another training image, whatever it shows: what must not help."""
    if len(array) < 2:
        raise ClspError("oracle=other takes another image, and there is only one image.")
    step = 1 + (key_uniform(keys, 1)[:, 0].double() * (len(array) - 1)).long()
    return array.images[(torch.arange(len(array)) + step) % len(array)]


def _background(array: ImageArray, data: Mapping[str, Any], keys: torch.Tensor) -> torch.Tensor:
    """The digit as it stands, on another texture and in another ink: perfect backgrounds."""
    if data["dataset"] != "digits" or data.get("fraction", -1) > 0:
        raise ClspError(
            "oracle=background knows how the images of data.dataset=digits are made, all of them; "
            "leave data.fraction out, or take oracle=class."
        )
    return on_other_backgrounds(
        torch.arange(len(array)), "train", keys, seed=int(data["seed"]), size=array.size[0]
    )


ORACLES: dict[str, Callable[[ImageArray, Mapping[str, Any], torch.Tensor], torch.Tensor]] = {
    "background": _background,
    "class": _same_class,
    "other": _any_image,
}


def is_oracle(manifest: StoreManifest) -> bool:
    """Whether a store's candidates were made without a denoiser."""
    return manifest.denoiser.startswith(_PREFIX)


def check_oracle(settings: Oracle) -> None:
    """Refuse settings that no store can be made of."""
    if settings.oracle not in ORACLES:
        raise ClspError(f"oracle={settings.oracle} is not known{nearest(settings.oracle, ORACLES)}")
    for name in ("num_candidates", "shard_size"):
        if getattr(settings, name) < 1:
            raise ClspError(f"{name}={getattr(settings, name)} must be at least 1.")


def write_oracle(
    array: ImageArray, data: Mapping[str, Any], out: str | Path, settings: Oracle
) -> dict[str, Any]:
    """Make a store of such candidates, continuing an unfinished one.

    Args:
        array: the training images.
        data: their block of the configuration, see ``load_images``.
        out: directory of the store.
        settings: what to make.

    Returns:
        ``candidates`` made by this call, and ``out``.

    Raises:
        ClspError: there is no such oracle, it does not fit the images, or the store holds
            something else.
    """
    check_oracle(settings)
    drawn = [
        ORACLES[settings.oracle](array, data, keys_for(key, torch.arange(len(array))))
        for key in (
            derive_key(settings.seed, Purpose.ORACLE, number)
            for number in range(settings.num_candidates)
        )
    ]
    candidates = torch.stack(drawn, dim=1).numpy()
    writer = StoreWriter(out, _manifest(array, settings), array.digests)
    made = 0
    with writer.lock():
        writer.extend()
        for shard, start, stop in writer.missing():
            new = candidates[start:stop, writer.present(shard) :]
            writer.write(shard, new)
            made += new.shape[0] * new.shape[1]
    return {"candidates": made, "out": str(out)}


def _manifest(array: ImageArray, settings: Oracle) -> StoreManifest:
    """What the store holds; what only a sampler has is naught."""
    return StoreManifest(
        num_images=len(array),
        num_candidates=settings.num_candidates,
        height=array.size[0],
        width=array.size[1],
        fingerprint=array.fingerprint,
        dataset=array.name,
        denoiser=_PREFIX + settings.oracle,
        w=0.0,
        sampler="none",
        steps=0,
        eta=0.0,
        seed=settings.seed,
        dtype="none",
        clip=False,
        share_anchor=False,
        shard_size=settings.shard_size,
    )
