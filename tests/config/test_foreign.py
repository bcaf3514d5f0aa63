"""What comes with a file of others asks for nothing: no other file, no environment, no network."""

import json
import os
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clsp_plugin.config.foreign import check_args, check_literal
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.backbones import build_backbone
from clsp_plugin.records.backbone import load_backbone

BACKBONE = {"name": "resnet18", "kwargs": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}}


@pytest.fixture
def run(tmp_path):
    """A checkpoint whose args.json has more ``backbone.kwargs``."""
    module, _ = build_backbone(BACKBONE, "digits")
    state = {f"backbone.{key}": value for key, value in module.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a-ep=0.ckpt")

    def make(**kwargs):
        backbone = {**BACKBONE, "kwargs": {**BACKBONE["kwargs"], **kwargs}}
        args = {"method": "simsiam", "backbone": backbone, "data": {"dataset": "digits"},
                "max_epochs": 1}  # fmt: skip
        (tmp_path / "args.json").write_text(json.dumps(args))
        return tmp_path

    return make


class Attack:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint_path", "evil.pt"), ("pretrained", "x"), ("cache_dir", "x"),
        ("pretrained_cfg", {"url": "http://localhost/x"}),
        ("pretrained_cfg_overlay", {"file": "x"}),
        ("features_only", True), ("_target_", "os.system"), ("scriptable", True),
        ("act_layer", {"_target_": "os.system"}), ("norm_layer", "https://x"), ("block", "/etc/x"),
    ],
)  # fmt: skip
def test_a_checkpoint_s_settings_name_no_other_file(run, monkeypatch, key, value):
    folder = run(**{key: value})
    monkeypatch.chdir(folder)
    torch.save({"x": Attack()}, "evil.pt")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(ClspError, match=rf"args\.json has backbone\.kwargs\.{key}="):
        load_backbone(folder)
    assert not (folder / "was_run").exists()


@pytest.mark.parametrize("pretrained", [False, True])
def test_what_changes_nothing_is_taken(run, pretrained):
    """Nor are weights fetched that a training began from: the checkpoint has its own."""
    _, args, _ = load_backbone(run(pretrained=pretrained, checkpoint_path=None, drop_rate=0.0))
    assert args["backbone"]["kwargs"]["drop_rate"] == 0.0


NESTED = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(NESTED)
@settings(max_examples=50)
def test_nothing_is_resolved_however_deep(content):
    asks = "${" in json.dumps(content)
    for block in (content, {"a": [content]}):
        if not asks:
            check_literal(block, "x has")
    with pytest.raises(ClspError, match=r"is not resolved"):
        check_literal({"a": [content, {"b": "x${oc.env:SECRET}"}]}, "x has")


def test_an_args_file_is_not_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cr3t")
    args = {"backbone": {"name": "resnet18"}, "data": {"train_path": "${oc.env:SECRET}"}}
    with pytest.raises(ClspError, match=r"data\.train_path=\$\{oc\.env:SECRET\}") as told:
        check_args(args, tmp_path / "args.json")
    assert "s3cr3t" not in str(told.value)
