"""Pack photographs into memory-mapped files, once: smaller copies that decode quickly.

A pack is a folder with a manifest and shards. ``shard-00000.npy`` holds the encoded images of 4096
files one behind the other, ``shard-00000.index.npy`` their lengths, sizes and digests. The index is
written after its shard, both appear whole or not at all, and a shard counts once its index is
there, so a packing that was killed goes on with the shard that it was at.
"""

import errno
import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image

from clsp_plugin.data.encoded import ImageFile, content_of, openable, state_of
from clsp_plugin.data.folders import NotReadNow, check_depth, reading
from clsp_plugin.data.packed.decoding import changed, decode
from clsp_plugin.data.packed.left_out import or_left_out, tell_left_out
from clsp_plugin.errors import ClspError
from clsp_plugin.system.arrays import map_npy, read_npy
from clsp_plugin.system.files import unfinished, write_whole
from clsp_plugin.system.json_files import checked, read_json
from clsp_plugin.system.locks import locked
from clsp_plugin.system.processes import cores
from clsp_plugin.system.progress import Progress

__all__ = [
    "COLUMNS",
    "QUALITY",
    "Pack",
    "Packing",
    "ahead",
    "alone",
    "encode",
    "named_after",
    "open_pack",
    "packed_size",
    "source_digest",
]  # fmt: skip

R = TypeVar("R")

QUALITY = 92  # of Pillow's JPEG, with its usual halved colours (4:2:0)
COLUMNS = ("length", "height", "width", "digest", "digest_rest")  # of an index, int64
_FORMAT = 1
_MANIFEST = "manifest.json"
_SHARD = 4096  # images
_ADVICE = "delete that folder and give the same command again, which packs the images anew."


@dataclass(frozen=True)
class Packing:
    """How images are packed.

    Attributes:
        side: pixels that a longer shorter side is brought to; smaller images are not enlarged.
        encoding: ``"jpeg"`` at quality ``QUALITY``, ``"raw"``, or ``"none"``: nothing is written
            and each image is read where it lies, see ``unpacked.Unpacked``.
        skip_damaged: whether files that cannot be read are left out; otherwise they are errors.
    """

    side: int = 256
    encoding: str = "jpeg"
    skip_damaged: bool = False

    @property
    def told(self) -> str:
        """The settings for people."""
        written = {"jpeg": f"JPEG of quality {QUALITY}", "none": "not packed"}
        return f"shorter side {self.side}, {written.get(self.encoding, self.encoding)}"


@dataclass(frozen=True)
class _Manifest:
    """What a pack holds; ``source`` identifies the files and ``folder`` is where they were."""

    format: int
    images: int
    side: int
    encoding: str
    quality: int
    skip_damaged: bool
    shard: int
    source: str
    folder: str

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard)


def source_digest(root: Path, files: Sequence[ImageFile], packing: Packing) -> str:
    """Return a digest of files (names below the root, sizes, times of change) and of settings."""
    digest = hashlib.sha256(json.dumps([_FORMAT, QUALITY, asdict(packing)]).encode())
    start = os.path.join(root, "")
    for file in files:
        digest.update(state_of(file, start))
    return digest.hexdigest()


def packed_size(size: tuple[int, int], packing: Packing) -> tuple[int, int]:
    """Return height and width in pixels of the packed form of an image of some width and height."""
    width, height = size
    scale = packing.side / min(size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in size)
    return height, width


def encode(file: ImageFile, packing: Packing) -> tuple[bytes, int, int]:
    """Read an image file and return its packed form, with height and width in pixels.

    EXIF's orientation is not applied, as nowhere here. A small JPEG stays as it is.

    Raises:
        ClspError: the file is not a readable image, or has more than 8 bits per channel.
    """

    def read() -> tuple[bytes, int, int]:
        with Image.open(openable(file)) as image:
            check_depth(image)
            height, width = packed_size(image.size, packing)
            smaller = min(image.size) > packing.side
            kept = not smaller and image.format == "JPEG" and image.mode in ("L", "RGB")
            if smaller:
                image.draft(None, (2 * width, 2 * height))  # JPEG decodes to 1/2, 1/4, 1/8 quickly
            pixels = image.convert("RGB")
            if kept and packing.encoding == "jpeg":  # it was decoded, so it is whole
                return content_of(file), height, width
            if smaller:
                pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
            if packing.encoding != "jpeg":
                return pixels.tobytes(), height, width
            content = io.BytesIO()
            pixels.save(content, "JPEG", quality=QUALITY)
            return content.getvalue(), height, width

    return reading(str(file), read)


def _encoded(file: ImageFile, packing: Packing) -> tuple[bytes, list[int]] | ClspError:
    """Return an image's packed form and its row of the index, or the error that it has."""
    try:
        content, height, width = encode(file, packing)
    except ClspError as error:
        return error
    return content, [len(content), height, width, *_digest(content)]


