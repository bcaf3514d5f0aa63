"""The registry of methods, which ``@register_method(name)`` adds a class to."""

from collections.abc import Callable
from typing import TypeVar

from clsp_plugin.methods.base import BaseMethod
from clsp_plugin.methods.synthetic import register

__all__ = ["METHODS", "register_method"]

METHODS: dict[str, type[BaseMethod]] = {}

M = TypeVar("M", bound=type[BaseMethod])


def register_method(name: str) -> Callable[[M], M]:
    """Register a method, and its ``clsp_<name>`` and ``<name>_aug`` versions.

    Args:
        name: the value of ``method`` in a configuration.

    Raises:
        ValueError: the name is taken.
    """

    def add(method: M) -> M:
        if name in METHODS:
            raise ValueError(f"the method name {name} is taken by {METHODS[name].__name__}")
        METHODS[name] = method
        register(METHODS)
        return method

    return add
