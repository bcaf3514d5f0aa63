"""Write the backbone of a checkpoint as timm, transformers, torchvision or ONNX read it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from clsp_plugin.data.preparation import preparation_of
from clsp_plugin.errors import ClspError, first_line, nearest
from clsp_plugin.export.card import model_card
from clsp_plugin.export.folder import made_whole
from clsp_plugin.methods import architectures
from clsp_plugin.methods.backbones import of_method, resolve_stem, timm_model
from clsp_plugin.records.backbone import load_backbone

__all__ = ["FORMATS", "Exported", "export_backbone"]

_WEIGHTS = "model.safetensors"
# ResNets that torchvision builds with the very keys of timm's.
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@dataclass(frozen=True)
class Exported:
    """A backbone to be exported, and how its images are prepared.

    Attributes:
        module: the network, images (B, 3, S, S) to features (B, D), in evaluation mode.
        args: the configuration that it was trained with.
        name: timm's name of the architecture.
        kwargs: arguments of timm's constructor.
        stem: the stem that replaces the architecture's own, see ``resolve_stem``; None without one.
        size: S in pixels.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
    """

    module: nn.Module
    args: Mapping[str, Any]
    name: str
    kwargs: dict[str, Any]
    stem: dict[str, Any] | None
    size: int
    mean: list[float]
    std: list[float]


def _timm(given: Exported, out: Path) -> str:
    """Write the folder that timm and transformers read; return the lines that load it."""
    own = given.stem is not None
    arguments = {"base": given.name, "stem": given.stem, **given.kwargs} if own else given.kwargs
    config = {
        "architecture": architectures.NAME if own else given.name,
        "num_classes": 0,
        "num_features": given.module.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, given.size, given.size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": given.mean,
            "std": given.std,
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _save(given, out)
    first = ["import clsp_plugin.methods.architectures  # a ResNet with this stem"] * own
    return "\n".join(
        [
            "import timm",
            *first,
            'backbone = timm.create_model("local-dir:DIR", pretrained=True, num_classes=0).eval()',
            "config = timm.data.resolve_model_data_config(backbone)",
            "prepare = timm.data.create_transform(**config)  # of a PIL image",
        ]
    )


def _torchvision(given: Exported, out: Path) -> str:
    plain = {key for key in given.kwargs if key != "zero_init_last"}
    if given.name not in _TORCHVISION or plain:
        what = f"{given.name} with {', '.join(sorted(plain))}" if plain else given.name
        raise ClspError(
            f"torchvision has no network of the shape of {what}; export with --format timm or onnx."
        )
    stem = [] if given.stem is None else _stem_lines(given)
    lines = [
        "import torch, torchvision",
        "from safetensors.torch import load_file",
        f"backbone = torchvision.models.{given.name}()",
        *stem,
        "backbone.fc = torch.nn.Identity()",
        f'backbone.load_state_dict(load_file("DIR/{_WEIGHTS}"))',
        "backbone.eval()",
    ]
    _save(given, out)
    return "\n".join(lines)


def _stem_lines(given: Exported) -> list[str]:
    assert given.stem is not None
    conv: Any = given.module.conv1
    shape = f"{conv.in_channels}, {conv.out_channels}, {given.stem['kernel_size']}"
    how = f"stride={given.stem['stride']}, padding={given.stem['padding']}, bias=False"
    lines = [f"backbone.conv1 = torch.nn.Conv2d({shape}, {how})"]
    return lines + ["backbone.maxpool = torch.nn.Identity()"] * (not given.stem["max_pool"])


def _onnx(given: Exported, out: Path) -> str:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ClspError(
            "--format onnx needs onnx and onnxscript: `pip install 'clsp-plugin[onnx]'`."
        ) from error
    images = torch.zeros(2, 3, given.size, given.size)
    try:
        torch.onnx.export(
            given.module, (images,), out / "model.onnx", dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
            input_names=["images"], output_names=["features"],
        )  # fmt: skip
    except Exception as error:  # the exporter may raise anything on a network that it cannot take
        raise ClspError(
            f"torch.onnx cannot export this {given.name} ({first_line(error)}); export with "
            f"--format timm."
        ) from error
    return "\n".join(
        [
            "import onnxruntime",
            'session = onnxruntime.InferenceSession("DIR/model.onnx")',
            '(features,) = session.run(None, {"images": images})  # float32 (N, 3, S, S), prepared',
        ]
    )


FORMATS: dict[str, Callable[[Exported, Path], str]] = {
    "timm": _timm,
    "hf": _timm,  # transformers reads timm's folders
    "torchvision": _torchvision,
    "onnx": _onnx,
}


def export_backbone(checkpoint: str | Path, out: str | Path, format: str = "timm") -> Path:
    """Write the backbone of a pre-training for another library, with a model card.

    Args:
        checkpoint: a run's directory, a checkpoint of ours of solo-learn, or of the authors.
        out: the folder to write, which appears whole or not at all.
        format: ``timm``; ``hf``, the same folder, which transformers reads too; ``torchvision``, a
            state dict for its ResNets; or ``onnx``, for any batch size.

    Returns:
        The folder: the weights, what rebuilds the network, and ``README.md``, the card.

    Raises:
        ClspError: there is no checkpoint, the format is not known or cannot hold the network, or
            ``out`` is there already.
    """
    if format not in FORMATS:
        raise ClspError(f"--format {format} is not known{nearest(format, FORMATS)}")
    with made_whole(out) as made:
        given, file = _read(checkpoint)
        load = FORMATS[format](given, made)
        card = model_card(given.args, file, format, load, given.size, given.mean, given.std)
        (made / "README.md").write_text(card, encoding="utf-8")
    return Path(out)


def _read(checkpoint: str | Path) -> tuple[Exported, Path]:
    """Load a backbone and what is needed to write it."""
    module, args, file = load_backbone(checkpoint)
    block = of_method(args["backbone"], args["method"])
    name, kwargs = timm_model(block)
    prepare = preparation_of(args)
    stem = resolve_stem(block, args["data"]["dataset"])
    size, mean, std = prepare.image_size or 224, list(prepare.mean), list(prepare.std)
    kwargs = {key: value for key, value in kwargs.items() if key != "pretrained"}
    return Exported(module.eval(), args, name, kwargs, stem, size, mean, std), file


def _save(given: Exported, out: Path) -> None:
    state = {key: value.contiguous() for key, value in given.module.state_dict().items()}
    try:
        save_file(state, out / _WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ClspError(
            f"The weights could not be written ({error}); make room, or name another --out."
        ) from error
