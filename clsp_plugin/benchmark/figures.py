"""Pictures: what the candidates look like, and how training went."""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from clsp_plugin.benchmark.table import BUDGET, Records, family_order, varying
from clsp_plugin.data.store import StoreManifest
from clsp_plugin.engine.record import Record
from clsp_plugin.errors import ClspError

__all__ = [
    "candidate_sheet",
    "label_map",
    "similarity_histogram",
    "store_caption",
    "training_curves",
]

_INK, _MUTED, _PAPER, _RULE = "#1a1a1a", "#5f6368", "#ffffff", "#9aa0a6"
_MARGIN, _GAP, _ANCHOR_GAP = 24, 4, 36  # pixels
_LEAST_WIDTH = 640  # pixels, so that a caption has room beside few candidates

# Okabe and Ito's colours, without the yellow that white paper swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Each is told apart without its colour as well; cycles of 7, 4 and 6 repeat after 84 methods.
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")


def store_caption(manifest: StoreManifest) -> str:
    """How the candidates of a store were made, and how many there are."""
    return (
        f"w = {manifest.w:g} ({100 * (1 - manifest.w):g} % anchor in the middle features), "
        f"{manifest.sampler.upper()}, {manifest.steps} steps, eta = {manifest.eta:g}, "
        f"denoiser {manifest.denoiser[:12]}, store of {manifest.num_images:,} images "
        f"with {manifest.num_candidates} candidates each"
    )


