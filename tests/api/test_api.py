"""The functions of the package: they do what the verbs do, with images from folders or objects."""

import asyncio
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from PIL import Image
from torchvision.datasets import ImageFolder

import clsp_plugin as clsp
from clsp_plugin import cli
from clsp_plugin.config.training import Data
from clsp_plugin.config.typed import typed
from clsp_plugin.data.images import load_images
from clsp_plugin.data.objects import as_images
from clsp_plugin.records.record import Record

ROOT = Path(__file__).parents[2]
NET = {
    "backbone.kwargs": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
    "method_kwargs.proj_hidden_dim": 16, "method_kwargs.proj_output_dim": 8,
    "optimizer.batch_size": 8, "max_epochs": 1, "accelerator": "cpu",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Class folders with 12 training and 6 test images of 16 pixels a class."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for split, number in (("train", 12), ("val", 6)):
        for name in ("cat", "dog"):
            (tmp_path / "my" / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "my" / split / name / f"{i:02}.png")
    return tmp_path


def weights(run):
    return torch.load(run.checkpoint, weights_only=True)["state_dict"]


def test_the_import_is_quick_and_loads_no_torch():
    code = (
        "import sys, clsp_plugin; assert not {'torch', 'lightning', 'hydra'} & set(sys.modules); "
        "print(*(name for name in dir(clsp_plugin) if name in clsp_plugin.__all__)); "
        "clsp_plugin.ClspError; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(clsp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        clsp.pretrian  # noqa: B018


def test_every_name_is_there_and_documented():
    for name in clsp.__all__:
        assert getattr(clsp, name).__doc__, name
        assert getattr(clsp, name).__module__.startswith("clsp_plugin.")


def test_the_page(folder, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    code = "\n".join(blocks).replace('"max_epochs": 20', '"max_epochs": 1')
    monkeypatch.setattr("clsp_plugin.api.compose", small(clsp.pretrain.__globals__["compose"]))
    names: dict = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["features"].shape == (12, names["backbone"].num_features)
    assert sorted(names["frame"].task.dropna()) == ["knn"]
    assert names["frame"].top1.dropna().item() == names["knn"]["top1"]
    assert list(Path("logs").rglob("metrics.csv"))


def small(compose):
    """The page's configurations on few steps and channels."""
    more = {"denoiser": ["block_out_channels=[8,8]"], "generate": ["steps=2", "num_candidates=2"],
            "pretrain": [f"{key}={value}" for key, value in NET.items()
                         if key not in ("backbone.kwargs", "max_epochs")]}  # fmt: skip
    return lambda verb, name, given: compose(verb, name, [*more.get(verb, []), *given])


def test_objects_and_folders_are_the_same_images(folder):
    data = typed({"dataset": "custom", "train_path": "my/train"}, Data)
    expected = load_images(data, "train").identity
    pictures = ImageFolder("my/train")
    assert as_images(pictures).identity == expected
    # what Hugging Face's library makes of the same folder
    hub = datasets.load_dataset("imagefolder", data_dir="my/train", split="train")
    assert as_images(hub).identity == expected
    array = np.stack([np.asarray(image) for image, _ in pictures])
    unlabelled = as_images(array)
    assert unlabelled.fingerprint == expected["fingerprint"]
    assert unlabelled.targets.eq(-1).all()
    assert unlabelled.classes == ()
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in array]
    assert as_images(tensors).fingerprint == expected["fingerprint"]


def test_objects_of_several_sizes_are_brought_to_one_as_files_are(folder):
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8))
    wide.save("my/train/cat/99.png")
    data = typed({"dataset": "custom", "train_path": "my/train", "image_size": 12}, Data)
    assert as_images(ImageFolder("my/train"), 12).identity == load_images(data, "train").identity
    with pytest.raises(ValueError, match=r"data.image_size=PIXELS"):
        as_images(ImageFolder("my/train"))


