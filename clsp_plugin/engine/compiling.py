"""Which parts of a training are compiled: the augmentation, the network."""

import torch
from omegaconf import DictConfig

from clsp_plugin.data.augmentation.pipeline import can_compile_augmentation
from clsp_plugin.engine.resume import Start
from clsp_plugin.system.compiling import to_compile

__all__ = ["parts_to_compile"]

# Views from which on compiling saves more time than it takes.
_VIEWS = 3_000_000
# On an H100 compiling ResNet-18 saves 4.3 microseconds a view and takes 30 to 46 s: it pays from 7
# to 11 million views on; compiling the augmentation saves 2.3 and takes 26 s (docs/performance.md).
_VIEWS_ON_CUDA = 10_000_000


def parts_to_compile(
    cfg: DictConfig,
    device: torch.device,
    *,
    processes: int,
    num_images: int,
    start: Start,
) -> dict[str, bool]:
    """Return whether to compile the ``augmentation`` and the ``network`` of a training.

    Each is as ``performance.compile_..`` says. ``auto`` compiles the augmentation in a long run,
    and the network of a long run on one CUDA GPU if it is a ResNet, which is what was measured to
    be faster. What is compiled rounds differently, so a run that goes on stays with ``auto`` as it
    was.

    Args:
        cfg: a complete configuration of a training.
        device: where it trains.
        processes: the number of processes that train together.
        num_images: the number of images of an epoch.
        start: where the training begins. A checkpoint that does not say what was compiled is taken
            to be older than the compiling of networks.

    Raises:
        ClspError: something is to be compiled that cannot be compiled on this machine.
    """
    views = num_images * cfg.max_epochs * (cfg.data.num_large_crops + cfg.data.num_small_crops + 1)
    on_cuda = device.type == "cuda"
    long = views >= (_VIEWS_ON_CUDA if on_cuda else _VIEWS)
    before = start.compiled or ({} if start.checkpoint is None else {"network": False})
    suits = on_cuda and processes == 1 and cfg.backbone.name.startswith("resnet")
    pays = {
        "augmentation": before.get("augmentation", long) and can_compile_augmentation(device),
        "network": before.get("network", long) and suits,
    }
    return {
        part: to_compile(
            cfg.performance[f"compile_{part}"], device, f"performance.compile_{part}", pays=pay
        )
        for part, pay in pays.items()
    }
