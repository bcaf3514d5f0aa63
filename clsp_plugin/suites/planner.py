"""Make the plan of a suite: which units it needs, where they lie, and what each runs."""

import glob
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clsp_plugin.config.compose import compose
from clsp_plugin.config.overrides import written
from clsp_plugin.config.plain import plain
from clsp_plugin.config.shipped import what
from clsp_plugin.config.training import Data, Synthetic
from clsp_plugin.data.downstream import to_fetch
from clsp_plugin.errors import ClspError, first_line
from clsp_plugin.evaluation.settings import Transfer, complete
from clsp_plugin.evaluation.verbs import targets_of
from clsp_plugin.records.elsewhere import is_from_elsewhere
from clsp_plugin.records.numerics import numerics_label, numerics_of
from clsp_plugin.records.numerics_before import of_first_version
from clsp_plugin.records.record import ELSEWHERE
from clsp_plugin.suites.unit import Plan, Step, Unit, notes_of
from clsp_plugin.verbs import EXPERIMENTS, VERBS

__all__ = ["make_plan"]

# The kinds of units, in the order in which they run; an encoder is a run that is in no table.
_KINDS = ("denoiser", "candidates", "encoder", "run", "quality")
# The number of training images of data sets, where it is known without reading them; and about how
# many there are where copies differ a little, for the cost alone.
_SIZES = {"cifar10": 50_000, "cifar100": 50_000, "stl10": 105_000}
_ABOUT = {"imagenet100": 126_689}
# Settings of a ``data`` block that choose the images of an evaluation.
_EVALUATED = (
    "dataset", "train_path", "val_path", "no_labels", "image_column", "label_column", "fraction",
    "image_size", "num_train", "num_val", "seed",
)  # fmt: skip
_SIDES = {"cifar10": 32, "cifar100": 32, "digits": 32, "stl10": 96}  # pixels, unless asked for


def _routed(overrides: Sequence[str], verb: str) -> list[str]:
    """Return the overrides of a suite that are for a verb, as the verb reads them."""
    own = EXPERIMENTS.keys() - {"pretrain"}
    out = []
    for override in overrides:
        first, _, rest = override.partition(".")
        if first in own:
            out += [rest] * (first == verb)
        elif first == "data":
            out += [override] * VERBS[verb].takes_data
        else:
            out += [override] * (verb == "pretrain")
    return out


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


