"""Turn refusals of the operating system into one sentence that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from clsp_plugin.errors import ClspError, short

__all__ = ["files_told"]

# The errors on a file that a user can do something about, and the advice what to do.
_REFUSALS = {
    getattr(errno, name): advice
    for names, advice in (
        ("EDQUOT ENOSPC EFBIG", "make room or name another place"),
        ("EACCES EPERM", "let this user read and write there, or name another place"),
        ("EROFS", "name another place"),
        ("EMFILE ENFILE", "allow more open files (`ulimit -n 65536`)"),
        ("EIO ESTALE ETIMEDOUT", "the disk or its connection fails: look after it"),
        ("ENOENT EEXIST EISDIR ENOTDIR ENAMETOOLONG ELOOP", "name another place"),
    )
    for name in names.split()
    if hasattr(errno, name)
}


@contextmanager
def files_told() -> Iterator[None]:
    """Turn the system's errors on files (no room, no permission, ..) or memory into ClspError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        name = f"{short(error.filename, 300)}: " if error.filename else ""
        raise ClspError(
            f"{name}{error.strerror}. What was written whole is kept; "
            f"{_REFUSALS[error.errno]}, and give the same command again."
        ) from error
    except MemoryError as error:
        raise ClspError(
            f"The memory is too small for this ({str(error) or 'the system gives no more'}); give "
            f"fewer or smaller images, a smaller batch size or network, or a larger machine."
        ) from error
