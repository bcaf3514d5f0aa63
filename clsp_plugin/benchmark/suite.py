"""A suite: which runs make a table, as a small YAML, and the plan that it stands for.

A plan is three kinds of unit, each a directory: denoisers, the candidates that they draw, and
runs (one pre-training and its evaluations). A unit's directory is named by what it is made from,
so a changed setting, or changed code, is another unit and nothing old is taken for it.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Optional

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clsp_plugin.cli import compose, shipped
from clsp_plugin.data.files import write_whole
from clsp_plugin.engine.config import typed
from clsp_plugin.engine.record import code_hash
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.evaluation.protocol import check_protocol

__all__ = ["EVALUATIONS", "Plan", "Step", "Suite", "Unit", "make_plan", "read_suite"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support

EVALUATIONS = ("linear", "knn", "transfer")
_KINDS = ("denoiser", "candidates", "run")
LAYOUTS = ("main", "transfer", "ablation")
# Blocks of a configuration that say where and how fast, not what.
_NOT_WHAT = (
    "auto_resume", "auto_umap", "checkpoint", "dali", "debug_augmentations", "name",
    "performance", "resume_from_checkpoint", "wandb",
)  # fmt: skip
# Training images of data sets whose size is known without reading them.
_SIZES = {"cifar10": 50_000, "cifar100": 50_000}


@dataclass
class _Candidates:
    """Configurations of ``clsp denoiser`` (none: ``generate`` names a denoiser) and of
    ``clsp generate``."""

    denoiser: Optional[str] = None
    generate: str = MISSING


@dataclass
class _DataSet:
    """``configs``: a folder of ``scripts/pretrain``, with a configuration a method."""

    configs: str = MISSING
    overrides: list[str] = field(default_factory=list)
    candidates: Optional[_Candidates] = None


@dataclass
class _Table:
    layout: str = "main"
    protocol: str = "strict"
    published: bool = False


@dataclass
class Suite:
    """What the YAML of a suite may say.

    Overrides are ``key=value``. Those that begin with ``denoiser.``, ``generate.``, ``linear.``,
    ``knn.`` or ``transfer.`` are for that verb, those that begin with ``data.`` for all verbs that
    read the training images, and all others for the pre-training. So are the keys of ``vary``.

    Attributes:
        title: a line for people.
        datasets: a name to where its configurations are.
        methods: names of configurations.
        seeds: of pre-training.
        overrides: of every run.
        only: a method, or a ``dataset/method``, to overrides of its own.
        vary: settings to the values that they take; every combination is run.
        evaluate: the evaluations' verbs.
        table: how it is laid out.
    """

    title: str = MISSING
    datasets: dict[str, Any] = MISSING
    methods: list[str] = MISSING
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    overrides: list[str] = field(default_factory=list)
    only: dict[str, list[str]] = field(default_factory=dict)
    vary: dict[str, list[Any]] = field(default_factory=dict)
    evaluate: list[str] = field(default_factory=lambda: ["linear", "knn"])
    table: _Table = field(default_factory=_Table)


def read_suite(name: str | Path, overrides: Sequence[str] = ()) -> tuple[str, DictConfig]:
    """A suite that ships with us by its name, or a YAML file by its path.

    Args:
        name: of the suite or path of a file.
        overrides: ``key=value`` for every run, after those of the file.

    Returns:
        The suite's name and its content, see :class:`Suite`.

    Raises:
        ClspError: there is none, or it is not one.
    """
    folder = shipped() / "bench"
    file = Path(name)
    if file.suffix not in (".yaml", ".yml"):
        file = folder / f"{name}.yaml"
        if not file.is_file():
            known = (path.stem for path in folder.glob("*.yaml"))
            raise ClspError(f"There is no suite {name}{nearest(str(name), known)}")
    try:
        content = OmegaConf.load(file)
    except (OSError, OmegaConfBaseException, ValueError) as error:
        raise ClspError(f"{file} is not a readable suite ({error}).") from error
    except Exception as error:  # PyYAML's errors have no common base below Exception
        raise ClspError(f"{file} is not YAML ({' '.join(str(error).split())}).") from error
    suite = typed(content, Suite)
    suite.datasets = {key: typed(value, _DataSet) for key, value in suite.datasets.items()}
    suite.overrides = [*suite.overrides, *overrides]
    _check(suite, file)
    return file.stem, suite


def _check(suite: DictConfig, file: Path) -> None:
    for name in ("datasets", "methods", "seeds"):
        if not suite[name]:
            raise ClspError(f"{file}: {name} is empty; name at least one.")
        values = list(suite[name])
        if len(set(values)) < len(values):
            raise ClspError(f"{file}: {name} names one twice: {', '.join(map(str, values))}.")
    for verb in suite.evaluate:
        if verb not in EVALUATIONS:
            raise ClspError(f"{file}: evaluate names {verb}{nearest(verb, EVALUATIONS)}")
    if suite.table.layout not in LAYOUTS:
        raise ClspError(f"{file}: table.layout={suite.table.layout}{nearest('', LAYOUTS)}")
    check_protocol(suite.table.protocol)
    for override in [*suite.overrides, *itertools.chain(*suite.only.values())]:
        if not re.match(r"^[A-Za-z_][\w.]*=", override):
            raise ClspError(f"{override} is not a setting; give key=value.")
    for key in suite.only:
        dataset, _, method = key.rpartition("/")
        if method not in suite.methods or dataset not in ("", *suite.datasets):
            raise ClspError(f"{file}: only names {key}, which the suite does not run.")


def _routed(overrides: Sequence[str], verb: str) -> list[str]:
    """The overrides of a suite that are for a verb."""
    verbs = ("denoiser", "generate", *EVALUATIONS)
    out = []
    for override in overrides:
        first, _, rest = override.partition(".")
        if first in verbs:
            out += [rest] * (first == verb)
        elif first == "data":
            out += [override] * (verb in ("denoiser", "generate", "pretrain"))
        else:
            out += [override] * (verb == "pretrain")
    return out


@dataclass(frozen=True)
class Step:
    """One command of a unit.

    Attributes:
        verb: of ``clsp``.
        config: that is named to it.
        overrides: ``key=value`` each.
        paths: settings that say where; not part of what is run.
        cost: how much work, in the verb's own measure (see ``measure``); None if not known.
        key: of what is run.
    """

    verb: str
    config: str
    overrides: tuple[str, ...]
    paths: dict[str, Any]
    cost: int | None
    key: str

    @property
    def command(self) -> str:
        """What does the same by hand."""
        paths = (f"{key}={value}" for key, value in self.paths.items())
        return " ".join(["clsp", self.verb, "--config-name", self.config, *self.overrides, *paths])


@dataclass(frozen=True)
class Unit:
    """Steps that follow each other in one directory.

    Attributes:
        kind: ``denoiser``, ``candidates`` or ``run``.
        label: for people.
        path: of its directory.
        steps: in their order.
        needs: paths of the units that must be there before.
        about: of a run: ``method``, ``dataset``, ``seed``, ``budget`` and ``point``, the values of
            what the suite varies.
    """

    kind: str
    label: str
    path: Path
    steps: tuple[Step, ...]
    needs: tuple[Path, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> dict[str, dict[str, float]]:
        """Keys of the steps that were finished, with the seconds that they took."""
        try:
            return json.loads((self.path / "done.json").read_text())
        except (OSError, ValueError):
            return {}

    @property
    def missing(self) -> list[Step]:
        """Steps that are still to do; all of them if what the first made is gone."""
        done = self.done if self.made else {}
        return [step for step in self.steps if step.key not in done]

    @property
    def made(self) -> bool:
        """Whether what the unit is for is there."""
        if self.kind == "run":
            return self.record is not None
        name = {"denoiser": "training.json", "candidates": "manifest.json"}[self.kind]
        return (self.product / name).is_file()

    @property
    def product(self) -> Path:
        """Where a denoiser or a store lies."""
        return self.path / self.kind

    @property
    def record(self) -> Path | None:
        """Of a run: its record's path, if there is one."""
        found = sorted(self.path.glob("*/*/record.json"))
        if len(found) > 1:
            raise ClspError(
                f"{self.path} holds {len(found)} runs and should hold one; remove the other."
            )
        return found[0] if found else None

    @property
    def failure(self) -> str | None:
        """Why its last attempt failed, if it did."""
        try:
            return json.loads((self.path / "failed.json").read_text())["reason"]
        except (OSError, ValueError, KeyError):
            return None

    def finish(self, step: Step, seconds: float) -> None:
        """Note that a step was finished."""
        done = {**self.done, step.key: {"verb": step.verb, "cost": step.cost, "seconds": seconds}}
        write_whole(self.path / "done.json", lambda file: file.write(json.dumps(done).encode()))


