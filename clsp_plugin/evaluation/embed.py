"""``clsp embed``: features in an encoder, to condition a denoiser on or for other programs.

RCG samples an image given its representation in a pre-trained self-supervised encoder (Li, Katabi
and He, "Return of Unconditional Generation", NeurIPS 2024). Where it generates positives (Zeng et
al., ECCV 2024, appendix), the condition is the anchor's own representation, or the cluster that the
anchor belongs to.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from clsp_plugin.candidates.condition import save_condition
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.frozen import Encoder
from clsp_plugin.system.files import write_whole

__all__ = ["cluster", "embed", "embed_table"]


def cluster(features: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Cluster features by k-means on the unit sphere: float (N, D) to int64 (N,), clusters from 0.

    Raises:
        ClspError: fewer images than clusters, fewer than 2 clusters, or a seed beyond 32 bits.
    """
    if not 2 <= number <= len(features):
        raise ClspError(f"--clusters {number} is not 2 to {len(features)}, the number of images.")
    if not 0 <= seed < 2**32:
        raise ClspError(f"--seed {seed} is not 0 to {2**32 - 1}.")
    found = KMeans(number, n_init=4, random_state=seed).fit(F.normalize(features, dim=1).numpy())
    return torch.from_numpy(found.labels_).long()


def embed(
    encoder: str | Path,
    array: ImageArray,
    out: str | Path,
    clusters: int | None = None,
    seed: int = 0,
    data: Mapping[str, Any] | None = None,
) -> str:
    """Write the features of images, or their clusters, to a file to condition a denoiser on.

    Args:
        encoder: a checkpoint, the directory of a run, or an encoder from elsewhere, as the
            evaluation takes them.
        array: the images.
        out: path of the file to write. Features are float32 (N, D), each image's brought to mean 0
            and variance 1 over its D as in RCG; clusters are int64 (N,).
        clusters: number of clusters; None writes features.
        seed: seed of k-means.
        data: the configuration's block of the images, which the authors' checkpoints need.

    Returns:
        What was done, in one line.

    Raises:
        ClspError: the checkpoint cannot be read, or ``out`` exists.
    """
    if Path(out).exists():
        raise ClspError(f"{out} already exists; choose another --out or delete it.")
    network = Encoder(encoder, data)
    features = network(array.images.permute(0, 3, 1, 2))
    condition = F.layer_norm(features, features.shape[1:])
    what = f"{features.shape[1]} features"
    if clusters is not None:
        condition = cluster(features, clusters, seed)
        what = f"{clusters} clusters"
    save_condition(out, condition, array)
    return f"Condition: {out} ({what} of {len(array)} images, {network.name})"


def embed_table(
    encoder: str | Path,
    array: ImageArray,
    out: str | Path,
    data: Mapping[str, Any] | None = None,
) -> str:
    """Write the features of images as they are, with the labels, for scikit-learn or pandas.

    Args:
        encoder: see :func:`embed`.
        array: the images.
        out: path of the file to write, by its suffix ``.npz`` or ``.parquet``. An ``.npz`` has
            ``features``, float32 (N, D); ``targets``, int64 (N,), -1 where there is no label; and
            ``classes``, the names of the classes. A Parquet file has a row per image: ``target``,
            ``class``, and ``f0``, ``f1``, .. of the features.
        data: see :func:`embed`.

    Returns:
        What was done, in one line.

    Raises:
        ClspError: the encoder cannot be loaded, ``out`` exists or has another suffix, or what
            writes Parquet is not installed.
    """
    out = Path(out)
    if out.exists():
        raise ClspError(f"{out} already exists; choose another --out or delete it.")
    if out.suffix not in _TABLES:
        raise ClspError(f"--out {out} must end in {' or '.join(_TABLES)}.")
    write = _TABLES[out.suffix]()  # refuses what is not installed before anything is computed
    network = Encoder(encoder, data)
    features = network(array.images.permute(0, 3, 1, 2)).numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda file: write(file, features, array))
    return f"Features: {out} ({len(array):,} images, {features.shape[1]} of each, {network.name})"


_Write = Callable[[BinaryIO, np.ndarray, ImageArray], object]  # of features (N, D) of images


def _npz() -> _Write:
    def write(file: BinaryIO, features: np.ndarray, array: ImageArray) -> None:
        classes = np.array(array.classes)
        np.savez(file, features=features, targets=array.targets.numpy(), classes=classes)

    return write


def _parquet() -> _Write:
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError:
        raise ClspError(
            "A Parquet file needs pandas and pyarrow: `pip install 'clsp-plugin[pandas]'`; or give "
            "--out FILE.npz."
        ) from None

    def write(file: BinaryIO, features: np.ndarray, array: ImageArray) -> None:
        targets = array.targets.numpy()
        names = [array.classes[n] if 0 <= n < len(array.classes) else None for n in targets]
        labels = pandas.DataFrame({"target": targets, "class": names})
        columns = [f"f{number}" for number in range(features.shape[1])]
        frame = pandas.concat([labels, pandas.DataFrame(features, columns=columns)], axis=1)
        frame.to_parquet(file, index=False)

    return write


_TABLES: dict[str, Callable[[], _Write]] = {".npz": _npz, ".parquet": _parquet}
