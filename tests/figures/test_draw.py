"""Figures show what records say, name what tells lines apart, and say what they cannot show."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.frozen import Encoder
from clsp_plugin.figures import draw as drawing
from clsp_plugin.figures.draw import KINDS, draw, write_figures
from clsp_plugin.figures.groups import CANDIDATES, WEIGHT, families, group
from clsp_plugin.figures.picture import Options
from clsp_plugin.records.belonging import read_reports
from clsp_plugin.records.record import Record, find_records

MANIFEST = {"num_candidates": 8, "w": 0.1, "denoiser": "d", "seed": 0}


def evaluations(*numbers, epochs=(3,), dataset="digits", protocol="strict"):
    """Linear and, where there is a second number, kNN."""
    return [
        {"task": task, "protocol": protocol, "dataset": dataset, "epoch": epoch, "top1": top1,
         "num_train": 9, "num_test": 9, "settings": {}}
        for epoch in epochs for task, top1 in zip(("linear", "knn"), numbers, strict=False)
    ]  # fmt: skip


def run(method="clsp_simclr", seed=0, top1=(50.0,), weight=1.0, k=None, manifest=MANIFEST, **more):
    dataset = more.get("dataset", "digits")
    synthetic = {"weight": weight, "num_candidates": k, "path": "candidates"}
    fields = {
        "backbone": "resnet18", "epochs": 3, "num_train": 2000, "checkpoint": None,
        "dataset": dataset, "candidates": manifest and dict(manifest),
        "config": {"optimizer": {"lr": 0.5}, "synthetic": synthetic, "data": {"dataset": dataset}},
        "evaluations": evaluations(*top1, dataset=dataset),
        "curve": [{"epoch": e, "val_acc1": 10.0 * e} for e in (1, 2, 3)],
    }  # fmt: skip
    name = f"{method}-{dataset}-{weight}-{k}-{(manifest or {}).get('w')}-{seed}"
    return Path(name), Record(method=method, seed=seed, **fields | more)


def one(records, name, **options):
    """The one picture of a kind, and the lines on what is missing."""
    drawn = draw(records, Options(**options), [name])
    (picture,) = drawn.pictures
    return picture, drawn.missing


def missing(records, name, **options):
    drawn = draw(records, Options(**options), [name])
    assert drawn.pictures == []
    return " ".join(drawn.missing)


def legend(picture):
    texts = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    return [text.replace("\xa0", " ") for text in texts]


def bars(axis):
    """Points of each line with error bars: [(x, mean, deviation)]."""
    found = []
    for container in axis.containers:
        line, _, (stems,) = container.lines
        spread = [float(np.ptp(segment[:, 1])) / 2 for segment in stems.get_segments()]
        found.append([(*map(float, xy), s) for xy, s in zip(line.get_xydata(), spread)])  # noqa: B905
    return found


LAMBDA = [
    run(seed=seed, weight=weight, top1=(top1 + seed, top1 - 9))
    for weight, top1 in ((1.0, 60.0), (0.2, 50.0))
    for seed in (0, 2)
]


def test_points_are_means_and_bars_are_deviations():
    picture, lines = one(LAMBDA, "lambda")
    linear, knn = picture.figure.axes
    (points,) = bars(linear)
    assert [point[:2] for point in points] == [(0.2, 51.0), (1.0, 61.0)]
    assert [point[2] for point in points] == pytest.approx([2**0.5] * 2)
    assert linear.get_xlabel().startswith("λ")
    assert linear.get_ylabel() == "top-1 accuracy (%)"
    assert [axis.get_title() for axis in (linear, knn)] == ["digits: linear probe", "digits: kNN"]
    assert legend(picture) == ["clsp_simclr (n = 2)"]
    assert "protocol strict" in picture.caption.lower()
    assert "bars: sample standard deviation" in picture.caption
    alone, _ = one(LAMBDA[::2], "lambda")
    assert "bars" not in alone.caption
    assert "One seed a point" in alone.caption
    assert lines == []


def test_every_row_of_the_table_with_its_seeds():
    records = [
        run(method, seed, top1=(top1 + 2 * seed, top1 - 9 + seed), manifest=None)
        for method, top1 in (("vicreg", 70.0), ("simclr", 60.0)) for seed in (0, 1)
    ]  # fmt: skip
    records += [run("byol", 0, top1=(50.0,), manifest=None)]
    picture, lines = one(records, "rows")
    assert (picture.name, lines) == ("accuracy-rows", [])
    linear, knn = picture.figure.axes
    labels = [label.get_text() for label in linear.get_yticklabels()]
    assert labels == ["simclr", "byol", "vicreg"]  # as in the table
    dots, means = ([line.get_xydata().tolist() for line in linear.lines if line.get_marker() == m]
                   for m in "oD")  # fmt: skip
    assert dots == [[[60, 0], [62, 0]], [[70, 2], [72, 2]]]
    assert means == [[[61, 0]], [[50, 1]], [[71, 2]]]
    assert [container.has_xerr for container in linear.containers] == [True, True]
    assert [line.get_xydata().tolist() for line in knn.lines if line.get_marker() == "D"] == [
        [[51.5, 0]], [[61.5, 2]],
    ]  # fmt: skip
    assert linear.get_ylim()[0] > linear.get_ylim()[1]  # the first row at the top
    assert "bar: sample standard deviation (n = 1 to 2). Protocol strict: k" in picture.caption
    alone, _ = one(records[::2], "rows")
    assert alone.caption.startswith("One seed a row (n = 1).")


def test_rows_of_several_data_sets_or_of_none():
    records = [
        run(m, dataset=d, manifest=None) for d in ("digits", "cifar10") for m in ("byol", "simclr")
    ]
    names = [picture.name for picture in draw(records, Options(), ["rows"]).pictures]
    assert sorted(names) == ["accuracy-rows-cifar10", "accuracy-rows-digits"]
    assert "no two rows of a data set" in missing(records[1:3], "rows")


def test_the_store_says_k_where_the_run_does_not():
    records = [run(k=2, top1=(40.0,)), run(top1=(50.0,)), run(seed=1, k=8, top1=(60.0,))]
    assert [len(g.records) for g in group(records)] == [1, 2]  # null is the store's 8
    records = [*records[:2], run(seed=1, top1=(60.0,))]
    axis = one(records, "candidates")[0].figure.axes[0]
    assert [point[:2] for point in bars(axis)[0]] == [(2.0, 40.0), (8.0, 55.0)]
    assert axis.get_xscale() == "log"
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["2", "8"]


def test_what_differs_is_another_line_and_is_named():
    other = {**MANIFEST, "w": 0.5}
    names = [
        one.name for one in group([*LAMBDA, run(manifest=other), run("simclr", manifest=None)])
    ]
    assert names == [
        "simclr", "clsp_simclr, λ = 1, w = 0.1", "clsp_simclr, λ = 0.2, w = 0.1",
        "clsp_simclr, λ = 1, w = 0.5",
    ]  # fmt: skip
    (family,) = families([*LAMBDA, run(manifest=other)], WEIGHT)
    assert len(family.records) == 4
    assert families(LAMBDA, CANDIDATES) == []


def test_an_unused_setting_of_a_method_makes_no_line():
    base = [run("simclr", weight=w, manifest=None, seed=s) for s, w in enumerate((1.0, 0.2))]
    assert [g.name for g in group(base)] == ["simclr"]
    assert families(base, WEIGHT) == []


def test_no_weight_stands_for_any_candidates():
    zero = run(weight=0.0, manifest=None, top1=(30.0,))
    picture, _ = one([*LAMBDA, zero, run(manifest={**MANIFEST, "w": 0.5})], "lambda")
    (points,) = bars(picture.figure.axes[0])
    assert [point[:2] for point in points] == [(0.0, 30.0), (0.2, 51.0), (1.0, 61.0)]
    assert legend(picture) == ["clsp_simclr, w = 0.1 (n = 1 to 2)"]


def test_a_run_that_is_there_twice_is_not_averaged():
    twice = (Path("copy"), LAMBDA[0][1])
    assert "with seed 0" in missing([*LAMBDA, twice], "lambda")
    assert "with seed 0" in missing([*LAMBDA, twice], "epochs")


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("candidates", "no two runs differ in synthetic.num_candidates alone"),
        ("w", "clsp generate w=.."),
        ("quality", "clsp inspect"),
        ("tsne", "no checkpoint lies beside the records"),
        ("neighbours", "no checkpoint lies beside the records"),
        ("similarity", "no checkpoint lies beside the records"),
    ],
)
def test_what_cannot_be_drawn_says_what_it_needs(name, needed):
    said = missing(LAMBDA, name)
    assert needed in said
    assert said.endswith(".")


def test_another_protocol_is_not_drawn_instead():
    assert "strict" in missing(LAMBDA, "lambda", protocol="paper")
    with pytest.raises(ClspError, match="strict"):
        draw(LAMBDA, Options("honest"))
    with pytest.raises(ClspError, match="There is no figure lamda; did you mean 'lambda'"):
        draw(LAMBDA, Options(), ["lamda"])


def test_published_numbers_only_when_asked_and_marked():
    ours = [run(dataset="cifar10", weight=w, top1=(90.0,)) for w in (0.2, 1.0)]
    assert len(one(ours, "lambda")[0].figure.axes[0].lines) == 3  # ours, with its two caps
    picture, _ = one(ours, "lambda", published=True)
    (theirs,) = [line for line in picture.figure.axes[0].lines if line.get_marker() == "*"]
    assert (1.0, 94.37) in [tuple(map(float, xy)) for xy in theirs.get_xydata()]
    assert theirs.get_markerfacecolor() == "white"
    assert any("published: CLSP-SimCLR" in text for text in legend(picture))
    assert "published: none for synthetic.weight on digits" in one(
        LAMBDA, "lambda", published=True)[1][0]  # fmt: skip
    curves, _ = one(ours[:1], "epochs", published=True)
    (theirs,) = [x for x in curves.figure.axes[0].lines if "published" in x.get_label()]
    assert float(theirs.get_xdata()[-1]) == 1000
    assert "authors' runs, as published" in curves.caption


def test_curves_say_which_probe_they_are_of():
    picture, lines = one([run()], "epochs")
    assert picture.figure.axes[0].get_title() == "digits: online probe, test images"
    assert "checkpoint.keep_prev=True" in lines[0]
    several = run(evaluations=[*evaluations(40.0, epochs=(1,)), *evaluations(45.0, epochs=(3,))])
    picture, lines = one([several, run("simclr", manifest=None)], "epochs")
    (axis,) = picture.figure.axes
    assert axis.get_title() == "digits: linear probe on frozen features"
    assert axis.lines[0].get_xydata().tolist() == [[1, 40], [3, 45]]
    assert legend(picture) == ["clsp_simclr (n = 1)"]
    assert "without simclr" in lines[0]


def test_points_of_a_curve_are_of_seeds_that_were_evaluated_alike():
    both = evaluations(40.0, epochs=(1, 3))
    records = [run(evaluations=both), run(seed=1, evaluations=both[1:])]
    assert legend(one(records, "epochs")[0]) == ["clsp_simclr (n = 1 to 2)"]
    for name, value in (("num_test", 5), ("num_train", 5), ("settings", {"epochs": 1})):
        other = run(seed=1, evaluations=[{**both[1], name: value}])
        assert f"differ in {name}" in missing([records[0], other], "epochs")


def report(store, **content):
    (store.path / "report").mkdir(exist_ok=True)
    whole = {"drawn": 9, "anchors": 4, "closeness": {}}
    content = {"manifest": vars(store.manifest), **whole, **content}
    (store.path / "report/report.json").write_text(json.dumps(content))


@pytest.fixture
def on_stores(tmp_path, digits48, write_store, monkeypatch):
    """Two runs, each on a store of its own, which differ in w as their manifests say."""
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    records, stores = [], []
    for w in (0.1, 0.6):
        store = CandidateStore(write_store(tmp_path / f"w{w}", digits48, seed=round(10 * w)))
        manifest = replace(store.manifest, w=w, seed=0)
        manifest.save(store.path)
        stores.append(CandidateStore(store.path))
        data = {"dataset": "digits", "num_train": 48, "num_val": 20, "seed": 0, "image_size": 16}
        synthetic = {"weight": 1.0, "num_candidates": None, "path": f"w{w}"}
        config = {"synthetic": synthetic, "data": data}
        records.append(run(manifest=vars(manifest), config=config, top1=(50 + w,)))
    return records, stores


def test_images_under_w(on_stores, digits48):
    records, stores = on_stores
    picture, lines = one(records, "w")
    panel, strip = picture.figure.axes
    assert lines == []
    assert panel.get_xlabel().startswith("w, ")
    assert [text.get_text() for text in strip.texts] == ["anchor", "w = 0.1", "w = 0.6"]
    shown = [np.asarray(image.get_array()) for image in strip.images[:3]]
    expected = [digits48.images[0].numpy(), *(store.images([0])[0, 0] for store in stores)]
    for image, pixels in zip(shown, expected, strict=True):
        assert np.array_equal(image[::8, ::8], pixels)  # 16 pixels on 128
    for file in stores[1].path.glob("shard*"):
        file.unlink()
    picture, lines = one(records, "w")
    assert len(picture.figure.axes) == 1
    assert "the images under it" in lines[0]


def test_quality_names_its_distance(on_stores, tmp_path):
    records, stores = on_stores
    frechet = {"candidates": 3.0, "anchors": 1.0, "images": 100}
    report(stores[0], fid=20.0, encoder="a", frechet=frechet)
    report(stores[1], fid=30.0, encoder="b", frechet=frechet)
    picture, _ = one(records, "quality")
    axis = picture.figure.axes[0]
    assert axis.get_xlabel() == "FID of the candidates (lower is better)"
    assert [point[:2] for point in bars(axis)[0]] == [(20.0, 50.1), (30.0, 50.6)]
    report(stores[0], encoder="a", frechet=frechet)
    report(stores[1], encoder="b", frechet=frechet)
    assert "no two runs" in missing(records, "quality")  # two encoders' distances do not compare
    report(stores[1], encoder="a", frechet={**frechet, "candidates": 4.0})
    picture, _ = one(records, "quality")
    assert "no FID" in picture.figure.axes[0].get_xlabel()
    assert "in the features of a, 100 real images" in picture.caption
    moved = stores[0].path / "report/report.json"
    moved.rename(tmp_path / "report.json")
    assert "There is no report" in missing(records, "quality")
    options = Options(reports=read_reports([tmp_path]))
    given = write_figures(records, tmp_path / "out", options, ["quality"])
    assert [picture.name for picture in given.pictures] == ["accuracy-quality"]
    report(stores[0], encoder="a", frechet=frechet)
    report(stores[1], encoder="a", manifest={**vars(stores[1].manifest), "w": 0.9}, frechet=frechet)
    assert "about other candidates" in missing(records, "quality")


@pytest.fixture
def trained(tiny, store):
    finished = pretrain(tiny("clsp_simclr", f"synthetic.path={store}", "checkpoint.keep_prev=True"))
    return find_records([finished.record]), store


def test_neighbours_are_the_nearest_and_wrong_ones_are_framed(trained, digits48):
    records, store = trained
    (path, _), = records  # fmt: skip
    picture, lines = one(records, "neighbours")
    assert lines == []
    (axis,) = picture.figure.axes
    shown = [np.asarray(image.get_array())[::8, ::8] for image in axis.images]
    assert len(shown) == 6 * 12  # anchors; four early, four late, the store's three
    checkpoints = sorted(path.parent.glob("*.ckpt"))
    framed = 0
    anchors = [np.flatnonzero(digits48.targets == label)[0] for label in (0, 2, 4, 5, 7, 9)]
    for block, checkpoint in enumerate(checkpoints):
        feats = Encoder(checkpoint)(digits48.images.permute(0, 3, 1, 2))
        for row, anchor in enumerate(anchors):
            cosines = torch.cosine_similarity(feats[anchor][None], feats)
            nearest = cosines[torch.arange(len(cosines)) != anchor].topk(4).values
            start = row * 12 + 1 + 4 * block
            same = [
                (digits48.images == torch.from_numpy(image)).flatten(1).all(1).nonzero().item()
                for image in shown[start : start + 4]
            ]
            assert len({anchor, *same}) == 5
            # by value: of two that are as near, rounding decides
            torch.testing.assert_close(cosines[same], nearest, rtol=0, atol=1e-5)
            framed += sum(int(digits48.targets[i] != digits48.targets[anchor]) for i in same)
            synthetic = shown[row * 12 + 9]
            assert np.array_equal(synthetic, CandidateStore(store).images([anchor])[0, 0])
    assert len(axis.patches) == framed
    assert "after 1 epoch\n" in axis.texts[1].get_text()
    assert "chance: 10 %" in axis.texts[2].get_text()
    assert "n = 48 training images" in picture.caption


def test_without_candidates_neighbours_are_all_that_is_named(trained):
    records, _ = trained
    assert one(records, "neighbours")[0].title == "Nearest neighbours and synthetic positives"
    records[0][1].candidates = None
    picture, lines = one(records, "neighbours", limit=12)
    assert picture.title == "Nearest neighbours"
    assert "synthetic" not in picture.caption
    assert "drew from no candidate store" in lines[0]


def test_features_of_test_images(trained):
    records, _ = trained
    picture, _ = one(records, "tsne", limit=15)
    (axis,) = picture.figure.axes
    assert "n = 15 test images" in axis.get_title()
    assert sum(len(points.get_offsets()) for points in axis.collections) == 15
    again, _ = one(records, "tsne", limit=15)
    pairs = zip(axis.collections, again.figure.axes[0].collections, strict=True)
    assert all(np.array_equal(a.get_offsets(), b.get_offsets()) for a, b in pairs)
    picture, _ = one(records, "similarity", limit=30)
    assert "n = 30 anchors" in picture.figure.axes[0].get_title()
    assert len(legend(picture)) == 3


def test_files_are_written_replaced_and_never_taken_from_others(tmp_path):
    out = tmp_path / "new"
    drawn = write_figures(LAMBDA, out, Options(), ["epochs", "lambda", "tsne"])
    names = {"accuracy-epochs.svg", "accuracy-epochs.png", "accuracy-lambda.svg",
             "accuracy-lambda.png"}  # fmt: skip
    assert {path.name for path in out.iterdir()} == {*names, "figures.json"}
    assert {path.name for path in drawn.files} == names
    assert Image.open(out / "accuracy-lambda.png").format == "PNG"
    assert "<svg" in (out / "accuracy-lambda.svg").read_text()
    assert "t-SNE" in json.loads((out / "figures.json").read_text())["missing"][-1]
    first = (out / "accuracy-epochs.svg").read_bytes()
    (out / "mine.txt").touch()
    write_figures(LAMBDA, out, Options(), ["epochs"])
    assert {path.name for path in out.iterdir()} == {
        "accuracy-epochs.svg", "accuracy-epochs.png", "figures.json", "mine.txt"}  # fmt: skip
    assert (out / "accuracy-epochs.svg").read_bytes() == first  # the same figure is the same file
    (out / "accuracy-lambda.svg").write_text("by hand")
    with pytest.raises(ClspError, match="no figure of ours"):
        write_figures(LAMBDA, out, Options(), ["epochs", "lambda"])
    assert (out / "accuracy-lambda.svg").read_text() == "by hand"


def test_every_figure_has_a_title():
    assert set(KINDS) == set(drawing._TITLES)


def test_a_method_looks_the_same_on_every_data_set():
    records = [run(dataset=name, weight=w) for name in ("cifar10", "digits") for w in (0.2, 1.0)]
    for kind in ("lambda", "epochs"):
        picture, _ = one(records[:: 1 if kind == "lambda" else 2], kind)
        assert legend(picture) == ["clsp_simclr (n = 1)"]
        first, second = picture.figure.axes
        assert first.lines[0].get_color() == second.lines[0].get_color()
