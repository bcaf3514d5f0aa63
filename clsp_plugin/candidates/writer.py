"""Write a candidate store: begin, continue or extend it, with one writer per shard at a time."""

import contextlib
import errno
import glob
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clsp_plugin.candidates.encoded import EncodedShard, encode_images, joined, packed
from clsp_plugin.candidates.manifest import MANIFEST, StoreManifest
from clsp_plugin.candidates.store import DIGESTS, CandidateStore, map_shard, shard_path
from clsp_plugin.errors import ClspError
from clsp_plugin.system.digests import check_whole, digest_path, named_by, write_digest
from clsp_plugin.system.files import unfinished, write_whole
from clsp_plugin.system.locks import locked, unlink_held

__all__ = ["Left", "StoreWriter", "check_export", "export_npy", "left_to_draw", "replace_begun"]


@contextlib.contextmanager
def _room(sentence: str) -> Iterator[None]:
    """Raise a ClspError with this sentence, ``{}`` being the reason, if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ClspError(sentence.format(error.strerror or error)) from error


def _present(path: Path, manifest: StoreManifest, shard: int) -> int:
    """Return the number of candidates per image that a shard holds already: 0 to K."""
    if not shard_path(path, shard).exists():
        return 0
    return map_shard(path, shard, manifest).shape[1]


def _begun(path: Path) -> bool:
    return (path / MANIFEST).exists()


def _without_shards(path: Path) -> bool:
    """Whether a store was begun and has no shard yet, so that replacing it loses nothing."""
    return _begun(path) and not any(path.glob("shard-*.npy"))


def _taken(path: Path, lock: Path) -> ClspError:
    who = lock.read_text(encoding="utf-8", errors="replace") if lock.exists() else ""
    return ClspError(
        f"{path} is being written by another process"
        f"{f' ({who})' if who else ''}; wait for it, or give this one another out=."
    )


def _check_nobody_writes(path: Path) -> None:
    for lock in path.glob(".*-of-*.lock"):
        with locked(lock) as free:
            if not free:
                raise _taken(path, lock)


def _clear_begun(path: Path) -> None:
    """Delete what a store without shards may hold, except its manifest and its locks."""
    for pattern in ("shard-*.b2", DIGESTS, ".batch-size-*", ".*.tmp"):
        for left in path.glob(pattern):
            left.unlink(missing_ok=True)


def replace_begun(path: str | Path, manifest: StoreManifest) -> bool:
    """Replace the manifest of a store that was begun with other settings and has no shard yet.

    A command that was killed or failed while it drew its first shard leaves such a store.

    Returns:
        Whether the manifest was replaced.

    Raises:
        ClspError: another process holds a lock to write the store.
    """
    path = Path(path)
    if not _without_shards(path):
        return False
    with locked(path, wait=True):
        with contextlib.suppress(ClspError, FileNotFoundError):
            _check_same(path, manifest)
            return False
        _check_nobody_writes(path)
        if not _without_shards(path):
            return False  # another process was faster
        _clear_begun(path)
        manifest.save(path)
    return True


def _check_place(path: Path) -> None:
    """Refuse a path that holds anything other than a store."""
    if path.exists() and not path.is_dir():
        raise ClspError(f"{path} is a file; a candidate store is a directory.")
    # another process may begin the same store meanwhile, so look at the manifest last
    if any(path.glob("[!.]*")) and not _begun(path):
        raise ClspError(f"{path} holds files that are not a candidate store; choose another out=.")


def _check_same(path: Path, manifest: StoreManifest) -> None:
    """Refuse a store with another manifest; fewer candidates per image are allowed."""
    existing = StoreManifest.load(path)
    if existing.num_candidates < manifest.num_candidates:
        existing = replace(existing, num_candidates=manifest.num_candidates)
    names = [field.name for field in fields(StoreManifest)]
    different = [n for n in names if getattr(existing, n) != getattr(manifest, n)]
    if different:
        changes = ", ".join(
            f"{n}={getattr(existing, n)!r} (now {getattr(manifest, n)!r})" for n in different
        )
        fewer = existing.num_candidates > manifest.num_candidates
        raise ClspError(
            f"{path} already holds candidates made with {changes}; nothing was written: "
            f"choose another out= or use the settings it was made with"
            f"{' (synthetic.num_candidates trains on the first of them)' if fewer else ''}."
        )


@dataclass(frozen=True)
class Left:
    """The work that is left in a store.

    Attributes:
        images: number of images that lack candidates.
        candidates: number of candidates to draw.
        nbytes: size of these candidates in bytes; of encoded ones an estimate.
        rewritten: bytes of the largest shard that will be rewritten with more candidates; the old
            file stays on disk until the new one is complete.
    """

    images: int
    candidates: int
    nbytes: int
    rewritten: int


def left_to_draw(
    path: str | Path, manifest: StoreManifest, image_bytes: float | None = None
) -> Left:
    """Return what is left to draw of a store, which may not exist yet; nothing is written.

    Args:
        path: directory of the store.
        manifest: what it will hold.
        image_bytes: expected size of an encoded candidate; by default that of its pixels.

    Raises:
        ClspError: the path holds a store with another manifest or something other than a store,
            or a file of the store is not readable.
    """
    path = Path(path)
    _check_place(path)
    if _begun(path) and not _without_shards(path):
        _check_same(path, manifest)
    image = image_bytes or manifest.height * manifest.width * 3
    images, candidates, rewritten = 0, 0, 0
    for shard in range(manifest.num_shards):
        start, stop = manifest.shard_range(shard)
        have = _present(path, manifest, shard)
        if have < manifest.num_candidates:
            images += stop - start
            candidates += (stop - start) * (manifest.num_candidates - have)
            rewritten = max(rewritten, round((stop - start) * have * image))
    return Left(images, candidates, round(candidates * image), rewritten)


class StoreWriter:
    """Creates a store, continues an unfinished one, or extends one to more candidates.

    Args:
        path: directory of the store; made if absent.
        manifest: what the store will hold. An existing store must have the same manifest, but may
            have fewer candidates per image.
        digests: uint8 (N, 16), digests of the images, see ``ImageArray.digests``; without them the
            store can only be used with a data set in the same order.

    Raises:
        ClspError: the directory holds a store with another manifest, or other files.
    """

    def __init__(
        self, path: str | Path, manifest: StoreManifest, digests: np.ndarray | None = None
    ):
        self.path = Path(path)
        self.manifest = manifest
        _check_place(self.path)
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self._begins = False
        try:
            self._begin(digests)
        except BaseException:
            self.undo()
            raise

    def _begin(self, digests: np.ndarray | None) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, wait=True):  # of several processes, only the first begins the store
            if not _begun(self.path):
                self._begins = True
                self._save()
        _check_same(self.path, self.manifest)
        if digests is not None and not (self.path / DIGESTS).exists():
            with self._room():
                write_whole(self.path / DIGESTS, lambda file: np.save(file, digests))

    def undo(self) -> None:
        """Delete the store that this writer began, unless it has a shard or is being written.

        So a refused command leaves nothing behind.
        """
        if self._begins and self.path.is_dir() and not any(self.path.glob("shard-*.npy")):
            with locked(self.path, wait=True):
                try:
                    _check_nobody_writes(self.path)
                except ClspError:
                    return
                _clear_begun(self.path)
                (self.path / MANIFEST).unlink(missing_ok=True)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # somebody put something into it, or it was never made
                break

    def extend(self) -> None:
        """Raise the candidates per image in the store's manifest to the number asked for.

        Until all of them are drawn the store cannot be opened by default, so call this after every
        check that may refuse the command.
        """
        if StoreManifest.load(self.path).num_candidates < self.manifest.num_candidates:
            self._save()

    def _save(self) -> None:
        with self._room():
            self.manifest.save(self.path)

    def _room(self) -> contextlib.AbstractContextManager[None]:
        return _room(
            f"There is no room for another shard in {self.path} ({{}}); what is there is whole: "
            f"make room and give the same command again."
        )

    @contextlib.contextmanager
    def lock(self, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        """Lock the shards of process ``rank`` of ``world_size``: every ``world_size``-th one.

        The lock is released when the block or the process ends, even if the process is killed.

        Raises:
            ClspError: another process writes the same shards.
        """
        own = self.path / f".{rank}-of-{world_size}.lock"
        with contextlib.ExitStack() as held:
            if not held.enter_context(locked(own)):
                raise _taken(self.path, own)
            held.callback(unlink_held, own)
            with self._room():
                who = f"process {os.getpid()} on {socket.gethostname()}"
                own.write_text(who, encoding="utf-8")
            with locked(self.path, wait=True):
                # before this lock was held, replace_begun may have replaced the manifest
                _check_same(self.path, self.manifest)
            for other in self.path.glob(".*-of-*.lock"):
                if not other.name.endswith(f"-of-{world_size}.lock"):
                    self._look_at(other, alone=world_size == 1)
            self._clear(rank, world_size)
            yield

    def _look_at(self, lock: Path, alone: bool) -> None:
        """Refuse to write if the lock is held; a lock that nobody holds was left behind."""
        # shared: several processes may look at once, none may take another for the holder
        with locked(lock, shared=not alone) as free:
            if not free:
                raise _taken(self.path, lock)
            if alone:
                unlink_held(lock)

    def _clear(self, rank: int, world_size: int) -> None:
        """Delete the incomplete files of this process's shards that a killed process left."""
        for left in unfinished(self.path):
            number = left.name.removeprefix(".shard-").split(".")[0]
            # another process may be writing the other files right now
            mine = int(number) % world_size == rank if number.isdigit() else world_size == 1
            if mine:
                left.unlink(missing_ok=True)
        shares = self._shares(rank, world_size)
        for left in self.path.glob("*.b2"):
            shard, candidates = named_by(left) or (-1, 0)
            if shard in shares and candidates != self.present(shard):
                left.unlink(missing_ok=True)

    def _shares(self, rank: int, world_size: int) -> range:
        """Return the numbers of the shards that one of ``world_size`` processes writes."""
        return range(rank, self.manifest.num_shards, world_size)

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Compare the shards of one of ``world_size`` processes with their digests.

        Raises:
            ClspError: shards changed since they were written; the message names them.
        """
        present = ((shard, self.present(shard)) for shard in self._shares(rank, world_size))
        check_whole((shard_path(self.path, shard), have) for shard, have in present if have)

    def present(self, shard: int) -> int:
        """Return the number of candidates per image that a shard holds already: 0 to K."""
        return _present(self.path, self.manifest, shard)

    def check_holds(self, shard: int, candidates: np.ndarray) -> None:
        """Refuse a shard that holds other candidates than these.

        Args:
            shard: number of the shard.
            candidates: uint8 (n, k, H, W, 3), for the k candidates per image that it holds.

        Raises:
            ClspError: it holds others.
        """
        held = map_shard(self.path, shard, self.manifest)
        if isinstance(held, EncodedShard):
            same = held.all_encoded() == self._encoded(candidates)
        else:
            same = np.array_equal(held, candidates)
        if not same:
            raise ClspError(
                f"{self.path} already holds other candidates; nothing was written: choose another "
                f"place, or delete it to replace them."
            )

    def missing(self) -> list[tuple[int, int, int]]:
        """Return the shards still to write, as (shard number, first image, one past the last)."""
        return [
            (shard, *self.manifest.shard_range(shard))
            for shard in range(self.manifest.num_shards)
            if self.present(shard) < self.manifest.num_candidates
        ]

    def write(self, shard: int, candidates: np.ndarray) -> None:
        """Write one shard; it appears whole or not at all.

        Args:
            shard: number of the shard.
            candidates: uint8 (n, K, H, W, 3), or (n, K - k, H, W, 3) if the shard holds k
                candidates per image already: those are kept, and these are appended.

        Raises:
            ClspError: there is no room left on the disk.
        """
        have = self.present(shard)
        if have == self.manifest.num_candidates:
            return  # another process was faster, and drew the same candidates
        shape = self.manifest.shard_shape(shard)
        assert candidates.dtype == np.uint8
        assert candidates.shape == (shape[0], shape[1] - have, *shape[2:])
        if self.manifest.encoding is not None:
            self.write_encoded(shard, self._encoded(candidates))
            return
        if have:  # the map ends here: Windows replaces no file that is mapped
            candidates = np.concatenate(
                [map_shard(self.path, shard, self.manifest), candidates], axis=1
            )
        self._write(shard, np.ascontiguousarray(candidates), have)

    def _encoded(self, candidates: np.ndarray) -> list[bytes]:
        """Encode candidates, uint8 (n, k, H, W, 3), as the manifest says."""
        assert self.manifest.encoding is not None
        assert self.manifest.quality is not None
        flat = candidates.reshape(-1, *candidates.shape[2:])
        return encode_images(flat, self.manifest.encoding, self.manifest.quality)

    def write_encoded(self, shard: int, candidates: Sequence[bytes]) -> None:
        """Write one shard of an encoded store; it appears whole or not at all.

        Args:
            shard: number of the shard.
            candidates: the encoded candidates of its first image, of its second, ..; those that
                the shard holds already are kept as they are, and these are appended.

        Raises:
            ClspError: there is no room left on the disk.
        """
        have, number = self.present(shard), self.manifest.shard_shape(shard)[0]
        if have:
            before = map_shard(self.path, shard, self.manifest)
            assert isinstance(before, EncodedShard)
            candidates = joined(before.all_encoded(), candidates, number)
        assert len(candidates) == number * self.manifest.num_candidates
        self._write(shard, packed(candidates, number), have)

    def _write(self, shard: int, content: np.ndarray, have: int) -> None:
        """Write a shard and its digest, and delete that of the shard it replaces."""
        path = shard_path(self.path, shard)
        with self._room():
            write_digest(path, content, self.manifest.num_candidates)
            write_whole(path, lambda file: np.save(file, content))
        if have:
            digest_path(path, have).unlink(missing_ok=True)


def check_export(path: str | Path, store: str | Path) -> Path:
    """Refuse a path that :func:`export_npy` cannot write to, before any candidates are drawn."""
    path = Path(path)
    if path.exists():
        raise ClspError(f"{path} exists already; choose another file.")
    if path.suffix != ".npy":
        raise ClspError(f"{path} does not end in .npy.")
    if Path(store).resolve() in (path.resolve(), *path.resolve().parents):
        raise ClspError(f"{path} is a place of the store {store} itself; choose another file.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise ClspError(f"{there} is a file, so that {path} cannot be written; choose another.")
    return path


def export_npy(store: CandidateStore, path: str | Path) -> None:
    """Write a store as the single array that the authors' training scripts read.

    Args:
        store: the store to write.
        path: a ``.npy`` file that does not exist yet; it will hold uint8 (N, K, H, W, 3).

    Raises:
        ClspError: the path exists or does not end in ``.npy``, or there is no room for the file.
    """
    path = check_export(path, store.path)
    shape = (store.num_images, store.num_candidates, store.height, store.width, 3)

    def write(file: BinaryIO) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in store.blocks():
            file.write(np.ascontiguousarray(block).data)

    # left behind by a process that was killed
    for left in unfinished(path.parent, glob.escape(path.name)):
        left.unlink(missing_ok=True)
    with _room(
        f"There is no room for {path} ({{}}), which takes {store.nbytes / 2**20:.0f} MiB; make "
        f"room and give the same command again."
    ):
        write_whole(path, write)
