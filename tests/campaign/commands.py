"""Run commands in processes forked from this one, so that none has to import torch again."""

import importlib
import io
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clsp_plugin import cli

__all__ = ["Broken", "Running", "Told", "check_told", "run", "start", "warm"]

_REFUSED = 2
_ROOM = 16 * 2**30  # bytes
_HEAVY = (
    "clsp_plugin.suites.bench", "clsp_plugin.suites.worker", "clsp_plugin.diffusion.verbs",
    "clsp_plugin.engine.pretrain", "clsp_plugin.evaluation.finetune", "diffusers",
    "clsp_plugin.evaluation.verbs", "hydra", "matplotlib.backends.backend_svg", "sklearn.manifold",
)  # fmt: skip


class Broken(AssertionError):
    """Raised where something that must hold does not."""


@dataclass(frozen=True)
class Told:
    """How a command ended.

    Attributes:
        code: the exit code; below 0 the signal that ended it, None if it took too long.
        out: what it printed.
        err: what it printed as errors.
        seconds: how long it took.
    """

    code: int | None
    out: str
    err: str
    seconds: float


def warm() -> None:
    """Import here what the commands need, so that their processes have it already."""
    for name in _HEAVY:
        importlib.import_module(name)
    from diffusers import DDPMPipeline, UNet2DModel  # noqa: F401  loaded only when asked for


def _body(words: Sequence[str], folder: Path, log: Path) -> None:
    """Run a command in a child: ``unit FILE`` is one unit of a suite, all else is ``clsp``."""
    os.setpgid(0, 0)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (_ROOM, _ROOM))  # odd numbers may ask for all there is
    resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM // 8, _ROOM // 8))
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        setattr(
            sys,
            f"std{name}",
            io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8"),
        )
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        if words[0] == "unit":
            code = importlib.import_module("clsp_plugin.suites.worker").main(list(words[1:]))
        else:
            sys.argv = ["clsp", *words]
            cli.main()
            code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without the parent's exit handlers


class Running:
    """A command that was started; see :func:`start`."""

    def __init__(self, words: Sequence[str], folder: Path, log: Path) -> None:
        log.mkdir(parents=True, exist_ok=True)
        for name in ("out", "err"):
            (log / name).unlink(missing_ok=True)
        self._log, self._began = log, time.monotonic()
        # where there is a GPU, a process cannot be forked after its first gradient
        context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
        self._process = context.Process(target=_body, args=(words, folder, log))
        self._process.start()

    def join(self, seconds: float) -> None:
        """Wait for so many seconds, or until the command has ended."""
        self._process.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def stop(self, number: int, seconds: float) -> Told:
        """Send the process a signal, and wait for its end as :meth:`wait` does."""
        os.kill(self._process.pid, number)
        return self.wait(seconds)

    def kill(self, after: float = 0.0) -> Told:
        """Send SIGKILL to the process alone if it does not end within ``after`` seconds."""
        self._process.join(after)
        self._process.kill()
        return self._end()

    def wait(self, seconds: float) -> Told:
        """Wait until the command ends; kill it and all that it started after ``seconds``."""
        self._process.join(seconds)
        late = self._process.is_alive()
        if late:
            os.killpg(self._process.pid, signal.SIGKILL)
        told = self._end()
        return Told(None, told.out, told.err, told.seconds) if late else told

    def _end(self) -> Told:
        self._process.join()
        seconds = time.monotonic() - self._began
        texts = []
        for name in ("out", "err"):
            file = self._log / name
            texts.append(file.read_text(errors="replace") if file.exists() else "")
        return Told(self._process.exitcode, *texts, seconds)


def start(words: Sequence[str], folder: Path, log: Path) -> Running:
    """Begin a command.

    Args:
        words: what follows ``clsp``, or ``unit`` and the file that describes a unit of a suite.
        folder: folder in which it runs.
        log: folder for what it prints; processes that run at the same time need different ones.
    """
    return Running(words, folder, log)


def run(words: Sequence[str], folder: Path, log: Path, seconds: float = 120) -> Told:
    """Run a command to its end, or for so many seconds."""
    return start(words, folder, log).wait(seconds)


def check_told(told: Told, refusable: bool = True) -> None:
    """Check that a command ended well, or with one sentence.

    Raises:
        Broken: it did not.
    """
    if told.code == 0:
        return
    if told.code is None:
        raise Broken(f"hangs: after {told.seconds:.0f} s it had not ended")
    if "Traceback" in told.err or "Traceback" in told.out:
        raise Broken(f"traceback: {told.err.strip().splitlines()[-1][:300]}")
    if told.code != _REFUSED:
        raise Broken(f"ends with exit code {told.code}: {told.err[-300:]!r}")
    sentences = re.findall(r"^clsp[\w -]*: .*", told.err, re.MULTILINE)
    if len(sentences) != 1:
        raise Broken(f"says {len(sentences)} sentences: {told.err[-600:]!r}")
    if not refusable:
        raise Broken(f"refuses: {sentences[0][:400]}")
