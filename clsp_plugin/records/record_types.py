"""The schemas that a record and a suite's index are checked against when they are read."""

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, with_config
from typing_extensions import NotRequired, TypedDict  # pydantic brings them along

__all__ = ["IndexFile", "RecordFile"]

# fields that later versions add are accepted
_OPEN = with_config(ConfigDict(extra="allow"))
_Number = float | None  # null stands for a number that was not finite


@_OPEN
class _Source(TypedDict):
    config: str
    overrides: list[str]
    settings: str


def _has_its_number(evaluation: dict[str, Any]) -> dict[str, Any]:
    name = evaluation.get("metric") or "top1"
    value = evaluation.get(name, "")
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError(f"{name} should be its result, a number or null")
    return evaluation


@_OPEN
class _Evaluation(TypedDict):
    task: str
    protocol: str
    dataset: str
    epoch: int
    metric: NotRequired[str | None]
    top1: NotRequired[_Number]
    top5: NotRequired[_Number]
    heldout_top1: NotRequired[_Number]
    chosen: NotRequired[dict[str, _Number] | None]
    candidates: NotRequired[list[dict[str, Any]] | None]
    num_train: NotRequired[int | None]
    num_test: NotRequired[int | None]
    settings: NotRequired[dict[str, Any] | None]
    seconds: NotRequired[_Number]
    images: NotRequired[dict[str, str | int | None] | None]
    numerics: NotRequired[dict[str, int] | None]
    code: NotRequired[str | None]
    source: NotRequired[_Source | None]


def _has_its_epoch(point: dict[str, _Number]) -> dict[str, _Number]:
    epoch = point.get("epoch")
    if epoch is None or epoch != int(epoch):
        raise ValueError("epoch should be a whole number")
    return point


@_OPEN
class _Candidates(TypedDict):
    """The fields that are read of a store's manifest, see ``candidates.manifest``."""

    dataset: str
    w: float
    denoiser: NotRequired[str]
    num_images: NotRequired[int]
    num_candidates: NotRequired[int]
    seed: NotRequired[int]
    sampler: NotRequired[str]
    steps: NotRequired[int]
    eta: NotRequired[float]


@_OPEN
class _Hardware(TypedDict, total=False):
    cpu: str | None
    cores: int | None
    gpu: str | None
    memory_gib: _Number


@_OPEN
class _Synthetic(TypedDict, total=False):
    path: str | None
    num_candidates: int | None
    weight: _Number


@_OPEN
class _Optimizer(TypedDict, total=False):
    batch_size: int | None


@_OPEN
class _Config(TypedDict, total=False):
    """The fields that are read of a configuration; others are allowed, such as solo-learn's."""

    data: dict[str, Any] | None
    optimizer: _Optimizer | None
    synthetic: _Synthetic | None
    devices: int | str | list[int] | None
    num_nodes: int
    precision: int | str | None


class RecordFile(TypedDict):
    """The content of a record, see ``records.record.Record``."""

    method: str
    dataset: str
    backbone: str
    epochs: int
    seed: int
    num_train: int | None
    checkpoint: str | None
    curve: list[Annotated[dict[str, _Number], AfterValidator(_has_its_epoch)]]
    timings: dict[str, _Number]
    hardware: _Hardware
    versions: dict[str, str | dict[str, int] | None]
    commit: str | None
    config: _Config
    evaluations: list[Annotated[_Evaluation, AfterValidator(_has_its_number)]]
    candidates: NotRequired[_Candidates | None]
    images: NotRequired[dict[str, str | int] | None]
    source: NotRequired[_Source | None]
    format: int
    digest: str


class _Listed(TypedDict):
    path: str
    variant: NotRequired[str]
    point: NotRequired[dict[str, str | int | float | bool | None]]


class _Failed(TypedDict):
    method: str
    dataset: str
    seed: int
    budget: dict[str, str | int | float | None]
    reason: str
    point: NotRequired[dict[str, str | int | float | bool | None]]
    tasks: list[str]
    variant: NotRequired[str]
    protocol: NotRequired[str]


class IndexFile(TypedDict):
    """The content of a suite's ``records.json``, see ``records.record.read_index``."""

    by: list[str]
    records: list[_Listed]
    failed: NotRequired[list[_Failed]]
    reports: NotRequired[list[str]]
