"""Index batches, each image once in an order fixed by (seed, epoch); the views of a batch."""

from types import SimpleNamespace

import pytest
import torch

from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.keyed_random import Purpose, derive_key, keys_for
from clsp_plugin.data.loader import IndexBatches, PretrainData, index_loader

IMAGES = torch.randint(0, 256, (6, 20, 20, 3), dtype=torch.uint8)
ARRAY = ImageArray(IMAGES, torch.zeros(6, dtype=torch.int64), ("a",), "random")


def epoch(batches, number):
    batches.set_epoch(number)
    return torch.cat(list(batches))


def test_every_image_at_most_once_in_an_order_of_the_epoch():
    batches = IndexBatches(50, 8, seed=0)
    first, second = epoch(batches, 0), epoch(batches, 1)
    assert len(batches) == 6
    assert len(first) == 48
    assert len(first.unique()) == 48
    assert not torch.equal(first, second)
    assert torch.equal(first, epoch(batches, 0))
    assert not torch.equal(first, epoch(IndexBatches(50, 8, seed=1), 0))


def test_images_are_left_out_evenly_over_epochs():
    batches = IndexBatches(50, 8, seed=0)
    seen = torch.bincount(torch.cat([epoch(batches, e) for e in range(500)]), minlength=50)
    # each is left out with probability 2/50 an epoch: 20 +- 4.4 times
    assert (seen - 480).abs().max() < 5 * 4.4


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_batch_of_the_single_one(world):
    single = IndexBatches(60, 4 * world, seed=0)
    parts = [IndexBatches(60, 4, seed=0, rank=rank, world_size=world) for rank in range(world)]
    for whole, *split in zip(single, *parts, strict=True):
        assert sorted(torch.cat(split).tolist()) == sorted(whole.tolist())


def test_evaluation_order_is_natural_and_complete():
    batches = IndexBatches(10, 4, seed=None)
    assert [b.tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    parts = [list(IndexBatches(10, 4, None, rank, 2)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("num_images", [1, 2, 8, 9, 10, 17, 24, 33])
def test_processes_see_every_image_of_an_evaluation_once(num_images, world):
    batches = [IndexBatches(num_images, 4, None, rank, world) for rank in range(world)]
    parts = [list(each) for each in batches]
    assert [len(part) for part in parts] == [len(each) for each in batches]
    assert len({len(part) for part in parts}) == 1  # they wait for each other in every batch
    sizes = [len(batch) for part in parts for batch in part]
    assert max(sizes) <= 4
    assert min(sizes) >= 1 or num_images < world
    seen = torch.cat([batch for part in parts for batch in part])
    assert sorted(seen.tolist()) == list(range(num_images))


def test_loader_hands_the_batches_on():
    batches = IndexBatches(10, 4, seed=None)
    loader = index_loader(batches, torch.device("cpu"))
    assert [b.tolist() for b in loader] == [b.tolist() for b in batches]


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda:0", True)])
def test_memory_is_pinned_for_the_gpu_in_use_alone(monkeypatch, device, pinned):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**30))
    data = PretrainData(
        ARRAY, ARRAY, [{"crop_size": 8, "num_crops": 1}], 2, 0, (0.5,) * 3, (1,) * 3
    )
    root = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(strategy=root, global_rank=0, world_size=1)
    assert data.train_dataloader().pin_memory is pinned
    assert data.val_dataloader().pin_memory is pinned


def test_views_are_those_of_each_pipeline_alone():
    """Views of one pipeline are made together; each has the keys of its own number and image."""
    array, images = ARRAY, ARRAY.images
    blocks = [
        {"crop_size": 16, "num_crops": 2, "rrc": {"enabled": True}, "grayscale": {"prob": 0.5}},
        {"crop_size": 16, "num_crops": 1, "rrc": {"enabled": True}},
        {"crop_size": 8, "num_crops": 3, "rrc": {"enabled": True}},
    ]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
    data = PretrainData(array, None, blocks, 4, 7, mean, std)
    data.trainer = SimpleNamespace(current_epoch=5)
    places = torch.tensor([3, 0, 5, 5])
    views = data.views(images[places], places)
    assert [view.shape[2] for view in views] == [16, 16, 16, 8, 8, 8]
    for number, (view, block) in enumerate(zip(views, [0, 0, 1, 2, 2, 2], strict=True)):
        alone = BatchAugmentation(AugmentationConfig.from_cfg(blocks[block]), mean, std)
        keys = keys_for(derive_key(7, Purpose.AUGMENTATION, 5, number), places)
        assert torch.equal(view, alone(images[places], keys)), number
