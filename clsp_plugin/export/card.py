"""The model card of an exported backbone, made from the record of its run."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clsp_plugin import __version__
from clsp_plugin.records.record import Record, record_path
from clsp_plugin.tables.formats import counted
from clsp_plugin.verbs import EVALUATIONS

__all__ = ["model_card"]


def model_card(
    args: Mapping[str, Any],
    checkpoint: Path,
    format: str,
    load: str,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> str:
    """Return a card in the form of the Hugging Face hub.

    Args:
        args: the configuration of the pre-training.
        checkpoint: the checkpoint; a ``record.json`` beside it gives the numbers.
        format: the format that was written.
        load: lines of Python that load it, with ``DIR`` for the folder.
        size: side of the images in pixels.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
    """
    file = record_path(checkpoint)
    record = Record.load(file) if file.is_file() else None
    method, backbone = args["method"], args["backbone"]["name"]
    dataset = args["data"]["dataset"]
    library = {"hf": "timm", "torchvision": "pytorch"}.get(format, format)
    front = {"library_name": library, "tags": ["self-supervised-learning", method, backbone]}
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    parts = [
        f"---\n{head}\n---",
        f"# {backbone}, pre-trained by {method} on {dataset}",
        _trained(args, record),
        *([_numbers(record)] if record is not None and record.evaluations else []),
        f"## Loading\n\n```python\n{load}\n```",
        f"Images are resized to {size} pixels on their shorter side (bicubic), cut to "
        f"{size}x{size} and normalised: pixels in [0, 1], mean {_listed(mean)}, standard deviation "
        f"{_listed(std)}. The output is the features before any projector.",
    ]
    return "\n\n".join(parts) + "\n"


def _listed(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def _trained(args: Mapping[str, Any], record: Record | None) -> str:
    """Say what the training was, as far as it is known."""
    if record is None:
        return f"Exported by clsp-plugin {__version__}; the training's record was not there."
    images = "" if record.num_train is None else f", {record.num_train:,} images"
    how = [f"{counted(record.epochs, 'epoch')}{images}, seed {record.seed}."]
    if record.source:
        given = ["--config-name", record.source["config"], *record.source["overrides"]]
        how.append(f"Command: `{shlex.join(['clsp', 'pretrain', *given])}`.")
    if record.candidates:
        how.append(f"Candidates: denoiser {record.candidates['denoiser'][:12]}.")
    version = record.versions.get("clsp_plugin", "of unknown version")
    commit = "" if record.commit is None else f", commit {record.commit[:10]}"
    how.append(f"Made with clsp-plugin {version}{commit}.")
    return " ".join(how)


def _numbers(record: Record) -> str:
    """Return a table of the evaluations."""
    lines = ["| evaluation | on | protocol | top-1 (%) |", "|---|---|---|---:|"]
    for found in record.evaluations:
        value = found.get(found.get("metric") or "top1")
        heading = EVALUATIONS[found["task"]].heading
        shown = "" if value is None else f"{value:.2f}"
        lines.append(f"| {heading} | {found['dataset']} | {found['protocol']} | {shown} |")
    return "## Evaluations\n\nOne run, on test images.\n\n" + "\n".join(lines)
