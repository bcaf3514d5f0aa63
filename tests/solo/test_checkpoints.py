"""Checkpoints cross in both directions, and the numbers agree."""

import json
import pickle
import re
import shlex
import sys

import pytest
import torch
from omegaconf import OmegaConf
from solo_run import CPU, PAGE, SHORT, states

from clsp_plugin.data.images import channel_statistics, load_images
from clsp_plugin.records.backbone import load_backbone


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


def solo_cifar(here, cifar10, tmp_path, method="simclr"):
    """Pre-train in solo-learn on CIFAR-10's format; the run's folder."""
    here(
        "main_pretrain.py", "--config-path", "scripts/pretrain/cifar", "--config-name",
        f"{method}.yaml", f"data.train_path={cifar10}", f"data.val_path={cifar10}",
        f"checkpoint.dir={tmp_path}/trained", *CPU, *SHORT,
    )  # fmt: skip
    (args,) = (tmp_path / "trained" / method).glob("*/args.json")
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


# main_knn.py shuffles the training images and drops the last batch if it is not full: with 16 a
# batch it leaves 8 of 200 images out, other ones in every run, and its accuracy varies.
WHOLE = ("--batch_size", "20")


def their_knn(here, folder, cifar10, k):
    out = here(
        "main_knn.py", "--dataset", "cifar10", "--train_data_path", cifar10,
        "--val_data_path", cifar10, "--pretrained_checkpoint_dir", folder, "--k", k,
        "--temperature", "0.07", "--distance_function", "cosine", "--feature_type", "backbone",
        "--num_workers", "0", *WHOLE,
    )  # fmt: skip
    return knn_of(out.stdout)


def the_page_s_knn(here, folder, cifar10):
    """The command on the page, for methods of ours; its k and the accuracy."""
    command = "python -m clsp_plugin.solo main_knn.py"
    (line,) = (line for line in PAGE.splitlines() if line.startswith(command))
    words = [
        str({"datasets": cifar10, "trained_models/clsp_simclr/ID": folder}.get(word, word))
        for word in shlex.split(line)
    ]
    assert words[:3] == ["python", "-m", "clsp_plugin.solo"]
    out = here(*words[2:], "--num_workers", "0", *WHOLE)
    return int(words[words.index("--k") + 1]), knn_of(out.stdout)


# What main_knn.py and main_linear.py divide CIFAR-10 by. In pre-training solo-learn divides by
# 0.2470, 0.2435 and 0.2616, as we do; the difference turns one image in 150 around.
THEIR_STD = [0.247, 0.243, 0.261]


def our_knn(here, folder, k):
    here("clsp_plugin.cli", "knn", f"pretrained_feature_extractor={folder}", "protocol=paper",
         f"k=[{k}]", f"data.std={THEIR_STD}")  # fmt: skip
    (evaluation,) = json.loads((folder / "record.json").read_text())["evaluations"]
    return evaluation["top1"], evaluation["num_test"]


def leave_ties_out(folder, cifar10, k, temperature=0.07, tie=1e-5):
    """Keep the test images whose k-th neighbour and whose vote are no near tie; how many.

    The two networks' similarities agree to 1e-6, by the order in which they add, so an image that
    hangs on less has no right answer.
    """
    backbone = load_backbone(folder)[0].eval()
    bank, queries = (
        torch.nn.functional.normalize(features(backbone, folder, cifar10, split, THEIR_STD))
        for split in ("train", "val")
    )
    targets = load_images(data_of(folder, cifar10), "train").targets
    similar, index = (queries @ bank.T).topk(k + 1, dim=1)
    votes = torch.zeros(len(queries), 10).scatter_add_(
        1, targets[index[:, :k]], (similar[:, :k] / temperature).exp()
    )
    best = votes.topk(2, dim=1).values.log() * temperature
    clear = ((similar[:, k - 1] - similar[:, k]) > tie) & ((best[:, 0] - best[:, 1]) > tie)
    file = cifar10 / "cifar-10-batches-py/test_batch"
    content = pickle.loads(file.read_bytes())
    labels = [label for label, keep in zip(content["labels"], clear, strict=True) if keep]
    file.write_bytes(pickle.dumps({"data": content["data"][clear.numpy()], "labels": labels}))
    return len(labels)


def needs_old_torchmetrics():
    import torchmetrics

    if tuple(int(part) for part in torchmetrics.__version__.split(".")[:2]) >= (0, 12):
        pytest.skip("solo-learn's kNN needs torchmetrics below 0.12")


def data_of(folder, cifar10):
    data = json.loads((folder / "args.json").read_text())["data"]
    return {**data, "train_path": str(cifar10), "val_path": str(cifar10)}


def features(model, folder, cifar10, split="val", std=None):
    args = json.loads((folder / "args.json").read_text())
    array = load_images(data_of(folder, cifar10), split)
    mean, own = channel_statistics(args["data"], args.get("augmentations"))
    x = array.images.permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std or own)[:, None, None]
    with torch.no_grad():
        return model(x)


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


@pytest.mark.usefixtures("torchvision_takes_small_files")
def test_knn_agrees(here, cifar10, tmp_path):
    needs_old_torchmetrics()
    folder = solo_cifar(here, cifar10, tmp_path)
    left = leave_ties_out(folder, cifar10, k=5)
    assert left >= 30
    theirs = their_knn(here, folder, cifar10, k=5)
    assert our_knn(here, folder, k=5) == (pytest.approx(theirs, abs=1e-3), left)


@pytest.mark.usefixtures("torchvision_takes_small_files")
def test_knn_agrees_on_synthetic_positives(here, cifar10, tmp_path, write_store):
    """``main_knn.py`` is no Hydra application: our registry comes with ``-m clsp_plugin.solo``."""
    needs_old_torchmetrics()
    keys = {"dataset": "cifar10", "train_path": str(cifar10), "val_path": None, "fraction": -1}
    store = write_store(tmp_path / "store", load_images(keys, "train"))
    folder = ours(here, cifar10, tmp_path, "clsp_simclr", f"synthetic.path={store}")
    left = leave_ties_out(folder, cifar10, k=20)
    assert left >= 30
    k, theirs = the_page_s_knn(here, folder, cifar10)
    assert k == 20
    assert our_knn(here, folder, k=20) == (pytest.approx(theirs, abs=1e-3), left)


@pytest.mark.usefixtures("torchvision_takes_small_files")
def test_a_checkpoint_with_solo_learn_s_functions_in_it(here, cifar10, tmp_path):
    """SimSiam's static rate is in its checkpoint; it is read where solo-learn is not."""
    folder = solo_cifar(here, cifar10, tmp_path, "simsiam")
    (checkpoint,) = folder.glob("*.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Unsupported"):
        torch.load(checkpoint, weights_only=True)
    here("clsp_plugin.cli", "knn", f"pretrained_feature_extractor={folder}", "k=[5]", cwd=tmp_path)
    out = here("clsp_plugin.cli", "finetune", f"pretrained_feature_extractor={folder}",
               "max_epochs=1", "optimizer.batch_size=16", cwd=tmp_path)  # fmt: skip
    assert "fine-tuning of simsiam on cifar10: top-1" in out.stdout
    tasks = [e["task"] for e in json.loads((folder / "record.json").read_text())["evaluations"]]
    assert tasks == ["knn", "finetune"]
