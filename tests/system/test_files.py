"""Files and folders appear whole or not at all."""

import errno
import resource

import numpy as np
import pytest

from clsp_plugin.system.files import whole_folder, write_whole
from clsp_plugin.system.locks import locked


def test_a_full_disk_is_an_error_of_the_system_for_numpy_too(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as told:
            write_whole(tmp_path / "a.npy", lambda file: np.save(file, np.zeros(10_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(tmp_path / "a.npy"))
    assert not list(tmp_path.iterdir())


def test_arrays_are_as_numpy_writes_them(tmp_path):
    arrays = [np.arange(12.0).reshape(3, 4), np.asfortranarray(np.arange(6).reshape(2, 3))]
    for number, array in enumerate(arrays):
        write_whole(tmp_path / "ours.npy", lambda file, array=array: np.save(file, array))
        np.save(tmp_path / f"{number}.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / f"{number}.npy").read_bytes()


def test_a_folder_that_a_killed_process_left_is_deleted(tmp_path):
    left, held = tmp_path / ".made.12345.tmp", tmp_path / ".made.12346.tmp"
    for folder in (left, held):
        folder.mkdir()
        (folder / "weights").write_bytes(b"half")
    with locked(held), whole_folder(tmp_path / "made") as made:
        (made / "weights").write_bytes(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [held.name, "made"]
    assert (tmp_path / "made/weights").read_bytes() == b"whole"


def test_nothing_is_left_of_a_folder_that_failed(tmp_path):
    def fail():
        with whole_folder(tmp_path / "made") as made:
            (made / "weights").write_bytes(b"half")
            raise OSError("the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        fail()
    assert not list(tmp_path.iterdir())
