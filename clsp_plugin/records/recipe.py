"""What records must have in common to stand in one row of a table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from clsp_plugin.config.training import Data, Synthetic, num_devices
from clsp_plugin.errors import ClspError
from clsp_plugin.records.record import Record

__all__ = [
    "BUDGET",
    "NONE",
    "Records",
    "as_word",
    "check_alike",
    "check_recipes",
    "check_seeds",
    "dotted",
    "holds",
    "recipe",
    "setting",
    "settings",
    "sorting_key",
]


Records = Sequence[tuple[Path, Record]]
BUDGET = ("backbone", "epochs", "num_train")
# Blocks of a configuration that records must share to be averaged, but for ``_NOT_RECIPE``.
_RECIPE = (
    "backbone", "optimizer", "scheduler", "method_kwargs", "momentum", "synthetic",
    "augmentations", "joint_forward",
)  # fmt: skip
# Settings of ``data`` that they must share; folders and numbers of workers may differ.
_IMAGES = (
    "no_labels", "image_column", "label_column", "fraction", "extra", "replicate", "image_size",
    "packed", "pack_size", "pack_format", "num_val", "seed", "mean", "std", "num_large_crops",
    "num_small_crops",
)  # fmt: skip
_FOLDERS = ("train_path", "val_path")  # choose the images of dataset=custom
_PRECISIONS = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_LATER = ("mirrored images", "what was chosen from")  # older evaluations do not say
NONE = object()  # stands for a setting that a record lacks
_NOT_RECIPE = {"synthetic.path", "candidates.seed", "optimizer.batch_size"}


def setting(record: Record, key: str, default: Any = "") -> Any:
    """Return ``config["a"]["b"]`` for ``"a.b"``, or the default; a block becomes JSON text."""
    value: Any = settings(record)
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return as_word(value)


def as_word(value: Any) -> Any:
    """Return a value of a setting as a cell can hold it: a block or a list becomes JSON text."""
    return json.dumps(value) if isinstance(value, (Mapping, list)) else value


def sorting_key(value: Any) -> tuple[bool, Any]:
    """Return a key that sorts numbers by size, and then everything else by name."""
    number = isinstance(value, int | float)
    return not number, value if number else str(value)


def holds(record: Record, key: str) -> bool:
    """Whether a record's configuration, or the manifest of its candidates, has a setting."""
    return setting(record, key, NONE) is not NONE


def settings(record: Record) -> dict[str, Any]:
    return {**record.config, "candidates": record.candidates or {}}


def check_seeds(members: Records) -> None:
    """Refuse two records of one group with the same seed, which encoders from elsewhere lack."""
    seen: dict[int, Path] = {}
    for path, record in members:
        if record.seed in seen and not record.from_elsewhere:
            raise ClspError(
                f"{seen[record.seed]} and {path} are both of {record.method} on {record.dataset} "
                f"with seed {record.seed} and the same budget; leave one of them out."
            )
        seen[record.seed] = path


def dotted(block: Any, prefix: str) -> dict[str, str]:
    """Flatten nested mappings to dotted keys; values become JSON, so that any two compare."""
    if isinstance(block, Mapping):
        nested = (dotted(value, f"{prefix}.{key}") for key, value in block.items())
        return {key: value for part in nested for key, value in part.items()}
    return {prefix: json.dumps(block, sort_keys=True)}


def recipe(record: Record) -> dict[str, str]:
    """Return what records must share to be averaged: dotted keys to values as JSON."""
    flat = dotted(record.candidates or {}, "candidates")
    for block in _RECIPE:
        flat |= dotted(record.config.get(block), block)
    if isinstance(record.config.get("synthetic"), Mapping):  # an old record lacks later settings
        flat |= dotted(Synthetic.completed(record.config["synthetic"]), "synthetic")
    flat |= _images_recipe(record) | _step_recipe(record)
    return {key: value for key, value in flat.items() if key not in _NOT_RECIPE}


def _images_recipe(record: Record) -> dict[str, str]:
    """Return the settings that choose the images; those that an old record lacks have defaults."""
    data = record.config.get("data")
    if not isinstance(data, Mapping):
        return {}
    names = [*_IMAGES, *(_FOLDERS if record.dataset == "custom" else ())]
    usual = Data()
    values = ((name, data.get(name, getattr(usual, name))) for name in names)
    # records hold -1 or -1.0 for all images
    return {f"data.{k}": json.dumps(int(v) if v == -1 else v) for k, v in values}


