"""Translate ``key=value`` arguments, as users type them, into Hydra's grammar.

A list, a mapping, null, a number, a boolean, a quoted text, ``${...}`` and, with ``-m``, a sweep
are passed to Hydra unchanged. Everything else is a text and taken literally, with blanks, commas,
brackets, quotes, ``=``, ``#`` and letters of any alphabet. Settings that are paths or names are
texts even if they look like a number or a list.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clsp_plugin.config.shipped import shared, takes_shared
from clsp_plugin.errors import ClspError, short

__all__ = ["TEXTS", "as_typed", "composing", "hydra_overrides", "literal", "quoted", "written"]

# The last parts of keys that take a free text: a path or a name.
TEXTS = frozenset({
    "condition", "denoiser", "dir", "entity", "export_npy", "extra", "fid", "image_column",
    "label_column", "name", "out", "path", "pretrained_feature_extractor", "project", "record_dir",
    "resume_from_checkpoint", "train_path", "val_path",
})  # fmt: skip
# Keys that take several names with commas between them, as well as a list.
_LISTS = frozenset({"logger"})
_KEY = re.compile(r"(\+{0,2})([A-Za-z_][\w.]*)")
_QUOTED = re.compile(r"\s*(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\s*", re.DOTALL)


def hydra_overrides(args: Sequence[str], folder: Path, multirun: bool = False) -> list[str]:
    """Translate arguments for Hydra; ``key=value`` may add a setting as well as change one.

    Args:
        args: the arguments as typed; those that are not ``key=value`` are kept.
        folder: the folder of the configuration. Its subfolders are config groups, as are the
            folders that configurations share.
        multirun: whether sweeps are run (``-m``).

    Raises:
        ClspError: a value begins like a list or a mapping and is not one, there are several
            values without ``-m``, or a list is given where a config group takes a name.
    """
    out = []
    for arg in args:
        key, equals, value = arg.partition("=")
        match = _KEY.fullmatch(key)
        if not equals or match is None:
            out.append(arg)
            continue
        plus, name = match.groups()
        places = (folder, shared()) if takes_shared(folder) else (folder,)
        groups = [place / name for place in places if (place / name).is_dir()]
        value = _for_hydra(name, value, multirun)
        if groups:
            _check_group(groups, name, value)
        own = bool(groups) or name == "hydra" or name.startswith("hydra.")
        out.append(f"{plus or ('' if own else '++')}{name}={value}")
    return out


def as_typed(override: str, folder: Path) -> str:
    """Return an override in Hydra's grammar as a person types it, for records and messages.

    Args:
        override: one that :func:`hydra_overrides` made.
        folder: the folder of the configuration.

    Returns:
        ``key=value`` that :func:`hydra_overrides` translates to the override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    plain = override.removeprefix("++")
    key, _, value = plain.partition("=")
    forms = [plain]
    if _QUOTED.fullmatch(value):
        text = OverridesParser.create().parse_override(f"key={value}").value()
        forms = [f"{key}={text}", plain]
    for form in forms:
        with contextlib.suppress(ClspError):  # as of quotes that were needed
            if hydra_overrides([form], folder) == [override]:
                return form
    return override


def _check_group(folders: Sequence[Path], name: str, value: str) -> None:
    """Refuse a list or a mapping as the value of a config group, which takes a file's name."""
    if value.lstrip()[:1] in ("[", "{"):
        files = {file.stem for folder in folders for file in folder.glob("*.yaml")}
        names = ", ".join(sorted(files)[:20])
        raise ClspError(
            f"{name}={short(value)}: on the command line {name} names one of the files {names}; "
            f"change what it holds by {name}.0.KEY=VALUE, or write a list into a YAML of your own."
        )


def _for_hydra(key: str, value: str, multirun: bool) -> str:
    """Translate the value of one argument into Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Sweep
    from hydra.errors import HydraException

    if value.strip().lower() == "null" or _QUOTED.fullmatch(value) or "${" in value:
        return value
    is_text = key.rpartition(".")[2] in TEXTS
    try:
        read = OverridesParser.create().parse_override(f"key={value}").value()
    except (HydraException, RecursionError) as error:
        if not is_text and value.lstrip()[:1] in ("[", "{"):
            raise ClspError(
                f"{key}={short(value)} is no list or mapping that can be read; write it as "
                f"[1,2] or {{a: 1}}, with quotes around texts in it that have other signs."
            ) from error
        return _as_text(value)
    if isinstance(read, Sweep):
        if key in _LISTS:
            return f"[{value}]"
        if multirun:
            return value
        if not is_text:
            raise ClspError(
                f"{key}={short(value)} is several values; add -m to run each, or write a list, "
                f"{key}=[{short(value)}]."
            )
        return _as_text(value)
    return _as_text(value) if is_text or isinstance(read, str) else value


def literal(key: str, text: str) -> str:
    """Return the ``key=value`` that :func:`hydra_overrides` reads as a text, whatever it is."""
    is_text = key.rpartition(".")[2] in TEXTS
    plain = is_text and _for_hydra(key, text, multirun=False) == _as_text(text)
    return f"{key}={text if plain else quoted(text)}"


def written(value: Any) -> str:
    """Return a value as it stands behind ``key=``: ``null``, ``[1, 2]``, ``{a: 1}``."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_part(part) for part in value) + "]"
    return str(value)


def _part(value: Any) -> str:
    return quoted(str(value)) if isinstance(value, (str, Path)) else written(value)


def quoted(text: str) -> str:
    """Quote a text for Hydra, which then reads it literally, except for ``${...}``."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=text, quote=Quote.single).with_quotes()


def _as_text(value: str) -> str:
    """Quote a text for Hydra, unless Hydra reads it literally without quotes."""
    if not value or re.fullmatch(r"[A-Za-z_/][\w./-]*", value, re.ASCII):
        words = ("true", "false", "null", "inf", "nan")
        if value.lower() not in words:
            return value
    return quoted(value)


def composing(error: Exception, folder: Path) -> str:
    """Turn an error of Hydra, OmegaConf or PyYAML about a configuration into one sentence.

    Args:
        error: what was raised.
        folder: the directory of the configuration, whose files are searched for the one at fault.
    """
    import yaml

    if isinstance(error, yaml.MarkedYAMLError):
        from clsp_plugin.config.user_yaml import told

        return told(error)
    if isinstance(error, RecursionError):
        return "The configuration is nested too deeply, or its defaults name each other in a circle"
    if isinstance(error, UnicodeDecodeError):
        file = _not_utf8(folder) or "A file of the configuration"
        return f"{file} is not text in UTF-8; save it as UTF-8"
    if isinstance(error, KeyError):
        return f"The configuration lacks {error}"
    return _plain(error)


def _not_utf8(folder: Path) -> Path | None:
    """Return the first YAML file below a directory that is not text in UTF-8."""
    for file in sorted(folder.rglob("*.yaml")):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return file
        except OSError:
            continue
    return None


def _plain(error: Any) -> str:
    """Return an error's message without Hydra's hints and without ``++``, which nobody typed."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"To (append|force|add) .*?\+\S+", "", text)
    text = re.sub(r"See https?://\S+ for \S+( \S+){0,3}", "", text)
    return short(text.replace("'++", "'").replace(" ++", " ").strip(), 400)
