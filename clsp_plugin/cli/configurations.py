"""``clsp configs`` and ``clsp show``: the configurations that ship with the package."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from clsp_plugin.config.compose import DEFAULT_DATASET, locate, names_of
from clsp_plugin.config.overrides import composing
from clsp_plugin.config.shipped import shipped
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.verbs import EXPERIMENTS

__all__ = ["configs", "show"]


def configs(args: list[str]) -> None:
    """Run ``clsp configs`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp configs",
        description="List the configurations and suites that ship with the package, with one line "
        "for each. `clsp show NAME` prints one of them.",
    )
    parser.add_argument("words", nargs="*", help="list those that have all of these, such as cifar")
    words = parser.parse_args(args).words
    lines = [
        (name, does)
        for name, does in _listed()
        if all(word.lower() in f"{name} {does}".lower() for word in words)
    ]
    if not lines:
        raise ClspError(f"no configuration has {' and '.join(words)}; `clsp configs` lists all.")
    width = max(len(name) for name, _ in lines)
    for name, does in lines:
        print(f"{name:<{width}}  {does}")


def _listed() -> Iterator[tuple[str, str]]:
    """Return the name of each shipped configuration, after its verb, and its first line."""
    for verb in EXPERIMENTS:
        for name in names_of(verb):
            yield f"{verb}/{name}", _first_comment(shipped() / verb / f"{name}.yaml")
    for file in sorted((shipped() / "bench").glob("*.yaml")):
        yield f"bench/{file.stem}", _first_comment(file)


def _first_comment(file: Path) -> str:
    """Return the sentences of the comment that a file begins with, in one line."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def show(args: list[str]) -> None:
    """Run ``clsp show`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp show",
        description="Print a configuration as it is composed, and for each setting the file that "
        "it comes from. Settings that are left out have the defaults of the verb.",
    )
    parser.add_argument(
        "configuration",
        help="its name, such as cifar/clsp_simclr or linear/cifar/linear, or a YAML file",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ")
    options = parser.parse_intermixed_args(args)
    folder, stem = _found(options.configuration)
    from clsp_plugin.config.sources import annotated, composed_with_sources

    try:
        cfg, sources = composed_with_sources(folder, stem, options.overrides)
    except ClspError:
        raise
    except Exception as error:  # those of Hydra, OmegaConf and PyYAML have no common class
        raise ClspError(f"{composing(error, folder)}.") from error
    print(annotated(cfg, sources), end="")


def _found(given: str) -> tuple[Path, str]:
    """Find a configuration of any verb by its name, or a file; see ``config.compose.locate``."""
    file = Path(given)
    if file.suffix in (".yaml", ".yml") and file.is_file():
        return locate("pretrain", str(file.parent), file.stem)
    name = re.sub(r"\.ya?ml$", "", given)
    if name.startswith("bench/"):
        suite = name.removeprefix("bench/")
        raise ClspError(f"{given} is a suite; `clsp bench {suite} --dry-run` prints its plan.")
    whole = {f"{verb}/{known}": (verb, known) for verb in EXPERIMENTS for known in names_of(verb)}
    for wanted in (name, f"{DEFAULT_DATASET}/{name}"):
        hits = [key for key, (_, known) in whole.items() if wanted in (key, known)]
        if len(hits) > 1:
            raise ClspError(f"{given} may be {' or '.join(hits)}; give one of these.")
        if hits:
            verb, known = whole[hits[0]]
            return locate(verb, None, known)
    names = [*whole, *(known for _, known in whole.values())]
    raise ClspError(f"there is no configuration {given}{nearest(name, names)}")
