"""The methods: one file and one line each."""

from clsp_plugin.methods.base import BaseMethod, BaseMomentumMethod
from clsp_plugin.methods.byol import BYOL
from clsp_plugin.methods.mocov2plus import MoCoV2Plus
from clsp_plugin.methods.simclr import SimCLR
from clsp_plugin.methods.synthetic import register, with_synthetic_positives

__all__ = [
    "METHODS",
    "BaseMethod",
    "BaseMomentumMethod",
    "register",
    "with_synthetic_positives",
]

METHODS: dict[str, type] = {
    "byol": BYOL,
    "mocov2plus": MoCoV2Plus,
    "simclr": SimCLR,
}
register(METHODS)
