"""The backbone of a checkpoint, with nothing missing and nothing left over."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsp_plugin.engine.checkpoint import find_checkpoint, load_args
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.backbones import build_backbone

__all__ = ["load_backbone"]


def load_backbone(path: str | Path) -> tuple[nn.Module, dict[str, Any], Path]:
    """Load what a pre-training left.

    Args:
        path: a ``.ckpt`` file with ``args.json`` beside it, or the directory of a run, of which
            the newest epoch is taken.

    Returns:
        The backbone, images (B, 3, H, W) to features (B, D); the configuration it was trained
        with; the checkpoint's path.

    Raises:
        ClspError: no checkpoint, no ``args.json``, or keys that are not exactly the backbone's.
    """
    checkpoint = find_checkpoint(path)
    args = load_args(checkpoint.parent)
    if args is None:
        raise ClspError(
            f"There is no readable args.json beside {checkpoint}; it says which backbone the "
            f"checkpoint is of, so keep the two together."
        )
    module, _ = build_backbone(args["backbone"], args["data"]["dataset"])
    _load_exactly(module, _backbone_state(checkpoint), checkpoint, args["backbone"]["name"])
    return module, args, checkpoint


def _backbone_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state = content["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ClspError(
            f"{checkpoint} is not a readable checkpoint ({str(error).splitlines()[0]})."
        ) from error
    prefix = "backbone."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


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
