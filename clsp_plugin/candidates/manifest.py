"""A candidate store's manifest: what it was made of, and how."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clsp_plugin.errors import ClspError
from clsp_plugin.system.files import write_whole
from clsp_plugin.system.json_files import checked, read_json

__all__ = ["MANIFEST", "StoreManifest", "generate_command"]

MANIFEST = "manifest.json"
FORMAT = 1
# no store has more, and one that says so would be looked for without an end
_LARGEST = {
    "num_images": 10**9, "num_candidates": 10**6, "height": 2**16, "width": 2**16,
    "shard_size": 10**9, "num_shards": 10**6,
}  # fmt: skip


@dataclass(frozen=True)
class StoreManifest:
    """What a store holds and how it was made.

    Attributes:
        num_images: N, images with candidates.
        num_candidates: K, candidates an image, once the store is complete.
        height: H in pixels.
        width: W in pixels.
        fingerprint: of the images and their order, see ``ImageArray.fingerprint``.
        dataset: name of the images, for people.
        denoiser: hash of the denoiser's weights.
        w: weight of the *sample* in the blend of middle features; 0.1 is 90 % anchor.
        sampler: name of the sampler.
        steps: sampling steps.
        eta: DDIM's eta.
        seed: of the sampling noise.
        dtype: precision of the denoiser while sampling.
        clip: whether each sampling step clipped its estimate of the image to [-1, 1].
        share_anchor: whether an anchor's K candidates shared one noised anchor a step.
        shard_size: images a shard.
        guidance: of a conditional denoiser by the anchors' condition; 0 without one.
        condition: digest of what a conditional denoiser was told; None without one.
    """

    num_images: int
    num_candidates: int
    height: int
    width: int
    fingerprint: str
    dataset: str
    denoiser: str
    w: float
    sampler: str
    steps: int
    eta: float
    seed: int
    dtype: str
    clip: bool
    share_anchor: bool
    shard_size: int
    guidance: float = 0.0
    condition: str | None = None

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.shard_size)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First image and one past the last image of a shard."""
        start = shard * self.shard_size
        return start, min(start + self.shard_size, self.num_images)

    def shard_shape(self, shard: int) -> tuple[int, ...]:
        start, stop = self.shard_range(shard)
        return (stop - start, self.num_candidates, self.height, self.width, 3)

    @property
    def seal(self) -> str:
        """Hash of the content, which an edit by hand breaks."""
        # what is not set does not count, as in manifests from before there was a condition
        content = {name: value for name, value in asdict(self).items() if value is not None}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self), "seal": self.seal}, indent=2)
        write_whole(path / MANIFEST, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: Path) -> "StoreManifest":
        file, what = path / MANIFEST, "a candidate store's manifest"
        advice = f"make the store again with `{generate_command(path)}` in an empty directory."
        content = read_json(file, dict[str, Any], what, advice)
        if content.pop("format", None) != FORMAT:
            raise ClspError(f"{file} is not {what} of format {FORMAT}; {advice}")
        seal = content.pop("seal", None)
        checked(content, cls, f"{file} is not {what}: it has", advice)
        manifest = cls(**content)  # numbers as they were written, which the seal is of
        for name, most in _LARGEST.items():  # shard_size before what is divided by it
            if not 1 <= getattr(manifest, name) <= most:
                raise ClspError(
                    f"{file} is not {what}: it has {name}={getattr(manifest, name)}; {advice}"
                )
        if seal != manifest.seal:
            raise ClspError(
                f"{file} was changed by hand, so it may not say how the candidates were made; "
                f"undo that, or make the store again with `{generate_command(path)}` in an empty "
                f"directory."
            )
        return manifest


def generate_command(path: str | Path, data: Mapping[str, Any] | None = None) -> str:
    """The command that makes a store, for error messages.

    Args:
        path: of the store.
        data: the configuration's ``data`` block, so that the store is for the same images.
    """
    # every setting is said, whatever the shipped configuration has by default
    data = data or {}
    keys: tuple[str, ...] = ("dataset", "train_path", "fraction", "image_size")
    config = "cifar"
    if data.get("dataset", "digits") == "digits":
        keys, config = (*keys, "num_train", "seed"), "digits"
    given = [f"data.{key}={data[key]}" for key in keys if data.get(key) not in (None, -1)]
    return " ".join(["clsp generate --config-name", f"{config}/generate", *given, f"out={path}"])
