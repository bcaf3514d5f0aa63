"""Rules for the values of settings: ranges, choices, and texts that become file names.

A field of a settings dataclass carries a :class:`Rule` in its metadata; ``config.typed``
enforces it. A number that is not finite is never accepted.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clsp_plugin.errors import ClspError, short

__all__ = ["SEED", "Rule", "check_finite", "check_name", "check_value", "ranged"]

_NAMES = {int: "integer", float: "number", bool: "bool (true or false)", str: "string"}
_LONGEST = 200  # bytes of a name; leaves room for suffixes in the 255 bytes of file systems


@dataclass(frozen=True)
class Rule:
    """Which values a setting may have.

    Attributes:
        low, high: the smallest and the largest accepted number.
        above, below: exclusive bounds.
        choices: the accepted values; empty if they are not limited to a list.
        also: further accepted values, besides the bounds or the choices.
        name: whether the text becomes part of a file's name.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[Any, ...] = ()
    also: tuple[Any, ...] = ()
    name: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether the rule accepts a value, which has the right type."""
        if value in self.also:
            return True
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        within = self.low <= value <= self.high and self.above < value < self.below
        return math.isfinite(value) and within

    def __str__(self) -> str:
        """Say in words, to follow "must be", what is accepted; empty if any finite value is."""
        if self.choices:
            return "one of " + ", ".join(dict.fromkeys(map(str, (*self.choices, *self.also))))
        words = [f"at least {_number(self.low)}"] * math.isfinite(self.low)
        words += [f"at most {_number(self.high)}"] * math.isfinite(self.high)
        words += [f"above {_number(self.above)}"] * math.isfinite(self.above)
        words += [f"below {_number(self.below)}"] * math.isfinite(self.below)
        return " and ".join(words) + "".join(f", or {_number(value)}" for value in self.also)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"


SEED = Rule(low=0, high=2**32 - 1)


def ranged(default: Any, rule: Rule | None = None, **bounds: Any) -> Any:
    """Make a dataclass field with a rule for its value, or for each item of a list or mapping.

    Args:
        default: the default of the field; a list is copied for every object.
        rule: the rule; None to make one from ``bounds``.
        bounds: arguments of :class:`Rule`.
    """
    metadata = {"rule": rule or Rule(**bounds)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_value(key: str, value: Any, rule: Rule = Rule()) -> None:
    """Check a value, or each item of a list or a mapping, against a rule; None passes.

    Raises:
        ClspError: a value is out of range, not finite or an empty text. The message has the key,
            the value and what is accepted.
    """
    if isinstance(value, Mapping):
        for name, one in value.items():
            check_value(f"{key}.{name}", one, rule)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for one in value:
            check_value(key, one, rule)
    elif value is None:
        return
    elif isinstance(value, str) and not value.strip():  # such as an unset variable of the shell
        raise ClspError(f"{key} is empty; give a value, or leave it out.")
    elif rule.name and isinstance(value, str):
        check_name(key, value)
    elif not rule.accepts(value):
        finite = not isinstance(value, float) or math.isfinite(value)
        wanted = str(rule) if finite else ", ".join(filter(None, ("a finite number", str(rule))))
        raise ClspError(f"{key}={short(value)} must be {wanted}.")


def check_finite(key: str, value: Any) -> None:
    """Check that no number in a free block of settings is nan or infinite.

    Raises:
        ClspError: one is; the message has its key.
    """
    check_value(key, value)


def check_name(key: str, value: str) -> None:
    """Check a text that becomes part of a file's name.

    Raises:
        ClspError: it is empty, names a folder, or is refused by file systems.
    """
    if not value.strip():
        why = "is empty"
    elif any(letter in value for letter in "/\\"):
        why = "has a separator of folders in it"
    elif value.strip() in (".", ".."):
        why = "means a folder"
    elif not value.isprintable():
        why = "has characters in it that cannot be printed"
    elif len(value.encode(errors="replace")) > _LONGEST:
        why = f"has more than {_LONGEST} bytes"
    else:
        return
    raise ClspError(
        f"{key}={short(repr(value))} becomes part of a file's name and {why}; give a plain name."
    )
