"""Checkpoints and args.json are not trusted: damage, other types and other settings are told."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.records import checkpoint as module
from clsp_plugin.records.backbone import load_backbone
from clsp_plugin.records.checkpoint import (
    check_bound,
    comparable,
    find_checkpoint,
    in_order,
    load_args,
    read_checkpoint,
    read_newest,
)

FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "a-ep=1.ckpt"
    state = {f"layer{i}.weight": torch.randn(20, 20) for i in range(3)}
    torch.save({"state_dict": state, "epoch": 1}, path)
    return path


def _tried(function, *arguments):
    """What a function returns, or what it tells."""
    try:
        return function(*arguments), ""
    except ClspError as error:
        return None, str(error)


@FEW
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_is_told_or_changes_nothing(checkpoint, where, bit):
    content = checkpoint.read_bytes()
    flipped = bytearray(content)
    flipped[int(where * len(content))] ^= 1 << bit
    other = checkpoint.with_name("flipped.ckpt")
    other.write_bytes(flipped)
    read, told = _tried(read_checkpoint, other)
    if read is None:
        assert str(other) in told
        return
    whole = read_checkpoint(checkpoint)
    assert read.keys() == whole.keys()
    for key, value in whole["state_dict"].items():
        assert torch.equal(read["state_dict"][key], value)


@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_a_checkpoint_that_is_cut_off(checkpoint, size):
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    with pytest.raises(ClspError, match=r"a-ep=1.ckpt is not a readable checkpoint .*delete it"):
        read_checkpoint(checkpoint)


def test_a_zip_that_would_fill_the_machine_is_not_unpacked(checkpoint):
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(ClspError, match="bytes say that they unpack to 1,048,576"):
        read_checkpoint(checkpoint)


def test_torchs_advice_to_run_what_is_in_a_file_is_not_passed_on(checkpoint):
    checkpoint.write_bytes(pickle.dumps({"state_dict": print}))
    with pytest.raises(ClspError, match="neither weights nor numbers") as refused:
        read_checkpoint(checkpoint)
    assert "weights_only" not in str(refused.value)


def test_a_pipe_with_a_checkpoints_name_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a-ep=1.ckpt")
    with pytest.raises(ClspError, match="not a file but a pipe"):
        read_checkpoint(tmp_path / "a-ep=1.ckpt")


def test_a_checkpoint_that_is_replaced_while_it_is_looked_for(checkpoint, monkeypatch):
    """As when a run is evaluated that still trains."""
    following = checkpoint.with_name("a-ep=2.ckpt")

    def replaced(path):
        monkeypatch.undo()
        return checkpoint.rename(following) and checkpoint

    monkeypatch.setattr(module, "find_checkpoint", replaced)
    path, content = read_newest(checkpoint.parent)
    assert (path, content["epoch"]) == (following, 1)
    following.unlink()
    following.symlink_to("nowhere.ckpt")
    with pytest.raises(FileNotFoundError):
        read_newest(checkpoint.parent)


def test_a_copied_run_has_its_last_epoch(tmp_path):
    """Copying gives the files new times, in any order; the times of whole runs still count."""
    for run, times in {"new": {9: 7, 10: 5, 0: 8}, "old": {44: 1, 45: 6}}.items():
        (tmp_path / run).mkdir()
        for epoch, when in times.items():
            path = tmp_path / run / f"a-{run}-ep={epoch}.ckpt"
            path.write_bytes(b"")
            os.utime(path, (when, when))
    assert find_checkpoint(tmp_path).name == "a-new-ep=10.ckpt"
    assert find_checkpoint(tmp_path / "old").name == "a-old-ep=45.ckpt"
    ordered = [path.name[2:-5] for path in in_order(tmp_path.glob("*/*.ckpt"))]
    assert ordered == ["old-ep=44", "old-ep=45", "new-ep=0", "new-ep=9", "new-ep=10"]


def test_a_byte_in_a_weight_is_found_by_its_checksum(checkpoint):
    with zipfile.ZipFile(checkpoint) as file:
        biggest = max(file.infolist(), key=lambda info: info.file_size)
        content = file.read(biggest)
    whole = checkpoint.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(content) + len(content) // 2] ^= 0x40
    checkpoint.write_bytes(flipped)
    torch.load(checkpoint, weights_only=True)  # torch does not see it
    with pytest.raises(ClspError, match="does not match its checksum"):
        read_checkpoint(checkpoint)


def test_what_the_system_refuses_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "args.json").mkdir()
    with pytest.raises(IsADirectoryError):
        load_args(tmp_path)
    assert load_args(tmp_path / "nowhere") is None


# as solo-learn's main_pretrain.py and main_linear.py write them, cut
FOREIGN = [
    {"method": "simclr", "backbone": {"name": "resnet18", "kwargs": {}}, "max_epochs": 1000,
     "data": {"dataset": "cifar10", "train_path": "./datasets", "val_path": "./datasets",
              "format": "image_folder", "num_workers": 4, "fraction": -1, "no_labels": False,
              "num_classes": 10, "num_large_crops": 2, "num_small_crops": 0},
     "augmentations": [{"rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
                        "horizontal_flip": {"prob": 0.5}, "crop_size": 32, "num_crops": 2}],
     "momentum": {"base_tau": 0.99, "final_tau": 1.0, "classifier": None},
     "optimizer": {"name": "lars", "lr": 0.4, "exclude_bias_n_norm_wd": True},
     "wandb_run_id": None, "pretrained_feature_path": None, "seed": 5},
    {"method": "linear", "backbone": {"name": "resnet50"}, "data": {"dataset": "imagenet100"},
     "augmentations": {"crop_size": 224}},
]  # fmt: skip


def listed(args):
    """Settings with a list of pipelines, also if it was one: the rest looks at the first."""
    given = args.get("augmentations")
    return {**args, "augmentations": [given]} if isinstance(given, dict) else args


@pytest.mark.parametrize("args", FOREIGN)
def test_settings_of_others_are_taken(tmp_path, args):
    (tmp_path / "args.json").write_text(json.dumps(args))
    assert load_args(tmp_path) == listed(args)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                               max_size=3),
    max_leaves=5,
)  # fmt: skip
KEYS = [["method"], ["backbone"], ["backbone", "name"], ["backbone", "kwargs"], ["data"],
        ["backbone", "stem"], ["data", "dataset"], ["data", "mean"], ["augmentations"],
        ["augmentations", 0], ["augmentations", 0, "crop_size"], ["max_epochs"],
        ["augmentations", 0, "horizontal_flip"], ["data", "image_size"]]  # fmt: skip


@FEW
@given(path=st.sampled_from(KEYS), value=ODD)
def test_odd_settings_are_told_by_name(tmp_path, path, value):
    args = json.loads(json.dumps(FOREIGN[0]))
    place = args
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "args.json").write_text(json.dumps(args))
    read, told = _tried(load_args, tmp_path)
    assert read == listed(args) or any(key in told for key in path if isinstance(key, str)), told


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [(["method"], None, "has method"), (["backbone", "name"], 5, "has backbone.name 5"),
     (["backbone", "stem"], "x", "has backbone.stem 'x'"), (["augmentations"], "x", "has augment"),
     (["augmentations", 0, "crop_size"], "x", r"augmentations\[0\].crop_size 'x'"),
     (["data", "mean"], [None] * 3, "has data.mean 0=None"), (["data"], [1], "has data")],
)  # fmt: skip
def test_odd_settings(tmp_path, path, value, told):
    args = json.loads(json.dumps(FOREIGN[0]))
    place = args
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "args.json").write_text(json.dumps(args))
    with pytest.raises(ClspError, match=told):
        load_args(tmp_path)
    del place[path[-1]]
    (tmp_path / "args.json").write_text(json.dumps(args))
    if path in (["method"], ["backbone", "name"], ["data"]):
        with pytest.raises(ClspError, match="does not say"):
            load_args(tmp_path)
    else:
        assert load_args(tmp_path) == args


def test_nested_too_deeply(tmp_path):
    (tmp_path / "args.json").write_text("[" * 300_000)
    with pytest.raises(ClspError, match="nested too deeply"):
        load_args(tmp_path)


def test_settings_that_were_changed_do_not_fit_their_checkpoint(tiny, tmp_path):
    finished = pretrain(tiny("simclr", "max_epochs=1"))
    assert load_backbone(finished.run_dir)[2] == finished.checkpoint
    args = load_args(finished.run_dir)
    content = read_checkpoint(finished.checkpoint)
    for key in ("backbone", "max_epochs", "seed", "method_kwargs"):
        with pytest.raises(ClspError, match=r"args.json was changed, or is of another run"):
            check_bound({**args, key: 7}, content, finished.checkpoint)
    moved = {**args, "data": {**args["data"], "train_path": "elsewhere", "num_workers": 0}}
    check_bound({**moved, "checkpoint": {"dir": "elsewhere"}, "name": "b"}, content, tmp_path)
    del content["clsp_plugin"]  # of solo-learn, or older
    check_bound({**args, "seed": 7}, content, tmp_path)

    args["augmentations"][0]["crop_size"] = 17
    (finished.run_dir / "args.json").write_text(json.dumps(args))
    with pytest.raises(ClspError, match="was changed"):
        load_backbone(finished.run_dir)


def test_a_program_is_no_checkpoint(tmp_path):
    path = tmp_path / "program.ckpt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ClspError, match="TorchScript program"):
        read_checkpoint(path)


def test_columns_that_older_runs_lack():
    """A run goes on with settings that it did not have and that do nothing, but not with others."""
    older = {"method": "simclr", "data": {"dataset": "custom"}}
    nulls = {"image_column": None, "label_column": None}
    newer = {**older, "data": {**older["data"], **nulls}}
    other = {**older, "data": {**older["data"], **nulls, "label_column": "kind"}}
    assert comparable(newer) == comparable(older) != comparable(other)
