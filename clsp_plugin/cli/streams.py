"""The screen of the command line: of any encoding, and closed by whoever reads it."""

import os
import signal
import sys

__all__ = ["abandon", "flush", "prepare"]


def prepare() -> None:
    """Let a sign that the screen's encoding lacks be printed as ``?`` and end nothing."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115  a closed one; libraries ask it questions
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def flush() -> None:
    """Write what is left, so that a reader that is gone is found here and not at the very end."""
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon() -> None:
    """End as other tools do where the reader is gone, as in ``clsp table runs | head``.

    Python would write to the pipe once more when it ends, and say so.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
    sys.exit(128 + signal.SIGPIPE)
