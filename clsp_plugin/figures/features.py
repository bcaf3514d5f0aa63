"""Figures of a checkpoint's features: t-SNE, nearest neighbours, similarity of positive pairs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.frozen import Encoder
from clsp_plugin.evaluation.similarity import pair_similarities
from clsp_plugin.figures.groups import group
from clsp_plugin.figures.picture import Options, Picture
from clsp_plugin.figures.similarity import similarity_figure
from clsp_plugin.figures.style import COLOURS, INK, MARKERS, legend, new_figure, wrapped
from clsp_plugin.figures.tiles import PITCH, draw_tiles, frame
from clsp_plugin.records.belonging import (
    check_store,
    checkpoints_of,
    images_of,
    some_of_each,
    store_of,
)
from clsp_plugin.records.checkpoint import epoch_of
from clsp_plugin.records.recipe import Records
from clsp_plugin.records.record import Record
from clsp_plugin.tables.formats import counted
from clsp_plugin.tables.make import Listing

__all__ = ["neighbours", "similarities", "tsne"]

_PANELS = 6
_CLASSES = 10  # largest number of classes in a plot
_PERPLEXITY = 30
_ANCHORS, _SHOWN = 6, 4  # of the picture of neighbours: rows, and images per block
_WRONG = COLOURS[1]


@dataclass(frozen=True, eq=False)
class _Run:
    """A run with its checkpoints, early ones first."""

    name: str
    path: Path
    record: Record
    checkpoints: list[Path]

    @property
    def label(self) -> str:
        return f"{self.name}, seed {self.record.seed}"


def _runs(records: Records, told: Listing) -> list[_Run]:
    """Return the longest run with a checkpoint, of each method or variant on each data set.

    Of runs of the same length, the one with the smallest seed is taken.

    Raises:
        ClspError: no run has a checkpoint.
    """
    found: dict[tuple[str, str], list[_Run]] = {}
    for one in group(records, told=told):
        for path, record in one.records:
            checkpoints = checkpoints_of(path, record)
            if checkpoints:
                run = _Run(one.name, path, record, checkpoints)
                found.setdefault((one.variant or one.method, one.dataset), []).append(run)
    out = [min(runs, key=lambda run: (-run.record.epochs, run.record.seed))
           for runs in found.values()]  # fmt: skip
    if not out:
        raise ClspError("no checkpoint lies beside the records; keep them where the runs left them")
    return out


def _some(number: int, limit: int) -> torch.Tensor:
    """Return at most ``limit`` indexes, evenly spaced, since images may be sorted by class."""
    rows = np.linspace(0, number - 1, min(limit, number)).round().astype(np.int64)
    return torch.from_numpy(np.unique(rows))


def _side(encoder: Encoder) -> int:
    """Return the size of squares of packed images that an encoder is shown."""
    return encoder.prepare.image_size or 224


def _features(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    """Return features of unit length: uint8 (N, H, W, 3) to (N, D)."""
    return F.normalize(encoder(images.permute(0, 3, 1, 2)), dim=1)


def _epochs(checkpoint: Path) -> str:
    return f"after {counted(epoch_of(checkpoint) + 1, 'epoch')}"


def _panels(
    runs: Sequence[_Run], title: str, make: Callable[[_Run], Any], out: dict[_Run, Any]
) -> Iterator[str]:
    """Put what ``make`` returns for the first runs into ``out``; yield lines for runs not shown.

    Raises:
        ClspError: no run can be shown; the reason of the first.
    """
    why = None
    if len(runs) > _PANELS:
        left = ", ".join(run.name for run in runs[_PANELS:])
        yield f"{title} shows {_PANELS} runs; name the records of others: {left}"
    for run in runs[:_PANELS]:
        try:
            out[run] = make(run)
        except ClspError as error:
            why = why or error
            yield f"{title}, {run.label}: {error}"
    if why is not None and not out:
        raise why


def tsne(records: Records, options: Options) -> Iterator[Picture | str]:
    """Draw a t-SNE of test images in the features of last checkpoints, with a panel per run.

    Args:
        records: pairs of a path and its record.
        options: ``limit`` is the number of images.

    Yields:
        A picture, and lines for what could not be drawn.

    Raises:
        ClspError: there are no checkpoints or images.
    """
    runs = _runs(records, options.told)
    panels: dict[_Run, tuple[np.ndarray, np.ndarray, dict[int, str]]] = {}
    title = "t-SNE of the features"
    yield from _panels(runs, title, lambda run: _embedded(run, options.limit), panels)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(max(6.0, 3.2 * columns + 0.4), 3.3 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[len(panels) :]:
        spare.remove()
    for axis, (run, (places, targets, classes)) in zip(axes, panels.items(), strict=False):
        for number, (label, name) in enumerate(classes.items()):
            axis.scatter(
                *places[targets == label].T, s=14, label=name, color=COLOURS[number % 7],
                marker=MARKERS[number % 6], linewidths=0.3, edgecolors="white",
            )  # fmt: skip
        about = f"{_epochs(run.checkpoints[-1])}, n = {len(targets):,} test images"
        axis.set_title(f"{wrapped(run.label, 3.0)}\n{about}", fontsize=9.5)
        axis.set(xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)", xticks=[], yticks=[])
    note = (
        f"Of each method the longest run. Colour and mark: class. Features of test images, of "
        f"unit length; t-SNE with perplexity {_PERPLEXITY} (less below 91 images), from the "
        f"principal components, seed 0. Distances between groups of points mean nothing."
    )
    legend(figure, axes[: len(panels)], note, columns=5, markerscale=1.6)
    yield Picture("tsne", title, note, figure)


def _embedded(run: _Run, limit: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return places (N, 2), labels (N,), and the names of the classes that are shown."""
    from sklearn.manifold import TSNE

    array = images_of(run.path, run.record, "val").labelled()
    present = np.unique(array.targets.numpy())
    if present[0] < 0:
        raise ClspError("the images have no labels to colour them by")
    shown = present[
        np.linspace(0, len(present) - 1, min(_CLASSES, len(present))).round().astype(int)
    ]
    rows = torch.from_numpy(np.flatnonzero(np.isin(array.targets.numpy(), shown)))
    rows = rows[_some(len(rows), limit)]
    if len(rows) < 5:
        raise ClspError(f"{len(rows)} images are too few for t-SNE; give --limit more")
    encoder = Encoder(run.checkpoints[-1])
    feats = _features(encoder, array.taken(rows, _side(encoder)).images)
    method = TSNE(perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3), init="pca", random_state=0)
    names = {int(label): array.classes[label] for label in shown}
    return method.fit_transform(feats.numpy()), array.targets[rows].numpy(), names


