"""Folders as people have them: hidden entries, links, pipes, images of more than 8 bits."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clsp_plugin.data.folders import class_folders, image_files
from clsp_plugin.data.images import load_images
from clsp_plugin.errors import ClspError

HIDDEN = (".ipynb_checkpoints", ".Trash-1000", "__MACOSX", "@eaDir")
NAMES = st.text("aZ0 _-ü日", min_size=1, max_size=4).filter(lambda name: name.strip() == name)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(NAMES, st.lists(NAMES, min_size=1, max_size=3, unique=True), min_size=1),
    st.sampled_from(HIDDEN),
    st.booleans(),
)
def test_the_images_and_numbers_of_torchvision(classes, hidden, linked):
    from torchvision.datasets import ImageFolder

    with tempfile.TemporaryDirectory() as folder:
        plain, littered = Path(folder, "plain"), Path(folder, "littered")
        for name, files in classes.items():
            for file in files:
                touch(plain / name / "deep" / f"{file}.png")
                touch(plain / name / f"{file}.JPG")
            littered.mkdir(exist_ok=True)
            if linked:
                (littered / name).mkdir()
                for entry in (plain / name).iterdir():
                    (littered / name / entry.name).symlink_to(entry)
            else:
                (plain / name).rename(touch(littered / name / "x").parent / "inner")
                (littered / name / "x").unlink()
        wanted = ImageFolder(littered)
        for name in classes:
            touch(littered / name / hidden / "no.png")
            touch(littered / name / "._no.png")
        touch(littered / hidden / "no.png")
        files, targets, names = class_folders(littered)
        assert list(names) == wanted.classes
        found = zip(map(str, files), targets, strict=True)
        assert sorted(found) == sorted(wanted.samples)
        assert image_files(littered) == files


def test_a_link_round_in_a_circle_a_broken_one_and_a_pipe(tmp_path):
    touch(tmp_path / "a/0.png")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    with pytest.raises(ClspError, match=r"loop.*no end"):
        image_files(tmp_path)
    (tmp_path / "a/loop").unlink()
    (tmp_path / "a/gone").symlink_to("nowhere")
    with pytest.raises(ClspError, match="gone is a link to nowhere"):
        class_folders(tmp_path)
    (tmp_path / "a/gone").unlink()
    os.mkfifo(tmp_path / "a/pipe.png")
    with pytest.raises(ClspError, match=r"pipe\.png is not a file"):
        class_folders(tmp_path)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused_with_the_file(tmp_path, kind):
    file = touch(tmp_path / "a/deep.tif")
    Image.fromarray(np.zeros((16, 16), kind)).save(file)
    wanted = {"dataset": "custom", "train_path": str(tmp_path), "no_labels": True}
    with pytest.raises(ClspError, match=r"deep\.tif.*convert to 8"):
        load_images(wanted, "train")


@pytest.mark.parametrize("damage", ["empty", "cut", "bomb"])
def test_what_pil_raises_becomes_a_sentence(tmp_path, damage, recwarn):
    file = touch(tmp_path / "a/bad.png")
    size = (20000, 10000) if damage == "bomb" else (64, 64)
    if damage != "empty":
        Image.new("1", size, 1).save(file)
    if damage == "cut":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[:2000])
    wanted = {"dataset": "custom", "train_path": str(tmp_path), "image_size": 16}
    with pytest.raises(ClspError, match=r"bad\.png is not a readable image"):
        load_images(wanted, "train")
    assert not recwarn.list
