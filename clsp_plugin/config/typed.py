"""Check a configuration against a dataclass: types, ranges, unknown keys."""

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clsp_plugin.config.plain import plain
from clsp_plugin.config.rules import Rule, check_value
from clsp_plugin.errors import ClspError, first_line, nearest, short

__all__ = ["settings_of", "typed", "with_block"]

T = TypeVar("T")


def _schema_of(schema: type, name: str) -> type | None:
    """Return the dataclass of a field that is a nested block; None for other fields."""
    hint = get_type_hints(schema)[name]
    options = [hint, *get_args(hint)]
    return next(
        (option for option in options if isinstance(option, type) and is_dataclass(option)), None
    )


def _refuse_unknown(
    given: Mapping[str, Any], schema: type, prefix: str, extra: AbstractSet[str]
) -> None:
    valid = {f.name for f in fields(schema)} | extra
    for key, value in given.items():
        if not isinstance(key, str):
            raise ClspError(f"{prefix}{key} is not the name of a setting; names are text.")
        if key not in valid:
            raise ClspError(f"{prefix}{key} is not a setting{nearest(key, valid - extra or valid)}")
        if key in extra:
            continue
        _refuse_kind(f"{prefix}{key}", value, get_type_hints(schema)[key])
        nested = _schema_of(schema, key)
        if nested is None or value in (None, "None", MISSING):
            continue
        if not isinstance(value, Mapping):
            raise ClspError(f"{prefix}{key}={short(value)} is not a block of settings.")
        _refuse_unknown(value, nested, f"{prefix}{key}.", set())


def _refuse_kind(key: str, value: Any, hint: Any) -> None:
    """Refuse wrong types that OmegaConf would accept, or report in terms of its own.

    For example, it accepts every number other than 0 as True.
    """
    options = get_args(hint) if type(None) in get_args(hint) else (hint,)  # unpacks Optional
    kinds = {get_origin(kind) or kind for kind in options}
    if value == MISSING:
        return  # `typed` reports missing values
    if value in (None, "None"):
        if not kinds & {Any, type(None)}:
            raise ClspError(f"{key}=null is no value of it; give one, or leave {key} out.")
    elif kinds & {list, tuple} and not isinstance(value, list):
        raise ClspError(f"{key}={short(value)} is not a list; write {key}=[..,..].")
    elif bool in kinds and isinstance(value, int) and value not in (0, 1):
        raise ClspError(f"{key}={value} must be true or false.")
    elif isinstance(value, bool) and kinds & {int, float}:
        raise ClspError(f"{key}={value} must be a number.")


def typed(
    cfg: Mapping[str, Any] | DictConfig, schema: type, extra: AbstractSet[str] = frozenset()
) -> DictConfig:
    """Check a configuration against a dataclass and fill in its defaults.

    Args:
        cfg: the configuration that was given; not changed.
        schema: the dataclass.
        extra: further top-level keys, which are passed through unchecked.

    Returns:
        A new DictConfig.

    Raises:
        ClspError: a key is unknown (the message names the nearest valid one), or a value is
            missing, of a wrong type, or out of range.
    """
    if not isinstance(cfg, (Mapping, DictConfig)):
        raise ClspError(f"{cfg!r} is not a block of settings; give keys and values.")
    if not isinstance(cfg, DictConfig):
        cfg = OmegaConf.create(dict(cfg))
    try:
        given = plain(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ClspError(f"The configuration cannot be resolved: {first_line(error)}") from error
    _refuse_unknown(given, schema, "", extra)
    own = {key: value for key, value in given.items() if key not in extra}
    merged = _merged(schema, _without_none(own))
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ClspError(f"{', '.join(missing)} is not set; give it in the YAML or as key=value.")
    out = plain(merged)
    _check_rules(out, schema, "")
    return OmegaConf.create({**out, **{k: v for k, v in given.items() if k in extra}})


def settings_of(schema: type[T], given: Mapping[str, Any] | DictConfig | T | None) -> T:
    """Make an object of a settings dataclass from keys and values, checked as in :func:`typed`.

    Args:
        schema: the dataclass; its sequences are tuples.
        given: the keys and values; an object of the class is returned as it is.

    Raises:
        ClspError: see :func:`typed`.
    """
    if isinstance(given, schema):
        return given
    values = plain(typed(cast("Mapping[str, Any]", given or {}), schema))
    hints = get_type_hints(schema)
    return schema(
        **{k: tuple(v) if get_origin(hints[k]) is tuple else v for k, v in values.items()}
    )


def with_block(cfg: DictConfig, name: str, schema: type) -> DictConfig:
    """Check one block of a configuration as :func:`typed` does, and fill in its defaults.

    Args:
        cfg: the whole configuration; not changed.
        name: name of the block, which may be missing or null.
        schema: its dataclass.

    Returns:
        A copy of the configuration with a complete block.

    Raises:
        ClspError: see :func:`typed`.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    given = cfg.get(name)
    whole = make_dataclass("Block", [(name, schema, field(default_factory=schema))])
    cfg[name] = typed({name: {} if given is None else given}, whole)[name]
    return cfg


def _merged(schema: type, given: Mapping[str, Any]) -> DictConfig:
    """Merge the given values into a schema's defaults.

    Raises:
        ClspError: a value has another type; the message has its key.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), given)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        # OmegaConf names no key for a list in a list or for a mapping in place of a list, so the
        # keys are merged one by one to find it
        where = getattr(error, "full_key", None)
        if not where and len(given) > 1:
            for key, value in given.items():
                _merged(schema, {key: value})
        where = where or next(iter(given))
        raise ClspError(_told(where, first_line(error))) from error
    assert isinstance(merged, DictConfig)
    return merged


# OmegaConf's words for a value of another type, and ours for the type.
_OTHER_TYPE = re.compile(
    r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)"
)
_TYPES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def _told(key: str, message: str) -> str:
    """Turn OmegaConf's message about the value of a setting into a sentence of ours."""
    found = _OTHER_TYPE.match(message)
    if found and found[2] in _TYPES:
        return f"{key}={short(found[1])} must be {_TYPES[found[2]]}."
    return f"{key}: {message}"


def _check_rules(values: Mapping[str, Any], schema: type, prefix: str) -> None:
    """Check that every number is finite and that every value keeps the rule of its field."""
    for one in fields(schema):
        value, nested = values[one.name], _schema_of(schema, one.name)
        if nested is not None and isinstance(value, Mapping):
            _check_rules(value, nested, f"{prefix}{one.name}.")
            continue
        hint = get_type_hints(schema)[one.name]
        nests = isinstance(value, list) and any(isinstance(part, (list, dict)) for part in value)
        if nests and _is_list_of_numbers(hint):  # OmegaConf accepts it
            raise ClspError(f"{prefix}{one.name}={short(value)} is not a list of numbers.")
        check_value(f"{prefix}{one.name}", value, one.metadata.get("rule", Rule()))


_NUMBERS = (list[int], list[float], tuple[int, ...])


def _is_list_of_numbers(hint: Any) -> bool:
    return any(kind in _NUMBERS for kind in (hint, *get_args(hint)))


def _without_none(given: Any) -> Any:
    """Replace the text ``None``, which some of solo-learn's YAMLs have, by None."""
    if isinstance(given, dict):
        return {key: _without_none(value) for key, value in given.items()}
    if isinstance(given, list):
        return [_without_none(value) for value in given]
    return None if given == "None" else given
