"""Each step against torchvision on single images, the draws, and the pipeline as a whole."""

import copy
import itertools
import math
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
import torchvision.transforms.functional as F
from omegaconf import OmegaConf
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from clsp_plugin.data.augmentation import operations, parameters, steps
from clsp_plugin.data.augmentation import pipeline as module
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import (
    BatchAugmentation,
    can_compile_augmentation,
)
from clsp_plugin.data.keyed_random import key_uniform, keys_for
from clsp_plugin.errors import ClspError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
JITTER = {"brightness": 0.4, "contrast": 0.5, "saturation": 0.6, "hue": 0.1}
EVERYTHING = AugmentationConfig(
    crop_size=32,
    crop=True,
    jitter_prob=0.8,
    **JITTER,
    grayscale_prob=0.3,
    blur_prob=0.5,
    solarize_prob=0.3,
    equalize_prob=0.3,
    flip_prob=0.5,
)
# without the two steps that jump, so that rounding errors stay small
SMOOTH = AugmentationConfig(
    **{**vars(EVERYTHING), "solarize_prob": 0.0, "equalize_prob": 0.0, "interpolation": "bilinear"}
)


def uint8_images(*shape, seed=0):
    """Noise on a gradient: all values occur, neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, shape, generator=generator)
    ramp = torch.linspace(0, 255, shape[-2])[:, None]
    return (0.6 * noise + 0.4 * ramp).round().to(torch.uint8)


def float_images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def make_keys(n, base=1):
    return keys_for(base, torch.arange(n))


def assert_near(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def sample(cfg, keys, height=32, width=32):
    return parameters.sample_parameters(keys, cfg, height, width, parameters.jitter_slots(cfg))


# ------------------------------------------------------------------------------ configuration

SOLO_LEARN = {
    "rrc": {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0},
    "color_jitter": {
        "prob": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
    },
    "grayscale": {"prob": 0.2},
    "gaussian_blur": {"prob": 0.5},
    "solarization": {"prob": 0.1},
    "equalization": {"prob": 0.3},
    "horizontal_flip": {"prob": 0.5},
    "crop_size": 32,
    "num_crops": 2,
}


@pytest.mark.parametrize("convert", [dict, OmegaConf.create])
def test_reads_solo_learns_keys(convert):
    cfg = AugmentationConfig.from_cfg(convert(SOLO_LEARN))
    assert cfg == AugmentationConfig(
        crop_size=32,
        num_crops=2,
        crop=True,
        crop_min_scale=0.08,
        crop_max_scale=1.0,
        interpolation="bicubic",
        jitter_prob=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grayscale_prob=0.2,
        blur_prob=0.5,
        solarize_prob=0.1,
        equalize_prob=0.3,
        flip_prob=0.5,
    )


def test_absent_and_null_blocks_are_off():
    cfg = AugmentationConfig.from_cfg({"crop_size": 16, "grayscale": None, "mean": [0.5] * 3})
    assert cfg == AugmentationConfig(crop_size=16)
    assert not cfg.crop


def test_a_jitter_that_never_happens_needs_no_strengths():
    cfg = AugmentationConfig.from_cfg({"crop_size": 16, "color_jitter": {"prob": 0.0}})
    assert cfg.jitter_prob == 0


def test_interpolation_and_omegaconf_references():
    rrc = {"enabled": False, "interpolation": "bilinear"}
    cfg = OmegaConf.create({"size": 24, "a": {"crop_size": "${size}", "rrc": rrc}})
    read = AugmentationConfig.from_cfg(cfg.a)
    assert (read.crop_size, read.interpolation) == (24, "bilinear")


def edited(path, value):
    cfg = copy.deepcopy(SOLO_LEARN)
    *blocks, key = path.split(".")
    inner = cfg[blocks[0]] if blocks else cfg
    inner[key] = value
    return cfg


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("grayscal", {"prob": 0.1}, "grayscal is not a setting; did you mean 'grayscale'"),
        ("rrc.crop_min_scal", 0.1, "rrc.crop_min_scal is not .* did you mean 'crop_min_scale'"),
        ("color_jitter.brightnes", 0.1, "color_jitter.brightnes is .* did you mean 'brightness'"),
        ("rrc", 0.5, "rrc=0.5 is not a block of settings"),
        ("rrc.enabled", 2, "rrc.enabled=2 must be true or false"),
        ("rrc.crop_min_scale", 0.0, "rrc.crop_min_scale=0.0 must be .* above 0"),
        ("rrc.crop_max_scale", 0.05, "crop_min_scale=0.08 must be at most rrc.crop_max_scale=0.05"),
        ("rrc.crop_max_scale", 1.5, r"rrc.crop_max_scale=1.5 must be at most 1"),
        ("rrc.interpolation", ["bicubic"], "rrc.interpolation: Cannot convert"),
        (
            "rrc.interpolation",
            "bicubc",
            "rrc.interpolation=bicubc must be one of bilinear, bicubic",
        ),
        ("color_jitter.prob", 1.1, "color_jitter.prob=1.1 must be at least 0 and at most 1"),
        ("color_jitter.prob", "much", "color_jitter.prob=much must be a number"),
        ("color_jitter.prob", True, "color_jitter.prob=True must be a number"),
        ("color_jitter.prob", math.nan, "color_jitter.prob=nan must be a finite number"),
        ("color_jitter.brightness", -0.1, "color_jitter.brightness=-0.1 must be at least 0"),
        ("color_jitter.contrast", math.inf, "color_jitter.contrast=inf must be a finite number"),
        ("color_jitter.saturation", -1, "color_jitter.saturation=-1.0 must be at least 0"),
        ("color_jitter.hue", 0.6, "color_jitter.hue=0.6 must be at least 0 and at most 0.5"),
        ("color_jitter.hue", -0.1, "color_jitter.hue=-0.1 must be"),
        ("color_jitter", {"prob": 0.5}, "color_jitter.brightness is not set"),
        ("gaussian_blur", {}, "gaussian_blur.prob is not set"),
        ("gaussian_blur", {"prob": None}, "gaussian_blur.prob=null is no value"),
        ("gaussian_blur.enabled", False, "gaussian_blur.enabled is False and its prob is 0.5"),
        ("rrc", {"crop_min_scale": 0.1}, "rrc.enabled is not set"),
        ("grayscale.prob", -0.1, "grayscale.prob=-0.1 must be"),
        ("gaussian_blur.prob", 2, "gaussian_blur.prob=2.0 must be"),
        ("solarization.prob", -1, "solarization.prob=-1.0 must be"),
        ("equalization.prob", 1.01, "equalization.prob=1.01 must be"),
        ("horizontal_flip.prob", -0.5, "horizontal_flip.prob=-0.5 must be"),
        ("crop_size", 0, "crop_size=0 must be at least 1"),
        ("crop_size", 32.5, "crop_size=32.5 must be a whole number"),
        ("num_crops", True, "num_crops=True must be a number"),
    ],
)
def test_refuses(path, value, message):
    with pytest.raises(ClspError, match=message):
        AugmentationConfig.from_cfg(edited(path, value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_size": "large"}, "crop_size=large must be a whole number"),
        ({"crop_size": True}, "crop_size=True must be a number"),
        ({"hue": 0.6}, "hue=0.6 must be at least 0 and at most 0.5"),
        ({"crop_min_scale": 0.9, "crop_max_scale": 0.5}, "crop_min_scale=0.9 must be at most"),
    ],
)
def test_refuses_them_in_python_too(values, message):
    with pytest.raises(ClspError, match=message):
        AugmentationConfig(**{"crop_size": 16, **values})
    with pytest.raises(TypeError, match="crop_size"):
        AugmentationConfig()


def test_refuses_what_is_no_mapping_and_a_missing_size():
    with pytest.raises(ClspError, match="is not a block of settings"):
        AugmentationConfig.from_cfg([SOLO_LEARN])
    with pytest.raises(ClspError, match="crop_size is not set"):
        AugmentationConfig.from_cfg({"rrc": {"enabled": True}})


def test_from_cfg_leaves_its_argument_alone():
    cfg = edited("crop_size", 32)
    before = repr(cfg)
    AugmentationConfig.from_cfg(cfg)
    assert repr(cfg) == before


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), STD, "mean must be three finite numbers"),
        (MEAN, (0.2, 0.2, math.inf), "std must be three finite numbers"),
        (MEAN, (0.2, 0.0, 0.2), "std must be positive"),
    ],
)
def test_refuses_bad_statistics(mean, std, message):
    with pytest.raises(ClspError, match=message):
        BatchAugmentation(EVERYTHING, mean, std)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    ("images", "keys", "message"),
    [
        (float_images(2, 8, 8, 3), make_keys(2), "images must be uint8"),
        (uint8_images(2, 3, 8, 8), make_keys(2), "height, width, 3"),
        (uint8_images(8, 8, 3), make_keys(8), "images must be uint8"),
        (uint8_images(2, 8, 8, 3), make_keys(3), r"keys must be int64 of shape \(2,\)"),
        (uint8_images(2, 8, 8, 3), make_keys(2).int(), "keys must be int64"),
        (uint8_images(2, 8, 8, 3), make_keys(2).to("meta"), "keys are on meta"),
    ],
)
def test_refuses_a_bad_batch(images, keys, message, compile):
    with pytest.raises(ClspError, match=message):
        BatchAugmentation(EVERYTHING, MEAN, STD, compile=compile)(images, keys)


# ------------------------------------------------------------- single steps, torchvision beside


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("out", [32, 7, 64, 24])
def test_crop_resize(interpolation, out):
    height, width = 40, 33
    boxes = [(0, 0, 40, 33), (3, 5, 9, 11), (39, 32, 1, 1), (10, 0, 30, 2), (1, 1, 32, 32)]
    images = uint8_images(len(boxes), height, width, 3)
    top, left, h, w = torch.tensor(boxes).float().unbind(1)
    rows = operations.resize_weights(top, h, height, out, interpolation)
    columns = operations.resize_weights(left, w, width, out, interpolation)
    actual = operations.crop_resize(images, rows, columns)
    for image, box, result in zip(images, boxes, actual, strict=True):
        image = image.permute(2, 0, 1).float() / 255
        expected = F.resized_crop(image, *box, [out, out], MODES[interpolation], antialias=True)
        assert_near(result, expected.clamp(0, 1))


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize(("height", "width"), [(48, 48), (20, 20), (48, 64), (65, 40), (17, 31)])
def test_without_a_crop_the_shorter_side_is_resized_and_the_centre_kept(
    height, width, interpolation
):
    cfg = AugmentationConfig(crop_size=32, interpolation=interpolation)
    images = uint8_images(2, height, width, 3)
    actual = BatchAugmentation(cfg, (0, 0, 0), (1, 1, 1))(images, make_keys(2))
    expected = images.permute(0, 3, 1, 2).float() / 255
    expected = F.resize(expected, 32, MODES[interpolation], antialias=True)
    assert_near(actual, F.center_crop(expected, 32).clamp(0, 1))


def test_no_augmentation_at_all_is_exact():
    images = uint8_images(3, 32, 32, 3)
    actual = BatchAugmentation(AugmentationConfig(crop_size=32), MEAN, STD)(images, make_keys(3))
    assert torch.equal(actual, F.normalize(images.permute(0, 3, 1, 2) / 255.0, MEAN, STD))


@pytest.mark.parametrize("probability", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("off", ["", "contrast", "hue"])
def test_what_a_cpu_leaves_out_changes_no_bit(probability, off, monkeypatch):
    """And no blend is computed for an image that has no part in it."""
    strengths = {**JITTER, **({off: 0.0} if off else {})}
    names = [name for name in vars(EVERYTHING) if name.endswith("_prob")]
    cfg = replace(EVERYTHING, crop_size=24, **strengths, **dict.fromkeys(names, probability))
    images = uint8_images(50, 32, 32, 3)
    p = sample(cfg, make_keys(50))
    p.hue[::5] = 0  # a strength of zero can be drawn
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    expected = steps.augment(images, p, mean, std, cfg)
    blended = []
    blend = operations.blend
    monkeypatch.setattr(
        steps, "blend", lambda x, *w, out: blended.append(len(x)) or blend(x, *w, out=out)
    )
    actual = steps.augment_where_needed(images, p, mean, std, cfg)
    assert torch.equal(actual, expected)
    assert sum(blended) == int((p.keep != 1).sum())
    assert probability == 0 or p.keep.shape[1] == {"": 6, "contrast": 4, "hue": 3}[off]


@pytest.mark.parametrize("size", [32, 40])
def test_flip(size):
    images = uint8_images(2, size, size, 3)
    still = AugmentationConfig(crop_size=32)
    flipped = AugmentationConfig(crop_size=32, flip_prob=1.0)
    a, b = (BatchAugmentation(c, MEAN, STD)(images, make_keys(2)) for c in (still, flipped))
    assert_near(b, F.hflip(a))
    assert not torch.allclose(a, b)


def test_to_gray():
    images = float_images(4, 3, 9, 11)
    assert_near(operations.to_gray(images), F.rgb_to_grayscale(images), atol=1e-7)


@pytest.mark.parametrize(
    ("step", "reference"),
    [(0, F.adjust_brightness), (1, F.adjust_contrast), (2, F.adjust_saturation)],
)
def test_blend(step, reference):
    images = float_images(5, 3, 12, 10)
    factors = torch.tensor([0.0, 0.3, 1.0, 1.4, 2.5])
    # the factors of the two other steps must not matter
    all_factors = torch.full((5, 3), 0.7).index_copy(1, torch.tensor([step]), factors[:, None])
    weights = parameters.blend_weights(torch.full((5, 1), step), all_factors)
    actual = operations.blend(images, *(w[:, 0] for w in weights))
    for image, factor, result in zip(images, factors, actual, strict=True):
        assert_near(result, reference(image, factor.item()), atol=1e-6)


def test_an_empty_blend_changes_nothing():
    images = float_images(3, 3, 8, 8)
    weights = parameters.blend_weights(torch.full((3, 1), 3), torch.full((3, 3), 0.5))
    assert torch.equal(operations.blend(images, *(w[:, 0] for w in weights)), images)


def test_adjust_hue():
    images = float_images(6, 3, 16, 16)
    images[:, 1, :4] = images[:, 0, :4]  # two channels alike
    images[:, :, 4:6] = images[:, :1, 4:6]  # grey
    images[:, :, 6] = 0
    images[:, :, 7] = 1
    shift = torch.tensor([-0.5, -0.1, 0.0, 0.05, 0.3, 0.5])
    actual = operations.adjust_hue(images, shift)
    for image, s, result in zip(images, shift, actual, strict=True):
        assert_near(result, F.adjust_hue(image, s.item()), atol=1e-5)
    assert torch.equal(actual[2], images[2])
    operations.adjust_hue(images, shift, out=images)
    assert torch.equal(images, actual)


def jitter_reference(image, order, factors, hue):
    steps = [
        lambda x: F.adjust_brightness(x, factors[0].item()),
        lambda x: F.adjust_contrast(x, factors[1].item()),
        lambda x: F.adjust_saturation(x, factors[2].item()),
        lambda x: F.adjust_hue(x, hue.item()),
    ]
    for step in order:
        image = steps[step](image)
    return image


@pytest.mark.parametrize("off", [(), (0,), (1, 2), (3,), (0, 1, 2), (0, 1, 2, 3)])
def test_color_jitter_in_every_order(off):
    """All 24 orders as one batch; ``off`` names the steps of strength 0."""
    strengths = {n: 0.0 if i in off else 0.4 for i, n in enumerate(JITTER)}
    cfg = AugmentationConfig(crop_size=16, jitter_prob=1.0, **strengths)
    orders = list(itertools.permutations(range(4)))
    images = float_images(25, 3, 16, 16)
    factors = 0.5 + 1.2 * float_images(25, 3, seed=1)
    factors[:, [i for i in off if i < 3]] = 1.0
    hue = torch.zeros(25) if 3 in off else 0.8 * float_images(25, seed=2) - 0.4
    p = sample(cfg, make_keys(25))
    keep, to_mean, to_gray = parameters.blend_weights(parameters.jitter_slots(cfg), factors)
    hue[24] = 0  # the row of images without jitter
    p = p._replace(keep=keep, to_mean=to_mean, to_gray=to_gray, hue=hue)
    actual = operations.color_jitter(images, p, hue=3 not in off)
    for order, image, f, h, result in zip(orders, images, factors, hue, actual, strict=False):
        assert_near(result, jitter_reference(image, order, f, h))
    assert torch.equal(actual[24], images[24])


@pytest.mark.parametrize("size", [32, 15, 14, 8, 4, 2])
def test_gaussian_blur(size):
    images = float_images(4, 3, size, size)
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0])
    kernel = 2 * min(6, size - 1) + 1
    actual = operations.gaussian_blur(images, sigma)
    for image, s, result in zip(images, sigma, actual, strict=True):
        assert_near(result, F.gaussian_blur(image, [kernel, kernel], [s.item()] * 2), atol=1e-6)


def test_solarize():
    every_value = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert_near(
        operations.solarize(every_value / 255), F.solarize(every_value, 128) / 255, atol=1e-6
    )
    images = float_images(2, 3, 8, 8)
    assert_near(operations.solarize(images), F.solarize(images, 0.5), atol=0)


@pytest.mark.parametrize("size", [32, 12, 64])
def test_equalize(size):
    images = uint8_images(5, size, size, 3).permute(0, 3, 1, 2).contiguous()
    images[1] = images[1] // 8 + 100  # low contrast
    images[2] = images[2] // 128 * 255  # two values
    images[3] = 77  # one value
    images[4, 0, 0, 0] = 255
    actual = operations.equalize(images / 255)
    assert_near(actual, F.equalize(images) / 255, atol=1e-7)
    nudged = (images / 255 + 0.0015).clamp(0, 1)  # less than half a level: rounds back
    assert_near(operations.equalize(nudged), actual, atol=1e-7)


# ------------------------------------------------------------------------------------- draws


def kolmogorov_smirnov(x, y):
    """Distance of two samples' distribution functions over its 99.99% point."""
    x, y = x.double().sort().values, y.double().sort().values
    at = torch.cat([x, y])
    a = torch.searchsorted(x, at, right=True) / x.numel()
    b = torch.searchsorted(y, at, right=True) / y.numel()
    bound = 2.225 * math.sqrt(1 / x.numel() + 1 / y.numel())
    return ((a - b).abs().max() / bound).item()


