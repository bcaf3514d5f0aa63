"""A suite: a small YAML file that says which runs make a table.

A suite stands for a plan of units, each in a directory: denoisers, the candidates that they draw,
runs (one pre-training and its evaluations) and, where asked for, how good each store is. A unit's
directory is named by what it is made from, so that a changed setting or another version of the
numerics makes another unit, and old results are never taken for new ones. Suites that share a
folder of units share the units that they have in common.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, cast

from omegaconf import MISSING, DictConfig, OmegaConf

from clsp_plugin.config.rules import SEED, ranged
from clsp_plugin.config.shipped import shipped
from clsp_plugin.config.typed import typed
from clsp_plugin.config.user_yaml import parse_yaml, read_yaml
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.evaluation.names import check_protocol
from clsp_plugin.tables.rows import LAYOUTS
from clsp_plugin.verbs import EVALUATIONS

__all__ = ["Suite", "read_suite"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support


@dataclass
class _Candidates:
    """How candidates are made.

    Attributes:
        denoiser: a configuration of ``clsp denoiser``; null where that of ``generate`` names a
            denoiser itself.
        generate: a configuration of ``clsp generate``.
    """

    denoiser: Optional[str] = None
    generate: str = MISSING


@dataclass
class _DataSet:
    """Where the configurations of a data set are, and what is particular to it.

    Attributes:
        configs: a folder of ``scripts/pretrain``, with a configuration per method.
        overrides: overrides of every run on it.
        only: a method to overrides of its own.
        evaluations: a verb to its configuration, where that is not the verb's own.
        candidates: how its candidates are made.
        quality: how the quality of candidates is measured: ``fid``, or with the encoder of a run of
            the method named here in place of the FID's network.
    """

    configs: str = MISSING
    overrides: list[str] = field(default_factory=list)
    only: dict[str, list[str]] = field(default_factory=dict)
    evaluations: dict[str, str] = field(default_factory=dict)
    candidates: Optional[_Candidates] = None
    quality: str = "fid"


@dataclass
class _Variant:
    """A method with settings of its own.

    Attributes:
        config: name of a configuration in the data set's ``configs``.
        overrides: overrides of its runs.
        candidates: how its candidates are made, where that is not as for the data set.
    """

    config: str = MISSING
    overrides: list[str] = field(default_factory=list)
    candidates: Optional[_Candidates] = None


@dataclass
class _Table:
    """How tables are laid out.

    Attributes:
        layout: a layout of ``clsp table --layout``, or a list of several, each a table.
        protocol: ``strict`` or ``paper``.
        published: whether the paper's numbers stand beside ours where it has them.
    """

    layout: Any = "main"
    protocol: str = "strict"
    published: bool = False


@dataclass
class Suite:
    """What the YAML of a suite may say.

    Overrides are ``key=value``. Those that begin with the name of another verb (``denoiser.``,
    ``generate.``, ``linear.``, ``knn.``, ``transfer.``, ``finetune.``) are settings of that verb,
    those that begin with ``data.`` of every verb that reads the training images, and all others of
    the pre-training. The keys of ``vary`` are divided in the same way. Where a setting is given
    twice, the last of these decides: the data set, the suite, a method, ``vary``, the command line.

    Attributes:
        extends: name of another suite, or its path from the file's folder, that this one changes:
            blocks are joined, and of everything else what this file says holds.
        title: a line for people.
        datasets: names of files in ``scripts/bench/dataset``; or names to the content of such
            files.
        methods: names of configurations or of variants.
        encoders: encoders from elsewhere to evaluate beside them, such as ``timm:resnet18``; see
            ``evaluation.encoders``.
        variants: a name to a configuration and overrides, for methods that are run in several ways.
        seeds: seeds of pre-training.
        overrides: overrides of every run.
        only: a method, or a ``dataset/method``, to overrides of its own.
        vary: settings to the values that they take; every combination is run.
        evaluate: the verbs of the evaluations.
        quality: whether to measure how good the candidates of each store are.
        table: how the tables are laid out.
    """

    extends: Optional[str] = None
    title: str = MISSING
    datasets: Any = MISSING
    methods: list[str] = MISSING
    encoders: list[str] = field(default_factory=list)
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
    """Read a suite that ships with this package, by its name, or a YAML file, by its path.

    Args:
        name: name of the suite or path of a file.
        overrides: ``key=value`` for every run, stronger than those of the file; for a key that the
            suite varies, the values that it takes instead.
        datasets: data sets in place of the suite's.

    Returns:
        The suite's name and its content, see :class:`Suite`. In it, ``given`` holds the overrides
        of keys that the suite does not vary, and ``table.layout`` is a list.

    Raises:
        ClspError: there is no such suite, or the file is none.
    """
    file = _file_of(name)
    suite = typed(_content(file), Suite)
    suite.variants = {key: typed(value, _Variant) for key, value in suite.variants.items()}
    suite.table.layout = _several(suite.table.layout)
    own = suite.datasets if OmegaConf.is_dict(suite.datasets) else {}
    _check(suite, list(own) or _several(suite.datasets or []), overrides, file)
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


def _file_of(name: str | Path, folder: Path = Path()) -> Path:
    """Return the file of a suite, by its name or its path, which may be relative to a folder."""
    if Path(name).suffix in (".yaml", ".yml"):
        return folder / name
    file = shipped() / "bench" / f"{name}.yaml"
    if not file.is_file():
        known = (path.stem for path in file.parent.glob("*.yaml"))
        raise ClspError(f"There is no suite {name}{nearest(str(name), known)}")
    return file


def _content(file: Path, extending: tuple[Path, ...] = ()) -> DictConfig:
    """Read a suite and those it extends: blocks are joined, all else is the extending one's."""
    if file.resolve() in extending:
        raise ClspError(f"{file} extends itself, by way of {extending[-1]}; name another suite.")
    content = read_yaml(file)
    if (base := content.pop("extends", None)) is None:
        return content
    if not isinstance(base, str):
        raise ClspError(f"{file}: extends={base!r}; give the name or the path of one suite.")
    below = _content(_file_of(base, file.parent), (*extending, file.resolve()))
    methods = content.get("methods") or below.get("methods") or []
    for key in set(below.get("only") or {}):  # of a method that is not run any more
        if key.rpartition("/")[2] not in methods:
            del below.only[key]
    return cast(DictConfig, OmegaConf.merge(below, content))


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) or OmegaConf.is_list(value) else [value]


def _block(name: str, own: Mapping[str, Any]) -> DictConfig:
    """Return what is particular to a data set, from the suite or from a file that suites share."""
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