@dataclass(frozen=True)
class Plan:
    """A suite's units, each after those it needs.

    Attributes:
        name: of the suite.
        suite: what its YAML says.
        out: the directory of everything.
        units: in the order in which they are run.
    """

    name: str
    suite: DictConfig
    out: Path
    units: tuple[Unit, ...]

    @property
    def runs(self) -> tuple[Unit, ...]:
        return tuple(unit for unit in self.units if unit.kind == "run")


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


@cache
def _composed(verb: str, config: str, overrides: tuple[str, ...]) -> DictConfig:
    """Each configuration once: a suite's seeds share theirs."""
    return compose(verb, config, overrides)


def _what(cfg: DictConfig) -> dict[str, Any]:
    """A configuration without where and how fast."""
    content = {k: v for k, v in OmegaConf.to_container(cfg).items() if k not in _NOT_WHAT}
    if "synthetic" in content:
        content["synthetic"].pop("path", None)
    content.get("data", {}).pop("num_workers", None)
    return content


def _images(data: Mapping[str, Any]) -> int | None:
    """Training images, where that is known without reading them."""
    number = data.get("num_train", 2000) if data["dataset"] == "digits" else None
    number = number or _SIZES.get(data["dataset"])
    fraction = data.get("fraction", -1)
    return round(number * fraction) if number and fraction > 0 else number


