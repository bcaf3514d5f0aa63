"""The methods, one file each; every module here is imported, so that its class registers itself."""

from importlib import import_module
from pkgutil import iter_modules

from clsp_plugin.methods.base import BaseMethod, BaseMomentumMethod
from clsp_plugin.methods.registry import METHODS, register_method
from clsp_plugin.methods.synthetic import register, with_synthetic_positives

__all__ = [
    "METHODS",
    "BaseMethod",
    "BaseMomentumMethod",
    "register",
    "register_method",
    "with_synthetic_positives",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
