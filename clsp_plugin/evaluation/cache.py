"""Features on disk, so that the evaluations of a checkpoint extract them only once."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsp_plugin.evaluation.features import Features
from clsp_plugin.records.numerics import numerics_of
from clsp_plugin.system.files import write_whole

__all__ = ["FeatureCache", "cache_folder"]

_FILE = re.compile(r"[0-9a-f]{12}-[0-9a-f]{16}\.pt")


def cache_folder(checkpoint: Path) -> Path:
    """Return the folder of a checkpoint's features.

    Checkpoints of one run share a folder; a file without a run has a folder of its own.
    """
    if checkpoint.suffix == ".ckpt":
        return checkpoint.parent / "features"
    return checkpoint.with_suffix(".features")


class FeatureCache:
    """Features of one network on disk, one file per set of images.

    A file is named by a hash of the weights and of everything else that the features depend on: the
    images and their order, statistics, size, device, libraries and the versions of our numerics.
    Where any of these differs, another file is used, and an incomplete file is computed again.
    Writing a file removes those of other weights, that is of earlier epochs of the same run, so a
    run keeps the features of one epoch.

    Args:
        folder: see :func:`cache_folder`; None keeps nothing. It may be deleted at any time.
        backbone: the network.
        what: what else the features depend on; must be serialisable as JSON.
    """

    def __init__(self, folder: Path | None, backbone: nn.Module, what: Mapping[str, Any]):
        self.folder = folder
        if folder is not None:
            self.weights = _weights_digest(backbone)
            self.what = {
                **what,
                "weights": self.weights,
                "numerics": numerics_of("features"),
                **{name: metadata.version(name) for name in ("torch", "torchvision", "timm")},
            }

    def features(
        self, images: Callable[[], Mapping[str, Any]], views: int, compute: Callable[[], Features]
    ) -> Features:
        """Return the features of some images, from disk if they are there.

        Args:
            images: returns what identifies the images, serialisable as JSON. Not called without a
                folder.
            views: V, how many are wanted; a file with more serves too.
            compute: extracts the features, if they are not on disk.
        """
        if self.folder is None:
            return compute()
        key = json.dumps({**self.what, "images": images()}, sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        file = self.folder / f"{self.weights[:12]}-{name}.pt"
        found = _read(file, key)
        if found is not None and len(found.feats) >= views:
            return Features(found.feats[:views], found.targets)
        features = compute()
        self._write(file, key, features)
        return features

    def _write(self, file: Path, key: str, features: Features) -> None:
        content = {"key": key, "feats": features.feats, "targets": features.targets}
        content["digest"] = _digest(features.feats, features.targets)
        try:
            write_whole(file, lambda handle: torch.save(content, handle))
            for other in file.parent.iterdir():
                of_others = not other.name.startswith(file.name[:12])
                if of_others and _FILE.fullmatch(other.name):
                    other.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # such as a full disk: it is only a cache
            print(f"Features are not kept in {self.folder} ({error}).")


def _read(file: Path, key: str) -> Features | None:
    """Return the features of a file; None if it is damaged or has another key."""
    if not file.is_file():
        return None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        feats, targets = content["feats"], content["targets"]
        if content["key"] == key and content["digest"] == _digest(feats, targets):
            return Features(feats, targets)
    except Exception:  # whatever is wrong with it, it is computed again
        pass
    return None


def _digest(*tensors: torch.Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def _weights_digest(module: nn.Module) -> str:
    state = module.state_dict()
    names = hashlib.blake2b(repr(sorted(state)).encode(), digest_size=16)
    names.update(_digest(*(state[name] for name in sorted(state))).encode())
    return names.hexdigest()
