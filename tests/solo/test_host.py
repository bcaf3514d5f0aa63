"""Our methods in the untouched ``main_pretrain.py`` of a real solo-learn."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from solo_run import CPU, SHORT, same, states

from clsp_plugin.config.shipped import shipped

# solo-learn's configuration of a method, and what fits it to sixteen images a batch
METHODS = {
    "all4one": [], "barlow_twins": [], "byol": [], "deepclusterv2": [], "dino": [],
    "mocov2": ["method=clsp_mocov2"], "mocov2plus": [], "mocov3": [], "nnbyol": [], "nnclr": [],
    "nnsiam": [], "ressl": [], "simclr": [], "simsiam": [], "supcon": [],
    "swav": ["method_kwargs.num_prototypes=32", "method_kwargs.queue_size=32"],
    "vibcreg": [], "vicreg": [],
    "wmse": ["method_kwargs.whitening_size=16", "method_kwargs.proj_output_dim=8"],
}  # fmt: skip
CONFIGS = {"barlow_twins": "barlow", "mocov2": "mocov2plus"}


@pytest.fixture(autouse=True)
def untouched(clone):
    """Nothing in the clone changes."""
    yield
    out = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True
    )
    assert out.stdout == ""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_an_epoch(pretrain, tmp_path, candidates, name):
    config = CONFIGS.get(name, name)
    pretrain(f"{config}.yaml", f"method=clsp_{name}", *METHODS[name])
    (args,) = (tmp_path / "trained" / f"clsp_{name}").glob("*/args.json")
    args = json.loads(args.read_text())
    assert args["method"] == f"clsp_{name}"
    assert args["synthetic"]["path"] == str(candidates)
    assert args["synthetic"]["weight"] == 1.0
    assert list((tmp_path / "trained" / f"clsp_{name}").glob("*/*-ep=0.ckpt"))


@pytest.mark.parametrize("name", ["simclr", "byol", "wmse"])
def test_the_control_trains_too(pretrain, tmp_path, name):
    pretrain(f"{name}.yaml", f"method={name}_aug", "synthetic.path=null", *METHODS[name])
    assert states(tmp_path, f"{name}_aug")


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_weight_zero_is_solo_learn_s_own_method(pretrain, tmp_path, name):
    pretrain(f"{name}.yaml")
    pretrain(f"{name}.yaml", f"method=clsp_{name}", "++synthetic.weight=0")
    pretrain(f"{name}.yaml", f"method={name}_aug", "++synthetic.weight=1")
    plain = states(tmp_path, name)
    assert same(plain, states(tmp_path, f"clsp_{name}"))
    assert not same(plain, states(tmp_path, f"{name}_aug"))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("simclr", ["use=view"]),
        ("byol", ["use=view", "from_epoch=0"]),
        ("vicreg", ["use=replace", "probability=0.5", "choice=hardest", "choice_of=2"]),
        ("mocov2plus", ["use=multi", "per_step=3", "pair_weight=quality"]),
        ("dino", ["use=multi", "per_step=2", "choice=curriculum", "schedule=cosine"]),
    ],
)
def test_every_use_trains(pretrain, tmp_path, name, settings):
    given = [f"++synthetic.{one}" for one in settings]
    pretrain(f"{name}.yaml", f"method=clsp_{name}", *given)
    (args,) = (tmp_path / "trained" / f"clsp_{name}").glob("*/args.json")
    assert json.loads(args.read_text())["synthetic"]["use"] == settings[0].removeprefix("use=")
    assert states(tmp_path, f"clsp_{name}")


@pytest.mark.parametrize("nothing", [["replace", "probability=0"], ["multi", "per_step=0"]])
def test_a_use_of_nothing_is_solo_learn_s_own_method(pretrain, tmp_path, nothing):
    use, amount = nothing
    pretrain("simclr.yaml")
    pretrain("simclr.yaml", "method=clsp_simclr", f"++synthetic.use={use}",
             f"++synthetic.{amount}", "++synthetic.path=null")  # fmt: skip
    assert same(states(tmp_path, "simclr"), states(tmp_path, "clsp_simclr"))


def test_our_configuration_is_found_by_name(pretrain, tmp_path):
    small = ["method_kwargs.proj_hidden_dim=32", "method_kwargs.proj_output_dim=16"]
    for name, path in (
        ("clsp_simclr", "scripts/pretrain/cifar"),
        ("clsp_simclr.yaml", str(shipped() / "pretrain/cifar")),
    ):
        where = tmp_path / name
        pretrain(name, *small, f"checkpoint.dir={where}", path=path)
        (run,) = where.glob("clsp_simclr/*/args.json")
        args = json.loads(run.read_text())
        assert args["augmentations"][0]["rrc"]["crop_min_scale"] == 0.08  # ours, not the host's
        assert "stem" not in args["backbone"]  # solo-learn builds its own
        assert args["optimizer"]["lr"] == pytest.approx(0.125 * 16 / 256)
        assert next(run.parent.glob("*.ckpt"))


def test_a_store_for_other_images_is_refused(pretrain, tmp_path, array, write_store):
    flipped = type(array)(array.images.flip(1), array.targets, array.classes, "flipped")
    other = write_store(tmp_path / "other", flipped)
    text = pretrain("simclr.yaml", "method=clsp_simclr", f"++synthetic.path={other}", check=False)
    assert "no candidates for 40 of the 40 images" in text
    assert not list((tmp_path / "trained").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=clsp_mae"], "There is no clsp_mae: MAE reconstructs patches"),
        (["method=clsp_simclr", "++synthetic.path=null"], "clsp_simclr needs candidates"),
        (["method=clsp_simclr", "++synthetic.wieght=1"], "did you mean 'weight'"),
        (["method=clsp_mocov2plus", "++synthetic.use=view"], "that loss is one of two; set synth"),
        (["method=clsp_simclr", "++optimizer.scale_lr=False"], "scale_lr=False has no effect"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(pretrain, tmp_path, overrides, message):
    text = pretrain("simclr.yaml", *overrides, check=False)
    assert message in text
    assert not list((tmp_path / "trained").rglob("*.ckpt"))


def test_a_part_of_the_images_is_matched(pretrain, tmp_path):
    pretrain("simclr.yaml", "method=clsp_simclr", "++data.fraction=0.6")
    assert states(tmp_path, "clsp_simclr")


def test_two_processes(pretrain, tmp_path):
    pretrain(
        "simclr.yaml", "method=clsp_simclr", "devices='2'", "strategy=ddp", "sync_batchnorm=False"
    )
    assert states(tmp_path, "clsp_simclr")


def test_a_killed_run_resumes(clone, images, candidates, tmp_path):
    command = [
        sys.executable, "main_pretrain.py", "--config-path", "scripts/pretrain/cifar",
        "--config-name", "simclr.yaml", "method=clsp_simclr", "data.dataset=custom",
        f"data.train_path={images}/train", f"data.val_path={images}/val",
        f"++synthetic.path={candidates}", f"checkpoint.dir={tmp_path}/trained", *CPU, *SHORT,
        "max_epochs=5", "auto_resume.enabled=True", "checkpoint.frequency=1",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=clone, env=env, **quiet)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("trained/*/*/*ep=0.ckpt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not list(tmp_path.glob("trained/*/*/*ep=4.ckpt"))
    again = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=True)
    assert "Resuming from previous checkpoint" in again.stdout
    assert len(list(tmp_path.glob("trained/*/*/*ep=4.ckpt"))) == 1


def test_wandb_without_a_network(pretrain, clone, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed; pip install wandb")
    before = set(clone.glob("wandb/offline-run-*"))  # a folder that solo-learn's git ignores
    settings = ("wandb.enabled=True", "+wandb.offline=True")  # of the page
    pretrain("simclr.yaml", "method=clsp_simclr", *settings)
    (made,) = set(clone.glob("wandb/offline-run-*")) - before
    assert list(made.glob("*.wandb"))
    shutil.rmtree(made)
    assert list((tmp_path / "trained/clsp_simclr").glob("*/*-ep=0.ckpt"))


def test_without_the_hook_nothing_is_known(run, clone):
    """A control of this file: it is the hook that makes the names known."""
    out = run("-c", "import solo.methods as m; print('clsp_simclr' in m.METHODS)")
    assert "False" in out.stdout


def test_doctor_sees_the_clone(run, clone):
    out = run("-m", "clsp_plugin.cli", "doctor")
    assert f"the clone in {Path(clone).resolve()}" in out.stdout
    assert "19 of solo-learn's, 18 of them with synthetic positives" in out.stdout
    assert "found by Hydra" in out.stdout
