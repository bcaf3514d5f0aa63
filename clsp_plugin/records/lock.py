"""A lock that keeps a second training out of a run's folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from clsp_plugin.errors import ClspError
from clsp_plugin.system.files import unfinished
from clsp_plugin.system.locks import locked, unlink_held
from clsp_plugin.system.processes import is_first

__all__ = ["one_training"]


@contextlib.contextmanager
def one_training(
    folder: Path, advice: str = "wait for it, or train anew with auto_resume.enabled=False"
) -> Iterator[None]:
    """Keep a second training out of a run's folder while the block runs.

    Of several processes of one training, the first takes the lock. Unfinished files that a killed
    training left in the folder are deleted.

    Args:
        folder: directory of the run; must exist.
        advice: what the user can do instead; ends the error message.

    Raises:
        ClspError: another process is training in the folder.
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
            with contextlib.suppress(OSError):  # the disk may have become read-only
                unlink_held(path)
