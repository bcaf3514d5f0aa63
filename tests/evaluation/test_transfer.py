"""Linear evaluation on other data sets: the protocols on features, and the verb on files."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from clsp_plugin.data.datasets import DOWNSTREAM
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation import network as networks
from clsp_plugin.evaluation.features import Features
from clsp_plugin.evaluation.linear import train_probe
from clsp_plugin.evaluation.logistic import Classifier, fit_logistic
from clsp_plugin.evaluation.protocol import split_heldout
from clsp_plugin.evaluation.transfer import PAPER_TARGETS, evaluate_transfer, split_per_class
from clsp_plugin.evaluation.verbs import knn, transfer
from clsp_plugin.records.record import find_records
from clsp_plugin.tables.make import make_table
from clsp_plugin.tables.published import published_transfer

VALUES = (1e-3, 0.1, 10.0)
FAST = {"epochs": 4, "milestones": (2,), "batch_size": 32}


def make_features(n, seed, classes=4, views=1, spread=1.2):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(7))
    targets = torch.arange(n) % classes
    feats = centres[targets] + spread * torch.randn(views, n, 6, generator=generator)
    return Features(feats, targets)


TRAIN, VAL, TEST = make_features(120, 0), make_features(60, 1), make_features(100, 2)
PARTS = {"train": TRAIN, "val": VAL, "test": TEST}


def joined(first, second):
    return Features(
        torch.cat([first.feats, second.feats], 1), torch.cat([first.targets, second.targets])
    )


def shuffled(features, seed):
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    return Features(features.feats, features.targets[order])


@pytest.mark.parametrize("metric", ["top1", "mean_class"])
def test_strict_by_hand_with_official_validation_images(metric):
    out = evaluate_transfer(PARTS, metric, l2=VALUES)
    choice = {v: c.scores(VAL) for v, c in fit_logistic(TRAIN, 4, VALUES).items()}
    best = max(choice, key=lambda value: (choice[value][metric], value))
    final = fit_logistic(joined(TRAIN, VAL), 4, [best])[best].scores(TEST)
    assert out["chosen"] == {"l2": best}
    assert (out["top1"], out["mean_class"]) == (final["top1"], final["mean_class"])
    assert out["metric"] == metric
    assert out[f"heldout_{metric}"] == choice[best][metric]
    assert [c["l2"] for c in out["candidates"]] == [10.0, 0.1, 1e-3]
    assert (out["num_train"], out["num_val"], out["num_test"]) == (180, 60, 100)
    assert out["split"] == "official validation images"
    assert (out["task"], out["protocol"]) == ("transfer", "strict")
    assert json.loads(json.dumps(out)) == out


def test_the_choice_is_by_the_metric_that_is_reported():
    def rare(number, seed):  # one image in ten is of class 1, and a little to the right
        targets = (torch.arange(number) % 10 == 0).long()
        feats = torch.randn(1, number, 6, generator=torch.Generator().manual_seed(seed))
        feats[0, :, 0] += targets
        return Features(feats, targets)

    parts = {"train": rare(60, 0), "val": rare(200, 10), "test": rare(200, 20)}
    chosen = {
        metric: evaluate_transfer(parts, metric, l2=(1e-3, 10.0))["chosen"]["l2"]
        for metric in ("top1", "mean_class")
    }
    assert chosen == {"top1": 10.0, "mean_class": 1e-3}  # never to guess class 1 is right in 90 %


def test_strict_holds_a_tenth_out_where_there_are_none():
    out = evaluate_transfer({"train": TRAIN, "test": TEST}, "top1", l2=VALUES, seed=3)
    stay, held = split_heldout(TRAIN.targets, seed=3)
    choice = fit_logistic(TRAIN.subset(stay), 4, VALUES)
    scores = {v: c.scores(TRAIN.subset(held))["top1"] for v, c in choice.items()}
    best = max(scores, key=lambda value: (scores[value], value))
    assert out["chosen"] == {"l2": best}
    assert out["top1"] == fit_logistic(TRAIN, 4, [best])[best].scores(TEST)["top1"]
    assert (out["num_train"], out["num_val"]) == (120, 12)
    assert out["split"] == "a tenth of the training images"


def test_strict_never_chooses_by_the_test_labels():
    honest = evaluate_transfer(PARTS, "top1", l2=VALUES)
    for seed in range(5):
        other = evaluate_transfer({**PARTS, "test": shuffled(TEST, seed)}, "top1", l2=VALUES)
        for key in ("chosen", "candidates", "heldout_top1"):
            assert other[key] == honest[key]
        assert other["top1"] < honest["top1"]


def test_of_equal_penalties_the_strongest_is_chosen():
    easy = {part: make_features(n, n, spread=0.01) for part, n in (("train", 80), ("val", 40))}
    parts = {**easy, "test": make_features(20, 5, spread=0.01)}
    out = evaluate_transfer(parts, "top1", l2=(1e-4, 1e-3, 1e-2))
    assert {c["top1"] for c in out["candidates"]} == {100.0}
    assert out["chosen"] == {"l2": 1e-2}


def test_paper_is_the_authors_probe_on_everything():
    parts = {**PARTS, "train": make_features(120, 0, views=2), "val": make_features(60, 1, views=2)}
    out = evaluate_transfer(parts, "mean_class", "paper", lr=0.5, seed=2, **FAST)
    whole = joined(parts["train"], parts["val"])
    probe = train_probe(whole, 4, [0.5], seed=2, **FAST)
    assert out["top1"] == pytest.approx(probe.accuracy(TEST)[0.5][0])
    scores = Classifier(probe.weights[0], probe.biases[0]).scores(TEST)
    assert out["mean_class"] == scores["mean_class"]
    assert out["chosen"] == {"lr": 0.5}
    assert (out["num_train"], out["num_val"], out["candidates"]) == (180, 0, [])


def test_classes_may_be_counted_from_one():
    moved = {part: Features(f.feats, 2 * f.targets + 1) for part, f in PARTS.items()}
    one, two = (evaluate_transfer(parts, "top1", l2=VALUES) for parts in (PARTS, moved))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_a_class_that_training_lacks():
    strange = Features(TEST.feats, TEST.targets + 1)
    with pytest.raises(ClspError, match="test images have class number 4"):
        evaluate_transfer({**PARTS, "test": strange}, "top1", l2=VALUES)
    same = Features(TRAIN.feats, torch.zeros_like(TRAIN.targets))
    with pytest.raises(ClspError, match="all of one class"):
        evaluate_transfer({"train": same, "test": same}, "top1")


def test_thirty_a_class_are_drawn_where_there_is_no_split():
    targets = torch.arange(3).repeat_interleave(torch.tensor([31, 40, 50]))
    train, test = split_per_class(targets, seed=1)
    assert targets[train].bincount().tolist() == [30, 30, 30]
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(len(targets)))
    assert torch.equal(train, split_per_class(targets, seed=1)[0])
    assert not torch.equal(train, split_per_class(targets, seed=2)[0])
    with pytest.raises(ClspError, match="Class number 0 has 31 images"):
        split_per_class(targets, 31)
    whole = make_features(160, 3)
    out = evaluate_transfer({"all": whole}, "mean_class", l2=VALUES)
    assert (out["num_train"], out["num_val"], out["num_test"]) == (120, 12, 40)


def test_unknown_protocol():
    with pytest.raises(ClspError, match="did you mean 'strict'"):
        evaluate_transfer(PARTS, "top1", "strikt")


def module_of(path):
    """A file of tests as a module, for what it writes."""
    file = Path(__file__).parent.parent / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path, monkeypatch, tiny):
    """A run, and every data set as small files; settings for both."""
    files = module_of("data/test_downstream.py")
    files.take_small_files(monkeypatch)
    for write in files.WRITE.values():
        write(tmp_path / "datasets")
    run = pretrain(tiny("simclr", "max_epochs=1")).run_dir
    return {
        "pretrained_feature_extractor": str(run),
        "data": {"path": str(tmp_path / "datasets")},
        "l2": [0.01, 1.0],
        "num_workers": 0,
    }


def test_every_data_set_from_its_files_to_the_table(place, capfd):
    without_stl10 = [name for name in DOWNSTREAM if name != "stl10"]  # its classes have one image
    results = transfer({**place, "datasets": without_stl10})
    assert [result["dataset"] for result in results] == without_stl10
    paper = {"protocol": "paper", "max_epochs": 2, "lr_decay_steps": [1]}
    results += transfer({**place, **paper, "datasets": without_stl10, "dataset": "stl10"})
    by_name = {(r["dataset"], r["protocol"]): r for r in results}
    assert by_name["pets", "strict"]["metric"] == "mean_class"
    assert by_name["pets", "strict"]["mean_class"] == 100.0  # two colours
    assert by_name["dtd", "strict"]["settings"]["partition"] == 1
    counts = {n: tuple(by_name[n, "strict"][f"num_{k}"] for k in ("train", "val", "test"))
              for n in without_stl10}  # fmt: skip
    assert counts == {
        "caltech101": (60, 6, 4), "cars": (8, 2, 8), "cifar10": (100, 10, 20),
        "cifar100": (200, 100, 100), "dtd": (12, 6, 6), "flowers": (12, 6, 6),
        "food101": (10, 2, 6), "pets": (12, 2, 6),
    }  # fmt: skip
    out, err = capfd.readouterr()
    assert "transfer of simclr to pets: mean per class 100.00 % (strict protocol, l2=" in out
    assert "[2/8] cars, train" in err
    records = find_records([place["pretrained_feature_extractor"]])
    assert len(records[0][1].evaluations) == 8 + 9
    table = make_table(records, layout="transfer")
    cells = {row.target: row.cells["transfer"].mean for row in table.rows}
    assert cells == {n: by_name[n, "strict"][by_name[n, "strict"]["metric"]] for n in without_stl10}
    assert "L2 penalty chosen on the customary validation images" in table.to_markdown()
    other = make_table(records, layout="transfer", protocol="paper").to_markdown()
    assert "the authors' linear probe" in other
    assert "digits → stl10" in other


def test_one_pass_a_data_set(place, monkeypatch):
    seen, plain = [], networks.extract_features

    def counted(backbone, images, **settings):
        seen.append((images.name, settings["flip"]))
        return plain(backbone, images, **settings)

    monkeypatch.setattr(networks, "extract_features", counted)
    transfer({**place, "dataset": "dtd"})
    assert seen == [("dtd/train/1", False), ("dtd/val/1", False), ("dtd/test/1", False)]
    transfer({**place, "dataset": "dtd", "l2": [0.1]})
    assert len(seen) == 3  # from the cache
    transfer({**place, "dataset": "dtd", "protocol": "paper", "max_epochs": 1, "flip": True})
    assert seen[3:] == [("dtd/train/1", True), ("dtd/val/1", True)]


def test_images_are_brought_to_the_size_of_the_pre_training(place, monkeypatch):
    sizes, plain = [], networks.extract_features

    def looked_at(backbone, images, **settings):
        seen = backbone.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[2:]))
        try:
            return plain(backbone, images, **settings)
        finally:
            seen.remove()

    monkeypatch.setattr(networks, "extract_features", looked_at)
    results = transfer({**place, "datasets": ["pets", "cifar10"]})
    assert set(sizes) == {(16, 16)}
    assert results[0]["settings"]["image_size"] == 16
    sizes.clear()
    data = {**place["data"], "image_size": 24}
    transfer({**place, "data": data, "datasets": ["pets", "cifar10"]})
    assert set(sizes) == {(24, 24)}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_in_a_sentence(place, workers):
    root = Path(place["data"]["path"])
    (file,) = root.glob("dtd/dtd/images/woven/woven_0001.jpg")
    file.write_bytes(b"no image")
    with pytest.raises(ClspError, match=r"woven_0001.jpg is not a readable image") as caught:
        transfer({**place, "dataset": "dtd", "num_workers": workers})
    assert "Traceback" not in str(caught.value)


def test_what_cannot_be_meant_is_refused_before_anything_is_computed(place, monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "extract_features", None)
    for given, message in (
        ({}, "No data set is named, and the paper has none for digits; give dataset=NAME"),
        ({"dataset": "flower"}, "did you mean 'flowers'"),
        ({"datasets": ["pets", "car"]}, "did you mean 'cars'"),
        ({"dataset": "pets", "data": {"dataset": "pets"}}, "name what to transfer to as dataset="),
        ({"dataset": "pets", "protocol": "papr"}, "did you mean 'paper'"),
        ({"dataset": "cars", "data": {"path": str(tmp_path / "no")}}, "no .* stanford_cars"),
    ):
        with pytest.raises(ClspError, match=message):
            transfer({**place, **given})
    assert find_records([place["pretrained_feature_extractor"]])[0][1].evaluations == []


def test_by_default_the_data_sets_of_the_paper(place, monkeypatch, tmp_path):
    backbones = module_of("evaluation/test_backbone.py")
    torch.save(backbones.authors_model("resnet18", "small").state_dict(), tmp_path / "clsp.pt")
    authors = {**place, "pretrained_feature_extractor": str(tmp_path / "clsp.pt")}
    authors["data"] = {**place["data"], "dataset": "cifar100", "image_size": 8}
    (result,) = transfer(authors)
    assert result["dataset"] == "cifar10"
    ((_, record),) = find_records([tmp_path / "clsp.record.json"])
    assert (record.dataset, record.num_train) == ("cifar100", None)
    # what says how many there were fills it in
    root = place["data"]["path"]
    data = {"dataset": "cifar100", "train_path": root, "val_path": root, "image_size": 8}
    knn({"pretrained_feature_extractor": str(tmp_path / "clsp.pt"), "data": data, "k": [1]})
    ((_, record),) = find_records([tmp_path / "clsp.record.json"])
    assert record.num_train == 200
    assert {e["task"] for e in record.evaluations} == {"transfer", "knn"}
    assert (tmp_path / "clsp.features").is_dir()


def test_the_paper_s_data_sets_are_those_of_its_tables():
    for dataset, targets in PAPER_TARGETS.items():
        known = [n for n in DOWNSTREAM if published_transfer("clsp_simclr", dataset, n)]
        assert sorted(targets) == known
