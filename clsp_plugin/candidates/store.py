"""The candidate store: the denoiser's candidates on disk, read by pre-training.

A store is a directory of uint8 shards of shape (n, K, H, W, 3), memory-mapped, or of encoded ones
(see :mod:`clsp_plugin.candidates.encoded`), and a ``manifest.json`` that identifies the images they
were made for. Opening it against other images, another order or a subset is an error.
``images.npy`` has a digest of each image's pixels, so that a host's data set may have another
order. A shard is complete or absent; writing continues where it was stopped. While a store is
extended to more candidates per image, some shards hold the new number and the others still the old
one.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from clsp_plugin.candidates.encoded import EncodedShard
from clsp_plugin.candidates.manifest import MANIFEST, StoreManifest, generate_command
from clsp_plugin.data.image_array import fingerprint_of
from clsp_plugin.data.keyed_random import Purpose, derive_key, key_uniform, keys_for
from clsp_plugin.errors import ClspError
from clsp_plugin.system.arrays import map_npy, read_npy
from clsp_plugin.system.digests import check_whole

__all__ = ["DIGESTS", "CandidateStore", "Shard", "map_shard", "shard_path"]

DIGESTS = "images.npy"
_DRAW_AGAIN = (
    "delete that file and run `clsp generate` with the same settings again, which makes only what "
    "is missing."
)


def shard_path(path: Path, shard: int) -> Path:
    """Return the path of a shard, given the store's directory and the shard's number."""
    return path / f"shard-{shard:05d}.npy"


Shard: TypeAlias = np.ndarray | EncodedShard


def map_shard(path: Path, shard: int, manifest: StoreManifest) -> Shard:
    """Open a shard memory-mapped: uint8 (n, k, H, W, 3), with k at most the manifest's K."""
    file = shard_path(path, shard)
    array = map_npy(file, _DRAW_AGAIN)
    expected = manifest.shard_shape(shard)
    if manifest.encoding is not None and array.dtype == np.uint8 and array.ndim == 1:

        def broken(reason: str) -> ClspError:
            return ClspError(f"{file} is damaged ({reason}); {_DRAW_AGAIN}")

        return EncodedShard(array, expected, broken)
    fits = array.ndim == 5 and array.shape[:1] + array.shape[2:] == expected[:1] + expected[2:]
    fits = fits and manifest.encoding is None
    if array.dtype != np.uint8 or not fits or not 1 <= array.shape[1] <= expected[1]:
        raise ClspError(
            f"{file} holds {array.dtype} {array.shape}, its manifest says uint8 {expected}; "
            f"{_DRAW_AGAIN}"
        )
    return array