def similarities(records: Records, options: Options) -> Iterator[Picture | str]:
    """Draw the similarity of positive pairs in the features of the runs that drew candidates.

    Args:
        records: pairs of a path and its record.
        options: ``limit`` is the number of anchors.

    Yields:
        A picture, and lines for what could not be drawn.

    Raises:
        ClspError: no run has a checkpoint and its candidates.
    """
    runs = [run for run in _runs(records, options.told) if run.record.candidates is not None]
    if not runs:
        raise ClspError("no run with a checkpoint drew candidates; pre-train a clsp_* method")
    panels: dict[_Run, tuple[str, dict[str, np.ndarray]]] = {}
    title = "Similarity of positive pairs"
    yield from _panels(runs, title, lambda run: _similar(run, options.limit), panels)
    note = "Training images, in the features of each run's own last checkpoint."
    note += " Upright lines: means." * (len(panels) > 1)
    figure = similarity_figure(dict(panels.values()), note)
    yield Picture("similarity", title, note, figure)


def _similar(run: _Run, limit: int) -> tuple[str, dict[str, np.ndarray]]:
    """Return a panel's title, and the similarities of each kind of pair."""
    array, store = _with_candidates(run)
    rows = _some(len(array), limit)
    candidates = torch.from_numpy(store.images(rows.tolist()))
    anchors = array.taken(rows, store.width).images
    encoder = Encoder(run.checkpoints[-1])
    about = f"{_epochs(run.checkpoints[-1])}, n = {len(rows):,} anchors"
    title = f"{wrapped(run.label, 4.5)}\n{about}"
    return title, pair_similarities(encoder, anchors, candidates)


def _with_candidates(run: _Run) -> tuple[Images, CandidateStore]:
    """Return the training images of a run, and the candidates that it drew from."""
    store = store_of(run.path, run.record)
    array = images_of(run.path, run.record, "train")
    check_store(store, array)
    return array, store


