"""A pickle reader that runs nothing of the file: ``torch.load(.., pickle_module=inert)``.

Lightning's checkpoints hold more than weights. Those of solo-learn's SimSiam and NNSiam hold a
learning-rate schedule, with its optimiser and functions of solo-learn. Reading one would need
solo-learn, and ``weights_only=True`` refuses it. Here whatever is not needed to rebuild a tensor is
replaced by an object that can be filled and does nothing (Python's documentation of ``pickle``,
"Restricting Globals").
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

__all__ = ["Inert", "Unpickler", "load"]


class Inert:
    """Stands for a class or a function that a file names: takes everything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class _Sealed:
    """A function that a file can call but not change; pickles may set attributes of objects."""

    __slots__ = ()
    function: Callable

    def __call__(self, *args: Any) -> Any:
        return type(self).function(*args)


def _sealed(function: Callable) -> _Sealed:
    body = {"__slots__": (), "function": staticmethod(function)}
    return type(function.__name__, (_Sealed,), body)()


# What is needed to rebuild a tensor; torch resolves the storages itself.
_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("torch._utils", name): _sealed(getattr(torch._utils, name))
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    },
}


class Unpickler(pickle.Unpickler):
    """Loads tensors and plain containers as they are, everything else as an :class:`Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        return type(name, (Inert,), {}) if known is None else known


def load(file: BinaryIO, **kwargs: Any) -> Any:
    """Load an object, as ``pickle.load`` does; torch calls this for files in its oldest format."""
    return Unpickler(file, **kwargs).load()
