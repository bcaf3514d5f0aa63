"""Photographs packed on the disk: what is stored, what is refused, and what views are cut out."""

import errno
import io
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from clsp_plugin.candidates.third_view import ThirdView
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.parameters import sample_boxes, uniform_numbers
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.folders import NotReadNow, image_files, to_pixels
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.imagenet100 import IMAGENET100
from clsp_plugin.data.images import load_images, open_images
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.data.loader import PretrainData
from clsp_plugin.data.packed import cutting, decoding, left_out, workers
from clsp_plugin.data.packed import pack as module
from clsp_plugin.data.packed.crops import Crops
from clsp_plugin.data.packed.cutting import Centres
from clsp_plugin.data.packed.decoding import by_pillow, by_torchvision
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.data.packed.pack import Packing, open_pack
from clsp_plugin.data.splits import open_splits
from clsp_plugin.errors import ClspError

ROOT = Path(__file__).parents[2]
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def picture(width, height, seed=0):
    """A smooth picture, as photographs are: noise of few pixels, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Class folders of 12 photographs of several sizes, two classes."""
    root = tmp_path / "photos"
    for number in range(12):
        folder = root / ("cat" if number < 6 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        image = picture(50 + 7 * number, 40 + 3 * (number % 5), number)
        image.save(folder / f"{number:02d}.{'jpg' if number % 2 else 'png'}", quality=95)
    return root


def data(root, tmp_path, **more):
    return {"dataset": "custom", "train_path": str(root), "val_path": None, "fraction": -1,
            "cache": str(tmp_path / "cache"), **more}  # fmt: skip


def packed(root, tmp_path, **more):
    images = open_images(data(root, tmp_path, packed=True, **more), "train")
    assert isinstance(images, PackedImages)
    return images


def test_what_is_stored(photos, tmp_path):
    images = packed(photos, tmp_path, pack_size=45)
    assert (len(images), images.classes) == (12, ("cat", "dog"))
    assert images.targets.tolist() == [0] * 6 + [1] * 6
    for index, file in enumerate(image_files(photos)):
        original = Image.open(file)
        scale = min(1, 45 / min(original.size))  # never enlarged
        size = tuple(round(side * scale) for side in original.size)
        stored = images.pixels(index).numpy()
        assert stored.shape == (size[1], size[0], 3) == (*images.sizes(torch.tensor([index]))[0], 3)
        expected = np.asarray(original.resize(size, Image.Resampling.BICUBIC), np.int16)
        assert np.abs(stored - expected).mean() < 4  # JPEG, twice
        if scale == 1 and file.endswith("jpg"):
            assert images.pack[index].tobytes() == Path(file).read_bytes()


def test_raw_is_exact(photos, tmp_path):
    images = packed(photos, tmp_path, pack_format="raw")
    for index, file in enumerate(image_files(photos)):
        assert np.array_equal(images.pixels(index), to_pixels(Image.open(file), None))


def test_the_second_time_nothing_is_packed(photos, tmp_path, monkeypatch, capsys):
    first = packed(photos, tmp_path)
    assert "Packing 12 images" in capsys.readouterr().out
    moved = photos.rename(photos.with_name("photos2"))
    monkeypatch.setattr(module, "encode", None)
    folder = first.pack.folder
    folder.rename(folder.with_name(folder.name.replace("photos-", "photos2-")))
    again = packed(moved, tmp_path)
    assert again.identity == first.identity
    assert "Packing" not in capsys.readouterr().out
    assert np.array_equal(again.digests, first.digests)


def test_other_images_or_settings_are_another_pack(photos, tmp_path):
    first = packed(photos, tmp_path)
    smaller = packed(photos, tmp_path, pack_size=30)
    picture(33, 44, 99).save(photos / "cat/00.png")
    changed = packed(photos, tmp_path)
    assert len({each.fingerprint for each in (first, smaller, changed)}) == 3
    assert len({each.pack.folder for each in (first, smaller, changed)}) == 3
    turned = first.subset(torch.arange(12).flip(0), "turned")
    assert turned.fingerprint != first.fingerprint


def test_a_pack_of_other_images_is_refused(photos, tmp_path):
    first, smaller = packed(photos, tmp_path), packed(photos, tmp_path, pack_size=30)
    for file in smaller.pack.folder.iterdir():
        file.replace(first.pack.folder / file.name)
    with pytest.raises(ClspError, match=r"holds 12 packed images of .*photos, not those of"):
        packed(photos, tmp_path)


@pytest.mark.parametrize("name", ["shard-00000.npy", "shard-00000.index.npy", "manifest.json"])
def test_a_damaged_pack_is_refused(photos, tmp_path, name):
    folder = packed(photos, tmp_path).pack.folder
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ClspError, match=r"delete that folder and give the same command again"):
        packed(photos, tmp_path)