IMAGE = np.zeros((8, 8, 3), np.uint8)
BAD = {
    "no length": (iter([IMAGE]), "has no length"),
    "empty": ([], "is empty"),
    "floats": ([torch.rand(3, 8, 8)], "float32; give uint8"),
    "shape": ([np.zeros((8, 8, 4), np.uint8)], r"shape \(8, 8, 4\)"),
    "flat": ([np.zeros(8, np.uint8)], r"shape \(8,\)"),
    "no image": ([{"text": 1}], "no image but text"),
    "a word": (["cat.png"], "is a str and no image"),
    "label": ([(IMAGE, "cat")], "label cat"),
    "half a label": ([(IMAGE, 0.5)], "label 0.5"),
    "16 bits": ([Image.fromarray(np.zeros((8, 8), np.int32))], "8 bits"),
    "sizes": ([IMAGE, IMAGE[:4]], "Item 1 of data is 4x8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_objects_are_refused(case):
    given, told = BAD[case]
    with pytest.raises(clsp.ClspError, match=told):
        as_images(given)


def test_more_labels_than_names():
    class Named(list):
        classes = ("cat",)

    assert as_images(Named([(IMAGE, 0)])).classes == ("cat",)
    with pytest.raises(clsp.ClspError, match="label 1 and 1 class names"):
        as_images(Named([(IMAGE, 1)]))


def test_a_run_of_objects_equals_one_of_folders(folder, monkeypatch):
    given = {**NET, "synthetic.weight": 0}
    by_object = clsp.pretrain("digits/clsp_simclr", given, data=ImageFolder("my/train"))
    paths = ["data.dataset=custom", "data.train_path=my/train", "checkpoint.dir=folders"]
    words = ["pretrain", "--config-name", "digits/clsp_simclr", *paths, "synthetic.weight=0"]
    words += [f"{key}={value}" for key, value in NET.items() if key != "backbone.kwargs"]
    words += ["backbone.kwargs.channels=[8,8,8,8]"]
    monkeypatch.setattr(sys, "argv", ["clsp", *words])
    cli.main()
    (file,) = Path("folders").rglob("*.ckpt")
    there = torch.load(file, weights_only=True)["state_dict"]
    here = weights(by_object)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)
    assert by_object.record.config["data"]["dataset"] == "custom"
    assert by_object.record.source["config"] == "digits/clsp_simclr"


def test_a_store_fits_its_images_whoever_brings_them(folder):
    train = ImageFolder("my/train")
    denoiser = clsp.train_denoiser(
        settings={"max_epochs": 1, "block_out_channels": [8, 8], "out": "den, (1)"},
        data=train,
        loggers=[CSVLogger("logs")],
    )
    (logged,) = Path("logs").rglob("metrics.csv")
    assert "loss" in logged.read_text().splitlines()[0].split(",")
    store = clsp.generate(
        settings={"denoiser": denoiser, "out": "cand", "steps": 1, "num_candidates": 1}, data=train
    )
    assert store.images([0, 23]).shape == (2, 1, 16, 16, 3)
    given = {**NET, "synthetic.path": store.path, "data.dataset": "custom"}
    clsp.pretrain("digits/clsp_simclr", {**given, "data.train_path": "my/train"})
    with pytest.raises(clsp.ClspError, match="store"):
        clsp.pretrain("digits/clsp_simclr", given, data=[image for image, _ in train][::-1])
    with pytest.raises(clsp.ClspError, match="dry_run"):
        clsp.generate(settings={"dry_run": True}, data=train)


def test_the_caller_s_state_is_left_alone(folder):
    class Seen(Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer, module):
            self.epochs += 1

    async def notebook():  # where an event loop is running already
        return clsp.pretrain("digits/simclr", NET, data=ImageFolder("my/train"), callbacks=[seen])

    seen, expected = Seen(), []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 what callers of old code rely on
        torch.manual_seed(1)
        if expected:
            run = asyncio.run(notebook())
            clsp.load_backbone(run)
        expected.append([random.random(), np.random.rand(), torch.rand(1).item()])  # noqa: NPY002
    assert expected[0] == expected[1]
    assert seen.epochs == 1
    again = clsp.pretrain("digits/simclr", NET, data=ImageFolder("my/train"))
    assert again == run  # complete: nothing is trained again
    assert Path.cwd() == folder


def test_a_backbone_is_the_evaluation_s(folder):
    test = ImageFolder("my/val")
    run = clsp.pretrain("digits/simclr", NET, data=ImageFolder("my/train"))
    backbone = clsp.load_backbone(run)
    assert not backbone.training
    pixels = backbone.prepare(test)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (backbone.prepare.mean, backbone.prepare.std)
    )
    expected = torch.from_numpy(np.asarray(test[3][0])).permute(2, 0, 1) / 255
    torch.testing.assert_close(pixels[3] * std + mean, expected)
    assert torch.equal(backbone.prepare(np.stack([np.asarray(i) for i, _ in test])), pixels)
    with torch.no_grad():
        features = backbone(pixels)
    assert features.shape == (12, backbone.num_features)
    with pytest.raises(clsp.ClspError, match="uint8"):
        backbone.prepare(torch.rand(2, 3, 16, 16))


