"""Run one stage: import what it needs, wait for a line on standard input, then measure."""

import argparse
import importlib
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.augmentation import processor
from benchmarks.gpu.report import Rows
from clsp_plugin.system.compiling import can_compile

__all__ = ["Options"]


@dataclass
class Options:
    """What a stage gets.

    Attributes:
        device: where to compute.
        small: whether to take tiny sizes, only to see that everything runs.
        out: the folder of the records; further files of a stage go there too.
    """

    device: torch.device
    small: bool
    out: Path

    @property
    def accelerator(self) -> str:
        """Lightning's name of the device."""
        return "gpu" if self.device.type == "cuda" else "cpu"

    @property
    def compiles(self) -> bool:
        """Whether to measure what is compiled, which takes minutes."""
        return not self.small and can_compile(self.device)

    def pick(self, full: int, small: int) -> int:
        """Return one of two sizes."""
        return small if self.small else full


def about(device: torch.device) -> dict[str, str]:
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    cpu = f"{processor()}, {torch.get_num_threads()} threads"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "commit": git.stdout.strip() or "unknown",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("out", type=Path)
    parser.add_argument("device")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    measure = importlib.import_module(f"benchmarks.gpu.{args.stage}").measure
    if not sys.stdin.readline():  # the process that started this one has ended
        return
    device = torch.device(args.device)
    rows = Rows(args.out / f"{args.stage}.json", about(device))
    measure(Options(device, args.small, args.out), rows)
    if device.type == "cuda":
        rows.add("most memory in use", torch.cuda.max_memory_reserved(device) / 2**30, "GiB")


if __name__ == "__main__":
    main()
