"""The progress of long work: a bar on a terminal, elsewhere a plain line now and then."""

import os
import sys
import time
from typing import Any

from tqdm.auto import tqdm

__all__ = ["LINES_EVERY", "Progress"]

# Variable of the environment with the seconds between two lines, for whoever reads them from a log.
# The first line then comes at once.
LINES_EVERY = "CLSP_PROGRESS_EVERY"
_EVERY = 30.0  # seconds between two lines, at least
_LINE = "{desc}: {percentage:3.0f}%{r_bar}"


class Progress(tqdm):
    """tqdm's bar, and where the stream is no terminal and no notebook, lines in place of it.

    A line says what the bar would, such as ``draw candidates:  40%| 64/160 [00:30<00:45, ..]``.
    There is one each 30 seconds at most, and one at the end. Nothing moves the cursor.

    Args:
        args: as tqdm's.
        line_format: tqdm's ``bar_format`` for lines.
        every: seconds between two lines; ``CLSP_PROGRESS_EVERY`` is stronger.
        keys: as tqdm's.
    """

    def __init__(
        self, *args: Any, line_format: str = _LINE, every: float = _EVERY, **keys: Any
    ) -> None:
        self.in_lines = keys.get("file") is None and not _draws()
        if self.in_lines:
            given = os.environ.get(LINES_EVERY, "")
            self._every = float(given) if given.isdecimal() else every
            self._told = float("-inf") if given else time.monotonic()
            self._said: tuple[Any, Any] | None = None
            keys |= {"bar_format": line_format, "position": None, "dynamic_ncols": False}
        super().__init__(*args, **keys)

    def display(self, *args: Any, **keys: Any) -> Any:
        """Draw the bar, or write a line if it is time for one."""
        if not self.in_lines:
            return super().display(*args, **keys)
        if time.monotonic() - self._told >= self._every:
            self._tell()
        return True

    def clear(self, *args: Any, **keys: Any) -> None:
        """Make room for other output, which lines need not do."""
        if not self.in_lines:
            super().clear(*args, **keys)

    def close(self) -> None:
        """End the bar, or write the last line."""
        if not self.in_lines:
            super().close()
        elif not getattr(self, "disable", True):
            self._ema_dt = lambda: None  # the rate of all of it, as tqdm's own end does
            if self._said != (self.n, self.postfix):
                self._tell()
            self.disable = True
            self._decr_instances(self)

    def _tell(self) -> None:
        self._told, self._said = time.monotonic(), (self.n, self.postfix)
        self.fp.write(f"{self}\n")
        self.fp.flush()


def _draws() -> bool:
    """Whether stderr can draw a bar, which is written over and over."""
    stream = sys.stderr
    notebook = type(stream).__module__.startswith("ipykernel")
    return stream is not None and (notebook or stream.isatty())
