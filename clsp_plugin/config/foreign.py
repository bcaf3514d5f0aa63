"""Configuration that came with a file, which may be of others: it is data, and asks for nothing.

A run's own settings are resolved before they are written, and a checkpoint's weights are in it; so
what would read the environment, another file or the network has no place there.
"""

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from clsp_plugin.errors import ClspError

__all__ = ["check_args", "check_literal"]

_ASKING = ("pretrained", "checkpoint", "cache", "hf_", "features", "feature_", "_")  # begin names


def check_literal(content: Any, name: str, key: str = "") -> None:
    """Refuse ``${..}``, which would be resolved from the environment of whoever reads the file.

    Args:
        content: dicts, lists and values, as JSON has them.
        name: begins the sentence of an error: "args.json has".
        key: of the content.

    Raises:
        ClspError: a text has it.
    """
    if isinstance(content, str) and "${" in content:
        raise ClspError(f"{name} {key}={content}; write the value there: ${{..}} is not resolved.")
    if isinstance(content, Mapping):
        for own, value in content.items():
            check_literal(value, name, f"{key}.{own}" if key else str(own))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            check_literal(value, name, f"{key}.{number}")


def check_args(args: Mapping[str, Any], file: Path) -> None:
    """Refuse what an ``args.json`` may not ask for.

    Args:
        args: its content.
        file: its path, for messages.

    Raises:
        ClspError: ``${..}``, or a key of ``backbone.kwargs`` by which timm reads a file, asks the
            network or calls something, or a value there that is no plain one.
    """
    check_literal(args, f"{file} has")
    kwargs = args["backbone"].get("kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise ClspError(f"{file} has backbone.kwargs={kwargs}, which are no keys and values.")
    for key, value in kwargs.items():
        if key == "pretrained" and isinstance(value, bool):
            continue  # what a training began from: whoever reads a checkpoint leaves it out
        if (key in _of_timm() or key.startswith(_ASKING)) and value not in (None, False):
            raise ClspError(
                f"{file} has backbone.kwargs.{key}={value}, by which timm would read other files; "
                f"the checkpoint's weights are in it: remove that key."
            )
        if not _is_plain(value):
            raise ClspError(
                f"{file} has backbone.kwargs.{key}={value}, which is no number, word or list."
            )


@cache
def _of_timm() -> frozenset[str]:
    """What timm's functions take before a network's own arguments: files, caches, filters."""
    import timm
    from timm.models import build_model_with_cfg

    named = (inspect.signature(f).parameters for f in (timm.create_model, build_model_with_cfg))
    return frozenset(name for parameters in named for name in parameters if name != "kwargs")


def _is_plain(value: Any) -> bool:
    """What a network's own arguments are made of; a word that is a path or an address is none."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return not any(mark in value for mark in ("/", "\\", ":"))
    return value is None or isinstance(value, bool | int | float)
