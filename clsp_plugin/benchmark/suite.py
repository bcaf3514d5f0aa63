"""A suite: which runs make a table, as a small YAML, and the plan that it stands for.

A plan is of units, each a directory: denoisers, the candidates that they draw, runs (one
pre-training and its evaluations) and, where asked for, how good each store is. A unit's
directory is named by what it is made from, so a changed setting, or another version of the
numerics, is another unit and nothing old is taken for it; suites that share a folder of units share
what they have in common.
"""

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional

from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, with_config
from typing_extensions import NotRequired, TypedDict

from clsp_plugin.cli import compose, shipped
from clsp_plugin.configurations import what
from clsp_plugin.data.downstream import to_fetch
from clsp_plugin.data.files import write_text
from clsp_plugin.data.images import DATASETS
from clsp_plugin.data.json_files import read_json
from clsp_plugin.engine.config import Data, parse_cfg, typed
from clsp_plugin.engine.numerics import numerics_label, numerics_of
from clsp_plugin.engine.numerics_before import of_first_version
from clsp_plugin.engine.record import Record
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.evaluation import verbs
from clsp_plugin.evaluation.protocol import check_protocol
from clsp_plugin.rules import SEED, ranged
from clsp_plugin.user_yaml import parse_yaml, read_yaml

