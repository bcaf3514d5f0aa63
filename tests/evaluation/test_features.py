import pytest
import torch
from torch import nn

from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.features import Features, extract_features

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def make_images(number=7, targets=None):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 4, 5, 3), generator=generator, dtype=torch.uint8)
    targets = torch.arange(number) % 3 if targets is None else targets
    return ImageArray(images, targets, ("a", "b", "c"), "test/train")


class Spy(nn.Module):
    """Gives back the pixels, and remembers in which state it was called."""

    def __init__(self):
        super().__init__()
        self.frozen, self.trained = nn.BatchNorm2d(3), nn.Dropout(0.9)
        self.frozen.eval()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, X):
        self.seen.append((self.training, torch.is_grad_enabled(), X.is_contiguous()))
        self.last = X
        return self.trained(X).flatten(1) * self.scale


def test_views_are_the_normalised_image_and_its_mirror():
    array, backbone = make_images(), Spy()
    out = extract_features(backbone, array, mean=MEAN, std=STD, batch_size=3, flip=True)
    expected = torch.empty(2, 7, 3, 4, 5)
    for n in range(7):
        for channel in range(3):
            plain = (array.images[n, :, :, channel].float() / 255 - MEAN[channel]) / STD[channel]
            expected[0, n, channel] = plain
            expected[1, n, channel] = plain[:, [4, 3, 2, 1, 0]]
    torch.testing.assert_close(out.feats, expected.flatten(2))
    assert torch.equal(out.targets, array.targets)
    assert (out.feats.dtype, out.targets.dtype) == (torch.float32, torch.int64)
    assert len(out) == 7
    assert out.dim == 60


def test_without_flip_there_is_one_view():
    out = extract_features(Spy(), make_images(), mean=MEAN, std=STD, flip=False)
    assert out.feats.shape == (1, 7, 60)


def test_the_batch_size_changes_nothing():
    one, all_ = (
        extract_features(Spy(), make_images(), mean=MEAN, std=STD, batch_size=size, flip=True)
        for size in (1, 100)
    )
    assert torch.equal(one.feats, all_.feats)


def test_evaluation_mode_without_gradient_and_every_mode_restored():
    backbone = Spy()
    backbone.train()
    backbone.frozen.eval()
    out = extract_features(backbone, make_images(), mean=MEAN, std=STD, flip=True)
    assert {state[:2] for state in backbone.seen} == {(False, False)}
    assert backbone.last.is_contiguous(memory_format=torch.channels_last)
    assert not out.feats.requires_grad
    assert backbone.training
    assert backbone.trained.training
    assert not backbone.frozen.training


def test_modes_are_restored_after_an_error():
    class Broken(Spy):
        def forward(self, X):
            raise RuntimeError("no")

    backbone = Broken()
    with pytest.raises(RuntimeError):
        extract_features(backbone, make_images(), mean=MEAN, std=STD, flip=False)
    assert backbone.training


def test_images_without_labels_are_refused():
    array = make_images(targets=torch.tensor([0, 1, -1, 2, -1, 0, 1]))
    with pytest.raises(ClspError, match="2 of the 7 images of test/train have no labels"):
        extract_features(Spy(), array, mean=MEAN, std=STD, flip=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad):
    class Diverged(nn.Module):
        def forward(self, X):
            return torch.where(X[:, 0, 0, :1] == X[0, 0, 0, 0], bad, X[:, 0, 0])

    with pytest.raises(ClspError, match=r"of 1 of the 7 images .* diverged"):
        extract_features(Diverged(), make_images(), mean=MEAN, std=STD, flip=True)


def test_progress_is_shown_only_when_it_has_a_name(capfd):
    extract_features(Spy(), make_images(), mean=MEAN, std=STD, flip=False)
    assert capfd.readouterr().err == ""
    extract_features(Spy(), make_images(), mean=MEAN, std=STD, flip=False, desc="features")
    assert "features" in capfd.readouterr().err


def test_subset_keeps_images_with_their_targets():
    features = Features(torch.arange(12.0).view(2, 3, 2), torch.tensor([5, 6, 7]))
    part = features.subset(torch.tensor([2, 0]))
    assert part.targets.tolist() == [7, 5]
    assert part.feats.tolist() == [[[4, 5], [0, 1]], [[10, 11], [6, 7]]]
