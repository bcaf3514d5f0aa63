"""Evaluations of one checkpoint on several sets of images stay, and say which they are of."""

import numpy as np
import pytest
from PIL import Image

from clsp_plugin.config.training import Data
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.verbs import _part, knn
from clsp_plugin.records.record import Record, evaluated_on, find_records
from clsp_plugin.tables.make import make_table


def write(folder, classes, number, seed):
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture
def run(tiny, tmp_path):
    write(tmp_path / "train", "abc", 16, 0)
    write(tmp_path / "val", "abc", 4, 1)
    data = ("data.dataset=custom", "data.image_size=16", f"data.train_path={tmp_path / 'train'}",
            f"data.val_path={tmp_path / 'val'}")  # fmt: skip
    return pretrain(tiny("simclr", "max_epochs=1", *data))


def test_evaluations_of_other_images(run, tmp_path):
    write(tmp_path / "val2", "bc", 5, 2)  # one class less, and others of the images

    def of(**data):
        return knn({"pretrained_feature_extractor": str(run.run_dir), "data": data})

    of()
    of(val_path=str(tmp_path / "val2"))
    of(fraction=0.5)
    of()  # replaces the first
    record = Record.load(run.record)
    assert [evaluated_on(e) for e in record.evaluations] == [
        f"custom [data.val_path={tmp_path / 'val2'}]", "custom [data.fraction=0.5]", "custom",
    ]  # fmt: skip
    table = make_table(find_records([run.run_dir]))
    assert sorted(row.heading for row in table.rows) == sorted(
        map(evaluated_on, record.evaluations)
    )
    assert "data.fraction=0.5" in table.to_csv()
    (tmp_path / "val" / "a" / "0.png").unlink()
    of()  # the folder is the same and what is in it is not
    names = [evaluated_on(e) for e in Record.load(run.record).evaluations]
    assert len(set(names)) == len(names) == 4
    (tmp_path / "val" / "d").mkdir()
    (tmp_path / "val" / "c" / "0.png").rename(tmp_path / "val" / "d" / "0.png")
    with pytest.raises(ClspError, match="the class d"):
        of()


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, ""),
        ({"fraction": 0.1}, "data.fraction=0.1"),
        ({"train_path": "elsewhere"}, ""),  # where a data set lies does not say which it is
        ({"num_workers": 1, "mean": [0, 0, 0]}, ""),
        ({"dataset": "custom", "val_path": "x"}, "data.train_path=t, data.val_path=x"),
    ],
)
def test_what_tells_images_apart(given, part):
    own = {"dataset": "cifar10", "train_path": "t"}
    data = {**Data(**own).__dict__, **given}
    assert _part(data, {"data": own}) == part
