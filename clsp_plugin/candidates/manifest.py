"""The manifest of a candidate store: which images it was made for, and how."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clsp_plugin.candidates.encoded import ENCODINGS
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.errors import ClspError
from clsp_plugin.system.files import write_whole
from clsp_plugin.system.json_files import checked, read_json

__all__ = ["MANIFEST", "StoreManifest", "generate_command", "generate_config"]

MANIFEST = "manifest.json"
FORMAT = 1
# No store has more. With the larger numbers of a damaged manifest the search for shards would
# not end.
_LARGEST = {
    "num_images": 10**9, "num_candidates": 10**6, "height": 2**16, "width": 2**16,
    "shard_size": 10**9, "num_shards": 10**6,
}  # fmt: skip
# Configurations of `clsp generate`; all other data sets are those of CIFAR.
_CONFIGS = {
    "digits": "digits/generate", "stl10": "stl10/generate",
    "imagenet100": "imagenet-100/generate", "custom": "custom/latent",
}  # fmt: skip


@dataclass(frozen=True)
class StoreManifest:
    """What a store holds and how it was made.

    Attributes:
        num_images: N, the number of images with candidates.
        num_candidates: K, candidates per image, once the store is complete.
        height: H in pixels.
        width: W in pixels.
        fingerprint: digest of the images and their order, see ``ImageArray.fingerprint``.
        dataset: name of the images, for messages.
        denoiser: hash of the denoiser, see ``denoiser_hash``; ``oracle: NAME`` if the candidates
            were made without one, ``imported: NAME`` if another program drew them.
        w: weight of the *sample* in the blend of middle features; 0.1 is 90 % anchor.
        sampler: name of the sampler.
        steps: number of sampling steps.
        eta: DDIM's eta.
        seed: seed of the sampling noise.
        dtype: precision of the denoiser while sampling.
        clip: whether each sampling step clipped its estimate of the image to [-1, 1].
        share_anchor: whether the K candidates of an anchor shared one noised anchor per step.
        shard_size: images per shard.
        guidance: strength of the guidance by the anchors' condition, or by the anchor itself if
            ``middle`` is ``view``; else 0.
        condition: digest of the condition that the denoiser got; None for an unconditional one.
        middle: ``view`` if the denoiser was trained to take from an anchor what it shares with
            other views of it (``middle=view``); None if middle features were blended.
        noise_level: noise of the anchors' embeddings, of an image-variation pipeline; else None.
        draw_size: side in pixels of what such a pipeline drew before it was resized; else None.
        encoding: how candidates are encoded, ``jpeg`` or ``webp``; None for pixels.
        quality: quality of the encoding, 1 to 100; None for pixels.
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
    middle: str | None = None
    noise_level: int | None = None
    draw_size: int | None = None
    encoding: str | None = None
    quality: int | None = None

    @classmethod
    def unsampled(
        cls, array: ImageArray, number: int, made_by: str, *, seed: int = 0, shard_size: int = 1024
    ) -> "StoreManifest":
        """Return the manifest of candidates that were not sampled here.

        The settings of a sampler are 0, False or ``none``.

        Args:
            array: the anchors.
            number: K, candidates per image.
            made_by: what stands in place of the denoiser's hash.
            seed: seed of the candidates.
            shard_size: images per shard.
        """
        return cls(
            num_images=len(array), num_candidates=number, height=array.size[0],
            width=array.size[1], fingerprint=array.fingerprint, dataset=array.name,
            denoiser=made_by, w=0.0, sampler="none", steps=0, eta=0.0, seed=seed, dtype="none",
            clip=False, share_anchor=False, shard_size=shard_size,
        )  # fmt: skip

    def encoded_with(self, encoding: str, quality: int) -> "StoreManifest":
        """Return the manifest of a store with an encoding; ``raw`` stands for pixels."""
        raw = encoding == "raw"
        return replace(self, encoding=None if raw else encoding, quality=None if raw else quality)

    @property
    def sampled(self) -> bool:
        """Whether a denoiser drew the candidates here: no oracle, not imported."""
        return self.steps > 0

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.shard_size)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the indexes of the first image of a shard and of one past its last image."""
        start = shard * self.shard_size
        return start, min(start + self.shard_size, self.num_images)

    def shard_shape(self, shard: int) -> tuple[int, ...]:
        start, stop = self.shard_range(shard)
        return (stop - start, self.num_candidates, self.height, self.width, 3)

    @property
    def seal(self) -> str:
        """Hash of the content, stored beside it to detect edits by hand."""
        # without None, so that manifests written before there was a condition keep their seal
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
        manifest = cls(**content)  # numbers as they were written: the seal is a hash of these
        for name, most in _LARGEST.items():  # shard_size before num_shards, which divides by it
            if not 1 <= getattr(manifest, name) <= most:
                raise ClspError(
                    f"{file} is not {what}: it has {name}={getattr(manifest, name)}; {advice}"
                )
        if manifest.encoding is not None and (
            manifest.encoding not in ENCODINGS or manifest.quality not in range(1, 101)
        ):
            raise ClspError(
                f"{file} is not {what}: it has encoding={manifest.encoding} and "
                f"quality={manifest.quality}; {advice}"
            )
        if seal != manifest.seal:
            raise ClspError(
                f"{file} was changed by hand, so it may not say how the candidates were made; "
                f"undo that, or make the store again with `{generate_command(path)}` in an empty "
                f"directory."
            )
        return manifest


def generate_config(dataset: str) -> str:
    """Return the name of the configuration of `clsp generate` for a data set, such as ``cifar10``.

    Args:
        dataset: its name, to which ``/train`` and the like may be added.
    """
    return _CONFIGS.get(dataset.split("/")[0], "cifar/generate")


def generate_command(
    path: str | Path, data: Mapping[str, Any] | None = None, size: tuple[int, int] | None = None
) -> str:
    """Return the command that makes a store, quoted for a shell, for error messages.

    Args:
        path: the store's directory.
        data: the configuration's ``data`` block, so that the command makes it for the same images.
        size: height and width of the candidates in pixels, for images that have no size themselves.
    """
    # name every setting, because the shipped configuration may have other defaults
    data = data or {}
    keys: tuple[str, ...] = (
        "dataset", "train_path", "image_column", "label_column", "no_labels", "fraction",
        "image_size",
    )  # fmt: skip
    dataset = data.get("dataset", "digits")
    if dataset == "digits":
        keys = (*keys, "num_train", "seed")
    elif dataset == "custom" and size and size[0] == size[1]:
        data = {**data, "image_size": data.get("image_size") or size[0]}
    data = {key: value for key, value in data.items() if value is not False}
    given = [f"data.{key}={data[key]}" for key in keys if data.get(key) not in (None, -1)]
    words = ["clsp", "generate", "--config-name", generate_config(dataset), *given, f"out={path}"]
    return shlex.join(words)
