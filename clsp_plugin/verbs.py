"""The verbs of ``clsp``, each described once.

The command line, suites, tables and the versions of numerics read what they need to know about a
verb from here. The functions that do the work are given by name and imported when they are
called, so this module imports nothing else of the package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["EVALUATIONS", "EXPERIMENTS", "VERBS", "Verb"]


def _once(cfg: Mapping[str, Any], images: int) -> int | None:
    return images


def _each_epoch(cfg: Mapping[str, Any], images: int) -> int | None:
    return images * cfg["max_epochs"]


def _each_step(cfg: Mapping[str, Any], images: int) -> int | None:
    if "oracle" in cfg:  # candidates from the data set's own recipe need no denoiser
        return None
    return images * cfg["num_candidates"] * cfg["steps"]


def _unknown(cfg: Mapping[str, Any], images: int) -> int | None:
    return None


@dataclass(frozen=True)
class Verb:
    """One verb and the properties in which verbs differ.

    Attributes:
        name: the word that is typed after ``clsp``.
        does: what the verb does, as a phrase for help texts.
        task: ``module:function`` below ``clsp_plugin`` that does the work. It takes the
            configuration of an experiment, or the list of arguments of any other verb.
        check: for experiments, ``module:function`` that refuses a composed configuration which
            the task would refuse, before any data is read.
        configuration: for experiments, the name of the default configuration; None if the user
            has to name one.
        experiment: whether the verb is run from a configuration, under Hydra.
        heading: the heading of its accuracy in tables; only evaluations of a pre-training have
            one.
        protocols: whether it has a ``protocol`` setting, ``strict`` or ``paper``.
        stages: the stages of ``records.numerics`` that its numbers depend on, besides the data
            set.
        takes_data: whether the ``data.`` settings of a suite apply to it.
        counts: the unit of its cost.
        cost: function of a configuration and a number of training images that returns the amount
            of work, in the unit of ``counts``; None if it is not known.
    """

    name: str
    does: str
    task: str
    check: str = ""
    configuration: str | None = None
    experiment: bool = True
    heading: str = ""
    protocols: bool = False
    stages: tuple[str, ...] = ()
    takes_data: bool = False
    counts: str = "embedded images"
    cost: Callable[[Mapping[str, Any], int], int | None] = _unknown

    def run(self, given: Any) -> Any:
        """Run the task with a configuration, or with the arguments that follow the verb."""
        return _named(self.task)(given)

    def refuse(self, cfg: Any) -> None:
        """Refuse a composed configuration that :meth:`run` would refuse.

        Raises:
            ClspError: the configuration is refused; see the function that ``check`` names.
        """
        _named(self.check)(cfg)


def _named(name: str) -> Callable[[Any], Any]:
    module, _, function = name.partition(":")
    return getattr(import_module(f"clsp_plugin.{module}"), function)


_TABLE = (
    Verb(
        "autoencoder",
        "train a small autoencoder for latent denoisers",
        "diffusion.verbs:autoencoder",
        check="diffusion.verbs:check_autoencoder",
        configuration="autoencoder",
        stages=("images", "denoiser"),
        takes_data=True,
        counts="training images",
        cost=_each_epoch,
    ),
    Verb(
        "denoiser",
        "train a diffusion model on your images",
        "inspection.frechet:denoiser",
        check="diffusion.verbs:check_denoiser",
        configuration="denoiser",
        stages=("images", "denoiser"),
        takes_data=True,
        counts="training images",
        cost=_each_epoch,
    ),
    Verb(
        "generate",
        "draw candidates for every image with a denoiser",
        "diffusion.verbs:generate",
        check="diffusion.verbs:check_generate",
        configuration="generate",
        stages=("images", "sampling"),
        takes_data=True,
        counts="denoising steps",
        cost=_each_step,
    ),
    Verb(
        "pretrain",
        "pre-train a method, with or without synthetic positives",
        "engine.pretrain:pretrain",
        check="engine.pretrain:check",
        stages=("images", "augmentation", "pretrain"),
        takes_data=True,
        counts="training images",
        cost=_each_epoch,
    ),
    Verb(
        "linear",
        "linear probe on a checkpoint's frozen features",
        "evaluation.verbs:linear",
        check="evaluation.verbs:check_linear",
        configuration="linear",
        heading="linear",
        protocols=True,
        stages=("images", "features", "linear"),
        cost=_once,
    ),
    Verb(
        "knn",
        "nearest-neighbour accuracy of a checkpoint's features",
        "evaluation.verbs:knn",
        check="evaluation.verbs:check_knn",
        configuration="knn",
        heading="kNN",
        protocols=True,
        stages=("images", "features", "knn"),
        cost=_once,
    ),
    Verb(
        "transfer",
        "linear accuracy of a checkpoint's features on other data sets",
        "evaluation.verbs:transfer",
        check="evaluation.verbs:check_transfer",
        configuration="transfer",
        heading="transfer",
        protocols=True,
        stages=("images", "features", "transfer"),
    ),
    Verb(
        "finetune",
        "train a checkpoint's backbone and a classifier on labels",
        "evaluation.verbs:finetune",
        check="evaluation.verbs:check_finetune",
        configuration="finetune",
        heading="fine-tuned",
        stages=("images", "augmentation", "finetune"),
        counts="training images",
        cost=_each_epoch,
    ),
    Verb(
        "import-denoiser",
        "convert a denoiser of the authors' code",
        "cli.stores:import_denoiser",
        experiment=False,
    ),
    Verb(
        "embed",
        "features or clusters of the images, to condition a denoiser on",
        "cli.stores:embed",
        experiment=False,
    ),
    Verb(
        "export",
        "write a backbone for timm, torchvision or ONNX, or a candidate store; the hub",
        "cli.export:export",
        experiment=False,
    ),
    Verb(
        "import-candidates",
        "make a candidate store of an exported one, or of images of another generator",
        "cli.export:import_candidates",
        experiment=False,
    ),
    Verb(
        "inspect",
        "what a candidate store holds, and how good it is",
        "cli.stores:inspect",
        stages=("images", "features", "quality"),
        experiment=False,
    ),
    Verb(
        "bench",
        "run a suite of experiments and make its tables and figures",
        "cli.suites:bench",
        experiment=False,
    ),
    Verb(
        "watch",
        "show a running suite or training in the terminal",
        "cli.suites:watch",
        experiment=False,
    ),
    Verb("table", "turn the records of runs into a table", "cli.records:table", experiment=False),
    Verb("figures", "draw what the records of runs say", "cli.records:figures", experiment=False),
    Verb(
        "report",
        "tables, figures and configurations of runs in one HTML file",
        "cli.records:report",
        experiment=False,
    ),
    Verb(
        "configs",
        "list the configurations that ship with the package",
        "cli.configurations:configs",
        experiment=False,
    ),
    Verb(
        "show",
        "a composed configuration, and where each setting comes from",
        "cli.configurations:show",
        experiment=False,
    ),
    Verb(
        "completion",
        "what lets bash or zsh complete all of this",
        "cli.completion:completion",
        experiment=False,
    ),
    Verb(
        "demo",
        "the whole of CLSP on the offline data set, in minutes",
        "cli.suites:demo",
        experiment=False,
    ),
    Verb(
        "doctor",
        "what is installed, which solo-learn is seen, and what is wrong",
        "cli.suites:doctor",
        experiment=False,
    ),
)
VERBS = {verb.name: verb for verb in _TABLE}
EXPERIMENTS = {name: verb for name, verb in VERBS.items() if verb.experiment}
EVALUATIONS = {name: verb for name, verb in VERBS.items() if verb.heading}
