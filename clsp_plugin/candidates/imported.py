"""Candidates that another generator drew, made a store: of a folder of images or of an array."""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from clsp_plugin.candidates.extra import read_images
from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.candidates.writer import StoreWriter
from clsp_plugin.data.folders import image_files, open_image
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import image_names
from clsp_plugin.errors import ClspError

__all__ = ["check_source", "import_drawn"]

_NUMBERED = re.compile(r"(.+?)[_-](\d+)")


def import_drawn(
    source: str | Path,
    array: ImageArray,
    data: Mapping[str, Any],
    out: str | Path,
    num_candidates: int | None = None,
    name: str | None = None,
    *,
    encoding: str = "raw",
    quality: int = 90,
) -> str:
    """Make a store of candidates from elsewhere; stopped, it continues.

    What the store holds already is compared with the source.

    Args:
        source: a ``.npy`` or ``.npz`` of uint8 (N, K, H, W, 3) or (N, H, W, 3), in the order of the
            images; or a folder of images, whose names say which image they belong to: for
            ``cat/7.png`` of the data set ``cat/7.png``, or ``cat/7_0.png``, ``cat/7_1.png``, .., or
            all images in ``cat/7``; see ``data.images.image_names``. Images without names go by
            their number: ``7.png``, ``00007_0.png``, ..
        array: the training images.
        data: the configuration's ``data`` block that they were loaded by.
        out: directory of the store.
        num_candidates: K, to take only the first of each image; all by default.
        name: what the manifest calls the generator; by default the source's name.
        encoding: how they are stored, ``raw`` or one of ``encoded.ENCODINGS``.
        quality: quality of the encoding.

    Returns:
        What was done, in one line.

    Raises:
        ClspError: the candidates are not as many for each image, belong to no image or to several,
            are of another size, or ``out`` holds something else.
    """
    source = Path(source)
    check_source(source)
    drawn: _Arrays | _Files
    drawn = _Files(source, array, image_names(data)) if source.is_dir() else _Arrays(source, array)
    number = drawn.number if num_candidates is None else num_candidates
    if not 1 <= number <= drawn.number:
        raise ClspError(
            f"--num-candidates {num_candidates} is not between 1 and the {drawn.number} candidates "
            f"of an image that {source} has."
        )
    made_by = f"imported: {name or source.stem}"
    manifest = StoreManifest.unsampled(array, number, made_by).encoded_with(encoding, quality)
    writer = StoreWriter(out, manifest, array.digests)
    with writer.lock():
        # an array or a folder of the same name may hold other candidates than last time
        for shard in range(manifest.num_shards):
            have = writer.present(shard)
            if have:
                held = drawn.read(*manifest.shard_range(shard), 0, have)
                writer.check_holds(shard, held)
        writer.extend()
        for shard, start, stop in writer.missing():
            writer.write(shard, drawn.read(start, stop, writer.present(shard), number))
    return f"Candidates: {out} ({number} for each of {len(array):,} images of {array.name})"


def check_source(source: str | Path) -> None:
    """Raise ClspError unless a path is a folder, or a ``.npy`` or ``.npz`` file."""
    path = Path(source)
    if not path.is_dir() and not (path.suffix in (".npy", ".npz") and path.is_file()):
        raise ClspError(
            f"There are no candidates at {source}; name a folder of images, a .npy or .npz array, "
            f"or what `clsp export STORE` wrote."
        )


class _Arrays:
    """Candidates in one array."""

    def __init__(self, path: Path, array: ImageArray):
        images = read_images(path, "name another array.")
        self.images = images if images.ndim == 5 else images[:, None]
        found, wanted = self.images.shape, (len(array), *array.size)
        if (found[0], *found[2:4]) != wanted:
            raise ClspError(
                f"{path} holds candidates for {found[0]} images of {found[2]}x{found[3]} pixels, "
                f"and {array.name} has {wanted[0]} of {wanted[1]}x{wanted[2]}."
            )
        self.number = found[1]

    def read(self, start: int, stop: int, first: int, last: int) -> np.ndarray:
        return np.ascontiguousarray(self.images[start:stop, first:last])


class _Files:
    """Candidates in files, by the names of their anchors."""

    def __init__(self, folder: Path, array: ImageArray, names: Sequence[str]):
        self.size = array.size
        files: dict[str, Path] = {}
        for file in map(Path, image_files(folder)):
            stem = file.relative_to(folder).with_suffix("").as_posix()
            if stem in files:
                raise ClspError(
                    f"{files[stem]} and {file} have one name; keep one of them, or number them."
                )
            files[stem] = file
        if not files:
            raise ClspError(f"{folder} holds no images; name the folder of the candidates.")
        numbered = not names
        names = names or [str(index) for index in range(len(array))]
        places = {name: index for index, name in enumerate(names)}
        if len(places) < len(names):
            twice = next(name for index, name in enumerate(names) if places[name] != index)
            raise ClspError(
                f"{array.name} has several images that are called {twice}, and candidates in a "
                f"folder are found by that name; give them as one array in the order of the images."
            )
        self.files: list[list[Path]] = [[] for _ in names]
        for stem, index in _belonging(sorted(files, key=_natural), places, numbered, folder):
            self.files[index].append(files[stem])
        counts = {len(found) for found in self.files}
        if len(counts) > 1 or 0 in counts:
            least = min(range(len(names)), key=lambda index: len(self.files[index]))
            raise ClspError(
                f"{folder} has {len(self.files[least])} candidates for {names[least]} and up to "
                f"{max(counts)} for others; each image needs as many."
            )
        (self.number,) = counts

    def read(self, start: int, stop: int, first: int, last: int) -> np.ndarray:
        files = [file for found in self.files[start:stop] for file in found[first:last]]
        with ThreadPoolExecutor() as pool:
            images = np.stack(list(pool.map(self._open, files)))
        return images.reshape(stop - start, last - first, *self.size, 3)

    def _open(self, file: Path) -> np.ndarray:
        height, width = self.size
        image = open_image(file, height if height == width else None)
        if image.shape[:2] != self.size:
            raise ClspError(
                f"{file} has {image.shape[0]}x{image.shape[1]} pixels, the images {height}x{width}."
            )
        return image


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts the numbers in names by size."""
    parts = re.split(r"(\d+)", text)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _belonging(
    stems: Sequence[str], places: Mapping[str, int], numbered: bool, folder: Path
) -> Iterator[tuple[str, int]]:
    """Yield names of candidates, each with the index of the image that it belongs to."""
    for stem in stems:
        above, _, last = stem.rpartition("/")
        begin = _NUMBERED.fullmatch(last)
        with_number = f"{above}/{begin[1]}".lstrip("/") if begin else None
        for name in filter(None, (stem, with_number, above)):
            name = str(int(name)) if numbered and name.isdigit() else name
            if name in places:
                yield stem, places[name]
                break
        else:
            raise ClspError(
                f"{folder / stem} belongs to no image of the data set, such as "
                f"{next(iter(places))}; name candidates like the images that they belong to."
            )
