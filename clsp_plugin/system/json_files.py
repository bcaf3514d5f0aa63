"""Read JSON without trusting its syntax or the types of its values."""

import json
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from clsp_plugin.errors import ClspError
from clsp_plugin.system.files import check_regular

__all__ = ["checked", "read_json"]

T = TypeVar("T")


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _not_a_number(text: str) -> Any:
    raise ValueError(f"{text} is no number that JSON has")


def checked(content: Any, kind: type[T], name: str, advice: str) -> T:
    """Return content that was read, as an object of a type.

    Args:
        content: what JSON has: dicts, lists, strings, numbers, booleans and None.
        kind: a type as annotations have it, such as ``dict[str, float]``, or a dataclass. Nothing
            is converted: ``"5"`` is no number.
        name: begins the sentence of an error, such as "runs/record.json has".
        advice: what to do about it; ends the sentence.

    Raises:
        ClspError: a field has another type, is missing or unknown; the message names the first.
    """
    from pydantic import ValidationError

    if is_dataclass(kind) and isinstance(content, dict):
        for key in content.keys() - {field.name for field in fields(kind)}:
            raise ClspError(f"{name} {key}, which is unknown here; {advice}")
    try:
        # checked as JSON, which lets a dict be a dataclass, a list a tuple and an int a float
        adapter = _adapter(kind)  # type: ignore[arg-type]  # every type has a hash
        return adapter.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        given = repr(first.get("input"))
        given = given if len(given) <= 60 else f"{given[:57]}.."
        said = first["msg"][:1].lower() + first["msg"][1:]
        where = f"{place}={given}" if place else given
        raise ClspError(f"{name} {where}: {said}; {advice}") from error
    except RecursionError as error:
        raise ClspError(f"{name} values that are nested too deeply; {advice}") from error


def read_json(path: str | Path, kind: type[T], what: str, advice: str) -> T:
    """Read a JSON file and check the types of its content.

    Args:
        path: path of the file, UTF-8.
        kind: see :func:`checked`.
        what: what the file should be, for people, such as "a candidate store's manifest".
        advice: what to do where it is not.

    Raises:
        ClspError: the file is no regular one, is damaged, or its content has other types.
        OSError: the system refuses to read it, which says nothing about its content.
    """
    check_regular(path)
    content = Path(path).read_bytes()
    try:
        content = json.loads(content.decode(), parse_constant=_not_a_number)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ClspError(f"{path} is not {what} ({reason}); {advice}") from error
    return checked(content, kind, f"{path} is not {what}: it has", advice)
