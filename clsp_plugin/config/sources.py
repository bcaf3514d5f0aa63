"""Which file, or which argument, each setting of a composed configuration comes from."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clsp_plugin.config.overrides import hydra_overrides
from clsp_plugin.config.shipped import shipped

__all__ = ["ARGUMENT", "annotated", "composed_with_sources"]

ARGUMENT = "command line"


def composed_with_sources(
    folder: Path, stem: str, overrides: Sequence[str] = ()
) -> tuple[DictConfig, dict[str, str]]:
    """Compose a configuration as the command line does.

    Args:
        folder: the folder of the configuration.
        stem: its name there, without the suffix.
        overrides: ``key=value`` each.

    Returns:
        The configuration, and for each setting (``optimizer.lr``; a list counts as one setting) the
        file that it comes from, below ``scripts/`` if it is there, or :data:`ARGUMENT`.

    Raises:
        Exception: of Hydra or OmegaConf, if it cannot be composed.
    """
    import hydra
    from hydra._internal.config_repository import CachingConfigRepository
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    given = hydra_overrides(overrides, folder)
    with hydra.initialize_config_dir(str(folder), version_base="1.2"):
        cfg = hydra.compose(stem, given)
        loader: Any = GlobalHydra.instance().config_loader()
        repository = CachingConfigRepository(loader.repository)
        sources: dict[str, str] = {}
        for default in loader.compute_defaults_list(stem, given, RunMode.RUN).defaults:
            loaded = loader._load_single_config(default, repository)
            if loaded.provider in ("hydra", "schema"):
                continue
            name = default.config_path.removesuffix(".yaml") + ".yaml"
            file = _told(Path(loaded.path.removeprefix("file://")) / name)
            for key in _settings(OmegaConf.to_container(loaded.config, resolve=False)):
                _assign(sources, key, file)
    typed = [match[1] for one in given if (match := re.match(r"\+{0,2}([\w.]+)=", one))]
    for key in _settings(OmegaConf.to_container(cfg, resolve=False)):
        if any(f"{key}.".startswith(f"{name}.") for name in typed):
            _assign(sources, key, ARGUMENT)
    return cfg, sources


def _told(file: Path) -> str:
    root, file = shipped().resolve(), file.resolve()
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _settings(content: Any, above: str = "") -> Iterator[str]:
    """List the settings of nested mappings, with dots between the keys."""
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{name}.")
        else:
            yield name


def _assign(sources: dict[str, str], key: str, source: str) -> None:
    """Note a source, in place of those of a mapping or of its parts that the setting replaces."""
    for other in [o for o in sources if o.startswith(f"{key}.") or key.startswith(f"{o}.")]:
        del sources[other]
    sources[key] = source


def annotated(cfg: DictConfig, sources: Mapping[str, str]) -> str:
    """Return a configuration as YAML, with the source of each setting as a comment.

    Args:
        cfg: a configuration.
        sources: its sources, see :func:`composed_with_sources`.
    """
    lines = list(_lines(OmegaConf.to_container(cfg, resolve=False), sources))
    width = min(max((len(line) for line, source in lines if source), default=0), 60)
    return "".join(
        f"{line:<{width}}  # {source}\n" if source else f"{line}\n" for line, source in lines
    )


def _lines(
    content: Any, sources: Mapping[str, str], above: str = "", indent: str = ""
) -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:", sources.get(name, "")
            yield from _lines(value, sources, f"{name}.", f"{indent}  ")
            continue
        first, *rest = OmegaConf.to_yaml(OmegaConf.create({key: value})).splitlines()
        yield f"{indent}{first}", sources.get(name, "")
        yield from ((f"{indent}{line}", "") for line in rest)