def _digest(content: bytes | memoryview) -> list[int]:
    """Return the digest of an image's packed form, as two int64."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return np.frombuffer(digest, "<i8").tolist()


def _paths(folder: Path, shard: int) -> tuple[Path, Path]:
    name = f"shard-{shard:05d}"
    return folder / f"{name}.npy", folder / f"{name}.index.npy"


class Pack:
    """A complete pack, opened for reading.

    Args:
        folder: its folder.

    Attributes:
        index: int64 (N, 5), see ``COLUMNS``; a length of 0 is an image that was left out.
        packing: its settings.

    Raises:
        ClspError: there is no pack, or something in it is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder, manifest = folder, _manifest(folder)
        self.packing = Packing(manifest.side, manifest.encoding, manifest.skip_damaged)
        self._shard, self._shards, parts, starts = manifest.shard, [], [], []
        for number in range(manifest.shards):
            shard, index = _paths(folder, number)
            try:
                rows = read_npy(index, _ADVICE)
                content = map_npy(shard, _ADVICE)
            except FileNotFoundError as error:
                raise ClspError(
                    f"The packed images in {folder} are incomplete ({error.filename} is "
                    f"missing); give the command that packed them again."
                ) from error
            most = min(manifest.shard, manifest.images - number * manifest.shard)
            if rows.shape != (most, len(COLUMNS)) or max(1, rows[:, 0].sum()) != len(content):
                raise ClspError(f"{shard} and its index do not belong together; {_ADVICE}")
            starts.append(np.cumsum(rows[:, 0]) - rows[:, 0])
            parts.append(rows)
            self._shards.append(content)
        self.index, self._starts = np.concatenate(parts), np.concatenate(starts)
        self._checked = np.zeros(len(self.index), bool)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def rows(self) -> np.ndarray:
        """The rows that hold an image, int64, without those that were left out."""
        return np.flatnonzero(self.index[:, 0] > 0)

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Return height and width of images in pixels: int64 (B, 2)."""
        return self.index[rows, 1:3]

    def pixels(self, row: int) -> torch.Tensor:
        """Decode an image: uint8 (H, W, 3), of its own size.

        Raises:
            ClspError: it changed on the disk, which is noticed when this process first reads it.
        """
        content, (height, width) = self[row], self.index[row, 1:3].tolist()
        name = f"Image {row} in {self.folder}"
        if not self._checked[row]:
            if _digest(content.data) != self.index[row, 3:].tolist():
                raise changed(name)
            self._checked[row] = True
        return decode(content, self.packing.encoding, height, width, name)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the encoded image of a row: uint8 (length,), mapped and read-only."""
        start = self._starts[row]
        return self._shards[row // self._shard][start : start + self.index[row, 0]]

    @property
    def digests(self) -> np.ndarray:
        """BLAKE2b of each image's encoded form: uint8 (N, 16)."""
        return self.index[:, 3:].astype("<i8").view(np.uint8)


def _manifest(folder: Path) -> _Manifest:
    what = "the manifest of packed images"
    content = read_json(folder / _MANIFEST, dict[str, Any], what, _ADVICE)
    if content.get("format") != _FORMAT:
        raise ClspError(f"{folder / _MANIFEST} is not {what} of format {_FORMAT}; {_ADVICE}")
    checked(content, _Manifest, f"{folder / _MANIFEST} is not {what}: it has", _ADVICE)
    manifest = _Manifest(**content)
    if min(manifest.images, manifest.shard) < 1:
        raise ClspError(f"{folder / _MANIFEST} names no images or shards; {_ADVICE}")
    return manifest


def open_pack(
    root: Path, files: Sequence[ImageFile], packing: Packing, cache: Path, why: str,
    shown: str | None = None,
) -> Pack:  # fmt: skip
    """Open the pack of some image files; it is made, or completed, if it is not there yet.

    Of several processes one packs and the others wait.

    Args:
        root: the folder that the files are in; only their names below it identify them.
        files: the images, in the order of the pack.
        packing: how they are packed.
        cache: folder of packs.
        why: reason for it, for the line that says what is packed where.
        shown: what messages call the images in place of ``root``.

    Raises:
        ClspError: an image is damaged, of more than 8 bits per channel or too large; there is no
            room or no permission to write; the pack is damaged or of other images.
    """
    source = source_digest(root, files, packing)
    folder = _folder(root, source, cache)
    manifest = _Manifest(
        _FORMAT, len(files), packing.side, packing.encoding, QUALITY, packing.skip_damaged,
        _SHARD, source, shown or str(root.absolute()),
    )  # fmt: skip
    _check_same(folder, manifest)
    if not _is_whole(folder, manifest):
        with alone(folder, f"packs {shown or root} into {folder}"):
            _fill(folder, manifest, files, packing, shown or str(root), why)
    pack = Pack(folder)
    tell_left_out(files, np.flatnonzero(pack.index[:, 0] == 0).tolist())
    return pack


def is_there(root: Path, files: Sequence[ImageFile], packing: Packing, cache: Path) -> bool:
    """Whether the pack of some image files is there, and whole; see :func:`open_pack`."""
    folder = _folder(root, source_digest(root, files, packing), cache)
    if not (folder / _MANIFEST).exists():
        return False
    return _is_whole(folder, _manifest(folder))


def _is_whole(folder: Path, manifest: _Manifest) -> bool:
    return (folder / _MANIFEST).exists() and all(map(_is_written, _all_paths(folder, manifest)))


def _is_written(paths: tuple[Path, Path]) -> bool:
    """Whether a shard is there, and its index."""
    return all(path.exists() for path in paths)


def _folder(root: Path, source: str, cache: Path) -> Path:
    return cache / named_after(root, source[:16])


def named_after(root: Path, digest: str) -> str:
    """Return the name of a folder of what is kept of the images in another one."""
    return f"{root.resolve().name or 'images'}-{digest}"


def _check_same(folder: Path, manifest: _Manifest) -> None:
    """Refuse a folder that holds a pack of other images."""
    if (folder / _MANIFEST).exists():
        there = _manifest(folder)
        if (there.source, there.images) != (manifest.source, manifest.images):
            raise ClspError(
                f"{folder} holds {there.images} packed images of {there.folder}, not those of "
                f"{manifest.folder}, although it is named after them; delete it, or set "
                f"data.cache=DIR."
            )


def _all_paths(folder: Path, manifest: _Manifest) -> Iterator[tuple[Path, Path]]:
    return (_paths(folder, number) for number in range(manifest.shards))


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Make a folder, and hold its lock for a block that writes into it.

    Args:
        folder: the folder.
        doing: what another process does that holds the lock, for the line that says so.

    Raises:
        ClspError: there is no room or no permission to write.
    """
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as free:
            if not free:
                print(f"Waiting for another process that {doing}.")
        with locked(folder, wait=True):
            yield


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into a sentence that names the setting."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        raise ClspError(
            f"The packed images cannot be written to {folder} ({error.strerror}); what is there "
            f"is whole: make room or set data.cache=DIR, and give the same command again."
        ) from error


def _fill(
    folder: Path, manifest: _Manifest, files: Sequence[ImageFile], packing: Packing, shown: str,
    why: str,
) -> None:  # fmt: skip
    """Write the shards that are missing, under the folder's lock."""
    _check_same(folder, manifest)
    for left in unfinished(folder):
        left.unlink(missing_ok=True)
    missing = [
        number for number, paths in enumerate(_all_paths(folder, manifest))
        if not _is_written(paths)
    ]  # fmt: skip
    text = json.dumps(asdict(manifest), indent=2)
    if not (folder / _MANIFEST).exists():
        write_whole(folder / _MANIFEST, lambda file: file.write(text.encode()))
    if not missing:
        return
    print(f"Packing {len(files)} images of {shown} into {folder} ({packing.told}; {why}).")
    done = sum(len(files[n * _SHARD : (n + 1) * _SHARD]) for n in range(manifest.shards)) - sum(
        len(files[n * _SHARD : (n + 1) * _SHARD]) for n in missing
    )
    with (
        ThreadPoolExecutor(cores()) as pool,
        Progress(total=len(files), initial=done, desc="packing", unit="image") as bar,
    ):
        for number in missing:
            part = files[number * _SHARD : (number + 1) * _SHARD]
            _write_shard(_paths(folder, number), part, packing, pool, bar.update)


def _write_shard(
    paths: tuple[Path, Path],
    files: Sequence[ImageFile],
    packing: Packing,
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
) -> None:
    """Write a shard and its index."""
    rows: list[list[int]] = []

    def write(file: BinaryIO) -> None:
        # the length of the array is known at the end: numpy leaves room for it in the header
        _header(file, 1)
        length = 0
        for found in ahead(files, lambda file: _encoded(file, packing), pool):
            if isinstance(found, ClspError):
                if isinstance(found, NotReadNow) or not packing.skip_damaged:
                    raise or_left_out(found) from found
                rows.append([0] * len(COLUMNS))
            else:
                file.write(found[0])
                length += len(found[0])
                rows.append(found[1])
            done(1)
        if length == 0:  # no array may be empty
            file.write(b"\0")
            length = 1
        file.seek(0)
        _header(file, length)

    shard, index = paths
    write_whole(shard, write)
    table = np.array(rows, np.int64)
    write_whole(index, lambda file: np.save(file, table))


def ahead(
    files: Sequence[ImageFile], work: Callable[[ImageFile], R], pool: ThreadPoolExecutor
) -> Iterator[R]:
    """Yield what some work gives for each image; threads are not far ahead of what is taken."""
    step = 64 * cores()  # raw images may be large
    begun: deque[Future[R]] = deque()
    waiting = iter(files)
    try:
        for _ in files:
            for file in islice(waiting, step + 1 - len(begun)):
                begun.append(pool.submit(work, file))
            yield begun.popleft().result()
    finally:
        for left in begun:
            left.cancel()


def _header(file: BinaryIO, length: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
