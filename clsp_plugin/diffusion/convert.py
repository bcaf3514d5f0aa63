"""Convert the authors' denoisers from their ``.pt`` files to diffusers' format, without loss.

Their UNet is that of DDPM under other names. It differs from diffusers' ``UNet2DModel`` in that

- sines and cosines of the time embedding alternate, while here all sines come first: the columns
  of the first linear layer are put in that order;
- the projections of the attention are convolutions of one pixel, here linear layers;
- residual blocks and the layers that halve and double the resolution are in one list;
- there is a projector on the middle feature, from an experiment of theirs, which the noise estimate
  does not depend on. It is left out, with the integer batch counter of its batch norm.

In every residual block their class-conditional UNet adds a projection of the class embedding to
one of the step embedding. Here the two embeddings are concatenated in one vector of twice the
width, and so are the two projections. Its layers that change the resolution are those of
:class:`~clsp_plugin.diffusion.denoiser.AuthorsConditionalUNet`.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from clsp_plugin.diffusion.denoiser import (
    AuthorsConditionalUNet,
    check_absent,
    denoiser_hash,
    save_denoiser,
)
from clsp_plugin.errors import ClspError
from clsp_plugin.records.checkpoint import why_unreadable

__all__ = ["convert_unet", "import_denoiser"]

State = dict[str, torch.Tensor]

_TIME = "time_embedding.timembedding"
_PROJECTOR = "encoder.projector."
_CLASS = "cond_embedding.condEmbedding"
_CLASS_TABLE = "class_table"  # our name of the class embedding's output, one row per class
_ATTENTION = {"proj_q": "to_q", "proj_k": "to_k", "proj_v": "to_v", "proj": "to_out.0"}
_RESIDUAL = {
    "block1.0": "norm1", "block1.2": "conv1", "temb_proj.1": "time_emb_proj",
    "block2.0": "norm2", "block2.3": "conv2", "shortcut": "conv_shortcut",
}  # fmt: skip
# The error of the sine of an angle of a thousand radians in float32.
_TABLE_TOLERANCE = 1e-4
# Keys under which checkpoints hold the weights beside other things; averaged weights come first.
_WRAPPERS = ("ema_model", "ema", "state_dict", "model_state_dict", "model")


class _Level(NamedTuple):
    """One resolution on the way down or up; blocks are indexes in the authors' list."""

    blocks: list[int]
    sampler: int | None  # the block that leads to the next resolution
    channels: int
    attention: bool


def _levels(state: Mapping[str, torch.Tensor], prefix: str) -> list[_Level]:
    """Return the resolutions of a list of blocks, in the order of the forward pass."""
    count = 1 + max(
        (int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)),
        default=-1,
    )
    if count > len(state):
        raise KeyError(f"{prefix}{count - 1} without those before it")
    levels, blocks = [], []
    for number in range(count):
        mains = (f"{prefix}{number}.main.weight", f"{prefix}{number}.main.0.weight")
        is_sampler = any(main in state for main in mains)
        if not is_sampler:
            blocks.append(number)
        if is_sampler or number == count - 1:
            first = f"{prefix}{blocks[0]}" if blocks else ""
            channels = len(state[f"{first}.block2.3.bias"])
            attention = f"{first}.attn.proj_q.weight" in state
            levels.append(_Level(blocks, number if is_sampler else None, channels, attention))
            blocks = []
    return levels