__all__ = ["EVALUATIONS", "Plan", "Step", "Suite", "Unit", "make_plan", "notes_of", "read_suite"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support

EVALUATIONS = ("linear", "knn", "transfer")
# An encoder is a run that is not in the table.
_KINDS = ("denoiser", "candidates", "encoder", "run", "quality")
LAYOUTS = ("main", "transfer", "ablation")
# Training images of data sets whose size is known without reading them; and about how many there
# are where copies differ a little, for the cost alone.
_SIZES = {"cifar10": 50_000, "cifar100": 50_000, "stl10": 105_000}
_ABOUT = {"imagenet100": 126_689}
_SIDES = {"cifar10": 32, "cifar100": 32, "digits": 32, "stl10": 96}  # pixels, unless asked for


@dataclass
class _Candidates:
    """Configurations of ``clsp denoiser`` (none: ``generate`` names a denoiser) and of
    ``clsp generate``."""

    denoiser: Optional[str] = None
    generate: str = MISSING


@dataclass
class _DataSet:
    """Where the configurations of a data set are, and what is particular to it.

    Attributes:
        configs: a folder of ``scripts/pretrain``, with a configuration a method.
        overrides: of every run on it.
        only: a method to overrides of its own.
        evaluations: a verb to the configuration that it takes, where that is not the verb's own.
        candidates: how they are made.
        quality: what tells how good candidates are: ``fid``, or a method whose run stands in for
            the FID's network.
    """

    configs: str = MISSING
    overrides: list[str] = field(default_factory=list)
    only: dict[str, list[str]] = field(default_factory=dict)
    evaluations: dict[str, str] = field(default_factory=dict)
    candidates: Optional[_Candidates] = None
    quality: str = "fid"


@dataclass
class _Variant:
    """A configuration of ``configs``, overrides, and where its candidates are made in another way
    than the data set says, how."""

    config: str = MISSING
    overrides: list[str] = field(default_factory=list)
    candidates: Optional[_Candidates] = None


@dataclass
class _Table:
    """``layout``: one of ``LAYOUTS``, or several, each a table."""

    layout: Any = "main"
    protocol: str = "strict"
    published: bool = False


@dataclass
class Suite:
    """What the YAML of a suite may say.

    Overrides are ``key=value``. Those that begin with ``denoiser.``, ``generate.``, ``linear.``,
    ``knn.`` or ``transfer.`` are for that verb, those that begin with ``data.`` for all verbs that
    read the training images, and all others for the pre-training. So are the keys of ``vary``. Of
    two of one key the later wins: of the data set, of the suite, of a method, of ``vary``, of the
    command line.

    Attributes:
        title: a line for people.
        datasets: names of files in ``scripts/bench/dataset``; or names to what such a file says.
        methods: names of configurations or of variants.
        variants: a name to a configuration and overrides, for a method that is run twice.
        seeds: of pre-training.
        overrides: of every run.
        only: a method, or a ``dataset/method``, to overrides of its own.
        vary: settings to the values that they take; every combination is run.
        evaluate: the evaluations' verbs.
        quality: whether to measure how good the candidates of each store are.
        table: how it is laid out.
    """

    title: str = MISSING
    datasets: Any = MISSING
    methods: list[str] = MISSING
    variants: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = ranged([0, 1, 2], SEED)
    overrides: list[str] = field(default_factory=list)
    only: dict[str, list[str]] = field(default_factory=dict)
    vary: dict[str, list[Any]] = field(default_factory=dict)
    evaluate: list[str] = field(default_factory=lambda: ["linear", "knn"])
    quality: bool = False
    table: _Table = field(default_factory=_Table)


def read_suite(
    name: str | Path, overrides: Sequence[str] = (), datasets: Sequence[str] = ()
) -> tuple[str, DictConfig]:
    """A suite that ships with us by its name, or a YAML file by its path.

    Args:
        name: of the suite or path of a file.
        overrides: ``key=value`` for every run, above those of the file; of a key that the suite
            varies, the values that it takes instead.
        datasets: in place of the suite's.

    Returns:
        The suite's name and its content, see :class:`Suite`; what is left of the overrides is
        ``given``, and ``table.layout`` a list.

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
    suite = typed(read_yaml(file), Suite)
    suite.variants = {key: typed(value, _Variant) for key, value in suite.variants.items()}
    suite.table.layout = _several(suite.table.layout)
    own = suite.datasets if OmegaConf.is_dict(suite.datasets) else {}
    _check(suite, own or _several(suite.datasets or []), overrides, file)
    names = list(datasets) or list(own) or _several(suite.datasets)
    suite.datasets = {name: _block(name, own) for name in names}
    suite.given = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "seed":
            raise ClspError(f"{override}: a suite's seeds are its own; give --seeds {value}.")
        if key in suite.vary:
            suite.vary[key] = _several(parse_yaml(value, override))
        else:
            suite.given.append(override)
    return file.stem, suite


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) or OmegaConf.is_list(value) else [value]


def _block(name: str, own: Mapping[str, Any]) -> DictConfig:
    """What is particular to a data set: as the suite says, or as suites share it."""
    folder = shipped() / "bench" / "dataset"
    if name not in own and not (folder / f"{name}.yaml").is_file():
        known = {*own, *(path.stem for path in folder.glob("*.yaml"))}
        raise ClspError(f"There is no data set {name} for suites{nearest(str(name), known)}")
    return typed(own[name] if name in own else read_yaml(folder / f"{name}.yaml"), _DataSet)


def _check(
    suite: DictConfig, datasets: Sequence[str], overrides: Sequence[str], file: Path
) -> None:
    for name, values in (
        ("datasets", datasets),
        ("methods", suite.methods),
        ("seeds", suite.seeds),
    ):
        if not values:
            raise ClspError(f"{file}: {name} is empty; name at least one.")
        if len(set(values)) < len(values):
            raise ClspError(f"{file}: {name} names one twice: {', '.join(map(str, values))}.")
    for verb in suite.evaluate:
        if verb not in EVALUATIONS:
            raise ClspError(f"{file}: evaluate names {verb}{nearest(verb, EVALUATIONS)}")
    for layout in suite.table.layout:
        if layout not in LAYOUTS:
            raise ClspError(f"{file}: table.layout={layout}{nearest(str(layout), LAYOUTS)}")
    check_protocol(suite.table.protocol)
    varied = (variant.overrides for variant in suite.variants.values())
    for override in itertools.chain(suite.overrides, overrides, *suite.only.values(), *varied):
        if not re.match(r"^[A-Za-z_][\w.]*=", override):
            raise ClspError(f"{override} is not a setting; give key=value.")
    for key in suite.only:
        dataset, _, method = key.rpartition("/")
        if method not in suite.methods or dataset not in ("", *datasets):
            raise ClspError(f"{file}: only names {key}, which the suite does not run.")


def _routed(overrides: Sequence[str], verb: str) -> list[str]:
    """The overrides of a suite that are for a verb."""
    own = ("denoiser", "generate", *EVALUATIONS)
    out = []
    for override in overrides:
        first, _, rest = override.partition(".")
        if first in own:
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
        network: of which network and image size it is, as a hash: times of others tell nothing.
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
        """Of an evaluation."""
        given = [o for o in self.overrides if o.startswith("protocol=")]
        return given[-1].partition("=")[2] if given else None

    @property
    def command(self) -> str:
        """What does the same by hand."""
        if self.verb == "inspect":
            data = (override for override in self.overrides if override.startswith("data."))
            words = ["clsp inspect", self.paths["store"], *data, "--config-name", self.config]
            judge = ["--encoder", self.paths["encoder"]] if "encoder" in self.paths else ["--fid"]
            return " ".join([*words, "--out", self.paths["out"], *judge])
        paths = (f"{key}={value}" for key, value in self.paths.items())
        return " ".join(["clsp", self.verb, "--config-name", self.config, *self.overrides, *paths])


def notes_of(path: Path) -> dict[str, dict[str, Any]]:
    """What was noted of the finished steps of the unit in a directory, by key."""
    return _read_note(path / "done.json", dict[str, _Note], "its steps are taken as not done") or {}


@with_config(ConfigDict(extra="allow"))
class _Note(TypedDict):
    """What is noted of a finished step; older notes have less."""

    verb: str
    config: str
    cost: int | float | None
    seconds: float
    protocol: NotRequired[str | None]
    network: NotRequired[str]
    work: NotRequired[float | None]


def _read_note(file: Path, kind: Any, consequence: str) -> Any:
    """The content of a small file of ours; None where there is none, or, with a line, no whole one.

    Raises:
        OSError: the system does not let it be read, which says nothing about its content.
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
    """Once, however often a file is looked at."""
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class Unit:
    """Steps that follow each other in one directory.

    Attributes:
        kind: ``denoiser``, ``candidates``, ``encoder``, ``run`` or ``quality``.
        label: for people.
        path: of its directory.
        steps: in their order.
        needs: paths of the units that must be there before.
        about: of a run: ``method``, ``variant`` (its name, if it is one), ``dataset``, ``seed``,
            ``budget`` and ``point``, the values of what the suite varies; of a quality
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
        """What is run and evaluated, and for which place in a table."""
        about = {key: value for key, value in self.about.items() if key != "variant"}
        return [step.key for step in self.steps], about

    @property
    def done(self) -> dict[str, dict[str, Any]]:
        """Keys of the steps that were finished, with what was noted of them."""
        return notes_of(self.path)

    @property
    def missing(self) -> list[Step]:
        """Steps that are still to do; all of them if what the first made is gone."""
        done = self.done if self.made else {}
        return [step for step in self.steps if step.key not in done]

    @property
    def made(self) -> bool:
        """Whether what the unit is for is there."""
        if self.kind in ("run", "encoder"):
            return self.record is not None
        name = {"denoiser": "training.json", "candidates": "manifest.json"}
        return (self.product / name.get(self.kind, "report.json")).is_file()

    @property
    def product(self) -> Path:
        """Where a denoiser, a store or a report lies."""
        return Path(self.steps[0].paths["out"])

    @property
    def record(self) -> Path | None:
        """Of a run or an encoder: its record's path, if there is one."""
        found = sorted(self.path.glob("*/*/record.json"))
        if len(found) > 1:
            raise ClspError(
                f"{self.path} holds {len(found)} runs and should hold one; remove the other."
            )
        return found[0] if found else None

    @property
    def failure(self) -> str | None:
        """Why its last attempt failed, if it did."""
        lost = "why it failed is not known"
        found = _read_note(self.path / "failed.json", dict[Literal["reason"], str], lost) or {}
        return found.get("reason")

    def finish(self, step: Step, seconds: float) -> None:
        """Note that a step was finished."""
        note = {"verb": step.verb, "config": step.config, "cost": step.cost, "seconds": seconds}
        note |= {"protocol": step.protocol, "network": step.network, "work": self._work(step)}
        # a record keeps one evaluation of a kind: what was noted of an earlier one is gone
        done = {
            key: old
            for key, old in self.done.items()
            if step.verb not in EVALUATIONS
            or (old["verb"], old.get("protocol")) != (step.verb, step.protocol)
        }
        done[step.key] = note
        write_text(self.path / "done.json", json.dumps(done))

    def _work(self, step: Step) -> float | None:
        """Seconds that a step's training took, without what comes before; None if not noted."""
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
        name: of the suite.
        suite: what its YAML says.
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


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


@cache
def _composed(verb: str, config: str, overrides: tuple[str, ...]) -> DictConfig:
    """Each configuration once: a suite's seeds share theirs.

    Raises:
        ClspError: one that cannot be read, or that its verb would refuse.
    """
    try:
        cfg = compose(verb, config, overrides)
        _check_configuration(verb, cfg)
    except (HydraException, OmegaConfBaseException) as error:
        said = " ".join(overrides) or "no overrides"
        why = str(error).strip().splitlines()[0]
        raise ClspError(f"clsp {verb} cannot read {config} with {said}: {why}") from error
    except ClspError as error:
        raise ClspError(str(error) if verb == "pretrain" else f"{verb}: {error}") from error
    return cfg


def _check_configuration(verb: str, cfg: DictConfig) -> None:
    """Refuse now what the verb itself would refuse after hours of other work.

    Raises:
        ClspError: see the verbs.
    """
    from clsp_plugin.methods import METHODS

    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    if verb == "pretrain":
        cfg = parse_cfg(cfg, METHODS)
        if cfg.data.dataset not in DATASETS:
            name = cfg.data.dataset
            raise ClspError(f"data.dataset={name} is not known{nearest(name, DATASETS)}")
        METHODS[cfg.method].add_and_assert_specific_cfg(cfg)
    elif verb in _APART:
        _check_diffusion(verb, cfg)
    else:
        _typed(verb, cfg)


def _typed(verb: str, cfg: DictConfig) -> DictConfig:
    """A complete configuration of an evaluation, of no checkpoint yet."""
    schema = {"linear": verbs.Linear, "knn": verbs.Knn, "transfer": verbs.Transfer}[verb]
    return typed({**OmegaConf.to_container(cfg), "pretrained_feature_extractor": "."}, schema)


# Keys of the denoiser's and the candidates' configurations that are not among their settings.
_APART = {
    "denoiser": ("out", "data", "condition", "fid"),
    "generate": ("out", "data", "condition", "denoiser", "export_npy", "dry_run"),
}


@dataclass
class _OfImages:
    """A configuration's block about images, so that messages name its keys in full."""

    data: Data = field(default_factory=Data)


def _check_diffusion(verb: str, cfg: DictConfig) -> None:
    from clsp_plugin.data.oracle import Oracle, check_oracle
    from clsp_plugin.diffusion.generation import GenerationSettings
    from clsp_plugin.diffusion.settings import read_settings
    from clsp_plugin.diffusion.training import TrainingSettings

    content = OmegaConf.to_container(cfg, resolve=True)
    typed({"data": content["data"]}, _OfImages)
    settings = {key: value for key, value in content.items() if key not in _APART[verb]}
    if "oracle" in settings:
        check_oracle(typed(settings, Oracle))
        return
    read_settings(TrainingSettings if verb == "denoiser" else GenerationSettings, settings)


def _images(data: Mapping[str, Any], sizes: Mapping[str, int] = _SIZES) -> int | None:
    """Training images, where that is known without reading them."""
    number = data.get("num_train", 2000) if data["dataset"] == "digits" else None
    number = number or sizes.get(data["dataset"])
    fraction = data.get("fraction", -1)
    return round(number * fraction) if number and fraction > 0 else number


def _cost(verb: str, cfg: DictConfig, data: Mapping[str, Any]) -> int | None:
    """Images trained on, denoised or embedded, each as often as it is."""
    images = _images(data, {**_SIZES, **_ABOUT})
    if images is None or verb == "transfer":  # of other images, whose number is not known here
        return None
    if "oracle" in cfg:  # no denoiser, and no time
        return None
    if verb == "denoiser":
        return images * cfg.max_epochs
    if verb == "generate":
        return images * cfg.num_candidates * cfg.steps
    return images * cfg.max_epochs if verb == "pretrain" else images


def _network(settings: Mapping[str, Any], size: Any) -> str:
    """What steps share whose times compare: the network, and the image size in pixels."""
    return _hash(settings, size)


def _of_backbone(cfg: DictConfig) -> str:
    crops = [block.crop_size for block in cfg.augmentations if "crop_size" in block]
    return _network(OmegaConf.to_container(cfg.backbone), max(crops, default=0))


def _of_denoiser(cfg: DictConfig) -> str:
    names = ("block_out_channels", "layers_per_block", "attention_resolutions")
    content = OmegaConf.to_container(cfg)
    size = cfg.data.get("image_size") or _SIDES.get(cfg.data.dataset, cfg.data.dataset)
    return _network({name: content.get(name) for name in names}, size)


def measure(verb: str) -> str:
    """What a step's cost counts."""
    return {
        "denoiser": "training images",
        "generate": "denoising steps",
        "pretrain": "training images",
    }.get(verb, "embedded images")


class _Planner:
    """Collects units, each once."""

    def __init__(self, suite: DictConfig, artifacts: Path, keep_stale: bool):
        self.suite, self.artifacts, self.keep_stale = suite, artifacts, keep_stale
        self.units: dict[Path, Unit] = {}
        self.absent: dict[str, None] = {}

    def place(
        self, folder: str, label: str, config: str, numerics: Mapping[str, int] | None
    ) -> Path:
        """A unit's directory; another of the same numbers, or of older ones that are wanted, if
        there is one."""
        version = numerics_label(numerics)
        path = self.artifacts / folder / f"{label}-{config}-{version}"
        if not (path / "done.json").exists():
            begin = f"{label}-{config}-"
            older = [
                p
                for p in path.parent.glob(f"{begin}*")
                if (p / "done.json").exists() and self.taken(p.name.removeprefix(begin), version)
            ]
            path = max(older, key=lambda p: p.stat().st_mtime, default=path)
        return path

    def taken(self, old: str, version: str) -> bool:
        """Whether what is labelled ``old`` is taken for a version: it was named by its sources
        before there were versions, and these computed the same, or older ones are wanted."""
        return self.keep_stale or (version == "v1" and of_first_version(old))

    def add(self, unit: Unit) -> Unit:
        known = self.units.setdefault(unit.path, unit)
        if unit.kind == known.kind == "run" and known.what != unit.what:
            raise ClspError(
                f"{known.label} and {unit.label} are the same run, so their numbers would be too; "
                f"leave one out, or vary a setting of the pre-training that its method uses."
            )
        if known.about.get("variant") and unit.what == known.what:
            self.units[unit.path] = unit  # two names of one run: a method's own is the better one
        return known

    def overrides(self, dataset: str, method: str, point: Mapping[str, Any]) -> list[str]:
        """Of a run, the strongest last."""
        suite, block = self.suite, self.suite.datasets[dataset]
        variant = suite.variants.get(method)
        return [
            *block.overrides,
            *block.only.get(method if variant is None else variant.config, ()),
            *suite.overrides,
            *(() if variant is None else variant.overrides),
            *suite.only.get(method, ()),
            *suite.only.get(f"{dataset}/{method}", ()),
            *(f"{key}={value}" for key, value in point.items()),
            *suite.given,
        ]

    def candidates(
        self,
        dataset: str,
        overrides: Sequence[str],
        point: Mapping[str, Any],
        method: str = "",
    ) -> Unit:
        """The units of a store and of its denoiser, for a method or variant if it has its own."""
        block, variant = self.suite.datasets[dataset].candidates, self.suite.variants.get(method)
        of = ()
        if variant is not None and variant.candidates is not None:
            block, of = variant.candidates, (method,)
        if block is None:
            raise ClspError(
                f"The suite needs candidates and says for {dataset} none; give its data set a "
                f"block `candidates`."
            )
        given = tuple(_routed(overrides, "generate"))
        cfg = _composed("generate", block.generate, given)
        needs, paths, parts = (), {}, [{**what(cfg), "out": None}]
        if block.denoiser is not None:
            trained = self._denoiser(dataset, block.denoiser, overrides, point)
            needs, paths = (trained.path,), {"denoiser": str(trained.product)}
            parts = [{**parts[0], "denoiser": None}, trained.path.name]
        key = _hash(*parts)
        path = self.place("candidates", dataset, key, numerics_of("generate", cfg.data.dataset))
        paths["out"] = str(path / "candidates")
        network = trained.steps[0].network if needs else _of_denoiser(cfg)
        cost = _cost("generate", cfg, cfg.data)
        step = Step("generate", block.generate, given, paths, cost, key, network)
        people = ", ".join(["candidates", dataset, *of, *_words(point, "denoiser.", "generate.")])
        return self.add(Unit("candidates", people, path, (step,), needs))

    def _denoiser(
        self, dataset: str, config: str, overrides: Sequence[str], point: Mapping[str, Any]
    ) -> Unit:
        given = tuple(_routed(overrides, "denoiser"))
        cfg = _composed("denoiser", config, given)
        key = _hash({**what(cfg), "out": None})
        path = self.place("denoisers", dataset, key, numerics_of("denoiser", cfg.data.dataset))
        paths = {"out": str(path / "denoiser")}
        cost = _cost("denoiser", cfg, cfg.data)
        step = Step("denoiser", config, given, paths, cost, key, _of_denoiser(cfg))
        people = ", ".join(["denoiser", dataset, *_words(point, "denoiser.")])
        return self.add(Unit("denoiser", people, path, (step,)))

    def run(
        self, dataset: str, method: str, seed: int, point: dict[str, Any], kind: str = "run"
    ) -> Unit:
        """The unit of a pre-training and, unless it is an encoder, its evaluations."""
        suite, block = self.suite, self.suite.datasets[dataset]
        overrides = self.overrides(dataset, method, point)
        given = tuple(_routed(overrides, "pretrain"))
        variant = suite.variants.get(method)
        config = f"{block.configs}/{method if variant is None else variant.config}"
        cfg = _composed("pretrain", config, given)
        needs, paths, parts = (), {}, [{**what(cfg), "seed": seed}]
        if _wants_candidates(cfg):
            store = self.candidates(dataset, overrides, point, method)
            needs, paths = (store.path,), {"synthetic.path": str(store.product)}
            parts.append(store.path.name)
        key = _hash(*parts)
        label = f"{cfg.method}-{dataset}-s{seed}"
        path = self.place("runs", label, key, numerics_of("pretrain", cfg.data.dataset, cfg.method))
        # a configuration may leave out checkpoints of some age; a suite takes as long as it takes
        paths |= {"checkpoint.dir": str(path)}
        paths |= {"auto_resume.enabled": True, "auto_resume.max_hours": 1e9}
        cost = _cost("pretrain", cfg, cfg.data)
        given = (*given, f"seed={seed}")
        steps = [Step("pretrain", config, given, paths, cost, key, _of_backbone(cfg))]
        if kind == "run":
            steps += self._evaluations(block, cfg, overrides, path)
        images = _images(cfg.data)
        budget = {"backbone": cfg.backbone.name, "epochs": cfg.max_epochs, "num_train": images}
        about = {"method": cfg.method, "dataset": cfg.data.dataset, "seed": seed}
        about["variant"] = "" if variant is None else method
        about |= {"point": point, "budget": budget}
        people = ", ".join([method, dataset, *_words(point), f"seed {seed}"])
        return self.add(Unit(kind, people, path, tuple(steps), needs, about))

    def _evaluations(
        self, block: DictConfig, cfg: DictConfig, overrides: Sequence[str], path: Path
    ) -> Iterator[Step]:
        where = {"pretrained_feature_extractor": str(path / cfg.method)}
        for verb in self.suite.evaluate:
            config = block.evaluations.get(verb, verb)
            given = (*_routed(overrides, verb), f"protocol={self.suite.table.protocol}")
            composed = _composed(verb, config, given)
            if verb == "transfer":
                self._targets(composed, cfg.data.dataset)
            asked = _hash(verb, OmegaConf.to_container(composed))
            # those of a transfer are none of ours
            images = OmegaConf.select(composed, "data.dataset") or cfg.data.dataset
            versions = numerics_of(verb, None if verb == "transfer" else images)
            key = self._key(path, asked, numerics_label(versions))
            cost = _cost(verb, composed, cfg.data)
            yield Step(verb, config, given, where, cost, key, _of_backbone(cfg))

    def _targets(self, cfg: DictConfig, dataset: str) -> None:
        """Note what has to be fetched by hand before runs on a data set are transferred."""
        cfg = _typed("transfer", cfg)
        try:
            names = verbs.targets_of(cfg, dataset)
        except ClspError as error:
            raise ClspError(f"transfer: {error}") from error
        self.absent |= dict.fromkeys(
            filter(None, (to_fetch(name, Path(cfg.data.path)) for name in names))
        )

    def _key(self, path: Path, asked: str, version: str) -> str:
        """Of an evaluation: today's, or the last of those done that is taken for it."""
        done, key = notes_of(path), f"{asked}-{version}"
        old = [k for k in done if k.startswith(f"{asked}-")]
        old = [k for k in old if self.taken(k.removeprefix(f"{asked}-"), version)]
        return key if key in done or not old else old[-1]

    def quality(self, dataset: str, point: dict[str, Any]) -> None:
        """The unit that measures how good the candidates of one point are; see ``inspect``."""
        block = self.suite.datasets[dataset]
        # by the settings of any method: all draw from the same store
        overrides = self.overrides(dataset, self.suite.methods[0], point)
        store = self.candidates(dataset, overrides, point)
        needs, paths, parts = (store.path,), {"store": str(store.product)}, [store.path.name]
        if block.quality != "fid":
            encoder = self.run(dataset, block.quality, self.suite.seeds[0], {}, "encoder")
            needs = (*needs, encoder.path)
            paths["encoder"] = str(encoder.path / encoder.about["method"])
            parts.append(encoder.path.name)
        made = store.steps[0]
        images = _composed("generate", made.config, made.overrides).data.dataset
        path = self.place("quality", dataset, _hash(*parts), numerics_of("inspect", images))
        paths["out"] = str(store.product / "report")
        step = Step("inspect", made.config, made.overrides, paths, None, "all", made.network)
        people = ", ".join(["quality", dataset, *_words(point)])
        about = {"dataset": dataset, "point": point}
        self.add(Unit("quality", people, path, (step,), needs, about))


def _words(point: Mapping[str, Any], *begin: str) -> list[str]:
    return [f"{key}={value}" for key, value in point.items() if key.startswith(begin or "")]


def _wants_candidates(cfg: DictConfig) -> bool:
    from clsp_plugin.methods import METHODS
    from clsp_plugin.methods.synthetic import SyntheticPositives

    method = METHODS.get(cfg.method, object)
    synthetic = issubclass(method, SyntheticPositives) and method.third_view == "candidate"
    return synthetic and cfg.get("synthetic", {}).get("weight", 1.0) != 0


def _points(vary: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def make_plan(
    name: str,
    suite: DictConfig,
    out: Path,
    keep_stale: bool = False,
    artifacts: Path | None = None,
) -> Plan:
    """Every unit that a suite stands for; nothing is run or written.

    Args:
        name: of the suite.
        suite: see :func:`read_suite`.
        out: the directory of the tables and figures.
        keep_stale: take what older numerics made where its settings are the same.
        artifacts: the directory of the units; by default ``out``.

    Raises:
        ClspError: a configuration that does not exist, a setting that cannot be read, ...
    """
    artifacts = out if artifacts is None else artifacts
    planner = _Planner(suite, artifacts, keep_stale)
    points = list(_points(suite.vary))
    for seed, point in itertools.product(suite.seeds, points):
        for dataset, method in itertools.product(suite.datasets, suite.methods):
            planner.run(dataset, method, seed, point)
    if suite.quality:
        for dataset, point in itertools.product(suite.datasets, points):
            planner.quality(dataset, point)
    # what others wait for comes first
    units = sorted(planner.units.values(), key=lambda unit: _KINDS.index(unit.kind))
    return Plan(name, suite, out, artifacts, tuple(units), tuple(planner.absent))
