from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.errors import ClspError
from clsp_plugin.figures import candidate_sheet, sheets, store_caption, training_curves
from clsp_plugin.records.record import Record

MANIFEST = StoreManifest(
    num_images=50000, num_candidates=8, height=32, width=32, fingerprint="f" * 64,
    dataset="cifar10/train", denoiser="0123456789abcdef", w=0.1, sampler="ddim", steps=100,
    eta=0.1, seed=0, dtype="float32", clip=False, share_anchor=False, shard_size=512,
)  # fmt: skip


def images(*shape):
    return np.random.default_rng(0).integers(0, 255, (*shape, 8, 6, 3), np.uint8)


def find(sheet, image, scale):
    """Left upper corners at which an enlarged image stands, exactly."""
    block = np.kron(image, np.ones((scale, scale, 1), np.uint8))
    height, width = block.shape[:2]
    starts = np.argwhere((sheet == block[0, 0]).all(2))
    return [
        (int(y), int(x))
        for y, x in starts
        if np.array_equal(sheet[y : y + height, x : x + width], block)
    ]


@pytest.mark.parametrize("scale", [1, 3])
def test_every_image_stands_unsmoothed_in_its_row_and_column(tmp_path, scale):
    anchors, candidates = images(3), images(3, 5)[:, :, ::-1]
    path = tmp_path / "new" / "sheet.png"
    candidate_sheet(anchors, candidates, path, scale, "A title", store_caption(MANIFEST))
    sheet = np.asarray(Image.open(path))
    assert Image.open(path).format == "PNG"
    places = np.empty((3, 6, 2), int)
    for row in range(3):
        for column, image in enumerate([anchors[row], *candidates[row]]):
            (places[row, column],) = find(sheet, image, scale)
    assert all(len({y for y, _ in row}) == 1 for row in places.tolist())
    assert all(len({x for _, x in column}) == 1 for column in places.transpose(1, 0, 2).tolist())
    gaps = np.diff(places[0, :, 1]) - 6 * scale
    assert (gaps[1:] == sheets._GAP).all()
    assert gaps[0] >= 4 * sheets._GAP  # the anchor stands apart


def texts(monkeypatch, *arguments):
    drawn = []

    class Spy(sheets.ImageDraw.ImageDraw):
        def text(self, xy, text, *rest, **others):
            drawn.append((xy, text))
            super().text(xy, text, *rest, **others)

    monkeypatch.setattr(sheets.ImageDraw, "Draw", Spy)
    candidate_sheet(*arguments)
    return drawn


