"""The candidate store: whole or absent, and never for other images."""

import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from clsp_plugin.data.store import (
    CandidateStore,
    StoreManifest,
    StoreWriter,
    export_npy,
    generate_command,
)
from clsp_plugin.errors import ClspError


def test_gather_reads_the_chosen_candidate_of_every_shard(store):
    opened = CandidateStore(store)
    everything = np.concatenate([np.load(file) for file in sorted(store.glob("shard-*.npy"))])
    assert everything.shape == (48, 3, 16, 16, 3)
    indexes = torch.tensor([47, 0, 20, 19, 20])
    choice = torch.tensor([2, 0, 1, 1, 0])
    expected = torch.from_numpy(everything[indexes, choice])
    assert torch.equal(opened.gather(indexes, choice), expected)
    opened.load_to("cpu")
    assert torch.equal(opened.gather(indexes, choice), expected)
    assert (opened.images([19, 20]) == everything[[19, 20]]).all()


def test_opening_checks_the_images(store, digits48):
    opened = CandidateStore(store)
    opened.check(48, 16, 16, digits48.fingerprint, "digits/train")
    for number, height, fingerprint in (
        (47, 16, digits48.fingerprint),
        (48, 32, digits48.fingerprint),
        (48, 16, "0" * 64),
    ):
        with pytest.raises(ClspError, match="were made for 48 images") as told:
            opened.check(number, height, height, fingerprint, "theirs")
        assert "theirs" in str(told.value)
        assert "digits/train" in str(told.value)


def test_absent_store_says_how_to_make_one(tmp_path):
    with pytest.raises(ClspError, match=r"`clsp generate .*out="):
        CandidateStore(tmp_path / "none")


def test_the_command_makes_candidates_for_the_same_images():
    cifar = {"dataset": "cifar10", "train_path": "./datasets", "fraction": 0.02}
    assert generate_command("c", cifar) == (
        "clsp generate --config-name cifar/generate data.dataset=cifar10 "
        "data.train_path=./datasets data.fraction=0.02 out=c"
    )
    digits = {"dataset": "digits", "num_train": 500, "image_size": 16, "seed": 0, "fraction": -1}
    assert generate_command("c", digits) == (
        "clsp generate --config-name digits/generate data.dataset=digits data.image_size=16 "
        "data.num_train=500 data.seed=0 out=c"
    )


def test_incomplete_store_is_refused_and_continued(store, digits48, write_store):
    manifest = StoreManifest.load(store)
    shard = store / "shard-00001.npy"
    before = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ClspError, match="1 of 3 shards are missing"):
        CandidateStore(store)
    writer = StoreWriter(store, manifest)
    assert writer.missing() == [(1, 20, 40)]
    write_store(store, digits48)
    assert StoreWriter(store, manifest).missing() == []
    assert len(shard.read_bytes()) == len(before)


def test_truncated_shard_is_named(store):
    shard = store / "shard-00002.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ClspError, match=r"shard-00002.npy is truncated"):
        CandidateStore(store)


def test_shard_of_another_shape_is_named(store):
    np.save(store / "shard-00000.npy", np.zeros((20, 4, 16, 16, 3), np.uint8))
    with pytest.raises(ClspError, match=r"shard-00000.npy holds uint8 \(20, 4"):
        CandidateStore(store)


def test_edited_manifest_is_refused(store):
    file = store / "manifest.json"
    content = json.loads(file.read_text())
    del content["w"]
    file.write_text(json.dumps(content))
    with pytest.raises(ClspError, match="not a candidate store's manifest"):
        CandidateStore(store)
    file.write_text(json.dumps({**content, "w": 0.2}))
    with pytest.raises(ClspError, match="was changed by hand"):
        CandidateStore(store)
    file.write_text("{")
    with pytest.raises(ClspError, match="not a candidate store's manifest"):
        CandidateStore(store)


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


def test_the_authors_array_is_read_and_written(store, tmp_path):
    opened = CandidateStore(store)
    export_npy(opened, tmp_path / "all.npy")
    array = CandidateStore(tmp_path / "all.npy")
    indexes, choice = torch.arange(48), torch.arange(48) % 3
    assert torch.equal(array.gather(indexes, choice), opened.gather(indexes, choice))
    array.check(48, 16, 16, "any", "theirs")  # it names no images
    with pytest.raises(ClspError, match="48 images of 16x16"):
        array.check(50, 16, 16, "any", "theirs")
    with pytest.raises(ClspError, match="exists already"):
        export_npy(opened, tmp_path / "all.npy")
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    with pytest.raises(ClspError, match="candidates are uint8 of shape"):
        CandidateStore(tmp_path / "flat.npy")


def test_processes_may_begin_a_store_together(store, tmp_path):
    manifest = StoreManifest.load(store)
    for attempt in range(20):
        with ThreadPoolExecutor(8) as pool:
            begun = [
                pool.submit(StoreWriter, tmp_path / f"store{attempt}", manifest) for _ in range(8)
            ]
        assert [len(writer.result().missing()) for writer in begun] == [3] * 8


def test_a_part_in_another_order_is_found_by_its_pixels(store, digits48):
    opened = CandidateStore(store)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:20]
    assert torch.equal(opened.rows_of(digits48.digests[order.numpy()], "a part"), order)
    changed = digits48.digests.copy()
    changed[7] += 1
    with pytest.raises(ClspError, match=r"for 1 of the 48 images of theirs \(image 7"):
        opened.rows_of(changed, "theirs")


def test_names_of_images_that_contradict_the_manifest_are_refused(store, digits48):
    np.save(store / "images.npy", digits48.digests[::-1])
    with pytest.raises(ClspError, match=r"images\.npy is not of the images"):
        CandidateStore(store).rows_of(digits48.digests, "theirs")
    (store / "images.npy").unlink()
    with pytest.raises(ClspError, match="does not name its images one by one"):
        CandidateStore(store).rows_of(digits48.digests, "theirs")


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
    with pytest.raises(ClspError, match=r"num_candidates=4 \(now 3\)"):
        StoreWriter(store, replace(more, num_candidates=3))


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


def test_a_lock_that_was_deleted_meanwhile_is_none(store, monkeypatch):
    manifest, flock, others = StoreManifest.load(store), fcntl.flock, []
    own = store / ".0-of-1.lock"

    def race(file, how):
        flock(file, how)
        if not others:  # between opening and locking, its holder ended and another one began
            own.unlink()
            others.append(os.open(own, os.O_RDWR | os.O_CREAT))
            flock(others[0], how)

    monkeypatch.setattr(fcntl, "flock", race)
    with (
        pytest.raises(ClspError, match="is being written by another"),
        StoreWriter(store, manifest).lock(0, 1),
    ):
        pass
    os.close(others[0])
    with StoreWriter(store, manifest).lock(0, 1):
        pass
