"""Histograms of the similarity of positive pairs (figure 2 of Zeng et al., ECCV 2024)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from clsp_plugin.figures.style import dress, legend, new_figure, save, styles

__all__ = ["similarity_figure", "similarity_histogram"]


def similarity_figure(panels: Mapping[str, Mapping[str, np.ndarray]], caption: str = "") -> Figure:
    """Draw the distribution of the similarity of each kind of pair.

    Args:
        panels: a panel's title to kinds of pair to cosine similarities, (N,).
        caption: text below.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns + 1.6 * (columns == 1), 3.4 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for spare in axes[len(panels) :]:
        spare.remove()
    single = len(panels) == 1
    lowest = min(float(v.min()) for pairs in panels.values() for v in pairs.values())
    edges = np.linspace(lowest, 1, 31)
    for axis, (title, pairs) in zip(axes, panels.items(), strict=False):
        for (name, values), style in zip(pairs.items(), styles(), strict=False):
            share = np.histogram(values, edges)[0] / len(values) * 100
            label = f"{name} (mean {values.mean():.2f})" if single else name
            line = {"color": style["color"], "linestyle": style["linestyle"]}
            axis.stairs(share, edges, label=label, linewidth=1.8, **line)
            axis.stairs(share, edges, fill=True, color=style["color"], alpha=0.12)
            if not single:
                axis.axvline(values.mean(), linewidth=1, **line)
        dress(axis, title, "cosine similarity of features", "pairs (%)")
        axis.set_ylim(bottom=0)
    legend(figure, axes[: len(panels)], caption, columns=1)
    return figure


def similarity_histogram(
    pairs: Mapping[str, np.ndarray], path: str | Path, title: str = "", caption: str = ""
) -> None:
    """Write the distribution of the similarity of each kind of pair.

    Args:
        pairs: kind of pair to cosine similarities, (N,).
        path: path of a PNG or SVG.
        title: text above.
        caption: text below.
    """
    save(similarity_figure({title: pairs}, caption), path)
