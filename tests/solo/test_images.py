"""Every loader of solo-learn: its indexes name the right candidates."""

import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from clsp_plugin.candidates.matching import digests_of
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.third_view import match
from clsp_plugin.data.images import load_images
from clsp_plugin.errors import ClspError
from clsp_plugin.solo.images import DaliFiles


@pytest.fixture
def prepare(clone, monkeypatch):
    """solo-learn's own function that makes its training data set."""
    monkeypatch.syspath_prepend(str(clone))
    monkeypatch.setitem(sys.modules, "wandb", None)
    module = pytest.importorskip("solo.data.pretrain_dataloader", exc_type=ImportError)
    return module.prepare_datasets


def check(rows, dataset, array, read):
    """Whether each row of the store is of the image that the data set has at that index."""
    assert len(rows) == len(dataset)
    for index, row in enumerate(rows.tolist()):
        assert np.array_equal(read(index), array.images[row].numpy())


@pytest.mark.parametrize("fraction", [-1, 0.6])
def test_image_folder(prepare, images, array, candidates, fraction):
    dataset = prepare("custom", None, images / "train", data_fraction=fraction)
    rows = match(CandidateStore(candidates), dataset, "theirs")
    assert len(rows) == (40 if fraction < 0 else 24)
    check(rows, dataset, array, lambda i: np.asarray(Image.open(dataset.samples[i][0])))
    if fraction > 0:
        assert rows.tolist() != sorted(rows.tolist())  # solo-learn shuffles a part


@pytest.mark.parametrize("fraction", [-1, 0.5])
def test_unlabelled_folder_in_the_order_of_the_disk(
    prepare, images, tmp_path, write_store, fraction
):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted((images / "train").rglob("*.png"))):
        shutil.copy(file, flat / f"{number * 7 % 41}.png")
    keys = {"dataset": "custom", "train_path": str(flat), "no_labels": True, "fraction": -1}
    array = load_images(keys, "train")
    store = CandidateStore(write_store(tmp_path / "store", array))
    dataset = prepare("custom", None, flat, no_labels=True, data_fraction=fraction)
    dataset.images = dataset.images[::-1]  # whatever the disk says
    check(match(store, dataset, "theirs"), dataset, array,
          lambda i: np.asarray(Image.open(flat / dataset.images[i])))  # fmt: skip


def test_torchvision(prepare, cifar10, tmp_path, write_store, monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)
    keys = {"dataset": "cifar10", "train_path": str(cifar10), "val_path": None, "fraction": -1}
    array = load_images(keys, "train")
    store = CandidateStore(write_store(tmp_path / "store", array))
    dataset = prepare("cifar10", None, cifar10, download=False)
    rows = match(store, dataset, "theirs")
    check(rows, dataset, array, lambda i: dataset.data[i])
    assert torch.equal(rows, torch.arange(200))


def test_h5(prepare, images, array, candidates, tmp_path, monkeypatch):
    h5py = pytest.importorskip(
        "h5py", reason="h5py, which solo-learn's H5 data sets need, is absent"
    )
    monkeypatch.setenv("HOME", str(tmp_path))  # solo-learn leaves a list of the file there
    file = tmp_path / "train.h5"
    with h5py.File(file, "w") as h5:
        for path in sorted((images / "train").rglob("*.png"), key=lambda p: p.name):
            group = h5.require_group(path.parent.name)
            group[path.name] = np.frombuffer(path.read_bytes(), np.uint8)
    dataset = prepare("imagenet100", None, file, data_format="h5")
    rows = match(CandidateStore(candidates), dataset, "theirs")
    files = [images / "train" / folder / name for folder, name, _ in dataset._data]
    check(rows, dataset, array, lambda i: np.asarray(Image.open(files[i])))


@pytest.mark.parametrize("fraction", [-1, 0.6])
def test_dali_counts_files_as_we_do(clone, images, array, candidates, fraction):
    """By construction: the same list of files as its pipeline builds, without DALI."""
    root = images / "train"
    dataset = DaliFiles(root, no_labels=False, fraction=fraction)
    labels = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    data = [
        (root / label / file, number)
        for number, label in enumerate(labels)
        for file in sorted(os.listdir(root / label))
    ]
    if fraction > 0:
        from sklearn.model_selection import train_test_split

        files, numbers = zip(*data, strict=True)
        files, _ = train_test_split(files, train_size=fraction, stratify=numbers, random_state=42)
    else:
        files = [file for file, _ in data]
    assert dataset.files == list(files)
    rows = match(CandidateStore(candidates), dataset, "theirs")
    check(rows, dataset, array, lambda i: np.asarray(Image.open(files[i])))


def test_images_of_another_size_are_brought_to_the_candidates(
    images, tmp_path, write_store, prepare
):
    keys = {"dataset": "custom", "train_path": str(images / "train"), "fraction": -1}
    array = load_images({**keys, "image_size": 24}, "train")
    store = CandidateStore(write_store(tmp_path / "store", array))
    dataset = prepare("custom", None, images / "train")
    assert torch.equal(match(store, dataset, "theirs"), torch.arange(40))
    with pytest.raises(ClspError, match="no candidates for"):
        store.rows_of(digests_of(dataset, 16), "theirs")
