"""Command-line arguments that several verbs take."""

import argparse
import re

from clsp_plugin.config.compose import compose
from clsp_plugin.errors import ClspError

__all__ = ["add_images", "data_of", "is_data", "words"]


def words(text: str) -> list[str]:
    """Split a text at commas; empty parts are left out."""
    return [word for word in text.split(",") if word]


def add_images(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add the arguments that choose images as ``clsp <verb>`` does; see :func:`data_of`."""
    parser.add_argument(
        "data", nargs="*", metavar="data.key=value", help=f"as `clsp {verb}` is given them"
    )
    parser.add_argument("--config-name", "-cn", help=f"that `clsp {verb}` is given")


def is_data(arg: str) -> bool:
    """Whether an argument is a ``data.key=value``, as :func:`add_images` takes them."""
    return re.match(r"data\.\w+=", arg) is not None


def data_of(verb: str, name: str, given: list[str]):
    """Return the ``data`` block of a shipped configuration, changed by command-line arguments.

    Args:
        verb: the verb of the configuration.
        name: the name of the configuration.
        given: the changes, ``data.key=value`` each.

    Raises:
        ClspError: an argument is of another form, or the block cannot be read.
    """
    from clsp_plugin.config.training import Data
    from clsp_plugin.config.typed import typed

    strangers = [arg for arg in given if not is_data(arg)]
    if strangers:
        raise ClspError(f"{strangers[0]} is not a data.key=value.")
    return typed(compose(verb, name, given).data, Data)