def torchvision_boxes(height, width, scale, n):
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ratio = (3 / 4, 4 / 3)
        boxes = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)]
    return torch.tensor(boxes)


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, (0.08, 1.0)), (32, 32, (0.2, 0.6)), (40, 90, (0.3, 1.0)), (96, 64, (0.08, 1.0))],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    expected = torchvision_boxes(height, width, scale, 4000)
    actual = parameters.sample_boxes(key_uniform(make_keys(20_000), 22), height, width, *scale)
    top, left, h, w = actual.unbind(1)
    assert torch.equal(actual, actual.round())
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    functions = [lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2]]  # area, ratio
    functions += [lambda b, i=i: b[:, i] for i in range(4)]
    functions += [lambda b: b[:, 0] + b[:, 2], lambda b: b[:, 1] + b[:, 3]]  # bottom, right
    for f in functions:
        assert kolmogorov_smirnov(f(actual), f(expected)) < 1


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (7, 400), (3, 4)])
def test_the_central_box_when_no_try_fits(height, width):
    # the whole area of an image far from the ratios: only the fallback is possible
    expected = torchvision_boxes(height, width, (1.0, 1.0), 1)[0]
    if (height, width) == (3, 4):
        assert parameters._central_box(height, width) == tuple(expected.tolist())
        return
    actual = parameters.sample_boxes(key_uniform(make_keys(50), 22), height, width, 1.0, 1.0)
    assert torch.equal(actual, expected.expand(50, 4).float())


