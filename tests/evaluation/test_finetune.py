"""Fine-tuning: it learns, chooses nothing, continues, and refuses what it cannot run."""

import json
from functools import partialmethod

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from clsp_plugin.config.compose import compose
from clsp_plugin.config.training import parse_cfg
from clsp_plugin.data.images import load_images
from clsp_plugin.engine.progress import History
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.verbs import finetune, linear
from clsp_plugin.methods import METHODS
from clsp_plugin.records.backbone import load_backbone
from clsp_plugin.records.checkpoint import load_args
from clsp_plugin.records.record import Record, find_records
from clsp_plugin.system import compiling
from clsp_plugin.tables.make import make_table

SHORT = ("optimizer.batch_size=16", "max_epochs=2", "accelerator=cpu")


@pytest.fixture
def run(tiny, tmp_path):
    """What a pre-training leaves, but for the training."""
    cfg = parse_cfg(tiny("simclr"), METHODS)
    cfg.data.num_classes = 10
    folder = tmp_path / "trained/simclr/a"
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(OmegaConf.to_container(cfg)))
    torch.manual_seed(0)
    torch.save({"state_dict": METHODS["simclr"](cfg).state_dict()}, folder / "a-ep=1.ckpt")
    return folder


@pytest.fixture
def tune(run, tmp_path, monkeypatch):
    """``tune(*overrides)``: ``clsp finetune`` on the run."""
    monkeypatch.chdir(tmp_path)

    def start(*overrides, verb=finetune):
        extra = [f"pretrained_feature_extractor={run}", *SHORT, *overrides]
        cfg = compose("finetune", "finetune", extra)
        OmegaConf.set_struct(cfg, False)
        return verb(cfg)

    return start


