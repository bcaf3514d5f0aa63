"""Encoders that were trained elsewhere, as their own libraries write them."""

import json
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas
import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

import clsp_plugin as clsp
from clsp_plugin import cli
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.encoders import load_encoder
from clsp_plugin.evaluation.settings import Knn, Linear, Transfer
from clsp_plugin.export.backbone import export_backbone
from clsp_plugin.records.backbone import frozen_encoder
from clsp_plugin.records.record import ELSEWHERE, Record

ROOT = Path(__file__).parents[2]
TIMM = "test_resnet.r160_in1k"  # timm's own small network for tests
TORCHVISION = "shufflenet_v2_x0_5"
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16}  # fmt: skip
DATA = ["data.dataset=digits", "data.image_size=16", "data.num_train=48", "data.num_val=20"]


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """The caches of the hub and of torch, with weights in them, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    generator = torch.Generator().manual_seed(0)
    repository = tmp_path / f"hub/models--timm--{TIMM}"
    snapshot = repository / "snapshots/0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123")
    save_file(_random(timm.create_model(TIMM), generator), snapshot / "model.safetensors")
    weights = torchvision.models.get_model_weights(TORCHVISION).DEFAULT
    file = tmp_path / "torch/hub/checkpoints" / weights.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save(_random(torchvision.models.get_model(TORCHVISION), generator), file)


def _random(module, generator):
    """The state of a network, unlike what its constructor draws."""
    state = module.state_dict()
    return {
        key: value + 0.1 * torch.rand(value.shape, generator=generator).to(value.dtype)
        for key, value in state.items()
    }


def write_hf(kind, folder):
    """Write a small network of transformers with its processor, as its own library does."""
    if kind == "resnet":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                              layer_type="basic")  # fmt: skip
        model = ResNetModel(config)
        processor = ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875)
    elif kind == "clip":
        vision = {**SMALL, "image_size": 32, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=SMALL, vision_config=vision, projection_dim=12))
        processor = CLIPImageProcessor(size={"shortest_edge": 40},
                                       crop_size={"height": 32, "width": 32})  # fmt: skip
    else:
        config = ViTConfig(**SMALL, image_size=32, patch_size=8)
        model = ViTModel(config, add_pooling_layer=kind == "vit")
        processor = ViTImageProcessor(size={"height": 32, "width": 32})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture
def pictures():
    """Smooth images, in which resizing by two libraries differs by rounding alone."""
    y, x = np.mgrid[0:48, 0:48] / 48
    waves = [np.stack([y, x, (x + y) / 2], 2) * scale for scale in (0.3, 0.6, 0.9)]
    return np.stack([(255 * wave).astype(np.uint8) for wave in waves])


def of_transformers(folder, kind, pictures):
    model = AutoModel.from_pretrained(folder).eval()
    images = [Image.fromarray(picture) for picture in pictures]
    prepared = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    with torch.no_grad():
        if kind == "clip":
            return prepared["pixel_values"], model.get_image_features(**prepared).pooler_output
        out = model(**prepared)
        found = out.last_hidden_state[:, 0] if kind == "dino" else out.pooler_output.flatten(1)
        return prepared["pixel_values"], found


@pytest.mark.parametrize("kind", ["vit", "dino", "resnet", "clip"])
def test_of_transformers(kind, tmp_path, monkeypatch, pictures):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    write_hf(kind, "made")
    backbone = clsp.load_backbone("made")
    pixels, features = of_transformers("made", kind, pictures)
    ours = backbone.prepare(pictures)
    assert ours.shape == pixels.shape
    assert (ours - pixels).abs().max() < 1.5 / 255 / min(backbone.prepare.std)
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels), features, atol=1e-6, rtol=0)
    assert backbone.num_features == features.shape[1]


def test_an_encoder_from_elsewhere_sees_the_views_of_a_training(tmp_path, monkeypatch, pictures):
    monkeypatch.chdir(tmp_path)
    write_hf("vit", "made")
    data = {"mean": [0.2, 0.3, 0.4], "std": [0.1, 0.2, 0.3]}
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in data.values())
    views = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std
    encoder = frozen_encoder("made", data)
    ours, wanted = encoder.expected(views), clsp.load_backbone("made").prepare(pictures)
    assert ours.shape == wanted.shape == (3, 3, 32, 32)
    assert (ours - wanted).abs().max() < 1.5 / 255 / 0.5  # theirs is rounded to whole levels


def test_an_encoder_from_elsewhere_chooses_and_weighs(caches, tiny, store):
    given = (f"synthetic.path={store}", "max_epochs=1", "synthetic.choice=hardest")
    trained = {}
    for encoder in ("null", f"timm:{TIMM}"):
        said = ("synthetic.pair_weight=quality", f"synthetic.encoder={encoder}")
        run = pretrain(tiny("clsp_simclr", *given, *said))
        trained[encoder] = torch.load(run.checkpoint)["state_dict"]["backbone.conv1.weight"]
    assert not torch.equal(*trained.values())


def test_of_timm_and_torchvision(caches, pictures):
    images = [Image.fromarray(picture) for picture in pictures]
    ours = clsp.load_backbone(f"timm:{TIMM}")
    theirs = timm.create_model(TIMM, pretrained=True, num_classes=0).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    check_alike(ours, theirs, torch.stack([prepare(image) for image in images]), pictures)
    for name in (TORCHVISION, f"{TORCHVISION}@DEFAULT", f"torchvision:{TORCHVISION}@IMAGENET1K_V1"):
        weights = torchvision.models.get_model_weights(TORCHVISION).DEFAULT
        theirs = torchvision.models.get_model(TORCHVISION, weights=weights).eval()
        theirs.fc = torch.nn.Identity()
        pixels = torch.stack([weights.transforms()(image) for image in images])
        check_alike(clsp.load_backbone(name), theirs, pixels, pictures)


def check_alike(ours, theirs, pixels, pictures):
    found = ours.prepare(pictures)
    assert found.shape == pixels.shape
    assert (found - pixels).abs().max() < 1.5 / 255 / min(ours.prepare.std)
    with torch.no_grad():
        assert torch.equal(ours(pixels), theirs(pixels))


def clsp_does(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["clsp", *map(str, words)])
    cli.main()


def test_it_is_evaluated_beside_a_run(caches, tiny, monkeypatch, capsys, tmp_path):
    run = pretrain(tiny("simclr", "max_epochs=1")).run_dir
    clsp_does(monkeypatch, "knn", f"pretrained_feature_extractor={run}", "k=[1]")
    asked = [f"pretrained_feature_extractor=timm:{TIMM}", *DATA]
    clsp_does(monkeypatch, "knn", *asked, "k=[1]")
    clsp_does(monkeypatch, "linear", *asked, "max_epochs=1", "lr_decay_steps=[1]")
    folder = tmp_path / f"trained_models/encoders/timm-{TIMM}"
    record = Record.load(folder / "record.json")
    assert (record.method, record.dataset) == (f"timm:{TIMM}", ELSEWHERE)
    assert [e["task"] for e in record.evaluations] == ["knn", "linear"]
    assert record.evaluations[0]["images"]["size"] == 160
    assert len(list((folder / "features").glob("*.pt"))) == 2  # training and test images
    capsys.readouterr()
    clsp_does(monkeypatch, "table", run, folder)
    table = capsys.readouterr().out
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert [line.count("|") for line in lines] == [5] * 4, table  # method, n, linear, kNN
    assert f"timm:{TIMM}: weights from elsewhere." in table
    clsp_does(monkeypatch, "report", run, folder, "--out", "report.html", "--limit", "10")
    assert f"timm:{TIMM}" in (tmp_path / "report.html").read_text()


def test_an_exported_folder_is_an_encoder(tiny, tmp_path, monkeypatch):
    run = pretrain(tiny("simclr", "max_epochs=1", "augmentations.0.crop_size=12")).run_dir
    expected = clsp.evaluate(run, "knn", {"k": [1]})
    folder = export_backbone(run, tmp_path / "made")
    given = dict(word.split("=") for word in DATA)
    found = clsp.evaluate(folder, "knn", {**given, "k": [1]})
    assert found["top1"] == expected["top1"]
    assert (folder / "record.json").is_file()
    with pytest.raises(ClspError, match="does not say which images to evaluate on"):
        clsp.evaluate(folder, "knn")
    with pytest.raises(ClspError, match="clsp finetune takes the settings of a pre-training"):
        clsp.evaluate(folder, "finetune", given)


def test_it_judges_candidates_and_embeds(caches, write_store, digits48, monkeypatch, tmp_path):
    write_store(tmp_path / "store", digits48)
    given = ["inspect", tmp_path / "store", "--config-name", "digits/generate", "data.num_train=48"]
    clsp_does(monkeypatch, *given, "--encoder", TORCHVISION)
    report = json.loads((tmp_path / "store/report/report.json").read_text())
    assert report["encoder"] == f"torchvision:{TORCHVISION}"
    assert {"similarity", "frechet", "agreement"} <= report.keys()
    for name in ("train.npz", "train.parquet"):
        clsp_does(monkeypatch, "embed", f"timm:{TIMM}", "data.num_train=48", "--table",
                  "--out", name)  # fmt: skip
    table, frame = np.load("train.npz"), pandas.read_parquet("train.parquet")
    with torch.no_grad():
        backbone = clsp.load_backbone(f"timm:{TIMM}")
        features = backbone(backbone.prepare(digits48.images)).numpy()
    np.testing.assert_allclose(table["features"], features, atol=1e-4)
    np.testing.assert_array_equal(table["targets"], digits48.targets)
    np.testing.assert_array_equal(frame[[f"f{n}" for n in range(features.shape[1])]],
                                  table["features"])  # fmt: skip
    assert list(frame["class"]) == [digits48.classes[n] for n in digits48.targets]
    LogisticRegression(C=1e-6).fit(table["features"], table["targets"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:rsnet18", "timm has no network rsnet18; did you mean 'resnet18'"),
        ("timm:resnet18.fb", "timm has no weights resnet18.fb"),
        ("timm:resnet18", "timm:resnet18 cannot be loaded .* check the name and the connection"),
        ("timm:", "names no network; give timm:NAME"),
        ("hf:nobody/nothing", "hf:nobody/nothing cannot be loaded"),
        ("torchvision:resnet81", "torchvision has no network resnet81; did you mean"),
        (f"{TORCHVISION}@V9", "has no weights V9"),
        (f"torchvision:{TORCHVISION}@V9", "has no weights V9"),
        ("resnet81", "others are named timm:NAME, hf:NAME, torchvision:NAME"),
    ],
)
def test_what_is_not_there_is_refused(caches, name, message):
    with pytest.raises(ClspError, match=message):
        load_encoder(name)


def test_weights_that_a_network_lacks_are_not_made_up(tmp_path):
    write_hf("vit", tmp_path / "made")
    model = ViTModel.from_pretrained(tmp_path / "made")
    state = {k: v for k, v in model.state_dict().items() if "layernorm.weight" not in k}
    save_file(state, tmp_path / "made/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ClspError, match=r"no weights for 1 parts of its network"):
        load_encoder(tmp_path / "made")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("{}")
    with pytest.raises(ClspError, match="neither `architecture` nor `model_type`"):
        load_encoder(tmp_path / "other")


def test_the_page_on_encoders(caches, monkeypatch, tmp_path):
    """Its snippet of Python runs on what its commands write; its names are those that there are."""
    text = (ROOT / "docs/encoders.md").read_text()
    for split, name in (("train", "train.npz"), ("val", "test.npz")):
        clsp_does(monkeypatch, "embed", f"timm:{TIMM}", "data.num_train=48", "data.num_val=20",
                  "--table", "--split", split, "--out", name)  # fmt: skip
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code.replace("max_iter=1000", "C=1e-6"), {})
    commands = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[0].splitlines()
    named = set(re.findall(r"timm:([\w.]+)", text)) - {"NAME"}
    assert all(timm.list_pretrained(f"{name.split('.')[0]}*") for name in named)
    for words in map(shlex.split, commands):
        keys = {word.partition("=")[0] for word in words[2:] if "=" in word and "." not in word}
        schema = {"knn": Knn, "linear": Linear, "transfer": Transfer}.get(words[1])
        assert schema is None or keys <= {field.name for field in fields(schema)}