def test_probabilities_and_ranges():
    n = 20_000
    p = sample(EVERYTHING, make_keys(n))
    flags = {"flip": 0.5, "gray": 0.3, "blur": 0.5, "solarize": 0.3, "equalize": 0.3}
    for name, prob in flags.items():
        share = getattr(p, name).double().mean().item()
        assert abs(share - prob) < 5 * math.sqrt(prob * (1 - prob) / n), name
    assert abs((p.hue != 0).double().mean().item() - 0.8) < 5 * math.sqrt(0.16 / n)
    uniform = torch.linspace(0, 1, n)
    assert kolmogorov_smirnov(p.sigma, 0.1 + 1.9 * uniform) < 1
    assert kolmogorov_smirnov(p.hue[p.hue != 0], 0.2 * uniform - 0.1) < 1
    hue = p.hue[p.hue != 0]
    assert hue.min() >= -0.1
    assert hue.max() <= 0.1


@pytest.mark.parametrize("strength", [0.4, 1.7])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_are_uniform(name, strength):
    n = 5000
    p = sample(AugmentationConfig(crop_size=8, jitter_prob=1.0, **{name: strength}), make_keys(n))
    assert p.keep.shape == (n, 1)
    low, high = max(0, 1 - strength), 1 + strength
    assert kolmogorov_smirnov(p.keep[:, 0], torch.linspace(low, high, n)) < 1
    assert p.keep.min() >= low
    assert p.keep.max() <= high


