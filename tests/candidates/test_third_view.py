"""The third view for loops of one's own: the right candidate, whatever loads the batches."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.third_view import SyntheticPositiveLoader, ThirdView
from clsp_plugin.candidates.writer import export_npy
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError

PLAIN = AugmentationConfig.from_cfg({"rrc": {"enabled": False}, "crop_size": 16, "num_crops": 1})


class Indexed(Dataset):
    """As solo-learn's: an image's index, its views, its class."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index])
        return index, image if self.transform is None else self.transform(image), 0


def two_views(image):
    view = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    return [view, view.flip(-1)]


@pytest.fixture
def augmentation():
    return BatchAugmentation(PLAIN, [0.0] * 3, [1 / 255] * 3)  # pixels as they are


def is_candidate_of(third, images, opened):
    """Whether each row is one of the candidates of the image with that number."""
    candidates = torch.from_numpy(opened.images(images.tolist())).permute(0, 1, 4, 2, 3)
    return (candidates == third.round()[:, None]).flatten(2).all(2).any(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_appends_a_candidate_of_the_same_image(store, digits48, augmentation, workers):
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))[:30]
    dataset = Indexed(digits48.images[order].numpy(), two_views)  # fewer, in another order
    loader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=workers)
    wrapped = SyntheticPositiveLoader(loader, store, augmentation)
    assert len(wrapped) == 4
    assert wrapped.batch_size == 8
    seen = []
    for indexes, views, targets in wrapped:
        assert len(views) == 3
        assert torch.equal(views[1], views[0].flip(-1))
        assert views[2].shape == views[0].shape
        assert len(targets) == len(indexes)
        assert is_candidate_of(views[2], order[indexes], CandidateStore(store)).all()
        seen += indexes.tolist()
    assert sorted(seen) == list(range(30))


def test_processes_and_epochs(store, digits48, augmentation):
    dataset = Indexed(digits48.images.numpy(), two_views)

    def epoch(rank, number, named=True):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=True)
        loader = DataLoader(dataset, batch_size=8, sampler=sampler)
        wrapped = SyntheticPositiveLoader(loader, store, augmentation, seed=3)
        if named:
            wrapped.set_epoch(number)
            assert sampler.epoch == number
        else:
            for _ in range(number):
                list(wrapped)
        return {int(i): v for index, views, _ in wrapped for i, v in zip(index, views[2])}  # noqa: B905

    halves = epoch(0, 1), epoch(1, 1)
    assert sorted([*halves[0], *halves[1]]) == list(range(48))
    whole = {**halves[0], **halves[1]}
    again, unnamed = epoch(0, 1), epoch(0, 1, named=False)
    assert all(torch.equal(again[i], whole[i]) for i in again)
    assert all(torch.equal(view, whole[i]) for i, view in unnamed.items())
    later = {**epoch(0, 2), **epoch(1, 2)}
    assert sum(not torch.equal(later[i], whole[i]) for i in whole) > 16  # a third stay by chance


def test_images_without_candidates_are_refused(store, digits48, augmentation):
    other = digits48.images.flip(2).numpy()
    loader = DataLoader(Indexed(other, two_views), batch_size=8)
    with pytest.raises(ClspError, match="no candidates for 48 of the 48 images"):
        SyntheticPositiveLoader(loader, store, augmentation)
    SyntheticPositiveLoader(loader, store, augmentation, images=digits48.images)
    with pytest.raises(ClspError, match="cannot be read by index"):
        SyntheticPositiveLoader(DataLoader([(0, 1)]), store, augmentation)
    with pytest.raises(ClspError, match="give images="):
        SyntheticPositiveLoader([], store, augmentation)


def test_an_index_that_names_another_image_is_refused(store, digits48, augmentation):
    class Shifted(Indexed):
        def __getitem__(self, index):
            return (index + 1, *super().__getitem__(index)[1:])

    loader = DataLoader(Shifted(digits48.images.numpy(), two_views), batch_size=8)
    with pytest.raises(ClspError, match="says it is number 1"):
        SyntheticPositiveLoader(loader, store, augmentation)


def test_the_authors_array_is_taken_with_a_warning(store, digits48, augmentation, tmp_path):
    export_npy(CandidateStore(store), tmp_path / "all.npy")
    loader = DataLoader(Indexed(digits48.images.numpy(), two_views), batch_size=48)
    with pytest.warns(UserWarning, match="does not say which images"):
        wrapped = SyntheticPositiveLoader(loader, tmp_path / "all.npy", augmentation)
    ((indexes, views, _),) = wrapped
    assert is_candidate_of(views[2], indexes, CandidateStore(store)).all()
    few = DataLoader(Indexed(digits48.images[:40].numpy(), two_views), batch_size=8)
    with pytest.raises(ClspError, match=r"were made for 48 images of 16x16, .* 40 images"):
        SyntheticPositiveLoader(few, tmp_path / "all.npy", augmentation)


def test_a_batch_that_was_begun_on_the_host_is_the_same(store, monkeypatch):
    augmentation = BatchAugmentation(PLAIN, [0.0] * 3, [1 / 255] * 3)
    third = ThirdView(CandidateStore(store), augmentation, seed=3)
    first, second = torch.tensor([5, 0, 47, 21]), torch.tensor([1, 1, 30, 2])
    expected = [third(first, 1, 2), third(second, 1, 2)]
    begun = []
    for indexes in (first, second):
        third.begin(indexes, 1, torch.device("cpu"))
        with monkeypatch.context() as patch:
            patch.setattr(CandidateStore, "gather", None)  # nothing is left to be read
            begun.append(third(indexes, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(expected, begun, strict=True))
    assert torch.equal(third(first, 1, 2), expected[0])


def test_training_begins_every_batch_on_the_host(store, tiny, monkeypatch):
    begun, begin = [], ThirdView.begin

    def spy(self, indexes, epoch, device):
        begun.append((epoch, len(indexes)))
        begin(self, indexes, epoch, device)

    monkeypatch.setattr(ThirdView, "begin", spy)
    pretrain(tiny("clsp_simclr", f"synthetic.path={store}", "checkpoint.enabled=False"))
    assert begun == [(0, 16)] * 3 + [(1, 16)] * 3


def test_several_candidates_are_those_that_were_drawn(store, augmentation):
    opened = CandidateStore(store)
    third = ThirdView(opened, augmentation, seed=3, number=2)
    indexes = torch.tensor([5, 0, 47, 21, 5])
    views = third(indexes, 1, 2).round().split(5)
    choice = opened.choose_several(indexes, 3, 1, 2)
    candidates = torch.from_numpy(opened.images(indexes.tolist())).permute(0, 1, 4, 2, 3)
    for place, view in enumerate(views):
        assert torch.equal(view, candidates[torch.arange(5), choice[:, place]].float())
    with pytest.raises(ClspError, match="4 candidates of each image are drawn"):
        ThirdView(opened, augmentation, seed=3, number=4)
