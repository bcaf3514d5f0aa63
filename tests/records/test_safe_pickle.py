"""Checkpoints that name classes and functions of others are read, and nothing of them is run."""

import functools
import io
import json
import pickle
import sys
import types
import zipfile

import pytest
import torch

from clsp_plugin.errors import ClspError
from clsp_plugin.methods.backbones import build_backbone
from clsp_plugin.records import safe_pickle as inert
from clsp_plugin.records.backbone import load_backbone

BACKBONE = {"name": "resnet18", "kwargs": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}}
ARGS = {"method": "simsiam", "backbone": BACKBONE, "data": {"dataset": "digits"}}

HOST = """
import torch

def static_lr(get_lr, param_group_indexes, lrs_to_replace):
    return get_lr()

class Schedule(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        return [0.1]

class Settings(dict):
    pass
"""


@pytest.fixture
def host():
    """A package like solo-learn's that is there while a checkpoint is written."""
    module = types.ModuleType("strange_host.base")
    sys.modules["strange_host"] = types.ModuleType("strange_host")
    sys.modules["strange_host.base"] = module
    exec(HOST, module.__dict__)
    yield module
    for name in ("strange_host", "strange_host.base"):
        sys.modules.pop(name, None)


def write(folder, more):
    """A checkpoint with more than weights in it; its path, and the backbone's weights."""
    torch.manual_seed(0)
    module, _ = build_backbone(BACKBONE, "digits")
    state = {f"backbone.{key}": value for key, value in module.state_dict().items()}
    folder.mkdir(exist_ok=True)
    (folder / "args.json").write_text(json.dumps(ARGS))
    torch.save({"state_dict": state, **more}, folder / "a-ep=0.ckpt")
    return folder / "a-ep=0.ckpt", module.state_dict()


def schedule(host):
    """solo-learn's static rate: a scheduler whose method is replaced by a partial of itself."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = host.Schedule(optimizer)
    scheduler.get_lr = functools.partial(
        host.static_lr, get_lr=scheduler.get_lr, param_group_indexes=[1], lrs_to_replace=[0.1]
    )
    return scheduler.state_dict()


def test_a_schedule_of_solo_learn_s_static_rate(tmp_path, host):
    more = {"lr_schedulers": [schedule(host)], "hyper_parameters": host.Settings(a={1, 2})}
    path, weights = write(tmp_path, more)
    for name in ("strange_host", "strange_host.base"):
        del sys.modules[name]
    with pytest.raises(pickle.UnpicklingError):  # what made this reader necessary
        torch.load(path, weights_only=True)
    backbone, args, _ = load_backbone(path)
    assert args["method"] == "simsiam"
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert not any(name.startswith("strange_host") for name in sys.modules)


class Attack:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def test_nothing_of_a_file_is_run(tmp_path, capfd):
    target = tmp_path / "was_run"
    attacks = [Attack(exec, f"open({str(target)!r}, 'w')"), Attack(print, "was run")]
    path, _ = write(tmp_path / "run", {"hyper_parameters": attacks})
    load_backbone(path)
    assert not target.exists()
    assert "was run" not in capfd.readouterr().out


def test_what_rebuilds_tensors_cannot_be_changed(tmp_path):
    """A pickle may set attributes of what it names; torch's functions must stay what they are."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    # the function, a state of (None, {"__defaults__": (1,)}), BUILD
    build = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
    build += b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b."
    with pytest.raises(AttributeError, match="__defaults__"):
        inert.load(io.BytesIO(build))
    path, _ = write(tmp_path / "built", {})
    with zipfile.ZipFile(path) as archive:
        names = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in names.items():
            archive.writestr(name, build if name.endswith("data.pkl") else content)
    with pytest.raises(ClspError, match="is not a readable checkpoint"):
        load_backbone(path)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_weights_that_are_none_are_refused(tmp_path, host):
    path, _ = write(tmp_path / "a", {})
    content = torch.load(path, weights_only=True)
    content["state_dict"]["backbone.conv1.weight"] = host.Settings()
    torch.save(content, path)
    with pytest.raises(ClspError, match=r"something else than a tensor in backbone\.conv1\.weight"):
        load_backbone(path)


def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", "nonsense")
    path, _ = write(tmp_path, {"lr_schedulers": [Attack(print)]})
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:-200])
    for name in ("text", "zip", "cut"):
        with pytest.raises(ClspError, match=f"{name}.ckpt is not a readable checkpoint"):
            load_backbone(tmp_path / f"{name}.ckpt")
