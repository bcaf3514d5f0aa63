"""The encoders that an evaluation takes: checkpoints of pre-trainings, and others."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from clsp_plugin.data.preparation import Preparation, preparation_of
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.cache import cache_folder
from clsp_plugin.records.backbone import load_backbone
from clsp_plugin.records.checkpoint import epoch_of
from clsp_plugin.records.elsewhere import ENCODERS, is_from_elsewhere, load_from_elsewhere
from clsp_plugin.records.record import ELSEWHERE, RECORD, record_path

__all__ = ["Frozen", "load_encoder"]

# Where the records and features of networks go that have no folder of their own.
_FOLDER = Path("trained_models", "encoders")


@dataclass(frozen=True)
class Frozen:
    """A frozen network, and what an evaluation has to know of it.

    Attributes:
        backbone: the network, prepared images (B, 3, S, S) to features (B, D); ``num_features``
            is D.
        args: the configuration that it was trained with; of a network from elsewhere only what is
            known.
        prepare: brings images to what the network takes.
        name: name for people.
        record: path of the record that evaluations are added to.
        features: folder of the features that are kept.
        epoch: number of epochs that it was trained for; 0 if it was trained elsewhere.
        checkpoint: the file of the weights; None for a network from elsewhere.
    """

    backbone: nn.Module
    args: dict[str, Any]
    prepare: Preparation
    name: str
    record: Path
    features: Path
    epoch: int
    checkpoint: Path | None

    @property
    def where(self) -> str:
        """The checkpoint or the name, for messages."""
        return self.name if self.checkpoint is None else str(self.checkpoint)


def load_encoder(
    encoder: str | Path,
    data: Mapping[str, Any] | None = None,
    record_dir: str | Path | None = None,
) -> Frozen:
    """Load a frozen encoder.

    Args:
        encoder: a checkpoint or the directory of a run, see ``records.backbone.load_backbone``;
            ``timm:NAME`` or ``hf:NAME``, of the Hugging Face hub; the name of a network of
            torchvision, with or without ``torchvision:`` before it and with or without ``@WEIGHTS``
            behind it; or a folder that timm or transformers read.
        data: what the user says of the images, which the authors' checkpoints need; its ``mean``
            and ``std`` replace the encoder's.
        record_dir: folder of the record of a network from elsewhere; by default its own folder, or
            ``trained_models/encoders/NAME``. A checkpoint's record is beside it.

    Raises:
        ClspError: there is no such encoder, its weights cannot be had, a library that it needs is
            not installed, or ``record_dir`` is given with a checkpoint.
    """
    if is_from_elsewhere(encoder):
        return _from_elsewhere(str(encoder), data or {}, record_dir)
    if record_dir is not None:
        raise ClspError(
            f"record_dir={record_dir} is for encoders from elsewhere; the record of {encoder} is "
            f"beside it."
        )
    if not Path(encoder).exists() and not Path(encoder).suffix and "/" not in str(encoder):
        raise ClspError(
            f"There is no checkpoint at {encoder}, and torchvision has no network of this name; "
            f"others are named {', '.join(f'{kind}:NAME' for kind in ENCODERS)}."
        )
    backbone, args, checkpoint = load_backbone(encoder, data)
    return Frozen(
        backbone,
        args,
        preparation_of(args),
        f"{args['method']} ({args['backbone']['name']}, {checkpoint.name})",
        record_path(checkpoint),
        cache_folder(checkpoint),
        epoch_of(checkpoint) + 1,
        checkpoint,
    )


def _from_elsewhere(encoder: str, data: Mapping[str, Any], record_dir: str | Path | None) -> Frozen:
    backbone, prepare, kind, name, folder = load_from_elsewhere(encoder)
    said: dict[str, Any] = {k: tuple(data[k]) for k in ("mean", "std") if data.get(k)}
    shown = f"{kind}:{name}"
    home = folder or _FOLDER / re.sub(r"[^\w.-]+", "-", shown)
    args = {
        "method": shown,
        "backbone": {"name": name},
        "data": {"dataset": ELSEWHERE},
        "max_epochs": 0,
        "seed": 0,
    }
    place = Path(record_dir) if record_dir is not None else home
    return Frozen(
        backbone, args, replace(prepare, **said), shown, place / RECORD, place / "features", 0, None
    )
