"""Run a plan's units through one of Hydra's launchers: joblib, SLURM by submitit, Ray.

Each stage of a plan (denoisers, candidates, runs, qualities) is one Hydra multirun with a job per
unit, and begins when the one before it has ended. A job starts the unit's process where the
launcher put it, so that machine has to see the units, their logs and the images on its file system.
"""

import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from clsp_plugin.config.overrides import quoted
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.suites.pool import Child
from clsp_plugin.suites.unit import Plan, Unit
from clsp_plugin.suites.worker import describe, read_unit

__all__ = ["LAUNCHERS", "check_launcher", "launch"]

# Hydra's name of a launcher to the package on PyPI that provides it.
LAUNCHERS = {
    "basic": None,
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}
_OF_THIS_PROCESS = ("basic", "joblib")  # jobs run in this process or in children of it
_POLL = 0.5  # seconds
_STAGES = (("denoiser",), ("candidates",), ("encoder", "run"), ("quality",))


def check_launcher(name: str) -> None:
    """Refuse a launcher that cannot be used.

    Raises:
        ClspError: an unknown launcher, or one with a plugin that is not installed.
    """
    if name not in LAUNCHERS:
        raise ClspError(f"--launcher {name} is not known{nearest(name, LAUNCHERS)}")
    package = LAUNCHERS[name]
    if package and find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
        raise ClspError(f"--launcher {name} needs Hydra's plugin for it: `pip install {package}`.")


def launch(plan: Plan, launcher: str, settings: Sequence[str] = ()) -> dict[Path, str]:
    """Run what a plan is missing.

    Args:
        plan: plan of a suite.
        launcher: a name that :func:`check_launcher` accepts.
        settings: settings of the launcher, such as ``hydra.launcher.partition=gpu``.

    Returns:
        The directories of the units that failed, each with the reason.
    """
    failed: dict[Path, str] = {}
    labels = {unit.path: unit.label for unit in plan.units}
    for kinds in _STAGES:
        ready = [unit for unit in plan.units if unit.kind in kinds and unit.missing]
        for unit in list(ready):
            broken = [path for path in unit.needs if path in failed]
            if broken:
                failed[unit.path] = f"{labels[broken[0]]} failed: {failed[broken[0]]}"
                ready.remove(unit)
        if ready:
            print(f"{plan.name}, {kinds[-1]}: {len(ready)} through {launcher}", file=sys.stderr)
            error = _multirun(plan, ready, launcher, settings)
            lost = f"the launcher did not run it ({error or 'it gave no reason'})"
            failed |= {unit.path: unit.failure or lost for unit in ready if unit.missing}
    for path, reason in failed.items():
        print(f"{labels[path]}: FAILED, {reason}; see {path / 'log.txt'}", file=sys.stderr)
    return failed


def _multirun(
    plan: Plan, units: Sequence[Unit], launcher: str, settings: Sequence[str]
) -> str | None:
    """Run one multirun with a job per unit; return the error of a launcher that itself failed."""
    import hydra

    files = (str(describe(unit).resolve()) for unit in units)
    original, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [
        "clsp-bench", "--multirun", f"hydra/launcher={launcher}",
        f"+parent={os.getpid() if launcher in _OF_THIS_PROCESS else 'null'}",
        "+unit=" + ",".join(map(quoted, files)), f"+folder={quoted(os.getcwd())}",
        f"hydra.sweep.dir={quoted(str((plan.out / 'launcher').resolve()))}",
        "hydra.output_subdir=null", "hydra/hydra_logging=disabled", "hydra/job_logging=disabled",
        *(f"++{setting}" for setting in settings),  # ++, as launchers may not list all of theirs
    ]  # fmt: skip
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors are raised here unchanged
    try:
        hydra.main(version_base="1.2", config_path=None)(run_file)()
    except Exception as error:  # launchers have errors of their own; what was run is kept
        return " ".join(f"{type(error).__name__}: {error}".split())
    finally:
        sys.argv = original
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
    return None


def run_file(cfg: DictConfig) -> None:
    """Run, as a job, the unit that ``cfg.unit`` describes, from the folder ``cfg.folder``.

    The job does not fail with the unit, since Hydra would then stop the others.
    """
    os.chdir(cfg.folder)
    child = Child(read_unit(Path(cfg.unit)))
    while child.process.poll() is None:
        if cfg.parent and cfg.parent not in (os.getpid(), os.getppid()):
            child.process.terminate()  # `clsp bench` is gone, and this worker would go on
            return
        time.sleep(_POLL)
    reason = child.failure()
    if reason is not None:
        child.note(reason)
