"""Packed photographs through pre-training and evaluation."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from clsp_plugin.data.images import load_images, open_images
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.encoders import load_encoder
from clsp_plugin.evaluation.verbs import finetune, knn
from clsp_plugin.figures.draw import draw
from clsp_plugin.figures.picture import Options
from clsp_plugin.records.checkpoint import read_checkpoint
from clsp_plugin.records.record import Record, find_records
from clsp_plugin.suites.report import write_report


@pytest.fixture
def photos(tmp_path):
    """Photographs of several sizes, two classes of each split; the settings that name them."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 20), ("val", 7)):
        for index in range(number):
            folder = tmp_path / split / ("cat" if index % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            noise = Image.fromarray(generator.integers(0, 256, (5, 5, 3)).astype(np.uint8))
            noise.resize((30 + index, 28 + index % 3)).save(folder / f"{index:02d}.jpg")
    return [
        "data.dataset=custom", "data.image_size=null", f"data.train_path={tmp_path / 'train'}",
        f"data.val_path={tmp_path / 'val'}", f"data.cache={tmp_path / 'cache'}",
        "data.pack_size=26", "optimizer.batch_size=8",
    ]  # fmt: skip


def weights(finished):
    return read_checkpoint(finished.checkpoint)["state_dict"]


@pytest.mark.parametrize("method", ["simclr", "simclr_aug", "clsp_byol"])
def test_a_training_that_was_stopped_ends_as_one_left_alone(
    tiny, photos, interrupt, tmp_path, write_store, method
):
    settings = [*photos]
    if method == "clsp_byol":
        data = {"dataset": "custom", "train_path": str(tmp_path / "train"), "image_size": 16}
        store = write_store(tmp_path / "store", load_images(data, "train"))
        settings.append(f"synthetic.path={store}")
    whole = pretrain(tiny(method, *settings))
    settings.append("auto_resume.enabled=True")
    elsewhere = f"checkpoint.dir={tmp_path / 'stopped'}"
    interrupt(tiny(method, *settings, elsewhere), epoch=1)
    assert len(list((tmp_path / "stopped").glob("*/*/*.ckpt"))) == 1
    stopped = pretrain(tiny(method, *settings, elsewhere))
    state, again = weights(whole), weights(stopped)
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    record = Record.load(stopped.record)
    assert record.config["data"]["packed"] is True
    assert record.images["packed"] == "shorter side 26, JPEG of quality 92"
    assert all("val_acc1" in row for row in record.curve)


def test_candidates_of_other_photographs_are_refused(tiny, photos, tmp_path, write_store):
    data = {"dataset": "custom", "train_path": str(tmp_path / "val"), "image_size": 16}
    store = write_store(tmp_path / "store", load_images(data, "train"))
    with pytest.raises(ClspError, match=r"made for 7 images of 16x16 .*images are 20 images of 16"):
        pretrain(tiny("clsp_simclr", *photos, f"synthetic.path={store}"))
    data["train_path"] = str(tmp_path / "train")
    turned = load_images(data, "train")
    turned = turned.subset(torch.arange(20).flip(0), "turned")
    store = write_store(tmp_path / "turned", turned)
    with pytest.raises(ClspError, match=r"fingerprint"):
        pretrain(tiny("clsp_simclr", *photos, f"synthetic.path={store}"))


def test_evaluations(tiny, photos, tmp_path, capsys):
    run = pretrain(tiny("simclr", *photos, "max_epochs=1")).run_dir
    common = {"pretrained_feature_extractor": str(run)}
    own = {**common, "device": "cpu", "k": [1]}
    result = knn(OmegaConf.create({**own, "data": {"cache": str(tmp_path / "cache")}}))
    assert (result["num_train"], result["num_test"]) == (20, 7)
    assert result["images"]["size"] == 16
    prepare = load_encoder(run, {}, None).prepare
    assert (prepare.image_size, prepare.resize) == (16, 18)  # as 224 out of 256
    assert result["images"]["part"] == ""
    again = knn(OmegaConf.create(own))  # from the features that were kept
    assert again["top1"] == result["top1"]
    own = {"max_epochs": 1, "optimizer": {"name": "sgd", "batch_size": 8, "lr": 0.1}}
    tuned = finetune(
        OmegaConf.create({**common, **own, "accelerator": "cpu", "devices": 1,
                          "checkpoint": {"enabled": False}})
    )  # fmt: skip
    assert tuned["num_test"] == 7
    assert capsys.readouterr().out.count("Packing") == 2  # each split once, for all of them


def test_without_a_pack(tiny, photos, tmp_path):
    """Trained and evaluated as with a raw pack, and nothing is written of the images."""
    both = {
        form: pretrain(tiny("simclr", *photos, f"data.pack_format={form}", f"name={form}"))
        for form in ("none", "raw")
    }
    state, again = map(weights, both.values())
    assert all(torch.equal(state[key], again[key]) for key in state)
    cache = tmp_path / "cache/packed"
    assert len(list(cache.iterdir())) == 2  # of the raw images of the two splits
    own = {"device": "cpu", "k": [1], "data": {"cache": str(tmp_path / "cache")}}
    top1 = {
        form: knn(OmegaConf.create({"pretrained_feature_extractor": str(run.run_dir), **own}))
        for form, run in both.items()
    }
    assert top1["none"]["top1"] == top1["raw"]["top1"]
    assert len(list(cache.iterdir())) == 2


def test_figures_and_a_report(tiny, photos, tmp_path, write_store):
    """Pictures of packed photographs are squares, of the candidates' size where there are any."""
    data = {"dataset": "custom", "train_path": str(tmp_path / "train"), "image_size": 24}
    store = write_store(tmp_path / "store", load_images(data, "train"))
    run = pretrain(tiny("clsp_simclr", *photos, "max_epochs=1", f"synthetic.path={store}"))
    records = find_records([run.record])
    drawn = draw(records, Options(limit=9), ["similarity", "tsne", "neighbours"])
    assert [picture.name for picture in drawn.pictures] == ["similarity", "tsne", "neighbours"]
    keys = {"cache": str(tmp_path / "cache"), "pack_size": 26}
    packed = open_images({**data, **keys, "image_size": None, "fraction": -1}, "train")
    first = np.asarray(drawn.pictures[2].figure.axes[0].images[0].get_array())
    assert np.array_equal(first[::6, ::6], packed.squares(torch.tensor([0]), 24)[0])
    write_report(records, tmp_path / "report.html", Options(limit=9))
    text = (tmp_path / "report.html").read_text()
    assert "Anchors and their candidates" in text
    assert "Sheet of candidates:" not in text  # a line where it could not be drawn


def test_what_needs_images_in_memory_says_so(tiny, photos, tmp_path):
    with pytest.raises(ClspError, match=r"cl_gan generates images of crop_size=16 .* several"):
        pretrain(tiny("cl_gan", *photos))
    with pytest.raises(ClspError, match=r"is on the disk; set data.packed=False"):
        pretrain(tiny("simclr", *photos, f"data.extra={tmp_path / 'val'}"))
    squares = ("data.packed=True", "data.image_size=16")
    with pytest.raises(ClspError, match=r"is on the disk; set data.packed=False"):
        pretrain(tiny("simclr", *photos, *squares, f"data.extra={tmp_path / 'val'}"))


def test_images_without_a_label_count_in_no_accuracy(tiny, photos, tmp_path):
    def listed(name, files, label):
        rows = [f"{file},{label(file)}" for file in files]
        (tmp_path / name).write_text("\n".join(rows) + "\n")
        return str(tmp_path / name)

    def curve(val):
        given = [f"data.train_path={train}", f"data.val_path={val}", "max_epochs=1"]
        return Record.load(
            pretrain(tiny("simclr", *photos, *given, f"name={len(val)}")).record
        ).curve

    train = listed("train.csv", sorted(tmp_path.glob("train/*/*")), lambda file: int(file.stem) % 2)
    some, others = sorted(tmp_path.glob("val/*/*")), sorted(tmp_path.glob("train/*/*"))[:9]
    kinds = {file: number % 2 for number, file in enumerate(some)}
    mixed = [file for pair in zip(others, [*some, *some[:2]], strict=True) for file in pair]
    kinds |= dict.fromkeys(others, -1)
    alone = curve(listed("v.csv", [*some, *some[:2]], kinds.get))
    assert curve(listed("mixed.csv", mixed, kinds.get))[0]["val_acc1"] == alone[0]["val_acc1"]
    assert not {"val_acc1", "val_loss"} & curve(listed("without.csv", others, kinds.get))[0].keys()
