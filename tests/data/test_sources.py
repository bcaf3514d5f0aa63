"""Images from lists, tar shards and data sets of Hugging Face: the same as from class folders.

``shards/`` was written by webdataset 1.0.2's ShardWriter: five PNG of random pixels with ``cls``,
``json`` and ``txt``.
"""

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clsp_plugin.candidates.imported import import_drawn
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.imagenet100 import IMAGENET100
from clsp_plugin.data.images import image_names, load_images, open_images
from clsp_plugin.data.packed import pack as packing
from clsp_plugin.data.packed.images import PackedImages
from clsp_plugin.data.packed.squares import MappedArray
from clsp_plugin.data.sources import tar_shards
from clsp_plugin.data.splits import load_splits, open_splits
from clsp_plugin.errors import ClspError

SHARDS = Path(__file__).parent / "shards"


def pixels(number, height=24, width=32, channels=3):
    shape = (height, width, channels)[: 2 + (channels > 1)]
    return np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)


def encoded(image, kind="PNG", **how):
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


PNG = encoded(Image.fromarray(pixels(0)))


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def photos(tmp_path):
    """Class folders of six images of several sizes, with odd names."""
    root = tmp_path / "photos"
    for number, name in enumerate(["a b", "c,d.e", "é", "1", "2", "3"]):
        folder = root / ("cat" if number < 3 else "dög house")
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels(number, 24 + number))
        image.save(folder / f"{name}.{'jpg' if number % 2 else 'png'}")
    return root


def files_of(root):
    """Names below a folder with the names of the classes, in the order of class folders."""
    return [
        (file.relative_to(root).as_posix(), folder.name)
        for folder in sorted(root.iterdir()) if folder.is_dir()
        for file in sorted(folder.iterdir())
    ]  # fmt: skip


def data(path, val=None, **more):
    val = None if val is None else str(val)
    return {"dataset": "custom", "train_path": str(path), "val_path": val, "fraction": -1, **more}


def check_same(path, photos, **more):
    """All holders have the same images as the class folders have."""
    squares = {"image_size": 16}
    for holder, how in (
        (PackedImages, {}), (ImageArray, squares), (MappedArray, {**squares, "packed": True})
    ):  # fmt: skip
        images = open_images(data(path, **how, **more), "train")
        assert type(images) is holder
        assert images.identity == open_images(data(photos, **how), "train").identity


def write_csv(path, rows, delimiter=",", encoding="utf-8", end="\n"):
    import csv

    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows(rows)
    return path


LISTS = {
    "plain": lambda root, rows: write_csv(root / "list.csv", rows),
    "header": lambda root, rows: write_csv(root / "list.csv", [("label", "path", "w"), *(
        (label, name, 3) for name, label in rows)]),
    "tabs": lambda root, rows: write_csv(root / "list.tsv", rows, "\t"),
    "excel": lambda root, rows: write_csv(root / "list.csv", rows, encoding="utf-8-sig",
                                          end="\r\n"),
    "blanks": lambda root, rows: text(root / "list.txt", (f"{n}  {c}" for n, c in rows)),
    "commas": lambda root, rows: text(root / "list.txt", (f"{n}, {c}\n" for n, c in rows)),
    "absolute": lambda root, rows: write_csv(
        root.parent / "list.csv", [(root / name, label) for name, label in rows]
    ),
}  # fmt: skip


