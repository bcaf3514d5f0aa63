"""Load the backbone of a checkpoint, with no weight missing and none left over."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsp_plugin.config.foreign import check_args
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.backbones import build_backbone, of_method
from clsp_plugin.methods.judging import FrozenEncoder
from clsp_plugin.records import safe_pickle as inert
from clsp_plugin.records.authors import authors_args, is_authors
from clsp_plugin.records.checkpoint import (
    ARGS,
    check_bound,
    load_args,
    read_newest,
)
from clsp_plugin.records.elsewhere import is_from_elsewhere, load_from_elsewhere

__all__ = ["frozen_encoder", "load_backbone", "weights_digest"]


def load_backbone(
    path: str | Path, data: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any], Path]:
    """Load the backbone of a pre-training: ours, solo-learn's, or one of the authors' scripts.

    Classes and functions that a checkpoint names are neither needed nor called.

    Args:
        path: a ``.ckpt`` file with ``args.json`` beside it; the directory of a run, for its newest
            epoch; or a ``.pt`` file of the authors.
        data: what the user says of the images, which the authors' files need; its ``mean`` and
            ``std`` replace those of the pre-training.

    Returns:
        The backbone, images (B, 3, H, W) to features (B, D); the configuration it was trained with;
        the checkpoint's path.

    Raises:
        ClspError: there is no checkpoint or no ``args.json``, the keys are not exactly the
            backbone's, or ``args.json`` asks for other files, see ``config.foreign``.
    """
    checkpoint, content = read_newest(path, foreign=inert)
    args: dict[str, Any] | None
    if is_authors(content):
        args, state = authors_args(content, checkpoint, data or {})
    else:
        args, state = load_args(checkpoint.parent), _backbone_state(content, checkpoint)
        check_bound(args, content, checkpoint)
    if args is None:
        raise ClspError(
            f"There is no readable args.json beside {checkpoint}; it says which backbone the "
            f"checkpoint is of, so keep the two together."
        )
    check_args(args, checkpoint.parent / ARGS)
    said = {key: data[key] for key in ("mean", "std") if data and data.get(key)}
    args = {**args, "data": {**args["data"], **said}}
    block = of_method(args["backbone"], args["method"])
    kwargs = {**(block.get("kwargs") or {}), "pretrained": False}  # weights are loaded here
    module, _ = build_backbone({**block, "kwargs": kwargs}, args["data"]["dataset"])
    _load_exactly(module, state, checkpoint, args["backbone"]["name"])
    return module, args, checkpoint


def frozen_encoder(encoder: str | Path, data: Mapping[str, Any]) -> FrozenEncoder:
    """Load a trained network to look at the views of a training.

    Args:
        encoder: a checkpoint or the directory of a run, see :func:`load_backbone`; or a network
            from elsewhere, see :func:`load_from_elsewhere`, whose size views are resized to.
        data: the training's ``data`` settings, with the ``mean`` and ``std`` of its views.

    Raises:
        ClspError: see these two.
    """
    gets = (data["mean"], data["std"])
    if is_from_elsewhere(encoder):
        found, prepare, *_ = load_from_elsewhere(str(encoder))
        expected = (prepare.mean, prepare.std)
        return FrozenEncoder(found, expected, gets, prepare.image_size, prepare.interpolation)
    # not the mean and std of this training's views, which would take the place of the encoder's
    said = {key: data.get(key) for key in ("dataset", "image_size")}
    backbone, args, _ = load_backbone(encoder, said)
    expects = channel_statistics(args["data"], args.get("augmentations"))
    return FrozenEncoder(backbone, expects, gets)


def weights_digest(network: nn.Module) -> str:
    """Return a SHA-256 of the names and bytes of a network's weights, which identifies them."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _backbone_state(content: Any, checkpoint: Path) -> dict[str, torch.Tensor]:
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ClspError(f"{checkpoint} is not a checkpoint of a pre-training: no state_dict in it.")
    prefix = "backbone."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    strange = [key for key, value in own.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ClspError(f"{checkpoint} has something else than a tensor in {prefix}{strange[0]}.")
    return own


def _load_exactly(
    module: nn.Module, state: dict[str, torch.Tensor], checkpoint: Path, name: str
) -> None:
    own = module.state_dict()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own.keys() & state.keys()
            if own[key].shape != state[key].shape
        ),
    }
    told = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ..' if len(keys) > 3 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if told:
        raise ClspError(
            f"{checkpoint} is of another architecture than {name} as its args.json describes it: "
            f"{'; '.join(told)}; give the backbone block it was trained with."
        )
    module.load_state_dict(state)