def evaluations(run):
    return Record.load(run / "record.json").evaluations


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_learns_and_leaves_a_checkpoint(run, tune, capsys):
    before, _, _ = load_backbone(run)
    result = tune("augmentations=[{crop_size: 16}]", "optimizer.lr=1.0", "max_epochs=25")
    assert (result["task"], result["protocol"], result["chosen"]) == ("finetune", "strict", {})
    assert (result["num_train"], result["num_test"], result["epoch"]) == (48, 20, 2)
    assert result["curve"][0]["train_acc1"] < 30
    assert result["curve"][-1]["train_acc1"] > 70  # without augmentation it learns them by heart
    (found,) = evaluations(run)
    assert found.pop("numerics")["finetune"] == 1
    assert found == json.loads(json.dumps(result))
    assert "fine-tuning of simclr on digits: top-1" in capsys.readouterr().out
    # the accuracy is that of the checkpoint that it leaves, which is one like any other
    state = weights(result["checkpoint"])
    backbone, args, _ = load_backbone(result["checkpoint"])
    assert not torch.equal(state["backbone.conv1.weight"], before.state_dict()["conv1.weight"])
    test = load_images(args["data"], "val")
    x = (test.images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        logits = backbone.eval()(x) @ state["classifier.weight"].T + state["classifier.bias"]
    hits = (logits.argmax(1) == test.targets).float().mean()
    assert result["top1"] == pytest.approx(100 * float(hits))


def test_it_has_a_table(run, tune):
    result = tune()
    table = make_table(find_records([run]), layout="finetune", published=True).to_markdown()
    assert "fine-tuned" in table
    assert f"{result['top1']:.1f}" in table


def test_solo_learn_s_key_says_the_same(run, tune):
    result = tune(verb=linear)
    assert result["task"] == "finetune"
    assert tune()["top1"] == result["top1"]  # complete: nothing is trained again


def test_the_test_images_change_nothing(tune):
    first = weights(tune()["checkpoint"])
    other = tune("data.num_val=30")  # another configuration, so it is trained anew
    assert same(first, weights(other["checkpoint"]))
    assert not same(first, weights(tune("seed=6")["checkpoint"]))


class _Stopped(Exception):
    pass


def test_a_stopped_one_continues(tune, monkeypatch, capsys):
    whole = tune("auto_resume.enabled=False", "checkpoint.dir=whole", "max_epochs=3")
    plain = History.on_train_epoch_start

    def dying(self, trainer, module):
        if trainer.current_epoch == 2:
            raise _Stopped
        plain(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", dying)
        with pytest.raises(_Stopped):
            tune("max_epochs=3", "checkpoint.frequency=1")
    again = tune("max_epochs=3", "checkpoint.frequency=1")
    assert "Continuing from" in capsys.readouterr().out
    assert [row["epoch"] for row in again["curve"]] == [1, 2, 3]
    assert same(weights(whole["checkpoint"]), weights(again["checkpoint"]))
    assert again["top1"] == whole["top1"]


def test_more_epochs_with_a_schedule_of_their_own(tune, tmp_path):
    first = tune()
    before = (tmp_path / first["checkpoint"]).read_bytes()
    again = tune("max_epochs=4", f"resume_from_checkpoint={first['checkpoint']}")
    assert (tmp_path / first["checkpoint"]).read_bytes() == before
    assert again["checkpoint"] != first["checkpoint"]
    assert [row["epoch"] for row in again["curve"]] == [1, 2, 3, 4]
    assert not same(weights(first["checkpoint"]), weights(again["checkpoint"]))
    (schedule,) = torch.load(again["checkpoint"], weights_only=True)["lr_schedulers"]
    assert (schedule["last_epoch"], schedule["total"]) == (12, 12)


def test_a_network_that_was_trained_on_is_another_start(run, tune, capsys):
    first = tune()
    path = run / "a-ep=1.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["backbone.conv1.weight"] += 1
    torch.save(content, path)
    assert tune()["checkpoint"] != first["checkpoint"]
    assert "is of other weights to start from" in capsys.readouterr().out


def test_what_is_trained_with(run, tune):
    result = tune("optimizer.lr=0.16", "label_smoothing=0.1")
    settings = result["settings"]
    assert settings["optimizer"]["lr"] == pytest.approx(0.16 * 16 / 256)
    (block,) = settings["augmentations"]
    own = load_args(run)["augmentations"][0]
    assert block["rrc"] == own["rrc"]
    assert block["crop_size"] == own["crop_size"]
    assert "color_jitter" not in block


def test_its_network_is_compiled(tune, monkeypatch):
    """For the steps alone: the test images would need a graph for each size of a batch."""
    sizes = []

    def backend(graph, inputs):
        sizes.append([len(one) for one in inputs if one.shape[1:] == (3, 16, 16)])
        return graph.forward

    plain = tune()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    monkeypatch.setattr(compiling, "can_compile", lambda device: True)
    compiled = tune("auto_resume.enabled=False", "performance.compile_network=True")
    assert sizes == [[16]]
    assert compiled["curve"][0]["train_loss"] == pytest.approx(plain["curve"][0]["train_loss"])
    assert weights(compiled["checkpoint"]).keys() == weights(plain["checkpoint"]).keys()


REFUSED = {
    "probe": (["lr=1.0"], "lr is not a setting"),
    "typo": (["optimizer.lrr=1"], "did you mean 'lr'"),
    "two views": (["augmentations=[{crop_size: 16, num_crops: 2}]"], "trains on one view"),
    "smoothing": (["label_smoothing=1"], "below 1"),
    "rate": (["optimizer.lr=-1"], "must be at least 0"),
    "optimiser": (["optimizer.name=sdg"], "did you mean 'sgd'"),
    "few": (["optimizer.batch_size=64"], "48 training images do not fill one batch"),
    "frozen": (["finetune=False"], "`clsp linear`"),
    "huge rate": (["optimizer.lr=1e12"], "optimizer.lr=1000000000000.0 must be at least 0"),
    "diverged": (
        ["optimizer.lr=10000", "optimizer.scale_lr=False", "max_epochs=3"],
        "not finite in epoch .* give a smaller optimizer.lr",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_a_sentence(run, tune, name):
    overrides, message = REFUSED[name]
    with pytest.raises(ClspError, match=message):
        tune(*overrides)
    assert not (run / "record.json").exists()


def test_images_without_labels(run, tune, monkeypatch):
    from clsp_plugin.data import splits as module

    plain = module.open_images

    def unlabelled(data, split):
        array = plain(data, split)
        return type(array)(array.images, array.targets * 0 - 1, array.classes, array.name)

    monkeypatch.setattr(module, "open_images", unlabelled)
    with pytest.raises(ClspError, match="have no labels"):
        tune()
