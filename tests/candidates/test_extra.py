"""Generated images beside the real ones: what is loaded, how often it counts, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clsp_plugin.candidates.extra import _load, inflate
from clsp_plugin.data.loader import PretrainData
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.records.record import Record


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def extra_array(tmp_path):
    """12 images as a .npy; its path."""
    np.save(tmp_path / "extra.npy", pixels(12, 16, 16, 3))
    return tmp_path / "extra.npy"


def test_real_images_come_first_and_extra_ones_have_no_label(digits48, extra_array):
    images, places = inflate(digits48, {"extra": str(extra_array), "replicate": 3})
    assert len(images) == 60
    assert torch.equal(images.images[:48], digits48.images)
    assert torch.equal(images.images[48:], torch.from_numpy(pixels(12, 16, 16, 3)))
    assert torch.equal(images.targets[:48], digits48.targets)
    assert (images.targets[48:] == -1).all()
    assert images.classes == digits48.classes
    assert images.fingerprint != digits48.fingerprint
    counts = torch.bincount(places, minlength=60)
    assert counts.tolist() == [3] * 48 + [1] * 12


def test_without_extra_images_nothing_changes(digits48):
    images, places = inflate(digits48, {"extra": None, "replicate": 1})
    assert images is digits48
    assert places is None


def test_every_kind_of_source(digits48, tmp_path, write_store):
    np.save(tmp_path / "five.npy", pixels(4, 3, 16, 16, 3))
    images, _ = inflate(digits48, {"extra": str(tmp_path / "five.npy")})
    assert torch.equal(images.images[48:], torch.from_numpy(pixels(12, 16, 16, 3)))
    store = write_store(tmp_path / "store", digits48, num_candidates=2, seed=3)
    images, _ = inflate(digits48, {"extra": str(store)})
    assert len(images) == 48 + 96
    first = np.load(store / "shard-00000.npy")
    assert torch.equal(images.images[48:50], torch.from_numpy(first[0]))
    (tmp_path / "folder/deep").mkdir(parents=True)
    Image.fromarray(pixels(20, 20, 3)).save(tmp_path / "folder/deep/a.png")
    Image.fromarray(pixels(16, 16, 3, seed=1)).save(tmp_path / "folder/b.png")
    images, _ = inflate(digits48, {"extra": str(tmp_path / "folder"), "image_size": 16})
    assert len(images) == 50
    assert torch.equal(images.images[48], torch.from_numpy(pixels(16, 16, 3, seed=1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "There is nothing at data.extra="),
        (
            lambda path: np.save(path, pixels(4, 8, 8, 3)),
            "are 8x8, those of digits",
        ),
        (lambda path: np.save(path, np.zeros((4, 16, 16, 3))), "holds float64"),
        (lambda path: np.save(path, pixels(4, 16, 16)), "images are uint8 of shape"),
        (lambda path: path.write_bytes(b"no array"), "not a readable .npy"),
    ],
)
def test_refuses_what_are_no_training_images(digits48, tmp_path, make, message):
    make(tmp_path / "extra.npy")
    with pytest.raises(ClspError, match=message):
        inflate(digits48, {"extra": str(tmp_path / "extra.npy")})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_as_adainf_makes_it(digits48, tmp_path, save):
    labels = np.ones(12, dtype=np.int64) * (-1)
    save(tmp_path / "extra.npz", image=pixels(12, 16, 16, 3), label=labels)
    images, _ = inflate(digits48, {"extra": str(tmp_path / "extra.npz")})
    assert torch.equal(images.images[48:], torch.from_numpy(pixels(12, 16, 16, 3)))
    assert (images.targets[48:] == -1).all()
    save(tmp_path / "samples.npz", pixels(12, 16, 16, 3))
    other, _ = inflate(digits48, {"extra": str(tmp_path / "samples.npz")})
    assert torch.equal(other.images, images.images)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": pixels(4, 16, 16, 3)}, r"has none of image, .* \(found: pictures\)"),
        ({}, "found: nothing"),
        ({"image": np.zeros((4, 16, 16, 3))}, "holds float64"),
        ({"image": pixels(4, 3, 16, 16)}, "images are uint8 of shape"),
        ({"image": pixels(0, 16, 16, 3)}, "holds no images"),
        ({"image": np.array([None, 1], dtype=object)}, "not a readable .npz .*Object arrays"),
    ],
)
def test_refuses_archives_of_something_else(digits48, tmp_path, arrays, message):
    np.savez(tmp_path / "extra.npz", **arrays)
    with pytest.raises(ClspError, match=message):
        inflate(digits48, {"extra": str(tmp_path / "extra.npz")})


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The bytes of an archive of two images, and where damaged ones may stand."""
    file = tmp_path_factory.mktemp("archive") / "extra.npz"
    np.savez_compressed(file, image=pixels(2, 16, 16, 3), label=np.array([-1, -1]))
    return file.read_bytes(), file


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 2200), place=st.integers(0, 2200), value=st.integers(0, 255))
def test_a_damaged_archive_has_the_same_images_or_is_refused(archive, cut, place, value):
    content, file = archive
    damaged = bytearray(content)
    damaged[place % len(content)] = value
    file.write_bytes(damaged[: len(content) - cut] if cut < len(content) // 2 else damaged)
    try:
        found = _load(file, {})
    except ClspError:
        return
    assert np.array_equal(found.numpy(), pixels(2, 16, 16, 3))


def test_what_the_system_refuses_is_not_called_damaged(digits48, tmp_path, no_file_to_open):
    np.savez(tmp_path / "extra.npz", image=pixels(4, 16, 16, 3))
    with no_file_to_open(), pytest.raises(OSError, match="Too many open files"):
        inflate(digits48, {"extra": str(tmp_path / "extra.npz")})


def test_refuses_replication_alone_or_below_one(digits48, extra_array):
    with pytest.raises(ClspError, match="which is not set"):
        inflate(digits48, {"extra": None, "replicate": 2})
    with pytest.raises(ClspError, match="must be at least 1"):
        inflate(digits48, {"extra": str(extra_array), "replicate": 0})


class _Trainer:
    training, current_epoch, global_rank, world_size = True, 0, 0, 1
    strategy = SimpleNamespace(root_device=torch.device("cpu"))


def test_a_repeated_image_is_augmented_anew_and_keeps_its_index(tiny, digits48, extra_array):
    images, places = inflate(digits48, {"extra": str(extra_array), "replicate": 2})
    blocks = tiny("simclr").augmentations
    mean_std = ([0.5] * 3, [0.25] * 3)
    data = PretrainData(images, None, blocks, 16, 0, *mean_std, places=places)
    plain = PretrainData(digits48, None, blocks, 16, 0, *mean_std)
    data.trainer = plain.trainer = _Trainer()
    loader = data.train_dataloader()
    assert len(loader) == (96 + 12) // 16
    assert len(loader.dataset) == 60
    indexes, views, targets = data.on_after_batch_transfer(torch.tensor([5, 5 + 48, 100]), 0)
    assert indexes.tolist() == [5, 5, 52]
    assert targets.tolist() == [digits48.targets[5], digits48.targets[5], -1]
    assert not torch.equal(views[0][0], views[0][1])
    # an image's first place looks as it does without extra images
    _, alone, _ = plain.on_after_batch_transfer(torch.tensor([5]), 0)
    torch.testing.assert_close(views[0][:1], alone[0])


def test_trains_with_any_method_and_says_on_how_many(tiny, extra_array):
    extra = (f"data.extra={extra_array}", "data.replicate=2")
    for method in ("simclr", "deepclusterv2"):
        record = Record.load(pretrain(tiny(method, *extra)).record)
        assert record.num_train == 60
        assert record.config["data"]["replicate"] == 2


def test_candidates_belong_to_the_real_images_alone(tiny, store, extra_array):
    extra = (f"data.extra={extra_array}", f"synthetic.path={store}")
    with pytest.raises(ClspError, match="makes a third view of every image"):
        pretrain(tiny("clsp_simclr", *extra))
    pretrain(tiny("clsp_simclr", *extra, "synthetic.weight=0", "max_epochs=1"))


def test_candidates_that_no_method_would_use_are_refused(tiny, store):
    with pytest.raises(ClspError, match=r"no third view .*; take method=clsp_byol, or set"):
        pretrain(tiny("byol", f"synthetic.path={store}"))
    pretrain(tiny("byol", "synthetic.path=null", "max_epochs=1"))
