"""Finding a configuration by what a user called it, and composing it."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from clsp_plugin.config.overrides import hydra_overrides
from clsp_plugin.config.shipped import shipped
from clsp_plugin.config.user_yaml import read_yaml
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.verbs import VERBS

__all__ = ["DEFAULT_DATASET", "compose", "locate", "names_of", "source_of"]

DEFAULT_DATASET = "digits"


def names_of(verb: str) -> list[str]:
    """Shipped configurations of a verb: ``DATASET/NAME``, or ``NAME`` where one fits all."""
    root = shipped() / verb
    files = [*root.glob("*.yaml"), *root.glob("*/*.yaml")]
    return sorted(str(p.relative_to(root).with_suffix("")) for p in files)


def locate(verb: str, path: str | None, name: str | None) -> tuple[Path, str]:
    """The folder and the name of a configuration.

    Raises:
        ClspError: there is none, with the nearest that there is.
    """
    if name is None:
        name = VERBS[verb].configuration
        if name is None:
            raise ClspError(f"Name a configuration, such as --config-name {names_of(verb)[0]}.")
    name = re.sub(r"\.ya?ml$", "", name)
    root = shipped() / verb
    if path is None:
        folders = [root, root / DEFAULT_DATASET, Path.cwd()]
    else:
        # a folder of the user's, else one of ours, by its name or by its place in a checkout
        folders = [Path(path), root / Path(path).name]
    for folder in folders:
        file = folder / f"{name}.yaml"
        if file.is_file():
            if not file.resolve().is_relative_to(root.resolve()):
                read_yaml(file)  # a mistake is told with its line
            return file.parent.resolve(), file.stem
    where = f"in {path}" if path is not None else "among the configurations that ship with us"
    names = names_of(verb) if path is None else [p.stem for p in Path(path).glob("*.yaml")]
    raise ClspError(f"There is no {name}.yaml {where}{nearest(name, names)}")


def source_of(verb: str, path: str | None, folder: Path, stem: str) -> str:
    """The name by which :func:`compose` finds a configuration again, from the same directory."""
    root = (shipped() / verb).resolve()
    if folder.is_relative_to(root):
        return (folder / stem).relative_to(root).as_posix()
    return (Path(path or ".") / stem).as_posix()


def compose(verb: str, name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a shipped configuration as the command line would.

    Args:
        verb: such as ``"pretrain"``.
        name: such as ``"digits/simclr"``.
        overrides: ``key=value`` each.

    Returns:
        The configuration.

    Raises:
        ClspError: there is none of this name, or an override that cannot be read.
    """
    import hydra

    folder, stem = locate(verb, None, name)
    with hydra.initialize_config_dir(str(folder), version_base="1.2"):
        return hydra.compose(stem, hydra_overrides(overrides, folder))
