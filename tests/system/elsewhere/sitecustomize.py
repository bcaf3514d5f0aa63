"""What the package finds on another system than Linux; Python imports this file when it starts.

For code of ``clsp_plugin``, and for it alone, the calls that POSIX or Linux has beyond Windows do
not exist, folders cannot be opened, and ``msvcrt`` locks ranges of bytes. Other packages and the
tests themselves have all of them.
"""

import builtins
import ctypes
import errno
import fcntl
import os
import signal
import struct
import sys
from types import ModuleType

CALLS = {
    "os": {
        "O_NONBLOCK", "chown", "fchmod", "fork", "getgid", "getpgid", "getuid", "killpg", "mkfifo",
        "nice", "posix_fadvise", "pread", "sched_getaffinity", "sched_setaffinity", "setsid",
        "statvfs", "sync", "sysconf", "uname",
    },
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2"},
}  # fmt: skip
MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}


def _asks() -> bool:
    """Whether the package's own code is what called the caller of this function."""
    try:
        name = sys._getframe(2).f_globals.get("__name__") or ""
    except ValueError:  # Python itself did
        return False
    return name == "clsp_plugin" or name.startswith("clsp_plugin.")


class _Less(ModuleType):
    def __getattribute__(self, name):
        own = super().__getattribute__("__name__")
        if name in CALLS.get(own, ()) and _asks():
            raise AttributeError(f"module {own!r} has no attribute {name!r}")
        if (own, name) in _OTHERS and _asks():
            return _OTHERS[own, name]
        return super().__getattribute__(name)


def _open(path, flags, mode=0o777, **keys):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return os.open(path, flags, mode, **keys)


def _library(name, *args, **keys):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return ctypes.CDLL(name, *args, **keys)


_OTHERS = {("os", "open"): _open, ("ctypes", "CDLL"): _library}

# Locks that belong to the opened file, not to the process, as those of Windows do.
msvcrt = ModuleType("msvcrt")
msvcrt.LK_UNLCK, msvcrt.LK_LOCK, msvcrt.LK_NBLCK = 0, 1, 2


def _locking(number, what, length):
    kind = fcntl.F_UNLCK if what == msvcrt.LK_UNLCK else fcntl.F_WRLCK
    begin = os.lseek(number, 0, os.SEEK_CUR)
    asked = struct.pack("hhqqi4x", kind, os.SEEK_SET, begin, length, 0)
    assert what in (msvcrt.LK_UNLCK, msvcrt.LK_NBLCK)
    try:
        fcntl.fcntl(number, fcntl.F_OFD_SETLK, asked)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


msvcrt.locking = _locking
_import = builtins.__import__


def _imported(name, globals=None, *args, **keys):
    if _asks():
        if name in MODULES:
            raise ImportError(f"No module named {name!r}")
        if name == "msvcrt":
            return msvcrt
    return _import(name, globals, *args, **keys)


builtins.__import__ = _imported
for module in (os, signal, ctypes):
    module.__class__ = _Less