def test_headings_and_a_caption_that_fits(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    drawn = texts(monkeypatch, images(2), images(2, 3), path, 3, "Title", store_caption(MANIFEST))
    words = [text for _, text in drawn]
    assert words[:3] == ["Title", "anchor", "candidates"]
    assert " ".join(words[3:]) == store_caption(MANIFEST)
    ink = np.asarray(Image.open(path)).min(2) < 200
    assert not ink[:, : sheets._MARGIN].any()
    assert not ink[:, -sheets._MARGIN :].any()
    assert not ink[-sheets._MARGIN // 2 :].any()


def test_title_and_caption_may_be_left_out(tmp_path, monkeypatch):
    drawn = texts(monkeypatch, images(2), images(2, 1), tmp_path / "sheet.png")
    assert [text for _, text in drawn] == ["anchor", "candidate"]


def test_columns_have_names(tmp_path, monkeypatch):
    columns = ["w = 0", "w = 1", "x"]
    drawn = texts(monkeypatch, images(2), images(2, 3), tmp_path / "a.png", 3, "", "", columns)
    places = [xy[0] for xy, text in drawn if text in columns]
    assert places == sorted(places)
    assert len(set(places)) == 3
    assert "candidates" not in [text for _, text in drawn]


def test_the_caption_says_how_the_candidates_were_made():
    assert store_caption(MANIFEST) == (
        "w = 0.1 (90 % anchor in the middle features), DDIM, 100 steps, eta = 0.1, denoiser "
        "0123456789ab, store of 50,000 images with 8 candidates each"
    )
    told = store_caption(replace(MANIFEST, w=1.0, eta=1.0, condition="0123", guidance=1.8))
    assert told.startswith(
        "w = 1 (0 % anchor in the middle features), told the anchor's condition, guidance = 1.8, "
        "DDIM, 100 steps, eta = 1, denoiser"
    )


def run(method="simclr", seed=0, curve=None, **changes):
    if curve is None:
        curve = [(e, 5 - e + seed, 10 * e + seed) for e in (1, 2, 3)]
    fields = {"dataset": "digits", "backbone": "resnet18", "epochs": 3, "num_train": 2000}
    fields |= {"checkpoint": None, **changes}
    names = ("epoch", "train_loss", "val_acc1")
    curve = [dict(zip(names, point, strict=True)) for point in curve]
    return Path(f"{method}{seed}"), Record(method=method, seed=seed, curve=curve, **fields)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw curves and give back the figure."""
    kept = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (kept.append(f), save(f, *a, **k)))

    def draw(records):
        training_curves(records, tmp_path / "new" / "curves.png")
        assert Image.open(tmp_path / "new" / "curves.png").format == "PNG"
        return kept[-1]

    return draw


def points(line):
    return [tuple(map(float, point)) for point in line.get_xydata()]


def test_lines_are_means_and_bands_are_ranges(drawn):
    figure = drawn([run(seed=0), run(seed=1), run(seed=5)])
    loss, accuracy = figure.axes
    assert points(loss.lines[0]) == [(1, 6), (2, 5), (3, 4)]
    assert points(accuracy.lines[0]) == [(1, 12), (2, 22), (3, 32)]
    corners = {tuple(map(float, p)) for p in accuracy.collections[0].get_paths()[0].vertices}
    assert {(1, 10), (1, 15), (2, 20), (2, 25), (3, 30), (3, 35)} <= corners
    assert min(y for _, y in corners) == 10
    assert max(y for _, y in corners) == 35
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["simclr (n = 3)"]
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "training loss")
    assert accuracy.get_ylabel() == "validation top-1 accuracy (%)"


def test_missing_numbers_are_left_out(drawn):
    first = run(seed=0, curve=[(1, 5, 10), (2, None, 20), (3, 3, None)])
    figure = drawn([first, run(seed=1, curve=[(1, 7, 12), (2, 6, None)])])
    assert points(figure.axes[0].lines[0]) == [(1, 6), (2, 6), (3, 3)]
    assert points(figure.axes[1].lines[0]) == [(1, 11), (2, 20)]
    assert figure.legends[0].get_texts()[0].get_text() == "simclr (n = 1 to 2)"
    assert len(drawn([first, run("byol", curve=[])]).axes[0].lines) == 1


def test_a_panel_without_any_number_is_left_out(drawn):
    figure = drawn([run(curve=[(1, 5, None), (2, 4, None)])])
    assert [axis.get_ylabel() for axis in figure.axes] == ["training loss"]


def test_a_method_without_accuracy_is_in_the_legend_once(drawn):
    figure = drawn([run("byol", curve=[(1, 5, None)]), run("simclr")])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["simclr (n = 1)", "byol (n = 1)"]
    assert len(figure.axes[1].lines) == 1


def test_a_method_looks_the_same_in_both_panels(drawn):
    figure = drawn([run("simclr", curve=[(1, 5, None)]), run("byol")])
    loss = {line.get_label(): line for line in figure.axes[0].lines}
    (accuracy,) = figure.axes[1].lines
    assert accuracy.get_color() == loss[accuracy.get_label()].get_color()


def test_lines_differ_without_their_colours_too(drawn):
    methods = [f"method{number}" for number in range(12)]
    figure = drawn([run(method) for method in methods])
    lines = figure.axes[0].lines
    assert len(lines) == 12
    assert len({(str(line._dash_pattern), line.get_marker()) for line in lines}) == 12
    assert len({line.get_color() for line in lines[:7]}) == 7


def test_other_budgets_and_data_sets_are_other_lines(drawn):
    figure = drawn([run(seed=0), run(seed=1, epochs=9), run(seed=2, dataset="cifar10")])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        "simclr, digits, 3 epochs (n = 1)",
        "simclr, digits, 9 epochs (n = 1)",
        "simclr, cifar10, 3 epochs (n = 1)",
    ]


def test_records_without_curves():
    with pytest.raises(ClspError, match="None of the 1 records has a training curve"):
        training_curves([run(curve=[])], "never.png")
