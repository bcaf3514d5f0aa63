"""Checks of a configuration that came with a file, possibly from somebody else.

A run's settings are resolved before they are written, and its checkpoint has the weights. So there
is no need for a setting that reads the environment, another file or the network, and it is refused.
"""

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from clsp_plugin.errors import ClspError

__all__ = ["check_args", "check_literal"]

_ASKING = ("pretrained", "checkpoint", "cache", "hf_", "features", "feature_", "_")  # prefixes


def check_literal(content: Any, name: str, key: str = "") -> None:
    """Refuse ``${..}``, which would be resolved from the environment of the person who reads it.

    Args:
        content: dicts, lists and values, as in JSON.
        name: the beginning of the message, such as "args.json has".
        key: the dotted key of ``content`` in the file.

    Raises:
        ClspError: a text contains ``${``.
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
    """Refuse an ``args.json`` that asks for more than plain settings.

    Args:
        args: its content.
        file: its path, for messages.

    Raises:
        ClspError: it contains ``${..}``, a key of ``backbone.kwargs`` that makes timm read a
            file, use the network or call something, or a value there that is not plain (see
            :func:`_is_plain`).
    """
    check_literal(args, f"{file} has")
    kwargs = args["backbone"].get("kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise ClspError(f"{file} has backbone.kwargs={kwargs}, which are no keys and values.")
    for key, value in kwargs.items():
        if key == "pretrained" and isinstance(value, bool):
            continue  # says what the training began from; not used when a checkpoint is read
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
    """Return the arguments of timm's own functions, not of a network: files, caches, filters."""
    import timm
    from timm.models import build_model_with_cfg

    named = (inspect.signature(f).parameters for f in (timm.create_model, build_model_with_cfg))
    return frozenset(name for parameters in named for name in parameters if name != "kwargs")


def _is_plain(value: Any) -> bool:
    """Whether a value is None, a number, a word or a list of these; paths and URLs are no words."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return not any(mark in value for mark in ("/", "\\", ":"))
    return value is None or isinstance(value, bool | int | float)
