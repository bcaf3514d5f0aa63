import pytest
import torch
from torch import nn

from clsp_plugin.data import splits
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation import network as networks
from clsp_plugin.evaluation.cache import FeatureCache, cache_folder
from clsp_plugin.evaluation.features import Features
from clsp_plugin.evaluation.verbs import knn, linear
from clsp_plugin.records.numerics import NUMERICS

WHAT = {"mean": [0.5] * 3, "size": 16}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(2, 3)


class Extraction:
    """Features of so many views, and how often they were computed."""

    def __init__(self):
        self.count = 0

    def __call__(self, views):
        self.count += 1
        feats = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
        return Features(feats[:views], torch.arange(5) % 2)


@pytest.fixture
def extraction():
    return Extraction()


@pytest.fixture
def get(tmp_path, extraction):
    """``get(views=1, images="a", what=WHAT, seed=0)``: features through a cache on disk."""

    def run(views=1, images="a", what=WHAT, seed=0):
        cache = FeatureCache(tmp_path / "features", network(seed), what)
        return cache.features(lambda: {"images": images}, views, lambda: extraction(views))

    return run


def the_file(tmp_path):
    (file,) = (tmp_path / "features").iterdir()
    return file


def test_the_second_time_they_come_from_disk(get, extraction):
    first, second = get(2), get(2)
    assert extraction.count == 1
    assert torch.equal(first.feats, second.feats)
    assert torch.equal(first.targets, second.targets)


def test_both_views_serve_one_and_one_does_not_serve_both(get, extraction, tmp_path):
    get(1)
    assert get(2).feats.shape == (2, 5, 3)
    assert extraction.count == 2
    assert torch.equal(get(1).feats[0], get(2).feats[0])
    assert get(1).feats.shape == (1, 5, 3)
    assert extraction.count == 2
    the_file(tmp_path)  # and there is one of it


@pytest.mark.parametrize(
    "other", [{"images": "b"}, {"what": {**WHAT, "size": 32}}, {"seed": 1},
              {"what": {**WHAT, "mean": [0.4, 0.5, 0.5]}}],
)  # fmt: skip
def test_what_features_depend_on_is_in_their_name(get, extraction, other):
    get()
    get(**other)
    assert extraction.count == 2


def test_another_version_of_the_features_is_another_file(get, extraction, monkeypatch):
    get()
    monkeypatch.setitem(NUMERICS, "linear", 2)
    get()
    assert extraction.count == 1
    monkeypatch.setitem(NUMERICS, "features", 2)
    get()
    assert extraction.count == 2


def test_a_run_keeps_the_features_of_one_epoch(get, tmp_path):
    get(images="a")
    get(images="b")
    keep = tmp_path / "features" / "notes.pt"
    keep.write_text("mine")
    get(seed=1)
    assert len(list((tmp_path / "features").iterdir())) == 2  # the new one and what is not ours
    assert keep.exists()


@pytest.mark.parametrize("damage", ["truncated", "a bit", "another key", "not a file of ours"])
def test_a_file_that_is_not_whole_or_not_ours_is_computed_again(get, extraction, tmp_path, damage):
    expected = get(2).feats
    file = the_file(tmp_path)
    content = torch.load(file, weights_only=True)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "a bit":
        content["feats"][1, 2, 0] += 1e-4
        torch.save(content, file)
    elif damage == "another key":
        torch.save({**content, "key": content["key"].replace("16", "17")}, file)
    else:
        torch.save(network(), file)  # a pickled object: never loaded as one
    assert torch.equal(get(2).feats, expected)
    assert extraction.count == 2
    assert torch.equal(get(2).feats, expected)
    assert extraction.count == 2  # and it was repaired


def test_without_room_the_features_are_used_all_the_same(get, extraction, tmp_path, capfd):
    (tmp_path / "features").write_text("a file where the folder would be")
    assert get(2).feats.shape == (2, 5, 3)
    assert "Features are not kept in" in capfd.readouterr().out


def test_where_they_lie(tmp_path):
    assert cache_folder(tmp_path / "run" / "a-ep=9.ckpt") == tmp_path / "run" / "features"
    assert cache_folder(tmp_path / "clsp.pt") == tmp_path / "clsp.features"


@pytest.fixture
def run(tiny):
    """A pre-trained run, and its evaluations with a count of the images that were embedded."""
    return pretrain(tiny("simclr", "max_epochs=1")).run_dir


@pytest.fixture
def extracted(monkeypatch):
    """Names of the images whose features were extracted."""
    names, plain = [], networks.extract_features

    def counted(backbone, images, **settings):
        names.append(images.name)
        return plain(backbone, images, **settings)

    monkeypatch.setattr(networks, "extract_features", counted)
    return names


def test_linear_and_knn_extract_once_and_say_the_same(run, extracted):
    given = {"pretrained_feature_extractor": str(run)}
    probe = {"max_epochs": 2, "lr_decay_steps": [1], "lr": 0.1}
    first = [linear({**given, **probe, "cache": False}), knn({**given, "cache": False})]
    assert not (run / "features").exists()
    assert extracted == ["digits/train", "digits/val"] * 2
    extracted.clear()
    second = [linear({**given, **probe}), knn(given), linear({**given, **probe})]
    assert extracted == ["digits/train", "digits/val"]
    assert len(list((run / "features").iterdir())) == 2
    for one, two in zip([*first, first[0]], second, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    extracted.clear()
    knn({**given, "data": {"seed": 1}})  # other images
    assert extracted == ["digits/train", "digits/val"]


def test_a_checkpoint_that_changed_is_extracted_again(run, extracted):
    given = {"pretrained_feature_extractor": str(run)}
    knn(given)
    (checkpoint,) = run.glob("*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["backbone.conv1.weight"] *= 1.5
    torch.save(content, checkpoint)
    knn(given)
    assert len(extracted) == 4
    assert len(list((run / "features").iterdir())) == 2


def test_labels_are_not_taken_from_the_cache(run, extracted, monkeypatch):
    given = {"pretrained_feature_extractor": str(run)}
    knn(given)
    plain = splits.open_images

    def relabelled(data, split):
        array = plain(data, split)
        return type(array)(array.images, array.targets.flip(0), array.classes, array.name)

    monkeypatch.setattr(splits, "open_images", relabelled)
    knn(given)
    assert len(extracted) == 4


def test_features_that_are_not_finite_are_not_kept(get, tmp_path):
    def refuse():
        raise ClspError("diverged")

    cache = FeatureCache(tmp_path / "features", network(), WHAT)
    with pytest.raises(ClspError):
        cache.features(lambda: {}, 1, refuse)
    assert not (tmp_path / "features").exists()
