"""The environment of a run: package versions, the commit, the machine."""

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

from clsp_plugin import __version__
from clsp_plugin.records.numerics import numerics_of
from clsp_plugin.system.memory import total_memory
from clsp_plugin.system.processes import cores

__all__ = ["SOURCE", "environment", "made_from"]


def environment(method: str | None = None, dataset: str | None = None) -> dict[str, Any]:
    """Return what a run ran on.

    Args:
        method: the method that is pre-trained; without it the versions of the numerics are not
            known.
        dataset: name of the data set that it is pre-trained on.

    Returns:
        ``hardware``: ``cpu`` (model), ``cores`` (that this process may use), ``gpu`` (name, or
        None), ``memory_gib``. ``versions``: of Python, torch, lightning, timm, diffusers and
        clsp_plugin, None where not installed, and ``numerics``, see ``records.numerics``.
        ``commit``: hash of the checkout that this package is run from, with ``-dirty`` if the
        package differs from it; None outside a checkout. With a method also ``source``, see
        :func:`made_from`.
    """
    import torch  # takes seconds, which tables need not wait for

    source = {} if method is None else {"source": SOURCE.get()}
    total = total_memory()
    versions = {name: _version(name) for name in ("lightning", "timm", "diffusers")}
    return {
        "hardware": {
            "cpu": _cpu_model(),
            "cores": cores(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "memory_gib": None if total is None else round(total / 2**30, 1),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **versions,
            "clsp_plugin": __version__,
            "numerics": None if method is None else numerics_of("pretrain", dataset, method),
        },
        "commit": _commit(Path(__file__).parents[1]),
        **source,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit(package: Path) -> str | None:
    """Return the hash of the checkout that ``package`` is part of, or None.

    An installed copy inside another project's checkout is not tracked there and has none. Only
    changes under ``package`` make it dirty: nothing else produces numbers.
    """
    # A git hook sets variables that would point these commands at another repository.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", check=True, timeout=20, env=clean
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--", ".")
    except (OSError, UnicodeDecodeError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if dirty else commit


SOURCE: ContextVar[dict[str, Any] | None] = ContextVar("source", default=None)


@contextmanager
def made_from(config: str, overrides: Iterable[str], settings: str) -> Iterator[None]:
    """Note the named configuration in the records that are written inside the block.

    Args:
        config: name of the configuration, or its path without suffix.
        overrides: the overrides that were given with it.
        settings: a hash of both together, by which a later version sees whether the same names
            still mean the same settings.
    """
    content = {"config": config, "overrides": list(overrides), "settings": settings}
    token = SOURCE.set(content)
    try:
        yield
    finally:
        SOURCE.reset(token)
