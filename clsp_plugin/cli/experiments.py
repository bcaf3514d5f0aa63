"""``clsp VERB --config-name NAME key=value``: the verbs that are Hydra applications.

They have solo-learn's calling convention: ``clsp pretrain --config-path DIR --config-name NAME
key=value ...``. Configurations that ship with the package are found by name alone, as ``NAME`` (of
the offline data set) or ``DATASET/NAME``.
"""

import os
import re
import sys
from collections.abc import Sequence

from clsp_plugin.config.compose import DEFAULT_DATASET, locate, names_of, source_of, typed_names
from clsp_plugin.config.overrides import as_typed, composing, hydra_overrides
from clsp_plugin.config.shipped import fingerprint
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.system.processes import check_launch
from clsp_plugin.system.refusals import files_told
from clsp_plugin.verbs import EVALUATIONS, VERBS

__all__ = ["help_of", "run_experiment"]


def help_of(verb: str) -> str:
    text, default = VERBS[verb].does, VERBS[verb].configuration
    names = "\n".join(f"  {name}" for name in names_of(verb))
    using = "" if default is None else f" (default: {default})"
    return f"""usage: clsp {verb} [--config-path DIR] [--config-name NAME] [-m] [key=value ...]

{text[0].upper()}{text[1:]}.

  --config-name NAME   a YAML file{using}; a name without a
                       data set is looked for under {DEFAULT_DATASET}/
  --config-path DIR    the folder it is in, if it is not one of ours
  key=value            any setting of the YAML or of its defaults, such as seed=1
  --cfg job            print the configuration and stop
  -m, --multirun       run every combination of key=a,b,c (Hydra's sweeps)

Configurations that ship with the package:
{names}
"""


def _take(args: list[str], *flags: str) -> str | None:
    """Remove ``--flag value`` or ``--flag=value`` from arguments and return the value."""
    for number, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in flags:
            if equals:
                del args[number]
                return value
            if number + 1 == len(args):
                raise ClspError(f"{name} needs a value.")
            value = args[number + 1]
            del args[number : number + 2]
            return value
    return None


# Hydra's options that may follow a verb, besides those for the configuration; the first take a
# value. A word that follows one of them is not looked at.
_WITH_VALUE = frozenset({
    "--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--experimental-rerun", "--info", "-i"
})  # fmt: skip
_ALONE = frozenset({"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r",
                    "--multirun", "-m", "--shell-completion", "-sc"})  # fmt: skip
_OURS = ("--config-path", "-cp", "--config-name", "-cn")


def _check_words(verb: str, args: Sequence[str]) -> None:
    """Refuse options that there are not, and words that are no ``key=value``."""
    before = ""
    for arg in args:
        name, equals, _ = arg.partition("=")
        if arg.startswith("-"):
            if name not in {*_WITH_VALUE, *_ALONE, *_OURS}:
                long = [option for option in (*_WITH_VALUE, *_ALONE, *_OURS) if option[1] == "-"]
                raise ClspError(f"{name} is no option of clsp {verb}{nearest(name, long)}")
        elif not equals and not arg.startswith("~") and before not in {*_WITH_VALUE, *_OURS}:
            raise ClspError(f"{arg} is no key=value; {_meant(verb, arg)}.")
        before = arg


def _meant(verb: str, word: str) -> str:
    """Say how a word is written that was given without its key or without its value."""
    if word in typed_names(verb):
        return f"a configuration is named by --config-name {word}"
    if verb in EVALUATIONS and not re.fullmatch(r"[a-z_.]+", word):
        return f"what is evaluated is named by pretrained_feature_extractor={word}"
    return f"write {word}=VALUE, or one of the options of `clsp {verb} --help`"


def run_experiment(verb: str, args: list[str]) -> None:
    """Run an experiment verb with its command-line arguments, under Hydra."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from clsp_plugin.records.environment import made_from

    check_launch()
    original = list(sys.argv)
    args = list(args)
    _check_words(verb, args)
    path = _take(args, "--config-path", "-cp")
    name = _take(args, "--config-name", "-cn")
    folder, stem = locate(verb, path, name)
    source = source_of(verb, path, folder, stem)
    refused: list[ClspError] = []
    composed: list[bool] = []

    def run(cfg):
        composed.append(True)
        sys.argv = original  # a launcher of further processes repeats these
        given = [as_typed(override, folder) for override in HydraConfig.get().overrides.task]
        OmegaConf.set_struct(cfg, False)
        try:
            with files_told(), made_from(source, given, fingerprint(cfg)):
                return VERBS[verb].run(cfg)
        except ClspError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # to the launcher, which may be another process
            refused.append(error)  # raised below, because Hydra would print lines around it

    run.__module__, run.__qualname__ = "clsp", f"clsp_{verb}"
    sys.argv = [original[0], "--config-path", str(folder), "--config-name", stem]
    multirun = any(arg in ("-m", "--multirun") for arg in args)
    sys.argv += hydra_overrides(args, folder, multirun)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through unchanged
    try:
        hydra.main(version_base="1.2", config_path=None)(run)()
    except (ClspError, BrokenPipeError):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ClspError):
            raise cause from error
        # the errors of Hydra, OmegaConf and PyYAML on a configuration have no common class, so
        # any error is one of theirs until the task has begun
        if composed and not isinstance(error, (HydraException, OmegaConfBaseException)):
            raise
        raise ClspError(f"{composing(error, folder)}.") from error
    finally:
        sys.argv = original
    if refused:
        raise refused[0]