def test_evaluations_of_objects(folder):
    train, test = ImageFolder("my/train"), ImageFolder("my/val")
    run = clsp.pretrain("digits/simclr", NET, data=train, val_data=test)
    found = clsp.evaluate(run, "knn", {"k": [1, 3]}, data=train, test_data=test)
    assert found["chosen"]["k"] in (1, 3)
    assert clsp.evaluate(run.folder, "linear", {"max_epochs": 2, "lr_decay_steps": [1]},
                         data=train, test_data=test)["num_test"] == 12  # fmt: skip
    assert found["images"]["part"] == ""  # those of a pre-training that was given its own
    named = clsp.pretrain("digits/simclr", {**NET, "data.num_train": 48, "data.num_val": 20})
    given = clsp.evaluate(named, "knn", {"k": [1]}, data=train, test_data=test)
    assert (given["dataset"], given["images"]["part"]) == ("digits", "images given from Python")
    (named.folder / "record.json").unlink()  # the next evaluation writes one
    clsp.evaluate(named.folder, "knn", {"k": [1], "data.fraction": 0.5})
    record = Record.load(named.folder / "record.json")
    assert (record.num_train, record.evaluations[0]["num_train"]) == (48, 24)
    # as solo-learn's: no record, nothing that says what it was trained on, objects of classes
    (checkpoint,) = named.folder.glob("*.ckpt")
    kept = torch.load(checkpoint, weights_only=True)
    kept = {key: kept[key] for key in ("epoch", "global_step", "state_dict")}
    torch.save({**kept, "hyper_parameters": OmegaConf.create({"lr": 0.1})}, checkpoint)
    for settings, number in (({}, 48), ({"data.fraction": 0.5}, None)):
        (named.folder / "record.json").unlink()
        clsp.evaluate(named.folder, "knn", {"k": [1], **settings})
        assert Record.load(named.folder / "record.json").num_train == number
    shutil.rmtree(named.folder)
    frame = clsp.read_records("trained_models")
    assert list(frame.task) == ["knn", "linear"]
    assert frame.top1[0] == found["top1"]
    for task, keys, told in (
        ("kmeans", {}, "task=kmeans is not known"),
        ("knn", {"data": train}, "needs both"),
        ("transfer", {"data": train, "test_data": test}, "task='linear'"),
    ):
        with pytest.raises(clsp.ClspError, match=told):
            clsp.evaluate(run, task, **keys)
    with pytest.raises(clsp.ClspError, match="without training images"):
        clsp.pretrain("digits/simclr", NET, val_data=test)
    with pytest.raises(clsp.ClspError, match="did you mean 'max_epochs'"):
        clsp.pretrain("digits/simclr", {"max_epoch": 1}, data=train)
