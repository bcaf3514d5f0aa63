"""A real clone of solo-learn, run beside us and never changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from solo_run import CPU, SHORT

from clsp_plugin.data.digits import make_digits
from clsp_plugin.data.images import load_images

CLONE = os.environ.get("SOLO_LEARN_DIR")

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


@pytest.fixture(scope="session")
def clone():
    """The folder of the clone."""
    if not CLONE:
        pytest.skip("set SOLO_LEARN_DIR to a clone of solo-learn")
    folder = Path(CLONE)
    assert (folder / "main_pretrain.py").is_file(), f"{folder} is not a clone of solo-learn"
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Class folders of small images; every folder's names sort otherwise than they were made."""
    root = tmp_path_factory.mktemp("images")
    for split, number in (("train", 80), ("val", 40)):
        pixels, targets = make_digits(number, split, size=32)
        for index, (image, target) in enumerate(zip(pixels, targets, strict=True)):
            if target < 5:
                folder = root / split / f"digit{target}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.numpy()).save(folder / f"{(index * 37) % 101}.png")
    return root


@pytest.fixture(scope="session")
def array(images):
    """The training images as candidates are made for them."""
    keys = {"dataset": "custom", "train_path": str(images / "train"), "no_labels": False}
    return load_images({**keys, "val_path": None, "fraction": -1}, "train")


@pytest.fixture
def candidates(tmp_path, array, write_store):
    """A candidate store for the images."""
    return write_store(tmp_path / "candidates", array)


@pytest.fixture
def run(clone):
    """``run(script, *args)``: one of solo-learn's scripts, as a user would start it."""

    def start(*args, check=True, cwd=clone):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, *map(str, args)]
        out = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        if check:
            assert out.returncode == 0, out.stdout[-1500:] + out.stderr[-3000:]
        return out

    return start


@pytest.fixture
def here(run):
    """``here(what, *args)``: a script or a module with small files and without a GPU."""
    return lambda *args, **kwargs: run("-c", _HERE, *args, **kwargs)


@pytest.fixture
def torchvision_takes_small_files(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)


@pytest.fixture
def pretrain(run, images, candidates, tmp_path):
    """``pretrain(config, *overrides)``: ``main_pretrain.py`` on the images, on the CPU."""

    def start(config, *overrides, path="scripts/pretrain/cifar", check=True):
        out = run(
            "main_pretrain.py", "--config-path", path, "--config-name", config,
            "data.dataset=custom", f"data.train_path={images}/train",
            f"data.val_path={images}/val", f"++synthetic.path={candidates}",
            f"checkpoint.dir={tmp_path}/trained", *CPU, *SHORT, *overrides, check=check,
        )  # fmt: skip
        return out.stdout + out.stderr

    return start


@pytest.fixture
def cifar10(tmp_path):
    """torchvision's files of CIFAR-10, with few images."""
    import pickle

    folder = tmp_path / "datasets" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        seed, split = int(name[-1]) if name[-1].isdigit() else 6, name.split("_")[0]
        pixels, targets = make_digits(40, "val" if split == "test" else "train", seed=seed)
        data = pixels.permute(0, 3, 1, 2).reshape(len(pixels), -1).numpy()
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": targets.tolist()}))
    meta = {"label_names": [f"digit{n}" for n in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return folder.parent
