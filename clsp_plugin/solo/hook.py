"""The hook that runs when Hydra starts a script of solo-learn, such as ``main_pretrain.py``."""

import sys
from collections.abc import MutableMapping
from pathlib import PurePosixPath

from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import DictConfig

from clsp_plugin.config.shipped import add_shared, shipped
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.synthetic import register
from clsp_plugin.solo.methods import HostPositives

__all__ = ["NOT_METHODS", "WITHOUT_EMBEDDING", "activate", "register_host"]

# Entries of solo-learn's registry that are not methods: the base class and the offline probe.
NOT_METHODS = ("base", "linear")
WITHOUT_EMBEDDING = {
    "mae": "MAE reconstructs patches of one view and has no embedding that two views of an image "
    "should share, so there is nothing for a synthetic positive to be pulled to",
}
_DEFAULT_FOLDER = "cifar"


def register_host(methods: MutableMapping[str, type]) -> None:
    """Add ``clsp_<name>`` and ``<name>_aug`` to solo-learn's registry, in place.

    If a method cannot have such a version, the name is registered all the same: creating it raises
    an error that says why. Registering twice changes nothing.
    """
    absent = {f"clsp_{name}": name for name in WITHOUT_EMBEDDING}
    absent |= {f"{name}_aug": name for name in WITHOUT_EMBEDDING}
    register(methods, skip={*NOT_METHODS, *WITHOUT_EMBEDDING, *absent}, mixin=HostPositives)
    for asked, name in absent.items():
        if name in methods:
            methods.setdefault(asked, _refusal(asked, WITHOUT_EMBEDDING[name]))


def _refusal(asked: str, why: str) -> type:
    def refuse(self, cfg: DictConfig) -> None:
        raise ClspError(f"There is no {asked}: {why}. Choose another method.")

    return type("Refused", (), {"__init__": refuse, "__doc__": f"Why there is no {asked}."})


def activate(search_path: ConfigSearchPath) -> None:
    """Register with the solo-learn that is loaded, and let Hydra find our configurations.

    Hydra then also searches our folder with the same name as the application's own, such as
    ``scripts/pretrain/cifar``, which is also taken if we have none of that name. The application's
    own files come first.

    Args:
        search_path: Hydra's search path; changed in place.
    """
    register_host(sys.modules["solo.methods"].METHODS)
    root = shipped() / "pretrain"
    own = [PurePosixPath(e.path).name for e in search_path.get_path() if e.provider == "main"]
    name = next((name for name in own if (root / name).is_dir()), _DEFAULT_FOLDER)
    search_path.append("clsp-plugin", f"file://{root / name}")
    add_shared(search_path)
