"""The error type for mistakes that a user can correct, and helpers for its messages."""

import difflib
from collections.abc import Iterable
from typing import Any


class ClspError(ValueError):
    """Invalid input; the message is one sentence that says what was given and what to do.

    The command line prints the message without a traceback and exits with code 2. Any other
    exception is a defect of this package and keeps its traceback.
    """


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which a scheduler sends before it takes the machine back."""


# The most names that a message lists in full; timm alone has more than a thousand.
_MOST = 40


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` with the closest valid name, or the valid names.

    Args:
        name: the name that was given.
        valid: the names that would have been accepted.
    """
    valid = sorted(map(str, valid))
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    if not valid:
        return ""
    if len(valid) <= _MOST:
        return f"; valid names: {', '.join(valid)}"
    alike = difflib.get_close_matches(str(name), valid, n=5, cutoff=0.0)
    return f"; there are {len(valid)} valid names, such as {', '.join(sorted(alike))}"


def short(value: Any, most: int = 120) -> str:
    """Return a value as text for a message, cut after ``most`` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
