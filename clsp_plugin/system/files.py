"""Files that appear whole or not at all, and locks on them."""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from clsp_plugin.errors import ClspError

__all__ = ["check_regular", "locked", "unfinished", "write_text", "write_whole"]


def check_regular(path: str | Path) -> None:
    """Refuse a pipe, a socket or a device without opening it: a pipe would wait for a writer.

    Raises:
        ClspError: the path is a pipe, a socket or a device.
        OSError: it does not exist, or the system refuses to look at it.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # the system refuses folders itself
        raise ClspError(f"{path} is not a file but a pipe, a socket or a device; remove it.")


def write_whole(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it appears whole or not at all, even after a power cut.

    Args:
        target: what to write; replaced if it exists. Its folder is made if absent.
        write: called with the open file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # without a name, as of a full disk
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all, unless the file holds it already.

    Args:
        target: what to write; replaced if it holds something else.
        text: its content.
    """
    content = text.encode()
    try:
        check_regular(target)
        if target.read_bytes() == content:
            return
    except OSError:  # absent, or not readable, and then writing raises too
        pass
    write_whole(target, lambda file: file.write(content))


def unfinished(folder: Path, target: str = "*") -> Iterator[Path]:
    """Find what :func:`write_whole` leaves in a folder when its process is killed.

    Args:
        folder: folder of the target.
        target: pattern of its name.
    """
    return folder.glob(f".{target}.*.*.tmp")


def _is_at(number: int, path: Path) -> bool:
    """Whether an open file, given by its descriptor, is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a file or folder until the block or the process ends, however it ends.

    Where the system or the file system has no locks, the lock counts as free.

    Args:
        path: what to lock; an empty file is created if there is nothing, but not for a shared lock.
        shared: whether others may hold it too that also ask for a shared lock; otherwise a single
            process holds it.
        wait: whether to wait until it is free.

    Yields:
        Whether the lock was free.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    mode = os.O_RDONLY if shared or path.is_dir() else os.O_RDWR | os.O_CREAT
    with contextlib.ExitStack() as opened:
        while True:
            free = True
            try:
                number = os.open(path, mode, 0o666)
            except FileNotFoundError:
                if not shared:
                    raise
                break
            opened.callback(os.close, number)
            try:
                fcntl.flock(number, how)
            except OSError as error:
                free = error.errno not in (errno.EAGAIN, errno.EACCES)
            if not free or _is_at(number, path):
                break
            # the last holder deleted the file after it was opened here: its lock keeps nobody out
            opened.pop_all().close()
        yield free
