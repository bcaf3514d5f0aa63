"""Loggers get every epoch of a training once; what they wrote is read by their own libraries."""

import csv
import json
import struct
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from clsp_plugin.config.loggers import logger_names
from clsp_plugin.diffusion.training import train_denoiser
from clsp_plugin.engine import loggers as module
from clsp_plugin.engine.pictures import side_by_side
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.verbs import finetune

DENOISER = {
    "block_out_channels": [8], "layers_per_block": 1, "attention_resolutions": [], "max_epochs": 4,
    "batch_size": 8, "checkpoint_every": 1, "sample_every": 2, "fid_images": 4,
    "logger": "tensorboard",
}  # fmt: skip


def lines(folder):
    """What ``metrics.csv`` has."""
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0})
    found.Reload()
    return found


def wandb_records(file):
    """The records of a file that wandb wrote without a network: LevelDB's log format.

    Blocks of 32 KiB hold parts of records, each after its checksum (4 bytes), length (2) and kind:
    1 a whole record, 2 its first part, 3 another one, 4 its last. The file begins with 7 bytes.
    """
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def read_wandb(folder):
    """All rows that were logged without a network, by run."""
    from wandb.proto import wandb_internal_pb2 as pb

    rows = {}
    for file in sorted(folder.rglob("*.wandb")):
        for data in wandb_records(file):
            record = pb.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
                rows.setdefault(file.stem.removeprefix("run-"), []).append(row)
    return rows


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Loggers write below a folder of the test, and not to the network."""
    monkeypatch.chdir(tmp_path)
    for key, value in {
        "WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"file:{tmp_path}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, str(value))
    return tmp_path


def test_every_epoch_once_however_often_it_is_stopped(tiny, store, places, monkeypatch):
    settings = ("max_epochs=4", "auto_resume.enabled=True", "checkpoint.frequency=2",
                f"synthetic.path={store}", "logger=[tensorboard,wandb,mlflow]")  # fmt: skip
    # stopped after epoch 2, with a checkpoint of epoch 1: the second is logged and trained again
    original = module.Journal.on_train_epoch_end

    def dying(self, trainer, pl_module):
        original(self, trainer, pl_module)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Journal, "on_train_epoch_end", dying)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny("clsp_simclr", *settings))
    finished = pretrain(tiny("clsp_simclr", *settings))
    (folder,) = finished.run_dir.parent.iterdir()
    rows = lines(folder)
    assert len(rows) == 4
    losses, steps = [float(row["train_loss"]) for row in rows], [3, 6, 9, 12]

    assert len(list(folder.glob("tensorboard/*/events*"))) == 2
    board = read_tensorboard(folder / "tensorboard/version_0")
    logged = board.Scalars("train_loss")
    assert [event.step for event in logged] == steps
    assert [event.value for event in logged] == pytest.approx(losses)
    assert set(rows[0]) == set(board.Tags()["scalars"])
    (picture,) = board.Images("views")
    assert (picture.step, picture.height, picture.width) == (3, 8 * 18 - 2, 4 * 18 - 2)

    runs = read_wandb(places)
    (identifier,) = runs
    assert json.loads((folder / "args.json").read_text())["wandb_run_id"] == identifier
    logged = [row for row in runs[identifier] if "train_loss" in row]
    assert [row["train_loss"] for row in logged] == pytest.approx(losses)
    assert [row["trainer/global_step"] for row in logged] == steps
    assert sum("views._type" in row or "views" in row for row in runs[identifier]) == 1

    import mlflow

    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == list(zip(steps, losses, strict=True))
    assert run.data.params["method"] == "clsp_simclr"
    assert run.info.status == "FINISHED"


def test_trackio_gets_them_too(tiny, places, monkeypatch):
    import trackio.sqlite_storage as storage

    for part in [m for name, m in sys.modules.items() if name.startswith("trackio")]:
        for name in ("TRACKIO_DIR", "MEDIA_DIR"):
            if hasattr(part, name):
                monkeypatch.setattr(part, name, places / name)
    finished = pretrain(tiny("simclr", "logger=trackio"))
    (run,) = storage.SQLiteStorage.get_runs("clsp")
    logged = storage.SQLiteStorage.get_logs("clsp", run)
    logged = [row for row in logged if "train_loss" in row]
    losses = [float(row["train_loss"]) for row in lines(finished.run_dir)]
    assert [row["train_loss"] for row in logged] == losses
    assert list((places / "MEDIA_DIR").rglob("*.png"))


def test_a_fine_tuning_is_logged(tiny, places):
    finished = pretrain(tiny("simclr"))
    cfg = {"pretrained_feature_extractor": str(finished.checkpoint), "max_epochs": 2,
           "optimizer": {"name": "sgd", "batch_size": 16, "lr": 0.1}, "logger": ["tensorboard"],
           "checkpoint": {"dir": str(places / "tuned")}}  # fmt: skip
    finetune(OmegaConf.create(cfg))
    (folder,) = places.glob("tuned/linear/*")
    assert len(lines(folder)) == 2
    assert {"lr", "train_loss", "weight_norm", "grad_norm"} <= set(lines(folder)[0])
    board = read_tensorboard(folder / "tensorboard/version_0")
    assert len(board.Scalars("train_acc1")) == 2


def test_a_denoiser_is_logged(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (16, 8, 8, 3), dtype=torch.uint8)
    out, original = tmp_path / "out", module.Journal._log

    def dying(self, *args):  # the second epoch is logged, and nothing says so
        original(self, *args)
        if len(self.history.curve) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Journal, "_log", dying)
        with pytest.raises(KeyboardInterrupt):
            train_denoiser(images, DENOISER, out, score=lambda drawn: 1.5)
    assert len(lines(tmp_path / "out.training")) == 2
    train_denoiser(images, DENOISER, out, score=lambda drawn: 1.5)
    rows = lines(out)
    assert [row["frechet"] for row in rows] == ["", "1.5", "", "1.5"]
    assert float(rows[0]["ema_decay"]) == pytest.approx(2 / 11)  # of the second step
    board = read_tensorboard(tmp_path / "out.tensorboard/version_0")
    assert [event.step for event in board.Scalars("loss")] == [2, 4, 6, 8]
    assert {"lr", "ema_decay", "images_per_second", "frechet"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Images("samples")] == [4, 8]
    sheet = np.asarray(Image.open(tmp_path / "out.samples/epoch-00002.png"))
    assert sheet.shape == (4 * 8, 8 * 8, 3)


def test_a_denoiser_stopped_before_its_first_checkpoint_leaves_nothing(tmp_path, monkeypatch):
    def dying(self, trainer, pl_module):
        assert (tmp_path / "out.training/metrics.csv").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Journal, "on_train_epoch_end", dying)
    images = torch.zeros(16, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(images, {**DENOISER, "checkpoint_every": 9, "sample_every": 0},
                       tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out.training").exists()


def test_a_logger_changes_nothing_of_a_training(tiny, store, places):
    settings = (f"synthetic.path={store}", "data.num_val=20")
    first, second = (
        torch.load(pretrain(tiny("clsp_simclr", *settings, *more)).checkpoint, weights_only=True)
        for more in ((), ("logger=tensorboard",))
    )
    for key, value in first["state_dict"].items():
        assert torch.equal(second["state_dict"][key], value)


def test_a_logger_that_fails_does_not_end_the_training(tiny, places, monkeypatch):
    original, tries = module.Journal._log, []

    def failing(self, *args):
        tries.append(args)
        if len(tries) == 1:
            raise ConnectionError("no route to host")
        original(self, *args)

    monkeypatch.setattr(module.Journal, "_log", failing)
    with pytest.warns(UserWarning, match="logger=tensorboard failed .no route to host"):
        finished = pretrain(tiny("simclr", "logger=tensorboard"))
    board = read_tensorboard(finished.run_dir / "tensorboard/version_0")
    assert [event.step for event in board.Scalars("train_loss")] == [3, 6]  # none is lost


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_is_named(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    given = "wandb.enabled=True" if name == "wandb" else f"logger=csv,{name}"
    with pytest.raises(ClspError, match=rf"pip install 'clsp-plugin\[{name}\]'"):
        pretrain(tiny("simclr", given))
    with pytest.raises(ClspError, match=rf"logger={name} needs {name}"):
        train_denoiser(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), {"logger": name}, tmp_path / "o")
    assert not list(tmp_path.rglob("*"))


def test_a_logger_that_cannot_be_opened_is_told_before_training(tiny, places, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gibberish://x")
    with pytest.raises(ClspError, match=r"logger=mlflow could not be opened \(.*gibberish"):
        pretrain(tiny("simclr", "logger=mlflow"))
    assert not list(places.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("given", "names"),
    [(None, ["csv"]), ("csv", ["csv"]), ("csv,tensorboard", ["csv", "tensorboard"]),
     ("[tensorboard, wandb]", ["csv", "tensorboard", "wandb"]), (["wandb"] * 2, ["csv", "wandb"]),
     ([], ["csv"])],
)  # fmt: skip
def test_names(given, names):
    assert logger_names(given) == names


@pytest.mark.parametrize(
    ("given", "told"),
    [("tensorbord", "did you mean 'tensorboard'"), (True, "no list of loggers"), (3, "no list")],
)
def test_other_names_are_refused(given, told):
    with pytest.raises(ClspError, match=told):
        logger_names(given)


def test_images_lie_side_by_side():
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 1, 4, 1).repeat(3, 4)
    sheet = side_by_side(images, gap=2)
    assert sheet.shape == (4, 16, 3)
    for row in range(2):
        for column in range(3):
            part = sheet[row * 3 : row * 3 + 1, column * 6 : column * 6 + 4]
            assert np.array_equal(part, images[row, column])
    assert (sheet[1:3] == 255).all()
    assert side_by_side(images).shape == (2, 12, 3)
