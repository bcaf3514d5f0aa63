"""What the tests of the command line share."""

import sys

import pytest

from clsp_plugin import cli


@pytest.fixture
def clsp(tmp_path, monkeypatch, capfd):
    """Run a command in an empty directory: ``clsp(*args) -> (exit code, output, errors)``."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["clsp", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
