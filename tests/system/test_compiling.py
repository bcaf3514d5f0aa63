"""Whether to compile: what was asked for, what is here, whether it pays."""

import pytest
import torch

from clsp_plugin.errors import ClspError
from clsp_plugin.system import compiling
from clsp_plugin.system.compiling import can_compile, to_compile

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with the headers of Python and with compilers of these names."""
    headers, programs = tmp_path / "include", tmp_path / "bin"
    headers.mkdir()
    programs.mkdir()
    (headers / "Python.h").touch()
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": str(headers)})
    monkeypatch.setenv("PATH", str(programs))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)

    def make(*names, triton=True):
        monkeypatch.setattr(compiling, "find_spec", lambda name: object() if triton else None)
        for name in names:
            (programs / name).touch(mode=0o755)
        return headers

    return make


@pytest.mark.parametrize(
    ("programs", "triton", "cpu", "cuda"),
    [
        ((), True, False, False),
        (("g++",), True, True, False),
        (("gcc",), True, False, True),
        (("gcc",), False, False, False),
        (("g++", "gcc"), False, True, False),
        (("clang", "clang++"), True, True, True),
    ],
)
def test_each_device_needs_its_own_compiler(machine, programs, triton, cpu, cuda):
    machine(*programs, triton=triton)
    assert (can_compile(CPU), can_compile("cpu")) == (cpu, cpu)
    assert (can_compile(CUDA), can_compile("cuda")) == (cuda, cuda)


def test_a_named_compiler_has_to_be_there(machine, monkeypatch):
    machine("g++")
    monkeypatch.setenv("CXX", "g++ -m64")
    assert can_compile("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert not can_compile("cpu")


def test_the_headers_of_python_are_needed(machine):
    (machine("g++", "gcc") / "Python.h").unlink()
    assert not can_compile("cpu")
    assert not can_compile("cuda")


@pytest.mark.parametrize(
    ("wanted", "pays", "here", "expected"),
    [
        (True, False, True, True),
        (False, True, True, False),
        ("auto", True, True, True),
        ("auto", False, True, False),
        ("auto", True, False, False),
        (None, True, True, True),
        (None, False, True, False),
        (False, True, False, False),
    ],
)
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_is_compiled(machine, device, wanted, pays, here, expected):
    machine(*(("g++", "gcc") if here else ()))
    assert to_compile(wanted, device, "compile", pays=pays) is expected


@pytest.mark.parametrize(
    ("device", "others", "message"),
    [
        (CPU, ("gcc",), r"^compile=True needs a C\+\+ compiler and .* to compile for cpu,"),
        (CUDA, ("g++",), r"^compile=True needs Triton, a C compiler and .* to compile for cuda,"),
    ],
)
def test_the_compiler_of_the_device_is_asked_for(machine, device, others, message):
    machine(*others)  # the other device's compiler is here
    with pytest.raises(ClspError, match=message):
        to_compile(True, device, "compile")
