"""Compare the numbers that today's code computes with the stored ones or those of a commit.

    python -m tests.golden.compare                       with the stored numbers
    python -m tests.golden.compare --against COMMIT      with what a commit computes here
    python -m tests.golden.compare --store               store the numbers of the stages that differ

``--store`` also stores the versions that were bumped; ``clsp_plugin.records.numerics`` says when to
bump one.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.golden import stages

ROOT = Path(__file__).parents[2]
NUMBERS = Path(__file__).with_name("numbers.json")
STORE = "python -m tests.golden.compare --store"
# The largest accepted difference of the numbers in a list, relative to the largest of them. On this
# network, kernels for SSE, AVX and AVX2 (oneDNN, torch, MKL) differ by at most 1e-4; for weights
# after training, where batches so small amplify rounding, by at most 1.3e-3.
TOLERANCE, OF_WEIGHTS = 1e-3, 1e-2
_TRAINED = "weights of "  # the names of lists with the second tolerance begin like this


@dataclass(frozen=True)
class Difference:
    """How far two measurements of a stage are apart.

    Attributes:
        worst: the largest difference, relative to the largest number of its list; infinite if
            integers, names or lengths differ.
        where: the name of that list.
        tolerance: the tolerance of that list.
    """

    worst: float = 0.0
    where: str = ""
    tolerance: float = TOLERANCE

    @property
    def much(self) -> bool:
        """Whether the difference is larger than between two CPUs."""
        return self.worst > self.tolerance

    @property
    def told(self) -> str:
        if self.worst == 0:
            return "equal to the bit"
        size = "" if math.isinf(self.worst) else f" by {self.worst:.1e} of it"
        if self.much:
            return f"DIFFERENT in {self.where!r}{size}"
        return f"within the tolerance, {self.where!r} differs{size}"


def difference(
    first: Mapping[str, Sequence[Any]], second: Mapping[str, Sequence[Any]]
) -> Difference:
    """Return the difference of two measurements of a stage, for the list that differs most.

    Differences are compared in units of the tolerance of their list.
    """
    found = [
        Difference(
            _apart(first.get(name, []), second.get(name, [])),
            name,
            OF_WEIGHTS if name.startswith(_TRAINED) else TOLERANCE,
        )
        for name in [*first, *(set(second) - set(first))]
    ]
    return max(found, key=lambda apart: apart.worst / apart.tolerance)


def _apart(first: Sequence[Any], second: Sequence[Any]) -> float:
    if len(first) != len(second) or not first:
        return math.inf
    if all(isinstance(value, int) for value in [*first, *second]):
        return 0.0 if first == second else math.inf
    scale = max(abs(value) for value in [*first, *second]) or 1.0
    apart = [abs(a - b) / scale for a, b in zip(first, second, strict=True)]
    return max(apart) if all(map(math.isfinite, apart)) else math.inf


def versions(stage: str) -> dict[str, int]:
    """Return today's versions of all numerics that a golden stage depends on."""
    numerics_of, own = stages.public("numerics_of"), stages.public("NUMERICS")
    verb, _, method = stage.partition(" ")
    verb = {"sampling": "generate"}.get(verb, verb)
    found = numerics_of(verb, "digits", method or None)
    return {"digits": own["digits"], stage: own[stage]} if found is None else found


def verdict(stage: str, now: Mapping[str, Any], stored: Mapping[str, Any] | None) -> str | None:
    """Say what is wrong with a stage's numbers or versions, and what to do; None if nothing is.

    Args:
        stage: the name of the stage.
        now: its ``numbers`` and ``numerics`` today.
        stored: its stored ``numbers`` and ``numerics``; None if there are none.
    """
    if stored is None:
        return f"{stage}: no numbers are stored; store them: {STORE}"
    apart = difference(now["numbers"], stored["numbers"])
    old, new = stored["numerics"], now["numerics"]
    changed = [f"{key} {old.get(key)} -> {new[key]}" for key in new if new[key] != old.get(key)]
    if apart.much:
        if changed:
            return (
                f"{stage}: {apart.told}, and the version was bumped ({', '.join(changed)}); "
                f"store the new numbers: {STORE}"
            )
        return (
            f"{stage}: {apart.told}, and no version was bumped. Undo what changed the numbers, or, "
            f"if they shall change, bump the version of the stage that did it (one of "
            f"{', '.join(new)}) and store the new numbers: {STORE}"
        )
    if changed:
        return (
            f"{stage}: the version was bumped ({', '.join(changed)}) and the numbers are the same "
            f"({apart.told}). Take it back, unless what changed is beyond what is measured here; "
            f"then store it: {STORE}"
        )
    return None


def today(stage: str) -> dict[str, Any]:
    """Compute the numbers of a stage, with the versions that they depend on."""
    return {"numerics": versions(stage), "numbers": stages.measure(stage)}


def stored() -> dict[str, Any]:
    return json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}


def of_commit(commit: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Compute the numbers of stages with the code of a commit, in a separate process.

    A stage that the commit cannot run has an error message in place of numbers.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder) / "tree", Path(folder) / "numbers.json"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(tree), commit], check=True)
        try:
            # first on the path, since the package and its Hydra plugin may be installed from here
            paths = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
            subprocess.run(
                [sys.executable, stages.__file__, str(out), *wanted],
                check=True, cwd=tree, env={**os.environ, "PYTHONPATH": paths},
            )  # fmt: skip
            return json.loads(out.read_text())
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--against", metavar="COMMIT", help="in place of the stored numbers")
    parser.add_argument("--store", action="store_true", help="store what differs")
    parser.add_argument("stages", nargs="*", help="by default all; `pretrain` is of every method")
    options = parser.parse_args(argv)
    names = [name for name in stages.stages() if _wanted(name, options.stages)]
    before = {} if options.store else stored()
    if options.against:
        before = of_commit(options.against, names)
    kept, wrong = stored(), 0
    for name in names:
        now = today(name)
        if options.store:
            old = kept.get(name)
            if verdict(name, now, old) is not None:
                kept[name] = now
                told = "new" if old is None else difference(now["numbers"], old["numbers"]).told
                print(f"{name}: stored ({told})", flush=True)
            continue
        other = before.get(name)
        if isinstance(other, str):
            told = f"{name}: not to be compared ({other})"
        elif options.against:
            apart = difference(now["numbers"], other)
            told = f"{name}: {apart.told}"
            wrong += apart.much
        else:
            told = verdict(name, now, other)
            wrong += told is not None
        print(told or f"{name}: as stored", flush=True)
    if options.store:
        every = {name: kept[name] for name in stages.stages() if name in kept}
        NUMBERS.write_text(_text(every))
    return 1 if wrong else 0


def _wanted(name: str, asked: Sequence[str]) -> bool:
    return not asked or name in asked or name.partition(" ")[0] in asked


def _text(content: Mapping[str, Any]) -> str:
    """Write JSON with a line for every list; nine digits tell any two float32 numbers apart."""
    out = []
    for stage, said in content.items():
        lists = (
            f"   {json.dumps(name)}: {json.dumps([_rounded(value) for value in values])}"
            for name, values in said["numbers"].items()
        )
        out.append(
            f' {json.dumps(stage)}: {{\n  "numerics": {json.dumps(said["numerics"])},\n'
            f'  "numbers": {{\n' + ",\n".join(lists) + "\n  }\n }"
        )
    return "{\n" + ",\n".join(out) + "\n}\n"


def _rounded(value: Any) -> Any:
    return value if isinstance(value, int) else float(f"{value:.9g}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
