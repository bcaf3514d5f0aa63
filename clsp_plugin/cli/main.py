"""The command line: ``clsp VERB``."""

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from clsp_plugin import __version__
from clsp_plugin.cli import streams
from clsp_plugin.errors import ClspError, Terminated, nearest
from clsp_plugin.system.refusals import files_told
from clsp_plugin.verbs import VERBS

__all__ = ["main"]


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb.name:<{width}} {verb.does}" for verb in VERBS.values())
    return f"""usage: clsp VERB ...

Contrastive learning with synthetic positives (clsp-plugin {__version__}).

{lines}

clsp VERB --help says more. First steps:
  clsp demo                              everything once, offline, in minutes
  clsp pretrain --config-name simclr     one method on the offline data set
"""


def _dispatch(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return
    name, args = argv[0], argv[1:]
    if name in ("-V", "--version"):
        print(f"clsp-plugin {__version__}")
        return
    if name == "linear" and any(re.fullmatch(r"\+*finetune=(?i:true)", arg) for arg in args):
        name = "finetune"  # solo-learn's way to ask for it; its configuration is another file here
    if name not in VERBS:
        raise ClspError(f"there is no verb {name}{nearest(name, VERBS)}")
    if not VERBS[name].experiment:
        VERBS[name].run(args)
        return
    from clsp_plugin.cli.experiments import help_of, run_experiment

    if any(arg in ("-h", "--help") for arg in args):
        print(help_of(name), end="")
    else:
        run_experiment(name, args)


@contextmanager
def _terminated() -> Iterator[None]:
    """Let SIGTERM end the work in order, as Ctrl-C does; a second one ends it at once."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Run the command line; invalid input ends it with one sentence and exit code 2."""
    streams.prepare()
    try:
        with _terminated(), files_told():
            try:
                _dispatch(sys.argv[1:])
            finally:
                streams.flush()
    except BrokenPipeError:
        streams.abandon()
    except ClspError as error:
        print(f"clsp: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("clsp: stopped; the same command continues where it can.", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))
