"""A pickle reader that runs nothing of the file: ``torch.load(.., pickle_module=inert)``.

Lightning's checkpoints hold more than weights. solo-learn's of SimSiam and NNSiam have its
learning-rate schedule in them, with the optimiser and functions of its own, so that reading one
asks for solo-learn, and ``weights_only=True`` refuses it. Here whatever is not needed to rebuild a
tensor becomes an object that can be filled and does nothing (Python's documentation of ``pickle``,
"Restricting Globals").
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

__all__ = ["Inert", "Unpickler", "load"]


class Inert:
    """What stands for a class or a function of the file: it takes everything and does nothing."""

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
    """A function that a file can call and not change: pickles may set attributes of objects."""

    __slots__ = ()
    function: Callable

    def __call__(self, *args: Any) -> Any:
        return type(self).function(*args)


def _sealed(function: Callable) -> _Sealed:
    body = {"__slots__": (), "function": staticmethod(function)}
    return type(function.__name__, (_Sealed,), body)()


# What a tensor is made of; torch resolves the storages itself.
_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("torch._utils", name): _sealed(getattr(torch._utils, name))
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    },
}


class Unpickler(pickle.Unpickler):
    """Tensors and plain containers as they are, everything else as a new :class:`Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        return type(name, (Inert,), {}) if known is None else known


def load(file: BinaryIO, **kwargs: Any) -> Any:
    """As ``pickle.load``; torch calls it for files in its oldest format."""
    return Unpickler(file, **kwargs).load()
