"""WebDataset's tar files: members of one name, but for the ending, are an image and its label.

They are read with Python's tarfile and not with the webdataset package, which streams: images are
read here by their places, by many threads, and again where a packing was killed. Nothing is taken
out of an archive to a file, so the names of its members may be anything.
"""

import bisect
import hashlib
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from clsp_plugin.data.encoded import Encoded
from clsp_plugin.data.folders import EXTENSIONS
from clsp_plugin.data.packed.choosing import cache_of
from clsp_plugin.data.sources.source import (
    LABELS,
    Items,
    Source,
    numbered,
    without_labels,
)
from clsp_plugin.errors import ClspError, short
from clsp_plugin.system.files import check_regular, write_whole
from clsp_plugin.system.json_files import read_json
from clsp_plugin.system.progress import Progress

__all__ = ["SUFFIX", "expanded", "from_tars"]

SUFFIX = ".tar"
_FORMAT = 1  # of what is kept of an archive
_IMAGES = frozenset(suffix[1:] for suffix in EXTENSIONS)
_TEXTS = ("cls", "json", "txt")  # what labels are looked for in, in this order
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)  # webdataset's key and ending
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)
_BLOCK = 512  # bytes, of which a tar file is made
_MOST = 2**20  # bytes of a label's member


@dataclass(frozen=True)
class _Listing:
    """The images of one archive: the names of their members, where they are, and their labels."""

    members: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Archive:
    path: Path
    state: bytes
    listing: _Listing


class _Member(Encoded):
    __slots__ = ("archive", "row")

    def __init__(self, archive: _Archive, row: int):
        self.archive, self.row = archive, row

    def __str__(self) -> str:
        return f"{self.archive.listing.members[self.row]} in {self.archive.path}"

    def read(self) -> bytes:
        with open(self.archive.path, "rb") as file:
            file.seek(self.archive.listing.starts[self.row])
            return file.read(self.archive.listing.sizes[self.row])

    @property
    def state(self) -> bytes:
        of = self.archive.listing
        member = of.members[self.row].encode(errors="surrogateescape")
        return b"%s%s\0%d\n" % (self.archive.state, member, of.starts[self.row])


class _Members(Items):
    def __init__(self, archives: Sequence[_Archive]):
        self.archives = archives
        counts = (len(archive.listing.members) for archive in archives)
        self.ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def item(self, index: int) -> _Member:
        number = bisect.bisect_right(self.ends, index)
        before = self.ends[number - 1] if number else 0
        return _Member(self.archives[number], index - before)


def from_tars(shown: str, paths: Sequence[Path], data: Mapping[str, Any]) -> Source:
    """Return the images in tar files, in their order.

    Where the images are is kept in the cache, so that an archive is read through only once.

    Args:
        shown: what messages call them.
        paths: the files, in their order.
        data: the configuration's ``data`` block: ``image_column``, an ending such as ``jpg``, where
            samples have several images; ``label_column``, an ending, or a key in the ``json``;
            ``no_labels``; ``cache``.

    Raises:
        ClspError: a file is missing, damaged, compressed or no tar file; a sample has several
            images, or no label; ...
    """
    found = [_found(path, data) for path in paths]
    new = {kept for _, kept in found if not kept.exists()}
    bar = Progress(total=len(new), desc=f"listing {shown}", unit="archive", disable=len(new) < 2)
    archives = []
    with bar:
        for path, (state, kept) in zip(paths, found, strict=True):
            archives.append(_Archive(path, state, _listing(path, kept, data)))
            bar.update(kept in new)
    members = _Members(archives)
    if not len(members):
        raise ClspError(
            f"{shown} holds no images; a sample's image is found by what is behind the first dot "
            f"of its name, such as .jpg."
        )
    labels = [label for archive in archives for label in archive.listing.labels]
    if data.get("no_labels", False):
        targets, classes = without_labels(len(members))
    else:
        targets, classes = numbered(labels, lambda row: str(members[row]))
        if data.get("label_column") is None:
            _check_captions(classes, len(members), shown)
    return Source(shown, paths[0].parent, members, targets, classes, lambda: _names(archives))


def _check_captions(classes: Sequence[str], images: int, shown: str) -> None:
    """Refuse to take sentences about images for their classes."""
    if len(classes) == images and any(" " in name for name in classes):
        raise ClspError(
            f"Each image of {shown} has a label of its own, such as {short(classes[0])!r}, so they "
            f"are not names of classes; set data.no_labels=True, or data.label_column."
        )


def _names(archives: Sequence[_Archive]) -> list[str]:
    """Return the samples' keys, with the archive's name before them if they are not unique."""
    keys = [_key(member) for archive in archives for member in archive.listing.members]
    if len(set(keys)) == len(keys):
        return keys
    stems = (archive.path.stem for archive in archives for _ in archive.listing.members)
    return [f"{stem}/{key}" for stem, key in zip(stems, keys, strict=True)]


def _key(member: str) -> str:
    found = _MEMBER.fullmatch(member)
    assert found  # only such members are listed
    return found[1]


