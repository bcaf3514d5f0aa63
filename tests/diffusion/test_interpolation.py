"""The two halves of the UNet, and the blend of middle features between them."""

import pytest
import torch
from diffusers import UNet2DModel

from clsp_plugin.diffusion.interpolation import (
    check_unet,
    decode,
    encode,
    guided_noise,
    interpolated_noise,
)
from clsp_plugin.errors import ClspError

BASE = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
VARIANTS = {
    "plain": {},
    "centred": {"center_input_sample": True},
    "learned time": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "skip_conv": {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "block_out_channels": (32, 64),
        "norm_num_groups": 32,
    },
    "resnet resampling": {
        "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
    },
    "no middle attention": {"add_attention": False},
}


def make(**keys):
    torch.manual_seed(0)
    return UNet2DModel(**{**BASE, **keys}).eval()


def noisy(batch, seed=0):
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("t", [999, torch.tensor(7), torch.tensor([0, 500, 999])])
def test_halves_are_the_whole(name, t):
    unet, x = make(**VARIANTS[name]), noisy(3)
    with torch.no_grad():
        expected = unet(x, t).sample
        assert torch.equal(decode(unet, *encode(unet, x, t)), expected)


def test_halves_in_half_precision():
    unet, x = make().to(torch.bfloat16), noisy(2).to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(decode(unet, *encode(unet, x, 5)), unet(x, 5).sample)


def middle_feature(unet, x, t):
    """The output of the middle block, seen from outside."""
    seen = []
    handle = unet.mid_block.register_forward_hook(lambda module, args, out: seen.append(out))
    unet(x, t)
    handle.remove()
    return seen[0]


def with_middle_feature(unet, x, t, h):
    """The plain UNet, with the output of its middle block replaced from outside."""
    handle = unet.mid_block.register_forward_hook(lambda module, args, out: h)
    out = unet(x, t).sample
    handle.remove()
    return out


@pytest.mark.parametrize("w", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("name", ["plain", "skip_conv"])
def test_against_a_unet_run_twice(w, name):
    unet, x, anchor, t = make(**VARIANTS[name]), noisy(3), noisy(3, seed=1), 400
    with torch.no_grad():
        h = w * middle_feature(unet, x, t) + (1 - w) * middle_feature(unet, anchor, t)
        expected = with_middle_feature(unet, x, t, h)
        assert torch.equal(interpolated_noise(unet, x, anchor, t, w), expected)
        # the blend is no small change, so that what follows from it is tested
        assert not torch.allclose(expected, unet(x, t).sample, atol=1e-4)


def test_w_is_the_weight_of_the_sample():
    unet, x, anchor = make(), noisy(2), noisy(2, seed=1)
    garbage = {"calls": 0}

    def spoil_first_call(module, args, out):
        garbage["calls"] += 1
        return out + 1e3 if garbage["calls"] == 1 else out

    with torch.no_grad():
        expected = interpolated_noise(unet, x, anchor, 9, 0.0)
        handle = unet.mid_block.register_forward_hook(spoil_first_call)
        # w = 0: the sample's own middle feature counts for nothing, its skips still do
        assert torch.equal(interpolated_noise(unet, x, anchor, 9, 0.0), expected)
        assert garbage["calls"] == 2
        handle.remove()
        assert not torch.allclose(interpolated_noise(unet, noisy(2, 2), anchor, 9, 0.0), expected)


def test_w_one_is_the_plain_model_and_ignores_the_anchor():
    unet, x, calls = make(), noisy(2), []
    with torch.no_grad():
        expected = unet(x, 9).sample
        unet.conv_in.register_forward_hook(lambda *args: calls.append(1))
        nothing = torch.full_like(x, torch.nan)
        assert torch.equal(interpolated_noise(unet, x, nothing, 9, 1.0), expected)
    assert len(calls) == 1


def test_an_anchor_is_shared_by_its_candidates():
    unet, x, anchors, rows = make(), noisy(6), noisy(2, seed=1), []
    with torch.no_grad():
        repeated = anchors[[0, 0, 0, 1, 1, 1]]
        expected = interpolated_noise(unet, x, repeated, 9, 0.1)
        unet.mid_block.register_forward_hook(lambda module, args, out: rows.append(len(out)))
        out = interpolated_noise(unet, x, anchors, 9, 0.1)
    torch.testing.assert_close(out, expected)
    assert rows == [6, 2]


def test_a_class_goes_with_its_sample_and_its_anchor():
    unet, x, anchors = make(num_class_embeds=5), noisy(6), noisy(2, seed=1)
    labels = torch.tensor([1, 1, 1, 4, 4, 4])
    with torch.no_grad():
        expected = unet(x, 9, class_labels=labels).sample
        assert torch.equal(decode(unet, *encode(unet, x, 9, labels)), expected)
        assert not torch.allclose(encode(unet, x, 9, labels)[0], encode(unet, x, 9, 0 * labels)[0])
        own = encode(unet, anchors, 9, labels[[0, 3]])[0].repeat_interleave(3, 0)
        h, skips, emb = encode(unet, x, 9, labels)
        expected = decode(unet, 0.1 * h + (1 - 0.1) * own, skips, emb)
        assert torch.equal(interpolated_noise(unet, x, anchors, 9, 0.1, labels), expected)
        parts = [
            interpolated_noise(unet, x, anchors, 9, 0.1, part) for part in (labels, 0 * labels)
        ]
        guided = guided_noise(unet, x, anchors, 9, 0.1, labels - 1, 1.8)
        torch.testing.assert_close(guided, 2.8 * parts[0] - 1.8 * parts[1])
        alone = guided_noise(unet, x, anchors, 9, 0.1, labels - 1, 0.0)
        assert torch.equal(alone, parts[0])


@pytest.mark.parametrize("w", [-0.1, 1.1, float("nan")])
def test_a_weight_out_of_range_is_refused(w):
    with pytest.raises(ClspError, match=r"w=.* is not between 0 .* and 1"):
        interpolated_noise(make(), noisy(1), noisy(1), 9, w)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"class_embed_type": "timestep"}, "takes no class numbers"),
        ({"time_embedding_type": "fourier"}, "noise levels"),
        ({"mid_block_type": None}, "no middle block"),
        ({"in_channels": 1, "out_channels": 1}, "1 channels to 1"),
        ({"out_channels": 6}, "3 channels to 6"),
    ],
)
def test_an_unsupported_unet_is_refused(keys, message):
    unet = make(**keys)
    with pytest.raises(ClspError, match=message):
        check_unet(unet)
    with pytest.raises(ClspError, match=message):
        encode(unet, noisy(1), 9)
