"""Typed settings of the denoiser and of the generation: one place, and they refuse.

A settings class is a dataclass whose fields are made by :func:`setting`. It is read from any
mapping by :func:`read_settings`; an unknown key, a wrong type or a value out of range is a
:class:`~clsp_plugin.errors.ClspError` that names the key, the value and the range.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from clsp_plugin.errors import ClspError, nearest

__all__ = ["PRECISIONS", "Settings", "precision_name", "read_settings", "setting"]

T = TypeVar("T", bound="Settings")

# What autocast computes in (None: no autocast) under Lightning's names of precisions.
PRECISIONS: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


def setting(
    default: Any,
    kind: type | None,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float | None = None,
    choices: Sequence[Any] = (),
    many: bool = False,
    optional: bool = False,
) -> Any:
    """A field of a settings class.

    Args:
        default: used when the key is absent.
        kind: int, float, bool or str; None leaves the value to whoever uses it.
        low: the smallest value accepted.
        high: the largest value accepted.
        above: accept only values greater than this one.
        choices: accept only these.
        many: a sequence of such values, kept as a tuple.
        optional: None is accepted too.
    """
    rule = {"kind": kind, "low": low, "high": high, "above": above}
    rule |= {"choices": tuple(choices), "many": many, "optional": optional}
    return dataclasses.field(default=default, metadata=rule)


def _demand(rule: Mapping[str, Any]) -> str:
    """What a rule accepts, in words."""
    if rule["choices"]:
        return "one of " + ", ".join(str(choice) for choice in rule["choices"])
    low, high, above = rule["low"], rule["high"], rule["above"]
    names = {int: "integer", float: "number", bool: "bool (true or false)", str: "string"}
    words = (
        f"a list of {names[rule['kind']]}s" if rule["many"] else f"of type {names[rule['kind']]}"
    )
    if above is not None:
        return f"{words} above {above:g}"
    if math.isinf(low):
        return words
    if math.isinf(high):
        return f"{words}, at least {low:g}"
    return f"{words}, {low:.10g} to {high:.10g}"


def _accepts(value: Any, rule: Mapping[str, Any]) -> bool:
    kind = rule["kind"]
    if isinstance(value, bool) != (kind is bool):  # True is an int for Python, not for people
        return False
    if not isinstance(value, (int, float) if kind is float else kind):
        return False
    if rule["choices"]:
        return value in rule["choices"]
    if kind in (bool, str):
        return True
    above = rule["above"]
    return (
        math.isfinite(value)
        and rule["low"] <= value <= rule["high"]
        and (above is None or value > above)
    )


class Settings:
    """Base of the settings classes: checks every field once it is set."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, self._checked(field))

    def _checked(self, field: dataclasses.Field) -> Any:
        value, rule = getattr(self, field.name), field.metadata
        if rule["kind"] is None or (value is None and rule["optional"]):
            return value
        values = [value]
        if rule["many"]:
            is_list = isinstance(value, Sequence) and not isinstance(value, str)
            values = list(value) if is_list else [None]
        if not all(_accepts(one, rule) for one in values):
            raise ClspError(f"{field.name}={value!r} is not valid; it is {_demand(rule)}.")
        values = [rule["kind"](one) for one in values]
        return tuple(values) if rule["many"] else values[0]


def read_settings(cls: type[T], cfg: Mapping[str, Any] | T | None) -> T:
    """Make a settings object from a mapping.

    Args:
        cls: the settings class.
        cfg: its keys; absent keys keep their defaults. An object of the class passes through.

    Raises:
        ClspError: an unknown key, with the nearest valid one, or a value that is not valid.
    """
    if isinstance(cfg, cls):
        return cfg
    cfg = dict(cfg or {})
    valid = [field.name for field in dataclasses.fields(cls)]
    for key in cfg:
        if key not in valid:
            raise ClspError(f"Unknown key {key!r}{nearest(key, valid)}")
    return cls(**cfg)


def precision_name(precision: str | int) -> str:
    """The one name of a precision, a key of :data:`PRECISIONS`.

    Args:
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``; ``"32"`` and 32 are the first.

    Raises:
        ClspError: any other.
    """
    name = "32-true" if str(precision) == "32" else precision
    if name not in PRECISIONS:
        raise ClspError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}.")
    return name
