"""One training in a folder at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from clsp_plugin.errors import ClspError
from clsp_plugin.system.files import locked, unfinished
from clsp_plugin.system.processes import is_first

__all__ = ["one_training"]


@contextlib.contextmanager
def one_training(
    folder: Path, advice: str = "wait for it, or train anew with auto_resume.enabled=False"
) -> Iterator[None]:
    """Keep a second training out of a folder; of the processes of one, the first does.

    What a killed training left unfinished in it is deleted.

    Args:
        folder: that exists.
        advice: what else the second one can do.

    Raises:
        ClspError: another one is in it.
    """
    if not is_first():
        yield
        return
    path = folder / "lock"
    with locked(path) as free:
        if not free:
            raise ClspError(f"Another process is training in {folder}; {advice}.")
        for pattern in ("*.ckpt", "args.json", "settings.json"):
            for left in unfinished(folder, pattern):
                left.unlink(missing_ok=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # such as of a disk that is read-only by now
                path.unlink(missing_ok=True)
