"""Data sets to transfer to, each in the format that torchvision reads, with few images."""

import importlib.util
import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat

from clsp_plugin.data.datasets import DOWNSTREAM
from clsp_plugin.data.downstream import load_downstream
from clsp_plugin.data.folders import to_pixels
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.errors import ClspError


def _sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Camera:
    """Writes pictures of any size whose colour tells the class."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def shoot(self, path, label):
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = self.random.integers(18, 40, 2)
        colour = np.array([(40, 60, 200), (200, 180, 30), (60, 220, 90)][label % 3])
        noise = self.random.normal(0, 25, (height, width, 3))
        Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)
        return path


def write_pets(root):
    camera, base, out = Camera(), root / "oxford-iiit-pet", {}
    (base / "annotations").mkdir(parents=True)
    for part, name, number in (("train", "trainval", 6), ("test", "test", 3)):
        lines, out[part] = [], []
        for i in range(number):
            for label, breed in enumerate(("Abyssinian", "american_bulldog")):
                image = f"{breed}_{name}{i}"
                lines.append(f"{image} {label + 1} {label + 1} 1")
                out[part].append((camera.shoot(base / "images" / f"{image}.jpg", label), label))
        (base / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return out


def write_flowers(root):
    camera, base = Camera(), root / "flowers-102"
    labels = [1 + i % 3 for i in range(18)]
    files = [
        camera.shoot(base / "jpg" / f"image_{i + 1:05d}.jpg", label - 1)
        for i, label in enumerate(labels)
    ]
    sets = {"trnid": range(13, 19), "valid": range(1, 7), "tstid": range(7, 13)}
    savemat(base / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    savemat(base / "setid.mat", {k: np.array([list(v)], np.uint16) for k, v in sets.items()})
    names = zip(("train", "val", "test"), sets.values(), strict=True)
    return {part: [(files[i - 1], labels[i - 1] - 1) for i in ids] for part, ids in names}


def write_dtd(root):
    camera, base, out = Camera(), root / "dtd" / "dtd", {}
    (base / "labels").mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        out[part] = []
        for i in (3 * number, 3 * number + 1, 3 * number + 2):
            for label, texture in enumerate(("banded", "woven")):
                file = base / "images" / texture / f"{texture}_{i:04d}.jpg"
                out[part].append((camera.shoot(file, label), label))
        for partition, lines in ((1, out[part]), (2, out[part][:2])):
            text = "".join(f"{file.parent.name}/{file.name}\n" for file, _ in lines)
            (base / "labels" / f"{part}{partition}.txt").write_text(text)
    return out


def write_caltech101(root):
    camera, base, out = Camera(), root / "caltech101" / "101_ObjectCategories", []
    camera.shoot(base / "BACKGROUND_Google" / "image_0001.jpg", 0)
    for label, name in enumerate(("Faces", "accordion")):
        files = [camera.shoot(base / name / f"image_{i:04d}.jpg", label) for i in range(1, 33)]
        out += [(file, label) for file in files]
    return {"all": out}


def write_food101(root):
    camera, base, out = Camera(), root / "food-101", {}
    (base / "meta").mkdir(parents=True)
    for part, numbers in (("train", range(1, 6)), ("test", range(6, 9))):
        dishes = {"waffles": [f"waffles/{i}" for i in numbers],
                  "apple_pie": [f"apple_pie/{i}" for i in numbers]}  # fmt: skip
        (base / "meta" / f"{part}.json").write_text(json.dumps(dishes))
        out[part] = [
            (camera.shoot(base / "images" / f"{name}.jpg", label), label)
            for dish, label in (("waffles", 1), ("apple_pie", 0))
            for name in dishes[dish]
        ]
    return out


def write_cars(root):
    camera, base, out = Camera(), root / "stanford_cars", {}
    (base / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names[None]})
    annotations = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for part, file in annotations.items():
        rows, out[part] = [], []
        for i in range(8):
            picture = base / f"cars_{part}" / f"{i + 1:05d}.jpg"
            out[part].append((camera.shoot(picture, i % 2), i % 2))
            rows.append((1, 2, 15, 16, 1 + i % 2, picture.name))
        fields = [*((f"bbox_{side}", "O") for side in ("x1", "y1", "x2", "y2")), ("class", "O")]
        table = np.array(rows, dtype=[*fields, ("fname", "O")])
        savemat(base / file, {"annotations": table[None]})
    return out


def write_stl10(root):
    _sibling("test_images").write_stl10(root)


def write_cifar10(root):
    _sibling("test_images").write_cifar10(root, per_batch=20)


def write_cifar100(root):
    import pickle

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 3072)).astype(np.uint8)
    for name, rows in (("train", slice(0, 200)), ("test", slice(200, 300))):
        labels = [i % 100 for i in range(rows.stop - rows.start)]
        content = {"data": pixels[rows], "fine_labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))


WRITE = {
    "pets": write_pets, "flowers": write_flowers, "dtd": write_dtd, "caltech101": write_caltech101,
    "food101": write_food101, "cars": write_cars, "stl10": write_stl10, "cifar10": write_cifar10,
    "cifar100": write_cifar100,
}  # fmt: skip
FILES = ("pets", "flowers", "dtd", "caltech101", "food101", "cars")  # an image a file


def take_small_files(monkeypatch):
    """torchvision compares checksums of the real files; ours are small."""
    for module in ("cifar", "stl10", "flowers102"):
        check = lambda path, md5=None: Path(path).is_file()  # noqa: E731
        monkeypatch.setattr(getattr(torchvision.datasets, module), "check_integrity", check)


@pytest.fixture
def small_files(monkeypatch):
    take_small_files(monkeypatch)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_every_data_set_is_tried_here():
    assert set(WRITE) == set(DOWNSTREAM)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("name", FILES)
def test_images_and_classes_as_they_lie_on_disk(tmp_path, name):
    written = WRITE[name](tmp_path)
    opened = load_downstream(name, tmp_path, 16)
    assert opened.parts.keys() == written.keys()
    for part, expected in written.items():
        stream = opened.parts[part]
        assert len(stream) == len(expected)
        targets = [stream[i][1] for i in range(len(stream))]
        first = min(targets)  # of some data sets releases of torchvision count from 1
        assert [target - first for target in targets] == [label for _, label in expected]
        for i, (file, _) in enumerate(expected):
            pixels, _, wrong = stream[i]
            assert wrong == ""
            assert (pixels.numpy() == to_pixels(Image.open(file), 16)).all()


@pytest.mark.usefixtures("small_files")
def test_splits_and_metrics_are_the_customary_ones(tmp_path):
    for name, write in WRITE.items():
        write(tmp_path)
        opened = load_downstream(name, tmp_path, 32)
        own = name in ("pets", "flowers", "caltech101")
        assert opened.metric == ("mean_class" if own else "top1"), name
        official = {"train", "test"} | ({"val"} if name in ("flowers", "dtd") else set())
        assert set(opened.parts) == ({"all"} if name == "caltech101" else official), name


@pytest.mark.usefixtures("small_files")
def test_stl10_is_its_labelled_images(tmp_path):
    write_stl10(tmp_path)
    parts = load_downstream("stl10", tmp_path, 48).parts
    assert [parts["train"][i][1] for i in range(6)] == list(range(6))
    assert (len(parts["train"]), len(parts["test"])) == (6, 4)
    assert parts["test"][0][0].shape == (48, 48, 3)


@pytest.mark.usefixtures("small_files")
def test_cifar_is_held_in_memory(tmp_path):
    write_cifar10(tmp_path)
    parts = load_downstream("cifar10", tmp_path, 32).parts
    assert all(isinstance(array, ImageArray) for array in parts.values())
    assert (len(parts["train"]), len(parts["test"])) == (100, 20)


def test_a_partition_of_dtd(tmp_path):
    write_dtd(tmp_path)
    assert len(load_downstream("dtd", tmp_path, 16).parts["train"]) == 6
    second = load_downstream("dtd", tmp_path, 16, partition=2)
    assert len(second.parts["train"]) == 2
    assert second.partition == 2
    with pytest.raises(ClspError, match="partition=11"):
        load_downstream("dtd", tmp_path, 16, partition=11)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", DOWNSTREAM)
def test_neither_disk_nor_network_has_it(tmp_path, name):
    with pytest.raises(ClspError) as caught:
        load_downstream(name, tmp_path / "datasets", 16)
    text = str(caught.value)
    assert f"{name} was not found and cannot be downloaded at {tmp_path}/datasets" in text
    assert "data.path" in text
    assert "train_path" not in text
    assert len(text.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.usefixtures("small_files", "offline")
@pytest.mark.parametrize(
    ("name", "file"),
    [("pets", "oxford-iiit-pet/annotations/test.txt"), ("flowers", "flowers-102/setid.mat"),
     ("dtd", "dtd/dtd/labels/val1.txt"), ("food101", "food-101/meta/train.json"),
     ("cars", "stanford_cars/cars_test_annos_withlabels.mat"), ("stl10", "stl10_binary/test_X.bin"),
     ("caltech101", "caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg"),
     ("cifar100", "cifar-100-python/test")],
)  # fmt: skip
def test_a_data_set_with_a_file_missing(tmp_path, name, file):
    WRITE[name](tmp_path)
    (tmp_path / file).unlink()
    if name == "caltech101":
        (tmp_path / file).parent.rmdir()
    with pytest.raises(ClspError, match=f"{name} is corrupt or incomplete at"):
        load_downstream(name, tmp_path, 16)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("name", [name for name in FILES if name != "caltech101"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, name):
    file, _ = WRITE[name](tmp_path)["train"][1]
    file.write_bytes(file.read_bytes()[:300])
    pixels, _, wrong = load_downstream(name, tmp_path, 16).parts["train"][1]
    assert wrong.startswith(f"{file} is not a readable image (")
    assert pixels.shape == (16, 16, 3)
    file.unlink()
    wrong = load_downstream(name, tmp_path, 16).parts["train"][1][2]
    assert wrong.startswith(f"{file} cannot be read (No such file or directory)")


def test_the_key_knows_files_and_parts(tmp_path):
    file, _ = write_pets(tmp_path)["train"][0]

    def keys():
        parts = load_downstream("pets", tmp_path, 16).parts
        return [parts["train"].key, parts["test"].key]

    first = keys()
    assert keys() == first
    assert first[0] != first[1]
    file.write_bytes(file.read_bytes())  # the same size; what is in it is not looked at
    second = keys()
    assert second[0] != first[0]
    (tmp_path / "oxford-iiit-pet" / "images" / "another.jpg").write_bytes(b"")
    assert keys()[0] != second[0]


def test_unknown_name(tmp_path):
    with pytest.raises(ClspError, match="did you mean 'flowers'"):
        load_downstream("flower", tmp_path, 16)


def test_images_of_any_mode_become_colour_squares(tmp_path):
    file, _ = write_dtd(tmp_path)["train"][0]
    Image.fromarray(np.full((30, 50), 100, np.uint8)).save(file)
    pixels, _, _ = load_downstream("dtd", tmp_path, 16).parts["train"][0]
    assert pixels.dtype == torch.uint8
    assert (pixels.float().sub(100).abs() < 3).all()
