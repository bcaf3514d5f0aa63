"""The page on other packages' training loops: its blocks run with those packages."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from lightly.loss import NTXentLoss
from PIL import Image
from torchvision.datasets import ImageFolder

import clsp_plugin as clsp
from clsp_plugin.data.objects import as_images
from clsp_plugin.losses.nt_xent import nt_xent_loss

PAGE = Path(__file__).parents[2] / "docs/loops.md"


@pytest.fixture
def place(tmp_path, monkeypatch, digits48, write_store):
    """Class folders and their candidates, where the page has them."""
    monkeypatch.chdir(tmp_path)
    for i in range(16):
        folder = tmp_path / "my/train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits48.images[i].numpy()).save(folder / f"{i:02}.png")
    write_store(tmp_path / "candidates/mine", as_images(ImageFolder("my/train")))
    return tmp_path


def run_block(package):
    """Run the page's block for a package on small batches; return its names."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if package in block)
    for large, small in (("batch_size=256", "batch_size=8"), ("200", "1")):
        assert large in code
        code = code.replace(large, small)
    code = code.replace('accelerator="auto"', 'accelerator="cpu"')
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.fixture
def aligned(monkeypatch):
    """The distances that a loop adds to its loss, with their gradients kept."""
    seen: list = []
    inner = clsp.alignment_loss

    def alignment_loss(x, y):
        assert x.requires_grad
        assert y.requires_grad
        assert not torch.equal(x, y)
        seen.append(inner(x, y))
        seen[-1].retain_grad()
        return seen[-1]

    monkeypatch.setattr(clsp, "alignment_loss", alignment_loss, raising=False)
    return seen


def test_lightly(place, aligned):
    names = run_block("lightly")
    assert len(aligned) == 2  # 16 images in batches of 8
    assert all(distance.grad == 1 for distance in aligned)  # a part of the loss, with its weight
    assert names["loss"].isfinite()
    assert names["synthetic"].shape == names["view1"].shape == (8, 3, 32, 32)


def test_lightly_s_loss_is_ours():
    z1, z2 = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    ours = nt_xent_loss(torch.cat([z1, z2]), torch.arange(8).repeat(2), 0.2)
    torch.testing.assert_close(NTXentLoss(temperature=0.2)(z1, z2), ours)


@pytest.mark.skipif(
    importlib.util.find_spec("stable_pretraining") is None,
    reason="stable-pretraining adds callbacks to every Trainer of an environment; to test with "
    "it: pip install stable-pretraining, in an environment of its own",
)
def test_stable_pretraining(place, aligned):
    names = run_block("stable_pretraining")
    assert len(aligned) == 2
    assert all(distance.grad == 1 for distance in aligned)
    assert names["trainer"].global_step == 2
