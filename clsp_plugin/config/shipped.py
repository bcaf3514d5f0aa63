"""Where the configurations are that ship with the package, and what of one makes a number."""

import hashlib
import json
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import DictConfig

from clsp_plugin.config.plain import plain

__all__ = ["add_shared", "fingerprint", "shared", "shipped", "takes_shared", "what"]

# Blocks of a configuration that say where and how fast, not what.
_NOT_WHAT = (
    "auto_resume", "auto_umap", "checkpoint", "dali", "debug_augmentations", "name",
    "performance", "resume_from_checkpoint", "wandb",
)  # fmt: skip


def shipped() -> Path:
    """The folder of configurations: ``scripts/`` of a checkout, or inside the package."""
    package = Path(__file__).parents[1]
    inside = package / "scripts"
    return inside if inside.is_dir() else package.parent / "scripts"


def shared() -> Path:
    """What the configurations of a pre-training are composed of: its methods, data sets and
    augmentations that several of them have."""
    return shipped() / "pretrain/shared"


def takes_shared(folder: Path) -> bool:
    """Whether configurations in a folder may be composed of :func:`shared`: not those of ours that
    are of another verb than the pre-training."""
    root, folder = shipped().resolve(), folder.resolve()
    return not folder.is_relative_to(root) or folder.is_relative_to(root / "pretrain")


def add_shared(search_path: ConfigSearchPath) -> None:
    """Let Hydra find :func:`shared`, after whatever else it searches; see :func:`takes_shared`.

    Args:
        search_path: Hydra's; changed in place.
    """
    own = [entry.path for entry in search_path.get_path() if entry.provider == "main"]
    if all(takes_shared(Path(path.removeprefix("file://"))) for path in own):
        search_path.append("clsp-plugin", f"file://{shared()}")


def what(cfg: DictConfig) -> dict[str, Any]:
    """A configuration without where and how fast."""
    content = {k: v for k, v in plain(cfg).items() if k not in _NOT_WHAT}
    if isinstance(content.get("synthetic"), dict):
        content["synthetic"].pop("path", None)
    if isinstance(content.get("data"), dict):
        content["data"].pop("num_workers", None)
    return content


def fingerprint(cfg: DictConfig) -> str:
    """16 digits of a SHA-256 of :func:`what`; neither the seed nor the checkpoint is part of it."""
    left_out = ("seed", "pretrained_feature_extractor")
    content = {key: value for key, value in what(cfg).items() if key not in left_out}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
