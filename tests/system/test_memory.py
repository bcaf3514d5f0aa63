"""Memory that was freed is used again, and how much of it there is."""

import platform
import subprocess
import sys

import pytest

from clsp_plugin.system.memory import available_memory, total_memory

# a process of its own: what others did to its heap decides where blocks lie
PROGRAM = """
import resource
import torch
from clsp_plugin.system.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory(torch.device("cpu"))
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after < 0.7 * before


WORK = """
import torch
from clsp_plugin.system.memory import keep_freed_memory, memory_of

keep_freed_memory(torch.device("cpu"))
before = [torch.ones(2**22) for _ in range(16)]
del before  # which leaves 256 MiB that are free and still the process's own
print(memory_of(lambda: [torch.ones(2**22) for _ in range(8)]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to")
def test_the_memory_of_some_work():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True)
    assert 2**27 <= int(done.stdout) < 1.1 * 2**27  # eight tensors of 16 MiB


def machine(root, groups, **files):
    """A file system that says what is free."""
    meminfo = "MemTotal: 900 kB\nMemAvailable:    500 kB\nHugePages_Total:       0\n"
    for name, text in {"proc/meminfo": meminfo, "proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder, names, limit, used, files):
    texts = (f"{limit}\n", f"{used}\n", f"anon 5\n{names[2]} {files}\n")
    return dict(
        zip((f"sys/fs/cgroup/{folder}{n}" for n in (*names[:2], "memory.stat")), texts, strict=True)
    )


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_the_memory_that_a_group_may_take(tmp_path):
    inner = group("job/", V2, 700, 100, 0)
    assert total_memory(machine(tmp_path / "a", "0::/job\n", **inner)) == 700
    assert total_memory(machine(tmp_path / "b", "0::/\n")) > 2**20  # the machine's


def test_memory_that_is_free(tmp_path):
    assert available_memory(tmp_path / "none") is None
    assert available_memory(machine(tmp_path / "a", "0::/\n")) == 500 * 1024
    none = group("job/", V2, "max", 70, 20)
    outer = group("", V2, 1000, 600, 250)  # files in the cache can be dropped
    inner = group("job/step/", V2, 700, 100, 0)
    groups = "0::/job/step\n"
    assert available_memory(machine(tmp_path / "b", groups, **none)) == 500 * 1024
    assert available_memory(machine(tmp_path / "c", groups, **none, **inner)) == 600
    assert available_memory(machine(tmp_path / "d", groups, **inner, **outer)) == 600
    tight = group("", V2, 1000, 900, 50)
    assert available_memory(machine(tmp_path / "e", groups, **inner, **tight)) == 150
    # in a container the path is the host's, and the mount is the group
    assert available_memory(machine(tmp_path / "f", "0::/docker/a1\n", **outer)) == 650
    first = "5:cpu:/job\n4:memory:/job\n0::/\n"
    old = group("memory/job/", V1, 800, 300, 0)
    assert available_memory(machine(tmp_path / "g", first, **old)) == 500
    over = group("memory/job/", V1, 800, 900, 0)
    assert available_memory(machine(tmp_path / "h", first, **over)) == 0
