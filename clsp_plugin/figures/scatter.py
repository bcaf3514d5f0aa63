"""Scatter plot of images in a plane, by their labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from clsp_plugin.figures.style import MARKERS, legend, new_figure, save

__all__ = ["label_map"]

_NAMED = 20  # labels in the legend; more would not fit below


def label_map(
    places: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    title: str = "",
    caption: str = "",
) -> None:
    """Write a plot with a point per image; each label has its own combination of marker and colour.

    Args:
        places: float (N, 2).
        targets: int (N,), class numbers from 0.
        classes: names of the classes; numbers stand for classes beyond them.
        path: path of a PNG or SVG.
        title: text above.
        caption: text below.
    """
    figure = new_figure(6.8, 6.0)
    axis = figure.subplots()
    colours = matplotlib.color_sequences["tab10"]  # ten, as CIFAR-10 and the digits have classes
    for place, number in enumerate(np.unique(targets)):
        own = places[targets == number]
        name = classes[number] if number < len(classes) else str(number)
        look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "edgecolors": "none"}
        if place < _NAMED:
            look["label"] = name
        colour = colours[number % 10]
        axis.scatter(own[:, 0], own[:, 1], s=16, alpha=0.8, color=colour, **look)
    axis.set_title(title, fontsize=11)
    axis.set(xticks=[], yticks=[])
    legend(figure, [axis], caption, columns=5)
    save(figure, path)
