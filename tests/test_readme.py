"""Every command in the README runs, at a small size, in the README's order."""

import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clsp_plugin import cli
from clsp_plugin.data.images import load_images
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.synthetic import SyntheticPositives

ROOT = Path(__file__).parent.parent
SMALL = {
    "denoiser": ["block_out_channels=[8,8]", "layers_per_block=1", "attention_resolutions=[]",
                 "max_epochs=1", "batch_size=16", "precision=32-true", "data.num_train=48"],
    "generate": ["steps=2", "num_candidates=2", "batch_size=64", "precision=32-true",
                 "data.num_train=48"],
    "pretrain": ["backbone.kwargs.channels=[8,8,8,8]", "backbone.kwargs.layers=[1,1,1,1]",
                 "method_kwargs.proj_hidden_dim=16", "optimizer.batch_size=16", "max_epochs=1",
                 "precision=32-true", "data.num_train=48", "data.num_val=20"],
    "linear": ["max_epochs=2", "lr_decay_steps=[1]"],
    "knn": ["k=[1,5]"],
    "transfer": ["l2=[0.1,1]", "num_workers=0"],
    "finetune": ["max_epochs=1", "optimizer.batch_size=16"],
    "inspect": ["data.num_train=48"],
    "import-candidates": ["data.num_train=48"],
    "bench": ["--dry-run"],  # the demo is one that runs
    "figures": ["--limit", "20"],
    "report": ["--limit", "20"],
    "embed": ["data.num_train=48"],
    "demo": ["--scale", "0.02", "--seeds", "1"],
}  # fmt: skip


