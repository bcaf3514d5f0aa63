"""Arguments that several verbs take."""

import argparse
import re

from clsp_plugin.config.compose import compose
from clsp_plugin.errors import ClspError

__all__ = ["add_images", "data_of", "is_data", "words"]


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word for word in text.split(",") if word]


def add_images(parser: argparse.ArgumentParser, verb: str) -> None:
    """Which images another verb takes; see :func:`data_of`."""
    parser.add_argument(
        "data", nargs="*", metavar="data.key=value", help=f"as `clsp {verb}` is given them"
    )
    parser.add_argument("--config-name", "-cn", help=f"that `clsp {verb}` is given")


def is_data(arg: str) -> bool:
    """Whether an argument is one of :func:`add_images`."""
    return re.match(r"data\.\w+=", arg) is not None


def data_of(verb: str, name: str, given: list[str]):
    """The data block of a shipped configuration with the changes on a command line."""
    from clsp_plugin.config.training import Data
    from clsp_plugin.config.typed import typed

    strangers = [arg for arg in given if not is_data(arg)]
    if strangers:
        raise ClspError(f"{strangers[0]} is not a data.key=value.")
    return typed(compose(verb, name, given).data, Data)
