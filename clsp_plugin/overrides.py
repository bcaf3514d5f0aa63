"""``key=value`` as a person types it, made into what Hydra's grammar reads as just that.

Hydra gives a meaning to commas, brackets, quotes, blanks at the ends and much else, and refuses
letters outside ASCII. Here a value that its grammar reads as a number, a boolean, null, a list, a
block or a word is left to it; everything else is the text that was typed. Settings that are text,
such as paths, are always the text that was typed, but for ``null``, a whole in quotes, and what
holds ``${``.
"""

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from clsp_plugin.errors import ClspError

__all__ = ["as_hydra_reads", "quoted", "told"]

_PLAIN = re.compile(r"[A-Za-z_][\w.]*")
_NONE = ("null", "None")
# Text among the settings of the denoiser and the generator, which no typed block lists.
_OWN_TEXT = {"condition", "denoiser", "device", "export", "fid", "out", "sampler"}


@cache
def _text_settings() -> frozenset[str]:
    """The keys of all settings that are text."""
    from clsp_plugin.engine.config import Pretrain
    from clsp_plugin.evaluation.finetune import Finetune
    from clsp_plugin.evaluation.verbs import Knn, Linear, Transfer

    found = set(_OWN_TEXT)

    def look(schema: type, prefix: str) -> None:
        hints = get_type_hints(schema)
        for field in fields(schema):
            hint = hints[field.name]
            options = get_args(hint) if type(None) in get_args(hint) else [hint]  # of Optional
            nested = next((option for option in options if is_dataclass(option)), None)
            if nested is not None:
                look(nested, f"{prefix}{field.name}.")
            elif str in options:
                found.add(f"{prefix}{field.name}")

    for schema in (Pretrain, Finetune, Linear, Knn, Transfer):
        look(schema, "")
    return frozenset(found)


def quoted(text: str) -> str:
    """A text in the quotes of Hydra's grammar, which reads it as itself.

    Args:
        text: any, on one line or several.
    """
    # a backslash means itself, unless a quote follows, or the end of the text
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def _read(value: str) -> Any:
    """What Hydra's grammar reads a value as.

    Raises:
        HydraException: it cannot.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"key={value}")


def _value(key: str, value: str, multirun: bool) -> str:
    from hydra.errors import HydraException

    if "\x00" in value:
        raise ClspError(f"{key}= holds a character of number 0, which no setting and no path has.")
    if key in _text_settings():
        if not value.strip():
            raise ClspError(f"{key}= is empty; write {key}=null for none.")
        in_quotes = value[0] in "'\"" and value[-1:] == value[0] and len(value) > 1
        if value in _NONE or "${" in value or (in_quotes and not Path(value).exists()):
            return value
        if multirun and "," in value and not Path(value).exists():
            return value  # the values of a sweep
        return quoted(value)
    try:
        read = _read(value)
    except HydraException as error:
        if value[:1] in "[{":
            raise ClspError(
                f"{key}={value} begins as a list or a block and cannot be read as one; close its "
                f"brackets, and put texts with special characters in quotes."
            ) from error
        return quoted(value)
    if read.is_sweep_override() and not multirun:
        raise ClspError(
            f"{key}={value} gives several values; write -m to run one after the other, "
            f"[{value}] for a list, or quotes around a text with commas."
        )
    return value


def as_hydra_reads(args: Sequence[str], groups: Sequence[Path], multirun: bool) -> list[str]:
    """Overrides that add settings as well as change them, and say to Hydra what was typed.

    Args:
        args: as they were typed; flags of Hydra's pass through.
        groups: folders in which a folder of a setting's name holds files to choose from, such as
            ``augmentations=none.yaml``.
        multirun: whether several values, with commas, are a sweep.

    Raises:
        ClspError: a value that nobody can read.
    """
    out = []
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals or not _PLAIN.fullmatch(key) or key.startswith("hydra."):
            out.append(arg)
        elif any((folder / key).is_dir() for folder in groups):
            if value[:1] in "[{":
                raise ClspError(
                    f"{key}={value} is not a file's name: {key} names a file, such as "
                    f"{key}=symmetric.yaml; change a setting of it by its place, such as "
                    f"{key}.0.crop_size=16, or write a file of your own."
                )
            out.append(arg)
        else:
            out.append(f"++{key}={_value(key, value, multirun)}")
    return out


def told(error: BaseException, typed: Sequence[str]) -> str:
    """What Hydra, OmegaConf or YAML say of a configuration, on one line and in a user's words.

    Args:
        error: that one of them raised.
        typed: the arguments, as they were typed.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if not any("++" in arg for arg in typed):
        text = text.replace("++", "")  # ours: nobody typed it
    text = re.sub(r"\b[A-Z]\w+(?:Exception|Error): ", "", text)
    text = re.sub(r" See https://hydra\.cc\S*.*", "", text)
    return text if len(text) <= 600 else f"{text[:598]}.."
