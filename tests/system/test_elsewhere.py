"""The package without what only POSIX or Linux has: no fcntl, no resource, no os.sysconf, ..

``elsewhere/sitecustomize.py`` takes these away in a process and in those that it starts. No other
system is tried by this.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
RUN = (
    "system/test_locks.py", "system/test_json_files.py", "system/test_arrays.py",
    "candidates/test_writer.py", "candidates/test_store.py", "cli/test_paths.py",
    "cli/test_configurations.py",
)  # fmt: skip
# Named pipes, which Windows has none of, more maps than files may be open (README), and slow ones.
LEFT_OUT = (
    "pipe or more_maps or is_composed or named_has_the_value or any_damage or any_content "
    "or a_suite_s or any_path"
)
ABSENT = """
from clsp_plugin.cli import streams
from clsp_plugin.records.environment import environment
from clsp_plugin.system import locks, memory, processes
from clsp_plugin.system.c_library import c_function

assert locks.fcntl is None
assert c_function("mmap") is None
assert memory.total_memory() is None
assert memory.memory_of(print) is None
assert processes.cores() >= 1
assert environment()["hardware"]["memory_gib"] is None
streams.abandon()  # exits
"""


def _run(*arguments):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    places = (TESTS / "system" / "elsewhere", TESTS.parent)
    clean["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and all are slow to import
    clean["PYTHONPATH"] = os.pathsep.join(map(str, places))
    return subprocess.run(
        [sys.executable, *arguments], env=clean, cwd=TESTS.parent, capture_output=True,
        encoding="utf-8", timeout=300,
    )  # fmt: skip


def test_what_is_absent_is_done_without():
    done = _run("-c", ABSENT)
    assert (done.returncode, done.stderr) == (141, "")  # 128 and SIGPIPE


def test_files_locks_stores_and_the_command_line_work_without():
    done = _run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})",
        *(str(TESTS / file) for file in RUN),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100
    assert not re.search(r"skipped|failed|error", done.stdout.splitlines()[-1])
