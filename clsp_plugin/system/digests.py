"""Digests of the shards of a candidate store and of other files, to see bytes that changed on disk.

Beside ``shard-00001.npy`` with 8 candidates an image lies ``shard-00001.k8.b2``, a BLAKE2b of 16
bytes in the form of ``b2sum``, so that ``b2sum --check *.b2`` says the same. It is written before
its shard, and the number of candidates is part of its name. So whenever a process is killed, also
while a store is extended, the digest named for a shard's number of candidates is that shard's.
"""

import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from clsp_plugin.errors import ClspError
from clsp_plugin.system.files import check_regular, write_whole

__all__ = [
    "changed_files",
    "check_whole",
    "digest_path",
    "file_digest",
    "named_by",
    "write_digest",
    "write_digests",
]

_BLOCK = 2**20
_NAMED = 20  # largest number of damaged files in a sentence


def digest_path(shard: Path, candidates: int) -> Path:
    """Return where the digest of a shard with so many candidates an image is."""
    return shard.with_name(f"{shard.stem}.k{candidates}.b2")


def named_by(digest: Path) -> tuple[int, int] | None:
    """Return the shard's number and its candidates an image from a digest's name, or None."""
    found = re.fullmatch(r"shard-([0-9]+)\.k([0-9]+)\.b2", digest.name)
    return None if found is None else (int(found[1]), int(found[2]))


def _hasher() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def file_digest(path: Path) -> str:
    """Return the BLAKE2b of a file: 32 hexadecimal digits."""
    check_regular(path)
    hasher = _hasher()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def _content(shard: Path, digest: str) -> bytes:
    return f"{digest}  {shard.name}\n".encode()


def write_digest(shard: Path, array: np.ndarray, candidates: int) -> None:
    """Write the digest of a shard that is about to be saved.

    Args:
        shard: its path.
        array: its content, C-contiguous.
        candidates: how many an image it has.
    """
    assert array.flags.c_contiguous
    hasher, head = _hasher(), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    hasher.update(head.getvalue())
    hasher.update(array.data)
    content = _content(shard, hasher.hexdigest())
    write_whole(digest_path(shard, candidates), lambda file: file.write(content))


def _is_whole(shard: Path, candidates: int) -> bool | None:
    """Whether a shard agrees with its digest; None where it has none."""
    beside = digest_path(shard, candidates)
    try:
        check_regular(beside)
        said = beside.read_bytes()
    except FileNotFoundError:
        return None
    return said == _content(shard, file_digest(shard))


def check_whole(shards: Iterable[tuple[Path, int]]) -> tuple[int, int]:
    """Read shards and compare them with their digests.

    Args:
        shards: path and candidates an image of each.

    Returns:
        How many agree, and how many have no digest.

    Raises:
        ClspError: some do not agree; the message names them.
        OSError: the system refuses to read one.
    """
    found: dict[bool | None, list[Path]] = {True: [], False: [], None: []}
    for path, candidates in shards:
        found[_is_whole(path, candidates)].append(path)
    damaged = found[False]
    if damaged:
        names = ", ".join(str(path) for path in damaged[:_NAMED])
        more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise ClspError(
            f"{names}{more} changed since being written, as the digest beside (.b2) says; delete "
            f"{'it' if len(damaged) == 1 else 'them'} and run `clsp generate` with the same "
            f"settings again, which makes only what is missing."
        )
    return len(found[True]), len(found[None])


def write_digests(listing: Path, files: Iterable[Path]) -> None:
    """Write one file with the digests of several, which lie below its folder.

    Args:
        listing: path of the file to write.
        files: paths of the files.
    """
    lines = (f"{file_digest(f)}  {f.relative_to(listing.parent).as_posix()}\n" for f in files)
    content = "".join(lines).encode()
    write_whole(listing, lambda file: file.write(content))


def changed_files(listing: Path) -> list[str]:
    """Return the names in a listing of :func:`write_digests` with other content now, or absent.

    The listing's own name is among them where it is damaged itself.
    """
    folder, changed = listing.parent, []
    for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
        found = re.fullmatch(r"([0-9a-f]{32})  ([\w-][\w.-]*(?:/[\w-][\w.-]*)*)", line)
        if found is None:
            changed.append(listing.name)
        elif not (folder / found[2]).is_file() or file_digest(folder / found[2]) != found[1]:
            changed.append(found[2])
    return changed
