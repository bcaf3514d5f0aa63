"""Stores of encoded candidates: as safe as those of pixels, decoding only what is needed."""

import io
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from clsp_plugin.candidates import encoded
from clsp_plugin.candidates.encoded import EncodedShard
from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.candidates.store import CandidateStore, shard_path
from clsp_plugin.candidates.third_view import ThirdView
from clsp_plugin.candidates.writer import StoreWriter, export_npy, left_to_draw
from clsp_plugin.errors import ClspError
from clsp_plugin.export.store import export_store, import_store


def smooth(number, candidates, seed=0):
    """Images that an encoding keeps well: uint8 (number, candidates, 16, 16, 3)."""
    corners = np.random.default_rng(seed).uniform(0, 255, (number, candidates, 2, 2, 3))
    u = np.linspace(0, 1, 16)
    up, across = np.stack([1 - u, u]), np.stack([1 - u, u])
    return np.einsum("nkabc,ax,by->nkxyc", corners, up, across).astype(np.uint8)


@pytest.fixture
def manifest(store):
    """Of 48 images with 3 candidates in shards of 20."""
    return StoreManifest.load(store).encoded_with("jpeg", 90)


def write(path, manifest, candidates, digests=None):
    writer = StoreWriter(path, manifest, digests)
    with writer.lock():
        writer.extend()
        for shard, start, stop in writer.missing():
            writer.write(
                shard, candidates[start:stop, writer.present(shard) : manifest.num_candidates]
            )
    return path


