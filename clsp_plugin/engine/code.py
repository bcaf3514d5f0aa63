"""Which code makes a number: the sources that it goes through, by what imports what.

A number of other code than today's is stale: it may or may not come out the same. What a run does
not go through, such as another method, does not make it so.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

__all__ = ["code_hash", "evaluation_code", "method_code"]

_NAME = "clsp_plugin"
_PACKAGE = Path(__file__).parents[1]
# No number goes through these: what is shown, how it is kept, and the list of all methods.
_NOT_COUNTED = {"", "cli", "configurations", "data.files", "engine.code", "engine.progress",
                "engine.record", "errors", "methods"}  # fmt: skip

_PICTURES = "benchmark.figures"
_TASKS = ("finetune", "knn", "linear", "transfer")  # evaluations, each with a module of its own


def _file(module: str) -> Path | None:
    path = _PACKAGE.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@cache
def _imports(module: str) -> frozenset[str]:
    """Modules of the package that one imports, anywhere in its source."""
    found = set()
    for node in ast.walk(ast.parse(_file(module).read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if _file(_below(name)) else node.module for name in names}
    return frozenset(_below(name) for name in found if name.split(".")[0] == _NAME)


def _below(name: str) -> str:
    """``a.b`` for ``clsp_plugin.a.b``."""
    return name.removeprefix(_NAME).removeprefix(".")


def _reached(roots: Iterable[str], leave_out: str | tuple[str, ...] = _PICTURES) -> set[str]:
    """Modules that some import, directly or not, and these; but none whose name begins so."""
    seen: set[str] = set()
    ahead = list(roots)
    while ahead:
        module = ahead.pop()
        if module not in seen | _NOT_COUNTED and not module.startswith(leave_out):
            seen.add(module)
            ahead += _imports(module)
    return seen


def _digest(modules: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for module in sorted(modules):
        digest.update(f"{module}\0".encode() + _file(module).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def code_hash(*modules: str) -> str:
    """16 digits of a SHA-256 over the sources of modules and of all that they import.

    Args:
        modules: of the package, such as ``diffusion.training``.
    """
    return _digest(_reached(modules))


@cache
def method_code(method: str) -> str | None:
    """The code of a pre-training: the engine, and the method with what it imports.

    Args:
        method: a name in ``METHODS``; another has no code here, and the answer is None.
    """
    from clsp_plugin.methods import METHODS

    if method not in METHODS:
        return None
    modules = {parent.__module__ for parent in METHODS[method].__mro__}
    own = {_below(module) for module in modules if module.split(".")[0] == _NAME}
    return _digest(_reached(["engine.pretrain"], leave_out="methods.") | _reached(own))


@cache
def evaluation_code(task: str) -> str:
    """The code of an evaluation; what only another task goes through does not count."""
    others = tuple(f"evaluation.{other}" for other in _TASKS if other != task)
    own = [f"evaluation.{task}"] * (task in _TASKS and _file(f"evaluation.{task}") is not None)
    return _digest(_reached(["evaluation.verbs"], leave_out=others) | _reached(own))
