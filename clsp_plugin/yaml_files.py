"""YAML that a user wrote: what is wrong with a file is one sentence with its name and line."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clsp_plugin.errors import ClspError

__all__ = ["read_yaml"]


def read_yaml(file: Path) -> DictConfig:
    """Read a YAML file of settings.

    Args:
        file: UTF-8, with or without a byte order mark; one block of keys and values.

    Raises:
        ClspError: another encoding, a mistake in the syntax, a key twice, or no block of keys.
        OSError: it cannot be read.
    """
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ClspError(
            f"{file} is not UTF-8 text (line {line}); save it in that encoding."
        ) from error
    try:
        out = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except Exception as error:  # PyYAML's and OmegaConf's have no common base
        raise ClspError(f"{file} cannot be read as YAML: {_reason(error)}.") from error
    if not isinstance(out, DictConfig):
        raise ClspError(f"{file} is a list and not a block of settings; write `key: value` lines.")
    if list(out.values()) == [None] and text.strip().rstrip(":") == next(iter(out)):
        # OmegaConf takes a lone word for a key
        raise ClspError(f"{file} holds a lone word and no settings; write `key: value` lines.")
    return out


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or includes itself"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    problem = problem or "it is not a block of `key: value` lines"
    if mark is None:
        position = getattr(error, "position", None)
        return problem if position is None else f"{problem} (character {position + 1})"
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})"
