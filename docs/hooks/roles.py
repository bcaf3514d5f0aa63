"""An extension of griffe: docstrings as Markdown, with the cross-references that Sphinx writes."""

import re
from typing import Any

from griffe import Alias, Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|data):`(~?)([\w.]+)`")
_CODE = re.compile(r"(``.*?``)", re.DOTALL)


class Roles(Extension):
    """Makes links of ``:func:`name```, and Markdown's code of reStructuredText's."""

    def on_object(self, *, obj: Object | Alias, **_: Any) -> None:
        if obj.is_alias or obj.docstring is None:
            return
        text = obj.docstring.value
        text = _ROLE.sub(lambda match: _reference(obj, *match.groups()), text)
        obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _reference(obj: Any, short: str, name: str) -> str:
    """Return a link to what a role names if the site has it, and its name otherwise."""
    label = name.rsplit(".", 1)[-1] if short else name
    return f'<autoref identifier="{_path(obj, name)}" optional><code>{label}</code></autoref>'


def _path(obj: Any, name: str) -> str:
    """Return the full path of what a docstring names in its own scope."""
    if name.startswith("clsp_plugin."):
        return name
    first, _, rest = name.partition(".")
    for scope in (obj, obj.module):
        try:
            found = scope.resolve(first)
        except Exception:  # griffe's errors of names that are not there have no common class
            continue
        return f"{found}.{rest}" if rest else found
    return name
