"""Paths with blanks, commas, brackets, quotes and umlauts, through the verbs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clsp_plugin
from clsp_plugin.candidates.manifest import generate_command
from clsp_plugin.cli.main import _dispatch
from clsp_plugin.config.compose import compose, locate
from clsp_plugin.config.overrides import as_typed, hydra_overrides
from clsp_plugin.records.record import Record
from clsp_plugin.suites.planner import make_plan
from clsp_plugin.suites.suite import read_suite
from clsp_plugin.suites.unit import Step

ODD = 'My (new), folder\'s [1] {x: y} ä = #1 "é" $HOME & 50 % \\ it;'
KEYS = {
    "pretrain": ("data.train_path", "data.val_path", "data.extra", "checkpoint.dir",
                 "synthetic.path", "resume_from_checkpoint"),
    "denoiser": ("data.train_path", "condition", "fid", "out"),
    "generate": ("data.train_path", "condition", "denoiser", "export_npy", "out"),
    "linear": ("data.train_path", "data.val_path", "pretrained_feature_extractor"),
    "knn": ("data.train_path", "data.val_path", "pretrained_feature_extractor"),
    "transfer": ("data.path", "pretrained_feature_extractor"),
    "finetune": ("data.train_path", "checkpoint.dir", "pretrained_feature_extractor",
                 "resume_from_checkpoint"),
}  # fmt: skip
CONFIGS = {"pretrain": "digits/clsp_simclr", "denoiser": "digits/denoiser",
           "generate": "digits/generate"}  # fmt: skip
NET = {
    "backbone.kwargs.channels": [8, 8, 8, 8], "backbone.kwargs.layers": [1, 1, 1, 1],
    "optimizer.batch_size": 8, "max_epochs": 1, "accelerator": "cpu",
}  # fmt: skip


def _at(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("verb", KEYS)
def test_every_path_of_a_verb_arrives_as_it_was_given(verb):
    given = {key: f"/tmp/{number}/{ODD}" for number, key in enumerate(KEYS[verb])}
    cfg = compose(verb, CONFIGS.get(verb, verb), [f"{key}={value}" for key, value in given.items()])
    assert {key: _at(cfg, key) for key in given} == given


@pytest.mark.parametrize("path", [f"/tmp/{ODD}", "null", "'a'", "[1]", "1e5", "C:\\Users\\ä\\"])
def test_from_python_a_path_is_any_path(path):
    from clsp_plugin.api import _typed

    keys = ("data.train_path", "export_npy")
    given = [_typed(keys[0], path), _typed(keys[1], Path(path))]
    cfg = compose("generate", "digits/generate", given)
    assert [_at(cfg, key) for key in keys] == [path, path]


def test_what_hydra_was_given_is_told_as_it_is_typed():
    folder, _ = locate("pretrain", None, "simclr")
    typed = ["seed=1", f"data.train_path={ODD}", "data.val_path='null'", "k=[1,2]", "name=",
             "data.extra='quoted'", "augmentations=symmetric", "method='a, b'", "k='[1'",
             "~method_kwargs", "+x=[1, 'a b']"]  # fmt: skip
    translated = hydra_overrides(typed, folder)
    told = [as_typed(override, folder) for override in translated]
    assert told == typed
    assert as_typed("++data.train_path=/a", folder) == "data.train_path=/a"


def test_a_printed_command_can_be_pasted():
    paths = {"out": f"/tmp/{ODD}", "auto_resume.max_hours": None, "auto_resume.enabled": True}
    step = Step("pretrain", "digits/simclr", (f"data.train_path={ODD}",), paths, None, "")
    words = shlex.split(step.command)
    assert words[:4] == ["clsp", "pretrain", "--config-name", "digits/simclr"]
    assert words[4:] == [f"data.train_path={ODD}", f"out=/tmp/{ODD}", "auto_resume.max_hours=null",
                         "auto_resume.enabled=True"]  # fmt: skip
    paths = {"store": ODD, "encoder": f"{ODD}/a", "out": f"{ODD}/b"}
    words = shlex.split(Step("inspect", "digits/generate", (), paths, None, "").command)
    assert words == ["clsp", "inspect", ODD, "--config-name", "digits/generate", "--out",
                     f"{ODD}/b", "--encoder", f"{ODD}/a"]  # fmt: skip
    words = shlex.split(generate_command(ODD, {"dataset": "custom", "train_path": f"{ODD}/c"}))
    assert words[-2:] == [f"data.train_path={ODD}/c", f"out={ODD}"]


def test_a_suite_s_steps_are_given_such_a_path(tmp_path):
    given = [f"data.train_path={ODD}", f"generate.condition={ODD}/c", f"knn.data.val_path={ODD}/v"]
    name, suite = read_suite("digits", given)
    plan = make_plan(name, suite, tmp_path / ODD)
    found = set()
    for unit in plan.units:
        for step in unit.steps:
            words = shlex.split(step.command)
            assert words[:2] == ["clsp", step.verb]
            cfg = compose(step.verb, step.config, words[4:])
            for verb, key in (("pretrain", "data.train_path"), ("generate", "data.train_path"),
                              ("generate", "condition"), ("knn", "data.val_path")):  # fmt: skip
                if verb == step.verb:
                    found.add((verb, key, _at(cfg, key)))
            assert {key: _at(cfg, key) for key in step.paths} == step.paths
    assert found == {("pretrain", "data.train_path", ODD), ("generate", "data.train_path", ODD),
                     ("generate", "condition", f"{ODD}/c"),
                     ("knn", "data.val_path", f"{ODD}/v")}  # fmt: skip


def test_the_whole_way_in_such_a_folder(clsp, tmp_path, monkeypatch):
    root = tmp_path / ODD
    generator = np.random.default_rng(0)
    for name in ("cat, small", "dog"):
        for i in range(8):
            file = root / "train" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(file)
    data = ["data.dataset=custom", f"data.train_path={root}/train", "data.image_size=16"]
    denoiser, store, npy = root / "denoiser", root / "store", root / "all (1).npy"
    ended = [
        clsp("denoiser", *data, f"out={denoiser}", "block_out_channels=[8,8]", "max_epochs=1",
             "batch_size=8"),
        clsp("generate", *data, f"denoiser={denoiser}", f"out={store}", f"export_npy={npy}",
             "num_candidates=1", "steps=2"),
        clsp("pretrain", "--config-name", "clsp_simclr", *data, f"data.val_path={root}/train",
             f"synthetic.path={store}", f"checkpoint.dir={root}", "auto_resume.enabled=False",
             "scheduler.warmup_epochs=0", *(f"{key}={value}" for key, value in NET.items())),
    ]  # fmt: skip
    assert [code for code, _, _ in ended] == [0, 0, 0], ended[-1][2]
    for _, out, err in ended:  # not to a terminal: lines, and nothing that moves the cursor
        assert not re.search(r"[\r\x1b]", out + err)
        assert re.search(r"100%\| .*\n", err)
    assert np.load(npy).shape == (16, 1, 16, 16, 3)
    (record,) = root.glob("clsp_simclr/*/record.json")
    run = record.parent
    code, _, err = clsp("knn", f"pretrained_feature_extractor={run}", "k=[1]")
    assert code == 0, err
    assert clsp("export", run, "--out", root / "exported")[0] == 0
    card = (root / "exported" / "README.md").read_text(encoding="utf-8")
    command = card.partition("Command: `")[2].partition("`.\n")[0].partition("`. ")[0]
    words = shlex.split(command)
    assert f"data.train_path={root}/train" in words  # and the rest, so that it can be pasted:
    assert words[words.index("--config-name") + 2 :] == Record.load(record).source["overrides"]
    before = record.read_bytes()
    monkeypatch.setattr("sys.argv", words)
    _dispatch([*words[1:], "auto_resume.enabled=True"])  # the same run, which is complete
    assert record.read_bytes() == before
    settings = {"k": [1]}
    found = clsp_plugin.evaluate(run, "knn", {**settings, "data.train_path": root / "train"})
    assert found["num_test"] == 16
