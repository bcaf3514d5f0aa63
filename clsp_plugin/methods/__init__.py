"""The methods: one file and one line each."""

from clsp_plugin.methods.all4one import All4One
from clsp_plugin.methods.barlow_twins import BarlowTwins
from clsp_plugin.methods.base import BaseMethod, BaseMomentumMethod
from clsp_plugin.methods.byol import BYOL
from clsp_plugin.methods.cl_gan import CLGAN
from clsp_plugin.methods.clsp_noaug import ClspNoaug
from clsp_plugin.methods.dcl import DCL
from clsp_plugin.methods.deepclusterv2 import DeepClusterV2
from clsp_plugin.methods.dino import DINO
from clsp_plugin.methods.mocov2_ft import MoCoV2FT
from clsp_plugin.methods.mocov2plus import MoCoV2Plus
from clsp_plugin.methods.mocov3 import MoCoV3
from clsp_plugin.methods.nnbyol import NNBYOL
from clsp_plugin.methods.nnclr import NNCLR
from clsp_plugin.methods.nnsiam import NNSiam
from clsp_plugin.methods.ressl import ReSSL
from clsp_plugin.methods.simclr import SimCLR
from clsp_plugin.methods.simclr_ft import SimCLRFT
from clsp_plugin.methods.simsiam import SimSiam
from clsp_plugin.methods.supcon import SupCon
from clsp_plugin.methods.swav import SwAV
from clsp_plugin.methods.synthetic import register, with_synthetic_positives
from clsp_plugin.methods.vibcreg import VIbCReg
from clsp_plugin.methods.vicreg import VICReg
from clsp_plugin.methods.wmse import WMSE

__all__ = [
    "METHODS",
    "BaseMethod",
    "BaseMomentumMethod",
    "register",
    "with_synthetic_positives",
]

METHODS: dict[str, type] = {
    "all4one": All4One,
    "barlow_twins": BarlowTwins,
    "byol": BYOL,
    "cl_gan": CLGAN,
    "clsp_noaug": ClspNoaug,
    "dcl": DCL,
    "deepclusterv2": DeepClusterV2,
    "dino": DINO,
    "mocov2_ft": MoCoV2FT,
    "mocov2plus": MoCoV2Plus,
    "mocov3": MoCoV3,
    "nnbyol": NNBYOL,
    "nnclr": NNCLR,
    "nnsiam": NNSiam,
    "ressl": ReSSL,
    "simclr": SimCLR,
    "simclr_ft": SimCLRFT,
    "simsiam": SimSiam,
    "supcon": SupCon,
    "swav": SwAV,
    "vibcreg": VIbCReg,
    "vicreg": VICReg,
    "wmse": WMSE,
}
register(METHODS)
