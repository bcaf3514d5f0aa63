"""The schema that a ``report.json`` of ``clsp inspect`` is checked against when it is read."""

from typing import Any

from pydantic import ConfigDict, with_config
from typing_extensions import NotRequired, TypedDict  # pydantic brings them along

__all__ = ["Report"]

_OPEN = with_config(ConfigDict(extra="allow"))  # fields that later versions add are accepted


@_OPEN
class _Closeness(TypedDict):
    own: float
    other: float
    closer: float
    error: float


@_OPEN
class _Frechet(TypedDict):
    candidates: float
    anchors: float
    images: int


@_OPEN
class _Agreement(TypedDict):
    neighbours: int
    candidates: float
    anchors: float
    chance: float


@_OPEN
class _Middle(TypedDict):
    step: int
    neighbours: int
    agreement: float
    largest_class: float


@_OPEN
class _Manifest(TypedDict):
    num_images: int
    num_candidates: int
    denoiser: str
    w: float


@_OPEN
class _Spread(TypedDict):
    mean: float
    std: float


@_OPEN
class Report(TypedDict):
    """The content of ``report.json``, see ``inspection.report.inspect_store``."""

    manifest: _Manifest
    drawn: int
    anchors: int
    closeness: dict[str, _Closeness]
    encoder: NotRequired[str]
    similarity: NotRequired[dict[str, _Spread]]
    frechet: NotRequired[_Frechet]
    agreement: NotRequired[_Agreement]
    fid: NotRequired[float]
    weights: NotRequired[list[dict[str, float]]]
    masked: NotRequired[dict[str, _Closeness]]
    middle: NotRequired[_Middle | dict[str, Any] | None]
