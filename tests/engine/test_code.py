"""A number's code is what it goes through, and no more."""

import shutil
from pathlib import Path

import pytest

from clsp_plugin.engine import code
from clsp_plugin.methods import METHODS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that may be changed, and a function that hashes all of it anew."""
    copy = tmp_path / "clsp_plugin"
    ignored = shutil.ignore_patterns("__pycache__", "published", "scripts")
    shutil.copytree(Path(code.__file__).parents[1], copy, ignore=ignored)
    monkeypatch.setattr(code, "_PACKAGE", copy)
    functions = (code._imports, code.code_hash, code.method_code, code.evaluation_code)

    def hashes():
        for function in functions:
            function.cache_clear()
        found = {method: code.method_code(method) for method in METHODS}
        found |= {task: code.evaluation_code(task) for task in ("linear", "knn")}
        return {**found, "denoiser": code.code_hash("diffusion.training")}

    yield copy, hashes
    for function in functions:
        function.cache_clear()


def changed(package, file, text="\nB = 1\n"):
    copy, hashes = package
    before = hashes()
    with open(copy / file, "a") as source:
        source.write(text)
    return {name for name, value in hashes().items() if value != before[name]}


def test_a_new_method_leaves_the_others_as_they_are(package):
    assert (
        changed(package, "methods/new.py", "from clsp_plugin.methods.simclr import SimCLR") == set()
    )
    assert changed(package, "methods/__init__.py") == set()  # the list of all


def test_a_loss_is_part_of_the_methods_that_use_it(package):
    bases = {"mocov2plus", "mocov2_ft", "mocov3", "nnclr", "nnbyol", "nnsiam", "all4one"}
    found = changed(package, "losses/info_nce.py")
    assert {"mocov2plus", "clsp_mocov2", "mocov2_aug", "mocov2_ft"} <= found
    assert not found & {"simclr", "clsp_simclr", "clsp_noaug", "byol", "linear", "denoiser"}
    assert {name.removeprefix("clsp_").removesuffix("_aug") for name in found} <= bases | {"mocov2"}


@pytest.mark.parametrize(
    ("file", "those"),
    [
        ("methods/synthetic.py", lambda name: "clsp" in name or "_aug" in name),
        ("engine/pretrain.py", lambda name: name in METHODS),
        ("evaluation/knn.py", lambda name: name == "knn"),
        ("evaluation/backbone.py", lambda name: name in ("knn", "linear")),
        ("diffusion/sampling.py", lambda name: name == "denoiser"),
        ("data/random.py", lambda name: True),
        ("engine/progress.py", lambda name: False),
        ("cli.py", lambda name: False),
    ],
)
def test_what_goes_through_a_file(package, file, those):
    names = {*METHODS, "linear", "knn", "denoiser"}
    assert changed(package, file) == {name for name in names if those(name)}


def test_an_unknown_method_has_no_code():
    assert code.method_code("nothing") is None
