"""What a training compiles, decided on plain values; and that a run goes on as it began."""

from contextlib import ExitStack
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from clsp_plugin.config.training import parse_cfg
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.data.splits import load_splits
from clsp_plugin.diffusion.module import TrainingSettings
from clsp_plugin.engine import compiling
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.engine.progress import History
from clsp_plugin.engine.resume import Start, find_start
from clsp_plugin.errors import ClspError
from clsp_plugin.methods import METHODS
from clsp_plugin.records.checkpoint import bound, read_checkpoint

NEW = Start(Path("new"))
OLD = Start(Path("old"), Path("old.ckpt"))
EAGER, COMPILED, FIRST = (
    Start(Path("old"), Path("old.ckpt"), compiled={"augmentation": a, "network": n})
    for a, n in ((False, False), (True, True), (True, False))
)


@pytest.fixture
def parts(monkeypatch):
    """What is compiled on a machine that can compile everything."""
    monkeypatch.setattr("clsp_plugin.system.compiling.can_compile", lambda device: True)
    monkeypatch.setattr(compiling, "can_compile_augmentation", lambda device: True)

    def make(device, views, start, processes=1, name="resnet18", wanted="auto"):
        cfg = OmegaConf.create({
            "max_epochs": 1,
            "data": {"num_large_crops": 2, "num_small_crops": 0},  # and a third view
            "backbone": {"name": name},
            "performance": {"compile_augmentation": wanted, "compile_network": wanted},
        })  # fmt: skip
        found = compiling.parts_to_compile(
            cfg, torch.device(device), processes=processes, num_images=views // 3, start=start
        )
        return found["augmentation"], found["network"]

    return make


@pytest.mark.parametrize(
    ("device", "views", "start", "expected"),
    [
        ("cpu", 2_999_997, NEW, (False, False)),
        ("cpu", 3_000_000, NEW, (True, False)),
        ("cpu", 300_000_000, NEW, (True, False)),  # networks were measured on a GPU alone
        ("cuda", 9_999_999, NEW, (False, False)),
        ("cuda", 10_000_002, NEW, (True, True)),
        # a run that goes on stays as it was, also if it is long only now
        ("cuda", 30_000_000, EAGER, (False, False)),
        ("cuda", 30_000_000, FIRST, (True, False)),
        ("cuda", 30_000_000, OLD, (True, False)),
        ("cuda", 30, COMPILED, (True, True)),
        ("cpu", 30, COMPILED, (True, False)),
        ("cpu", 30_000_000, EAGER, (False, False)),
        ("cpu", 30_000_000, OLD, (True, False)),
    ],
)
def test_auto(parts, device, views, start, expected):
    assert parts(device, views, start) == expected


def test_auto_compiles_a_network_that_was_measured_alone(parts):
    long = 10_000_002
    assert parts("cuda", long, NEW, processes=2) == (True, False)
    assert parts("cuda", long, NEW, name="vit_tiny") == (True, False)


@pytest.mark.parametrize("start", [NEW, EAGER, COMPILED])
@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_asked_for_is_done(parts, start, wanted):
    assert parts("cpu", 30, start, wanted=wanted) == (wanted, wanted)
    assert parts("cuda", 30_000_000, start, wanted=wanted, processes=2) == (wanted, wanted)


@pytest.mark.parametrize("part", ["augmentation", "network"])
def test_without_a_compiler_what_is_asked_for_is_refused(tiny, monkeypatch, part):
    monkeypatch.setattr("clsp_plugin.system.compiling.can_compile", lambda device: False)
    cfg = tiny("simclr", f"performance.compile_{part}=True", "accelerator=cpu")
    with pytest.raises(ClspError, match=rf"performance.compile_{part}=True needs a C\+\+ compiler"):
        pretrain(cfg)


@pytest.mark.parametrize("again", ["auto_resume.enabled=True", "resume_from_checkpoint={}"])
def test_a_checkpoint_says_what_was_compiled(tiny, monkeypatch, again):
    # traced into graphs that run as they are: a real compilation takes half a minute
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    monkeypatch.setattr("clsp_plugin.system.compiling.can_compile", lambda device: True)
    keys = ["accelerator=cpu", "devices=1", "max_epochs=1", "checkpoint.enabled=True"]
    done = pretrain(tiny("simclr", *keys, "performance.compile_network=True"))
    cfg = parse_cfg(tiny("simclr", *keys, again.format(done.checkpoint)), METHODS)
    cfg.max_epochs = 2 if cfg.resume_from_checkpoint else 1
    expected = {"augmentation": False, "network": True}
    assert bound(read_checkpoint(done.checkpoint))["compiled"] == expected
    with ExitStack() as held:
        train, _ = load_splits(cfg.data)
        cfg.data.num_classes = 10
        cfg.data.mean, cfg.data.std = channel_statistics(cfg.data, cfg.augmentations)
        assert find_start(cfg, {"images": train.identity}, held).compiled == expected


def test_a_denoiser_is_not_compiled_for_renoised_parts_of_batches():
    with pytest.raises(ClspError, match=r"compile=True .* renoise_middle above 0 .* leave one"):
        TrainingSettings(compile=True, renoise_middle=0.5)
    assert TrainingSettings(compile=True).compile


def test_an_older_checkpoint_has_the_sum_of_the_seconds():
    history = History()
    history.load_state_dict({"curve": [{"epoch": 1}, {"epoch": 2}], "seconds": 5.0, "about": {}})
    assert history.seconds == [2.5, 2.5]
