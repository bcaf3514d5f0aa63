"""Training and test images are compared: classes by name, images by their pixels."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clsp_plugin.data.downstream import load_downstream
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.splits import load_splits, numbered_as, shared_images
from clsp_plugin.errors import ClspError


def write(folder, number, seed=0, size=8):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (number, size, size, 3))
    for i, image in enumerate(pixels.astype(np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")


def data(train, val=None, **keys):
    paths = {"train_path": str(train), "val_path": None if val is None else str(val)}
    return {"dataset": "custom", "no_labels": False, "fraction": -1, "image_size": None,
            **paths, **keys}  # fmt: skip


def labelled(classes, targets, name="x"):
    targets = torch.tensor(targets, dtype=torch.int64)
    return ImageArray(torch.zeros(len(targets), 1, 1, 3).byte(), targets, tuple(classes), name)


names = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=8, unique=True)


@given(names, st.data())
def test_a_label_names_the_same_class_in_both(classes, draw):
    train = labelled(sorted(classes), range(len(classes)))
    some = sorted(draw.draw(st.sets(st.sampled_from(classes), min_size=1)))
    targets = draw.draw(st.lists(st.integers(-1, len(some) - 1), min_size=1, max_size=10))
    test = labelled(some, targets)
    out = numbered_as(test, train)
    assert out.classes == train.classes
    for before, after in zip(targets, out.targets.tolist(), strict=True):
        assert after == -1 if before == -1 else train.classes[after] == test.classes[before]


@given(names, names)
def test_a_class_that_is_not_trained_on_is_named(classes, others):
    train, test = (labelled(sorted(own), range(len(own))) for own in (classes, others))
    unknown = sorted(set(others) - set(classes))
    if not unknown:
        return
    with pytest.raises(ClspError) as caught:
        numbered_as(test, train)
    assert unknown[0] in str(caught.value)


def test_folders_that_lack_or_have_a_class(tmp_path):
    for name in ("cat", "dog", "fish"):
        write(tmp_path / "train" / name, 2)
    write(tmp_path / "val" / "fish", 3, seed=1)
    train, test = load_splits(data(tmp_path / "train", tmp_path / "val"))
    assert train.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.targets.tolist() == [2, 2, 2]
    assert load_splits(data(tmp_path / "train"))[1] is None
    write(tmp_path / "val" / "zebra", 1)
    with pytest.raises(ClspError, match=r"the class zebra, .* theirs: cat, dog, fish"):
        load_splits(data(tmp_path / "train", tmp_path / "val"))


def test_test_images_that_are_trained_on_are_counted(tmp_path, capsys):
    write(tmp_path / "train" / "a", 6)
    for number in range(2):  # of four
        (tmp_path / "val" / "a").mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "train" / "a" / f"{number}.png", tmp_path / "val" / "a")
    write(tmp_path / "val" / "a" / "others", 2, seed=2)
    write(tmp_path / "apart" / "a", 4, seed=1)
    train, test = load_splits(data(tmp_path / "train", tmp_path / "apart"))
    assert shared_images(train, test) == 0
    assert capsys.readouterr().out == ""
    load_splits(data(tmp_path / "train", tmp_path / "val"))
    printed = capsys.readouterr().out
    assert "2 of the 4 test images" in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_training_folders_are_never_the_test_images_unasked(tmp_path, name, capsys):
    for i in range(10 if name == "cifar10" else 100):
        write(tmp_path / f"{i:03d}", 1, seed=i)
    with pytest.raises(ClspError, match=r"no test images are named"):
        load_splits(data(tmp_path, dataset=name))
    with pytest.raises(ClspError, match=r"no test images are named.*data\.path") as caught:
        load_downstream(name, tmp_path, 8)
    assert "train_path" not in str(caught.value)
    train, test = load_splits(data(tmp_path, tmp_path, dataset=name))  # asked for, and told
    assert train.fingerprint == test.fingerprint
    assert f"{len(test)} of the {len(test)} test images" in capsys.readouterr().out


def test_images_of_a_data_set_s_own_split_are_not_compared(capsys):
    digits = {"num_train": 20, "num_val": 10, "seed": 0, "dataset": "digits", "train_path": None}
    train, test = load_splits({**digits, "val_path": None})
    assert "digests" not in train.__dict__
    assert "digests" not in test.__dict__
