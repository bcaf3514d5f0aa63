"""A folder that appears whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clsp_plugin.errors import ClspError
from clsp_plugin.system.files import whole_folder

__all__ = ["made_whole"]


@contextmanager
def made_whole(out: str | Path) -> Iterator[Path]:
    """Make what is exported beside its place, and move it there when the block ends well.

    Args:
        out: the folder, which may exist only if it is empty.

    Raises:
        ClspError: it is there already.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ClspError(f"{out} is there already; name another --out, or delete it.")
    with whole_folder(out) as made:
        yield made
        if out.is_dir():
            out.rmdir()  # an empty one