def neighbours(records: Records, options: Options) -> Iterator[Picture | str]:
    """Draw nearest neighbours of a few anchors, early and late, beside their synthetic positives.

    The figure shows the argument of Zeng et al. (ECCV 2024) for synthetic positives: early in
    training a nearest neighbour is often of another class, and later it is so close that nothing is
    learnt from it. One run is shown, if possible one that has candidates and two checkpoints.

    Args:
        records: pairs of a path and its record.
        options: ``limit`` is the number of training images, which are anchors and neighbours alike.

    Yields:
        A picture, and lines for what could not be drawn.

    Raises:
        ClspError: there are no checkpoints or images.
    """
    run = min(_runs(records, options.told), key=lambda run: (run.record.candidates is None,
                                               len(run.checkpoints) < 2))  # fmt: skip
    store = None
    try:
        array, store = _with_candidates(run)
    except ClspError as error:
        yield f"Synthetic positives beside the nearest neighbours: {error}"
        array = images_of(run.path, run.record, "train")
    if len(run.checkpoints) < 2:
        yield (
            f"Nearest neighbours at an early checkpoint: {run.label} kept one alone; pre-train "
            f"with checkpoint.keep_prev=True checkpoint.frequency=N"
        )
    rows = _some(len(array), options.limit)
    if len(rows) <= _SHOWN:
        raise ClspError(f"{len(rows)} images are too few for neighbours; give --limit more")
    size = _side(Encoder(run.checkpoints[-1])) if store is None else store.width
    part = array.taken(rows, size)
    blocks = [
        _neighbour_block(part, checkpoint)
        for checkpoint in dict.fromkeys((run.checkpoints[0], run.checkpoints[-1]))
    ]
    if store is not None:
        drawn = torch.from_numpy(store.images(rows.tolist()))
        blocks.append(_candidate_block(part, drawn, run.checkpoints[-1]))
    yield _neighbour_picture(run, part, blocks, store is not None)


@dataclass(frozen=True)
class _Block:
    """The images of one kind that are shown beside every anchor.

    Attributes:
        heading: what they are, with numbers over all anchors.
        images: uint8 (N, C, H, W, 3).
        wrong: bool (N, C), whether an image is of another class than the anchor.
    """

    heading: str
    images: torch.Tensor
    wrong: torch.Tensor


def _neighbour_block(part: ImageArray, checkpoint: Path) -> _Block:
    feats = _features(Encoder(checkpoint), part.images)
    similarity = feats @ feats.T
    similarity.fill_diagonal_(-2)
    values, places = similarity.topk(_SHOWN, dim=1)
    wrong = part.targets[places] != part.targets[:, None]
    labelled = bool((part.targets >= 0).all())
    agree = 100 * (1 - wrong[:, 0].float().mean())
    _, counts = part.targets.unique(return_counts=True)
    chance = 100 * (counts / len(part)).square().sum()
    share = f"label is the anchor's in {agree:.0f} % (chance: {chance:.0f} %)"
    heading = (
        f"nearest neighbours {_epochs(checkpoint)}\n{share if labelled else 'no labels'}\n"
        f"similarity {values[:, 0].mean():.2f} ± {values[:, 0].std():.2f}"
    )
    return _Block(heading, part.images[places], wrong & labelled)


def _candidate_block(part: ImageArray, drawn: torch.Tensor, checkpoint: Path) -> _Block:
    """Return the run's synthetic positives, which are not known to keep the anchor's label."""
    encoder = Encoder(checkpoint)
    anchors, feats = _features(encoder, part.images), _features(encoder, drawn[:, 0])
    values = (anchors * feats).sum(1)
    heading = (
        f"synthetic positives\nlabel not known\n"
        f"similarity {_epochs(checkpoint)} {values.mean():.2f} ± {values.std():.2f}"
    )
    shown = drawn[:, :_SHOWN]
    return _Block(heading, shown, torch.zeros(shown.shape[:2], dtype=torch.bool))


def _neighbour_picture(
    run: _Run, part: ImageArray, blocks: Sequence[_Block], synthetic: bool
) -> Picture:
    rows = some_of_each(part, _ANCHORS)
    tiles = torch.cat([part.images[rows][:, None], *(block.images[rows] for block in blocks)], 1)
    gaps, column = {}, 1
    for block in blocks:
        gaps[column] = 0.6
        column += block.images.shape[1]
    wide = tiles.shape[1] * PITCH + sum(gaps.values())
    width = min(13.0, 0.72 * wide)
    figure = new_figure(width, width / wide * (len(rows) * PITCH + 1.0) + 0.8)
    axis = figure.subplots()
    lefts = draw_tiles(axis, tiles.numpy(), ["anchor"], gaps)
    axis.set_ylim(top=-0.95)
    column = 1
    for block in blocks:
        axis.text(lefts[column], -0.1, block.heading, va="bottom", fontsize=9, color=INK)
        for row, number in enumerate(rows):
            for place in block.wrong[number].nonzero()[:, 0].tolist():
                frame(axis, lefts[column + place], row, _WRONG)
        column += block.images.shape[1]
    title = "Nearest neighbours" + " and synthetic positives" * synthetic
    first = ", and of an anchor's first synthetic positive" * synthetic
    note = (
        f"{run.label}. n = {len(part):,} training images are anchors, and each other's "
        f"neighbours; label and cosine similarity of features (mean ± standard deviation) are of "
        f"the nearest one{first}. "
        f"Frame with a stroke: another label than the anchor's. Shown: the first of {len(rows)} "
        f"classes, not chosen by eye."
    )
    figure.supxlabel(wrapped(note, width), fontsize=9, x=0.02, ha="left")
    return Picture("neighbours", title, note, figure)
