"""Standard streams of the command line: any encoding, and readers that close the pipe."""

import os
import signal
import sys

__all__ = ["abandon", "flush", "prepare"]


def prepare() -> None:
    """Print a character that the terminal's encoding lacks as ``?``, instead of failing."""
    if sys.stdin is None:
        # stdin is closed, and libraries look at it
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def flush() -> None:
    """Flush stdout, so that a closed pipe raises an error here and not when Python exits."""
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon() -> None:
    """Exit as other tools do when the reader of a pipe is gone, as in ``clsp table runs | head``.

    The streams are redirected first, because Python would write to the pipe again at exit and
    report the error.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
    sys.exit(128 + getattr(signal, "SIGPIPE", 13))  # Windows has no such signal
