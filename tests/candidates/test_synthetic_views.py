"""Views with a candidate of the same image, as loops of other packages load them."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.synthetic_views import SyntheticViews
from clsp_plugin.candidates.writer import export_npy
from clsp_plugin.data.objects import as_images
from clsp_plugin.errors import ClspError


def pixels(image):
    return torch.from_numpy(np.array(image))


@pytest.fixture
def part(digits48):
    """30 of the 48 images, in another order; (image, label) with pictures."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))[:30].tolist()
    return [(Image.fromarray(digits48.images[i].numpy()), i) for i in order]


def chosen(dataset, opened, workers=0):
    """The number of each image's candidate, after a look at whether it is one of that image."""
    loader = DataLoader(dataset, batch_size=8, num_workers=workers)
    out = []
    for (view, synthetic), labels in loader:
        theirs = torch.from_numpy(opened.images(labels.tolist()))  # labels are the store's rows
        same = (theirs == synthetic[:, None]).flatten(2).all(2)
        assert same.sum(1).eq(1).all()
        assert view.shape == synthetic.shape
        out += same.int().argmax(1).tolist()
    return out


@pytest.mark.parametrize("workers", [0, 1])
def test_every_image_has_its_own_candidates(store, part, workers):
    opened = CandidateStore(store)
    dataset = SyntheticViews(part, store, pixels, pixels)
    assert len(dataset) == 30
    (view, _), label = dataset[4]
    assert torch.equal(view, pixels(part[4][0]))
    assert label == part[4][1]
    assert np.array_equal(dataset.candidate(4, 2), opened.images([label])[0, 2])
    torch.manual_seed(0)
    first, second = (chosen(dataset, opened, workers) for _ in range(2))
    assert set(first) == {0, 1, 2}
    assert first != second  # drawn anew in every epoch
    torch.manual_seed(0)
    assert chosen(dataset, opened, workers) == first


def test_fewer_candidates_and_several_views(store, part):
    dataset = SyntheticViews(
        [{"img": image} for image, _ in part],
        CandidateStore(store, 1),
        lambda image: (pixels(image), pixels(image.rotate(90))),
        lambda image: pixels(image).float(),
    )
    (view, turned, synthetic), label = dataset[0]
    assert torch.equal(turned, view.rot90())
    assert synthetic.dtype == torch.float32
    assert label == -1
    assert {dataset[0][0][2].sum().item() for _ in range(20)} == {synthetic.sum().item()}


def test_images_of_other_sizes_are_matched_as_the_store_was_made(digits48, write_store, tmp_path):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8))
    store = write_store(tmp_path / "large", as_images([large] * 20, 16))
    (view, synthetic), _ = SyntheticViews([large], store, pixels, pixels)[0]
    assert view.shape == (40, 50, 3)
    assert synthetic.shape == (16, 16, 3)


def test_what_does_not_fit_is_refused(store, part, tmp_path):
    turned = [(image.rotate(90), label) for image, label in part]
    for given, told in (
        (turned, "no candidates for 30 of the 30 images of the data set"),
        ([*part, (torch.rand(3, 16, 16), 0)], "Item 30 of the data set holds float32"),
        (iter(part), "has no length"),
        ([], "is empty"),
    ):
        with pytest.raises(ClspError, match=told):
            SyntheticViews(given, store, pixels, pixels)
    export_npy(CandidateStore(store), tmp_path / "all.npy")
    with pytest.raises(ClspError, match=r"were made for 48 images .* 30 images"):
        SyntheticViews(part, tmp_path / "all.npy", pixels, pixels)


def test_a_pickled_store_is_opened_again_and_not_copied(store, part):
    dataset = SyntheticViews(part, CandidateStore(store, 2), pixels, pixels)
    assert len(pickle.dumps(dataset.store)) < 1000
    again = pickle.loads(pickle.dumps(dataset))
    assert again.store.num_candidates == 2
    assert np.array_equal(again.candidate(3, 1), dataset.candidate(3, 1))