def test_bytes_that_changed_are_named(photos, tmp_path):
    images = packed(photos, tmp_path)
    shard = images.pack.folder / "shard-00000.npy"
    content = bytearray(shard.read_bytes())
    content[128:140] = bytes(12)  # the beginning of the first image
    shard.write_bytes(content)
    with pytest.raises(ClspError, match=r"Image 0 in .* changed on the disk since it was packed"):
        packed(photos, tmp_path).pixels(0)


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_a_changed_byte_within_an_image_is_named(photos, tmp_path, form):
    images = packed(photos, tmp_path, pack_format=form)
    shard = images.pack.folder / "shard-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-300] ^= 1
    shard.write_bytes(content)
    again = packed(photos, tmp_path, pack_format=form)
    assert torch.equal(again.pixels(0), images.pixels(0))
    with pytest.raises(ClspError, match=r"Image 11 in .* changed on the disk"):
        again.pixels(11)


def test_want_of_memory_is_no_change_of_the_image(photos, tmp_path, monkeypatch):
    images = packed(photos, tmp_path)
    for decoder in ("by_torchvision", "by_pillow"):
        monkeypatch.setattr(decoding, decoder, lambda data: torch.empty(2**55, dtype=torch.uint8))
    with pytest.raises(NotReadNow, match="not enough memory to read Image 3 in "):
        images.pixels(3)
    monkeypatch.undo()
    assert images.pixels(3).shape[-1] == 3


@pytest.mark.parametrize("name", ["shard-00000.npy", "shard-00000.index.npy", "manifest.json"])
def test_what_is_missing_in_a_pack_is_made_again(photos, tmp_path, name):
    first = packed(photos, tmp_path)
    (first.pack.folder / name).unlink()
    again = packed(photos, tmp_path)
    assert torch.equal(again.pixels(3), first.pixels(3))
    assert again.identity == first.identity
    assert (first.pack.folder / name).exists()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_no_image_is_left_out_for_an_error_of_the_system(photos, tmp_path, monkeypatch, error):
    def broken(file):
        if str(file).endswith("cat/02.png"):
            raise error
        return file

    with monkeypatch.context() as patched:
        patched.setattr(module, "openable", broken)
        with pytest.raises(NotReadNow, match=r"cat/02.png.* give the same command again") as told:
            packed(photos, tmp_path, skip_damaged=True)
    assert "skip_damaged" not in str(told.value)
    assert len(packed(photos, tmp_path, skip_damaged=True)) == 12


def test_what_is_left_out_is_told_by_every_command(photos, tmp_path, capsys):
    (photos / "cat" / "bad.jpg").write_bytes(b"text")
    for _ in range(2):
        left_out._tell.cache_clear()  # as in another process
        packed(photos, tmp_path, skip_damaged=True)
        assert capsys.readouterr().out.count(f"Left out, not readable: {photos}/cat/bad.jpg.") == 1