def candidate_sheet(
    anchors: np.ndarray,
    candidates: np.ndarray,
    path: str | Path,
    scale: int = 3,
    title: str = "",
    caption: str = "",
    columns: Sequence[str] = (),
) -> None:
    """Write a PNG with an anchor a row, at its left, and its candidates beside it.

    Pixels are repeated, never smoothed: what is seen is what the network gets.

    Args:
        anchors: uint8 (A, H, W, 3).
        candidates: uint8 (A, K, H, W, 3).
        path: of the PNG.
        scale: screen pixels a pixel.
        title: above.
        caption: below, such as :func:`store_caption`.
        columns: names of the K columns of candidates; without them one for all.
    """
    number, count, height, width, _ = candidates.shape
    assert anchors.shape == (number, height, width, 3)
    assert anchors.dtype == candidates.dtype == np.uint8
    heading, text = _font(16), _font(14)
    cell_h, cell_w = height * scale, width * scale
    first = _MARGIN + cell_w + _ANCHOR_GAP  # left edge of the candidates
    total = max(first + count * (cell_w + _GAP) - _GAP + _MARGIN, _LEAST_WIDTH)
    titles, captions = (
        _wrap(words, font, total - 2 * _MARGIN)
        for words, font in ((title, heading), (caption, text))
    )
    top = _MARGIN + 24 * len(titles) + (8 if titles else 0) + 22
    bottom = top + number * (cell_h + _GAP) - _GAP
    below = 14 + 20 * len(captions) if captions else 0
    sheet = Image.new("RGB", (total, bottom + below + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, words in enumerate(titles):
        draw.text((_MARGIN, _MARGIN + 24 * line), words, _INK, heading)
    draw.text((_MARGIN, top - 22), "anchor", _INK, text)
    for column, name in enumerate(columns or ["candidates" if count > 1 else "candidate"]):
        draw.text((first + column * (cell_w + _GAP), top - 22), name, _INK, text)
    rule = first - _ANCHOR_GAP // 2
    draw.line((rule, top - 20, rule, bottom - 1), _RULE, 2)
    for row in range(number):
        y = top + row * (cell_h + _GAP)
        sheet.paste(_enlarged(anchors[row], scale), (_MARGIN, y))
        for column in range(count):
            where = (first + column * (cell_w + _GAP), y)
            sheet.paste(_enlarged(candidates[row, column], scale), where)
    for line, words in enumerate(captions):
        draw.text((_MARGIN, bottom + 14 + 20 * line), words, _MUTED, text)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which every matplotlib brings along."""
    file = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)


def _enlarged(image: np.ndarray, scale: int) -> Image.Image:
    return Image.fromarray(image.repeat(scale, 0).repeat(scale, 1))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text at spaces into lines of at most ``width`` pixels, where its words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def label_map(
    places: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    title: str = "",
    caption: str = "",
) -> None:
    """Write a PNG with a point an image in a plane, coloured and shaped by its label.

    Args:
        places: float (N, 2).
        targets: int (N,), class numbers from 0.
        classes: their names; numbers where there are fewer names than classes.
        path: of the PNG.
        title: above.
        caption: below.
    """
    figure = Figure(figsize=(6.8, 6.6), dpi=160)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    colours = matplotlib.colormaps["tab10"].colors  # ten, as CIFAR and the digits have classes
    for number in np.unique(targets):
        own = places[targets == number]
        name = classes[number] if number < len(classes) else str(number)
        look = {"marker": _MARKERS[number // 10 % len(_MARKERS)], "edgecolors": "none"}
        axis.scatter(*own.T, s=16, alpha=0.8, label=name, color=colours[number % 10], **look)
    axis.set_title(title, fontsize=11)
    axis.set(xticks=[], yticks=[])
    handles, names = axis.get_legend_handles_labels()
    # more names than fit below are not read anyway
    figure.legend(
        handles[:20], names[:20], loc="outside lower center", ncols=5, frameon=False, title=caption
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def training_curves(records: Records, path: str | Path) -> None:
    """Write a PNG with the training loss and the online probe's accuracy by epoch.

    A line is the mean over the seeds of a method, its band their range. Methods whose budgets
    differ get a line a budget. Epochs without a number are left out.

    Args:
        records: with the paths they were loaded from, as ``find_records`` returns them.
        path: of the PNG.

    Raises:
        ClspError: no record has a curve.
    """
    groups = _groups(records)
    panels = (
        ("train_loss", "pre-training", "training loss"),
        ("val_acc1", "online linear probe", "validation top-1 accuracy (%)"),
    )
    present = [
        panel for panel in panels if any(_series(members, panel[0]) for members in groups.values())
    ]
    if not present:
        raise ClspError(
            f"None of the {len(records)} records has a training curve; name records of runs that "
            f"`clsp pretrain` finished."
        )
    figure = Figure(figsize=(5.2 * len(present) + 0.6, 4.4 + 0.2 * (len(groups) // 4)), dpi=160)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", wspace=0.06, w_pad=0.08)
    axes = figure.subplots(1, len(present), squeeze=False)[0]
    for axis, (key, title, label) in zip(axes, present, strict=True):
        for (name, members), style in zip(groups.items(), _styles(), strict=False):
            _draw(axis, _series(members, key), f"{name} (n = {len(members)})", style)
        axis.set_title(title, fontsize=11)
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axis.grid(color="#e4e6e8", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = _legend(axes)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False,
        handlelength=3.4, title=_spread(groups.values()),
    )  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def similarity_histogram(
    pairs: Mapping[str, np.ndarray], path: str | Path, title: str = "", caption: str = ""
) -> None:
    """Write a PNG with the distribution of the similarity of each kind of pair.

    Args:
        pairs: kind to cosine similarities, (N,).
        path: of the PNG.
        title: above.
        caption: below.
    """
    figure = Figure(figsize=(6.8, 4.4), dpi=160)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    lowest = min(float(values.min()) for values in pairs.values())
    edges = np.linspace(lowest, 1, 31)
    for (name, values), style in zip(pairs.items(), _styles(), strict=False):
        share = np.histogram(values, edges)[0] / len(values) * 100
        label = f"{name} (mean {values.mean():.2f})"
        line = {"color": style["color"], "linestyle": style["linestyle"]}
        axis.stairs(share, edges, label=label, linewidth=1.8, **line)
        axis.stairs(share, edges, fill=True, color=style["color"], alpha=0.12)
    axis.set_title(title, fontsize=11)
    axis.set(xlabel="cosine similarity", ylabel="pairs (%)")
    axis.set_ylim(bottom=0)
    axis.grid(color="#e4e6e8", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", ncols=1, frameon=False,
        handlelength=3.4, title=caption,
    )  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _groups(records: Records) -> dict[str, list[Record]]:
    """Records by method, and by data set or budget where those differ; families together."""
    settings = [{name: getattr(record, name) for name in BUDGET} for _, record in records]
    several = len({record.dataset for _, record in records}) > 1
    names = varying((r.dataset, s) for (_, r), s in zip(records, settings, strict=True))
    units = {"backbone": "{}", "epochs": "{} epochs", "num_train": "{} images"}
    groups: dict[tuple[str, str], list[Record]] = {}
    for (_, record), setting in zip(records, settings, strict=True):
        parts = [record.dataset] * several + [units[n].format(setting[n]) for n in names]
        label = ", ".join([record.method, *parts])
        groups.setdefault((record.method, label), []).append(record)
    order = family_order(method for method, _ in groups)
    return {
        label: groups[method, label]
        for method, label in sorted(groups, key=lambda key: order.index(key[0]))
    }


def _series(members: Sequence[Record], key: str) -> dict[int, list[float]]:
    """Epoch to the numbers of the seeds that have one, ascending."""
    out: dict[int, list[float]] = {}
    for record in members:
        for point in record.curve:
            if point.get(key) is not None:
                out.setdefault(point["epoch"], []).append(point[key])
    return dict(sorted(out.items()))


def _styles() -> Iterator[dict[str, Any]]:
    cycles = (itertools.cycle(values) for values in (_COLOURS, _DASHES, _MARKERS))
    for colour, dash, marker in zip(*cycles, strict=False):
        yield {"color": colour, "linestyle": dash, "marker": marker}


def _draw(
    axis: Axes, series: Mapping[int, Sequence[float]], label: str, style: Mapping[str, Any]
) -> None:
    if not series:
        return
    epochs, values = list(series), list(series.values())
    place = len(axis.lines)  # markers of different lines stand at different epochs
    every = max(1, len(epochs) // 8)
    axis.plot(
        epochs, [statistics.fmean(v) for v in values], label=label, linewidth=1.8, markersize=5,
        markevery=(place * every // 4 % every, every), markeredgecolor="white",
        markeredgewidth=0.6, **style,
    )  # fmt: skip
    lowest, highest = ([f(v) for v in values] for f in (min, max))
    axis.fill_between(epochs, lowest, highest, color=style["color"], alpha=0.16, linewidth=0)


def _spread(groups: Iterable[Sequence[Record]]) -> str:
    several = any(len(members) > 1 for members in groups)
    return "mean over n seeds; band: lowest to highest seed" if several else "one seed each"


def _legend(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Each label once, though not every method is in every panel."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
