"""CL-GAN: which network learns from which loss, and that generated pairs become less similar."""

from dataclasses import replace

import pytest
import torch

from clsp_plugin.config.training import parse_cfg
from clsp_plugin.errors import ClspError
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.gan import Discriminator, Generator, discriminator_loss, generator_loss


@pytest.fixture
def build(tiny, digits48):
    def make(*overrides, epoch=0):
        cfg = parse_cfg(tiny("cl_gan", *overrides), METHODS)
        cfg.data.num_classes = 10
        torch.manual_seed(0)
        model = METHODS["cl_gan"](cfg)
        model.logged = {}
        model.log_epoch = lambda **metrics: model.logged.update(metrics)
        type(model).current_epoch = property(lambda self: self.epoch)
        model.epoch = epoch
        model.attach_images(digits48)
        return model

    yield make
    del METHODS["cl_gan"].current_epoch


def batch(size=16):
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(size, 3, 16, 16, generator=generator) for _ in range(2)]
    return [torch.arange(size), views, torch.arange(size) % 10]


@pytest.mark.parametrize("size", [16, 18, 32])
def test_networks_fit_the_size(size):
    images = Generator(size, 8, 4)(torch.randn(2, 8))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert Discriminator(size, 4)(images).shape == (2,)


def test_hinge_closed_form():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.25 + 0.5)
    assert generator_loss(fake).item() == pytest.approx(1.5)


def test_each_step_moves_its_own_network_alone(build):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train_gan(torch.arange(16), key=3)
    moved = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"generators", "discriminator"}
    assert all(p.grad is None for p in model.parameters())
    learn = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learn == {"backbone", "classifier", "projector"}


def test_the_encoder_gets_no_gradient_from_the_gan_nor_the_gan_from_the_encoder(build):
    model = build(epoch=1)
    model.training_step(batch(), 0).backward()
    assert all(p.grad is None for p in model.generators.parameters())
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert model.backbone.conv1.weight.grad is not None


def test_generated_pairs_enter_the_loss_from_their_epoch_on(build):
    losses = {}
    for epoch in (0, 1):
        model = build("method_kwargs.start_epoch=1", epoch=epoch)
        seen = []
        contrast = model.contrast
        model.contrast = lambda z, i, seen=seen, contrast=contrast: seen.append(i) or contrast(z, i)
        losses[epoch] = model.training_step(batch(), 0)
        (indexes,) = seen
        assert len(indexes) == 32 + (4 * 8 if epoch else 0)
        if epoch:  # four rows per pair, under an index that no real image has
            assert torch.bincount(-indexes[32:])[1:].tolist() == [4] * 8
            assert (indexes[:32] >= 0).all()


def test_target_similarity_falls_from_one_to_its_end(build):
    model = build("max_epochs=5", "method_kwargs.final_similarity=0.2")
    targets = []
    for epoch in range(5):
        model.epoch = epoch
        targets.append(model.target_similarity)
    assert targets == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_the_pair_follows_the_target(build):
    ends = {}
    for epoch in (0, 1):  # targets 1 and -1
        model = build("method_kwargs.final_similarity=-1.0", "method_kwargs.pair_weight=50.0",
                      epoch=epoch)  # fmt: skip
        for step in range(150):
            model.train_gan(torch.arange(16), key=step)
        ends[epoch] = model.logged["train_pair_similarity"].item()
    assert ends[0] > 0.9
    assert ends[1] < ends[0] - 0.1


def test_refuses_what_it_cannot_do(build, tiny, digits48):
    with pytest.raises(ClspError, match="num_generated=17 must be between 2"):
        build("method_kwargs.num_generated=17")
    with pytest.raises(ClspError, match=r"final_similarity=2\.0 must be at least -1 and at most 1"):
        build("method_kwargs.final_similarity=2.0")
    model = build()
    small = replace(digits48, images=digits48.images[:, :8, :8])
    with pytest.raises(ClspError, match=r"set data\.image_size=16"):
        model.attach_images(small)
    model._images = None
    with pytest.raises(ClspError, match="attach_images"):
        model.train_gan(torch.arange(16), 0)
