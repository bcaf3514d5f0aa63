"""Images from every source, and what is wrong with bad ones."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from clsp_plugin.data import digits
from clsp_plugin.data.digits import make_digits
from clsp_plugin.data.images import load_images
from clsp_plugin.errors import ClspError


def data(**keys):
    base = {
        "dataset": "custom", "train_path": None, "val_path": None, "no_labels": False,
        "fraction": -1, "image_size": None, "num_train": 40, "num_val": 20, "seed": 0,
    }  # fmt: skip
    return {**base, **keys}


def write_images(folder, number, size=(8, 8), seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (number, *size, 3)).astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return pixels


@pytest.fixture
def folders(tmp_path):
    cats = write_images(tmp_path / "train" / "cat", 5, seed=1)
    dogs = write_images(tmp_path / "train" / "dog", 4, seed=2)
    return tmp_path / "train", np.concatenate([cats, dogs])


def test_class_folders(folders):
    root, pixels = folders
    array = load_images(data(train_path=str(root)), "train")
    assert (array.images.numpy() == pixels).all()
    assert array.targets.tolist() == [0] * 5 + [1] * 4
    assert array.classes == ("cat", "dog")
    assert load_images(data(train_path=str(root)), "val") is None


def test_images_without_labels(tmp_path):
    pixels = write_images(tmp_path / "flat", 3)
    array = load_images(data(train_path=str(tmp_path / "flat"), no_labels=True), "train")
    assert (array.images.numpy() == pixels).all()
    assert array.targets.tolist() == [-1] * 3


def test_fingerprint_knows_pixels_and_order(folders):
    root, _ = folders
    array = load_images(data(train_path=str(root)), "train")
    again = load_images(data(train_path=str(root)), "train")
    assert array.fingerprint == again.fingerprint
    order = torch.arange(8, -1, -1)
    assert array.subset(order, "x").fingerprint != array.fingerprint
    assert array.subset(torch.arange(8), "x").fingerprint != array.fingerprint
    one = array.images.clone()
    one[3, 2, 1, 0] ^= 1
    changed = type(array)(one, array.targets, array.classes, array.name)
    assert changed.fingerprint != array.fingerprint


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("fingerprint", {"images": lambda v: v.roll(1, 0)}),
        ("targets", {"targets": lambda v: v.roll(1)}),
        ("classes", {"classes": lambda v: v[::-1]}),
        ("classes", {"classes": lambda v: ("cat,dog",)}),
    ],
)
def test_identity_knows_images_classes_and_labels_each(folders, what, changed):
    array = load_images(data(train_path=str(folders[0])), "train")
    assert array.identity == load_images(data(train_path=str(folders[0])), "train").identity
    other = replace(array, **{name: f(getattr(array, name)) for name, f in changed.items()})
    differing = {key for key in array.identity if array.identity[key] != other.identity[key]}
    assert differing == {what}
    assert json.loads(json.dumps(array.identity)) == array.identity
    assert array.identity["count"] == len(array)


def test_images_of_several_sizes_need_one(folders):
    root, _ = folders
    write_images(root / "dog", 1, size=(10, 16), seed=3)
    with pytest.raises(ClspError, match="to bring all to one size"):
        load_images(data(train_path=str(root)), "train")
    array = load_images(data(train_path=str(root), image_size=6), "train")
    assert array.size == (6, 6)


@pytest.mark.parametrize("no_labels", [False, True])
def test_photographs_that_are_shrunk_are_told_once(tmp_path, capsys, no_labels):
    for split in ("train", "val"):
        write_images(tmp_path / split / "dog", 5, size=(33, 50))
    paths = {"train_path": str(tmp_path / "train"), "val_path": str(tmp_path / "val")}
    for size, told in ((16, True), (17, False)):
        for split in ("train", "val"):
            load_images(data(**paths, image_size=size, no_labels=no_labels), split)
        out = capsys.readouterr().out
        assert out.count("about 33 pixels on their shorter side") == told
        assert ("scales them to 16x16" in out) == told


def test_fraction_is_stratified_and_always_the_same(tmp_path):
    write_images(tmp_path / "a", 20, seed=1)
    write_images(tmp_path / "b", 40, seed=2)
    keys = data(train_path=str(tmp_path), fraction=0.25)
    part = load_images(keys, "train")
    assert torch.bincount(part.targets).tolist() == [5, 10]
    assert part.fingerprint == load_images(keys, "train").fingerprint
    with pytest.raises(ClspError, match="not between 0 and 1"):
        load_images({**keys, "fraction": 1.5}, "train")


def test_missing_folder(tmp_path):
    with pytest.raises(ClspError, match="nowhere does not exist"):
        load_images(data(train_path=str(tmp_path / "nowhere")), "train")


def test_empty_class(folders):
    root, _ = folders
    (root / "eel").mkdir()
    with pytest.raises(ClspError, match="eel holds no images"):
        load_images(data(train_path=str(root)), "train")


def test_folder_without_classes(tmp_path):
    write_images(tmp_path / "flat", 2)
    with pytest.raises(ClspError, match="no class folders"):
        load_images(data(train_path=str(tmp_path / "flat")), "train")


def test_corrupt_image(folders):
    root, _ = folders
    whole = (root / "dog" / "001.png").read_bytes()
    (root / "dog" / "001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClspError, match=r"dog/001.png is not a readable image"):
        load_images(data(train_path=str(root)), "train")


def test_unknown_data_set():
    with pytest.raises(ClspError, match="did you mean 'cifar10'"):
        load_images(data(dataset="cifra10"), "train")


def write_cifar10(root, per_batch=4):
    """CIFAR-10 as torchvision keeps it, with few images; returns the training pixels."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    pixels = np.random.default_rng(0).integers(0, 256, (6, per_batch, 3072)).astype(np.uint8)
    for name, batch in zip(names, pixels, strict=True):
        labels = [i % 10 for i in range(per_batch)]
        (folder / name).write_bytes(pickle.dumps({"data": batch, "labels": labels}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"]
    meta = {"label_names": [*names, "truck"]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return pixels[:5].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.fixture
def unchecked_cifar(monkeypatch):
    """torchvision compares checksums of the real files; ours are small."""
    import torchvision.datasets.cifar as cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: path.endswith("_batch")
                        or "data_batch" in path or path.endswith("meta"))  # fmt: skip


def test_cifar10_in_torchvision_s_format(tmp_path, unchecked_cifar):
    pixels = write_cifar10(tmp_path)
    keys = data(dataset="cifar10", train_path=str(tmp_path), val_path=str(tmp_path))
    array = load_images(keys, "train")
    assert (array.images.numpy() == pixels).all()
    assert len(array.classes) == 10
    assert len(load_images(keys, "val")) == 4


def test_cifar10_with_wrong_checksums_is_corrupt(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(ClspError, match="corrupt or incomplete"):
        load_images(data(dataset="cifar10", train_path=str(tmp_path)), "train")


def test_cifar10_as_class_folders(tmp_path):
    for name in "abcdefghij":
        write_images(tmp_path / "cifar10" / "train" / name, 2, size=(32, 32))
        write_images(tmp_path / "cifar10" / "test" / name, 1, size=(32, 32))
    found = load_images(data(dataset="cifar10", train_path=str(tmp_path)), "train")
    named = load_images(
        data(dataset="cifar10", train_path=str(tmp_path / "cifar10" / "train")), "train"
    )
    assert found.fingerprint == named.fingerprint
    assert len(load_images(data(dataset="cifar10", train_path=str(tmp_path)), "val")) == 10
    write_images(tmp_path / "cifar10" / "train" / "k", 1, size=(32, 32))
    with pytest.raises(ClspError, match="has 11 class folders, cifar10 has 10"):
        load_images(data(dataset="cifar10", train_path=str(tmp_path)), "train")


STL10_CLASSES = [
    "airplane",
    "bird",
    "car",
    "cat",
    "deer",
    "dog",
    "horse",
    "monkey",
    "ship",
    "truck",
]


def write_stl10(root):
    """STL-10 as torchvision keeps it, with few images; returns pixels by the file's name."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pixels = {}
    for name, number in (("train", 6), ("unlabeled", 5), ("test", 4)):
        images = generator.integers(0, 256, (number, 96, 96, 3)).astype(np.uint8)
        # on disk: one image after another, one channel after another, column by column
        images.transpose(0, 3, 2, 1).tofile(folder / f"{name}_X.bin")
        pixels[name] = images
        if name != "unlabeled":
            np.arange(1, number + 1, dtype=np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(STL10_CLASSES))
    (folder / "fold_indices.txt").write_text("")
    return pixels


@pytest.fixture
def unchecked_stl10(monkeypatch):
    """torchvision compares checksums of the real files; ours are small."""
    import torchvision.datasets.stl10 as stl10

    monkeypatch.setattr(stl10, "check_integrity", lambda path, md5=None: True)


def test_stl10_in_torchvision_s_format(tmp_path, unchecked_stl10):
    pixels = write_stl10(tmp_path)
    keys = data(dataset="stl10", train_path=str(tmp_path))
    train, test = load_images(keys, "train"), load_images(keys, "val")
    assert (train.images.numpy() == np.concatenate([pixels["train"], pixels["unlabeled"]])).all()
    assert train.targets.tolist() == [0, 1, 2, 3, 4, 5] + [-1] * 5
    assert (test.images.numpy() == pixels["test"]).all()
    assert test.targets.tolist() == [0, 1, 2, 3]
    assert train.classes == test.classes == tuple(STL10_CLASSES)
    # what an evaluation trains on
    assert train.labelled().targets.tolist() == [0, 1, 2, 3, 4, 5]
    assert (train.labelled().images.numpy() == pixels["train"]).all()
    assert test.labelled() is test


def test_stl10_at_another_size(tmp_path, unchecked_stl10):
    pixels = write_stl10(tmp_path)
    keys = data(dataset="stl10", train_path=str(tmp_path), image_size=64)
    array = load_images(keys, "val")
    first = Image.fromarray(pixels["test"][0]).resize((64, 64), Image.Resampling.BICUBIC)
    assert array.size == (64, 64)
    assert (array.images[0].numpy() == np.asarray(first)).all()


def test_stl10_with_wrong_checksums_is_corrupt(tmp_path):
    write_stl10(tmp_path)
    with pytest.raises(ClspError, match="stl10 is corrupt or incomplete"):
        load_images(data(dataset="stl10", train_path=str(tmp_path)), "train")


def test_imagenet100_is_a_hundred_class_folders(tmp_path):
    for number in range(100):
        write_images(tmp_path / f"n{number:08d}", 1, size=(20 + number % 3, 18), seed=number)
    keys = data(dataset="imagenet100", train_path=str(tmp_path), image_size=16)
    array = load_images(keys, "train")
    assert array.images.shape == (100, 16, 16, 3)
    assert array.targets.tolist() == list(range(100))
    write_images(tmp_path / "surplus", 1)
    with pytest.raises(ClspError, match="has 101 class folders, imagenet100 has 100"):
        load_images(keys, "train")


def test_digits_are_balanced_and_deterministic():
    images, targets = make_digits(200, "train")
    assert images.shape == (200, 32, 32, 3)
    assert images.dtype == torch.uint8
    assert torch.bincount(targets).tolist() == [20] * 10
    assert torch.equal(images, make_digits(200, "train")[0])
    # an image does not depend on how many are drawn
    assert torch.equal(images[:50], make_digits(50, "train")[0])
    assert not torch.equal(images, make_digits(200, "train", seed=1)[0])
    assert not torch.equal(images, make_digits(200, "val")[0])


def test_digits_are_the_same_however_many_are_drawn_at_a_time(monkeypatch):
    drawn, plain = [], digits._draw
    monkeypatch.setattr(digits, "_draw", lambda *a: drawn.append(len(a[1])) or plain(*a))
    images, targets = make_digits(300, "train", 7, 24)
    assert drawn == [300]
    monkeypatch.setattr(digits, "_PIXELS", 70 * 24**2)
    again, others = make_digits(300, "train", 7, 24)
    assert drawn[1:] == [70, 70, 70, 70, 20]  # what memory is needed for meanwhile
    assert torch.equal(images, again)
    assert torch.equal(targets, others)


def test_digits_hold_the_digit_and_hide_it_from_colour():
    # a classifier on mean colours is at chance, one on the handwriting is not
    from sklearn.neighbors import KNeighborsClassifier

    train, y_train = make_digits(2000, "train")
    val, y_val = make_digits(500, "val")
    colour = KNeighborsClassifier(10).fit(train.float().mean((1, 2)), y_train)
    assert colour.score(val.float().mean((1, 2)), y_val) < 0.2
    gray = [x.float().mean(-1) for x in (train, val)]
    edges = [(x[:, 1:, 1:] - x[:, :-1, :-1]).abs().flatten(1) for x in gray]
    shape = KNeighborsClassifier(10).fit(edges[0], y_train)
    assert shape.score(edges[1], y_val) > 0.2


def test_too_few_digits():
    with pytest.raises(ClspError, match="10 or more"):
        load_images(data(dataset="digits", num_train=5), "train")
