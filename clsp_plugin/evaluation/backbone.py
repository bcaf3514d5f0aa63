"""The backbone of a checkpoint, with nothing missing and nothing left over."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsp_plugin.engine.checkpoint import ARGS, find_checkpoint, load_args
from clsp_plugin.engine.foreign import check_args
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation import inert
from clsp_plugin.evaluation.authors import authors_args, is_authors
from clsp_plugin.methods.backbones import build_backbone, of_method

__all__ = ["load_backbone"]


def load_backbone(
    path: str | Path, data: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any], Path]:
    """Load what a pre-training left: of ours, of solo-learn, or of the authors' scripts.

    Args:
        path: a ``.ckpt`` file with ``args.json`` beside it, or the directory of a run, of which
            the newest epoch is taken; or a ``.pt`` file of the authors.
        data: what the user says of the images, which the authors' files need; ``mean`` and
            ``std`` in it take the place of those of the pre-training.

    Returns:
        The backbone, images (B, 3, H, W) to features (B, D); the configuration it was trained
        with; the checkpoint's path.

    Raises:
        ClspError: no checkpoint, no ``args.json``, or keys that are not exactly the backbone's.
            Classes and functions that a checkpoint names are neither needed nor called. An
            ``args.json`` that asks for other files, see ``engine.foreign``.
    """
    checkpoint = find_checkpoint(path)
    content = _read(checkpoint)
    if is_authors(content):
        args, state = authors_args(content, checkpoint, data or {})
    else:
        args, state = load_args(checkpoint.parent), _backbone_state(content, checkpoint)
    if args is None:
        raise ClspError(
            f"There is no readable args.json beside {checkpoint}; it says which backbone the "
            f"checkpoint is of, so keep the two together."
        )
    check_args(args, checkpoint.parent / ARGS)
    said = {key: data[key] for key in ("mean", "std") if data and data.get(key)}
    args = {**args, "data": {**args["data"], **said}}
    block = of_method(args["backbone"], args["method"])
    module, _ = build_backbone(block, args["data"]["dataset"])
    _load_exactly(module, state, checkpoint, args["backbone"]["name"])
    return module, args, checkpoint


def _read(checkpoint: Path) -> Any:
    """The content of a file, of which nothing is ever run.

    A TorchScript program, which would be, torch refuses itself since 2.6, the lowest that setup.py
    admits: it looks at the file with the reader that would load it.
    """
    try:
        try:
            with warnings.catch_warnings():  # torch's words on a program are for its own users
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(checkpoint, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            if not zipfile.is_zipfile(checkpoint):  # neither torch's format nor Lightning's
                raise
            # a schedule or settings of classes that weights_only does not know
            return torch.load(
                checkpoint, map_location="cpu", pickle_module=inert, weights_only=False
            )
    except Exception as error:  # a broken pickle can raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system does not let it be read, which says nothing about its content
        if "TorchScript" in str(error):
            raise ClspError(f"{checkpoint} is a TorchScript program and no checkpoint.") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClspError(f"{checkpoint} is not a readable checkpoint ({reason}).") from error


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
