"""Random damage to files and folders: each function does one kind, and says what it did."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["damage", "flip"]

_ODD = (
    None, True, [], {}, "", "x", "../x", "ä\n", "${oc.env:HOME}", "javascript:1", -1, 0, 0.5, 2**63,
    10**30, 1e308, float("nan"), float("inf"), [[]], [None], {"a": {}}, "torch.nn.Linear",
)  # fmt: skip
_DEPTH = 300_000


def flip(file: Path, random_: random.Random) -> str:
    """Flip one bit of one byte."""
    content = bytearray(file.read_bytes())
    place = random_.randrange(len(content))
    content[place] ^= 1 << random_.randrange(8)
    file.write_bytes(content)
    return f"byte {place} flipped"


def _truncate(file: Path, random_: random.Random) -> str:
    size = random_.choice((0, random_.randrange(file.stat().st_size)))
    os.truncate(file, size)
    return f"cut to {size} bytes"


def _append(file: Path, random_: random.Random) -> str:
    with open(file, "ab") as out:
        out.write(random_.randbytes(20))
    return "20 bytes appended"


def _noise(file: Path, random_: random.Random) -> str:
    file.write_bytes(random_.randbytes(file.stat().st_size))
    return "all of it random"


def _replace(file: Path, random_: random.Random) -> str:
    """Put something in a file's place that is no readable file."""
    kind = random_.choice(("fifo", "folder", "link to nothing", "link to itself", "unreadable"))
    if kind == "unreadable":
        file.chmod(0)
        return kind
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(file if kind.endswith("itself") else "nowhere")
    return kind


def _absent(file: Path, random_: random.Random) -> str:
    file.unlink()
    return "deleted"


def _stranger(file: Path, random_: random.Random) -> str:
    """Put something beside a file that is not ours."""
    name = random_.choice(
        (".ipynb_checkpoints", ".Trash-1000", f"copy{file.suffix}", "a b ü", ".x")
    )
    beside = file.with_name(name)
    kind = random_.choice(("folder", "fifo", "empty", "copy"))
    if kind == "folder":
        beside.mkdir()
        shutil.copy(file, beside)
    elif kind == "fifo":
        os.mkfifo(beside)
    elif kind == "copy":
        shutil.copy(file, beside)
    else:
        beside.touch()
    return f"{kind} {name} beside it"


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of everything in a JSON value."""
    if isinstance(content, (dict, list)):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


def _json(file: Path, random_: random.Random) -> str:
    """Give something in a JSON file another value, type or name, or nest it without end."""
    content = json.loads(file.read_text(encoding="utf-8"))
    inside, key = random_.choice(list(_places(content)))
    kind = random_.choice(("value", "value", "value", "deep", "delete", "rename"))
    if kind == "delete":
        del inside[key]
    elif kind == "rename" and isinstance(inside, dict):
        inside[f"{key}_"] = inside.pop(key)
    else:
        inside[key] = "DEEP" if kind == "deep" else random_.choice(_ODD)
        kind = repr(inside[key])
    deep = "[" * _DEPTH + "]" * _DEPTH
    file.write_text(json.dumps(content).replace('"DEEP"', deep), encoding="utf-8")
    return f"{key}: {kind}"


def _yaml(file: Path, random_: random.Random) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    number = random_.randrange(len(lines))
    kind = random_.choice(("tab", "twice", "value", "value", "delete", "utf-16", "deep", "anchor"))
    name, colon, _ = lines[number].partition(":")
    if kind == "tab":
        lines[number] = "\t" + lines[number]
    elif kind == "twice":
        lines.insert(number, lines[number])
    elif kind == "delete":
        del lines[number]
    elif kind == "deep":
        lines[number] = f"{name}: " + "[" * 5000 + "]" * 5000
    elif kind == "anchor":
        lines[number] = f"{name}: *nowhere"
    elif kind == "value" and colon:
        lines[number] = f"{name}: {random_.choice(_ODD)}"
    file.write_text("\n".join(lines), encoding="utf-16" if kind == "utf-16" else "utf-8")
    return f"line {number + 1}: {kind}, {lines[min(number, len(lines) - 1)][:60]!r}"


_ANY = (flip, flip, _truncate, _append, _noise, _replace, _absent, _stranger)
_ALSO: dict[str, tuple[Callable[[Path, random.Random], str], ...]] = {
    ".json": (_json,) * 8,
    ".yaml": (_yaml,) * 8,
}


def damage(file: Path, random_: random.Random) -> str:
    """Damage a file, or what lies beside it, and say how."""
    return random_.choice((*_ANY, *_ALSO.get(file.suffix, ())))(file, random_)