PACKER = """
import sys, time
from pathlib import Path
from clsp_plugin.data.folders import image_files
from clsp_plugin.data.packed import pack
plain, pack._SHARD = pack.encode, 4
pack.encode = lambda *given: time.sleep(0.1) or plain(*given)
root = Path(sys.argv[1])
pack.open_pack(root, image_files(root), pack.Packing(), Path(sys.argv[2]), "a test")
"""


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".json"}


def test_killed_while_packing(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD", 4)
    files = image_files(photos)
    whole = open_pack(photos, files, Packing(), tmp_path / "whole", "a test").folder
    killed = subprocess.Popen(
        [sys.executable, "-c", PACKER, str(photos), str(tmp_path / "killed")], cwd=ROOT
    )
    folder = tmp_path / "killed" / whole.name
    while not (folder / "shard-00001.npy").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (folder / ".shard-00001.npy.1.2.tmp").write_bytes(b"half")  # as its write leaves it
    made = []
    plain = module.encode
    monkeypatch.setattr(module, "encode", lambda *given: made.append(given) or plain(*given))
    open_pack(photos, files, Packing(), tmp_path / "killed", "a test")
    assert content(folder) == content(whole)
    assert len(made) in (4, 8)  # the index of the second shard was there or not


def test_of_two_at_once_one_packs(photos, tmp_path, monkeypatch, capsys):
    made = []
    plain = module.encode

    def slow(*given):
        made.append(given)
        time.sleep(0.02)
        return plain(*given)

    monkeypatch.setattr(module, "encode", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(packed(photos, tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 12
    assert found[0].identity == found[1].identity
    assert "Waiting for another process that packs" in capsys.readouterr().out


def png_header(width, height, bits):
    """The beginning of a PNG file, and pixels of 16 bits if they are few."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )  # fmt: skip

    rows = (b"\0" + b"\1\2" * 3 * width) * height if width < 100 else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def truncated():
    out = io.BytesIO()
    picture(300, 300).save(out, "JPEG")
    return out.getvalue()[: len(out.getvalue()) * 2 // 3]


BAD = {
    "truncated.jpg": (truncated(), r"truncated"),
    "16-bit.png": (png_header(20, 20, 16), r"16 bits a channel; bring it to 8 bits"),
    "200-million.png": (png_header(20_000, 10_000, 8), r"200000000 pixels"),
    "no-image.jpg": (b"text", r"cannot identify"),
}


@pytest.mark.parametrize("name", BAD)
def test_images_that_cannot_be_packed(photos, tmp_path, name, capsys):
    (photos / "cat" / name).write_bytes(BAD[name][0])
    with pytest.raises(ClspError) as told:
        packed(photos, tmp_path)
    assert str(told.value).startswith(str(photos / "cat" / name))
    assert told.match(BAD[name][1])
    assert told.match(r"or set data.skip_damaged=True\.$")
    left = packed(photos, tmp_path, skip_damaged=True)
    assert (len(left), left.targets.tolist()) == (12, [0] * 6 + [1] * 6)
    assert f"Left out, not readable: {photos / 'cat' / name}" in capsys.readouterr().out
    assert packed(photos, tmp_path, skip_damaged=True).identity == left.identity


def test_colours_of_other_kinds(tmp_path):
    root = tmp_path / "photos/a"
    root.mkdir(parents=True)
    colours = picture(60, 40)
    colours.convert("CMYK").save(root / "0.jpg", quality=95)
    colours.convert("L").save(root / "1.jpg", quality=95)
    picture(8, 8).resize((60, 40), 0).quantize(4).save(root / "2.png")
    colours.convert("RGBA").save(root / "3.png")
    images = packed(root.parent, tmp_path)
    for index, file in enumerate(image_files(root)):
        expected = np.asarray(Image.open(file).convert("RGB"), np.int16)
        assert np.abs(images.pixels(index).numpy() - expected).mean() < 10, file
        again = by_pillow(torch.from_numpy(images.pack[index].copy()))
        assert torch.equal(again, by_torchvision(torch.from_numpy(images.pack[index].copy())))


def test_a_class_folder_that_is_a_link(photos, tmp_path):
    (photos / "dog").rename(tmp_path / "dogs")
    (photos / "dog").symlink_to(tmp_path / "dogs")
    assert packed(photos, tmp_path).targets.tolist() == [0] * 6 + [1] * 6


def test_a_full_disk(photos, tmp_path, full_disk):
    told = pytest.raises(ClspError, match=r"cannot be written to .*make room or set data.cache")
    with full_disk(5000), told:
        packed(photos, tmp_path)
    assert len(packed(photos, tmp_path)) == 12


def test_which_images_are_packed(photos, tmp_path):
    def opened(root, **more):
        return type(open_images(data(root, tmp_path, **more), "train"))

    one_size = tmp_path / "same/a"
    one_size.mkdir(parents=True)
    for number in range(3):
        picture(20, 20, number).save(one_size / f"{number}.png")
    assert opened(photos) is PackedImages  # their sizes differ
    assert opened(one_size.parent) is ImageArray
    assert opened(one_size.parent, packed=True) is PackedImages
    assert opened(photos, image_size=16) is ImageArray
    with pytest.raises(ClspError, match=r"is 43x57, .* is 40x50; set .* data.packed=True"):
        opened(photos, packed=False)
    with pytest.raises(ClspError, match=r"needed here, and .*; set data.image_size=PIXELS too"):
        load_images(data(photos, tmp_path, packed=True), "train")
    with pytest.raises(ClspError, match=r"is for folders of images and digits/train is held in"):
        open_images({"dataset": "digits", "num_train": 10, "seed": 0, "packed": True}, "train")


def test_too_many_for_the_memory(tmp_path, monkeypatch, capsys):
    root = tmp_path / "same/a"
    root.mkdir(parents=True)
    picture(20, 20).save(root / "0.png")
    monkeypatch.setattr("clsp_plugin.data.packed.choosing.total_memory", lambda: 1000)
    assert isinstance(open_images(data(root.parent, tmp_path), "train"), PackedImages)
    assert "in memory they would take" in capsys.readouterr().out


def test_splits_of_packed_images(photos, tmp_path):
    val = tmp_path / "val/dog"
    val.mkdir(parents=True)
    picture(20, 20).save(val / "new.png")
    (val / "09.jpg").write_bytes((photos / "dog/09.jpg").read_bytes())
    train, test = open_splits({**data(photos, tmp_path), "val_path": str(val.parent)})
    assert isinstance(test, PackedImages)
    assert (test.targets.tolist(), test.classes) == ([1, 1], ("cat", "dog"))
    part = open_images({**data(photos, tmp_path), "fraction": 0.5}, "train")
    assert part.targets.tolist() == [0] * 3 + [1] * 3
    rows = [train.digests.tolist().index(digest) for digest in part.digests.tolist()]
    assert rows == sorted(rows)
    assert torch.equal(part.pixels(2), train.pixels(rows[2]))


def test_a_part_alone_is_packed_for_a_look(photos, tmp_path, capsys):
    given = {**data(photos, tmp_path), "fraction": 0.5}
    part = open_images(given, "train")
    assert "Packing 6 images" in capsys.readouterr().out
    whole = open_images({**given, "fraction": -1}, "train")
    capsys.readouterr()
    again = open_images(given, "train")  # out of the whole, which is there now
    assert "Packing" not in capsys.readouterr().out
    assert again.pack is not part.pack
    assert len(again.pack) == len(whole)
    assert again.identity == part.identity
    assert again.name == part.name == "custom/train[0.5]"


def test_a_part_without_what_is_damaged_does_not_depend_on_what_is_packed(photos, tmp_path):
    (photos / "cat/00.png").write_bytes(b"x")
    given = {**data(photos, tmp_path), "fraction": 0.5, "skip_damaged": True}
    part = open_images(given, "train")
    open_images({**given, "fraction": -1}, "train")
    assert open_images(given, "train").identity == part.identity


def test_a_look_does_not_finish_a_pack_that_was_begun(photos, tmp_path, capsys):
    whole = open_images(data(photos, tmp_path), "train")
    next(whole.pack.folder.glob("*.npy")).unlink()
    capsys.readouterr()
    open_images({**data(photos, tmp_path), "fraction": 0.5}, "train")
    assert "Packing 6 images" in capsys.readouterr().out


def test_a_test_image_that_is_trained_on_is_told(photos, tmp_path, capsys):
    val = tmp_path / "val/dog"
    val.mkdir(parents=True)
    (val / "x.jpg").write_bytes((photos / "dog/09.jpg").read_bytes())
    open_splits({**data(photos, tmp_path), "val_path": str(val.parent)})
    assert "1 of the 1 test images" in capsys.readouterr().out


def test_imagenet100_out_of_all_of_imagenet(tmp_path):
    numbers = count()
    for name in [*IMAGENET100, "n00000001", "n99999999"]:
        (tmp_path / "all" / name).mkdir(parents=True)
        number = next(numbers)
        picture(8 + number % 2, 8, number).save(tmp_path / "all" / name / "x.png")
    images = open_images({**data(tmp_path / "all", tmp_path), "dataset": "imagenet100"}, "train")
    assert images.classes == tuple(sorted(IMAGENET100))
    assert len(images) == 100


def test_boxes_of_several_sizes_are_those_of_each():
    u = torch.rand(300, 34, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[40, 90], [50, 50], [200, 20]]).repeat(100, 1)
    together = sample_boxes(u, *sizes.unbind(1), 0.08, 1.0)
    for size in sizes[:3].tolist():
        rows = (sizes == torch.tensor(size)).all(1)
        assert torch.equal(together[rows], sample_boxes(u[rows], *size, 0.08, 1.0))


CROP = AugmentationConfig(crop_size=32, crop=True, crop_min_scale=0.2, interpolation="bicubic")


def keys_of(number, view=0, epoch=0, seed=3):
    return keys_for(derive_key(seed, Purpose.AUGMENTATION, epoch, view), torch.arange(number))


def test_crops_are_torchvisions_over_the_whole_picture(tmp_path):
    """The distribution of the boxes, read off pictures whose pixels name their places."""
    root = tmp_path / "photos/a"
    root.mkdir(parents=True)
    y, x = np.mgrid[:100, :200].astype(np.uint8)
    Image.fromarray(np.stack([y, x, 0 * x], 2)).save(root / "0.png")
    images = packed(root.parent, tmp_path, pack_format="raw")
    number = 400
    config = AugmentationConfig(crop_size=16, crop=True, interpolation="bilinear")
    (made,) = Crops(images, [config])(torch.zeros(number, dtype=torch.int64), [keys_of(number)])
    made = made.float()
    ours = torch.stack([made[:, 8, 8, 0], made[:, 8, 8, 1], made[:, 8, -1, 1] - made[:, 8, 0, 1]])
    torch.manual_seed(0)
    blank = torch.zeros(3, 100, 200)
    theirs = torch.tensor([
        RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(number)
    ]).float()  # fmt: skip
    top, left, h, w = theirs.unbind(1)
    expected = torch.stack([top + h * 8.5 / 16, left + w * 8.5 / 16, w * 15 / 16])
    for own, other in zip(ours, expected, strict=True):
        spread = (own.var() + other.var()).sqrt() / number**0.5
        assert (own.mean() - other.mean()).abs() < 4 * spread + 0.5
        assert 0.8 < own.std() / other.std() < 1.25


@pytest.fixture
def by_processes(photos, tmp_path, monkeypatch):
    """Crops that two processes make, of few images at a time."""
    monkeypatch.setattr(workers, "_IMAGES", 3)
    crops = Crops(packed(photos, tmp_path), [CROP, replace(CROP, crop=False)])
    crops.processes = 2
    return crops


def epoch_of(number):
    """Three batches of different sizes, and their keys."""
    order = torch.randperm(12, generator=torch.Generator().manual_seed(number))
    parts = order.split([5, 6, 1])
    return [(part, [keys_of(len(part), view, number) for view in (0, 1)]) for part in parts]


def test_processes_cut_what_threads_cut(by_processes):
    threads = Crops(by_processes.images, by_processes.configs)
    before = torch.random.get_rng_state()
    for number in range(4):
        if number == 2:  # an epoch that is broken off, with work under way
            next(by_processes.ahead(epoch_of(9) * 20))
        made = list(by_processes.ahead(epoch_of(number)))
        expected = [threads(*batch) for batch in epoch_of(number)]
        assert [[len(view) for view in views] for views in made] == [[5, 5], [6, 6], [1, 1]]
        for ours, theirs in zip(made, expected, strict=True):
            assert all(map(torch.equal, ours, theirs))
    assert torch.equal(before, torch.random.get_rng_state())


def test_processes_cut_the_centres_that_threads_cut(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_IMAGES", 3)
    images = packed(photos, tmp_path)
    threads = Centres(images, 24, resize=30, interpolation="bilinear")
    processes = Centres(images, 24, resize=30, interpolation="bilinear")
    processes.processes = 2
    batches = torch.arange(12).split(5)
    for _ in range(2):  # the processes stay for the next pass
        assert all(map(torch.equal, processes(batches), threads(batches)))
    assert len(list(processes(batches))) == 3


def test_beside_a_gpu_processes_cut_and_its_copies_wait_for_nothing(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "cores", lambda: 16)
    centres = Centres(packed(photos, tmp_path), 24)
    for device, number, pin, processes in (
        ("cpu", 1, False, 0), ("cuda", 1, True, 16), ("cuda", 3, True, 5), ("cuda", 99, True, 1),
    ):  # fmt: skip
        centres.beside(torch.device(device), number)
        assert (centres.pin, centres.processes) == (pin, processes)


def test_what_goes_wrong_in_a_process_is_told(photos, tmp_path, by_processes):
    batches = epoch_of(0)
    by_processes.images = packed(photos, tmp_path, pack_format="none")
    for file in (photos / "cat").iterdir():
        file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(ClspError, match=r"cat/0\d\.(jpg|png)") as told:
        list(by_processes.ahead(batches))
    assert "Traceback" not in str(told.value)
    assert len(list(by_processes.ahead([(torch.arange(6, 12), batches[1][1])]))) == 1


# Python's queue complains at times that nobody reads from it any more
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_process_is_told(by_processes):
    made = by_processes.ahead(epoch_of(0) * 20)
    next(made)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(ClspError, match=r"was killed.*continues"):
        list(made)


def test_crops_are_torchvisions_pixels(photos, tmp_path):
    images = packed(photos, tmp_path, pack_size=45)
    indexes = torch.tensor([3, 0, 11, 3])
    keys = keys_of(4)
    (made,) = Crops(images, [CROP])(indexes, [keys])
    again = Crops(images, [CROP, CROP])(indexes[2:], [keys[2:], keys[:2]])
    assert torch.equal(again[0], made[2:])  # whatever batch and view it is in
    for place, index in enumerate(indexes.tolist()):
        pixels = images.pixels(index)
        u = uniform_numbers(keys[place : place + 1])
        box = sample_boxes(u, *pixels.shape[:2], 0.2, 1.0)[0].int().tolist()
        expected = F.resized_crop(
            pixels.permute(2, 0, 1), *box, [32, 32], F.InterpolationMode.BICUBIC, antialias=True
        )
        assert (made[place].permute(2, 0, 1).int() - expected.int()).abs().max() <= 1


BLOCK = {
    "crop_size": 24, "num_crops": 2, "rrc": {"enabled": True, "crop_min_scale": 0.3},
    "grayscale": {"prob": 0.2}, "solarization": {"prob": 0.2}, "horizontal_flip": {"prob": 0.5},
}  # fmt: skip


@pytest.fixture
def same(tmp_path):
    """The same images in memory and packed, uncompressed."""
    root = tmp_path / "same"
    for number in range(9):
        (root / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        picture(40, 36, number).save(root / f"{number % 2}" / f"{number}.png")
    array = load_images(data(root, tmp_path), "train")
    return array, packed(root, tmp_path, pack_format="raw")


def trainer(training=True, epoch=2):
    return SimpleNamespace(
        training=training, current_epoch=epoch, global_rank=0, world_size=1, num_devices=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip


def batches_of(images, blocks, val=None, epoch=2, training=True):
    module = PretrainData(images, val, blocks, 4, 3, MEAN, STD, squares={"size": 24, "resize": 27})
    module.trainer = trainer(training, epoch)
    loader = module.train_dataloader() if training else module.val_dataloader()
    loader.sampler.set_epoch(epoch)
    return [module.on_after_batch_transfer(batch, 0) for batch in loader]


@pytest.mark.parametrize("blocks", [[BLOCK], [BLOCK, {"crop_size": 24}, {**BLOCK, "num_crops": 1}]])
def test_views_are_those_of_images_in_memory(same, blocks):
    """But for rounding to 8 bits, which may tip solarisation: same order, boxes and colours."""
    ours, theirs = (batches_of(images, blocks) for images in reversed(same))
    assert len(ours) == len(theirs) == 2
    for (rows, views, targets), (other_rows, other_views, other_targets) in zip(
        ours, theirs, strict=True
    ):
        assert torch.equal(rows, other_rows)
        assert torch.equal(targets, other_targets)
        assert len(views) == len(other_views) == sum(b.get("num_crops", 1) for b in blocks)
        for view, other in zip(views, other_views, strict=True):
            close = (view - other).abs() < 2.1 / 255 / 0.25
            assert close.float().mean() > 0.97


def test_some_views_are_those_of_the_batches(same):
    """As a picture of a training's views asks for them."""
    for images in same:
        module = PretrainData(images, None, [BLOCK], 4, 3, MEAN, STD)
        module.trainer = trainer()
        rows, views, _ = batches_of(images, [BLOCK])[1]
        some = module.views_of(rows[:2], torch.device("cpu"))
        assert all(torch.equal(own, view[:2]) for own, view in zip(some, views, strict=True))


def test_a_third_view_of_the_image_is_that_of_an_image_in_memory(same):
    array, images = same
    pipeline = BatchAugmentation(AugmentationConfig.from_cfg(BLOCK), MEAN, STD)
    indexes = torch.tensor([5, 2, 7, 2])
    expected = ThirdView(array.images, pipeline, 3)(indexes, 4, 2)
    third = ThirdView(images, pipeline, 3).to(torch.device("cpu"))
    for begun in (False, True):
        if begun:
            third.begin(indexes, 4, torch.device("cpu"))
        view = third(indexes, 4, 2)
        assert ((view - expected).abs() < 2.1 / 255 / 0.25).float().mean() > 0.97


def test_views_of_another_epoch_differ(same):
    first, second = (batches_of(same[1], [BLOCK], epoch=epoch)[0] for epoch in (0, 1))
    assert not torch.equal(first[0], second[0])
    again = batches_of(same[1], [BLOCK], epoch=1)[0]
    assert all(torch.equal(a, b) for a, b in zip(second[1], again[1], strict=True))


def test_validation_images_are_resized_and_cut(same):
    array, images = same
    made = batches_of(images, [BLOCK], val=images, training=False)
    assert [len(targets) for _, targets in made] == [4, 4, 1]
    pixels = torch.cat([pixels for pixels, _ in made]) * 0.25 + 0.5
    chw = array.images.permute(0, 3, 1, 2)
    resized = F.resize(chw, [27], F.InterpolationMode.BICUBIC, antialias=True)
    expected = F.center_crop(resized, [24]).float() / 255
    assert (pixels - expected).abs().max() < 1e-5


def test_a_broken_off_epoch_leaves_no_threads(same):
    before = threading.active_count()
    module = PretrainData(same[1], None, [BLOCK], 2, 3, MEAN, STD)
    module.trainer = trainer()
    loader = iter(module.train_dataloader())
    next(loader)
    loader.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_not_more_than_two_batches_ahead(same):
    taken = []
    loader = PretrainData(same[1], None, [BLOCK], 1, 3, MEAN, STD)
    loader.trainer = trainer()
    batches = loader.train_dataloader()
    plain = type(batches.sampler).__iter__

    def counted():
        for batch in plain(batches.sampler):
            taken.append(batch)
            yield batch

    made = iter(batches._make(counted()))
    next(made)
    time.sleep(0.05)
    assert len(taken) == 3


def test_candidates_are_found_by_the_image_files(photos, tmp_path):
    images = packed(photos, tmp_path)
    array = load_images(data(photos, tmp_path, image_size=16), "train")
    assert images.anchors(16, 16) == (array.size, array.fingerprint)
    for file in image_files(photos):
        os.utime(file)  # kept from now on, the files are not read again
        Path(file).write_bytes(b"")
    part = images.subset(torch.tensor([4, 2]), "part")
    assert part.anchors(16, 16)[1] == array.subset(torch.tensor([4, 2]), "part").fingerprint
    assert images.anchors(16, 20)[1] == ""


def test_without_a_pack_pixels_are_those_of_a_raw_one(photos, tmp_path, capsys):
    raw = packed(photos, tmp_path, pack_size=45, pack_format="raw")
    read = packed(photos, tmp_path, pack_size=45, pack_format="none")
    assert "12 images of" in (told := capsys.readouterr().out.splitlines()[-1])
    assert told.endswith("are read where they lie (data.packed=True; data.pack_format=none).")
    assert [folder.name for folder in (tmp_path / "cache/packed").iterdir()] == [
        raw.pack.folder.name
    ]
    indexes = torch.tensor([3, 0, 11, 3])
    assert np.array_equal(read.sizes(indexes), raw.sizes(indexes))
    assert all(torch.equal(read.pixels(index), raw.pixels(index)) for index in range(12))
    ours, theirs = (Crops(each, [CROP])(indexes, [keys_of(4)])[0] for each in (read, raw))
    assert torch.equal(ours, theirs)
    part = read.subset(indexes, "part")
    assert torch.equal(
        part.squares(torch.tensor([2, 1]), 16), raw.squares(torch.tensor([11, 0]), 16)
    )
    assert read.anchors(16, 16) == raw.anchors(16, 16)


def test_without_a_pack_images_are_known_by_name_size_and_time(photos, tmp_path):
    first = packed(photos, tmp_path, pack_format="none")
    assert packed(photos, tmp_path, pack_format="none").identity == first.identity
    assert first.identity != packed(photos, tmp_path, pack_format="raw").identity
    smaller = packed(photos, tmp_path, pack_format="none", pack_size=30)
    os.utime(photos / "cat/00.png", (0, 0))
    changed = packed(photos, tmp_path, pack_format="none")
    assert len({each.fingerprint for each in (first, smaller, changed)}) == 3
    assert (changed.digests != first.digests).any(1).tolist() == [True] + [False] * 11


def test_without_a_pack_a_damaged_image_is_named(photos, tmp_path):
    file = photos / "cat/01.jpg"
    file.write_bytes(file.read_bytes()[:500])
    images = packed(photos, tmp_path, pack_format="none")
    with pytest.raises(ClspError, match=r"cat/01\.jpg.*(corrupt|damaged|read)"):
        Crops(images, [CROP])(torch.arange(4), [keys_of(4)])
    file.write_bytes(b"")
    images = packed(photos, tmp_path, pack_format="none")
    with pytest.raises(ClspError, match=r"cat/01\.jpg"):
        images.sizes(torch.arange(4))
    with pytest.raises(ClspError, match=r"data\.pack_format=none packs none; leave out one"):
        packed(photos, tmp_path, pack_format="none", skip_damaged=True)
