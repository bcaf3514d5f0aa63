"""Stores side by side: each has its report, and the picture and the table say what those say."""

import pytest
import torch

from clsp_plugin import cli
from clsp_plugin.candidates.oracle import Oracle, write_oracle
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import load_images
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.inspection.plane import compare_stores, plane, side_by_side

DATA = {"dataset": "digits", "num_train": 48, "num_val": 10, "seed": 0, "image_size": 16}


@pytest.fixture
def images():
    return load_images(DATA, "train")


@pytest.fixture
def stores(images, tmp_path, monkeypatch):
    """Two stores of the digits, by paths from the working directory."""
    monkeypatch.chdir(tmp_path)
    for kind in ("class", "other"):
        write_oracle(images, DATA, f"stores/{kind}", Oracle(kind, num_candidates=2))
    return ["stores/class", "stores/other"]


@pytest.fixture
def judge(tiny):
    return pretrain(tiny("supcon", "max_epochs=1")).run_dir


def test_two_stores(stores, images, judge, tmp_path):
    reports = compare_stores(stores, images, "out", encoder=judge)
    assert list(reports) == stores
    written = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/*")}
    assert written == {"plane.png", "stores-class", "stores-other"}
    assert (tmp_path / "out/stores-class/report.json").is_file()
    head, *rows = side_by_side(reports).splitlines()
    assert head.split() == [
        "label", "agrees", "(%)", "colour", "layout", "background", "features", "variety"
    ]  # fmt: skip
    for name, row in zip(stores, rows, strict=False):
        found = reports[name]
        assert row.split()[0] == name
        assert f"{found['agreement']['candidates']:.1f} +- " in row
        for looks in (*found["hardness"].values(), found["features"]):
            assert f"{looks['share']:.2f} +- {looks['error']:.2f}" in row


def test_the_plane_shows_each_store_where_it_is(tmp_path):
    def report(share, right):
        looks = {"share": share, "error": 0.01}
        return {
            "encoder": "judge",
            "hardness": dict.fromkeys(("colour", "layout", "background"), looks),
            "agreement": {"candidates": right, "error": 1.0, "anchors": 97.0},
        }

    plane({"copies": report(0.0, 97.0), "strangers": report(1.0, 11.0)}, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for word in ("copies", "strangers", "real images", "Judge: judge"):
        assert f"<!-- {word}" in text or word in text
    plane({"copies": report(0.5, 97.0), "strangers": report(1.0, 11.0)}, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() != text


def test_what_cannot_be_compared(stores, images, judge, monkeypatch, capsys):
    with pytest.raises(ClspError, match="named twice"):
        compare_stores([stores[0], f"./{stores[0]}"], images, "out", encoder=judge)
    unlabelled = ImageArray(images.images, torch.full((48,), -1), (), images.name)
    with pytest.raises(ClspError, match="labels"):
        compare_stores(stores, unlabelled, "out", encoder=judge)

    def told(*more):
        monkeypatch.setattr("sys.argv", ["clsp", "inspect", *stores, "data.num_train=48", *more])
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    code, out = told("--encoder", str(judge), "--out", "out", "--limit", "10")
    assert code == 0
    assert out.splitlines()[1].startswith("stores/class ")
    assert told() == (2, "clsp: Several stores are compared by an encoder: give --encoder and "
                      "--out.\n")  # fmt: skip
    code, err = told("--encoder", "x", "--out", "out", "--fid")
    assert code == 2
    assert "about one store" in err
