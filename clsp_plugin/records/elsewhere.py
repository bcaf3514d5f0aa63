"""Networks that were not trained by this package: of timm, transformers or torchvision.

They are named ``timm:NAME``, ``hf:NAME`` (transformers) or ``torchvision:NAME``, or are a folder in
the form of timm or transformers, such as ``clsp export`` writes. Each comes with its own
preparation of images.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from clsp_plugin.data.preparation import Preparation
from clsp_plugin.errors import ClspError, first_line, nearest
from clsp_plugin.system.json_files import read_json

__all__ = ["ENCODERS", "Elsewhere", "is_from_elsewhere", "load_from_elsewhere"]

_CONFIG = "config.json"  # in a folder that timm or transformers wrote


class Elsewhere(NamedTuple):
    """A network from elsewhere.

    Attributes:
        backbone: prepared images (B, 3, S, S) to features (B, D); ``num_features`` is D.
        prepare: brings images to what the network takes.
        kind: the library, a key of ``ENCODERS``.
        name: its name there, or that of its folder.
        folder: the folder that it was read from, if it was.
    """

    backbone: nn.Module
    prepare: Preparation
    kind: str
    name: str
    folder: Path | None


def is_from_elsewhere(encoder: str | Path) -> bool:
    """Whether an encoder is named that was not trained by this package or by solo-learn."""
    kind, _, _ = str(encoder).partition(":")
    if kind in ENCODERS:
        return True
    path = Path(encoder)
    if path.exists():
        return (path / _CONFIG).is_file()
    return str(encoder).partition("@")[0] in _torchvision_names()


def load_from_elsewhere(encoder: str) -> Elsewhere:
    """Load a network with its weights, in evaluation mode.

    Args:
        encoder: a name for which :func:`is_from_elsewhere` holds.

    Raises:
        ClspError: there is no such network, its weights cannot be had, or a library that it needs
            is not installed.
    """
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
    return Elsewhere(backbone.eval(), prepare, kind, name, folder)


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
