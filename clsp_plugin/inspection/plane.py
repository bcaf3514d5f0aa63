"""Compare several stores in a table, and in a plot of rightness (label agreement) and hardness.

Useful candidates have both: a copy of its anchor is right but not hard, an unrelated image is hard
but not right.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.errors import ClspError
from clsp_plugin.figures.style import MUTED, dress, legend, new_figure, save, styles
from clsp_plugin.inspection.report import inspect_store

__all__ = ["compare_stores", "plane", "side_by_side"]

PLANE = "plane.png"


def compare_stores(
    paths: Sequence[str | Path],
    array: ImageArray,
    out: str | Path,
    *,
    encoder: str | Path,
    limit: int = 1000,
    data: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write a report on each of several stores of the same images, and a plot of all of them.

    Args:
        paths: paths of the stores.
        array: the labelled images that they were made for.
        out: a folder; it gets ``plane.png``, and a folder for each store, see ``inspect_store``.
        encoder: as in ``inspect_store``; the same one judges all stores.
        limit: as in ``inspect_store``.
        data: as in ``inspect_store``.

    Returns:
        The content of each ``report.json``, by the store's path.

    Raises:
        ClspError: as ``inspect_store``, or an image has no label, or a store is named twice.
    """
    names = [Path(path).as_posix() for path in paths]
    if len(set(names)) < len(names):
        raise ClspError(f"One store is named twice: {', '.join(names)}.")
    if not bool((array.targets >= 0).all()):
        raise ClspError("Stores are compared by the labels of their images, and some have none.")
    reports = {}
    for name in names:
        place = Path(out) / name.strip("./").replace("/", "-")
        reports[name] = inspect_store(name, array, place, encoder=encoder, limit=limit, data=data)
    plane(reports, Path(out) / PLANE)
    return reports


def plane(reports: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Plot the rightness of stores over their hardness (mean of colour, layout and background).

    Args:
        reports: reports of ``inspect_store`` with an encoder, by the name to show for each.
        path: the PNG or SVG file to write.
    """
    figure = new_figure(6.5, 4.5)
    axis = figure.subplots()
    for (name, report), style in zip(reports.items(), styles(), strict=False):
        looks = report["hardness"].values()
        hard = np.mean([found["share"] for found in looks])
        error = np.mean([found["error"] for found in looks])
        right = report["agreement"]
        axis.errorbar(
            hard, right["candidates"], xerr=error, yerr=right["error"],
            **{**style, "linestyle": "none"}, markersize=7, capsize=3, label=name,
        )  # fmt: skip
    best = max(report["agreement"]["anchors"] for report in reports.values())
    axis.axhline(best, color=MUTED, linewidth=0.8, linestyle=":", label="real images")
    dress(
        axis,
        "Candidates by hardness and rightness",
        "hardness: distance from the anchor, a share of that of unrelated images",
        "rightness: label agrees with the anchor's (%)",
    )
    axis.set(xlim=(0, max(1.1, axis.get_xlim()[1])), ylim=(0, 102))
    judge = next(iter(reports.values()))["encoder"]
    note = f"Hardness: mean of colour, layout and background. Judge: {judge}. Bars: standard error."
    legend(figure, [axis], note)
    save(figure, path)


def side_by_side(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Format reports as a text table: one row per store, with standard errors except of variety."""
    rows = [["", "label agrees (%)", "colour", "layout", "background", "features", "variety"]]
    for name, report in reports.items():
        right, looks = report["agreement"], report["hardness"]
        among = [found["variety"] for found in looks.values() if "variety" in found]
        rows.append([
            name,
            f"{right['candidates']:.1f} +- {right['error']:.1f}",
            *(
                f"{found['share']:.2f} +- {found['error']:.2f}"
                for found in (*looks.values(), report["features"])
            ),
            f"{np.mean(among):.2f}" if among else "",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    note = (
        "Hardness in colour, layout, background and the encoder's features, 0 a copy of the anchor "
        "and 1 an unrelated image; variety, the same of two candidates of an anchor, mean of the "
        "first three."
    )
    return "\n".join([*lines, note])
