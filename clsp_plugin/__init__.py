"""Contrastive learning with synthetic positives (CLSP, ECCV 2024) on the solo-learn contract."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "CandidateStore",
    "ClspError",
    "Run",
    "SyntheticViews",
    "alignment_loss",
    "evaluate",
    "generate",
    "load_backbone",
    "pretrain",
    "read_records",
    "train_denoiser",
    "with_synthetic_positives",
]

if TYPE_CHECKING:
    from clsp_plugin.api import (
        Run,
        evaluate,
        generate,
        load_backbone,
        pretrain,
        read_records,
        train_denoiser,
    )
    from clsp_plugin.candidates.store import CandidateStore
    from clsp_plugin.candidates.synthetic_views import SyntheticViews
    from clsp_plugin.errors import ClspError
    from clsp_plugin.losses.alignment import alignment_loss
    from clsp_plugin.methods.synthetic import with_synthetic_positives

_ELSEWHERE = {
    "CandidateStore": "candidates.store",
    "ClspError": "errors",
    "SyntheticViews": "candidates.synthetic_views",
    "alignment_loss": "losses.alignment",
    "with_synthetic_positives": "methods.synthetic",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for; the package itself imports nothing, so that it begins at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