def _step_recipe(record: Record) -> dict[str, str]:
    """Return what decides a training step: its images over all devices, accumulation, precision."""
    config = record.config
    precision = str(config.get("precision", "32-true"))
    out = {
        "precision": _PRECISIONS.get(precision, precision),
        "accumulate_grad_batches": config.get("accumulate_grad_batches", 1),
        "gradient_clip_val": config.get("gradient_clip_val"),
        "continued": [_continued(part) for part in config.get("continued") or []],
    }
    if out["gradient_clip_val"] is not None:
        how = config.get("gradient_clip_algorithm") or "norm"
        out["gradient_clip_val"] = f"{out['gradient_clip_val']} by {how}"
    if record.timings.get("processes", 1) > 1:
        out["sync_batchnorm"] = config.get("sync_batchnorm") or False
    batch = (config.get("optimizer") or {}).get("batch_size")
    if batch is not None:
        out["optimizer.batch_size, of all devices"] = _images_a_step(record, batch)
    return {key: json.dumps(value) for key, value in out.items()}


def _continued(part: Mapping[str, Any]) -> list[Any]:
    """Return after how many epochs a run went on otherwise, and with what; seeds have own files."""
    changed = part.get("changed")
    own = ("synthetic.path", "candidates", "encoder")
    told = None if changed is None else {k: None if k in own else v for k, v in changed.items()}
    return [part.get("epochs"), told]


def _images_a_step(record: Record, batch: int) -> int | str:
    devices = record.config.get("devices", 1)
    if devices in ("auto", -1, "-1") and record.hardware.get("gpu"):
        return f"{batch} a GPU"  # the number of GPUs is not recorded
    asked = SimpleNamespace(devices=devices, accelerator="cpu")
    return batch * num_devices(asked) * record.config.get("num_nodes", 1)


def check_recipes(members: Records) -> None:
    """Refuse to average records of one group with different recipes, such as two learning rates."""
    path, record = members[0]
    first = recipe(record)
    for other_path, other_record in members[1:]:
        other = recipe(other_record)
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise ClspError(
                    f"{path} and {other_path} are both of {record.method} on {record.dataset} but "
                    f"{key} is {first.get(key)} in one and {other.get(key)} in the other; make a "
                    f"table of each."
                )


def check_alike(
    members: Sequence[tuple[Path, Mapping[str, Any]]], what: str, epoch: bool = True
) -> None:
    """Refuse to average evaluations that were made in different ways.

    Args:
        members: pairs of a record's path and one of its evaluations.
        what: what the evaluations are called in the error message, such as ``latest kNN``.
        epoch: whether the epochs of the evaluated checkpoints must agree too.

    Raises:
        ClspError: two evaluations differ.
    """
    names = ["epoch"] * epoch + ["metric", "num_train", "num_test", "settings", "learning rate"]
    for name in [*names, *_LATER]:
        values = [(path, _measured(evaluation, name)) for path, evaluation in members]
        if name in _LATER:
            values = [(path, value) for path, value in values if value is not None]
        for path, value in values[1:]:
            first_path, first = values[0]
            if value != first:
                raise ClspError(
                    f"The {what} evaluations of {first_path} and {path} differ in "
                    f"{name} ({first} and {value}); evaluate both in the same way."
                )


def _measured(evaluation: Mapping[str, Any], name: str) -> Any:
    if name == "learning rate":  # chosen, so it may differ, under protocol=strict
        given = evaluation["protocol"] == "paper"
        return (evaluation.get("chosen") or {}).get("lr") if given else None
    if name == "what was chosen from":
        (key, *_) = evaluation.get("chosen") or ("",)
        return [each.get(key) for each in evaluation.get("candidates") or []] or None
    if name == "mirrored images":
        return (evaluation.get("settings") or {}).get("flip")
    value = evaluation.get(name)
    if name == "settings" and value:
        return {key: setting for key, setting in value.items() if key not in ("seed", "flip")}
    return value
