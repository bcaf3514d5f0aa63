"""The tests marked ``gpu``: the device computes what the CPU computes."""

import os
import re
import subprocess
import sys
import time

from benchmarks.gpu.report import Rows
from benchmarks.gpu.stage import Options


def measure(options: Options, rows: Rows) -> None:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-rfE",
               "-p", "no:cacheprovider"]  # fmt: skip
    command += ["-k", "keyed"] if options.small else ["-v", "-n", "12"]
    began = time.perf_counter()
    log = options.out / "pytest.txt"  # stays when the stage is stopped at its time
    with log.open("wb") as file:
        done = subprocess.run(
            command,
            env={**os.environ, "CLSP_TEST_DEVICE": options.device.type},
            stdout=file, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    said = log.read_text(encoding="utf-8", errors="replace")
    print(said[-20_000:])
    last = (said.splitlines() or [""])[-1]
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", last)
    counts = {word: int(number) for number, word in found}
    for word in ("passed", "failed", "skipped"):
        rows.add(f"tests {word}", counts.get(word, 0), "", "none" if word == "failed" else "")
    rows.add("time of the tests", seconds, "s", "60")
    for line in re.findall(r"^(?:FAILED|ERROR) .*", said, re.M):
        rows.add("failed", [], "", "", line.replace("|", " ")[:300])
    if done.returncode:  # also where no test was found or pytest itself failed
        sys.exit(done.returncode)