def _cost(verb: str, cfg: DictConfig, images: int | None) -> int | None:
    """Images trained on, denoised or embedded, each as often as it is."""
    if images is None or verb == "transfer":  # of other images, whose number is not known here
        return None
    if verb == "denoiser":
        return images * cfg.max_epochs
    if verb == "generate":
        return images * cfg.num_candidates * cfg.steps
    return images * cfg.max_epochs if verb == "pretrain" else images


def measure(verb: str) -> str:
    """What a step's cost counts."""
    return {
        "denoiser": "training images",
        "generate": "denoising steps",
        "pretrain": "training images",
    }.get(verb, "embedded images")


class _Planner:
    """Collects units, each once."""

    def __init__(self, out: Path, keep_stale: bool):
        self.out, self.keep_stale = out, keep_stale
        self.units: dict[Path, Unit] = {}

    def place(self, folder: str, label: str, config: str, code: str) -> Path:
        """A unit's directory; that of older code if it is wanted and there is one."""
        path = self.out / folder / f"{label}-{config}-{code}"
        if self.keep_stale and not (path / "done.json").exists():
            older = [
                p for p in path.parent.glob(f"{label}-{config}-*") if (p / "done.json").exists()
            ]
            path = max(older, key=lambda p: p.stat().st_mtime, default=path)
        return path

    def add(self, unit: Unit) -> Unit:
        return self.units.setdefault(unit.path, unit)

    def candidates(self, dataset: str, block: DictConfig, overrides: Sequence[str]) -> Unit:
        """The units of a store and of its denoiser."""
        code = code_hash("data", "diffusion")[:8]
        given = tuple(_routed(overrides, "generate"))
        cfg = _composed("generate", block.generate, given)
        images = _images(cfg.data)
        needs, paths, parts = (), {}, [_what(cfg)]
        if block.denoiser is not None:
            trained = self._denoiser(dataset, block.denoiser, overrides, code)
            needs, paths = (trained.path,), {"denoiser": str(trained.product)}
            parts += [trained.steps[0].key]
        key = _hash(*({**part, "out": None} if isinstance(part, dict) else part for part in parts))
        path = self.place("candidates", dataset, key, code)
        paths["out"] = str(path / "candidates")
        cost = _cost("generate", cfg, images)
        step = Step("generate", block.generate, given, paths, cost, key)
        return self.add(Unit("candidates", f"candidates, {dataset}", path, (step,), needs))

    def _denoiser(self, dataset: str, config: str, overrides: Sequence[str], code: str) -> Unit:
        given = tuple(_routed(overrides, "denoiser"))
        cfg = _composed("denoiser", config, given)
        key = _hash({**_what(cfg), "out": None})
        path = self.place("denoisers", dataset, key, code)
        cost = _cost("denoiser", cfg, _images(cfg.data))
        step = Step("denoiser", config, given, {"out": str(path / "denoiser")}, cost, key)
        return self.add(Unit("denoiser", f"denoiser, {dataset}", path, (step,)))

    def run(
        self, suite: DictConfig, dataset: str, method: str, seed: int, point: dict[str, Any]
    ) -> Unit:
        """The unit of a pre-training and its evaluations."""
        block = suite.datasets[dataset]
        varied = [f"{key}={value}" for key, value in point.items()]
        own = [*suite.only.get(method, ()), *suite.only.get(f"{dataset}/{method}", ())]
        overrides = [*block.overrides, *suite.overrides, *own, *varied]
        given = tuple(_routed(overrides, "pretrain"))
        config = f"{block.configs}/{method}"
        cfg = _composed("pretrain", config, given)
        needs, paths, parts = (), {}, [{**_what(cfg), "seed": seed}]
        if _wants_candidates(cfg):
            if block.candidates is None:
                raise ClspError(
                    f"{method} needs candidates and the suite says for {dataset} none; give its "
                    f"data set a block `candidates`."
                )
            store = self.candidates(dataset, block.candidates, overrides)
            needs, paths = (store.path,), {"synthetic.path": str(store.product)}
            parts.append(store.steps[0].key)
        words = [f"{key.rpartition('.')[2]}-{value}" for key, value in point.items()]
        label = "-".join([method, dataset, *words, f"s{seed}"])
        path = self.place("runs", label, _hash(*parts), code_hash()[:8])
        # a suite may take longer than a day and a half, which is where resuming ends by default
        paths |= {"checkpoint.dir": str(path)}
        paths |= {"auto_resume.enabled": True, "auto_resume.max_hours": 1e9}
        images = _images(cfg.data)
        cost = _cost("pretrain", cfg, images)
        given = (*given, f"seed={seed}")
        steps = [Step("pretrain", config, given, paths, cost, _hash(*parts))]
        where = {"pretrained_feature_extractor": str(path / cfg.method)}
        for verb in suite.evaluate:
            given = (*_routed(overrides, verb), f"protocol={suite.table.protocol}")
            key = _hash(verb, OmegaConf.to_container(_composed(verb, verb, given)))
            steps.append(Step(verb, verb, given, where, _cost(verb, cfg, images), key))
        budget = {"backbone": cfg.backbone.name, "epochs": cfg.max_epochs, "num_train": images}
        about = {"method": cfg.method, "dataset": cfg.data.dataset, "seed": seed}
        about |= {"point": point, "budget": budget}
        words = [f"{key}={value}" for key, value in point.items()]
        people = ", ".join([method, dataset, *words, f"seed {seed}"])
        return self.add(Unit("run", people, path, tuple(steps), needs, about))


def _wants_candidates(cfg: DictConfig) -> bool:
    from clsp_plugin.methods import METHODS
    from clsp_plugin.methods.synthetic import SyntheticPositives

    method = METHODS.get(cfg.method, object)
    synthetic = issubclass(method, SyntheticPositives) and method.third_view == "candidate"
    return synthetic and cfg.get("synthetic", {}).get("weight", 1.0) != 0


def _points(vary: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def make_plan(name: str, suite: DictConfig, out: Path, keep_stale: bool = False) -> Plan:
    """Every unit that a suite stands for; nothing is run or written.

    Args:
        name: of the suite.
        suite: see :func:`read_suite`.
        out: the directory of everything.
        keep_stale: take what older code made where its settings are the same.

    Raises:
        ClspError: a configuration that does not exist, a setting that cannot be read, ...
    """
    planner = _Planner(out, keep_stale)
    for seed, point in itertools.product(suite.seeds, _points(suite.vary)):
        for dataset, method in itertools.product(suite.datasets, suite.methods):
            planner.run(suite, dataset, method, seed, point)
    # what others wait for comes first
    units = sorted(planner.units.values(), key=lambda unit: _KINDS.index(unit.kind))
    return Plan(name, suite, out, tuple(units))
