"""numpy's files: what is damaged is told in one sentence, and what the system refuses is not."""

import contextlib
import errno
import os
import resource

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clsp_plugin.errors import ClspError
from clsp_plugin.system import arrays
from clsp_plugin.system.arrays import map_npy, read_npy, read_npz

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
MAX_EXAMPLES = 60  # each takes a millisecond


def header(text):
    return b"\x93NUMPY\x01\x00v\x00" + text.encode().ljust(117) + b"\n" + bytes(100)


def saved(folder, array=ARRAY, name="a.npy"):
    np.save(folder / name, array, allow_pickle=True)
    return folder / name


@pytest.mark.parametrize("read", [map_npy, read_npy])
@pytest.mark.parametrize(
    "array", [ARRAY, np.asfortranarray(ARRAY), np.float64(3), np.ones((2, 2), ">f4")]
)
def test_reads_what_numpy_wrote(tmp_path, read, array):
    found = read(saved(tmp_path, array), "x")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize("read", [map_npy, read_npy])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        b"PK\x03\x04aaaa",
        header("{'descr': (((("),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (16, 3" + "0" * 20 + "), }"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 3" + "0" * 20 + "), }"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-4, -2), }"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000,), }"),
        header("(" * 110),
        header("{'descr': '|V0', 'fortran_order': False, 'shape': (1,), }"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (%s), }" % ("1," * 33)),
    ],
)  # fmt: skip
def test_what_is_no_array_is_told(tmp_path, read, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ClspError, match=r"a\.npy is truncated or not a readable .*; buy a disk\."):
        read(tmp_path / "a.npy", "buy a disk.")


def test_other_files_of_numpy_are_told(tmp_path):
    np.savez(tmp_path / "z.npz", a=ARRAY)
    for path in (tmp_path / "z.npz", saved(tmp_path, np.array([{}, None]))):
        with pytest.raises(ClspError, match="is truncated or not a readable"):
            map_npy(path, "x")
    (values,) = read_npz(tmp_path / "z.npz", ("a",), "no file of mine")
    assert np.array_equal(values, ARRAY)
    for path, names in ((tmp_path / "z.npz", ("b",)), (saved(tmp_path), ("a",))):
        with pytest.raises(ClspError, match=r"no file of mine \(.+\)\."):
            read_npz(path, names, "no file of mine")


@settings(
    max_examples=MAX_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    flips=st.lists(st.tuples(st.integers(0, 151), st.integers(0, 255)), max_size=4), data=st.data()
)
def test_any_damage_is_told_or_changes_values_alone(tmp_path, flips, data):
    content = bytearray(saved(tmp_path).read_bytes())
    for place, byte in flips:
        content[place] = byte
    end = data.draw(st.integers(0, len(content)))
    (tmp_path / "a.npy").write_bytes(content[:end])
    np.savez(tmp_path / "z.npz", a=ARRAY)
    packed = bytearray((tmp_path / "z.npz").read_bytes())
    for place, byte in flips:
        packed[place] = byte
    (tmp_path / "z.npz").write_bytes(packed[: end + 100])
    for read in (
        lambda: map_npy(tmp_path / "a.npy", "x").tobytes(),
        lambda: read_npy(tmp_path / "a.npy", "x").tobytes(),
        lambda: read_npz(tmp_path / "z.npz", ("a",), "x"),
    ):
        with contextlib.suppress(ClspError):
            read()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOENT])
def test_what_the_system_refuses_is_no_damage(tmp_path, monkeypatch, number):
    path = saved(tmp_path)

    def refuse(*args):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(arrays, "_opener", refuse)
    for read in (map_npy, read_npy):
        with pytest.raises(OSError, match=os.strerror(number)) as told:
            read(path, "delete it")
        assert told.value.errno == number


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ClspError, match="no regular file"):
        map_npy(tmp_path / "a.npy", "x")


def test_more_maps_than_files_may_be_open(tmp_path):
    path, (soft, hard) = saved(tmp_path), resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        maps = [map_npy(path, "x") for _ in range(200)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    path.unlink()
    part = maps[-1][1]
    del maps
    assert np.array_equal(part, ARRAY[1])  # a part holds the whole map
    with pytest.raises(ValueError, match="read-only"):
        part[0] = 1
