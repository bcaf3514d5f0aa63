"""Read numpy's files: a damaged file raises ClspError, a refusal of the system stays OSError.

A mapped file is not kept open, so that a store may have more files than a process may open.
"""

import ctypes
import io
import math
import mmap
import os
import stat
import warnings
import weakref
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from clsp_plugin.errors import ClspError
from clsp_plugin.system.c_library import c_function

__all__ = ["map_npy", "mapped_tensor", "read_npy", "read_npz"]

_MOST_AXES = 32  # numpy's limit before version 2


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int  # position of the first value, in bytes

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, buffer) -> np.ndarray:
        """Return the array from a buffer with the content of the whole file."""
        flat = np.frombuffer(buffer, self.dtype, math.prod(self.shape), self.offset)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _damaged(path: Path, reason: str, advice: str) -> ClspError:
    return ClspError(f"{path} is truncated or not a readable .npy file ({reason}); {advice}")


def _parse(file: BinaryIO) -> _Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_2_0
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    # no file that is read here may be empty
    if len(shape) > _MOST_AXES or any(size < 1 for size in shape) or not dtype.itemsize:
        raise ValueError(f"its shape is {shape}")
    return _Header(shape, fortran, dtype, file.tell())


def _opener(path: str, flags: int) -> int:
    """Open a file without blocking; opening a named pipe would otherwise wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _header(path: Path, file: BinaryIO, advice: str) -> _Header:
    """Read the header of an open file, and check that the file holds all values that it names."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise _damaged(path, "it is no regular file", advice)
    # read here, so that a refusal of the system is not taken for damage
    start, size = file.read(2**16), os.fstat(file.fileno()).st_size
    try:
        header = _parse(io.BytesIO(start))
    except Exception as error:  # numpy's parser can raise almost anything
        raise _damaged(path, _reason(error), advice) from error
    if header.offset + header.nbytes > size:
        needed = header.offset + header.nbytes
        raise _damaged(path, f"it has {size} bytes of {needed}", advice)
    return header


def _mapped(file: BinaryIO, size: int):
    """Return a whole file as a read-only buffer, which does not keep the file open."""
    # before Python 3.13, its own mapping keeps the file open as long as the mapping lives
    begin, end = c_function("mmap"), c_function("munmap")
    if begin is None or end is None:  # Windows, where the file cannot be replaced meanwhile
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    begin.restype = ctypes.c_void_p
    begin.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    end.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    address = begin(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address in (None, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), file.name)
    buffer = (ctypes.c_ubyte * size).from_address(address)
    # not at the end of the process, when the buffer may still be in use
    weakref.finalize(buffer, end, address, size).atexit = False
    return buffer


def map_npy(path: str | Path, advice: str) -> np.ndarray:
    """Return an array with values that are read from a ``.npy`` file when they are asked for.

    Args:
        path: path of the file, which is not kept open.
        advice: what to do where the file is damaged; ends the sentence.

    Returns:
        The array, read-only.

    Raises:
        ClspError: the file is no ``.npy`` file, is truncated, or holds Python objects.
        OSError: the system refuses to read it, which says nothing about its content.
    """
    path = Path(path)
    with open(path, "rb", opener=_opener) as file:
        header = _header(path, file, advice)
        array = header.array(_mapped(file, header.offset + header.nbytes))
    array.flags.writeable = False
    return array


def mapped_tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array of :func:`map_npy` as a tensor, which must not be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no read-only tensors
        return torch.from_numpy(array)


def read_npy(path: str | Path, advice: str) -> np.ndarray:
    """Read the array of a ``.npy`` file into memory; see :func:`map_npy`."""
    path = Path(path)
    with open(path, "rb", opener=_opener) as file:
        header = _header(path, file, advice)
        file.seek(0)
        content = bytearray(header.offset + header.nbytes)
        if file.readinto(content) < len(content):
            raise _damaged(path, "it became shorter while it was read", advice)
    return header.array(content)


def read_npz(path: str | Path, names: tuple[str, ...], told: str) -> list[np.ndarray]:
    """Read arrays of an ``.npz`` file, which is read whole.

    Args:
        path: path of the file.
        names: names of the arrays.
        told: sentence about a file that is damaged or has no such arrays.

    Raises:
        ClspError: the file is damaged or has no such arrays; the message is ``told``.
        OSError: the system refuses to read it.
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        with np.load(content, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except Exception as error:  # numpy and zipfile can raise almost anything
        raise ClspError(f"{told} ({_reason(error)}).") from error
