"""The candidate store: whole or absent, and never for other images."""

import contextlib
import hashlib
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clsp_plugin.candidates.manifest import StoreManifest, generate_command
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.writer import StoreWriter, export_npy
from clsp_plugin.errors import ClspError
from clsp_plugin.system.digests import digest_path, file_digest


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
    listed = {
        "dataset": "custom",
        "train_path": "l.csv",
        "label_column": "kind",
        "no_labels": False,
    }
    assert generate_command("c", listed).split()[-4:] == [
        "data.dataset=custom", "data.train_path=l.csv", "data.label_column=kind", "out=c",
    ]  # fmt: skip
    photographs = {"dataset": "custom", "train_path": "photos", "image_size": None}
    assert generate_command("c", photographs, (64, 64)) == (
        "clsp generate --config-name custom/latent data.dataset=custom data.train_path=photos "
        "data.image_size=64 out=c"
    )
    for dataset, config in (("stl10", "stl10"), ("imagenet100", "imagenet-100")):
        assert f" {config}/generate " in generate_command("c", {"dataset": dataset})


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


def test_the_authors_array_is_read_and_written(store, tmp_path):
    opened = CandidateStore(store)
    export_npy(opened, tmp_path / "all.npy")
    array = CandidateStore(tmp_path / "all.npy")
    indexes, choice = torch.arange(48), torch.arange(48) % 3
    assert torch.equal(array.gather(indexes, choice), opened.gather(indexes, choice))
    assert torch.equal(
        torch.from_numpy(np.load(tmp_path / "all.npy")), torch.from_numpy(opened.images(range(48)))
    )
    array.check(48, 16, 16, "any", "theirs")  # it names no images
    with pytest.raises(ClspError, match="48 images of 16x16"):
        array.check(50, 16, 16, "any", "theirs")
    with pytest.raises(ClspError, match="exists already"):
        export_npy(opened, tmp_path / "all.npy")
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    with pytest.raises(ClspError, match="candidates are uint8 of shape"):
        CandidateStore(tmp_path / "flat.npy")


def test_fewer_candidates_or_more_than_there_are(store, tmp_path):
    export_npy(CandidateStore(store, 2), tmp_path / "two.npy")
    assert (np.load(tmp_path / "two.npy") == CandidateStore(store).images(range(48))[:, :2]).all()
    for number in (0, 4, -1):
        with pytest.raises(ClspError, match=rf"={number} is not between 1 and the 3 candidates"):
            CandidateStore(store, number)


def test_the_digest_is_of_the_candidates_that_are_used(store, digits48, write_store, tmp_path):
    whole = CandidateStore(store).digest()
    assert CandidateStore(store, 2).digest() != whole
    assert CandidateStore(write_store(tmp_path / "same", digits48)).digest() == whole
    others = write_store(tmp_path / "other", digits48, seed=1)
    assert CandidateStore(others).digest() != whole
    array = CandidateStore(store).images(range(48))
    np.save(tmp_path / "all.npy", array)  # in one piece, as the authors' scripts read it
    assert CandidateStore(tmp_path / "all.npy").digest() == whole
    array[-1, 2] += 1
    np.save(tmp_path / "changed.npy", array)
    assert CandidateStore(tmp_path / "changed.npy").digest() != whole


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


def test_a_shard_has_the_digest_of_its_file(store):
    for shard in sorted(store.glob("shard-*.npy")):
        digest = hashlib.blake2b(shard.read_bytes(), digest_size=16).hexdigest()
        assert digest_path(shard, 3).read_text() == f"{digest}  {shard.name}\n"  # as b2sum reads it
        assert file_digest(shard) == digest
    assert CandidateStore(store).verify() == (3, 0)
    assert CandidateStore(store).verify([0, 47]) == (2, 0)


def test_a_shard_that_changed_is_named(store):
    shard = store / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    opened = CandidateStore(store)
    told = r"shard-00001\.npy changed since being written.*delete it and run"
    for read in (opened.verify, lambda: opened.load_to("cpu"), lambda: opened.verify([20])):
        with pytest.raises(ClspError, match=told):
            read()
    assert opened.verify([0, 47]) == (2, 0)
    for digest in store.glob("*.b2"):
        digest.unlink()
    assert opened.verify() == (0, 3)  # a store of before there were digests
    opened.load_to("cpu")


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_is_told_or_changes_nothing(store, data):
    whole = {path: path.read_bytes() for path in store.iterdir()}
    expected = CandidateStore(store).images(range(48))
    path = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[path])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        # near the front, where headers are, as often as anywhere
        most = data.draw(st.sampled_from([min(200, len(content)), len(content)]))
        content[data.draw(st.integers(0, most - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        with contextlib.suppress(ClspError):
            opened = CandidateStore(store)
            opened.verify()
            assert (opened.images(range(48)) == expected).all()
    finally:
        for path, content in whole.items():
            path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [{"num_images": 10**12}, {"shard_size": 0}, {"shard_size": -1}, {"num_candidates": "3"},
     {"height": 0}, {"w": None}, {"seed": 1.5}, {"clip": 1}, {"surprise": 1}, {"fingerprint": []}],
)  # fmt: skip
def test_types_and_sizes_of_a_manifest_are_not_trusted(store, change):
    file = store / "manifest.json"
    content = {**json.loads(file.read_text()), **change}
    content.pop("seal")
    sealed = {
        name: value for name, value in content.items() if name != "format" and value is not None
    }
    content["seal"] = hashlib.sha256(json.dumps(sealed).encode()).hexdigest()[:16]
    file.write_text(json.dumps(content))
    with pytest.raises(ClspError, match=rf"not a candidate store's manifest.*{next(iter(change))}"):
        CandidateStore(store)


def test_a_deep_manifest_is_told(store):
    for text in ("[" * 300_000, "7", '{"format": 1}', '{"format": []}'):
        (store / "manifest.json").write_text(text)
        with pytest.raises(ClspError, match="not a candidate store's manifest"):
            CandidateStore(store)


def test_a_pipe_in_the_place_of_a_digest_is_not_waited_for(store):
    digest = next(store.glob("*.b2"))
    digest.unlink()
    os.mkfifo(digest)
    with pytest.raises(ClspError, match=r"\.b2 is not a file but a pipe"):
        CandidateStore(store).verify()
