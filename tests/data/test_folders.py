"""Folders as people have them: hidden ones, links, pipes, what Pillow cannot read or cuts off."""

import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from clsp_plugin.data import folders
from clsp_plugin.data.folders import (
    NotReadNow,
    class_folders,
    image_files,
    open_image,
    reading,
)
from clsp_plugin.errors import ClspError


def write(path, number=1):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path / f"{i}.png")


NAMES = st.sampled_from(["a", "b c", "ä", "x.png", ".hidden", ".Trash-1000", "__MACOSX", "@eaDir"])
FILES = st.sampled_from(["0.png", "1.JPG", "._0.png", "notes.txt", ".DS_Store", "ü,=.webp"])
TREES = st.recursive(
    st.dictionaries(FILES, st.just(None), max_size=3),
    lambda inner: st.dictionaries(NAMES, inner | st.just("link"), max_size=4),
    max_leaves=8,
)


def build(root, tree, outside):
    root.mkdir(exist_ok=True)
    for name, inside in tree.items():
        if inside is None:
            (root / name).write_bytes(b"")
        elif inside == "link":
            (root / name).symlink_to(outside, target_is_directory=True)
        else:
            build(root / name, inside, outside)


def ours(path, root):
    """Our rules beside torchvision's: nothing hidden, on any level."""
    hidden = {"__MACOSX", "@eaDir"}
    parts = Path(path).relative_to(root).parts
    return not any(part.startswith(".") or part in hidden for part in parts)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(["cat", "dog", "ö"]), TREES, min_size=1))
def test_we_see_what_torchvision_s_image_folder_sees_but_for_hidden_ones(tree):
    folder = Path(tempfile.mkdtemp())
    try:
        write(folder / "outside" / "deep")
        root = folder / "root"
        build(root, tree, folder / "outside")
        for name in tree:
            (root / name / "always.png").write_bytes(b"")
        write(root / ".ipynb_checkpoints")
        (root / ".ipynb_checkpoints" / "x.png").touch()
        files, targets, classes = class_folders(root)
        theirs = ImageFolder(str(root), allow_empty=True) if ALLOW_EMPTY else ImageFolder(str(root))
        numbers = {theirs.class_to_idx[name]: classes.index(name) for name in classes}
        expected = {(path, numbers[n]) for path, n in theirs.samples if ours(path, root)}
        assert set(zip(map(str, files), targets, strict=True)) == expected
        assert sorted(files, key=Path) == image_files(root)  # as without labels
    finally:
        shutil.rmtree(folder)


ALLOW_EMPTY = "allow_empty" in ImageFolder.__init__.__code__.co_varnames


def both(root):
    """How a folder is read with labels and without, which must not differ."""
    return lambda: class_folders(root), lambda: image_files(root)


def refused(root, message):
    for read in both(root):
        with pytest.raises(ClspError, match=message) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may not be long
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pipe, "x.png is not a file but a pipe"),
        (unix_socket, "x.png is not a file but a pipe, a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "x.png is not a file .* a device"),
        (lambda path: path.symlink_to("gone.png"), "x.png is a link to what is not there"),
        (lambda path: path.symlink_to(path.name), "x.png is a link to what .*cannot be reached"),
        (lambda path: path.with_suffix("").symlink_to("gone"), "x is a link to what is not there"),
        (lambda path: path.with_suffix("").symlink_to("."), "x leads back to .*a folder that"),
        (lambda path: path.with_suffix("").symlink_to(".."), "leads back to .*a folder that"),
    ],
)
def test_what_is_no_image_is_refused_by_its_name(tmp_path, make, message):
    write(tmp_path / "root" / "a")
    make(tmp_path / "root" / "a" / "x.png")
    refused(tmp_path / "root", message)


def test_a_class_that_is_a_link_to_nothing(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "b").symlink_to("gone")
    refused(tmp_path, "b is a link to what is not there")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    write(tmp_path / "a" / "deep")  # who runs this may be root, whom no permission stops
    write(tmp_path / "a")
    plain = os.scandir

    def scandir(path):
        if os.path.basename(path) == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(tmp_path, r"deep cannot be read \(Permission denied\)")


def test_the_same_folder_twice_is_no_cycle(tmp_path):
    write(tmp_path / "outside", 2)
    write(tmp_path / "root" / "a")
    for name in ("one", "two"):
        (tmp_path / "root" / "a" / name).symlink_to(tmp_path / "outside")
    assert len(image_files(tmp_path / "root")) == 5


RAMP = np.linspace(0, 65535, 64).reshape(8, 8)
WIDE = {
    "16.png": lambda: Image.fromarray(RAMP.astype(np.uint16)),
    "16.tif": lambda: Image.fromarray(RAMP.astype(np.uint16)),
    "32.tif": lambda: Image.fromarray(RAMP.astype(np.int32)),
    "float.tif": lambda: Image.fromarray((RAMP / 65535).astype(np.float32)),
}


@pytest.mark.parametrize("name", WIDE)
def test_more_than_8_bits_are_refused_by_the_file_s_name(tmp_path, name):
    WIDE[name]().save(tmp_path / name)
    with pytest.raises(ClspError, match=rf"{name} .*more than 8 bits a channel"):
        open_image(tmp_path / name, None)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    name = "x.jpg" if mode in ("CMYK", "YCbCr") else "x.png"
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(tmp_path / name)
    pixels = open_image(tmp_path / name, None)
    assert (pixels.shape, pixels.dtype) == ((4, 6, 3), np.uint8)
    assert pixels.min() >= 250


def test_orientation_is_torchvision_s(tmp_path):
    """EXIF's is not applied, there as here."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "a" / "x.jpg", exif=exif)
    theirs, _ = ImageFolder(str(tmp_path))[0]
    assert open_image(tmp_path / "a" / "x.jpg", None).shape[:2] == (theirs.height, theirs.width)


def test_too_many_pixels(tmp_path, monkeypatch):
    Image.new("1", (50, 50)).save(tmp_path / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ClspError, match=r"scan.png is not a readable image \(Image size"):
        open_image(tmp_path / "scan.png", 16)


@pytest.mark.parametrize("error", folders.UNREADABLE)
def test_whatever_pillow_raises_becomes_a_sentence(error):
    def read():
        raise error("wrong")

    told = r"^x.png is not a readable image"
    if error is MemoryError:  # perhaps it is the machine's
        told = r"^There was not enough memory to read x.png"
    with pytest.raises(ClspError, match=told):
        reading("x.png", read)


def test_what_the_system_refuses_is_not_called_damage():
    def read():
        raise OSError(24, "Too many open files")

    with pytest.raises(NotReadNow, match=r"^x.png cannot be read .Too many open files.") as caught:
        reading("x.png", read)
    assert "remove" not in str(caught.value)
    assert "repair" not in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["png", "jpg", "bmp", "ppm", "tif", "webp"]), st.data())
def test_damaged_bytes_are_read_or_refused(kind, draw):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{kind}"
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)
        content = bytearray(path.read_bytes())
        for _ in range(draw.draw(st.integers(1, 4))):
            content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
        path.write_bytes(content[: draw.draw(st.integers(0, len(content)))])
        try:
            found = open_image(path, 8).shape
        except ClspError as error:
            found = str(error)
        assert found == (8, 8, 3) or str(path) in found
