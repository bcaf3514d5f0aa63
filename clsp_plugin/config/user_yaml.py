"""Read YAML files of users; an error names the file and the line."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from clsp_plugin.errors import ClspError, short

__all__ = ["parse_yaml", "read_yaml", "told"]


def read_yaml(path: Path) -> DictConfig:
    """Read the block of settings in a file.

    Raises:
        ClspError: the file cannot be read, is not UTF-8, not YAML, or no block of settings; the
            message has its path and, if known, the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ClspError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ClspError(f"{path}, line {line}, is not text in UTF-8; save it as UTF-8.") from error
    content = parse_yaml(text, str(path))
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ClspError(
            f"{path} holds {_kind(content)} and no block of settings; write KEY: VALUE lines."
        )
    defaults = content.get("defaults", [])
    if not isinstance(defaults, list):
        raise ClspError(
            f"{path}: defaults is {_kind(defaults)}; write a list of configurations, such as "
            f"defaults: [_self_]."
        )
    try:
        return OmegaConf.create(content)
    except (OmegaConfBaseException, RecursionError) as error:
        raise ClspError(f"{path}: {short(error)}") from error


def parse_yaml(text: str, name: str) -> Any:
    """Parse a text in YAML; a duplicate key is an error.

    Args:
        text: one document.
        name: the file or other source of the text, for messages.

    Raises:
        ClspError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader=get_yaml_loader())
    except yaml.MarkedYAMLError as error:
        raise ClspError(f"{told(error, name)}.") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ClspError(
            f"{name}, line {line}, has the character {chr(error.character)!r}, which YAML does "
            f"not allow; remove it."
            if isinstance(error.character, int)
            else f"{name}, line {line}, is not YAML ({short(error)})."
        ) from error
    except (ValueError, RecursionError, OverflowError, yaml.YAMLError) as error:
        # invalid dates and numbers; thousands of nested brackets
        raise ClspError(f"{name} is not YAML that can be read ({short(error)}).") from error


def told(error: yaml.MarkedYAMLError, name: str | None = None) -> str:
    """Return PyYAML's message, with the file and the line, in one line."""
    mark = error.problem_mark or error.context_mark
    where = name or (mark.name if mark else "The configuration")
    line = f", line {mark.line + 1}," if mark else ""
    what = "; ".join(str(part) for part in (error.context, error.problem) if part)
    return f"{where}{line} is not YAML ({short(what)})"


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    return "a block" if isinstance(value, dict) else f"the single value {short(repr(value), 40)}"
