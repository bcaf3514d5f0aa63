"""Locks on files and folders, which the system takes back from a process that ends."""

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["is_locked", "locked", "unlink_held"]

_POLL = 0.05  # seconds between two tries where the system cannot wait
# Windows locks ranges of bytes, and keeps others from reading and writing them: these lie beyond
# the content of any file of ours. Who holds a lock alone has all of them, who shares it one.
_FIRST, _BYTES = 1 << 30, 1 << 24
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a file or folder until the block or the process ends, however it ends.

    Where the system or the file system has no locks, the lock counts as free. Windows has none of
    folders; there a file in the folder of temporary files stands for one, so that only processes of
    one user on one machine keep each other out of it.

    Args:
        path: what to lock; an empty file is created if there is nothing, but not for a shared lock.
        shared: whether others may hold it too that also ask for a shared lock; otherwise a single
            process holds it.
        wait: whether to wait until it is free.

    Yields:
        Whether the lock was free.
    """
    place = path if fcntl or not path.is_dir() else _stands_for(path)
    with contextlib.ExitStack() as opened:
        while True:
            free = True
            try:
                number = os.open(place, _mode(place, shared), 0o666)
            except FileNotFoundError:
                if not shared:
                    raise
                break
            opened.callback(os.close, number)
            if fcntl:
                free = _flock(number, shared, wait)
            else:
                free = opened.enter_context(_locked_range(number, shared, wait))
            if not free or _is_at(number, place):
                break
            # the last holder deleted the file after it was opened here: its lock keeps nobody out
            opened.pop_all().close()
        yield free


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file or folder; nothing is created."""
    if not path.exists():
        return False
    with locked(path, shared=True) as free:
        return not free


def unlink_held(path: Path) -> None:
    """Delete the file of a lock that is held here.

    Windows deletes no open file. There it is left behind, which keeps nobody out.
    """
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if fcntl:
            raise


def _mode(place: Path, shared: bool) -> int:
    if fcntl and (shared or place.is_dir()):
        return os.O_RDONLY
    return os.O_RDWR | (0 if shared else os.O_CREAT)


def _flock(number: int, shared: bool, wait: bool) -> bool:
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(number, how)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


@contextlib.contextmanager
def _locked_range(number: int, shared: bool, wait: bool) -> Iterator[bool]:
    """Lock an open file as Windows does; yield whether it was free."""
    import msvcrt

    first, length = _FIRST, _BYTES
    if shared:
        first, length = _FIRST + int.from_bytes(os.urandom(3), "little"), 1

    def locking(what: str) -> None:
        os.lseek(number, first, os.SEEK_SET)
        msvcrt.locking(number, getattr(msvcrt, what), length)  # type: ignore[attr-defined]

    while True:
        try:
            locking("LK_NBLCK")
        except OSError as error:
            if error.errno in _TAKEN and wait:
                time.sleep(_POLL)
                continue
            yield error.errno not in _TAKEN
            return
        break
    try:
        yield True
    finally:
        locking("LK_UNLCK")


def _stands_for(folder: Path) -> Path:
    name = os.path.normcase(folder.resolve())
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"clsp-{digest}.lock"


def _is_at(number: int, path: Path) -> bool:
    """Whether an open file, given by its descriptor, is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False
