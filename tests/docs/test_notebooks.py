"""The notebooks run, at a small size, and what they show has nothing of a machine in it."""

import hashlib
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.ipynb"))
NET = """{
    "backbone.kwargs": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
    "method_kwargs.proj_hidden_dim": 16, "method_kwargs.proj_output_dim": 8,
    "optimizer.batch_size": 16, "max_epochs": 1, "accelerator": "cpu", "precision": "32-true",
}"""
SMALL = {
    "digits": f"""
data = {{"data.num_train": 40, "data.num_val": 20}}
denoising = {{"max_epochs": 1, "block_out_channels": [8, 8]}}
drawing = {{"num_candidates": 2, "steps": 2}}
training = {NET}
""",
    "cifar10": f"""
root = "images"
denoising = {{
    "max_epochs": 1, "block_out_channels": [8, 8], "layers_per_block": 1, "batch_size": 20,
    "attention_resolutions": [], "precision": "32-true",
}}
drawing = {{"num_candidates": 2, "steps": 2, "precision": "32-true"}}
training = {NET}
linear = {{"max_epochs": 2, "lr_decay_steps": [1], "flip": False}}
knn = {{"k": [1, 5]}}
""",
}


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs/hooks/notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_cifar10(root):
    """A CIFAR-10 of 40 training and 20 test images in the format of torchvision's files.

    Returns:
        Lines of Python that tell torchvision the sums of these files.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name, number):
        pixels = generator.integers(0, 256, (number, 3072)).astype(np.uint8)
        return [name, write(name, {"data": pixels, "labels": [i % 10 for i in range(number)]})]

    train = [batch("data_batch_1", 20), batch("data_batch_2", 20)]
    test = [batch("test_batch", 20)]
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    meta = write("batches.meta", {"label_names": names})
    return (
        "from torchvision.datasets import CIFAR10\n"
        f"CIFAR10.train_list, CIFAR10.test_list = {train}, {test}\n"
        f"CIFAR10.meta = {{**CIFAR10.meta, 'md5': {meta!r}}}\n"
    )


def test_they_run(hook, tmp_path):
    """Both in one process; each begins with names of its own."""
    program = ["import matplotlib", "matplotlib.use('Agg')", write_cifar10(tmp_path / "images")]
    for path in TUTORIALS:
        code = hook.code(json.loads(path.read_text(encoding="utf-8")), SMALL[path.stem])
        assert SMALL[path.stem] in code
        program.append(f"exec(compile({code!r}, {path.name!r}, 'exec'), {{}})")
        program.append("matplotlib.pyplot.close('all')")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "40 training images, 20 test images of airplane, automobile" in done.stdout
    assert re.search(r"^clsp_simclr  paper   linear [\d.]+ %, kNN [\d.]+ %", done.stdout, re.M)
    for folder in ("digits", "cifar10"):
        assert list(tmp_path.glob(f"trained_models/clsp_simclr/*/*{folder}*.ckpt"))


def test_what_they_show_is_clean(hook):
    assert [path.stem for path in TUTORIALS] == ["cifar10", "digits"]
    for path in TUTORIALS:
        text = path.read_text(encoding="utf-8")
        for cell in json.loads(text)["cells"]:
            for output in cell.get("outputs", []):
                shown, _ = hook._content(output)
                assert output["output_type"] != "error"
                assert output.get("name") != "stderr"
                assert not re.search(r"(^|\s)/\w+/|0x[0-9a-f]{6}", shown), (path, shown)
        assert len(text) < 600_000, path


def test_a_page_has_the_cells_and_what_they_show(hook):
    def cell(kind, source, outputs=()):
        return {"cell_type": kind, "source": [source], "outputs": list(outputs), "metadata": {}}

    notebook = {
        "cells": [
            cell("markdown", "# A title\nand more."),
            cell("code", "1 + 1", [{"text": ["1\n"]}, {"data": {"text/plain": ["2"]}}]),
            cell("code", "draw()", [{"data": {"image/png": "AAAA", "text/plain": ["<Figure>"]}}]),
        ]
    }
    text = hook.page(notebook, "tutorials/some")
    assert text.startswith("# A title\n\n[This page as a notebook](some.ipynb)")
    assert "and more.\n\n```python\n1 + 1\n```\n\n``` { .text .output }\n1\n2\n```" in text
    assert "(some-2-0.png)" in text
    assert "Figure" not in text
    assert dict(hook.pictures(notebook, "tutorials/some")) == {"tutorials/some-2-0.png": b"\0\0\0"}
