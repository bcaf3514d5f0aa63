"""One unit of a suite in a process of its own: ``python -m clsp_plugin.suites.worker FILE``.

A unit has its own process so that a run that is killed by a signal or lacks memory does not end the
suite. The process ends by itself when its parent is gone.
"""

from clsp_plugin.system.child import end_with_parent

if __name__ == "__main__":
    end_with_parent()

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from clsp_plugin.config.compose import compose
from clsp_plugin.config.shipped import fingerprint
from clsp_plugin.config.training import Data
from clsp_plugin.config.typed import typed
from clsp_plugin.data.images import load_images
from clsp_plugin.errors import ClspError
from clsp_plugin.records.environment import made_from
from clsp_plugin.suites.unit import Step, Unit
from clsp_plugin.system.alone import alone
from clsp_plugin.system.files import write_text
from clsp_plugin.system.json_files import read_json
from clsp_plugin.system.processes import number_of
from clsp_plugin.system.refusals import files_told
from clsp_plugin.verbs import VERBS

__all__ = ["describe", "read_unit", "run_unit"]


def describe(unit: Unit) -> Path:
    """Write what a unit's process has to know to a ``unit-HASH.json``; return its path.

    The process may read it much later, and another suite that shares the unit may want other steps.
    """
    content = json.dumps({**asdict(unit), "path": str(unit.path), "needs": []}, indent=1)
    file = unit.path / f"unit-{hashlib.sha256(content.encode()).hexdigest()[:8]}.json"
    write_text(file, content)
    return file


def read_unit(file: Path) -> Unit:
    """Read the unit that a file of :func:`describe` is about."""
    return read_json(file, Unit, "the description of a unit", "`clsp bench` writes it anew")


def run_unit(unit: Unit) -> None:
    """Run the steps of a unit that are not done yet.

    Raises:
        ClspError: see the verbs.
    """
    with _alone(unit.path):
        unit.begin()
        for number, step in enumerate(unit.steps, 1):
            if step not in unit.missing:
                continue
            print(f"\n[{number}/{len(unit.steps)}] {step.command}", flush=True)
            began = time.perf_counter()
            # a denoiser that exists is complete, even if it is not noted as done
            if not (step.verb == "denoiser" and unit.made):
                _inspect(step) if step.verb == "inspect" else _run(step)
            if number_of("LOCAL_RANK", 0):
                return  # a process that Lightning started for the training alone
            unit.finish(step, time.perf_counter() - began)


def _run(step: Step) -> None:
    cfg = compose(step.verb, step.config, step.overrides)
    source = made_from(step.config, step.overrides, fingerprint(cfg))
    OmegaConf.set_struct(cfg, False)
    for key, value in step.paths.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    with source:
        VERBS[step.verb].run(cfg)


def _inspect(step: Step) -> None:
    from clsp_plugin.inspection.report import inspect_store

    data = typed(compose("generate", step.config, step.overrides).data, Data)
    encoder = step.paths.get("encoder")
    inspect_store(
        step.paths["store"], load_images(data, "train"), step.paths["out"],
        encoder=encoder, fid=encoder is None,
    )  # fmt: skip


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a unit's lock: suites that share the unit wait for each other, and then find it done."""
    if number_of("LOCAL_RANK", 0):
        yield
        return
    with alone(path / "lock", f"runs {path}"):
        yield


def main(argv: list[str]) -> int:
    """Run the unit that a file describes; on an error, print one sentence and return 2."""
    try:
        with files_told():
            run_unit(read_unit(Path(argv[0])))
    except ClspError as error:
        print(f"clsp: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