def test_the_orders_are_equally_likely():
    n = 24_000
    slots = parameters.jitter_slots(EVERYTHING)
    assert slots.unique(dim=0).shape[0] == 25
    order = (key_uniform(make_keys(n), parameters._DRAWS)[:, parameters._ORDER] * 24).long()
    count = order.bincount(minlength=24).double()
    assert count.shape == (24,)
    assert ((count - 1000) ** 2 / 1000).sum() < 49.7  # 99.9%, 23 degrees of freedom
    always = AugmentationConfig(**{**vars(EVERYTHING), "jitter_prob": 1.0})
    factors = torch.full((24, 3), 0.5)
    patterns = parameters.blend_weights(slots[:24], factors)[0]
    seen = (sample(always, make_keys(n)).keep != 1).unique(dim=0)
    assert seen.shape[0] == (patterns != 1).unique(dim=0).shape[0]


def test_jitter_off_for_one_image_is_off_altogether():
    p = sample(EVERYTHING, make_keys(500))
    off = p.hue == 0
    assert 0 < off.sum() < 500
    assert (p.keep[off] == 1).all()
    assert (p.to_mean[off] == 0).all()
    assert (p.to_gray[off] == 0).all()
    assert ((p.keep[~off] != 1).sum(dim=1) == 3).all()


