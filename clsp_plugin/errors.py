"""The one error type that is meant for people."""

import difflib
from collections.abc import Iterable
from typing import Any


class ClspError(ValueError):
    """Bad input from outside: one sentence that says what was given and what to do.

    The command line prints its message without a traceback and exits with code 2.
    Anything else that escapes is a defect of ours and keeps its traceback.
    """


class Terminated(KeyboardInterrupt):
    """The work was ended by SIGTERM, as a scheduler does before it takes the machine back."""


# Names that a sentence lists in full; timm alone has more than a thousand.
_MOST = 40


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest valid name, or the valid names.

    Args:
        name: what was given.
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
    """A value as text for a sentence, cut where it is longer than ``most`` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