@cache
def _composed(verb: str, config: str, overrides: tuple[str, ...]) -> DictConfig:
    """Compose and check a configuration; cached, since a suite's seeds share one.

    Raises:
        ClspError: it cannot be read, or its verb would refuse it.
    """
    try:
        cfg = compose(verb, config, overrides)
        VERBS[verb].refuse(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        said = " ".join(overrides) or "no overrides"
        raise ClspError(
            f"clsp {verb} cannot read {config} with {said}: {first_line(error)}"
        ) from error
    except ClspError as error:
        raise ClspError(str(error) if verb == "pretrain" else f"{verb}: {error}") from error
    return cfg


def _images(data: Mapping[str, Any], sizes: Mapping[str, int] = _SIZES) -> int | None:
    """Return the number of training images, where it is known without reading them."""
    number = data.get("num_train", 2000) if data["dataset"] == "digits" else None
    number = number or sizes.get(data["dataset"])
    fraction = data.get("fraction", -1)
    return round(number * fraction) if number and fraction > 0 else number


def _cost(verb: str, cfg: DictConfig, data: Mapping[str, Any]) -> int | None:
    """Return how much work a step is, in what its verb counts; None if that is not known."""
    images = _images(data, {**_SIZES, **_ABOUT})
    return None if images is None else VERBS[verb].cost(cfg, images)


def _network(settings: Mapping[str, Any], size: Any) -> str:
    """Return a hash of network and image size in pixels; times are comparable within one."""
    return _hash(settings, size)


def _of_backbone(cfg: DictConfig) -> str:
    crops = [block.crop_size for block in cfg.augmentations if "crop_size" in block]
    return _network(plain(cfg.backbone), max(crops, default=0))


def _of_denoiser(cfg: DictConfig) -> str:
    names: tuple[str, ...] = ("block_out_channels", "layers_per_block", "attention_resolutions")
    content = plain(cfg)
    if content.get("autoencoder") is not None:
        names = (*names, "autoencoder")
    size = cfg.data.get("image_size") or _SIDES.get(cfg.data.dataset, cfg.data.dataset)
    return _network({name: content.get(name) for name in names}, size)


class _Planner:
    """Collects units, each once."""

    def __init__(self, suite: DictConfig, artifacts: Path, keep_stale: bool):
        self.suite, self.artifacts, self.keep_stale = suite, artifacts, keep_stale
        self.units: dict[Path, Unit] = {}
        self.absent: dict[str, None] = {}

    def place(
        self, folder: str, label: str, config: str, numerics: Mapping[str, int] | None
    ) -> Path:
        """Return a unit's directory.

        If that is not done, the directory of a done unit with the same numbers is taken, or of one
        with older numbers if those are wanted.
        """
        version = numerics_label(numerics)
        path = self.artifacts / folder / f"{label}-{config}-{version}"
        if not (path / "done.json").exists():
            begin = f"{label}-{config}-"
            older = [
                p
                for p in path.parent.glob(f"{glob.escape(begin)}*")
                if (p / "done.json").exists() and self.taken(p.name.removeprefix(begin), version)
            ]
            path = max(older, key=lambda p: p.stat().st_mtime, default=path)
        return path

    def taken(self, old: str, version: str) -> bool:
        """Whether a result labelled ``old`` is taken for one of a version of the numerics.

        It is taken if older results are wanted, or if the label is a hash of sources, from before
        there were versions, and these computed what version 1 does.
        """
        return self.keep_stale or (version == "v1" and of_first_version(old))

    def add(self, unit: Unit) -> Unit:
        known = self.units.setdefault(unit.path, unit)
        if unit.kind == known.kind == "run" and known.what != unit.what:
            raise ClspError(
                f"{known.label} and {unit.label} are the same run, so their numbers would be too; "
                f"leave one out, or vary a setting of the pre-training that its method uses."
            )
        if known.about.get("variant") and unit.what == known.what:
            self.units[unit.path] = unit  # a run that is also a variant goes by the method's name
        return known

    def overrides(self, dataset: str, method: str, point: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a run, the strongest last."""
        suite, block = self.suite, self.suite.datasets[dataset]
        variant = suite.variants.get(method)
        return [
            *block.overrides,
            *block.only.get(method if variant is None else variant.config, ()),
            *suite.overrides,
            *(() if variant is None else variant.overrides),
            *suite.only.get(method, ()),
            *suite.only.get(f"{dataset}/{method}", ()),
            *(f"{key}={written(value)}" for key, value in point.items()),
            *suite.given,
        ]

    def candidates(
        self,
        dataset: str,
        overrides: Sequence[str],
        point: Mapping[str, Any],
        method: str = "",
    ) -> Unit:
        """Add the units of a store and its denoiser, those of a variant if it has its own.

        Returns:
            The store's unit.
        """
        block, variant = self.suite.datasets[dataset].candidates, self.suite.variants.get(method)
        of: tuple[str, ...] = ()
        if variant is not None and variant.candidates is not None:
            block, of = variant.candidates, (method,)
        if block is None:
            raise ClspError(
                f"The suite needs candidates and says for {dataset} none; give its data set a "
                f"block `candidates`."
            )
        given = tuple(_routed(overrides, "generate"))
        cfg = _composed("generate", block.generate, given)
        needs: tuple[Path, ...] = ()
        paths: dict[str, Any] = {}
        parts: list[Any] = [{**what(cfg), "out": None}]
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

    def _pretraining(
        self, dataset: str, method: str, overrides: Sequence[str]
    ) -> tuple[str, tuple[str, ...], DictConfig]:
        """Return a pre-training's configuration: its name, its overrides, and it composed."""
        variant = self.suite.variants.get(method)
        name = method if variant is None else variant.config
        config = f"{self.suite.datasets[dataset].configs}/{name}"
        given = tuple(_routed(overrides, "pretrain"))
        return config, given, _composed("pretrain", config, given)

    def run(
        self, dataset: str, method: str, seed: int, point: dict[str, Any], kind: str = "run"
    ) -> Unit:
        """Add and return the unit of a pre-training and, except for encoders, its evaluations."""
        block = self.suite.datasets[dataset]
        overrides = self.overrides(dataset, method, point)
        config, given, cfg = self._pretraining(dataset, method, overrides)
        needs: tuple[Path, ...] = ()
        paths: dict[str, Any] = {}
        parts: list[Any] = [{**what(cfg), "seed": seed}]
        if _wants_candidates(cfg):
            store = self.candidates(dataset, overrides, point, method)
            needs, paths = (store.path,), {"synthetic.path": str(store.product)}
            parts.append(store.path.name)
        key = _hash(*parts)
        label = f"{cfg.method}-{dataset}-s{seed}"
        path = self.place("runs", label, key, numerics_of("pretrain", cfg.data.dataset, cfg.method))
        # a configuration may refuse old checkpoints; a suite continues from those of any age
        paths |= {"checkpoint.dir": str(path)}
        paths |= {"auto_resume.enabled": True, "auto_resume.max_hours": None}
        cost = _cost("pretrain", cfg, cfg.data)
        given = (*given, f"seed={seed}")
        steps = [Step("pretrain", config, given, paths, cost, key, _of_backbone(cfg))]
        if kind == "run":
            frozen = {"pretrained_feature_extractor": str(path / cfg.method)}
            steps += self._evaluations(block, cfg, overrides, path, frozen)
        images = _images(cfg.data)
        budget = {"backbone": cfg.backbone.name, "epochs": cfg.max_epochs, "num_train": images}
        about = {"method": cfg.method, "dataset": cfg.data.dataset, "seed": seed}
        about["variant"] = method if method in self.suite.variants else ""
        about |= {"point": point, "budget": budget}
        people = ", ".join([method, dataset, *_words(point), f"seed {seed}"])
        return self.add(Unit(kind, people, path, tuple(steps), needs, about))

    def elsewhere(self, dataset: str, encoder: str) -> Unit:
        """Add and return the unit of the evaluations of an encoder that was not trained here.

        The images are those that the first method is pre-trained on.
        """
        block = self.suite.datasets[dataset]
        if not is_from_elsewhere(encoder):
            raise ClspError(
                f"encoders names {encoder}, which is no encoder from elsewhere; name a run as "
                f"`clsp table` does, or an encoder as timm:NAME, hf:NAME or torchvision:NAME."
            )
        method = self.suite.methods[0]
        overrides = self.overrides(dataset, method, {})
        _, _, cfg = self._pretraining(dataset, method, overrides)
        usual = Data(dataset=cfg.data.dataset)
        data = {name: cfg.data.get(name, getattr(usual, name)) for name in _EVALUATED}
        data = {k: v for k, v in data.items() if k == "dataset" or v != getattr(usual, k)}
        label = re.sub(r"[^\w.-]+", "-", f"{encoder}-{dataset}")
        path = self.place("encoders", label, _hash(encoder, data), numerics_of("features"))
        frozen = {"pretrained_feature_extractor": encoder}
        frozen["record_dir"] = str(path / "encoder" / "evaluated")
        images = {f"data.{key}": value for key, value in data.items()}
        steps = self._evaluations(block, cfg, overrides, path, frozen, images)
        about = {"method": encoder, "dataset": ELSEWHERE, "seed": 0, "variant": "", "point": {}}
        about["budget"] = {"backbone": encoder, "epochs": 0, "num_train": None}
        return self.add(Unit("run", f"{encoder}, {dataset}", path, tuple(steps), (), about))

    def _evaluations(
        self,
        block: DictConfig,
        cfg: DictConfig,
        overrides: Sequence[str],
        path: Path,
        frozen: Mapping[str, Any],
        images: Mapping[str, Any] | None = None,
    ) -> Iterator[Step]:
        """Yield the evaluations of a run; or, with ``images``, of an encoder from elsewhere."""
        for verb in self.suite.evaluate:
            if images is not None and verb == "finetune":
                continue  # its settings are those of a pre-training
            config = block.evaluations.get(verb, verb)
            given, where = tuple(_routed(overrides, verb)), dict(frozen)
            if VERBS[verb].protocols:
                given = (*given, f"protocol={self.suite.table.protocol}")
            if verb == "finetune":  # a training of its own
                where["checkpoint.dir"] = str(path / verb)
            composed = _composed(verb, config, given)
            if verb == "transfer":
                self._targets(composed, cfg.data.dataset)
            asked = _hash(verb, plain(composed))
            if images is not None and verb == "transfer":
                where["datasets"] = targets_of(complete(Transfer, composed), cfg.data.dataset)
            elif images is not None:
                where |= images
            # the data sets of a transfer have no numerics of their own
            on = OmegaConf.select(composed, "data.dataset") or cfg.data.dataset
            versions = numerics_of(verb, None if verb == "transfer" else on)
            key = self._key(path, asked, numerics_label(versions))
            cost = _cost(verb, composed, cfg.data)
            network = _of_backbone(cfg) if images is None else _network(dict(frozen), None)
            yield Step(verb, config, given, where, cost, key, network)

    def _targets(self, cfg: DictConfig, dataset: str) -> None:
        """Note which data sets have to be fetched by hand before runs are transferred to them."""
        try:
            names = targets_of(complete(Transfer, cfg), dataset)
        except ClspError as error:
            raise ClspError(f"transfer: {error}") from error
        self.absent |= dict.fromkeys(
            filter(None, (to_fetch(name, Path(cfg.data.path)) for name in names))
        )

    def _key(self, path: Path, asked: str, version: str) -> str:
        """Return an evaluation's key: today's, or that of the last done one taken for it."""
        done, key = notes_of(path), f"{asked}-{version}"
        old = [k for k in done if k.startswith(f"{asked}-")]
        old = [k for k in old if self.taken(k.removeprefix(f"{asked}-"), version)]
        return key if key in done or not old else old[-1]

    def quality(self, dataset: str, point: dict[str, Any]) -> None:
        """Add the unit that measures how good the candidates of one point are; see ``inspect``."""
        block = self.suite.datasets[dataset]
        # any method will do: all draw from the same store
        overrides = self.overrides(dataset, self.suite.methods[0], point)
        store = self.candidates(dataset, overrides, point)
        needs: tuple[Path, ...] = (store.path,)
        paths, parts = {"store": str(store.product)}, [store.path.name]
        if block.quality != "fid":
            encoder = self.run(dataset, block.quality, self.suite.seeds[0], {}, "encoder")
            needs = (*needs, encoder.path)
            paths["encoder"] = str(encoder.path / encoder.about["method"])
            parts.append(encoder.path.name)
        made = store.steps[0]
        images = _composed("generate", made.config, made.overrides).data.dataset
        path = self.place("quality", dataset, _hash(*parts), numerics_of("inspect", images))
        # not in the store, where a suite with another encoder, or clsp inspect, would replace it
        paths["out"] = str(path / "report")
        step = Step("inspect", made.config, made.overrides, paths, None, "all", made.network)
        people = ", ".join(["quality", dataset, *_words(point)])
        about = {"dataset": dataset, "point": point}
        self.add(Unit("quality", people, path, (step,), needs, about))


def _words(point: Mapping[str, Any], *begin: str) -> list[str]:
    return [
        f"{key}={written(value)}" for key, value in point.items() if key.startswith(begin or "")
    ]


def _wants_candidates(cfg: DictConfig) -> bool:
    from clsp_plugin.methods import METHODS
    from clsp_plugin.methods.synthetic import SyntheticPositives

    method = METHODS.get(cfg.method)
    if method is None or not issubclass(method, SyntheticPositives):
        return False
    used = Synthetic.candidates_used(plain(cfg).get("synthetic"))
    return method.third_view == "candidate" and used


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
    """Plan every unit that a suite stands for; nothing is run or written.

    Args:
        name: name of the suite.
        suite: see :func:`read_suite`.
        out: the directory of the tables and figures.
        keep_stale: whether to take what older numerics made from the same settings.
        artifacts: the directory of the units; by default ``out``.

    Raises:
        ClspError: a configuration does not exist, a setting cannot be read, ...
    """
    artifacts = out if artifacts is None else artifacts
    planner = _Planner(suite, artifacts, keep_stale)
    points = list(_points(plain(suite.vary)))
    for seed, point in itertools.product(suite.seeds, points):
        for dataset, method in itertools.product(suite.datasets, suite.methods):
            planner.run(dataset, method, seed, point)
    for dataset, encoder in itertools.product(suite.datasets, suite.encoders):
        planner.elsewhere(dataset, encoder)
    if suite.quality:
        for dataset, point in itertools.product(suite.datasets, points):
            planner.quality(dataset, point)
    # units that others need come first
    units = sorted(planner.units.values(), key=lambda unit: _KINDS.index(unit.kind))
    return Plan(name, suite, out, artifacts, tuple(units), tuple(planner.absent))
