"""Candidates of other generators become stores."""

import sys

import numpy as np
import pytest
from PIL import Image

from clsp_plugin import cli
from clsp_plugin.candidates.imported import import_drawn
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.images import load_images
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError

DIGITS = {"dataset": "digits"}


def pixels(*shape):
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Class folders of photographs, as a configuration names them."""
    root = tmp_path / "photos"
    for name, numbers in (("cat", (1, 2, 10)), ("dog", (1, 2))):
        (root / name).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(pixels(8, 8, 3)).save(root / name / f"{number}.jpg")
    return {"dataset": "custom", "train_path": str(root), "val_path": None, "image_size": 8}


def write(folder, name, image):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array(digits48, tmp_path, tiny, suffix):
    images = pixels(48, 2, 16, 16, 3)
    file = tmp_path / f"drawn{suffix}"
    np.save(file, images) if suffix == ".npy" else np.savez(file, images=images)
    said = import_drawn(file, digits48, DIGITS, tmp_path / "store")
    assert "2 for each of 48 images" in said
    store = CandidateStore(tmp_path / "store")
    assert (store.images(range(48)) == images).all()
    assert store.manifest.denoiser == "imported: drawn"
    store.check(48, 16, 16, digits48.fingerprint, "digits")
    cfg = tiny("clsp_simclr", "max_epochs=1", f"synthetic.path={tmp_path / 'store'}")
    assert pretrain(cfg).checkpoint.is_file()
    one = import_drawn(file, digits48, DIGITS, tmp_path / "one", 1, "theirs")
    assert "1 for each" in one
    assert (CandidateStore(tmp_path / "one").images([3]) == images[[3], :1]).all()


def test_one_candidate_an_image_and_another_size(digits48, tmp_path):
    np.save(tmp_path / "a.npy", pixels(48, 16, 16, 3))
    assert "1 for each" in import_drawn(tmp_path / "a.npy", digits48, DIGITS, tmp_path / "store")
    for shape, message in (
        ((47, 16, 16, 3), "holds candidates for 47 images of 16x16 pixels, and digits/train has"),
        ((48, 2, 8, 8, 3), "for 48 images of 8x8"),
        ((48, 16, 16), "images are uint8 of shape"),
    ):
        np.save(tmp_path / "b.npy", pixels(*shape))
        with pytest.raises(ClspError, match=message):
            import_drawn(tmp_path / "b.npy", digits48, DIGITS, tmp_path / "other")
    with pytest.raises(ClspError, match="is not between 1 and the 1 candidates"):
        import_drawn(tmp_path / "a.npy", digits48, DIGITS, tmp_path / "other", 2)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("form", ["{}_{}.png", "{}-{}.png", "{}/{}.png"])
def test_a_folder_by_the_names_of_the_images(folders, tmp_path, form):
    array = load_images(folders, "train")
    anchors = ["cat/1", "cat/10", "cat/2", "dog/1", "dog/2"]  # as the images are in order
    drawn = pixels(5, 11, 8, 8, 3)
    for anchor, images in zip(anchors, drawn, strict=True):
        for number, image in enumerate(images):
            write(tmp_path / "drawn", form.format(anchor, number), image)
    import_drawn(tmp_path / "drawn", array, folders, tmp_path / "store")
    assert (CandidateStore(tmp_path / "store").images(range(5)) == drawn).all()


def test_a_folder_by_numbers(digits48, tmp_path, monkeypatch):
    drawn = pixels(48, 32, 32, 3)  # brought to the size of the images
    for number, image in enumerate(drawn):
        write(tmp_path / "drawn", f"{number:05d}.png", image)
    words = ["import-candidates", tmp_path / "drawn", "-cn", "digits/generate", "data.num_train=48",
             "--out", tmp_path / "store", "--name", "gan"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["clsp", *map(str, words)])
    cli.main()
    store = CandidateStore(tmp_path / "store")
    assert store.manifest.denoiser == "imported: gan"
    store.check(48, 16, 16, digits48.fingerprint, "digits")
    expected = np.asarray(Image.fromarray(drawn[7]).resize((16, 16), Image.Resampling.BICUBIC))
    assert (store.images([7])[0, 0] == expected).all()


def test_what_does_not_fit_is_told(folders, tmp_path):
    array = load_images(folders, "train")
    for name in ("cat/1", "cat/2", "cat/10", "dog/1"):
        write(tmp_path / "drawn", f"{name}.png", pixels(8, 8, 3))

    def take(source=tmp_path / "drawn"):
        import_drawn(source, array, folders, tmp_path / "store")

    with pytest.raises(ClspError, match="has 0 candidates for dog/2 and up to 1 for others"):
        take()
    write(tmp_path / "drawn", "dog/2.png", pixels(8, 8, 3))
    write(tmp_path / "drawn", "cow/2.png", pixels(8, 8, 3))
    with pytest.raises(ClspError, match="cow/2 belongs to no image of the data set, such as cat/1"):
        take()
    with pytest.raises(ClspError, match=r"There are no candidates at .*nowhere"):
        take(tmp_path / "nowhere")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_what_is_there_is_kept_if_it_is_of_the_same_source(digits48, tmp_path, encoding):
    first, other = pixels(48, 2, 16, 16, 3), pixels(48, 2, 16, 16, 3)[::-1]
    store = tmp_path / "store"

    def take(name, images, number=None):
        (tmp_path / name).mkdir(exist_ok=True)
        np.save(tmp_path / name / "drawn.npy", images)
        source = tmp_path / name / "drawn.npy"
        import_drawn(source, digits48, DIGITS, store, number, encoding=encoding)

    take("first", first, 1)
    shard = (store / "shard-00000.npy").read_bytes()
    with pytest.raises(ClspError, match="already holds other candidates; nothing was written"):
        take("other", other)
    assert (store / "shard-00000.npy").read_bytes() == shard
    take("first", first)
    take("first", first)
    import_drawn(
        tmp_path / "first/drawn.npy", digits48, DIGITS, tmp_path / "whole", encoding=encoding
    )
    assert (CandidateStore(store).images(range(48))
            == CandidateStore(tmp_path / "whole").images(range(48))).all()  # fmt: skip
    one = first.copy()
    one[40, 1] += 100
    with pytest.raises(ClspError, match="already holds other candidates"):
        take("first", one)


def test_names_that_several_images_have(folders, tmp_path):
    array = load_images(folders, "train")
    for name in ("cat/1", "cat/2", "cat/10", "dog/1", "dog/2"):
        write(tmp_path / "drawn", f"{name}.png", pixels(8, 8, 3))
    write(tmp_path / "drawn", "cat/2.bmp", pixels(8, 8, 3))
    (tmp_path / "none").mkdir()

    def take(name="drawn"):
        import_drawn(tmp_path / name, array, folders, tmp_path / "store")

    with pytest.raises(ClspError, match=r"cat/2.bmp and .*cat/2.png have one name; keep one"):
        take()
    with pytest.raises(ClspError, match="none holds no images"):
        take("none")
    (tmp_path / "drawn/cat/2.bmp").unlink()
    Image.fromarray(pixels(8, 8, 3)).save(tmp_path / "photos/dog/2.bmp")
    array = load_images(folders, "train")
    with pytest.raises(ClspError, match="has several images that are called dog/2"):
        take()
    assert not (tmp_path / "store").exists()
