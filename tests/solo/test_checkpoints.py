"""Checkpoints cross in both directions, and the numbers agree."""

import json
import re
import sys

import pytest
import torch
from omegaconf import OmegaConf
from solo_run import CPU, SHORT, states

from clsp_plugin.data.images import channel_statistics, load_images
from clsp_plugin.evaluation.backbone import load_backbone

# main_knn.py always calls .cuda(), and torchvision compares files with the real CIFAR-10's
_HERE = """
import runpy, sys, torch, torchvision
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
torchvision.datasets.CIFAR10._check_integrity = lambda self: True
torchvision.datasets.cifar.check_integrity = lambda *args: True
module, sys.argv = sys.argv[1], sys.argv[1:]
if module.endswith(".py"):
    runpy.run_path(module, run_name="__main__")
else:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def here(run):
    """``here(what, *args)``: a script or a module with small files and without a GPU."""
    return lambda *args, **kwargs: run("-c", _HERE, *args, **kwargs)


@pytest.fixture
def host_methods(clone, monkeypatch):
    monkeypatch.syspath_prepend(str(clone))
    monkeypatch.setitem(sys.modules, "wandb", None)
    return pytest.importorskip("solo.methods", exc_type=ImportError).METHODS


def host_model(methods, folder):
    """solo-learn's model with a run's weights."""
    cfg = OmegaConf.create(json.loads((folder / "args.json").read_text()))
    (checkpoint,) = folder.glob("*.ckpt")
    model = methods["simclr"](cfg)
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    own = model.state_dict()
    model.load_state_dict({key: value for key, value in state.items() if key in own})
    return model.eval()


def solo_cifar(here, cifar10, tmp_path, *overrides):
    """Pre-train in solo-learn on CIFAR-10's format; the run's folder."""
    here(
        "main_pretrain.py", "--config-path", "scripts/pretrain/cifar", "--config-name",
        "simclr.yaml", f"data.train_path={cifar10}", f"data.val_path={cifar10}",
        f"checkpoint.dir={tmp_path}/trained", *CPU, *SHORT, *overrides,
    )  # fmt: skip
    (args,) = (tmp_path / "trained/simclr").glob("*/args.json")
    return args.parent


def ours(here, cifar10, tmp_path, method="simclr", *overrides):
    """Pre-train on the engine, with solo-learn's stem; the run's folder."""
    here(
        "clsp_plugin.cli", "pretrain", "--config-name", f"cifar/{method}", "backbone.stem=null",
        f"data.train_path={cifar10}", f"data.val_path={cifar10}",
        "method_kwargs.proj_hidden_dim=32", f"checkpoint.dir={tmp_path}/ours", "max_epochs=1",
        "optimizer.batch_size=16", "accelerator=cpu", "devices=1", "precision=32-true", *overrides,
    )  # fmt: skip
    (args,) = (tmp_path / "ours" / method).glob("*/args.json")
    return args.parent


def knn_of(text):
    (found,) = re.findall(r"acc@1=([\d.]+)", text)
    return float(found)


def their_knn(here, folder, cifar10, *module):
    out = here(
        *module, "main_knn.py", "--dataset", "cifar10", "--train_data_path", cifar10,
        "--val_data_path", cifar10, "--pretrained_checkpoint_dir", folder, "--k", "5",
        "--temperature", "0.07", "--distance_function", "cosine", "--feature_type", "backbone",
        "--num_workers", "0",
    )  # fmt: skip
    return knn_of(out.stdout)


def our_knn(here, folder):
    here("clsp_plugin.cli", "knn", f"pretrained_feature_extractor={folder}", "protocol=paper",
         "k=[5]")  # fmt: skip
    (evaluation,) = json.loads((folder / "record.json").read_text())["evaluations"]
    return evaluation["top1"]


def needs_old_torchmetrics():
    import torchmetrics

    if tuple(int(part) for part in torchmetrics.__version__.split(".")[:2]) >= (0, 12):
        pytest.skip("solo-learn's kNN needs torchmetrics below 0.12")


def features(model, folder, cifar10):
    args = json.loads((folder / "args.json").read_text())
    array = load_images({**args["data"], "train_path": str(cifar10)}, "val")
    mean, std = channel_statistics(args["data"], args.get("augmentations"))
    x = array.images.permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        return model(x)


@pytest.fixture
def torchvision_takes_small_files(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)


@pytest.mark.usefixtures("torchvision_takes_small_files")
def test_theirs_here(here, cifar10, tmp_path, host_methods):
    folder = solo_cifar(here, cifar10, tmp_path)
    backbone, _, _ = load_backbone(folder)
    theirs = features(lambda x: host_model(host_methods, folder)(x)["feats"], folder, cifar10)
    mine = features(backbone.eval(), folder, cifar10)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    here("clsp_plugin.cli", "linear", f"pretrained_feature_extractor={folder}", "max_epochs=1")
    assert json.loads((folder / "record.json").read_text())["method"] == "simclr"


@pytest.mark.usefixtures("torchvision_takes_small_files")
def test_ours_there(here, run, cifar10, tmp_path, host_methods, images):
    folder = ours(here, cifar10, tmp_path)
    backbone, _, checkpoint = load_backbone(folder)
    theirs = features(lambda x: host_model(host_methods, folder)(x)["feats"], folder, cifar10)
    mine = features(backbone.eval(), folder, cifar10)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    here(
        "main_linear.py", "--config-path", "scripts/linear/imagenet-100", "--config-name",
        "simclr.yaml", f"pretrained_feature_extractor='{checkpoint}'", "data.dataset=cifar10",
        f"data.train_path={cifar10}", f"data.val_path={cifar10}", "data.format=image_folder",
        f"checkpoint.dir={tmp_path}/trained", *CPU, *SHORT,
    )  # fmt: skip
    probe = states(tmp_path, "linear")
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, probe[f"backbone.{key}"]), key


def test_knn_agrees(here, cifar10, tmp_path, write_store, monkeypatch):
    needs_old_torchmetrics()
    folder = solo_cifar(here, cifar10, tmp_path)
    assert our_knn(here, folder) == pytest.approx(their_knn(here, folder, cifar10), abs=1e-3)


@pytest.mark.usefixtures("torchvision_takes_small_files")
def test_knn_agrees_on_synthetic_positives(here, cifar10, tmp_path, write_store):
    """``main_knn.py`` is no Hydra application: our registry comes with ``-m clsp_plugin.solo``."""
    needs_old_torchmetrics()
    keys = {"dataset": "cifar10", "train_path": str(cifar10), "val_path": None, "fraction": -1}
    store = write_store(tmp_path / "store", load_images(keys, "train"))
    folder = ours(here, cifar10, tmp_path, "clsp_simclr", f"synthetic.path={store}")
    theirs = their_knn(here, folder, cifar10, "clsp_plugin.solo")
    assert our_knn(here, folder) == pytest.approx(theirs, abs=1e-3)
