"""The encoders that an evaluation takes: checkpoints of pre-trainings, and networks from elsewhere.

A network from elsewhere is named ``timm:NAME``, ``hf:NAME`` (transformers) or ``torchvision:NAME``,
or is a folder in the form of timm or transformers, such as ``clsp export`` writes. It comes with
its own preparation of images.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from clsp_plugin.errors import ClspError, first_line, nearest
from clsp_plugin.evaluation.cache import cache_folder
from clsp_plugin.evaluation.preparation import Preparation, preparation_of
from clsp_plugin.records.backbone import load_backbone
from clsp_plugin.records.checkpoint import epoch_of
from clsp_plugin.records.record import ELSEWHERE, RECORD, record_path
from clsp_plugin.system.json_files import read_json

__all__ = ["ENCODERS", "Frozen", "is_from_elsewhere", "load_encoder"]

# Where the records and features of networks go that have no folder of their own.
_FOLDER = Path("trained_models", "encoders")
_CONFIG = "config.json"  # in a folder that timm or transformers wrote


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


def is_from_elsewhere(encoder: str | Path) -> bool:
    """Whether an encoder is named that was not trained by this package or by solo-learn."""
    kind, _, _ = str(encoder).partition(":")
    if kind in ENCODERS:
        return True
    path = Path(encoder)
    if path.exists():
        return (path / _CONFIG).is_file()
    return str(encoder).partition("@")[0] in _torchvision_names()


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
    kind, _, name = encoder.partition(":")
    folder = None
    if kind not in ENCODERS:
        if Path(encoder).is_dir():
            folder, name = Path(encoder), Path(encoder).resolve().name
            kind = _kind_of(folder)
        else:
            kind, name = "torchvision", encoder
    if not name:
        raise ClspError(f"{encoder} names no network; give {kind}:NAME.")
    try:
        backbone, prepare = ENCODERS[kind](name if folder is None else str(folder))
    except ClspError:
        raise
    except Exception as error:  # the hub, timm and transformers raise errors of many types
        raise ClspError(
            f"{encoder} cannot be loaded ({first_line(error)}); check the name and the connection, "
            f"or give a folder that holds the network."
        ) from error
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
        backbone.eval(), args, replace(prepare, **said), shown, place / RECORD, place / "features",
        0, None,
    )  # fmt: skip


def _kind_of(folder: Path) -> str:
    """Return which library reads a folder."""
    content = read_json(
        folder / _CONFIG, dict[str, Any], "the description of a network", "give another folder"
    )
    if isinstance(content.get("architecture"), str):
        return "timm"
    if isinstance(content.get("model_type"), str):
        return "hf"
    raise ClspError(
        f"{folder / _CONFIG} has neither `architecture` nor `model_type`, so it is not of timm or "
        f"transformers."
    )


def _timm(name: str) -> tuple[nn.Module, Preparation]:
    from clsp_plugin.methods import architectures  # noqa: F401  ours among timm's

    if Path(name).is_dir():
        name = f"local-dir:{name}"
    elif ":" not in name:
        network, _, tag = name.partition(".")
        known = timm.list_pretrained(f"{network}.*")
        if not timm.is_model(network):
            raise ClspError(f"timm has no network {name}{nearest(name, timm.list_models())}")
        if not known or (tag and name not in known):
            raise ClspError(f"timm has no weights {name}{nearest(name, known)}")
    backbone: Any = timm.create_model(name, pretrained=True, num_classes=0)
    return backbone, _preparation_of_timm(timm.data.resolve_model_data_config(backbone))


def _preparation_of_timm(own: Mapping[str, Any]) -> Preparation:
    """Read how timm prepares images; an interpolation that tensors lack counts as bicubic."""
    size = int(own["input_size"][-1])
    resize = max(size, int(size / (own["crop_pct"] or 1)))
    how = _interpolation(own["interpolation"])
    return Preparation(size, tuple(own["mean"]), tuple(own["std"]), resize, how)


def _interpolation(name: str) -> str:
    return name if name in ("bilinear", "nearest") else "bicubic"


class _OfTransformers(nn.Module):
    """A network of transformers as a map from images (B, 3, S, S) to features (B, D).

    The features are those that the model has for images beside texts, if it has such; else its
    pooled output, unless the pooling would have random weights; else the class token, or the mean
    over the positions of a convolutional network.

    Args:
        model: the model.
        pools: whether its pooled output can be used.
    """

    def __init__(self, model: Any, pools: bool):
        super().__init__()
        self.model, self.pools = model, pools
        self.num_features = 0  # known when an image was seen

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=images)
            return found if isinstance(found, torch.Tensor) else found.pooler_output
        out = self.model(pixel_values=images)
        pooled = getattr(out, "pooler_output", None)
        if self.pools and pooled is not None:
            return pooled.flatten(1)
        last = out.last_hidden_state
        return last[:, 0] if last.ndim == 3 else last.mean((2, 3))


def _hf(name: str) -> tuple[nn.Module, Preparation]:
    try:
        from transformers import AutoImageProcessor, AutoModel
    except ImportError:
        raise ClspError(
            f"hf:{name} needs transformers: `pip install 'clsp-plugin[transformers]'`."
        ) from None
    from clsp_plugin.methods import architectures  # noqa: F401  transformers reads timm's networks

    with _silent():
        model, found = AutoModel.from_pretrained(name, output_loading_info=True)
    missing = {key for key in found["missing_keys"] if "pooler" not in key}
    if missing:
        raise ClspError(
            f"hf:{name} has no weights for {len(missing)} parts of its network, such as "
            f"{min(missing)}; name another one."
        )
    processor = AutoImageProcessor.from_pretrained(name)
    module = _OfTransformers(model, pools=not found["missing_keys"])
    prepare = _preparation_of(processor, name)
    size: Any = prepare.image_size
    with torch.no_grad():
        module.num_features = module.eval()(torch.zeros(1, 3, size, size)).shape[1]
    return module, prepare


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from printing a bar and a table of weights, which are looked at here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _preparation_of(processor: Any, name: str) -> Preparation:
    """Read how a processor of transformers prepares images."""
    if hasattr(processor, "data_config"):
        prepare = _preparation_of_timm(processor.data_config)
    else:
        prepare = _preparation_of_transformers(processor, name)
    if not getattr(processor, "do_normalize", True):
        prepare = replace(prepare, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return prepare


def _preparation_of_transformers(processor: Any, name: str) -> Preparation:
    resize = _sides(processor.size)
    crops = getattr(processor, "do_center_crop", False)
    size = _sides(processor.crop_size) if crops else resize
    if not size or not resize:
        raise ClspError(
            f"hf:{name} prepares images in a way that is not known here ({processor.size})."
        )
    if getattr(processor, "crop_pct", None) and size < 384:  # ConvNeXt's
        resize = int(size / processor.crop_pct)
    how = {0: "nearest", 2: "bilinear"}.get(int(processor.resample), "bicubic")
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return Preparation(size, mean, std, max(size, resize), how)


def _sides(size: Any) -> int:
    """Return the pixels that a ``size`` of transformers asks for; 0 if that is not known."""
    for key in ("shortest_edge", "height"):
        value = size.get(key) if hasattr(size, "get") else getattr(size, key, None)
        if value:
            return int(value)
    return 0


def _torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(models)


def _torchvision(given: str) -> tuple[nn.Module, Preparation]:
    from torchvision import models

    name, _, wanted = given.partition("@")
    if name not in _torchvision_names():
        raise ClspError(f"torchvision has no network {name}{nearest(name, _torchvision_names())}")
    known = models.get_model_weights(name)
    if wanted and wanted not in known.__members__:
        raise ClspError(
            f"torchvision's {name} has no weights {wanted}{nearest(wanted, known.__members__)}"
        )
    weights: Any = known[wanted] if wanted else known.DEFAULT
    module: Any = models.get_model(name, weights=weights)
    own = weights.transforms()
    linear = [key for key, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ClspError(f"torchvision's {name} has no classifier to take off; name another one.")
    classifier = module.get_submodule(linear[-1])
    module.num_features = classifier.in_features
    parent, _, last = linear[-1].rpartition(".")
    setattr(module.get_submodule(parent), last, nn.Identity())
    return module, Preparation(
        own.crop_size[0], tuple(own.mean), tuple(own.std), own.resize_size[0],
        _interpolation(own.interpolation.value),
    )  # fmt: skip


ENCODERS: dict[str, Callable[[str], tuple[nn.Module, Preparation]]] = {
    "timm": _timm,
    "hf": _hf,
    "torchvision": _torchvision,
}
