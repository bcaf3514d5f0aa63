"""Where the shipped configurations are, and which settings of a configuration decide results."""

import hashlib
import json
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import DictConfig

from clsp_plugin.config.plain import plain

__all__ = ["add_shared", "fingerprint", "shared", "shipped", "takes_shared", "what"]

# Settings that decide where and how fast something is computed, but not the result.
_NOT_WHAT = (
    "auto_resume", "auto_umap", "checkpoint", "dali", "debug_augmentations", "logger", "name",
    "performance", "record_dir", "resume_from_checkpoint", "wandb",
)  # fmt: skip


def shipped() -> Path:
    """The folder of shipped configurations: ``scripts/`` in a checkout, or in the package."""
    package = Path(__file__).parents[1]
    inside = package / "scripts"
    return inside if inside.is_dir() else package.parent / "scripts"


def shared() -> Path:
    """The folder of methods, data sets and augmentations that pre-training configurations share."""
    return shipped() / "pretrain/shared"


def takes_shared(folder: Path) -> bool:
    """Whether configurations in a folder may be composed of those in :func:`shared`.

    All may, except the shipped ones of verbs other than ``pretrain``.
    """
    root, folder = shipped().resolve(), folder.resolve()
    return not folder.is_relative_to(root) or folder.is_relative_to(root / "pretrain")


def add_shared(search_path: ConfigSearchPath) -> None:
    """Append :func:`shared` to Hydra's search path if :func:`takes_shared` allows it.

    Args:
        search_path: Hydra's search path; changed in place.
    """
    own = [entry.path for entry in search_path.get_path() if entry.provider == "main"]
    if all(takes_shared(Path(path.removeprefix("file://"))) for path in own):
        search_path.append("clsp-plugin", f"file://{shared()}")


def what(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings of a configuration that decide the result."""
    content = {k: v for k, v in plain(cfg).items() if k not in _NOT_WHAT}
    if isinstance(content.get("synthetic"), dict):
        content["synthetic"].pop("path", None)
    if isinstance(content.get("data"), dict):
        content["data"].pop("num_workers", None)
    return content


def fingerprint(cfg: DictConfig) -> str:
    """Return 16 hex digits of the SHA-256 of :func:`what`, without the seed and the checkpoint."""
    left_out = ("seed", "pretrained_feature_extractor")
    content = {key: value for key, value in what(cfg).items() if key not in left_out}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
