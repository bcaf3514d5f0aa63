"""Writing a store: alone, continued, extended, and refused where there is no room."""

import contextlib
import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.writer import StoreWriter, check_export, export_npy
from clsp_plugin.errors import ClspError
from clsp_plugin.system.locks import locked


def test_another_manifest_overwrites_nothing(store):
    before = {file.name: file.read_bytes() for file in store.iterdir()}
    manifest = StoreManifest.load(store)
    with pytest.raises(ClspError, match=r"w=0.1 \(now 0.5\)"):
        StoreWriter(store, type(manifest)(**{**vars(manifest), "w": 0.5}))
    assert {file.name: file.read_bytes() for file in store.iterdir()} == before


def test_a_folder_of_other_things_is_left_alone(tmp_path, store):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ClspError, match="not a candidate store"):
        StoreWriter(tmp_path / "mine", StoreManifest.load(store))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_killed_while_writing_leaves_no_shard(store, monkeypatch):
    manifest = StoreManifest.load(store)
    shard = store / "shard-00000.npy"
    shard.unlink()

    def dies(file, array):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        StoreWriter(store, manifest).write(0, np.zeros(manifest.shard_shape(0), np.uint8))
    assert not shard.exists()
    assert StoreWriter(store, manifest).missing() == [(0, 0, 20)]


def test_processes_may_begin_a_store_together(store, tmp_path):
    manifest = StoreManifest.load(store)
    for attempt in range(20):
        with ThreadPoolExecutor(8) as pool:
            begun = [
                pool.submit(StoreWriter, tmp_path / f"store{attempt}", manifest) for _ in range(8)
            ]
        assert [len(writer.result().missing()) for writer in begun] == [3] * 8


def test_a_store_that_is_being_extended(store):
    more = replace(StoreManifest.load(store), num_candidates=4)
    three = CandidateStore(store)
    writer = StoreWriter(store, more)
    assert CandidateStore(store).num_candidates == 3  # until it is certain that it can be
    writer.extend()
    assert [shard for shard, _, _ in writer.missing()] == [0, 1, 2]
    new = np.full((20, 1, 16, 16, 3), 7, np.uint8)
    writer.write(1, new)
    assert [writer.present(shard) for shard in range(3)] == [3, 4, 3]
    assert (np.load(store / "shard-00001.npy")[:, 3] == 7).all()
    with pytest.raises(ClspError, match=r"being extended from 3 to 4 .*[.]num_candidates=3"):
        CandidateStore(store)
    assert (CandidateStore(store, 3).images(range(48)) == three.images(range(48))).all()
    writer.write(0, new)
    writer.write(2, new[:8])
    assert CandidateStore(store).images([47])[0, 3].max() == 7
    with pytest.raises(ClspError, match=r"num_candidates=4 \(now 3\).*trains on the first of them"):
        StoreWriter(store, replace(more, num_candidates=3))


def test_of_two_that_begin_a_store_the_first_does(store, tmp_path, monkeypatch):
    manifest = StoreManifest.load(store)
    save, begun = StoreManifest.save, threading.Event()

    def slow(self, path):
        begun.set()
        time.sleep(0.5)  # long enough for the second to look for a manifest
        save(self, path)

    monkeypatch.setattr(StoreManifest, "save", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(StoreWriter, tmp_path / "new", manifest)
        begun.wait(10)
        second = pool.submit(StoreWriter, tmp_path / "new", replace(manifest, seed=7))
        assert first.result().manifest == manifest
        with pytest.raises(ClspError, match=r"already holds candidates made with seed=0 \(now 7\)"):
            second.result()
    assert StoreManifest.load(tmp_path / "new") == manifest


@pytest.mark.parametrize(
    ("name", "message"),
    [("candidates/all.npy", "is a place of the store"), ("candidates.npy", None),
     ("taken.npy", "exists already"), ("all.np", "does not end in .npy"),
     ("taken.npy/all.npy", "taken.npy is a file"), ("new/folder/all.npy", None)],
)  # fmt: skip
def test_where_the_authors_array_can_go(tmp_path, name, message):
    (tmp_path / "taken.npy").touch()
    if message is None:
        check_export(tmp_path / name, tmp_path / "candidates")
        return
    with pytest.raises(ClspError, match=message):
        check_export(tmp_path / name, tmp_path / "candidates")


def test_a_writer_is_alone(store):
    manifest = StoreManifest.load(store)
    with StoreWriter(store, manifest).lock(0, 2):
        with StoreWriter(store, manifest).lock(1, 2):  # its partner
            pass
        for rank, world_size in ((0, 2), (0, 1), (2, 3)):
            with (
                pytest.raises(ClspError, match=rf"written by another .*process {os.getpid()} on"),
                StoreWriter(store, manifest).lock(rank, world_size),
            ):
                pass
    with StoreWriter(store, manifest).lock(0, 1):
        pass
    assert not list(store.glob(".*"))


def test_a_lock_that_was_left_behind_is_nobodys(store):
    manifest, left = StoreManifest.load(store), store / ".1-of-4.lock"
    left.touch()  # of four processes that were killed
    with locked(left, shared=True):  # one of the next two looks at it while the other does
        with StoreWriter(store, manifest).lock(1, 2):
            pass
        assert left.exists()
    with (
        locked(left),  # one of the four is not dead
        pytest.raises(ClspError, match="is being written by another"),
        StoreWriter(store, manifest).lock(1, 2),
    ):
        pass
    with StoreWriter(store, manifest).lock():
        assert not left.exists()


def test_what_was_not_written_to_its_end_is_cleared_away(store):
    manifest = StoreManifest.load(store)
    names = [f".{name}.123.456.tmp" for name in ("shard-00001.npy", "manifest.json", "images.npy")]
    for name in names:
        (store / name).touch()
    with StoreWriter(store, manifest).lock(0, 2):  # its partner may be at work on any of them
        assert all((store / name).exists() for name in names)
    with StoreWriter(store, manifest).lock(1, 2):
        assert [(store / name).exists() for name in names] == [False, True, True]
    with StoreWriter(store, manifest).lock():
        assert not any((store / name).exists() for name in names)


def test_no_room_for_the_authors_array(store, tmp_path, monkeypatch):
    path = tmp_path / "out" / "all.npy"
    path.parent.mkdir()
    (path.parent / ".all.npy.123.456.tmp").touch()  # of a process that was killed

    def full(file, *args):
        file.write(b"a part of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(ClspError, match=r"no room for .*all\.npy \(No space .* takes 0 MiB"):
            export_npy(CandidateStore(store), path)
    assert not list(path.parent.iterdir())
    export_npy(CandidateStore(store), path)


def test_a_lock_that_was_deleted_meanwhile_is_none(store, monkeypatch):
    manifest, own, opened = StoreManifest.load(store), store / ".0-of-1.lock", os.open
    with contextlib.ExitStack() as other:

        def race(path, *args):
            number = opened(path, *args)
            if path == own:  # before it can be locked, its holder ends and another one begins
                monkeypatch.undo()
                own.unlink()
                assert other.enter_context(locked(own))
            return number

        monkeypatch.setattr(os, "open", race)
        with (
            pytest.raises(ClspError, match="is being written by another"),
            StoreWriter(store, manifest).lock(0, 1),
        ):
            pass
    with StoreWriter(store, manifest).lock(0, 1):
        pass
