"""The command line, ``clsp VERB``."""

from clsp_plugin.cli.main import main

__all__ = ["main"]