def test_the_draws_of_an_image_are_pinned():
    """What a seed means must never change: these values were computed once and stay."""
    p = sample(EVERYTHING, make_keys(4))
    assert p.box.tolist() == [[9, 12, 18, 18], [6, 4, 26, 20], [11, 6, 13, 16], [14, 0, 14, 15]]
    assert torch.stack([p.flip, p.gray, p.blur, p.solarize, p.equalize]).int().tolist() == (
        [[1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    assert_near(p.sigma, torch.tensor([0.666394, 0.953882, 1.269743, 0.321827]))
    assert_near(p.hue, torch.tensor([0.070012, -0.02751, 0.0, -0.02146]))
    assert_near(
        p.keep,
        torch.tensor(
            [
                [0.886091, 1.596114, 1.0, 1.19048, 1.0, 1.0],
                [0.66136, 1.0, 1.0, 1.367243, 1.271957, 1.0],
                [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
                [1.0, 1.0, 1.0, 0.931741, 1.225732, 1.277201],
            ]
        ),
    )


# ------------------------------------------------------------------------------- whole pipeline


def reference(image, u, p, i, cfg):
    """One image through torchvision, with the parameters that ours drew."""
    x = image.permute(2, 0, 1).float() / 255
    box, size = [int(v) for v in p.box[i]], [cfg.crop_size] * 2
    x = F.resized_crop(x, *box, size, MODES[cfg.interpolation], antialias=True).clamp(0, 1)
    if u[parameters._JITTER] < cfg.jitter_prob:
        order = list(itertools.permutations(range(4)))[int(u[parameters._ORDER] * 24)]
        strengths = torch.tensor([cfg.brightness, cfg.contrast, cfg.saturation])
        draws = u[[parameters._BRIGHTNESS, parameters._CONTRAST, parameters._SATURATION]]
        factors = (1 - strengths) + draws * 2 * strengths
        x = jitter_reference(x, order, factors, cfg.hue * (2 * u[parameters._HUE] - 1))
    if u[parameters._GRAY] < cfg.grayscale_prob:
        x = F.rgb_to_grayscale(x, 3)
    if u[parameters._BLUR] < cfg.blur_prob:
        x = F.gaussian_blur(x, [13, 13], [0.1 + 1.9 * u[parameters._SIGMA].item()] * 2)
    if u[parameters._SOLARIZE] < cfg.solarize_prob:
        x = F.solarize(x, 0.5)
    if u[parameters._EQUALIZE] < cfg.equalize_prob:
        x = F.equalize((x * 255).round().to(torch.uint8)) / 255
    if u[parameters._FLIP] < cfg.flip_prob:
        x = F.hflip(x)
    return F.normalize(x, MEAN, STD)


@pytest.mark.parametrize("cfg", [SMOOTH, EVERYTHING], ids=["smooth", "everything"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_the_pipeline_is_torchvisions(cfg, height, width):
    images, keys = uint8_images(64, height, width, 3), make_keys(64)
    actual = BatchAugmentation(cfg, MEAN, STD)(images, keys)
    assert actual.shape == (64, 3, 32, 32)
    assert actual.dtype == torch.float32
    u, p = key_uniform(keys, parameters._DRAWS), sample(cfg, keys, height, width)
    expected = torch.stack([reference(images[i], u[i], p, i, cfg) for i in range(64)])
    error = (actual - expected).abs()
    if cfg is SMOOTH:
        assert error.max() < 1e-4
    else:  # the last bit decides on which side of a jump a few pixels fall
        assert (error > 1e-4).double().mean() < 1e-3


def test_a_step_of_probability_zero_is_not_computed(monkeypatch):
    for name in ("_jitter", "color_jitter", "to_gray", "gaussian_blur", "solarize", "equalize"):
        monkeypatch.setattr(steps, name, None)
    cfg = AugmentationConfig(crop_size=16, crop=True, flip_prob=0.5)
    BatchAugmentation(cfg, MEAN, STD)(uint8_images(2, 16, 16, 3), make_keys(2))


@pytest.mark.parametrize("cfg", [SMOOTH, EVERYTHING], ids=["smooth", "everything"])
def test_an_image_does_not_depend_on_its_batch(cfg):
    images, keys = uint8_images(37, 32, 32, 3), make_keys(37)
    augmentation = BatchAugmentation(cfg, MEAN, STD)
    whole = augmentation(images, keys)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    assert_near(augmentation(images[order], keys[order]), whole[order], atol=1e-6)
    for part in (slice(0, 1), slice(5, 6), slice(3, 11), slice(20, 37)):
        assert_near(augmentation(images[part], keys[part]), whole[part], atol=1e-6)


def test_pieces_of_a_large_batch_are_the_whole(monkeypatch):
    images, keys = uint8_images(37, 40, 40, 3), make_keys(37)
    expected = BatchAugmentation(SMOOTH, MEAN, STD)(images, keys)
    sizes, augment = [], module.augment_where_needed
    monkeypatch.setattr(
        module, "augment_where_needed", lambda x, *rest: sizes.append(len(x)) or augment(x, *rest)
    )
    monkeypatch.setattr(module, "_PIECE", 10 * 32 * 32)
    assert_near(BatchAugmentation(SMOOTH, MEAN, STD)(images, keys), expected, atol=1e-6)
    assert sizes == [10, 10, 10, 10]


def test_same_key_same_view_other_key_other_view():
    image = uint8_images(1, 32, 32, 3).expand(8, 32, 32, 3)
    augmentation = BatchAugmentation(SMOOTH, MEAN, STD)
    keys = make_keys(8)
    views = augmentation(image, keys)
    assert torch.equal(views, augmentation(image, keys))
    for a, b in itertools.combinations(views, 2):
        assert (a - b).abs().max() > 0.1
    assert_near(augmentation(image, keys[:1].expand(8)), views[:1].expand(8, -1, -1, -1), 1e-6)


def test_leaves_images_and_global_randomness_alone():
    images = uint8_images(4, 32, 32, 3)
    before, state = images.clone(), torch.get_rng_state()
    BatchAugmentation(EVERYTHING, MEAN, STD)(images, make_keys(4))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_batch():
    out = BatchAugmentation(SMOOTH, MEAN, STD)(uint8_images(0, 32, 32, 3), make_keys(0))
    assert out.shape == (0, 3, 32, 32)


def test_autocast_does_not_lower_the_precision():
    images, keys = uint8_images(4, 40, 40, 3), make_keys(4)
    augmentation = BatchAugmentation(SMOOTH, MEAN, STD)
    expected = augmentation(images, keys)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augmentation(images, keys), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    images, keys = uint8_images(64, 32, 32, 3), make_keys(64)
    augmentation = BatchAugmentation(SMOOTH, MEAN, STD)
    expected = augmentation(images, keys)
    assert_near(augmentation(images.cuda(), keys.cuda()).cpu(), expected, atol=1e-3)
    cpu, cuda = (
        sample(SMOOTH, keys),
        parameters.sample_parameters(
            keys.cuda(), SMOOTH, 32, 32, parameters.jitter_slots(SMOOTH).cuda()
        ),
    )
    assert torch.equal(cpu.box, cuda.box.cpu())


# ----------------------------------------------------------------------------------- compilation


def test_the_steps_are_one_graph():
    """Traced without a compiler, so that a graph break shows on every machine."""
    cfg = AugmentationConfig(**{**vars(EVERYTHING), "crop_size": 8})
    expected = BatchAugmentation(cfg, MEAN, STD)(uint8_images(4, 8, 8, 3), make_keys(4))
    augmentation = BatchAugmentation(cfg, MEAN, STD, compile=True)
    augmentation._compiled = torch.compile(
        module.augment, fullgraph=True, dynamic=False, backend="eager"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_near(augmentation(uint8_images(4, 8, 8, 3), make_keys(4)), expected)
    assert augmentation._compile


@pytest.mark.skipif(
    not can_compile_augmentation("cpu"), reason="no C++ compiler or Python headers, or an old torch"
)
def test_compiled_equals_eager():
    cfg = AugmentationConfig(
        crop_size=8, crop=True, jitter_prob=0.8, brightness=0.4, hue=0.1, flip_prob=0.5
    )
    images, keys = uint8_images(6, 8, 8, 3), make_keys(6)
    compiled = BatchAugmentation(cfg, MEAN, STD, compile=True)
    actual = compiled(images, keys)
    assert compiled._compile, "it fell back to eager"
    assert_near(actual, BatchAugmentation(cfg, MEAN, STD)(images, keys), atol=1e-4)


def test_runs_eagerly_after_one_warning_if_compiling_fails():
    def broken(*args):
        raise RuntimeError("no compiler\nlong story")

    images, keys = uint8_images(4, 32, 32, 3), make_keys(4)
    augmentation = BatchAugmentation(SMOOTH, MEAN, STD, compile=True)
    augmentation._compiled = broken
    expected = BatchAugmentation(SMOOTH, MEAN, STD)(images, keys)
    with pytest.warns(UserWarning, match=r"uncompiled \(RuntimeError: no compiler\)$") as caught:
        assert torch.equal(augmentation(images, keys), expected)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(augmentation(images, keys), expected)


def test_pickles_before_its_first_call():
    """Launchers that spawn processes send it along."""
    augmentation = pickle.loads(pickle.dumps(BatchAugmentation(SMOOTH, MEAN, STD, compile=True)))
    assert augmentation.cfg == SMOOTH


@pytest.mark.parametrize(
    ("version", "right"), [("2.6.0", False), ("2.8.0", False), ("2.9.1", True), ("2.11.0", True)]
)
def test_a_torch_that_compiles_wrongly_for_a_cpu_is_not_asked_to(monkeypatch, version, right):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    monkeypatch.setattr(module, "can_compile", lambda device: True)
    assert can_compile_augmentation("cpu") is right
    assert can_compile_augmentation("cuda")
    images, keys = uint8_images(4, 32, 32, 3), make_keys(4)
    expected = BatchAugmentation(SMOOTH, MEAN, STD)(images, keys)
    augmentation = BatchAugmentation(SMOOTH, MEAN, STD, compile=True)
    augmentation._compiled = lambda *args: torch.zeros_like(expected)
    if right:
        assert not augmentation(images, keys).any()
        return
    with pytest.warns(UserWarning, match=f"torch {version} compiles .* 2.9.1 or newer") as caught:
        assert torch.equal(augmentation(images, keys), expected)
    assert caught[0].filename == __file__


def test_solo_learn_s_idle_key_is_read_and_must_agree():
    block = {"crop_size": 8, "grayscale": {"enabled": True, "prob": 0.2}}
    assert AugmentationConfig.from_cfg(block).grayscale_prob == 0.2
    block["grayscale"] = {"enabled": False, "prob": 0.0}
    assert AugmentationConfig.from_cfg(block).grayscale_prob == 0
    block["grayscale"] = {"enabled": False, "prob": 0.2}
    with pytest.raises(ClspError, match=r"grayscale\.enabled is False and its prob is 0\.2"):
        AugmentationConfig.from_cfg(block)
