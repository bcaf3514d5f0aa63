"""Checkpoints of the authors' training scripts: the weights of a ResNet, without settings.

The scripts of the CLSP repository save ``state_dict()`` of a torchvision ResNet, with the projector
as its ``fc``, as ``*.pt``. The depth is read from the names of the layers, the stem from the shape
of the first one; the user has to say which images it was trained on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clsp_plugin.errors import ClspError

__all__ = ["authors_args", "is_authors"]

# (bottleneck blocks, blocks of the third layer) -> name
_RESNETS = {
    (False, 2): "resnet18",
    (False, 6): "resnet34",
    (True, 6): "resnet50",
    (True, 23): "resnet101",
}
_IMAGE_SIZE = {"cifar10": 32, "cifar100": 32, "stl10": 64}  # pixels, in the authors' scripts
# The authors' mean and standard deviation, where they are not solo-learn's.
_STATISTICS = {"cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])}


def is_authors(content: Any) -> bool:
    """Whether a file's content is the bare ``state_dict`` of a torchvision ResNet."""
    return isinstance(content, dict) and {"conv1.weight", "layer4.0.conv1.weight"} <= set(content)


def authors_args(
    state: Mapping[str, torch.Tensor], checkpoint: Path, data: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return what ``args.json`` would say, and the backbone's weights.

    Args:
        state: the file's content.
        checkpoint: its path, for messages and as the method's name.
        data: what the user says of the images; needs ``dataset``.

    Raises:
        ClspError: the data set is not given, or the network is none of the known ResNets.
    """
    if data.get("dataset") is None:
        raise ClspError(
            f"{checkpoint} holds weights alone, as the authors' scripts save them; say which "
            f"images they are of: data.dataset=cifar10 data.train_path=DIR."
        )
    blocks = {key.split(".")[1] for key in state if key.startswith("layer3.")}
    name = _RESNETS.get(("layer1.0.conv3.weight" in state, len(blocks)))
    if name is None:
        raise ClspError(
            f"{checkpoint} has {len(blocks)} blocks in its third layer, which no ResNet of "
            f"{', '.join(_RESNETS.values())} has; only those are read."
        )
    backbone: dict[str, Any] = {"name": name}
    if state["conv1.weight"].shape[2] == 3:
        small = data["dataset"] in ("cifar10", "cifar100")  # larger images keep the pool
        backbone["stem"] = {"kernel_size": 3, "stride": 1, "padding": 1, "max_pool": not small}
    own = {**data}
    if data["dataset"] in _STATISTICS and not data.get("mean"):
        own["mean"], own["std"] = _STATISTICS[data["dataset"]]
    pipeline: dict[str, Any] = {"horizontal_flip": {"prob": 0.5}}
    size = data.get("image_size") or _IMAGE_SIZE.get(data["dataset"])
    if size:
        pipeline["crop_size"] = size
    args = {
        "method": checkpoint.stem,
        "backbone": backbone,
        "data": own,
        "augmentations": [pipeline],
        "max_epochs": 0,
    }
    return args, {key: value for key, value in state.items() if not key.startswith("fc.")}
