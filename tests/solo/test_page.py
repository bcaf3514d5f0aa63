"""The page on solo-learn: its commands and its snippet run."""

import re
import shlex
import sys

import pytest
import torch
import torchvision
from PIL import Image
from solo_run import CPU, PAGE, SHORT
from torch.utils.data import DataLoader, Dataset

from clsp_plugin import cli


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


class Indexed(Dataset):
    def __init__(self, array, transform):
        self.array, self.transform = array, transform

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        image = Image.fromarray(self.array.images[index].numpy())
        return index, image if self.transform is None else self.transform(image), 0


def test_the_loop(array, candidates, tmp_path, monkeypatch):
    (snippet,) = blocks("python")
    (tmp_path / "work/candidates").mkdir(parents=True)
    candidates.rename(tmp_path / "work/candidates/cifar10")
    monkeypatch.chdir(tmp_path / "work")
    dataset = Indexed(array, lambda image: [torch.zeros(3, 32, 32)] * 2)
    names = {"loader": DataLoader(dataset, batch_size=8), "epochs": 2, "mean": [0.5] * 3,
             "std": [0.25] * 3}  # fmt: skip
    exec(snippet, names)
    assert names["synthetic"].shape == (8, 3, 32, 32)


def test_the_commands(run, images, candidates, tmp_path):
    lines = [line for block in blocks("bash") for line in block.strip().splitlines()]
    pretraining = [line for line in lines if "main_pretrain.py" in line]
    assert len(pretraining) == 2
    small = [
        "data.dataset=custom", f"data.train_path={images}/train", f"data.val_path={images}/val",
        f"checkpoint.dir={tmp_path}/trained_models", "method_kwargs.proj_hidden_dim=32",
        *CPU, *SHORT,
    ]  # fmt: skip
    for line in pretraining:
        words = shlex.split(line)[1:]
        words = [word.replace("candidates/cifar10", str(candidates)) for word in words]
        run(*words, *small, f"++synthetic.path={candidates}")
    evaluations = [line for line in lines if "=trained_models/clsp_simclr" in line]
    assert len(evaluations) == 3
    for line in evaluations:
        words = shlex.split(line)[1:]
        extra = ["max_epochs=1"] if words[0] == "linear" else []
        extra += ["optimizer.batch_size=16"] if "finetune=True" in words else []
        out = run("-m", "clsp_plugin.cli", *words, *extra, cwd=tmp_path)
        assert "of clsp_simclr on custom: top-1" in out.stdout
    assert "clsp doctor" in lines
    assert any("clsp_plugin.solo main_knn.py" in line for line in lines)  # run beside this file


@pytest.mark.usefixtures("torchvision_takes_small_files")
def test_an_authors_checkpoint(cifar10, tmp_path, monkeypatch, capfd):
    (line,) = (line for block in blocks("bash") for line in block.splitlines() if ".pt " in line)
    model = torchvision.models.resnet18()
    model.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    torch.save(model.state_dict(), tmp_path / "simclr_clsp_cifar10.pt")
    monkeypatch.chdir(tmp_path)  # where the small files are, in datasets/
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    cli.main()
    assert "kNN of simclr_clsp_cifar10 on cifar10: top-1" in capfd.readouterr().out


def test_every_method_is_on_the_page(clone, monkeypatch):
    monkeypatch.syspath_prepend(str(clone))
    monkeypatch.setitem(sys.modules, "wandb", None)
    methods = pytest.importorskip("solo.methods", exc_type=ImportError).METHODS
    listed = PAGE.split("itself): ")[1].split(". MAE")[0].replace("(also `clsp_mocov2`)", "")
    listed = set(re.split(r"[,\s]+", listed))
    # without ours: Hydra may have started in this process, and brought them
    theirs = {m for m in methods if not (m.startswith("clsp_") or m.endswith("_aug"))}
    assert listed == theirs - {"base", "linear", "mae"}
