"""Checkpoints of the authors' scripts: their network from its weights, or a clear refusal."""

import importlib
import os
import sys

import pytest
import torch
import torchvision
from torch import nn

from clsp_plugin.errors import ClspError
from clsp_plugin.records.backbone import load_backbone
from clsp_plugin.records.checkpoint import epoch_of
from clsp_plugin.records.record import record_path

CIFAR = {"dataset": "cifar10"}


def authors_model(name, size):
    """A network as the authors build it: torchvision's, with a projector for its last layer."""
    model = getattr(torchvision.models, name)()
    model.fc = nn.Sequential(nn.Linear(model.fc.in_features, 32), nn.ReLU(), nn.Linear(32, 8))
    if size != "big":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    if size == "small":
        model.maxpool = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("name", "size", "dataset"),
    [("resnet18", "small", "cifar10"), ("resnet50", "small", "cifar100"),
     ("resnet18", "mid", "custom"), ("resnet18", "big", "custom")],
)  # fmt: skip
def test_authors_network_gives_the_same_features(tmp_path, name, size, dataset):
    torch.manual_seed(0)
    model = authors_model(name, size)
    file = tmp_path / "simclr_clsp.pt"
    torch.save(model.state_dict(), file)
    backbone, args, checkpoint = load_backbone(file, {"dataset": dataset})
    model.fc = nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval()(images), model.eval()(images))
    assert args["method"] == "simclr_clsp"
    assert checkpoint == file
    assert record_path(file) == tmp_path / "simclr_clsp.record.json"  # several share a folder
    assert "mean" in args["data"] or dataset != "cifar10"


def test_the_authors_own_networks(tmp_path, monkeypatch):
    """With CLSP_DIR, a clone of their code: what its ``train_*.py`` make and save."""
    folder = os.environ.get("CLSP_DIR")
    if not folder:
        pytest.skip("CLSP_DIR does not name a clone of the authors' code")
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    try:
        theirs = importlib.import_module("utils.utils")
        for name, size, dataset in [
            ("resnet18", "small", "cifar10"), ("resnet50", "small", "cifar100"),
            ("resnet18", "mid", "stl10"), ("resnet101", "big", "custom"),
        ]:  # fmt: skip
            model = theirs.get_resnet(name, size, "mlp", feat_dim=8, hidden_dim=32)
            model.train()(torch.randn(4, 3, 32, 32))  # its batch norms have counted
            torch.save(nn.DataParallel(model).module.state_dict(), tmp_path / "ckpt_999.pt")
            backbone, _, _ = load_backbone(tmp_path / "ckpt_999.pt", {"dataset": dataset})
            model.fc = nn.Identity()
            images = torch.randn(2, 3, 64, 64)
            with torch.no_grad():
                torch.testing.assert_close(backbone.eval()(images), model.eval()(images))
    finally:  # their packages have names that others may have too
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("utils", "models"):
                del sys.modules[name]


def test_what_the_weights_do_not_say_has_to_be_given(tmp_path):
    torch.save(authors_model("resnet18", "small").state_dict(), tmp_path / "a.pt")
    with pytest.raises(ClspError, match=r"say which images .* data\.dataset="):
        load_backbone(tmp_path / "a.pt", {})


def test_networks_that_are_none_of_theirs_are_refused(tmp_path):
    state = authors_model("resnet18", "small").state_dict()
    odd = {key: value for key, value in state.items() if not key.startswith("layer3.1")}
    torch.save(odd, tmp_path / "odd.pt")
    with pytest.raises(ClspError, match="1 blocks in its third layer"):
        load_backbone(tmp_path / "odd.pt", CIFAR)
    del state["layer2.0.bn1.weight"]
    torch.save(state, tmp_path / "holed.pt")
    with pytest.raises(ClspError, match=r"1 missing \(layer2\.0\.bn1\.weight\)"):
        load_backbone(tmp_path / "holed.pt", CIFAR)
    torch.save({"weights": 1}, tmp_path / "else.pt")
    with pytest.raises(ClspError, match="no state_dict in it"):
        load_backbone(tmp_path / "else.pt", CIFAR)


def test_the_epoch_is_read_from_both_kinds_of_names(tmp_path):
    assert epoch_of(tmp_path / "simclr-cifar10-offline-a1-ep=99.ckpt") == 99
    assert epoch_of(tmp_path / "ckpt_999.pt") == 999
    assert epoch_of(tmp_path / "moco_clsp_cifar10.pt") == -1
