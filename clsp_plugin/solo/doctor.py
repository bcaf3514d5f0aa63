"""``clsp doctor``: what is installed, which solo-learn is seen, and what is wrong."""

import importlib.util
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["Report", "examine"]

_PACKAGES = (
    "clsp-plugin", "torch", "torchvision", "lightning", "hydra-core", "timm", "diffusers",
    "torchmetrics", "einops", "h5py", "wandb",
)  # fmt: skip
# Run in a separate process: importing solo-learn prints warnings and changes timm's registry.
_LOOK = """
import solo.methods
from clsp_plugin.solo.hook import NOT_METHODS, WITHOUT_EMBEDDING, register_host
own = [name for name in solo.methods.METHODS if name not in NOT_METHODS]
register_host(solo.methods.METHODS)
ours = [n for n in own if f"clsp_{n}" in solo.methods.METHODS and n not in WITHOUT_EMBEDDING]
print("METHODS", len(own), len(ours))
"""


@dataclass
class Report:
    """What ``clsp doctor`` prints.

    Attributes:
        facts: label to value, in the order they are shown.
        problems: what does not work, and how to fix it.
        notes: limitations of some of solo-learn's scripts in this environment.
    """

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        lines = [f"{label:<{width}}  {value}" for label, value in self.facts.items()]
        lines += ["", *(f"problem: {text}" for text in self.problems)]
        lines += [f"note: {text}" for text in self.notes]
        if not self.problems:
            lines.append("Nothing is wrong.")
        return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def examine(folder: str | Path = ".") -> Report:
    """Examine this environment, and the solo-learn in a folder or among the installed packages.

    Args:
        folder: a folder that may be a clone of solo-learn.
    """
    import torch

    report = Report()
    found = {package: _version(package) for package in _PACKAGES}
    report.facts["python"] = platform.python_version()
    report.facts["packages"] = ", ".join(f"{k} {v}" for k, v in found.items() if v is not None)
    report.facts["absent"] = ", ".join(k for k, v in found.items() if v is None) or "nothing"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    report.facts["devices"] = ", ".join(gpus) or "CPU only"
    _examine_hook(report)
    _examine_host(report, Path(folder), on_cpu=not gpus)
    return report


def _examine_hook(report: Report) -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    names = [plugin.__name__ for plugin in Plugins.instance().discover(SearchPathPlugin)]
    report.facts["hook"] = "found by Hydra" if "ClspSearchPath" in names else "not found by Hydra"
    if "ClspSearchPath" not in names:
        report.problems.append(
            "Hydra does not find hydra_plugins.clsp, so solo-learn will not know our methods; "
            "install clsp-plugin into this environment with pip (it is not enough to put the "
            "checkout on PYTHONPATH in another one)."
        )


def _examine_host(report: Report, folder: Path, on_cpu: bool) -> None:
    clone = (folder / "main_pretrain.py").is_file() and (folder / "solo").is_dir()
    if not clone and importlib.util.find_spec("solo") is None:
        report.facts["solo-learn"] = "none here; run this in a clone of it to have it examined"
        return
    report.facts["solo-learn"] = f"the clone in {folder.resolve()}" if clone else "installed"
    command = [sys.executable, "-W", "ignore", "-c", _LOOK]
    out = subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    counts = [line.split()[1:] for line in out.stdout.splitlines() if line.startswith("METHODS")]
    if not counts:
        reason = (out.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        report.facts["methods"] = "none: solo-learn cannot be imported"
        older = "" if clone else "; the solo-learn on PyPI has an older interface, use a clone"
        report.problems.append(
            f"Importing solo-learn fails with `{reason}`; install what it lacks "
            f"(`pip install einops torchmetrics h5py`){older}."
        )
        return
    own, ours = counts[0]
    report.facts["methods"] = f"{own} of solo-learn's, {ours} of them with synthetic positives"
    metrics = _version("torchmetrics")
    if metrics and tuple(int(part) for part in metrics.split(".")[:2]) >= (0, 12):
        report.notes.append(
            f"solo-learn's kNN (knn_eval.enabled=True, main_knn.py) needs torchmetrics below 0.12, "
            f"here is {metrics}: `pip install 'torchmetrics<0.12' 'setuptools<81'` (it imports "
            f"pkg_resources, which newer ones lack), or use `clsp knn`."
        )
    if on_cpu:
        report.notes.append(
            "without a GPU solo-learn needs accelerator=cpu \"devices='1'\" strategy=auto "
            "precision=32; its main_knn.py calls .cuda() and does not run: use `clsp knn`."
        )