def text(path, lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_is_its_class_folders(photos, kind):
    path = LISTS[kind](photos, files_of(photos))
    check_same(path, photos)
    names = [name.removeprefix("photos/") for name in image_names(data(path))]
    assert names == image_names(data(photos))


def test_names_in_a_list_are_below_its_folder(photos):
    rows = [(f"./cat/../{name}", label) for name, label in files_of(photos)]
    assert image_names(data(write_csv(photos / "list.csv", rows))) == image_names(data(photos))


def test_labels_of_the_test_images_alone(photos):
    path = text(photos / "list.txt", [name for name, _ in files_of(photos)])
    with pytest.raises(ClspError, match=r"training images \(.*\) have none; set data.no_labels"):
        open_splits(data(path, photos))


def test_a_list_beside_its_folders_needs_no_pack_of_its_own(photos, capsys):
    folders = open_images(data(photos), "train")
    images = open_images(data(write_csv(photos / "list.csv", files_of(photos))), "train")
    assert images.pack.folder == folders.pack.folder
    assert capsys.readouterr().out.count("Packing") == 1


def test_the_order_is_the_list_s(photos):
    rows = files_of(photos)[::-1] * 2
    images = open_images(data(write_csv(photos / "list.csv", rows)), "train")
    whole = open_images(data(photos), "train")
    assert images.targets.tolist() == [1, 1, 1, 0, 0, 0] * 2
    assert images.digests.tolist() == whole.digests.tolist()[::-1] * 2


def test_lists_without_labels(photos):
    rows = files_of(photos)
    for path, more in (
        (write_csv(photos / "list.csv", [[name] for name, _ in rows]), {}),
        (text(photos / "list.txt", [name for name, _ in rows]), {}),
        (write_csv(photos / "labels.csv", rows), {"no_labels": True}),
    ):
        images = open_images(data(path, **more), "train")
        assert (images.targets.tolist(), images.classes) == ([-1] * 6, ())


def test_numbers_are_ordered_by_their_value(photos):
    rows = [(name, label) for (name, _), label in zip(files_of(photos), [10, 9, 2, -1, 2, 10])]  # noqa: B905
    train = write_csv(photos / "train.csv", rows)
    images, val = load_splits(data(train, write_csv(photos / "val.csv", rows[1:2]), image_size=8))
    assert images.classes == ("2", "9", "10")
    assert images.targets.tolist() == [2, 1, 0, -1, 0, 2]
    assert val.targets.tolist() == [1]


NAMES = st.text(
    st.sampled_from(" ,;\"'\n\t#@{}*ä本\\.:=-1a") | st.characters(codec="utf-8"),
    min_size=1,
    max_size=9,
).filter(lambda name: not set(name) & {"/", "\0"})


@settings(max_examples=25)
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4, unique_by=lambda pair: pair[0]))
def test_odd_names(pairs):
    """As Python's writer of CSV puts them; blanks around a label do not count."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [(f"{name}.png", label.strip() or "x") for name, label in pairs]
        for name, _ in rows:
            (root / name).write_bytes(PNG)
        path = write_csv(root / "list.csv", rows, end="\r\n")
        if any(re.fullmatch(r"-\d+", label) for _, label in rows):
            return
        images = open_images(data(path, image_size=8), "train")
        assert [images.classes[target] for target in images.targets] == [c for _, c in rows]
        assert image_names(data(path)) == [name[:-4] for name, _ in rows]


def test_columns_that_are_named(photos):
    rows = [("kind", "mine", "label"), *((c, n, "other") for n, c in files_of(photos))]
    path = write_csv(photos / "list.csv", rows)
    check_same(path, photos, image_column="mine", label_column="kind")
    for more, told in (
        ({"image_column": "min"}, r"image_column=min is no column of .*; did you mean 'mine'"),
        ({"image_column": "mine", "label_column": "x"}, r"label_column=x is no column of"),
        ({}, r"has 3 columns \(kind, mine, label\).*data.image_column and data.label_column"),
        ({"label_column": "kind"}, r"has the columns kind, mine, label; set data.image_column"),
    ):
        with pytest.raises(ClspError, match=told):
            open_images(data(path, **more), "train")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("l.csv", b"", r"l.csv holds no images"),
        ("l.csv", b"\n \n", r"l.csv holds no images"),
        ("l.csv", b"path,label\n", r"l.csv holds no images"),
        ("l.txt", b"\n", r"l.txt holds no images"),
        (
            "l.csv",
            b"cat/1.png,a\n\ncat/2.png,a\ncat/x.png,b",
            r"line 4: .*x.png cannot be read \(No",
        ),
        ("l.csv", b"picture,species\ncat/1.png,a", r"line 1: .*names the columns, set data.image_"),
        ("l.csv", b"path,species\ncat/1.png,a", r"columns path, species; set data.label_column"),
        ("l.csv", b"cat/1.png,a\ncat/2.png,\n", r"line 2: cat/2.png has no label and other lines"),
        (
            "l.csv",
            b"cat/1.png,a\ncat/2.png\n",
            r"line 2: \['cat/2.png'\] has 1 of 2 columns; write",
        ),
        ("l.csv", b"cat/1.png,a\n,b\n", r"line 2: .* has no path"),
        ("l.csv", b"cat/1.png,a,3\n", r"has 3 columns \(cat/1.png, a, 3\)"),
        ("l.csv", b'cat/1.png,a\n"cat/2.png,a\n', r"line 2 is not valid in such a file"),
        ("l.csv", b"cat/1.png,a\ncat/2.png,\xe9", r"l.csv, line 2 is not UTF-8 text"),
        (
            "l.csv",
            b"cat/1.png,a\ncat/2.png,-2",
            r"line 2: cat/2.png has the label -2; give the name",
        ),
        ("l.csv", b"cat/1.png;a\ncat/2.png;a\n", r"line 1: .*a comma .* and not a semicolon"),
        ("l.csv", b"cat,a", r"line 1: .*cat is not a file"),
        ("l.csv", b"cat/1.png,a\ncat/\0.png,a", r"line 2"),
        ("l.txt", b"cat/1.png a\ncat/2.png", r"line 2: cat/2.png has no label and other lines"),
        ("l.txt", b"cat/1.png a\ncat/2 a", r"line 2: cat/2 a is no path of an image"),
        ("l.txt", b"cat/3.png a", r"line 1: .*cat/3.png cannot be read"),
        ("l.doc", b"cat/1.png a", r"l.doc is no source of images; name a folder of class folders"),
    ],
)
def test_lists_that_are_refused(tmp_path, name, content, told):
    (tmp_path / "cat").mkdir()
    for number in (1, 2):
        Image.fromarray(pixels(number)).save(tmp_path / f"cat/{number}.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClspError, match=told):
        open_images(data(tmp_path / name), "train")


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "list.csv", "x.parquet", "x@train"):
        with pytest.raises(ClspError, match=rf"{name} does not exist; set data.train_path"):
            open_images(data(tmp_path / name), "train")
        with pytest.raises(ClspError, match=rf"{name} does not exist in {tmp_path}; set data"):
            open_images(data(name), "train")


def test_classes_that_training_lacks(photos):
    rows = files_of(photos)
    train, val = (
        write_csv(photos / f"{n}.csv", part) for n, part in (("a", rows[:3]), ("b", rows))
    )
    with pytest.raises(ClspError, match=r"have the class dög house, which .* Name the classes ali"):
        load_splits(data(train, val, image_size=8))
    other = text(photos / "c.csv", [f'"{name}",{label}' for name, label in rows[1:2]])
    images, test = open_splits(data(photos, other))
    assert (test.classes, test.targets.tolist()) == (images.classes, [0])


def test_columns_are_for_what_has_some(photos):
    check_same(photos, photos, label_column="x")  # the other split may have it
    block = {"dataset": "digits", "num_train": 10, "seed": 0, "label_column": "x"}
    with pytest.raises(
        ClspError, match=r"label_column=x is for lists.* data.dataset=digits is not"
    ):
        open_images(block, "train")
    with pytest.raises(ClspError, match=r"image_column=x is for tables and .*list.txt is a plain"):
        open_images(data(text(photos / "list.txt", ["cat/1.png"]), image_column="x"), "train")


def test_imagenet100_out_of_a_list(tmp_path):
    Image.fromarray(pixels(0)).save(tmp_path / "x.png")
    wanted = sorted(IMAGENET100)
    path = write_csv(tmp_path / "list.csv", [("x.png", n) for n in ["n0", *wanted[::-1], "n9"]])
    block = {**data(path, image_size=8), "dataset": "imagenet100"}
    images = load_images(block, "train")
    assert images.classes == tuple(wanted)
    assert images.targets.tolist() == list(range(100))[::-1]
    assert len(image_names(block)) == 100
    short = write_csv(tmp_path / "short.csv", [("x.png", "a"), ("x.png", "b")])
    with pytest.raises(ClspError, match=r"has 2 classes, imagenet100 has 100 classes"):
        load_images({**block, "train_path": str(short)}, "train")


# tar shards


def write_tar(path, members):
    """Write a tar file of names and contents."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shards_of(photos, folder, number=2):
    """Shards that hold what class folders hold, in their order."""
    folder.mkdir()
    rows = files_of(photos)
    each = -(-len(rows) // number)
    for shard in range(number):
        members = []
        for index, (name, label) in enumerate(rows[shard * each : (shard + 1) * each]):
            key = f"{shard}/sample {index}"
            members.append((f"{key}.{name[-3:]}", (photos / name).read_bytes()))
            members.append((f"{key}.cls", label.encode()))
        write_tar(folder / f"train-{shard:03d}.tar", members)
    return folder


@pytest.mark.parametrize(
    "name", ["train-{000..001}.tar", "{train-000,train-001}.tar", "t*.tar", ""]
)
def test_what_webdataset_wrote(name):
    images = open_images(data(SHARDS / name), "train")
    assert (images.targets.tolist(), images.classes) == ([0, 1, 2, 0, 1], ("0", "1", "2"))
    array = load_images(data(SHARDS / name, image_size=10, label_column="label"), "train")
    assert (array.targets.tolist(), array.classes) == ([1, 0, 1, 0, 1], ("cat", "dog"))
    for row in range(5):
        assert images.sizes(torch.tensor([row]))[0].tolist() == [10 + row % 2, 12]
    raw = open_images(data(SHARDS / name, pack_format="raw"), "train")
    assert all(np.array_equal(raw.pixels(i), pixels(i, 10 + i % 2, 12)) for i in range(5))
    assert image_names(data(SHARDS / name)) == [f"sample {row:03d}" for row in range(5)]
    plain = open_images(data(SHARDS / name, no_labels=True), "train")
    assert (plain.targets.tolist(), plain.classes) == ([-1] * 5, ())


def test_shards_are_their_class_folders(photos, tmp_path):
    check_same(shards_of(photos, tmp_path / "shards"), photos)


def test_names_that_shards_share(photos, tmp_path):
    folder = shards_of(photos, tmp_path / "shards")
    (folder / "train-001.tar").write_bytes((folder / "train-000.tar").read_bytes())
    names = image_names(data(folder))
    assert names[:2] == ["train-000/0/sample 0", "train-000/0/sample 1"]
    assert len(set(names)) == 6


def test_shards_of_two_splits_may_look_alike(tmp_path):
    """As archives do that were made or unpacked at one time."""
    for split, label in (("train", b"3"), ("val", b"7")):
        (tmp_path / split).mkdir()
        path = write_tar(tmp_path / split / "0.tar", [("x.png", PNG), ("x.cls", label)])
        os.utime(path, ns=(10**18, 10**18))
    found = [open_images(data(tmp_path / split), "train") for split in ("train", "val")]
    assert [images.classes for images in found] == [("3",), ("7",)]


def test_an_archive_is_read_through_once(photos, tmp_path, monkeypatch):
    folder = shards_of(photos, tmp_path / "shards")
    first = open_images(data(folder), "train")
    monkeypatch.setattr(tar_shards, "_listed", None)
    monkeypatch.setattr(packing, "encode", None)
    assert open_images(data(folder), "train").identity == first.identity
    for kept in (tmp_path / "cache/clsp_plugin/listings").iterdir():
        kept.write_bytes(b"{")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert open_images(data(folder), "train").identity == first.identity
    write_tar(folder / "train-001.tar", [("x.png", encoded(Image.fromarray(pixels(9)))),
                                         ("x.cls", b"cat")])  # fmt: skip
    assert len(open_images(data(folder), "train")) == 4


LABELS = {
    "a json alone": ([("json", b'{"label": 3}')], {}, "3"),
    "a text alone": ([("txt", b"cat\n")], {}, "cat"),
    "a json without a label, and a text": ([("json", b'{"w": 3}'), ("txt", b"cat")], {}, "cat"),
    "a key of the json": (
        [("cls", b"1"), ("json", b'{"species": "cat"}')], {"label_column": "species"}, "cat"
    ),
    "an ending": ([("cls", b"1"), ("cls2", b"7")], {"label_column": "cls2"}, "7"),
    "a number as json": ([("json", b"4")], {}, "4"),
    "capitals": ([("CLS", b"5")], {}, "5"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_samples(tmp_path, kind):
    members, more, label = LABELS[kind]
    path = write_tar(tmp_path / "x.tar", [("s.png", PNG), *((f"s.{e}", c) for e, c in members)])
    images = open_images(data(path, **more), "train")
    assert images.classes == (label,)


REFUSED = {
    "empty": (b"", r"x.tar is not a tar file \(empty file\)"),
    "text": (b"text" * 300, r"x.tar is not a tar file"),
    "no images": ([("a.cls", b"1")], r"x.tar holds no images"),
    "a dot in the name": ([("a.v1.png", PNG)], r"x.tar holds no images.*behind the first dot"),
    "no label": ([("a.png", PNG)], r"a in .*x.tar has no label .*data.no_labels=True"),
    "empty label": ([("a.png", PNG), ("a.cls", b" ")], r"a.cls in .*x.tar is empty"),
    "a label that is no text": ([("a.png", PNG), ("a.cls", b"\xff")], r"a.cls in .* is not UTF-8"),
    "bad json": ([("a.png", PNG), ("a.json", b"{")], r"a.json in .*x.tar is not valid JSON"),
    "a list": ([("a.png", PNG), ("a.json", b'{"label": [1]}')], r"has the label \[1\]; a label is"),
    "two images": (
        [("a.png", PNG), ("a.jpg", PNG), ("a.cls", b"1")], r"a.png and a.jpg for one sample; set da"
    ),
    "a member twice": ([("a.png", PNG), ("a.png", PNG), ("a.cls", b"1")], r"holds a.png twice"),
    "captions": (
        [("a.png", PNG), ("a.txt", b"a cat"), ("b.png", PNG), ("b.txt", b"a dog")],
        r"Each image of .* has a label of its own, such as 'a cat'.*data.no_labels=True",
    ),
    "label -5": ([("a.png", PNG), ("a.cls", b"-5")], r"a.png in .*x.tar has the label -5"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_archives_that_are_refused(tmp_path, kind):
    content, told = REFUSED[kind]
    path = tmp_path / "x.tar"
    path.write_bytes(content) if isinstance(content, bytes) else write_tar(path, content)
    with pytest.raises(ClspError, match=told):
        open_images(data(path), "train")


def test_archives_that_are_damaged(tmp_path):
    members = [(f"{i}.{e}", c) for i in range(4) for e, c in (("png", PNG), ("cls", b"1"))]
    whole = write_tar(tmp_path / "x.tar", members).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as archive:
        third = archive.getmember("2.png")
    path = tmp_path / "y.tar"
    for content, told in (
        (whole[: third.offset_data + 100], r"y.tar is damaged or was cut off \(2.png goes on"),
        (whole[: third.offset + 100], r"y.tar is damaged|not a tar file"),
        (whole[: third.offset] + b"x" * 512 + whole[third.offset_data :], r"at byte \d+ there is"),
    ):
        path.write_bytes(content)
        with pytest.raises(ClspError, match=told):
            open_images(data(path), "train")
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.add(tmp_path / "x.tar", "0.png")
    with pytest.raises(ClspError, match=r"it is compressed\); unpack it with gunzip"):
        open_images(data(tmp_path / "z.tar"), "train")
    for name, told in (
        ("x-{0..3}.tar", r"x-0.tar does not exist"), ("q*.tar", r"There are no files .*q\*.tar")
    ):  # fmt: skip
        with pytest.raises(ClspError, match=told):
            open_images(data(tmp_path / name), "train")


def test_members_of_any_name(tmp_path):
    """Nothing leaves an archive; what is hidden, a folder or a link is no image."""
    path = tmp_path / "inside/x.tar"
    path.parent.mkdir()
    names = ["../up", "/root", "a b/c,d", "ü/" + "long" * 60]
    members = [(f"{name}.{e}", c) for name in names for e, c in (("png", PNG), ("cls", b"1"))]
    members += [("._hidden.png", b"x"), ("dir/.DS_Store", b"x"), ("README", b"x")]
    write_tar(path, members)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../up.png"
        archive.addfile(link)
    images = open_images(data(path), "train")
    assert len(images) == 4
    assert image_names(data(path)) == names
    assert not (tmp_path / "up.png").exists()


def test_a_range_counts_as_a_shell_does():
    assert list(tar_shards.expanded("a{08..10}b{0,x}")) == [
        "a08b0", "a08bx", "a09b0", "a09bx", "a10b0", "a10bx",
    ]  # fmt: skip
    assert list(tar_shards.expanded("{9..11}")) == ["9", "10", "11"]
    assert list(tar_shards.expanded("{2..0}")) == ["2", "1", "0"]


def test_packing_of_shards_goes_on_where_it_was(photos, tmp_path, monkeypatch):
    """As after a kill, of which test_packed.py says what it leaves."""
    monkeypatch.setattr(packing, "_SHARD", 2)
    shards = shards_of(photos, tmp_path / "shards")
    whole = open_images(data(shards, cache=str(tmp_path / "whole")), "train")
    made, plain = [], packing.encode

    def stopped(file, how):
        if str(file).startswith("1/sample 0."):  # the fourth image
            raise KeyboardInterrupt
        return plain(file, how)

    again = data(shards, cache=str(tmp_path / "again"))
    monkeypatch.setattr(packing, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        open_images(again, "train")
    monkeypatch.setattr(packing, "encode", lambda *g: made.append(str(g[0])) or plain(*g))
    images = open_images(again, "train")
    assert len(made) == 4  # the first two were there
    assert images.identity == whole.identity
    for file in images.pack.folder.glob("shard*"):
        assert file.read_bytes() == (whole.pack.folder / file.name).read_bytes()


# data sets of Hugging Face


@pytest.fixture
def saved(photos, tmp_path):
    """A data set with two splits, as ``datasets`` reads folders and saves them."""
    from datasets import load_dataset

    (tmp_path / "photos").rename(tmp_path / "train")
    (tmp_path / "both").mkdir()
    (tmp_path / "train").rename(tmp_path / "both/train")
    val = tmp_path / "both/validation/cat"
    val.mkdir(parents=True)
    Image.fromarray(pixels(20)).save(val / "x.png")
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "both"))
    found.save_to_disk(str(tmp_path / "saved"))
    return found


def test_what_is_computed_of_a_data_set_does_not_change_it(saved, tmp_path):
    from datasets import load_from_disk

    before = open_images(data(tmp_path / "saved@train"), "train")
    load_from_disk(str(tmp_path / "saved"))["train"].map(lambda row: {"more": 1})
    assert list((tmp_path / "saved/train").glob("cache-*"))
    assert open_images(data(tmp_path / "saved@train"), "train").pack.folder == before.pack.folder


def hugging_faces(found, folder):
    """Yield a name for each form, and how its splits are named."""
    from datasets import DatasetDict

    yield folder / "saved", "@train"
    (folder / "parquet").mkdir()
    for part in found:
        found[part].to_parquet(str(folder / f"parquet/{part}-00000-of-00001.parquet"))
    yield folder / "parquet", "@train"
    yield folder / "parquet/train-00000-of-00001.parquet", ""
    yield f"hf:{folder / 'parquet'}", "@train[:100%]"
    yield f"hf:{folder / 'parquet'}:default", "@train"
    (folder / "hub").mkdir()
    (folder / "parquet").rename(folder / "hub/data")
    yield folder / "hub", ""
    yield folder / "saved/train", ""
    (arrow,) = (folder / "saved/train").glob("*.arrow")
    yield arrow, ""
    DatasetDict(found).save_to_disk(
        str(folder / "several"), num_shards={"train": 3, "validation": 1}
    )
    (folder / "arrow").mkdir()
    for file in (folder / "several/train").glob("*.arrow"):
        file.rename(folder / "arrow" / file.name)
    yield folder / "arrow", ""


def test_a_data_set_is_its_class_folders(saved, tmp_path):
    forms = 0
    for path, part in hugging_faces(saved, tmp_path):
        for name in {str(path), f"{path}{part}"}:
            check_same(name, tmp_path / "both/train")
            assert image_names(data(name)) == []
        forms += 1
    assert forms == 9


def test_splits_of_a_data_set(saved, tmp_path):
    path = tmp_path / "saved"
    train, val = open_splits(data(path, path))
    assert (len(train), len(val), val.targets.tolist()) == (6, 1, [0])
    assert len(open_images(data(path, f"{path}@train"), "val")) == 6
    with pytest.raises(ClspError, match=r"saved@test has no split test, but train, validation"):
        open_images(data(f"{path}@test"), "train")
    with pytest.raises(ClspError, match=r"train@x has no splits; leave @x out"):
        open_images(data(path / "train@x"), "train")
    with pytest.raises(ClspError, match=r"both is no data set with splits; leave @train out"):
        open_images(data(f"{tmp_path / 'both'}@train"), "train")
    del saved["train"]
    saved["test"] = saved["validation"]
    saved.save_to_disk(str(tmp_path / "tests"))
    with pytest.raises(ClspError, match=r"has the splits .*; say which one .*tests@validation"):
        open_images(data(tmp_path / "tests"), "train")


def test_a_data_set_is_packed_once(saved, tmp_path, monkeypatch, capsys):
    name = f"hf:{tmp_path / 'both'}@train"
    first = open_images(data(name), "train")
    assert f"Packing 6 images of {name}" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(packing, "encode", None)
        assert open_images(data(name), "train").identity == first.identity
    Image.fromarray(pixels(77)).save(tmp_path / "both/train/cat/a b.png")
    assert open_images(data(name), "train").fingerprint != first.fingerprint


def write_saved(path, rows, **features):
    from datasets import Dataset, Features

    Dataset.from_dict(rows, Features(features) if features else None).save_to_disk(str(path))
    return path


def images(number):
    return [{"bytes": encoded(Image.fromarray(pixels(i))), "path": None} for i in range(number)]


def test_labels_of_a_data_set(tmp_path):
    from datasets import ClassLabel, Image, Value

    path = tmp_path / "saved"
    labels = {
        "class": ([1, -1, None], ClassLabel(names=["x", "y", "z"]), [1, -1, -1], ("x", "y", "z")),
        "number": ([10, 9, None], Value("int64"), [1, 0, -1], ("9", "10")),
        "name": (["b", "a", "b"], Value("string"), [1, 0, 1], ("a", "b")),
    }
    for name, (values, kind, targets, classes) in labels.items():
        write_saved(tmp_path / name, {"img": images(3), "label": values}, img=Image(), label=kind)
        found = open_images(data(tmp_path / name, image_size=8), "train")
        assert (found.targets.tolist(), found.classes) == (targets, classes)
    write_saved(path, {"img": images(2), "label": [0, 5]}, img=Image(), label=Value("int32"))
    val = tmp_path / "val"  # it names a class that it has no image of
    write_saved(val, {"img": images(1), "label": [0]}, img=Image(),
                label=ClassLabel(names=["5", "new"]))  # fmt: skip
    assert load_splits(data(path, val, image_size=8))[1].targets.tolist() == [1]
    write_saved(tmp_path / "new", {"img": images(1), "label": [1]}, img=Image(),
                label=ClassLabel(names=["5", "new"]))  # fmt: skip
    with pytest.raises(ClspError, match=r"have the class new, which the training images"):
        load_splits(data(path, tmp_path / "new", image_size=8))


def test_columns_of_a_data_set(tmp_path):
    from datasets import ClassLabel, Features, Image, Sequence, Value

    two = {"fine": [0, 1], "coarse": [1, 1]}
    kinds = {"fine": ClassLabel(names=["a", "b"]), "coarse": ClassLabel(names=["c", "d"])}
    path = write_saved(
        tmp_path / "two", {"left": images(2), "right": images(2)[::-1], **two},
        **Features(left=Image(), right=Image(), **kinds),
    )  # fmt: skip
    for more, told in (
        ({}, r"two has the images left, right; set data.image_column to one"),
        ({"image_column": "left"}, r"Which of the columns fine, coarse of .*two is the label"),
        ({"image_column": "lift"}, r"image_column=lift is no column of .*two; did you mean 'left'"),
        ({"image_column": "fine", "no_labels": True}, r"the column fine must hold images"),
        (
            {"image_column": "left", "label_column": "right"},
            r"column right holds .*set data.label_",
        ),
    ):
        with pytest.raises(ClspError, match=told):
            open_images(data(path, image_size=8, **more), "train")
    array = load_images(
        data(path, image_size=24, image_column="right", label_column="coarse"), "train"
    )
    assert (array.targets.tolist(), array.classes) == ([1, 1], ("c", "d"))
    left = load_images(data(path, image_size=24, image_column="left", no_labels=True), "train")
    assert torch.equal(array.images, left.images.flip(0))
    write_saved(tmp_path / "none", {"text": ["a"]})
    with pytest.raises(ClspError, match=r"none has no column of images but text"):
        open_images(data(tmp_path / "none"), "train")
    write_saved(tmp_path / "many", {"image": images(1), "label": [[1, 2]]}, image=Image(),
                label=Sequence(Value("int64")))  # fmt: skip
    with pytest.raises(ClspError, match=r"The column label holds .*labels are numbers or names"):
        open_images(data(tmp_path / "many"), "train")


def write_arrow(path, table, kind):
    with path.open("wb") as sink, kind(sink, table.schema) as writer:
        writer.write_table(table)


def test_tables_that_others_wrote(tmp_path):
    """Parquet without the types of ``datasets``: bytes, or structs of bytes."""
    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path / "tables"
    folder.mkdir()
    for name, column in (("bytes", [row["bytes"] for row in images(2)]), ("struct", images(2))):
        table = pa.table({"image": column, "label": ["b", "a"]})
        parquet.write_table(table, folder / f"{name}.parquet")
        array = load_images(data(folder / f"{name}.parquet", image_size=24), "train")
        assert array.targets.tolist() == [1, 0]
    for name, write in (("f", pa.ipc.new_file), ("s", pa.ipc.new_stream)):
        write_arrow(folder / f"{name}.arrow", table, write)
        again = load_images(data(folder / f"{name}.arrow", image_size=24), "train")
        assert again.identity == array.identity
    for name in ("x.parquet", "x.arrow"):
        (folder / name).write_bytes(b"PAR1")
        told = rf"{name} cannot be read by Hugging Face's datasets \("
        with pytest.raises(ClspError, match=told):
            open_images(data(folder / name), "train")
    write_arrow(folder / "none.arrow", table.slice(0, 0), pa.ipc.new_stream)
    with pytest.raises(ClspError, match=r"none.arrow holds no images"):
        open_images(data(folder / "none.arrow"), "train")
    with pytest.raises(ClspError, match=r"holds .arrow and .parquet files; name one kind"):
        open_images(data(folder), "train")


@pytest.mark.parametrize("label", [2, -2])
def test_a_class_number_that_has_no_name(tmp_path, label):
    """``datasets`` writes none; others may."""
    import pyarrow as pa
    from datasets import ClassLabel, Features, Image

    kinds = Features(image=Image(), label=ClassLabel(names=["a", "b"])).arrow_schema
    table = pa.table({"image": images(3), "label": [0, 1, label]}).cast(kinds)
    write_arrow(tmp_path / "X.arrow", table, pa.ipc.new_stream)
    told = rf"^row 2 of {tmp_path}/X.arrow has the label {label}, and there are 2 classes"
    with pytest.raises(ClspError, match=told):
        open_images(data(tmp_path / "X.arrow"), "train")


def test_images_beside_the_table(photos, tmp_path):
    """A data set may name its files instead of holding them."""
    from datasets import Dataset, Features, Image, Value
    from pyarrow import ipc

    files = [str(photos / name) for name, _ in files_of(photos)]
    rows = {"image": files, "label": [label for _, label in files_of(photos)]}
    table = Dataset.from_dict(rows, Features(image=Image(), label=Value("string"))).data.table
    write_arrow(tmp_path / "x.arrow", table, ipc.new_stream)
    check_same(tmp_path / "x.arrow", photos)
    os.unlink(files[0])
    with pytest.raises(
        ClspError, match=r"row 0 of .*x.arrow \(.*a b.png\) cannot be read \(No such file"
    ):
        open_images(data(tmp_path / "x.arrow", cache=str(tmp_path / "new")), "train")


def test_a_hub_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ClspError, match=r"hf:me/x is read by .*pip install 'clsp-plugin\[datasets\]'"
    ):
        open_images(data("hf:me/x"), "train")


# damaged and odd images, in every source


def wide():
    out = io.BytesIO()
    Image.fromarray(np.full((20, 20), 999, np.uint16)).save(out, "PNG")
    return out.getvalue()


BAD = {
    "16-bit": (wide(), "8 bits"),
    "truncated": (encoded(Image.fromarray(pixels(1, 200, 200)), "JPEG")[:900], "truncated"),
    "empty": (b"", "cannot identify"),
    "text": (b"text", "cannot identify"),
}
ODD = [
    encoded(Image.fromarray(pixels(2)).convert("CMYK"), "JPEG"),
    encoded(Image.fromarray(pixels(3, channels=1)), "PNG"),
    encoded(Image.fromarray(pixels(4)).convert("RGBA"), "WEBP", lossless=True),
]


def of_list(folder, contents):
    for number, content in enumerate(contents):
        (folder / f"{number}.jpg").write_bytes(content)
    path = write_csv(folder / "list.csv", [(f"{i}.jpg", "a") for i in range(len(contents))])
    return path, rf"{folder}/%d.jpg"


def of_tar(folder, contents):
    members = [
        (f"s{i}.{e}", c)
        for i, content in enumerate(contents) for e, c in (("jpg", content), ("cls", b"a"))
    ]  # fmt: skip
    return write_tar(folder / "x.tar", members), rf"s%d.jpg in {folder}/x.tar"


def of_hub(folder, contents):
    from datasets import Image, Value

    rows = [{"bytes": content, "path": None} for content in contents]
    path = write_saved(folder / "saved", {"image": rows, "label": ["a"] * len(rows)},
                       image=Image(), label=Value("string"))  # fmt: skip
    return path, rf"row %d of {path}"


SOURCES = (of_list, of_tar, of_hub)


@pytest.mark.parametrize("write", SOURCES)
def test_images_of_other_kinds(tmp_path, write):
    images = open_images(data(write(tmp_path, ODD)[0], packed=True, pack_format="raw"), "train")
    for row, content in enumerate(ODD):
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(images.pixels(row), expected)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("write", SOURCES)
def test_images_that_are_damaged(tmp_path, write, kind, capsys):
    content, told = BAD[kind]
    path, name = write(tmp_path, [PNG, content, PNG, PNG])
    where = (name % 1).replace("[", r"\[")
    with pytest.raises(ClspError, match=rf"^{where} .*{told}.*or set data.skip_damaged=True\.$"):
        open_images(data(path, packed=True), "train")
    with pytest.raises(ClspError, match=rf"^{where} .*{told}"):
        load_images(data(path, image_size=8), "train")
    images = open_images(data(path, packed=True, skip_damaged=True), "train")
    assert images.targets.tolist() == [0] * 3
    assert f"Left out, not readable: {name % 1}." in capsys.readouterr().out


def test_a_row_without_an_image(tmp_path):
    from datasets import Image, Value

    rows = {"image": [*images(1), None], "label": ["a", "a"]}
    write_saved(tmp_path / "saved", rows, image=Image(), label=Value("string"))
    with pytest.raises(ClspError, match=r"^row 1 of .*saved holds no image; remove it"):
        open_images(data(tmp_path / "saved", packed=True), "train")
    left = open_images(data(tmp_path / "saved", packed=True, skip_damaged=True), "train")
    assert len(left) == 1


@pytest.mark.parametrize("write", SOURCES)
def test_sizes_that_differ_and_candidates(tmp_path, write):
    contents = [encoded(Image.fromarray(pixels(i, 20 + i, 30))) for i in range(3)]
    path, name = write(tmp_path, contents)
    told = (name % 1).replace("[", r"\[")
    with pytest.raises(ClspError, match=rf"{told} is 21x30, .* is 20x30; set data.image_size"):
        load_images(data(path), "train")
    packed = open_images(data(path), "train")
    array = load_images(data(path, image_size=8), "train")
    assert packed.anchors(8, 8) == (array.size, array.fingerprint)


@pytest.mark.parametrize(("write", "stem"), [(of_list, "{}"), (of_tar, "s{}"), (of_hub, "{}")])
def test_candidates_of_another_generator(tmp_path, write, stem):
    path, _ = write(tmp_path, [encoded(Image.fromarray(pixels(i))) for i in range(3)])
    array = load_images(data(path, image_size=8), "train")
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    for index in range(3):
        Image.fromarray(pixels(50 + index, 8, 8)).save(drawn / f"{stem.format(index)}_0.png")
    import_drawn(drawn, array, data(path, image_size=8), tmp_path / "store")
    candidates = CandidateStore(tmp_path / "store").images(range(3))
    for index in range(3):
        assert np.array_equal(candidates[index, 0], pixels(50 + index, 8, 8))


def test_test_images_without_labels_are_told(photos, capsys):
    train = write_csv(photos / "list.csv", files_of(photos))
    val = write_csv(photos / "val.csv", [(name, -1) for name, _ in files_of(photos)])
    load_splits(data(train, val, image_size=8))
    assert f"none of the 6 test images ({val}) has a label" in capsys.readouterr().out
    load_splits(data(train, train, image_size=8))
    load_splits(data(train, val, image_size=8, no_labels=True))
    assert "has a label" not in capsys.readouterr().out


def test_packs_of_class_folders_are_found_again(tmp_path):
    """By the digest that earlier versions gave them."""
    files = []
    for name, content, when in (("a b/ü.png", b"x", 7), ("c.jpg", b"xy", 8)):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        os.utime(file, ns=(10**18, 10**18 + when))
        files.append(str(file))
    found = packing.source_digest(tmp_path, files, packing.Packing())
    assert found == "e98fc4767ab8a10bf8702428db6c4e4cdd8f5f65aeeaba96e50e47a9ef064ff7"


def test_folders_with_other_files_in_them(photos, tmp_path):
    """Archives and tables beside class folders or images change nothing."""
    first = open_images(data(photos), "train")
    write_tar(photos / "old.tar", [])
    (photos / "x.parquet").write_bytes(b"")
    (photos / "cat/x.tar").write_bytes(b"")
    assert open_images(data(photos), "train").identity == first.identity
    flat = open_images(data(photos / "cat", no_labels=True), "train")
    assert len(flat) == 3
    (tmp_path / "a@b/c").mkdir(parents=True)
    photos.rename(tmp_path / "a@b/c@d")
    assert open_images(data(tmp_path / "a@b/c@d"), "train").identity == first.identity


def test_labels_are_kept_as_they_are(tmp_path):
    members = [("a.png", PNG), ("a.json", json.dumps({"label": "é"}).encode())]
    path = write_tar(tmp_path / "x.tar", members)
    for _ in range(2):  # read, and from what was kept
        assert open_images(data(path), "train").classes == ("é",)
