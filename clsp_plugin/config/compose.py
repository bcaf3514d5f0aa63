"""Find a configuration by the name that a user gives, and compose it."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from clsp_plugin.config.overrides import hydra_overrides
from clsp_plugin.config.shipped import shipped
from clsp_plugin.config.user_yaml import read_yaml
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.verbs import VERBS

__all__ = ["DEFAULT_DATASET", "compose", "locate", "names_of", "source_of", "typed_names"]

DEFAULT_DATASET = "digits"


def names_of(verb: str) -> list[str]:
    """List the shipped configurations of a verb: ``DATASET/NAME``, or ``NAME`` for any data set."""
    root = shipped() / verb
    files = [*root.glob("*.yaml"), *root.glob("*/*.yaml")]
    return sorted(str(p.relative_to(root).with_suffix("")) for p in files)


def typed_names(verb: str) -> list[str]:
    """List the names that may be typed: those of the offline data set need not name it."""
    begin = f"{DEFAULT_DATASET}/"
    names = names_of(verb)
    return names + [name.removeprefix(begin) for name in names if name.startswith(begin)]


def locate(verb: str, path: str | None, name: str | None) -> tuple[Path, str]:
    """Find a configuration.

    Args:
        verb: such as ``"pretrain"``.
        path: the user's ``--config-path``; None to search the shipped ones and the working
            directory.
        name: the user's ``--config-name``; None for the verb's default.

    Returns:
        Its folder, and its name without the suffix.

    Raises:
        ClspError: there is none; the message names the nearest that there is.
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
        # a folder of the user, else a shipped one, given by its name or its path in a checkout
        folders = [Path(path), root / Path(path).name]
    for folder in folders:
        file = folder / f"{name}.yaml"
        if file.is_file():
            if not file.resolve().is_relative_to(root.resolve()):
                read_yaml(file)  # reports a mistake in the user's YAML with its line
            return file.parent.resolve(), file.stem
    where = f"in {path}" if path is not None else "among the configurations that ship with us"
    names = typed_names(verb) if path is None else [p.stem for p in Path(path).glob("*.yaml")]
    raise ClspError(f"There is no {name}.yaml {where}{nearest(name, names)}")


def source_of(verb: str, path: str | None, folder: Path, stem: str) -> str:
    """Return the name by which :func:`compose` finds a configuration from the same directory."""
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
        ClspError: there is no configuration of this name, or an override cannot be read.
    """
    import hydra

    folder, stem = locate(verb, None, name)
    with hydra.initialize_config_dir(str(folder), version_base="1.2"):
        return hydra.compose(stem, hydra_overrides(overrides, folder))
