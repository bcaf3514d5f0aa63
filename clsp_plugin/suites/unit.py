"""What a suite runs: units of steps, each in a directory with notes of what was done in it."""

import json
import shlex
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig
from pydantic import ConfigDict, with_config
from typing_extensions import NotRequired, TypedDict

from clsp_plugin.config.overrides import literal
from clsp_plugin.errors import ClspError
from clsp_plugin.records.record import Record
from clsp_plugin.suites.suite import EVALUATIONS
from clsp_plugin.system.files import write_text
from clsp_plugin.system.json_files import read_json

__all__ = ["Plan", "Step", "Unit", "notes_of"]


@dataclass(frozen=True)
class Step:
    """One command of a unit.

    Attributes:
        verb: verb of ``clsp``.
        config: name of its configuration.
        overrides: ``key=value`` each.
        paths: settings of where things lie and of resuming; they are not part of ``key``.
        cost: amount of work, in what the verb counts (``verbs.Verb.counts``); None if not known.
        key: identifies what is run.
        network: hash of the network and image size; only steps with the same one have comparable
            times.
    """

    verb: str
    config: str
    overrides: tuple[str, ...]
    paths: dict[str, Any]
    cost: int | None
    key: str
    network: str = ""

    @property
    def protocol(self) -> str | None:
        """The protocol of an evaluation; None where none is given."""
        given = [o for o in self.overrides if o.startswith("protocol=")]
        return given[-1].partition("=")[2] if given else None

    @property
    def command(self) -> str:
        """The command line that does the same by hand, quoted for a shell."""
        if self.verb == "inspect":
            data = (override for override in self.overrides if override.startswith("data."))
            words = ["clsp", "inspect", self.paths["store"], *data, "--config-name", self.config]
            judge = ["--encoder", self.paths["encoder"]] if "encoder" in self.paths else ["--fid"]
            return shlex.join([*words, "--out", self.paths["out"], *judge])
        paths = (
            literal(key, value)
            if isinstance(value, str)
            else f"{key}={'null' if value is None else value}"
            for key, value in self.paths.items()
        )
        return shlex.join(
            ["clsp", self.verb, "--config-name", self.config, *self.overrides, *paths]
        )


def notes_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return the notes on the finished steps of the unit in a directory, by the steps' keys."""
    return _read_note(path / "done.json", dict[str, _Note], "its steps are taken as not done") or {}


@with_config(ConfigDict(extra="allow"))
class _Note(TypedDict):
    """The note on a finished step; older notes have fewer fields."""

    verb: str
    config: str
    cost: int | float | None
    seconds: float
    protocol: NotRequired[str | None]
    network: NotRequired[str]
    work: NotRequired[float | None]


def _read_note(file: Path, kind: Any, consequence: str) -> Any:
    """Return the content of a small file of ours; None if it is absent or, with a line, damaged.

    Raises:
        OSError: the system refuses to read it, which says nothing about its content.
    """
    try:
        return read_json(file, kind, "a note of `clsp bench`", consequence)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ClspError as error:
        _tell(str(error))
        return None


@cache
def _tell(line: str) -> None:
    """Print a line once, however often a file is looked at."""
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class Unit:
    """Steps that follow each other in one directory.

    Attributes:
        kind: ``denoiser``, ``candidates``, ``encoder``, ``run`` or ``quality``.
        label: name for people.
        path: path of the directory.
        steps: the steps in their order.
        needs: directories of the units that must be done before.
        about: of a run or encoder: ``method``, ``variant`` (its name, or empty), ``dataset``,
            ``seed``, ``budget`` and ``point``, the values of what the suite varies; of a quality
            ``dataset`` and ``point``.
    """

    kind: str
    label: str
    path: Path
    steps: tuple[Step, ...]
    needs: tuple[Path, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def what(self) -> tuple[list[str], dict[str, Any]]:
        """What is run and evaluated (keys of the steps), and the place in a table it is for."""
        about = {key: value for key, value in self.about.items() if key != "variant"}
        return [step.key for step in self.steps], about

    @property
    def done(self) -> dict[str, dict[str, Any]]:
        """The keys of the finished steps, with the notes on them."""
        return notes_of(self.path)

    @property
    def missing(self) -> list[Step]:
        """Steps that are still to do; all of them if what the unit makes is gone."""
        done = self.done if self.made else {}
        return [step for step in self.steps if step.key not in done]

    @property
    def made(self) -> bool:
        """Whether what the unit makes is there."""
        if self.kind in ("run", "encoder"):
            return self.record is not None
        name = {"denoiser": "training.json", "candidates": "manifest.json"}
        return (self.product / name.get(self.kind, "report.json")).is_file()

    @property
    def product(self) -> Path:
        """Where the unit's denoiser, store or report lies."""
        return Path(self.steps[0].paths["out"])

    @property
    def record(self) -> Path | None:
        """The path of the record of a run or an encoder, if there is one."""
        found = sorted(self.path.glob("*/*/record.json"))
        if len(found) > 1:
            raise ClspError(
                f"{self.path} holds {len(found)} runs and should hold one; remove the other, which "
                f"may be of other candidates."
            )
        return found[0] if found else None

    @property
    def failure(self) -> str | None:
        """Why the last attempt failed, if it did."""
        lost = "why it failed is not known"
        found = _read_note(self.path / "failed.json", dict[Literal["reason"], str], lost) or {}
        return found.get("reason")

    def begin(self) -> None:
        """Forget the notes, of every suite, on what the unit made if that is gone."""
        if not self.made:
            (self.path / "done.json").unlink(missing_ok=True)

    def finish(self, step: Step, seconds: float) -> None:
        """Note that a step was finished, and the seconds that it took."""
        note = {"verb": step.verb, "config": step.config, "cost": step.cost, "seconds": seconds}
        note |= {"protocol": step.protocol, "network": step.network, "work": self._work(step)}
        # a record keeps one evaluation per verb and protocol, so earlier notes are dropped
        done = {
            key: old
            for key, old in self.done.items()
            if step.verb not in EVALUATIONS
            or (old["verb"], old.get("protocol")) != (step.verb, step.protocol)
        }
        done[step.key] = note
        write_text(self.path / "done.json", json.dumps(done))

    def _work(self, step: Step) -> float | None:
        """Return the seconds of a step's training, without what comes before; None if not noted."""
        if step.verb == "pretrain" and self.record:
            return Record.load(self.record).timings.get("train_seconds")
        if step.verb == "denoiser" and self.made:
            made = read_json(
                self.product / "training.json", dict[str, Any], "what is noted of a denoiser's "
                "training", "train it again with `clsp denoiser`",
            )  # fmt: skip
            seconds = made.get("seconds")
            return seconds if isinstance(seconds, int | float) else None
        return None


@dataclass(frozen=True)
class Plan:
    """A suite's units, each after those it needs.

    Attributes:
        name: name of the suite.
        suite: content of its YAML file.
        out: the directory of the tables and figures.
        artifacts: the directory of the units.
        units: in the order in which they are run.
        absent: a sentence for each data set that has to be fetched by hand first.
    """

    name: str
    suite: DictConfig
    out: Path
    artifacts: Path
    units: tuple[Unit, ...]
    absent: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[Unit, ...]:
        return tuple(unit for unit in self.units if unit.kind == "run")
