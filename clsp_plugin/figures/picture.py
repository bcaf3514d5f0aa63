"""Figures with their titles and captions, before they are files, and the options for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from clsp_plugin.evaluation.names import PROTOCOLS
from clsp_plugin.records.recipe import Records
from clsp_plugin.records.stale import CHANGED, STALE, changed, is_stale
from clsp_plugin.tables.make import Listing

__all__ = ["HEADINGS", "Options", "Picture", "among", "measured", "sentence", "stale_note"]

HEADINGS = {"linear": "linear probe", "knn": "kNN"}  # an evaluation to its heading


@dataclass(frozen=True)
class Options:
    """Options of the figures.

    Attributes:
        protocol: protocol of the evaluations that are drawn.
        published: whether to put published numbers beside ours.
        limit: largest number of images that figures of features look at.
        reports: reports of ``clsp inspect`` about the stores, besides those that lie in them.
        told: what suites say of the records.
    """

    protocol: str = "strict"
    published: bool = False
    limit: int = 1000
    reports: Sequence[Mapping[str, Any]] = ()
    told: Listing = field(default_factory=Listing)


@dataclass(frozen=True)
class Picture:
    """A figure with its name, title and caption.

    Attributes:
        name: name of its files, without suffix.
        title: title for people.
        caption: what is on it, n, and how the numbers were made.
        figure: the figure itself.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def measured(protocol: str) -> str:
    """Return how the accuracies of a protocol were made, for a caption."""
    return f"protocol {protocol}: {PROTOCOLS[protocol]}"


def sentence(words: str) -> str:
    """Return words with a capital letter and a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def stale_note(records: Records) -> str:
    """Return sentences on records of older numerics or settings, each with a space before it."""
    stale = sum(is_stale(record) for _, record in records)
    other = sum(bool(changed([record], record.evaluations)) for _, record in records)
    of = f"of {len(records)} records were made by other"
    text = f" {STALE} {stale} {of} numerics than this version's." if stale else ""
    if other:
        text += f" {CHANGED} {other} {of} settings than their configurations have today."
    return text


def among(counts: Sequence[int]) -> str:
    """Return the range of some counts: ``n = 3``, or ``n = 1 to 3``."""
    lowest, highest = min(counts), max(counts)
    return f"n = {lowest}" if lowest == highest else f"n = {lowest} to {highest}"