def _placeholder(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of a missing shard's shape that takes no memory."""
    return np.broadcast_to(np.zeros((), np.uint8), shape)


def _is_there(shard: Shard) -> bool:
    return isinstance(shard, EncodedShard) or any(
        shard.strides
    )  # a placeholder's strides are all 0


class CandidateStore:
    """Candidates of a data set, read by image index.

    Args:
        path: a store's directory, or the authors' single ``.npy`` of shape (N, K, H, W, 3). The
            latter has no manifest: only the number and size of its images can be checked.
        num_candidates: use only the first this many of the K candidates; all by default.
        data: the configuration's ``data`` block, for the commands in error messages.
        partial: also open an unfinished store; then only images in ``drawn`` may be read.

    Attributes:
        manifest: the store's manifest; None for the authors' array.
        drawn: int64 (M,), indexes of the images that have candidates: all, unless ``partial``.

    Raises:
        ClspError: the store is absent, incomplete or truncated, or has fewer candidates than asked
            for.
    """

    def __init__(
        self,
        path: str | Path,
        num_candidates: int | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        partial: bool = False,
    ):
        self.path, self.data, self.partial = Path(path), data, partial
        self.manifest: StoreManifest | None = None
        if self.path.is_file() and self.path.suffix == ".npy":
            self._shards: list[Shard] = [self._open_npy()]
        elif (self.path / MANIFEST).exists():
            self.manifest = StoreManifest.load(self.path)
            self._shards = self._open_shards(self.manifest)
        else:
            raise ClspError(
                f"There is no candidate store at {self.path}; make it with "
                f"`{generate_command(self.path, data)}`, or name another with synthetic.path=."
            )
        sizes = [len(shard) for shard in self._shards]
        self.num_images = sum(sizes)
        self.drawn = np.flatnonzero(np.repeat([_is_there(shard) for shard in self._shards], sizes))
        self.total_candidates = self._present(num_candidates)
        self.height, self.width = self._shards[0].shape[2:4]
        self.num_candidates = self.total_candidates if num_candidates is None else num_candidates
        if not 1 <= self.num_candidates <= self.total_candidates:
            raise ClspError(
                f"synthetic.num_candidates={num_candidates} is not between 1 and the "
                f"{self.total_candidates} candidates an image that {self.path} holds."
            )
        self._starts = np.cumsum([0, *sizes])
        self._resident: torch.Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # a pickled memory map is a copy of the file, and spawned workers of a DataLoader get one
        again = partial(CandidateStore, partial=self.partial)
        return again, (self.path, self.num_candidates, self.data)

    def _open_npy(self) -> np.ndarray:
        array = map_npy(self.path, "name another file, or a candidate store.")
        if array.ndim != 5 or array.shape[-1] != 3 or array.dtype != np.uint8:
            raise ClspError(
                f"{self.path} holds {array.dtype} {array.shape}; candidates are uint8 of shape "
                f"(images, candidates, height, width, 3)."
            )
        return array

    def _open_shards(self, manifest: StoreManifest) -> list[Shard]:
        shards = range(manifest.num_shards)
        absent = {shard for shard in shards if not shard_path(self.path, shard).exists()}
        if len(absent) > (manifest.num_shards - 1 if self.partial else 0):
            raise ClspError(
                f"The candidate store {self.path} is incomplete: {len(absent)} of "
                f"{manifest.num_shards} shards are missing; run the `clsp generate` that "
                f"made it again, it continues where it stopped."
            )
        return [
            _placeholder(manifest.shard_shape(shard))
            if shard in absent
            else map_shard(self.path, shard, manifest)
            for shard in shards
        ]

    def _present(self, num_candidates: int | None) -> int:
        """Return the candidates per image that every shard has: fewer while a store is extended."""
        present = min(shard.shape[1] for shard in self._shards)
        wanted = present if self.manifest is None else self.manifest.num_candidates
        if present != wanted and num_candidates is None and not self.partial:
            raise ClspError(
                f"The candidate store {self.path} is being extended from {present} to "
                f"{wanted} candidates an image; run the `clsp generate` "
                f"that extends it again, or draw from the first ones with "
                f"synthetic.num_candidates={present}."
            )
        return present

    def need_manifest(self) -> StoreManifest:
        """Return the manifest, for callers that need one.

        Raises:
            ClspError: the store is the authors' array, which has none.
        """
        if self.manifest is None:
            raise ClspError(
                f"{self.path} has no manifest; name a store that `clsp generate` wrote."
            )
        return self.manifest

    def check(self, num_images: int, height: int, width: int, fingerprint: str, name: str) -> None:
        """Refuse images that the candidates were not made for.

        Args:
            num_images: N, the number of images at hand.
            height: their height in pixels.
            width: their width in pixels.
            fingerprint: digest of the images at hand and their order.
            name: what to call them in error messages.

        Raises:
            ClspError: the images are others, or in another order; the message describes both.
        """
        theirs = f"{self.num_images} images of {self.height}x{self.width}"
        ours = f"{num_images} images of {height}x{width}"
        same = (num_images, height, width) == (self.num_images, self.height, self.width)
        if self.manifest is not None:
            theirs += f" ({self.manifest.dataset}, fingerprint {self.manifest.fingerprint[:12]})"
            ours += f" ({name}, fingerprint {fingerprint[:12]})"
            same = same and fingerprint == self.manifest.fingerprint
        if not same:
            raise ClspError(
                f"The candidates in {self.path} were made for {theirs}, the training images are "
                f"{ours}: make candidates for these with "
                f"`{generate_command('NEW_DIRECTORY', self.data, (self.height, self.width))}`, "
                f"or train on the images (and in the order) that the store was made for."
            )

    @property
    def nbytes(self) -> int:
        """Size in bytes of the pixels that are used: the first ``num_candidates`` per image."""
        return self.num_images * self.num_candidates * self.height * self.width * 3

    @property
    def encoded(self) -> bool:
        """Whether candidates are decoded when they are read."""
        return self.manifest is not None and self.manifest.encoding is not None

    @property
    def stored_bytes(self) -> int:
        """Size of the candidates on the disk: of pixels those that are used, else all."""
        return sum(shard.nbytes for shard in self._shards) if self.encoded else self.nbytes

    def encoded_shard(self, shard: int) -> list[bytes]:
        """Return the encoded candidates of a shard, image by image; of an encoded store."""
        found = self._shards[shard]
        assert isinstance(found, EncodedShard)
        return found.all_encoded()

    def rows_of(self, digests: np.ndarray, name: str) -> torch.Tensor:
        """Find images, in any order and not necessarily all of them, in this store.

        Args:
            digests: uint8 (M, 16), digests of the images at hand, see ``ImageArray.digests``.
            name: what to call them in error messages.

        Returns:
            int64 (M,), the index in the store of each image.

        Raises:
            ClspError: an image has no candidates here, or the store has no digests of its images.
        """
        theirs = self._digests()
        if theirs is None:
            raise ClspError(
                f"{self.path} does not name its images one by one, and {name} is in another order "
                f"than the one it was made for; make candidates again with `clsp generate`."
            )
        place = {digest.tobytes(): row for row, digest in reversed(list(enumerate(theirs)))}
        rows = [place.get(digest.tobytes(), -1) for digest in digests]
        absent = rows.count(-1)
        if absent:
            raise ClspError(
                f"{self.path} has no candidates for {absent} of the {len(rows)} images of {name} "
                f"(image {rows.index(-1)} is the first): it was made for {self.num_images} images "
                f"of {self.height}x{self.width}"
                f"{'' if self.manifest is None else f' ({self.manifest.dataset})'}; make "
                f"candidates for these images with `clsp generate`, or name another store."
            )
        return torch.tensor(rows)

    def _digests(self) -> np.ndarray | None:
        """Return the digests of the images, None if the store has none; checks the manifest."""
        if self.manifest is None or not (self.path / DIGESTS).exists():
            return None
        digests = read_npy(
            self.path / DIGESTS,
            "delete that file and run the `clsp generate` that made the store again.",
        )
        if fingerprint_of(digests, self.height, self.width) != self.manifest.fingerprint:
            raise ClspError(
                f"{self.path / DIGESTS} is not of the images that the manifest beside it names; "
                f"delete that file and run the `clsp generate` that made the store again."
            )
        return digests

    def verify(self, indexes: Sequence[int] | None = None) -> tuple[int, int]:
        """Read shards and compare them with their digests, see ``clsp_plugin.system.digests``.

        Args:
            indexes: read only the shards with these images; all by default.

        Returns:
            How many shards agree, and how many have no digest: the authors' array, and stores
            written before there were digests.

        Raises:
            ClspError: shards changed since they were written; the message names them.
        """
        numbers = range(len(self._shards))
        if indexes is not None:
            numbers = np.unique(np.searchsorted(self._starts, indexes, side="right") - 1).tolist()
        there = [number for number in numbers if _is_there(self._shards[number])]
        if self.manifest is None:
            return 0, len(there)
        return check_whole(
            (shard_path(self.path, number), self._shards[number].shape[1]) for number in there
        )

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the candidates in order, of up to 1024 images at a time: uint8 (n, K, H, W, 3).

        Raises:
            ClspError: a shard that has a digest does not agree with it.
        """
        for shard, first in zip(self._shards, self._starts, strict=False):
            self.verify([first])
            for start in range(0, len(shard), 1024):  # the authors' array is one large shard
                yield shard[start : start + 1024, : self.num_candidates]

    def load_to(self, device: torch.device | str) -> None:
        """Copy all candidates to a device as one tensor, so that no step waits for the host."""
        parts = [torch.from_numpy(block.copy()) for block in self.blocks()]
        self._resident = torch.cat(parts).to(device)

    @property
    def resident(self) -> bool:
        """Whether the candidates are on a device, by :meth:`load_to`."""
        return self._resident is not None

    def choose(self, indexes: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
        """Draw which candidate each image gets in an epoch: int64 (B,), uniform over the K."""
        return self.choose_several(indexes, seed, epoch, 1)[:, 0]

    def choose_several(
        self, indexes: torch.Tensor, seed: int, epoch: int, number: int
    ) -> torch.Tensor:
        """Draw different candidates for each image in an epoch: int64 (B, number).

        Every ordered choice is equally likely, and a larger ``number`` adds to a smaller one.

        Args:
            indexes: int64 (B,), image indexes in [0, N).
            seed: seed of the draw.
            epoch: the epoch.
            number: how many of the K candidates, 1 to K.
        """
        keys = keys_for(derive_key(seed, Purpose.CANDIDATE, epoch), indexes)
        drawn = key_uniform(keys, number)
        # the first steps of Fisher and Yates's shuffle
        order = torch.arange(self.num_candidates, device=indexes.device).repeat(len(indexes), 1)
        for place in range(number):
            other = place + (drawn[:, place, None] * (self.num_candidates - place)).long()
            chosen = order.gather(1, other)
            order.scatter_(1, other, order[:, place, None].clone())
            order[:, place, None] = chosen
        return order[:, :number]

    def gather(self, indexes: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        """Return the chosen candidates: uint8 (B, H, W, 3), on the device of ``indexes``.

        Args:
            indexes: int64 (B,), image indexes in [0, N).
            choice: int64 (B,), candidate numbers in [0, K).
        """
        if self._resident is not None:
            return self._resident[indexes, choice]
        where, which = indexes.cpu().numpy(), choice.cpu().numpy()
        out = np.empty((len(where), self.height, self.width, 3), np.uint8)
        shard_of = np.searchsorted(self._starts, where, side="right") - 1
        for shard in np.unique(shard_of):
            rows = np.flatnonzero(shard_of == shard)
            out[rows] = self._shards[shard][where[rows] - self._starts[shard], which[rows]]
        return torch.from_numpy(out).to(indexes.device, non_blocking=True)

    def _place(self, index: int) -> tuple[Shard, int]:
        """Return the shard that an image's candidates are in, and its row there."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shards[number], index - int(self._starts[number])

    def digest(self) -> str:
        """Return a SHA-256 of the candidates of up to 256 evenly spaced images, and of how many.

        It tells whether a path holds what it held before, without reading all of it.
        """
        shape = (self.num_images, self.num_candidates, self.height, self.width)
        found = hashlib.sha256(repr(shape).encode())
        for index in np.unique(np.linspace(0, self.num_images - 1, 256).astype(int)):
            shard, row = self._place(index)
            if isinstance(shard, EncodedShard):  # as stored: decoders differ between versions
                for candidate in range(self.num_candidates):
                    found.update(shard.encoded(row * shard.shape[1] + candidate))
            else:
                found.update(shard[row, : self.num_candidates].tobytes())
        return found.hexdigest()

    def images(self, indexes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return all candidates of a few images: uint8 (n, K, H, W, 3)."""
        out = []
        for index in indexes:
            shard, row = self._place(index)
            out.append(shard[row, : self.num_candidates])
        return np.stack(out)