def _sinusoids(steps: int, width: int) -> torch.Tensor:
    """Return the authors' fixed time embedding: (steps, width), as sin, cos, sin, cos, .."""
    rates = torch.exp(-math.log(10000) * torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(steps, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()


def _has_sinusoids(table: torch.Tensor) -> bool:
    difference = table.float() - _sinusoids(*table.shape)
    # in a file of half precision they are rounded
    return bool(difference.abs().max() <= max(_TABLE_TOLERANCE, torch.finfo(table.dtype).eps))


def _config(state: State, image_size: int) -> tuple[dict, list[_Level], list[_Level]]:
    """Return the arguments of ``UNet2DModel``, and the levels on the way down and on the way up."""
    down = _levels(state, "encoder.downblocks.")
    up = _levels(state, "decoder.upblocks.")
    channels = [level.channels for level in down]
    width = len(state["encoder.head.bias"])
    per_block = len(down[0].blocks)
    table = state[f"{_TIME}.0.weight"]
    regular = (
        width == channels[0]
        and all(len(level.blocks) == per_block for level in down)
        and [len(level.blocks) for level in up] == [per_block + 1] * len(down)
        and [level.channels for level in up] == channels[::-1]
    )
    if not regular:
        raise KeyError("an arrangement of blocks that diffusers' UNet2DModel does not have")
    if image_size < 1 or image_size % 2 ** (len(down) - 1):
        raise ClspError(
            f"Images of {image_size} pixels cannot be halved {len(down) - 1} times, as this "
            f"denoiser does; give the size that it was trained at with --image-size."
        )
    kinds = [("AttnDownBlock2D" if level.attention else "DownBlock2D") for level in down]
    up_kinds = [("AttnUpBlock2D" if level.attention else "UpBlock2D") for level in up]
    config = {
        "sample_size": image_size,
        "block_out_channels": tuple(channels),
        "layers_per_block": per_block,
        "down_block_types": tuple(kinds),
        "up_block_types": tuple(up_kinds),
        "attention_head_dim": None,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "downsample_padding": 1,
        "flip_sin_to_cos": False,
        "freq_shift": 0,
    }
    if _CLASS_TABLE in state:
        config["num_class_embeds"], config["time_embedding_dim"] = state[_CLASS_TABLE].shape
    if not _has_sinusoids(table):
        config |= {"time_embedding_type": "learned", "num_train_timesteps": len(table)}
    return config, down, up


def _modules(down: list[_Level], up: list[_Level]) -> Iterator[tuple[str, str]]:
    """Yield the authors' and diffusers' names of each layer whose weights carry over."""
    yield from {
        "encoder.head": "conv_in", "decoder.tail.0": "conv_norm_out", "decoder.tail.2": "conv_out",
        f"{_TIME}.1": "time_embedding.linear_1", f"{_TIME}.3": "time_embedding.linear_2",
    }.items()  # fmt: skip
    blocks = [(f"encoder.middleblocks.{n}", "mid_block", n) for n in (0, 1)]
    for way, theirs, levels in (("down", "encoder", down), ("up", "decoder", up)):
        for depth, level in enumerate(levels):
            ours = f"{way}_blocks.{depth}"
            blocks += [
                (f"{theirs}.{way}blocks.{number}", ours, place)
                for place, number in enumerate(level.blocks)
            ]
            if level.sampler is not None:
                pair = f"{theirs}.{way}blocks.{level.sampler}.main", f"{ours}.{way}samplers.0.conv"
                yield from (pair, *((f"{pair[0]}.{n}", f"{pair[1]}.{n}") for n in (0, 1)))
    for theirs, ours, place in blocks:
        for name, other in _RESIDUAL.items():
            yield f"{theirs}.{name}", f"{ours}.resnets.{place}.{other}"
        for name, other in {"group_norm": "group_norm", **_ATTENTION}.items():
            yield f"{theirs}.attn.{name}", f"{ours}.attentions.{place}.{other}"


def _renamed(state: State, config: Mapping, down: list[_Level], up: list[_Level]) -> State:
    """Return the weights under diffusers' names."""
    rest = dict(state)
    table = rest.pop(f"{_TIME}.0.weight")
    out = {}
    if _CLASS_TABLE in rest:
        out["class_embedding.weight"] = rest.pop(_CLASS_TABLE)
    for theirs, ours in _modules(down, up):
        for kind in ("weight", "bias"):
            value = rest.pop(f"{theirs}.{kind}", None)
            if value is None:
                continue  # as in a block without attention; load_state_dict finds real gaps
            if ".attn.proj" in theirs and kind == "weight":
                value = value[:, :, 0, 0]
            out[f"{ours}.{kind}"] = value.contiguous()
    if config.get("time_embedding_type") == "learned":
        out["time_proj.weight"] = table.float()
    else:
        first = out["time_embedding.linear_1.weight"]
        out["time_embedding.linear_1.weight"] = torch.cat([first[:, ::2], first[:, 1::2]], dim=1)
    if rest:
        raise KeyError(f"{len(rest)} tensors that its UNet has no place for, {min(rest)} the first")
    return out


def _behind(first: torch.Tensor, rows: int, columns: int | None = None) -> torch.Tensor:
    """Pad a vector (n,) or a matrix (n, m) with zeros at the end, to ``rows`` and ``columns``."""
    out = first.new_zeros(rows if columns is None else (rows, columns))
    out[tuple(slice(size) for size in first.shape)] = first
    return out


def _class_table(state: State) -> torch.Tensor:
    """Take the class embedding out of a state: (classes + 1, 2 * width), the step's half is 0."""
    layers = [state.pop(f"{_CLASS}.{n}.{kind}") for n in (1, 3) for kind in ("weight", "bias")]
    rows = F.linear(state.pop(f"{_CLASS}.0.weight"), *layers[:2])
    rows = F.linear(F.silu(rows), *layers[2:])
    return torch.cat([torch.zeros_like(rows), rows], dim=1)


def _as_unconditional(state: State) -> State:
    """Return the class-conditional network's weights under the names of the unconditional one."""
    rest = dict(state)
    out = {_CLASS_TABLE: _class_table(rest)}
    width = out[_CLASS_TABLE].shape[1]
    places = {"head": "encoder", "downblocks": "encoder", "middleblocks": "encoder"}
    places |= {"upblocks": "decoder", "tail": "decoder"}
    for name, value in rest.items():
        part, kind = name.split(".")[0], name.rsplit(".", 1)[-1]
        ours = f"{places[part]}.{name}" if part in places else name
        if ".cond_proj." in name or ".c2." in name:
            continue  # merged into another weight below
        if ".temb_proj." in name:
            other = rest[name.replace("temb_proj", "cond_proj")]
            value = torch.cat([value, other], dim=1) if kind == "weight" else value + other
        elif part == "downblocks" and ".c1." in name:
            # the sum of a 3x3 and a 5x5 convolution is one 5x5 convolution
            other = rest[name.replace(".c1.", ".c2.")]
            value = other + (F.pad(value, (1, 1, 1, 1)) if kind == "weight" else value)
            ours = ours.replace(".c1.", ".main.")
        elif part == "upblocks" and name.split(".")[2] in ("t", "c"):
            ours = ours.replace(".t.", ".main.0.").replace(".c.", ".main.1.")
        elif part == "time_embedding" and ".0." not in name:
            columns = {1: None, 2: width if ".3." in name else value.shape[-1]}[value.ndim]
            value = _behind(value, width, columns)
        out[ours] = value
    return out


def _bare(state: Mapping[str, torch.Tensor]) -> State:
    """Return the weights that noise estimates depend on, without a prefix such as ``module.``."""
    table = f"{_TIME}.0.weight"
    prefix = next((name.removesuffix(table) for name in state if name.endswith(table)), "")
    bare = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value for name, value in bare.items() if not name.startswith(_PROJECTOR)}


def convert_unet(state: Mapping[str, torch.Tensor], image_size: int = 32) -> UNet2DModel:
    """Make diffusers' network from the weights of the authors' UNet.

    Args:
        state: the state dict of their ``models.unet.UNet``, or of the class-conditional
            ``models.unet_condition.UNet``; in its class embedding class c is row c + 1, and row 0
            stands for no class. A prefix of the names (``module.``) is removed, and half precision
            is converted to float32.
        image_size: height and width in pixels, which the weights do not show.

    Returns:
        The network in evaluation mode; its noise estimates, with and without an anchor's middle
        feature, equal theirs up to the rounding of float32.

    Raises:
        ClspError: the weights are not those of such a network, or the size cannot be halved often
            enough.
    """
    state = _bare(state)
    conditional = any(name.startswith(f"{_CLASS}.") for name in state)
    try:
        # the table keeps its type, from which _has_sinusoids sees how exact it can be
        state = {k: v if k == f"{_TIME}.0.weight" else v.float() for k, v in state.items()}
        state = _as_unconditional(state) if conditional else state
        config, down, up = _config(state, image_size)
        weights = _renamed(state, config, down, up)
        unet = (AuthorsConditionalUNet if conditional else UNet2DModel)(**config)
        unet.load_state_dict(weights)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClspError(
            f"These are not the weights of the authors' UNet ({reason}); it is the ckpt_ema_*.pt "
            f"of their train_diffusion.py or train_conditional_diffusion.py that is converted."
        ) from error
    return unet.eval()


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise ClspError(f"There is no file {file}; name a checkpoint of the authors' code.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise  # says nothing about the file's content
    except Exception as error:  # a broken pickle can raise anything
        reason = why_unreadable(error)[:150]
        raise ClspError(f"{file} is not a checkpoint that torch can read ({reason}).") from error
    state = _bare(_unwrapped(state, file))
    odd = next((name for name, value in state.items() if not _is_weight(value)), None)
    if odd is not None:
        raise ClspError(
            f"{odd} in {file} is no tensor of finite numbers that the file holds whole; use "
            f"another file."
        )
    return state


def _unwrapped(content: object, file: Path) -> State:
    """Return the state dict of a file, which may hold other things beside it."""
    found = [content]
    if isinstance(content, Mapping):
        found += [content[key] for key in _WRAPPERS if key in content]
    for state in found:
        if (
            isinstance(state, Mapping)
            and state
            and all(
                isinstance(key, str) and isinstance(value, torch.Tensor)
                for key, value in state.items()
            )
        ):
            return dict(state)
    raise ClspError(f"{file} holds no state dict; name a ckpt_ema_*.pt of the authors' code.")


def _is_weight(value: torch.Tensor) -> bool:
    if value.layout != torch.strided or not value.is_floating_point():
        return False
    whole = value.untyped_storage().nbytes() >= value.nbytes  # not one stored number expanded
    return whole and bool(torch.isfinite(value).all())


def import_denoiser(
    file: str | Path,
    out: str | Path,
    *,
    image_size: int = 32,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
) -> str:
    """Convert a checkpoint of the authors' training scripts to a pipeline directory.

    Args:
        file: the ``.pt`` file.
        out: the directory to write; it must not exist yet.
        image_size: height and width of the images in pixels.
        beta_start: the first of the linear betas of its training.
        beta_end: the last beta; 0.028 in the authors' class-conditional recipe.

    Returns:
        The denoiser's hash.

    Raises:
        ClspError: the file is not such a checkpoint, the betas do not ascend within (0, 1), or
            ``out`` exists.
    """
    file, out = Path(file), Path(out)
    check_absent(out)
    if not 0 < beta_start <= beta_end < 1:
        raise ClspError(
            f"Betas from {beta_start:g} to {beta_end:g} are not ascending between 0 and 1."
        )
    state = _read(file)
    try:
        unet = convert_unet(state, image_size)
    except ClspError as error:
        raise ClspError(f"{file}: {error}") from error
    steps = len(next(value for name, value in state.items() if name.endswith(f"{_TIME}.0.weight")))
    betas = {"num_train_timesteps": steps, "beta_start": beta_start, "beta_end": beta_end}
    save_denoiser(unet, out, num_train_timesteps=steps, beta_start=beta_start, beta_end=beta_end)
    return denoiser_hash(unet, betas)
