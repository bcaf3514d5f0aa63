"""Going on from a checkpoint: the settings that hold, the images, the folder, and who is in it."""

import json
import os
import shutil
import time

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback

from clsp_plugin.data import splits
from clsp_plugin.engine import pretrain as module
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.engine.trainer import Finite, fit, new_trainer
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.optim import WarmupCosine, at_step
from clsp_plugin.records.checkpoint import read_checkpoint
from clsp_plugin.records.record import Record, add_evaluation
from clsp_plugin.system.locks import locked

AGAIN = "auto_resume.enabled=True"
EVALUATION = {"task": "knn", "protocol": "strict", "dataset": "digits", "epoch": 2, "top1": 10.0,
              "top5": 50.0}  # fmt: skip


class Rates(Callback):
    """The rates and weight decays of every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        groups = trainer.optimizers[0].param_groups
        self.seen.append([(group["lr"], group["weight_decay"]) for group in groups])


@pytest.fixture
def rates(monkeypatch):
    """``rates(cfg)``: pre-train; what was finished, and the settings of each step's groups."""

    def run(cfg):
        watcher = Rates()
        plain = module.make_trainer

        def watched(cfg, start, saver, callbacks, validate):
            return plain(cfg, start, saver, [*callbacks, watcher], validate)

        with monkeypatch.context() as patch:
            patch.setattr(module, "make_trainer", watched)
            return pretrain(cfg), watcher.seen

    return run


