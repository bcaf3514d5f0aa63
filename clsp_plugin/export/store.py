"""A candidate store as a data set in the form of the Hugging Face hub, and back.

The candidates are PNG images in Parquet files, one a shard, with a row per anchor. Beside them lie
the store's manifest and digests, so that what comes back is the same store, to the byte.
"""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clsp_plugin import __version__
from clsp_plugin.candidates.encoded import threads
from clsp_plugin.candidates.manifest import MANIFEST, StoreManifest
from clsp_plugin.candidates.store import DIGESTS, CandidateStore
from clsp_plugin.candidates.writer import StoreWriter
from clsp_plugin.data.folders import reading
from clsp_plugin.errors import ClspError, first_line
from clsp_plugin.export.folder import made_whole
from clsp_plugin.system.arrays import read_npy
from clsp_plugin.system.digests import digest_path
from clsp_plugin.system.progress import Progress

__all__ = ["export_store", "import_store", "is_exported_store"]

_STORE = "store"  # folder of what belongs to the store besides the images
_COLUMNS = ("index", "candidates")


def _need_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ClspError(
            "A store is exported and imported by Hugging Face's datasets: `pip install "
            "'clsp-plugin[datasets]'`."
        ) from None
    return datasets


@contextmanager
def _without_bar(datasets: Any) -> Iterator[None]:
    """Keep datasets from drawing a bar of its own for every file."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _file(folder: Path, shard: int, shards: int) -> Path:
    return folder / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet"


def export_store(path: str | Path, out: str | Path) -> Path:
    """Write a complete candidate store as a data set that ``datasets.load_dataset`` reads.

    Args:
        path: directory of the store.
        out: the folder to write, which appears whole or not at all.

    Returns:
        The folder: ``data/*.parquet`` with ``index``, the anchor's number, and ``candidates``, a
        list of K images, without loss; ``README.md``, the card; and ``store``, from which
        :func:`import_store` makes the store again.

    Raises:
        ClspError: the store is incomplete or changed on disk, is the authors' array, ``out`` is
            there already, or datasets is not installed.
    """
    datasets = _need_datasets()
    store = CandidateStore(path)
    manifest = store.need_manifest()
    store.verify()
    features = datasets.Features(
        {"index": datasets.Value("int64"), "candidates": datasets.Sequence(datasets.Image())}
    )
    with made_whole(out) as made:
        (made / "data").mkdir()
        for shard in Progress(range(manifest.num_shards), desc="export", unit="shard"):
            first, last = manifest.shard_range(shard)
            images = _encoded(store, shard, range(first, last))
            content = dict(zip(_COLUMNS, (list(range(first, last)), images), strict=True))
            file = _file(made, shard, manifest.num_shards)
            with _without_bar(datasets):
                datasets.Dataset.from_dict(content, features=features).to_parquet(file)
        _copy_notes(Path(path), made / _STORE, manifest)
        (made / "README.md").write_text(_card(manifest), encoding="utf-8")
    return Path(out)


def _encoded(store: CandidateStore, shard: int, indexes: range) -> list[list[dict[str, Any]]]:
    """Return the candidates of n images as n lists of K, as ``datasets`` holds images.

    Those of a store of pixels become PNG, encoded ones are taken as they are.
    """

    def encode(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    if store.encoded:
        found = store.encoded_shard(shard)
    else:
        images = store.images(indexes)
        found = list(threads().map(encode, images.reshape(-1, *images.shape[2:])))
    number = len(found) // len(indexes)
    flat = [{"bytes": image, "path": None} for image in found]
    return [flat[start : start + number] for start in range(0, len(flat), number)]


def _copy_notes(store: Path, to: Path, manifest: StoreManifest) -> None:
    to.mkdir()
    names = [MANIFEST, DIGESTS]
    names += [digest.name for digest in _digests(store, manifest)]
    for name in names:
        if (store / name).is_file():  # stores of earlier versions have no digests
            shutil.copyfile(store / name, to / name)


def _digests(folder: Path, manifest: StoreManifest) -> Iterator[Path]:
    for shard in range(manifest.num_shards):
        yield digest_path(folder / f"shard-{shard:05d}.npy", manifest.num_candidates)


def _card(manifest: StoreManifest) -> str:
    """Return the card of the data set."""
    front = (
        "---\ntags:\n- synthetic\n- self-supervised-learning\nconfigs:\n- config_name: default\n"
        "  data_files: data/*.parquet\n---"
    )
    settings = {
        key: value
        for key, value in vars(manifest).items()
        if value is not None and key not in ("num_images", "num_candidates", "height", "width")
    }
    listed = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
    return (
        f"{front}\n\n# {manifest.num_candidates} synthetic positives for each of "
        f"{manifest.num_images:,} images\n\nCandidates of {manifest.height}x{manifest.width} "
        f"pixels for the images of {manifest.dataset}, in their order: row `index` is of image "
        f"`index`. The images themselves are not in here. Written by clsp-plugin {__version__}.\n\n"
        f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("DIR", '
        f'split="train")\nrows[0]["candidates"][0]  # a PIL image\n```\n\nAs a store for '
        f"pre-training: `clsp import-candidates DIR --out STORE`.\n\n## How they were made\n\n"
        f"| setting | value |\n|---|---|\n{listed}\n"
    )


def is_exported_store(folder: str | Path) -> bool:
    """Whether :func:`export_store` wrote a folder."""
    return (Path(folder) / _STORE / MANIFEST).is_file()


def import_store(folder: str | Path, out: str | Path) -> str:
    """Make a store of what :func:`export_store` wrote; stopped, it continues.

    Args:
        folder: the folder, or a copy of it.
        out: directory of the store.

    Returns:
        What was done, in one line.

    Raises:
        ClspError: the folder is not of a store, lacks a file, or holds other images than its
            digests say; or ``out`` holds something else.
    """
    folder = Path(folder)
    _need_datasets()
    if not is_exported_store(folder):
        raise ClspError(f"{folder} is not what `clsp export STORE` wrote; name such a folder.")
    manifest = StoreManifest.load(folder / _STORE)
    own = folder / _STORE / DIGESTS
    advice = "get the folder again."
    writer = StoreWriter(out, manifest, read_npy(own, advice) if own.is_file() else None)
    with writer.lock():
        for shard, first, last in Progress(writer.missing(), desc="import", unit="shard"):
            file = _file(folder, shard, manifest.num_shards)
            if not file.is_file():
                raise ClspError(f"{file} is missing; {advice}")
            rows = _rows(file, advice)
            images = _decoded(rows, file, manifest, range(first, last))
            if manifest.encoding is None:
                writer.write(shard, images)
            else:
                encoded = (image["bytes"] for row in rows["candidates"] for image in row)
                writer.write_encoded(shard, list(encoded))
    for digest in _digests(folder / _STORE, manifest):
        beside = writer.path / digest.name
        if digest.is_file() and digest.read_bytes() != beside.read_bytes():
            raise ClspError(
                f"{folder} holds other candidates than its digests say ({digest.name}); {advice}"
            )
    return (
        f"Candidates: {out} ({manifest.num_candidates} for each of {manifest.num_images:,} images "
        f"of {manifest.dataset}, from {folder})"
    )


def _rows(file: Path, advice: str) -> dict[str, list[Any]]:
    """Read the columns of a Parquet file."""
    from pyarrow import parquet

    try:
        return parquet.read_table(file).to_pydict()
    except Exception as error:  # of many types, on a damaged file
        raise ClspError(f"{file} cannot be read ({first_line(error)}); {advice}") from error


def _decoded(
    rows: dict[str, list[Any]], file: Path, manifest: StoreManifest, indexes: range
) -> np.ndarray:
    """Decode the rows of one shard: uint8 (n, K, H, W, 3)."""
    if not {*_COLUMNS} <= rows.keys() or rows["index"] != list(indexes):
        raise ClspError(
            f"{file} does not hold the rows {indexes.start} to {indexes.stop - 1} of a store; get "
            f"the folder again."
        )

    def decode(image: dict[str, Any]) -> np.ndarray:
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            return np.asarray(opened.convert("RGB"))

    def read() -> np.ndarray:
        flat = (image for row in rows["candidates"] for image in row)
        return np.stack(list(threads().map(decode, flat)))

    images = reading(str(file), read)
    shape = (len(indexes), manifest.num_candidates, manifest.height, manifest.width, 3)
    if images.size != np.prod(shape) or images.shape[1:] != shape[2:]:
        raise ClspError(
            f"{file} holds {len(images)} images of {images.shape[1:]}, its manifest says {shape}."
        )
    return images.reshape(shape)
