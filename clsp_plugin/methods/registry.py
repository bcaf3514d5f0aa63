"""The registry of methods: a class with ``@register_method(name)`` is in it."""

from collections.abc import Callable

from clsp_plugin.methods.synthetic import register

__all__ = ["METHODS", "register_method"]

METHODS: dict[str, type] = {}


def register_method(name: str) -> Callable[[type], type]:
    """Put a method under a name, with its ``clsp_<name>`` and ``<name>_aug`` versions.

    Args:
        name: as ``method=`` in a configuration says it.

    Raises:
        ValueError: the name is taken by another class.
    """

    def add(method: type) -> type:
        if name in METHODS:
            raise ValueError(f"the method name {name} is taken by {METHODS[name].__name__}")
        METHODS[name] = method
        register(METHODS)
        return method

    return add