def commands(page="README.md"):
    """What a page's bash blocks say, joined where a line is continued."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def write_images(folder, classes, number, size):
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = generator.integers(0, 256, (size, size, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with what the pages take for granted: data sets and images of one's own."""
    for split, number in (("train", 4), ("test", 2)):
        write_images(tmp_path / "datasets/cifar10" / split, "abcdefghij", number, 32)
    for split in ("train", "val"):
        write_images(tmp_path / "my" / split, ["cat", "dog"], 12, 16)
    files = module_of("tests/data/test_downstream.py")
    files.take_small_files(monkeypatch)
    for name in ("pets", "dtd", "flowers"):
        files.WRITE[name](tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_clsp(words, monkeypatch):
    given = {word.partition("=")[0] for word in words}
    small = [word for word in SMALL.get(words[1], []) if word.partition("=")[0] not in given]
    monkeypatch.setattr(sys, "argv", words + small)
    cli.main()


def test_commands_run_in_their_order(place, monkeypatch, capfd):
    clsp = [shlex.split(line) for line in commands() if line.startswith("clsp ")]
    verbs = {"denoiser", "generate", "pretrain", "linear", "knn", "report", "transfer"}
    assert {words[1] for words in clsp} >= verbs
    for words in clsp:
        run_clsp(words, monkeypatch)  # a refusal would exit
    assert "clsp_simclr" in capfd.readouterr().out
    for line in commands("docs/figures.md"):
        run_clsp(shlex.split(line), monkeypatch)
    assert (place / "figures/neighbours.svg").exists()
    assert (place / "report.html").exists()
    # the scripts after the commands that they ask for
    (script,) = (line for line in commands() if "pretrain/cifar" in line)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    environment["PATH"] = f"{sys.prefix}/bin:{environment['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / script.split()[1]), *SMALL["pretrain"]],
        cwd=place, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(place.glob("trained_models/clsp_simclr/*/clsp_simclr-cifar10-*.ckpt"))


def test_every_method_is_named():
    text = (ROOT / "README.md").read_text()
    told = re.search(r"The methods are (.*?);", text, re.DOTALL)[1]
    names = {name for name in METHODS if not issubclass(METHODS[name], SyntheticPositives)}
    assert re.findall(r"`(\w+)`", told) == sorted(names)
    assert names | {f"clsp_{n}" for n in names} | {f"{n}_aug" for n in names} <= set(METHODS)


def test_the_images_of_the_first_look_fill_a_batch():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    script = re.search(r"clsp_simclr\.sh data\.fraction=(\S+) .*batch_size=(\d+)", text)
    assert int(50_000 * float(script[1])) >= int(script[2])
    assert set(re.findall(r"data\.fraction=([\d.]+)", text)) == {script[1]}


def test_the_page_on_candidates(place, monkeypatch, capfd):
    make_authors_checkpoint(place / "ckpt_ema_1999_.pt")
    (place / "other").mkdir()
    np.savez(place / "other/candidates.npz", images=np.zeros((48, 2, 16, 16, 3), np.uint8))
    for line in commands("docs/candidates.md"):
        run_clsp(shlex.split(line), monkeypatch)
    out = capfd.readouterr().out
    assert "Denoiser: denoisers/authors" in out
    assert "192 drawn" in out  # 48 images, 2 candidates each at first and 6 in the end
    assert (place / "candidates/digits/report/weights.png").exists()
    for name in ("labels", "rcg", "rcg-cluster"):
        assert (place / "candidates" / name / "manifest.json").exists()


def test_the_page_on_uses(place, write_store, monkeypatch):
    data = {"dataset": "digits", "num_train": 48, "num_val": 20, "seed": 0, "fraction": -1,
            "image_size": 16}  # fmt: skip
    write_store(place / "candidates/digits", load_images(data, "train"), num_candidates=8)
    for line in commands("docs/uses.md"):
        run_clsp(shlex.split(line), monkeypatch)
    assert len(list(place.glob("trained_models/clsp_simclr/*/record.json"))) >= 3


def write_sources(place):
    """The photographs again: as lists, tar shards, and saved by ``datasets``."""
    from datasets import load_dataset

    for folder in ("lists", "shards"):
        (place / folder).mkdir()
    for split, shards in (("train", 2), ("val", 1)):
        files = sorted((place / "photos" / split).rglob("*.jpg"))
        lines = [f"../{file.relative_to(place)},{file.parent.name}\n" for file in files]
        (place / "lists" / f"{split}.csv").write_text("".join(lines))
        for shard in range(shards):
            with tarfile.open(place / f"shards/{split}-{shard:03d}.tar", "w") as archive:
                for number, file in enumerate(files[shard::shards]):
                    archive.add(file, f"{shard}-{number}.jpg")
                    label = tarfile.TarInfo(f"{shard}-{number}.cls")
                    label.size = len(file.parent.name)
                    archive.addfile(label, io.BytesIO(file.parent.name.encode()))
    files = {"train": f"{place}/photos/train/**", "test": f"{place}/photos/val/**"}
    cache = str(place / "cache/hf")
    found = load_dataset("imagefolder", data_files=files, cache_dir=cache)
    found.save_to_disk(str(place / "saved"))


def test_the_page_on_photographs(place, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    module = module_of("tests/data/test_packed.py")
    for split, number in (("train", 9), ("val", 2)):
        for index in range(2 * number):
            folder = place / "photos" / split / ("cat" if index % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            module.picture(60 + index, 50, index).save(folder / f"{index}.jpg")
        for index, name in enumerate([*module.IMAGENET100, "n00000001"]):
            folder = place / "ILSVRC2012" / split / name
            folder.mkdir(parents=True)
            module.picture(12 + index % 2, 12, index).save(folder / f"{index}.jpg")
    write_sources(place)
    for line in commands("docs/photographs.md"):
        words = shlex.split(line)
        run_clsp(words + ["augmentations.0.crop_size=32"] * (words[1] == "pretrain"), monkeypatch)
    out = capfd.readouterr().out
    assert out.count("Packing 18 images of photos/train") == 1
    assert out.count("Packing 100 images of ILSVRC2012/train") == 1
    for name in ("lists/train.csv", "shards/train-{000..001}.tar", "saved"):
        assert f"Packing 18 images of {name} " in out
    assert list(place.glob("trained_models/clsp_simclr/*/clsp_simclr-custom-dataset-*.ckpt"))


def test_the_page_on_transfer(place, monkeypatch, capfd):
    run_clsp(["clsp", "pretrain", "--config-name", "simclr"], monkeypatch)
    (place / "trained_models/simclr").rename(place / "trained_models/clsp_simclr")
    authors = module_of("tests/evaluation/test_backbone.py").authors_model("resnet18", "small")
    torch.save(authors.state_dict(), place / "simclr_clsp_cifar10.pt")
    for line in commands("docs/transfer.md"):
        run_clsp(shlex.split(line), monkeypatch)
    out = capfd.readouterr().out
    assert "digits → pets" in out
    assert "transfer of simclr_clsp_cifar10 to dtd: top-1" in out


def test_the_page_on_watching(place, monkeypatch, capfd):
    for line in commands("docs/watching.md"):
        run_clsp(shlex.split(line), monkeypatch)
    out = capfd.readouterr().out
    assert out.count("simclr on digits, done") == 2  # the output is no terminal
    assert list(place.glob("trained_models/simclr/*/tensorboard/*/events*"))
    assert list(place.glob("denoisers/*.tensorboard/*/events*"))
    (metrics,) = place.glob("trained_models/simclr/*/metrics.csv")
    text = (ROOT / "docs/watching.md").read_text()
    names = metrics.read_text().split("\n")[0].split(",")
    ours = {name for name in names if "acc5" not in name and name not in ("epoch", "val_loss")}
    assert not {name for name in ours if f"`{name}`" not in text}


def module_of(path):
    """A file of tests as a module, for what it writes."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_authors_checkpoint(path):
    module = module_of("tests/diffusion/test_convert.py")
    torch.save(module.weights(**module.SMALL), path)


def test_demo(place, monkeypatch, capfd):
    assert "bash scripts/demo.sh" in commands()
    assert "clsp demo" in (ROOT / "scripts/demo.sh").read_text()
    run_clsp(["clsp", "demo"], monkeypatch)
    out = capfd.readouterr().out
    for method in ("simclr", "simclr_aug", "clsp_simclr"):
        assert f"| {method} |" in out
    made = {path.name for path in (place / "runs/demo").iterdir()}
    assert made >= {"table.md", "table.csv", "candidates.png", "curves.png"}
    before = (place / "runs/demo/table.md").read_text()
    run_clsp(["clsp", "demo"], monkeypatch)  # everything is there: nothing is run again
    assert (place / "runs/demo/table.md").read_text() == before
    page = [shlex.split(line) for line in commands("docs/benchmark.md") if line.startswith("clsp ")]
    assert {words[2] for words in page if words[1] == "bench"} >= {"digits", "cifar10"}
    for words in page:
        run_clsp(words, monkeypatch)
    out = capfd.readouterr().out
    assert "68 of 68 to do" in out
    assert "\\toprule" in out


def test_files_that_the_readme_shows_are_there():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (ROOT / target).is_file(), target
    for folder in re.findall(r"^(clsp_plugin/\w+/|scripts/|benchmarks/) ", text, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