@pytest.mark.parametrize(
    "schedule",
    [("scheduler.interval=step",), ("scheduler.interval=epoch",), ("scheduler.name=none",),
     ("scheduler.name=step", "scheduler.lr_decay_steps=[1,3]")],
)  # fmt: skip
def test_the_settings_of_the_configuration_hold(tiny, rates, schedule, capsys):
    first = pretrain(tiny("simclr", *schedule))
    before = first.checkpoint.read_bytes()
    add_evaluation(first.record, EVALUATION)
    kept = first.record.read_bytes()
    new = ("max_epochs=4", "optimizer.lr=0.7", "optimizer.weight_decay=0.01", *schedule)
    _, whole = rates(tiny("simclr", *new))
    second, seen = rates(tiny("simclr", *new, f"resume_from_checkpoint={first.checkpoint}"))
    assert seen == whole[len(whole) // 2 :]
    assert max(rate for step in seen for rate, _ in step) > 0
    assert "before: max_epochs=2, optimizer.lr=" in capsys.readouterr().out
    # what was named stays, with all that was measured on it
    assert first.checkpoint.read_bytes() == before
    assert first.record.read_bytes() == kept
    assert second.run_dir != first.run_dir
    record = Record.load(second.record)
    assert (record.epochs, len(record.curve), record.checkpoint) == (4, 4, second.checkpoint.name)
    (said,) = record.config["continued"]
    assert (said["checkpoint"], said["epochs"]) == (str(first.checkpoint), 2)
    assert set(said["changed"]) == {"max_epochs", "optimizer.lr", "optimizer.weight_decay"}


def test_another_schedule_takes_the_place_of_the_checkpoint_s(tiny, rates):
    first = pretrain(tiny("simclr", "scheduler.name=step", "scheduler.lr_decay_steps=[1]"))
    _, whole = rates(tiny("simclr", "max_epochs=3"))
    _, seen = rates(tiny("simclr", "max_epochs=3", f"resume_from_checkpoint={first.checkpoint}"))
    assert seen == whole[-len(seen) :]


def test_a_continued_run_is_another_than_one_that_was_not(tiny, capsys):
    first = pretrain(tiny("simclr", "max_epochs=1"))
    named = f"resume_from_checkpoint={first.checkpoint}"
    second = pretrain(tiny("simclr", "seed=9", AGAIN, named))
    assert Record.load(second.record).config["continued"][0]["changed"]["seed"] == 5
    assert pretrain(tiny("simclr", "seed=9", AGAIN, named)).run_dir == second.run_dir
    assert "Already complete" in capsys.readouterr().out
    plain = pretrain(tiny("simclr", "seed=9", AGAIN))
    assert plain.run_dir not in (first.run_dir, second.run_dir)
    assert "continued" not in Record.load(plain.record).config


def test_one_of_the_same_settings_is_the_run_itself(tiny, interrupt, tmp_path):
    whole = pretrain(tiny("simclr", "max_epochs=3"))
    second = f"checkpoint.dir={tmp_path / 'second'}"
    interrupt(tiny("simclr", "max_epochs=3", second), epoch=1)
    (named,) = tmp_path.glob("second/*/*/*.ckpt")
    settings = ("max_epochs=3", second, f"resume_from_checkpoint={named}")
    continued = pretrain(tiny("simclr", *settings))
    assert continued.run_dir != named.parent
    assert named.exists()
    first, other = (read_checkpoint(f.checkpoint)["state_dict"] for f in (whole, continued))
    assert all(torch.equal(first[key], other[key]) for key in first)
    assert pretrain(tiny("simclr", "max_epochs=3", second, AGAIN)).run_dir == continued.run_dir


@pytest.mark.parametrize(
    ("given", "told"),
    [("data.seed=1", "was trained on other training images"),
     ("data.num_train=32", "was trained on other training images"),
     ("backbone.kwargs.channels=[8,8,8,16]", r"is of backbone.kwargs.channels=\[8, 8, 8, 8\] and"),
     ("optimizer.batch_size=8", "is of optimizer.batch_size=16 and .* optimizer.batch_size=8"),
     ("optimizer.name=adamw", "is of optimizer.name='sgd' and"),
     ("max_epochs=1", "has 2 epochs behind it and max_epochs=1 leaves none to train"),
     ("method_kwargs.proj_output_dim=4", "is .* in it and .* in the configuration's network")],
)  # fmt: skip
def test_what_is_of_the_checkpoint(tiny, complete, given, told):
    with pytest.raises(ClspError, match=told):
        pretrain(tiny("simclr", "max_epochs=3", f"resume_from_checkpoint={complete}", given))
    assert len(list(complete.parents[1].iterdir())) == 1


@pytest.fixture
def complete(tiny):
    """The checkpoint of a finished pre-training of two epochs."""
    return pretrain(tiny("simclr")).checkpoint


def test_images_are_part_of_a_run(tiny, complete, monkeypatch, capsys):
    again = pretrain(tiny("simclr", AGAIN))
    assert again.checkpoint == complete
    plain = splits.open_images

    def others(data, split):
        array = plain(data, split)
        return type(array)(255 - array.images, array.targets, array.classes, array.name)

    monkeypatch.setattr(splits, "open_images", others)
    other = pretrain(tiny("simclr", AGAIN))
    assert other.run_dir != complete.parent
    assert "is of other training images, so it is not continued" in capsys.readouterr().out
    assert pretrain(tiny("simclr", AGAIN)).run_dir == other.run_dir


def test_a_curve_holds_what_was_measured_in_its_epoch(tiny, interrupt):
    settings = ("max_epochs=4", "check_val_every_n_epoch=2", AGAIN)
    interrupt(tiny("simclr", *settings), epoch=3)
    curve = Record.load(pretrain(tiny("simclr", *settings)).record).curve
    for name in ("val_acc1", "val_loss", "val_rankme"):
        assert [name in row for row in curve] == [False, True, False, True]
    assert all("train_loss" in row and "lr" in row for row in curve)


def test_candidates_are_part_of_a_run(tiny, store, digits48, write_store, capsys, tmp_path):
    settings = (f"synthetic.path={store}", AGAIN)
    first = pretrain(tiny("clsp_simclr", *settings))
    assert pretrain(tiny("clsp_simclr", *settings)).run_dir == first.run_dir
    shutil.rmtree(store)
    assert pretrain(tiny("clsp_simclr", *settings)).run_dir == first.run_dir  # it is complete
    write_store(store, digits48, seed=7)
    other = pretrain(tiny("clsp_simclr", *settings))
    assert other.run_dir != first.run_dir
    assert "is of other candidates, so it is not continued" in capsys.readouterr().out
    assert Record.load(other.record).candidates["seed"] == 7
    assert pretrain(tiny("clsp_simclr", *settings)).run_dir == other.run_dir
    # by name it may go on with them, and says so
    named = (settings[0], f"resume_from_checkpoint={first.checkpoint}")
    with pytest.raises(ClspError, match="leaves none to train with candidates; give a larger"):
        pretrain(tiny("clsp_simclr", *named))
    more = Record.load(pretrain(tiny("clsp_simclr", *named, "max_epochs=3")).record)
    (continued,) = more.config["continued"]
    assert continued["changed"].keys() == {"candidates", "max_epochs"}


def test_the_encoder_that_judges_is_part_of_a_run(tiny, store, tmp_path):
    folders = [pretrain(tiny("simclr", f"seed={seed}", "max_epochs=1")).run_dir for seed in (0, 1)]
    encoder = tmp_path / "encoder"
    settings = ("synthetic.choice=hardest", f"synthetic.path={store}",
                f"synthetic.encoder={encoder}", AGAIN)  # fmt: skip
    shutil.copytree(folders[0], encoder)
    first = pretrain(tiny("clsp_simclr", *settings))
    assert pretrain(tiny("clsp_simclr", *settings)).run_dir == first.run_dir
    shutil.rmtree(encoder)
    assert pretrain(tiny("clsp_simclr", *settings)).run_dir == first.run_dir  # it is complete
    with pytest.raises(ClspError, match="encoder"):
        pretrain(tiny("clsp_simclr", *settings, "max_epochs=3"))
    shutil.copytree(folders[1], encoder)
    assert pretrain(tiny("clsp_simclr", *settings)).run_dir != first.run_dir
    own = tiny("clsp_simclr", *settings[:2], f"synthetic.encoder={first.run_dir.parent}", AGAIN)
    with pytest.raises(ClspError, match=r"this one among them.*name one run in it"):
        pretrain(own)


@pytest.mark.parametrize("size", [0, 1000])
def test_a_damaged_checkpoint_is_never_complete(tiny, complete, size):
    complete.write_bytes(complete.read_bytes()[:size])
    for setting in (AGAIN, f"resume_from_checkpoint={complete}"):
        with pytest.raises(ClspError, match=r"is not a readable checkpoint .* delete it"):
            pretrain(tiny("simclr", setting))
    with pytest.raises(ClspError, match=r"auto_resume.enabled=False trains anew"):
        pretrain(tiny("simclr", AGAIN))


@pytest.mark.parametrize(
    "key", ["state_dict", "optimizer_states", "moments", "loops", "callbacks", "weight"]
)
def test_a_checkpoint_without_something(tiny, interrupt, tmp_path, key):
    cfg = ("max_epochs=3", AGAIN)
    interrupt(tiny("simclr", *cfg), epoch=1)
    (path,) = tmp_path.glob("trained/*/*/*.ckpt")
    content = read_checkpoint(path)
    if key == "moments":
        content["optimizer_states"] = []
    else:
        content["state_dict"].pop("backbone.conv1.weight") if key == "weight" else content.pop(key)
    torch.save(content, path)
    with pytest.raises(ClspError, match=r"ep=0.ckpt cannot be continued, something in it is miss"):
        pretrain(tiny("simclr", *cfg))


def test_how_old_a_checkpoint_may_be(tiny, complete, capsys):
    long_ago = time.time() - 1000 * 3600
    os.utime(complete, (long_ago, long_ago))
    assert pretrain(tiny("simclr", AGAIN)).checkpoint == complete
    other = pretrain(tiny("simclr", AGAIN, "auto_resume.max_hours=36"))
    assert other.checkpoint != complete
    assert f"{complete} is older than auto_resume.max_hours=36" in capsys.readouterr().out


def test_a_copied_run_goes_on_from_its_last_epoch(tiny, interrupt, tmp_path, capsys):
    """Copying gives the files new times, in any order."""
    cfg = ("max_epochs=3", AGAIN, "checkpoint.keep_prev=True")
    interrupt(tiny("simclr", *cfg), epoch=2)
    first, second = sorted(tmp_path.glob("trained/*/*/*.ckpt"))
    os.utime(second, (1000, 1000))
    os.utime(first)
    finished = pretrain(tiny("simclr", *cfg))
    assert finished.run_dir == first.parent
    assert second.name in capsys.readouterr().out


def test_evaluations_stay_when_a_run_goes_on(tiny, interrupt, tmp_path):
    cfg = ("max_epochs=3", AGAIN)
    interrupt(tiny("simclr", *cfg), epoch=1)
    (run,) = tmp_path.glob("trained/*/*")
    early = Record("simclr", "digits", "resnet18", 1, 5, 48, "a.ckpt")
    early.save(run / "record.json")
    add_evaluation(run / "record.json", {**EVALUATION, "epoch": 1})
    record = Record.load(pretrain(tiny("simclr", *cfg)).record)
    assert [e["epoch"] for e in record.evaluations] == [1]
    assert (record.epochs, len(record.curve)) == (3, 3)


def test_one_process_trains_in_a_folder(tiny, interrupt, tmp_path):
    cfg = ("max_epochs=3", AGAIN)
    interrupt(tiny("simclr", *cfg), epoch=1)
    (run,) = tmp_path.glob("trained/*/*")
    foreign = run / ".x.ckpt.1.2.tmp"
    foreign.touch()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert "lock" not in before
    with locked(run / "lock"), pytest.raises(ClspError, match="Another process is training in"):
        pretrain(tiny("simclr", *cfg))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == {**before, "lock": b""}
    assert pretrain(tiny("simclr", *cfg)).run_dir == run
    assert not foreign.exists()  # of a process that was killed
    assert not (run / "lock").exists()


def test_a_run_holds_its_folder(tiny, monkeypatch):
    seen = []
    plain = Finite.on_train_epoch_start

    def look(self, trainer, module):
        plain(self, trainer, module)
        (saver,) = [c for c in trainer.callbacks if type(c).__name__ == "Checkpointer"]
        if saver.last is not None:
            with locked(saver.run_dir / "lock") as free:
                seen.append(free)

    monkeypatch.setattr(Finite, "on_train_epoch_start", look)
    pretrain(tiny("simclr", "max_epochs=3"))
    assert seen == [False, False]


def test_args_are_not_written_again(tiny, interrupt, tmp_path):
    cfg = ("max_epochs=3", AGAIN)
    interrupt(tiny("simclr", *cfg), epoch=1)
    (args,) = tmp_path.glob("trained/*/*/args.json")
    before = args.stat()
    pretrain(tiny("simclr", *cfg))
    assert (args.stat().st_ino, args.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_nothing_is_left_before_the_first_checkpoint(tiny, interrupt, tmp_path):
    interrupt(tiny("simclr"), epoch=0)
    with pytest.raises(ClspError, match="do not fill one batch"):
        pretrain(tiny("simclr", "optimizer.batch_size=64"))
    assert list((tmp_path / "trained").rglob("*")) == []


def test_a_loss_that_is_not_finite(tiny, tmp_path, monkeypatch):
    from clsp_plugin.methods.simclr import SimCLR

    plain = SimCLR.training_step

    def breaking(self, batch, batch_idx):
        loss = plain(self, batch, batch_idx)
        bad = self.current_epoch == 1 and batch_idx == 1
        return loss * float("nan") if bad else loss

    monkeypatch.setattr(SimCLR, "training_step", breaking)
    with pytest.raises(ClspError, match="loss of simclr is not finite in epoch 2, from step 2 on"):
        pretrain(tiny("simclr", "max_epochs=3"))
    (run,) = tmp_path.glob("trained/*/*")
    (checkpoint,) = run.glob("*.ckpt")
    content = read_checkpoint(checkpoint)
    assert content["epoch"] == 0
    assert all(v.isfinite().all() for v in content["state_dict"].values())
    assert {p.name for p in run.iterdir()} == {"args.json", "metrics.csv", checkpoint.name}


class Model(pl.LightningModule):
    """One weight, and what goes wrong."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.weight = wrong, torch.nn.Parameter(torch.zeros(1))

    def train_dataloader(self):
        return torch.utils.data.DataLoader([0.0] * 150)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def training_step(self, batch, batch_idx):
        self.wrong(self, batch_idx)
        return self.weight.sum()


def _spoil(model, batch_idx):
    if batch_idx == 149:
        model.weight.data.fill_(float("inf"))


def _inf(model, batch_idx):
    if batch_idx >= 3:
        model.weight.data.fill_(float("nan"))
    assert batch_idx < 100  # it is not found at the end of a long epoch alone


def _memory(model, batch_idx):
    raise RuntimeError("CUDA error: out of memory\nmore of it")


def _defect(model, batch_idx):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [(_spoil, ClspError, "of x (is|are) not finite in epoch 1, from"),
     (_inf, ClspError, "The loss of x is not finite in epoch 1, from step 4 on"),
     (_memory, ClspError, r"memory is too small for this training \(CUDA error: out of memory\)"),
     (_defect, RuntimeError, "mat1 and mat2")],
)  # fmt: skip
def test_what_ends_a_training(wrong, kind, told):
    trainer = new_trainer(logger=False, accelerator="cpu", devices=1, max_epochs=1,
                          callbacks=[Finite("x", "do something")])  # fmt: skip
    with pytest.raises(kind, match=told) as raised:
        fit(trainer, Model(wrong), None, None)
    assert type(raised.value) is kind


@settings(max_examples=25, deadline=None)
@given(
    total=st.integers(1, 50),
    warmup=st.integers(0, 20),
    base=st.floats(1e-4, 1.0),
    data=st.data(),
)
def test_a_schedule_is_moved_to_a_step_as_if_it_had_been_stepped(total, warmup, base, data):
    steps = data.draw(st.integers(0, total))
    moved, stepped = (
        WarmupCosine(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base), warmup, total,
                     start=1e-5)
        for _ in range(2)
    )  # fmt: skip
    at_step(moved, steps)
    for _ in range(steps):
        stepped.optimizer.step()
        stepped.step()
    assert moved.get_last_lr() == stepped.get_last_lr()
    assert moved.optimizer.param_groups[0]["lr"] == stepped.optimizer.param_groups[0]["lr"]
    assert json.dumps(moved.state_dict()) == json.dumps(stepped.state_dict())


def test_a_run_of_before_goes_on_with_settings_that_came_later(tiny, interrupt, tmp_path):
    interrupt(tiny("simclr", "max_epochs=3", AGAIN), epoch=1)
    (run,) = tmp_path.glob("trained/*/*")
    args = json.loads((run / "args.json").read_text())
    del args["synthetic"]["use"], args["synthetic"]["probability"]
    for path in run.glob("*.ckpt"):  # without a digest of the settings
        content = read_checkpoint(path)
        content.pop("clsp_plugin")
        torch.save(content, path)
    (run / "args.json").write_text(json.dumps(args))
    assert pretrain(tiny("simclr", "max_epochs=3", AGAIN)).run_dir == run