@pytest.mark.parametrize(("encoding", "name"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_it_holds_the_images_as_pil_encodes_them(manifest, tmp_path, encoding, name):
    manifest, drawn = manifest.encoded_with(encoding, 80), smooth(48, 3)
    opened = CandidateStore(write(tmp_path / "a", manifest, drawn))
    opened.verify()
    assert (opened.num_images, opened.num_candidates) == (48, 3)
    indexes, choice = torch.tensor([47, 0, 20, 19, 20]), torch.tensor([2, 0, 1, 1, 0])
    found = opened.gather(indexes, choice).numpy()
    for pixels, index, which in zip(found, indexes, choice, strict=True):
        file = io.BytesIO()
        Image.fromarray(drawn[index, which]).save(file, name, quality=80)
        assert (pixels == np.asarray(Image.open(file))).all()
    assert np.abs(found.astype(int) - drawn[indexes, choice]).mean() < 4
    assert (opened.images([19, 20])[1, 1] == found[2]).all()
    export_npy(opened, tmp_path / "all.npy")
    assert (np.load(tmp_path / "all.npy")[indexes, choice] == found).all()
    opened.load_to("cpu")
    assert (opened.gather(indexes, choice).numpy() == found).all()


def test_only_what_is_asked_for_is_decoded(manifest, tmp_path, monkeypatch):
    opened = CandidateStore(write(tmp_path / "a", manifest, smooth(48, 3)))
    decode, decoded = EncodedShard._decode, []
    monkeypatch.setattr(
        EncodedShard, "_decode", lambda self, number: decoded.append(number) or decode(self, number)
    )
    opened.gather(torch.tensor([47, 0]), torch.tensor([2, 1]))
    assert sorted(decoded) == [1, 7 * 3 + 2]


class Whole:
    """An augmentation that returns the images."""

    def __call__(self, images, keys):
        return images


def test_a_batch_that_was_begun_is_the_same(manifest, tmp_path):
    opened = CandidateStore(write(tmp_path / "a", manifest, smooth(48, 3)))
    third = ThirdView(opened, Whole(), 0).to(torch.device("cpu"))
    indexes = torch.arange(0, 48, 5)
    plain = third(indexes, 1, 2)
    third.begin(indexes, 1, torch.device("cpu"))
    assert torch.equal(third(indexes, 1, 2), plain)
    expected = opened.gather(indexes, opened.choose(indexes, 0, 1))
    assert torch.equal(plain, expected)


def content(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_more_candidates_are_appended_to_the_bytes_that_are_there(manifest, tmp_path):
    drawn = smooth(48, 5)
    write(tmp_path / "a", replace(manifest, num_candidates=5), drawn)
    write(tmp_path / "b", manifest, drawn)
    before = CandidateStore(tmp_path / "b").encoded_shard(0)
    write(tmp_path / "b", replace(manifest, num_candidates=5), drawn)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    after = CandidateStore(tmp_path / "b").encoded_shard(0)
    assert [after[5 * (n // 3) + n % 3] for n in range(60)] == before


def test_killed_and_continued_gives_the_same_bytes(manifest, tmp_path, monkeypatch):
    drawn = smooth(48, 3)
    whole = content(write(tmp_path / "whole", manifest, drawn))

    def slow(images, number):
        if (tmp_path / "killed" / "shard-00000.npy").exists():
            (tmp_path / "second").touch()
            time.sleep(60)
        return packed(images, number)

    packed = encoded.packed
    monkeypatch.setattr("clsp_plugin.candidates.writer.packed", slow)
    process = multiprocessing.get_context("fork").Process(
        target=write, args=(tmp_path / "killed", manifest, drawn)
    )
    process.start()
    while not (tmp_path / "second").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "killed").glob("shard-*.npy")] == ["shard-00000.npy"]
    with pytest.raises(ClspError, match="incomplete"):
        CandidateStore(tmp_path / "killed")
    write(tmp_path / "killed", manifest, drawn)
    assert content(tmp_path / "killed") == whole


def test_the_encoding_belongs_to_the_manifest(store, manifest, tmp_path):
    raw = StoreManifest.load(store)
    assert raw.seal == raw.encoded_with("raw", 90).seal != manifest.seal
    path = write(tmp_path / "a", manifest, smooth(48, 3))
    with pytest.raises(ClspError, match=r"quality=90 \(now 70\)"):
        StoreWriter(path, manifest.encoded_with("jpeg", 70))
    with pytest.raises(ClspError, match=r"encoding='jpeg' \(now None\)"):
        StoreWriter(path, raw)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"jpeg"', '"bmp"'))
    with pytest.raises(ClspError, match="encoding=bmp and quality=90"):
        CandidateStore(path)


def break_word(number, value):
    def change(array):
        array[8 * number : 8 * number + 8] = np.frombuffer(np.int64(value).tobytes(), np.uint8)
        return array

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: array[:9], "it has only 9 bytes"),
        (lambda array: array[:-1], "its table of images is not one"),
        (break_word(0, 21), "of 21 images with 3 candidates, its manifest says 20 with 3"),
        (break_word(1, 2**40), "of 20 images with 1099511627776 candidates"),
        (break_word(3, -5), "its table of images is not one"),
        (lambda array: array.astype(np.int16), "holds int16"),
    ],
)
def test_a_damaged_table_is_refused(manifest, tmp_path, change, message):
    path = write(tmp_path / "a", manifest, smooth(48, 3))
    shard = shard_path(path, 0)
    np.save(shard, change(np.load(shard)))
    with pytest.raises(ClspError, match=message):
        CandidateStore(path)


def test_a_damaged_image_is_named(manifest, tmp_path):
    path = write(tmp_path / "a", manifest, smooth(48, 3))
    shard = shard_path(path, 0)
    array = np.load(shard)
    start = 8 * (2 + 61)
    array[start : start + 64] = 0
    np.save(shard, array)
    opened = CandidateStore(path)
    with pytest.raises(ClspError, match=r"shard-00000.npy changed since being written"):
        opened.verify()
    with pytest.raises(ClspError, match=r"shard-00000.npy is damaged \(candidate 0 is damaged"):
        opened.images([0])


def test_it_takes_less_room_and_says_how_much_is_left(manifest, tmp_path):
    path = tmp_path / "a"
    assert left_to_draw(path, manifest, 700.5).nbytes == 48 * 3 * 700 + 72
    opened = CandidateStore(write(path, manifest, smooth(48, 3)))
    files = sum(file.stat().st_size for file in path.glob("shard-*.npy"))
    assert opened.stored_bytes == files - 3 * 128  # numpy's headers
    assert left_to_draw(path, manifest).candidates == 0


def test_it_is_exported_and_imported_to_the_byte(manifest, tmp_path):
    path = write(tmp_path / "a", manifest, smooth(48, 3))
    export_store(path, tmp_path / "hub")
    import_store(tmp_path / "hub", tmp_path / "b")
    assert content(path) == content(tmp_path / "b")
