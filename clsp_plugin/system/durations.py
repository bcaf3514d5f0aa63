"""Lengths of time, for people."""

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """Return seconds as text in the unit that suits them: s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
