"""A run stopped and continued is the run left alone; several processes are one batch."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from clsp_plugin.engine import pretrain as module
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.distributed import gather
from clsp_plugin.losses.nt_xent import nt_xent_loss
from clsp_plugin.records.record import Record


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("simclr", ()),
        ("mocov2plus", ("scheduler.interval=step",)),
        ("byol", ("scheduler.interval=epoch",)),
        ("clsp_simclr", ()),
        ("clsp_mocov2", ("joint_forward=False",)),
        # stochastic depth draws from the global generator
        ("simclr_aug", ("backbone.kwargs.drop_path_rate=0.5",)),
        ("byol", ("accumulate_grad_batches=2",)),
        ("swav", ()),
        ("dino", ()),
        ("deepclusterv2", ()),
        ("simclr_ft", ()),
        ("mocov2_ft", ()),
        ("cl_gan", ()),
    ],
)
def test_continued_run_equals_an_uninterrupted_one(tiny, store, interrupt, method, extra):
    path = [f"synthetic.path={store}"] if method.startswith("clsp_") else []
    alone = pretrain(tiny(method, "max_epochs=4", *path, *extra))
    settings = (*path, *extra, "max_epochs=4", "auto_resume.enabled=True",
                f"checkpoint.dir={store.parent / 'second'}")  # fmt: skip
    interrupt(tiny(method, *settings), epoch=2)
    continued = pretrain(tiny(method, *settings))
    runs = list((store.parent / "second").glob("*/*"))
    assert len(runs) == 1  # in the same directory
    first, second = (
        torch.load(f.checkpoint, weights_only=True)["state_dict"] for f in (alone, continued)
    )
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert different == []
    curves = [Record.load(f.record).curve for f in (alone, continued)]
    assert [row["train_loss"] for row in curves[0]] == [row["train_loss"] for row in curves[1]]


def test_the_metrics_of_every_epoch_are_beside_the_checkpoint(tiny, interrupt, tmp_path):
    """While a run goes on, and whole when it was continued."""
    settings = ("max_epochs=4", "auto_resume.enabled=True", "data.num_val=20")
    interrupt(tiny("simclr", *settings), epoch=2)
    (file,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    finished = pretrain(tiny("simclr", *settings))
    assert file.parent == finished.run_dir
    rows = list(csv.DictReader(file.read_text().splitlines()))
    curve = Record.load(finished.record).curve
    times = {"seconds", "images_per_second"}
    assert [{k: float(v) for k, v in row.items() if k not in times} for row in rows] == curve
    assert {"epoch", "train_loss", "val_acc1", *times} <= rows[0].keys()
    for row in rows:
        assert float(row["images_per_second"]) == pytest.approx(48 / float(row["seconds"]))


def test_narrow_networks_are_trained_in_the_layout_that_a_cpu_can(tiny):
    narrow = ("backbone.kwargs.channels=[4,4,4,4]", "accelerator=cpu", "precision=32-true")
    losses = []
    for contiguous in (False, True):
        layout = f"performance.disable_channel_last={contiguous}"
        finished = pretrain(tiny("simclr", *narrow, "max_epochs=1", layout))
        losses += [row["train_loss"] for row in Record.load(finished.record).curve]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_complete_run_is_not_run_again(tiny, capsys):
    settings = ("auto_resume.enabled=True",)
    first = pretrain(tiny("simclr", *settings))
    again = pretrain(tiny("simclr", *settings))
    assert again.checkpoint == first.checkpoint
    assert "Already complete" in capsys.readouterr().out
    other = pretrain(tiny("simclr", *settings, "seed=6"))
    assert other.run_dir != first.run_dir


@pytest.mark.parametrize("method", ["simclr", "clsp_simclr"])
def test_a_run_killed_before_its_record_gets_it_from_the_checkpoint(
    tiny, store, monkeypatch, capsys, method
):
    settings = ("auto_resume.enabled=True",)
    if method.startswith("clsp_"):
        settings += (f"synthetic.path={store}",)
    with monkeypatch.context() as patch:
        patch.delattr(Record, "save")
        with pytest.raises(AttributeError, match="save"):
            pretrain(tiny(method, *settings))
    again = pretrain(tiny(method, *settings))
    out = capsys.readouterr().out
    assert "Already complete" in out
    assert "Its record was missing" in out
    undisturbed = pretrain(tiny(method, *settings, f"checkpoint.dir={store.parent / 'second'}"))
    first, second = (Record.load(f.record) for f in (again, undisturbed))
    for name in ("method", "epochs", "seed", "num_train", "hardware", "versions", "commit",
                 "candidates"):  # fmt: skip
        assert getattr(first, name) == getattr(second, name)
    losses = [[row["train_loss"] for row in r.curve] for r in (first, second)]
    assert losses[0] == losses[1]
    assert first.timings["train_seconds"] > 0
    assert first.timings["processes"] == 1
    assert first.checkpoint == again.checkpoint.name
    assert (first.candidates is not None) == method.startswith("clsp_")
    assert not first.candidates or first.candidates["w"] == 0.1


@pytest.mark.parametrize("epochs", [2, 3], ids=["complete", "to go on"])
def test_a_damaged_record_is_told_before_anything_is_trained(tiny, monkeypatch, epochs):
    settings = ("auto_resume.enabled=True", f"max_epochs={epochs}", "checkpoint.keep_prev=True")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_save", lambda record, path: None)
        first = pretrain(tiny("simclr", *settings))
    if epochs == 3:
        first.checkpoint.unlink()  # as a run that was stopped after two
    first.record.write_text("[]")
    before = sorted(first.run_dir.iterdir())
    with pytest.raises(ClspError, match=r"record\.json is not a readable record.*move it away"):
        pretrain(tiny("simclr", *settings))
    assert sorted(first.run_dir.iterdir()) == before
    first.record.unlink()
    assert Record.load(pretrain(tiny("simclr", *settings)).record).epochs == epochs


def test_checkpoints_lie_where_solo_learn_s_do(tiny):
    finished = pretrain(tiny("simclr", "name=mine"))
    run = finished.run_dir
    assert run.parent.name == "simclr"
    assert [p.name for p in run.glob("*.ckpt")] == [f"mine-{run.name}-ep=1.ckpt"]
    args = json.loads((run / "args.json").read_text())
    assert args["method"] == "simclr"
    assert args["backbone"]["name"] == "resnet18"
    state = torch.load(finished.checkpoint, weights_only=True)["state_dict"]
    assert {k.split(".")[0] for k in state} == {"backbone", "projector", "classifier"}


def test_every_checkpoint_is_kept_when_asked_and_the_last_always_saved(tiny):
    run = pretrain(tiny("simclr", "max_epochs=3", "checkpoint.keep_prev=True")).run_dir
    assert len(list(run.glob("*.ckpt"))) == 3
    run = pretrain(tiny("simclr", "max_epochs=3", "checkpoint.frequency=5")).run_dir
    assert [p.name[-9:] for p in run.glob("*.ckpt")] == ["ep=2.ckpt"]


def test_record_says_what_was_run(tiny):
    record = Record.load(pretrain(tiny("simclr", "seed=3")).record)
    assert (record.method, record.dataset, record.epochs, record.seed) == ("simclr", "digits", 2, 3)
    assert record.num_train == 48
    assert [row["epoch"] for row in record.curve] == [1, 2]
    assert record.timings["images_per_second"] > 0
    assert record.versions["torch"] == torch.__version__
    assert record.config["optimizer"]["batch_size"] == 16


def test_checkpoint_of_another_architecture_is_refused(tiny):
    first = pretrain(tiny("simclr"))
    with pytest.raises(ClspError, match="is of simclr on resnet18"):
        pretrain(tiny("byol", f"resume_from_checkpoint={first.run_dir}"))


def test_test_images_are_brought_to_the_size_of_the_views(tiny):
    backbone = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    cfg = tiny("simclr", "data.image_size=24", "max_epochs=1")
    cfg.backbone = {"name": "vit_tiny", "kwargs": backbone}
    cfg.augmentations[0].crop_size = 16
    record = Record.load(pretrain(cfg).record)
    assert record.curve[-1]["val_acc1"] is not None
    assert (record.images["count"], record.images["height"]) == (record.num_train, 24)


def test_too_few_images_for_a_batch(tiny):
    with pytest.raises(ClspError, match="do not fill one batch"):
        pretrain(tiny("simclr", "optimizer.batch_size=64"))


def _gather_worker(rank, world, folder):
    z, indexes = torch.load(folder / "in.pt")
    z = z.requires_grad_()
    # both views of this rank's images
    rows = torch.arange(4) + 4 * rank
    mine = torch.cat([rows, rows + 8])
    loss = nt_xent_loss(z[mine], indexes[mine], 0.2)
    loss.backward()
    torch.distributed.all_reduce(z.grad)
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    parts = gather(rows)
    if rank == 0:
        torch.save((total / world, z.grad / world, parts), folder / "out.pt")


def test_two_processes_give_the_loss_and_gradient_of_one_batch(tmp_path, gathering):
    torch.manual_seed(0)
    z, indexes = torch.randn(16, 6), torch.arange(8).repeat(2)
    torch.save((z, indexes), tmp_path / "in.pt")
    gathering(_gather_worker, tmp_path)
    loss, gradient, parts = torch.load(tmp_path / "out.pt")
    single = z.clone().requires_grad_()
    expected = nt_xent_loss(single, indexes, 0.2)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, single.grad)
    assert parts.tolist() == list(range(8))


def test_processes_without_gpus_cannot_synchronise_batch_normalisation(tmp_path, tiny):
    two = ("devices=2", "accelerator=cpu", "strategy=ddp", "sync_batchnorm=True")
    with pytest.raises(ClspError, match=r"needs GPUs; set sync_batchnorm=False, .* 2 processes"):
        pretrain(tiny("simclr", *two))
    assert not (tmp_path / "trained").exists()


def test_two_processes_train(tmp_path, tiny):
    cfg = tiny("mocov2plus", "devices=2", "accelerator=cpu", "strategy=ddp")
    OmegaConf.save(cfg, tmp_path / "two.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "clsp_plugin.cli", "pretrain", "--config-path", str(tmp_path),
         "--config-name", "two", "hydra.run.dir=.", "hydra.output_subdir=null"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "trained").glob("*/*/record.json")
    assert Record.load(record).timings["processes"] == 2
    (checkpoint,) = record.parent.glob("*.ckpt")
    assert int(torch.load(checkpoint, weights_only=True)["state_dict"]["queue_ptr"]) == 0
