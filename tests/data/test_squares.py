"""Squares that do not fit in memory: the same as those in memory, whatever happens meanwhile."""

import itertools
import multiprocessing
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clsp_plugin.data import loader
from clsp_plugin.data.image_array import ImageArray, image_digest
from clsp_plugin.data.images import image_names, load_images, open_images
from clsp_plugin.data.loader import IndexBatches, PretrainData, row_loader
from clsp_plugin.data.packed import choosing, pack, squares
from clsp_plugin.data.packed.squares import MappedArray
from clsp_plugin.data.splits import open_splits
from clsp_plugin.errors import ClspError

SIZE = 12


@pytest.fixture
def photos(tmp_path):
    """Class folders of 13 photographs of several sizes, two classes."""
    generator = np.random.default_rng(0)
    for number in range(13):
        folder = tmp_path / "photos" / ("cat" if number < 6 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (15 + number, 30 - number, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return tmp_path / "photos"


@pytest.fixture
def opened(photos, tmp_path):
    """Open the photographs as squares: ``opened(**data)``."""

    def run(cache="cache", split="train", **more):
        keys = {"dataset": "custom", "train_path": str(photos), "val_path": str(photos),
                "fraction": -1, "image_size": SIZE, "cache": str(tmp_path / cache)}  # fmt: skip
        return load_images({**keys, **more}, split)

    return run


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("fraction", [-1, 0.5])
def test_they_are_those_in_memory(opened, fraction, monkeypatch):
    monkeypatch.setattr(squares, "_PART", 4)
    plain = opened(packed=False, fraction=fraction)
    mapped = opened(packed=True, fraction=fraction)
    assert (type(plain), type(mapped)) == (ImageArray, MappedArray)
    assert torch.equal(plain.images, mapped.images)
    assert (plain.name, plain.identity, plain.sha256) == (
        mapped.name,
        mapped.identity,
        mapped.sha256,
    )
    assert np.array_equal(plain.digests, mapped.digests)


def test_the_second_time_nothing_is_read(opened, monkeypatch, capsys):
    first = opened(packed=True)
    assert "Writing 13 squares of 12 pixels" in capsys.readouterr().out
    first.sha256  # noqa: B018  computed here, and kept
    for where, name in ((choosing, "open_listed"), (squares, "pixels_sha256")):
        monkeypatch.setattr(where, name, None)
    again = opened(packed=True)
    assert (again.identity, again.sha256) == (first.identity, first.sha256)
    assert not capsys.readouterr().out


def test_other_images_are_other_squares(opened, photos):
    first, smaller = opened(packed=True), opened(packed=True, image_size=10)
    Image.new("RGB", (20, 20)).save(photos / "cat/00.png")
    changed = opened(packed=True)
    assert len({array.folder for array in (first, smaller, changed)}) == 3
    assert not changed.images[0].any()


def test_killed_while_writing(opened, tmp_path, monkeypatch):
    whole = opened("whole", packed=True)
    monkeypatch.setattr(squares, "_PART", 2)
    read, plain = [], choosing.open_listed

    def slow(*given):
        read.append(given)
        if len(read) > 8:
            time.sleep(60)
        return plain(*given)

    with monkeypatch.context() as patched:
        patched.setattr(choosing, "open_listed", slow)
        fork = multiprocessing.get_context("fork")
        killed = fork.Process(target=opened, args=["killed"], kwargs={"packed": True})
        killed.start()
    folder = tmp_path / "killed/squares" / whole.folder.name
    digests = folder / "digests.npy.part"
    while not digests.exists() or digests.stat().st_size < 128 + 4 * 16:  # two parts are written
        assert killed.is_alive()
        time.sleep(0.01)
    killed.kill()
    killed.join()
    with open(folder / "squares.npy.part", "ab") as file:
        file.write(b"half of a square")  # as a write leaves it
    monkeypatch.setattr(choosing, "open_listed", lambda *given: read.append(given) or plain(*given))
    opened("killed", packed=True)
    assert content(folder) == content(whole.folder)
    assert 5 <= len(read) < 13  # not what was written before the last part


def test_killed_between_the_two_files(opened, monkeypatch):
    whole = opened("whole", packed=True)
    before = content(whole.folder)
    (whole.folder / "digests.npy").rename(whole.folder / "digests.npy.part")
    monkeypatch.setattr(choosing, "open_listed", None)  # nothing is read again
    opened("whole", packed=True)
    assert content(whole.folder) == before


def test_a_file_that_is_missing_is_made_again(opened):
    whole = opened(packed=True)
    before = content(whole.folder)
    (whole.folder / "digests.npy").write_bytes(b"")
    (whole.folder / "digests.npy").unlink()
    opened(packed=True)
    assert content(whole.folder) == before


def test_two_processes_that_cannot_lock_write_the_same(opened, monkeypatch):
    """Some file systems have no locks; the second one opens the files while the first writes."""
    whole = opened("whole", packed=True)
    monkeypatch.setattr(squares, "_PART", 2)
    monkeypatch.setattr(pack, "locked", lambda *given, **keys: nullcontext(True))
    plain, read = choosing.open_listed, itertools.count()

    def ends(*given):
        raise ClspError("ended before it wrote anything")

    def interrupted(*given):
        if next(read) == 9:
            with monkeypatch.context() as second:
                second.setattr(squares, "_parts", ends)
                with pytest.raises(ClspError, match="ended before"):
                    opened("both", packed=True)
        return plain(*given)

    monkeypatch.setattr(choosing, "open_listed", interrupted)
    both = opened("both", packed=True)
    assert content(both.folder) == content(whole.folder)
    assert torch.equal(both.images, whole.images)


def test_other_sizes_of_mapped_squares_are_in_memory(opened):
    smaller = opened(packed=True).squared(8)
    assert type(smaller) is ImageArray
    assert np.array_equal(smaller.digests[3], image_digest(smaller.images[3].numpy()))


@pytest.mark.parametrize("name", ["squares.npy", "digests.npy"])
def test_damaged_files_are_refused(opened, name):
    first, smaller = opened(packed=True), opened(packed=True, image_size=10, fraction=0.5)
    path, before = first.folder / name, (first.folder / name).read_bytes()
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(ClspError, match=r"truncated .*delete that folder and give the same"):
        opened(packed=True)
    path.write_bytes((smaller.folder / name).read_bytes())
    with pytest.raises(ClspError, match=r"holds uint8 \(6, .*, not uint8 \(13, .*delete that fol"):
        opened(packed=True)


def test_a_damaged_image_and_a_full_disk(opened, photos, monkeypatch, full_disk):
    told = pytest.raises(ClspError, match=r"cannot be written to .*make room or set data.cache")
    with full_disk(3000), told:
        opened(packed=True)
    with monkeypatch.context() as patched:
        patched.setattr(squares.shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
        with pytest.raises(ClspError, match=r"The squares need 3.0 KiB and there are 5 bytes free"):
            opened(packed=True)
    (photos / "cat/03.png").write_bytes((photos / "cat/03.png").read_bytes()[:100])
    with pytest.raises(ClspError, match=r"cat/03.png is not a readable image"):
        opened("other", packed=True)


@pytest.mark.parametrize("packed", [False, True])
def test_without_damaged_images(opened, photos, packed, capsys):
    names = ["cat/02", "dog/08", "dog/12"]
    for name in names:
        (photos / f"{name}.png").write_bytes((photos / f"{name}.png").read_bytes()[:100])
    with pytest.raises(ClspError, match=r"02.png is not .*, or set data.skip_damaged=True\.$"):
        opened("other", packed=packed)
    given = {"packed": packed, "skip_damaged": True}
    left = opened(**given)
    told = capsys.readouterr().out
    assert f"Left out, not readable: {', '.join(f'{photos / name}.png' for name in names)}." in told
    data = {"dataset": "custom", "train_path": str(photos), "val_path": str(photos)}
    data |= {"cache": str(photos.parent / "cache"), "skip_damaged": True}
    pack = open_images({**data, "packed": True, "fraction": 0.5}, "train")
    part = opened(**given, fraction=0.5)
    assert torch.equal(pack.targets, part.targets)  # a part of those that are left
    kept = [name for name in image_names({**data, "fraction": -1}) if name in names]
    assert not kept
    capsys.readouterr()
    assert len(opened(**given, split="val")) == len(left) == 10
    assert "Left out" not in capsys.readouterr().out  # looked at once
    for name in names:
        (photos / f"{name}.png").unlink()
    plain = opened("other", packed=packed)
    assert (plain.identity, plain.targets.tolist()) == (left.identity, left.targets.tolist())


def test_which_squares_are_mapped(opened, photos, tmp_path, monkeypatch):
    nbytes = 13 * SIZE * SIZE * 3
    for memory, kind in ((4 * nbytes - 1, MappedArray), (4 * nbytes, ImageArray)):
        monkeypatch.setattr(choosing, "total_memory", lambda memory=memory: memory)
        assert type(opened()) is kind
        assert type(opened(packed=False)) is ImageArray
    data = {"dataset": "custom", "train_path": str(photos), "val_path": str(photos),
            "image_size": SIZE, "packed": True, "cache": str(tmp_path / "cache")}  # fmt: skip
    assert {type(array) for array in open_splits(data)} == {MappedArray}
    with pytest.raises(ClspError, match=r"needed here, and .*; set data.image_size=PIXELS too"):
        opened(packed=True, image_size=None)
    assert type(open_images({**data, "fraction": 0.5}, "val")) is MappedArray
    assert len(open_images({**data, "fraction": 0.5}, "val")) == 13


def test_names_are_those_of_the_part(opened, photos):
    data = {"dataset": "custom", "train_path": str(photos), "fraction": 0.5}
    names = image_names(data)
    assert len(names) == len(opened(fraction=0.5)) == 6
    for name, image in zip(names, opened(fraction=0.5).images, strict=True):
        pixels = choosing.open_listed(photos / f"{name}.png", SIZE)
        assert np.array_equal(image, pixels)


def test_images_that_a_device_has_no_room_for(opened, monkeypatch):
    """Batches gathered by the host are those of images on the device."""
    array = opened(packed=True)
    blocks = [{"crop_size": 8, "num_crops": 2, "rrc": {"enabled": True}}]
    places = torch.tensor([*range(13), 3, 4, 5])

    def batches(room):
        monkeypatch.setattr(loader, "fits", lambda nbytes, device: room)
        module = PretrainData(array, array, blocks, 4, 7, (0.5,) * 3, (0.2,) * 3, places=places)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(
            strategy=strategy, global_rank=0, world_size=1, current_epoch=1, training=True
        )
        found = [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]
        module.trainer.training = False
        found += [module.on_after_batch_transfer(batch, 0) for batch in module.val_dataloader()]
        module.trainer.training = True
        some = module.views_of(torch.tensor([2, 14]), torch.device("cpu"))
        return found, some

    (there, some), (gathered, same) = batches(True), batches(False)
    assert len(there) == len(gathered) == 4 + 4

    def flat(found):
        if isinstance(found, torch.Tensor):
            return [found]
        return [tensor for part in found for tensor in flat(part)]

    for one, other in zip(flat([there, some]), flat([gathered, same]), strict=True):
        assert torch.equal(one, other)


def test_rows_come_with_their_indexes(opened):
    rows = torch.tensor([7, 1, 12, 0])
    images = opened(packed=True).images
    found = list(row_loader(images, IndexBatches(4, 3, None), torch.device("cpu"), rows))
    assert [indexes.tolist() for indexes, _ in found] == [[0, 1, 2], [3]]
    assert torch.equal(torch.cat([part for _, part in found]), images[rows])
