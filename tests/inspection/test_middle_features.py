"""What is said of the middle feature, where it is known."""

import numpy as np
import pytest
import torch

from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.diffusion.denoiser import build_unet
from clsp_plugin.diffusion.interpolation import decode, encode, masked_middle
from clsp_plugin.diffusion.schedulers import LINEAR_BETAS
from clsp_plugin.inspection.middle_features import masked_samples, middle_features, middle_report

SMALL = {"block_out_channels": [8, 16], "layers_per_block": 1, "attention_resolutions": []}


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return build_unet(8, SMALL).eval()


def dark_and_bright(number):
    targets = torch.arange(number) % 2
    noise = torch.randint(0, 60, (number, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    images = (targets[:, None, None, None] * 190 + noise).to(torch.uint8)
    return ImageArray(images, targets, ("dark", "bright"), "toy")


@torch.no_grad()
def test_a_masked_middle_feature_is_zero(unet):
    x = torch.randn(2, 3, 8, 8)
    plain = unet(x, 100).sample
    h, skips, emb = encode(unet, x, 100)
    with masked_middle(unet):
        torch.testing.assert_close(unet(x, 100).sample, decode(unet, 0 * h, skips, emb))
        assert encode(unet, x, 100)[0].abs().max() == 0
    assert (plain - decode(unet, 0 * h, skips, emb)).abs().max() > 1e-3
    torch.testing.assert_close(unet(x, 100).sample, plain)  # as it was


def test_the_mask_is_gone_after_an_error(unet):
    with pytest.raises(ConnectionAbortedError), masked_middle(unet):
        raise ConnectionAbortedError
    assert encode(unet, torch.randn(1, 3, 8, 8), 5)[0].abs().max() > 0


@torch.no_grad()
def test_features_are_of_images_noised_to_the_step(unet):
    array = dark_and_bright(4)
    almost_clean = middle_features(unet, LINEAR_BETAS, array.images, step=0)
    x = array.images.permute(0, 3, 1, 2) / 127.5 - 1
    expected = encode(unet, x * (1 - 1e-4) ** 0.5, 0)[0].flatten(1)
    noisy = middle_features(unet, LINEAR_BETAS, array.images, step=900)
    assert (noisy - expected).abs().mean() > 3 * (almost_clean - expected).abs().mean()


def test_labels_that_features_tell_apart(unet, tmp_path):
    array = dark_and_bright(40)
    found = middle_report(unet, LINEAR_BETAS, array, list(range(40)), None, tmp_path / "map.png")
    expected = {"step": 50, "agreement": 100.0, "largest_class": 50.0, "neighbours": 20}
    assert found == expected
    assert (tmp_path / "map.png").stat().st_size > 5000
    unlabelled = ImageArray(array.images, torch.full((40,), -1), (), "toy")
    for few in (unlabelled, array.subset(torch.arange(5), "few")):
        rows = list(range(len(few)))
        assert middle_report(unet, LINEAR_BETAS, few, rows, None, tmp_path / "no.png") is None
    assert not (tmp_path / "no.png").exists()


def test_a_conditional_denoiser_is_not_told_the_label():
    torch.manual_seed(0)
    unet = build_unet(8, SMALL, num_classes=2).eval()
    images = dark_and_bright(10).images
    none = middle_features(unet, LINEAR_BETAS, images, torch.zeros(10, dtype=torch.int64))
    ones = middle_features(unet, LINEAR_BETAS, images, torch.ones(10, dtype=torch.int64))
    torch.testing.assert_close(none, ones)


def test_masked_samples_are_drawn_without_the_feature(unet):
    seen = []

    def draw(w):
        with torch.no_grad():
            seen.append((w, bool(encode(unet, torch.ones(1, 3, 8, 8), 5)[0].any())))
        return torch.full((2, 8, 8, 3), len(seen), dtype=torch.uint8)

    columns = masked_samples(unet, draw, 0.1)
    assert seen == [(0.1, True), (1.0, True), (1.0, False)]
    assert np.unique(columns.numpy()).tolist() == [1, 2, 3]
    assert columns.shape == (2, 3, 8, 8, 3)
