"""Exported backbones, read back by the libraries that they are for."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torchvision.transforms import Compose
from transformers import AutoModel

import clsp_plugin as clsp
from clsp_plugin import cli
from clsp_plugin.errors import ClspError
from clsp_plugin.export.backbone import export_backbone

ROOT = Path(__file__).parents[2]
NARROW = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
SMALL = {"kernel_size": 3, "stride": 1, "padding": 2, "max_pool": False}
NETWORKS = {
    "plain": {},
    "narrow": {"backbone.kwargs": NARROW},
    "small stem": {"backbone.stem": SMALL},
    "narrow, small stem": {"backbone.kwargs": NARROW, "backbone.stem": SMALL},
    "vit": {
        "backbone.name": "vit_tiny",
        "backbone.kwargs": {"depth": 1, "patch_size": 8, "img_size": 16},
    },
}
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
ITEMS = [(image, n % 2) for n, image in enumerate(PIXELS)]


def trained(folder, network, monkeypatch, **settings):
    """A run of a network on a few random images, in a folder of its own."""
    monkeypatch.chdir(folder)
    given = {
        **NETWORKS[network], "max_epochs": 1, "optimizer.batch_size": 8, "accelerator": "cpu",
        "augmentations.0.crop_size": 16, "performance.disable_channel_last": True,
        "precision": "32-true", "devices": 1, "sync_batchnorm": False, "name": "exported",
        **settings,
    }  # fmt: skip
    return clsp.pretrain("custom/simclr", given, data=ITEMS)


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def features(module, images):
    with torch.no_grad():
        return module(images)


@pytest.mark.parametrize("network", ["plain", "narrow", "narrow, small stem", "vit"])
def test_timm_transformers_and_onnxruntime_read_it(network, tmp_path, monkeypatch, images):
    run = trained(tmp_path, network, monkeypatch)
    expected = features(clsp.load_backbone(run), images)
    folder = export_backbone(run.folder, "timm")
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # others may read all
    there = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    torch.testing.assert_close(features(there, images), expected, atol=1e-5, rtol=0)
    hub = AutoModel.from_pretrained(str(folder)).eval()
    pooled = features(hub, images).pooler_output.flatten(1)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    export_backbone(run.folder, "onnx", "onnx")
    session = onnxruntime.InferenceSession("onnx/model.onnx")
    for some in (images, images[:1]):
        (found,) = session.run(None, {"images": some.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected[: len(some)],
                                   atol=1e-5, rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("network", ["plain", "small stem"])
def test_the_card_s_lines_rebuild_it_in_torchvision(network, tmp_path, monkeypatch, images):
    run = trained(tmp_path, network, monkeypatch)
    folder = export_backbone(run.folder, "made", "torchvision")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code.replace("DIR", str(folder)), names)
    expected = features(clsp.load_backbone(run), images)
    torch.testing.assert_close(features(names["backbone"], images), expected, atol=1e-5, rtol=0)


def test_evaluated_elsewhere_it_is_as_good(tmp_path, monkeypatch):
    run = trained(tmp_path, "narrow, small stem", monkeypatch)
    rows = np.random.default_rng(1).integers(0, 256, (30, 16, 20, 3), np.uint8)  # not square
    test = [(Image.fromarray(image), n % 2) for n, image in enumerate(rows)]
    settings = {"k": [1], "data.image_size": 16}
    expected = clsp.evaluate(run, "knn", settings, data=ITEMS, test_data=test)["top1"]
    monkeypatch.setattr(sys, "argv", ["clsp", "export", str(run.folder), "--out", "out dir"])
    cli.main()
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "out dir/README.md").read_text(), re.S)
    names: dict = {}
    exec(code[0].replace("DIR", "out dir"), names)
    assert isinstance(names["prepare"], Compose)

    def embedded(items):
        pictures = [Image.fromarray(i) if isinstance(i, np.ndarray) else i for i, _ in items]
        prepared = torch.stack([names["prepare"](picture) for picture in pictures])
        return torch.nn.functional.normalize(features(names["backbone"], prepared)).numpy()

    nearest = KNeighborsClassifier(1, metric="cosine")
    nearest.fit(embedded(ITEMS), [label for _, label in ITEMS])
    found = 100 * nearest.score(embedded(test), [label for _, label in test])
    assert found == pytest.approx(expected)


def test_the_card_says_what_the_run_was(tmp_path, monkeypatch):
    run = trained(tmp_path, "narrow", monkeypatch, seed=3)
    clsp.evaluate(run, "knn", {"k": [1]}, data=ITEMS, test_data=ITEMS[:10])
    card = (export_backbone(run.folder, "a") / "README.md").read_text()
    assert "# resnet18, pre-trained by simclr on custom" in card
    assert "1 epoch, 40 images, seed 3." in card
    assert "--config-name custom/simclr" in card
    assert "| kNN | custom | strict |" in card
    assert "clsp_plugin.methods.architectures" not in card
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["architecture"] == "resnet18"
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]
    (run.folder / "record.json").unlink()
    assert "record was not there" in (export_backbone(run.folder, "b") / "README.md").read_text()


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch, full_disk):
    run = trained(tmp_path, "narrow", monkeypatch)
    with pytest.raises(ClspError, match="torchvision has no network of the shape of resnet18"):
        export_backbone(run.folder, "new", "torchvision")
    with pytest.raises(ClspError, match="did you mean 'onnx'"):
        export_backbone(run.folder, "new", "onxx")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    with pytest.raises(ClspError, match="full is there already"):
        export_backbone(run.folder, "full")
    with pytest.raises(ClspError):
        export_backbone(tmp_path / "full", "new")
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "trained_models"]
    told = pytest.raises(ClspError, match=r"could not be written .*; make room, or name another")
    with full_disk(5000), told:
        export_backbone(run.folder, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "trained_models"]
    (tmp_path / "empty").mkdir()
    export_backbone(run.folder, "empty")
    assert (tmp_path / "empty/config.json").is_file()


def test_the_page(tmp_path, monkeypatch, write_store, digits48):
    monkeypatch.chdir(tmp_path)
    given = {"backbone.kwargs": NARROW, "max_epochs": 1, "optimizer.batch_size": 8}
    given |= {"accelerator": "cpu", "synthetic.weight": 0, "performance.disable_channel_last": True}
    clsp.pretrain("digits/clsp_simclr", given, data=ITEMS)
    text = (ROOT / "docs/export.md").read_text()
    write_store(tmp_path / "candidates/digits", digits48)
    blocks = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    for line in blocks.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        cli.main()
    made = sorted(path.name for path in tmp_path.glob("exported/*/*") if path.is_file())
    assert made == [*["README.md"] * 3, "config.json", "model.onnx", "model.safetensors"]
    assert (tmp_path / "candidates/again/manifest.json").is_file()
    assert set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)?", text, re.MULTILINE)) == {
        ("timm", "hf"), ("torchvision", ""), ("onnx", "")}  # fmt: skip
