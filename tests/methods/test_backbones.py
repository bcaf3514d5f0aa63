"""Backbones by name, their stems, and the refusal of bad settings."""

import copy

import pytest
import torch
import torchvision

from clsp_plugin.errors import ClspError
from clsp_plugin.methods.backbones import build_backbone, mend_layout, of_method, resolve_stem


def test_resnet_is_torchvision_s_key_by_key():
    ours, dim = build_backbone({"name": "resnet18"}, "imagenet100")
    theirs = torchvision.models.resnet18()
    theirs.fc = torch.nn.Identity()
    assert dim == 512
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def test_resnet_starts_as_torchvision_s_does():
    ours, _ = build_backbone({"name": "resnet18"}, "imagenet100")
    assert (ours.layer1[0].bn2.weight == 1).all()  # timm's default is 0


def test_solo_learn_s_stem_on_cifar_and_the_authors():
    solo = resolve_stem({"name": "resnet18"}, "cifar10")
    assert (solo["kernel_size"], solo["stride"], solo["padding"]) == (3, 1, 2)
    assert resolve_stem({"name": "resnet18"}, "custom") is None
    stem = {"kernel_size": 3, "stride": 1, "padding": 1, "max_pool": False}
    module, _ = build_backbone({"name": "resnet18", "stem": stem}, "cifar10")
    assert module.conv1.padding == (1, 1)
    assert module.conv1(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    assert isinstance(module.maxpool, torch.nn.Identity)


def test_any_timm_model():
    module, dim = build_backbone({"name": "convnext_atto"}, "custom")
    assert module(torch.randn(2, 3, 64, 64)).shape == (2, dim)


def test_a_stem_of_another_width_is_one_convolution():
    stem = {"kernel_size": 3, "stride": 2, "padding": 1, "max_pool": False}
    kwargs = {
        "channels": [16, 32, 64, 128],
        "layers": [1] * 4,
        "stem_type": "deep",
        "stem_width": 8,
    }
    module, features = build_backbone(
        {"name": "resnet18", "kwargs": kwargs, "stem": stem}, "digits"
    )
    assert isinstance(module.conv1, torch.nn.Conv2d)
    assert (module.conv1.in_channels, module.conv1.out_channels) == (3, 16)
    assert module(torch.rand(2, 3, 16, 16)).shape == (2, features)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"name": "resnet81"}, "did you mean 'resnet18'|is not a model of timm"),
        ({"name": "resnet18", "kwargs": {"patch": 3}}, "do not fit resnet18"),
        ({"name": "resnet18", "stem": {"kernel_size": 3}}, "backbone.stem needs exactly"),
        (
            {"name": "convnext_atto",
             "stem": {"kernel_size": 3, "stride": 1, "padding": 1, "max_pool": False}},
            "backbone.stem is for ResNets",
        ),
    ],
)  # fmt: skip
def test_bad_backbones_are_told(backbone, message):
    with pytest.raises(ClspError, match=message):
        build_backbone(backbone, "custom")


@pytest.mark.parametrize(("method", "heads"), [("mocov3", 12), ("clsp_mocov3", 12), ("dino", 3)])
def test_moco_v3_has_solo_learn_s_vision_transformers(method, heads):
    block = of_method({"name": "vit_tiny", "kwargs": {"depth": 1}}, method)
    assert build_backbone(block, "custom")[0].blocks[0].attn.num_heads == heads
    own = {"name": "vit_tiny", "kwargs": {"depth": 1, "num_heads": 4}}
    assert of_method(own, method) == own
    assert of_method({"name": "resnet18"}, method) == {"name": "resnet18"}


@pytest.mark.parametrize("channels", [1, 2, 8, 15, 16])
def test_where_a_cpu_would_write_outside_of_its_memory(channels):
    """At 56 pixels the gradient ended the process with 2 to 15 channels."""
    torch.manual_seed(0)
    block = {"name": "resnet18", "kwargs": {"channels": [channels, 8, 8, 8], "layers": [1] * 4}}
    module, _ = build_backbone(block, "custom")
    (layer,) = module.layer2[0].downsample[:1]
    twin = copy.deepcopy(layer).double()
    mend_layout(module, torch.device("cuda"))
    assert layer.stride == (2, 2)
    mend_layout(module, torch.device("cpu"))
    assert layer.stride == ((1, 1) if 2 <= channels <= 15 else (2, 2))
    layer.to(memory_format=torch.channels_last)
    x = torch.randn(16, channels, 56, 56).contiguous(memory_format=torch.channels_last)
    out, wanted = layer(x.requires_grad_()), twin(x.detach().double())
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-5)
    given = torch.randn_like(out)
    out.backward(given)
    wanted.backward(given.double())
    error = (layer.weight.grad - twin.weight.grad).abs().max()
    assert error < 1e-5 * twin.weight.grad.abs().max()