def expanded(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern stands for: ``{000..010}`` counts, ``{a,b}`` are two names."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    ends = _RANGE.fullmatch(found[1])
    parts: Iterator[str] = iter(found[1].split(","))
    if ends:
        first, last = int(ends[1]), int(ends[2])
        padded = any(len(end) > 1 and end.startswith("0") for end in ends.groups())
        width = max(map(len, ends.groups())) if padded else 0
        step = 1 if first <= last else -1
        parts = (str(number).zfill(width) for number in range(first, last + step, step))
    for part in parts:
        for rest in expanded(pattern[found.end() :]):
            yield f"{pattern[: found.start()]}{part}{rest}"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a refusal of the system into a sentence."""
    try:
        yield
    except OSError as error:
        raise ClspError(
            f"{path} cannot be read ({error.strerror or error}); correct data.train_path and "
            f"data.val_path, or put the file there."
        ) from error


def _found(path: Path, data: Mapping[str, Any]) -> tuple[bytes, Path]:
    """Return an archive's name, size and time of change, and where its listing is kept."""
    with _reading(path):
        check_regular(path)
        status = os.stat(path)
    state = b"%s\0%d\0%d\0" % (os.fsencode(path.name), status.st_size, status.st_mtime_ns)
    how = [_FORMAT, *(data.get(key) for key in ("image_column", "label_column", "no_labels"))]
    # with its folder: shards of two splits may have one name, size and time
    where = os.fsencode(path.resolve())
    digest = hashlib.sha256(state + where + json.dumps(how).encode()).hexdigest()
    return state, cache_of(data) / "listings" / f"{path.stem}-{digest[:16]}.json"


def _listing(path: Path, kept: Path, data: Mapping[str, Any]) -> _Listing:
    """Return the images of an archive, listed now or before."""
    with suppress(ClspError, OSError):
        return read_json(kept, _Listing, "a listing", "delete it.")
    with _reading(path), open(path, "rb") as file:
        listing = _listed(file, path, data)
    with suppress(OSError):  # without it all is read through again
        write_whole(kept, lambda out: out.write(json.dumps(asdict(listing)).encode()))
    return listing


def _listed(file: BinaryIO, path: Path, data: Mapping[str, Any]) -> _Listing:
    listing = _Listing()
    for key, members in itertools.groupby(_members(file, path), lambda found: found[0]):
        sample: dict[str, tarfile.TarInfo] = {}
        for _, ending, member in members:
            if ending in sample:
                raise ClspError(f"{path} holds {member.name} twice; make it anew.")
            sample[ending] = member
        image = _image(sample, data.get("image_column"), path)
        if image is None:
            continue
        label = "" if data.get("no_labels") else _label(file, sample, key, data, path)
        listing.members.append(image.name)
        listing.starts.append(image.offset_data)
        listing.sizes.append(image.size)
        listing.labels.append(label)
    return listing


def _members(file: BinaryIO, path: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, ending and place of the members that are files; check that all is there."""
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps all that it read
                if member.offset_data + member.size > size:
                    raise _cut(path, f"{member.name} goes on after its end")
                found = _MEMBER.fullmatch(member.name)
                if found and member.isreg():
                    yield found[1], found[2].lower(), member
            stopped = archive.offset
    except tarfile.TarError as error:
        compressed = _is_compressed(file)
        why = "it is compressed" if compressed else str(error)
        raise ClspError(
            f"{path} is not a tar file ({why}); "
            + ("unpack it with gunzip or the like first." if compressed else "copy it again.")
        ) from error
    file.seek(stopped)  # tarfile ends without a word where a header is damaged
    if file.read(_BLOCK).strip(b"\0"):
        raise _cut(path, f"at byte {stopped} there is no header of a member")


def _cut(path: Path, why: str) -> ClspError:
    return ClspError(f"{path} is damaged or was cut off ({why}); copy it again.")


def _is_compressed(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))


def _image(
    sample: Mapping[str, tarfile.TarInfo], asked: str | None, path: Path
) -> tarfile.TarInfo | None:
    """Return the member that is a sample's image."""
    if asked is not None:
        return sample.get(asked.lower())
    images = [ending for ending in sample if ending in _IMAGES]
    if len(images) > 1:
        raise ClspError(
            f"{path} has {' and '.join(sample[ending].name for ending in images)} for one sample; "
            f"set data.image_column to one of {', '.join(images)}."
        )
    return sample[images[0]] if images else None


def _label(
    file: BinaryIO, sample: Mapping[str, tarfile.TarInfo], key: str, data: Mapping[str, Any],
    path: Path,
) -> str:  # fmt: skip
    """Return the label of a sample, a number or a name."""
    asked = data.get("label_column")
    if asked is not None and asked in sample and asked != "json":
        return _read(file, sample[asked], path)
    for ending in _TEXTS if asked is None else ("json",):
        if ending not in sample:
            continue
        text = _read(file, sample[ending], path)
        if ending != "json":
            return text
        label = _in_json(text, asked, f"{sample[ending].name} in {path}")
        if label is not None:
            return label
    what = f"{', '.join(_TEXTS)}" if asked is None else f"data.label_column={asked}"
    raise ClspError(
        f"{key} in {path} has no label ({what}), but {', '.join(sample)}; set data.label_column to "
        f"an ending or to a key of its json, or data.no_labels=True."
    )


def _in_json(text: str, asked: str | None, shown: str) -> str | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClspError(f"{shown} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        content = {"label": content}
    names = LABELS if asked is None else (asked,)
    found = next((content[name] for name in names if content.get(name) is not None), None)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, (int, str)):
        raise ClspError(
            f"{shown} has the label {short(found)}; a label is a number or the name of a class."
        )
    return str(found).strip()


def _read(file: BinaryIO, member: tarfile.TarInfo, path: Path) -> str:
    file.seek(member.offset_data)
    try:
        text = file.read(min(member.size, _MOST)).decode().strip()
    except UnicodeDecodeError as error:
        raise ClspError(f"{member.name} in {path} is not UTF-8 text.") from error
    if not text:
        raise ClspError(f"{member.name} in {path} is empty; a label is a number or a name.")
    return text
