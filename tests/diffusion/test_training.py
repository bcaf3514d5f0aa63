"""Training of the denoiser: against a plain loop, and resumed to the last bit."""

import dataclasses
import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from clsp_plugin.config.typed import settings_of
from clsp_plugin.data.keyed_random import Purpose, derive_key, key_normal, key_uniform, keys_for
from clsp_plugin.diffusion import training
from clsp_plugin.diffusion.denoiser import build_unet, denoiser_hash, load_denoiser
from clsp_plugin.diffusion.interpolation import decode, encode
from clsp_plugin.diffusion.module import DenoiserModule, TrainingSettings
from clsp_plugin.diffusion.training import train_denoiser
from clsp_plugin.errors import ClspError
from clsp_plugin.system.locks import locked

CFG = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention_resolutions": [4],
    "dropout": 0.2,
    "batch_size": 6,
    "max_epochs": 4,
    "warmup_steps": 3,
    "lr": 1e-2,
    "checkpoint_every": 1,
}


class Stop(Callback):
    """Stands for a kill at the start of an epoch, or in the middle of one."""

    def __init__(self, epoch, batch=None):
        self.epoch, self.batch = epoch, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == (self.batch or 0):
            raise ConnectionAbortedError


class Spy(Callback):
    """Notes the image indexes of every batch, and the weights behind every step."""

    def __init__(self):
        self.indexes, self.averages, self.rates = {}, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.indexes.setdefault(trainer.current_epoch, []).append(batch[0].tolist())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.averages.append([p.clone() for p in pl_module.ema.parameters()])


def by_hand(images, cfg, steps):
    """Weights and their average after a few steps of the first epoch, in plain torch."""
    cfg = settings_of(TrainingSettings, cfg)
    torch.manual_seed(derive_key(cfg.seed, Purpose.TRAINING, 0))
    unet = build_unet(8, cfg)
    average = [p.detach().clone() for p in unet.parameters()]
    adam = torch.optim.Adam(unet.parameters(), lr=cfg.lr)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    order = keys_for(derive_key(cfg.seed, Purpose.ORDER, 0), torch.arange(len(images))).argsort()
    for step in range(steps):
        indexes = order[step * cfg.batch_size : (step + 1) * cfg.batch_size]
        u = key_uniform(keys_for(derive_key(cfg.seed, Purpose.TRAINING, 2, 0), indexes), 2)
        noises = keys_for(derive_key(cfg.seed, Purpose.TRAINING, 3, 0), indexes)
        noise = key_normal(noises, 3 * 64).view(-1, 3, 8, 8)
        x = images[indexes].permute(0, 3, 1, 2) / 127.5 - 1
        for row in range(len(x)):
            if u[row, 1] < cfg.horizontal_flip:
                x[row] = x[row].flip(-1)
        t = (u[:, 0] * 1000).long()
        a = abar[t].view(-1, 1, 1, 1)
        v = key_uniform(keys_for(derive_key(cfg.seed, Purpose.TRAINING, 4, 0), indexes), 1)
        again = keys_for(derive_key(cfg.seed, Purpose.TRAINING, 5, 0), indexes)
        again = key_normal(again, 3 * 64).view(-1, 3, 8, 8)
        other = (v[:, 0] < cfg.renoise_middle).view(-1, 1, 1, 1)
        torch.manual_seed(derive_key(cfg.seed, Purpose.TRAINING, 1, 0, step, 0))
        h, skips, emb = encode(unet, a.sqrt() * x + (1 - a).sqrt() * noise, t)
        if cfg.renoise_middle:
            h = torch.where(other, encode(unet, a.sqrt() * x + (1 - a).sqrt() * again, t)[0], h)
        loss = ((decode(unet, h, skips, emb) - noise) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), cfg.gradient_clip)
        adam.param_groups[0]["lr"] = cfg.lr * min(1, (step + 1) / max(1, cfg.warmup_steps))
        adam.step()
        decay = min(cfg.ema_decay, (1 + step) / (10 + step)) if cfg.ema_warmup else cfg.ema_decay
        average = [
            decay * a + (1 - decay) * p for a, p in zip(average, unet.parameters(), strict=True)
        ]
    return list(unet.parameters()), average


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ema_decay": 0.05},
        {"ema_warmup": False, "ema_decay": 0.9, "seed": 3},
        {"gradient_clip": 0.1, "warmup_steps": 0, "horizontal_flip": 0.0},
        {"renoise_middle": 0.5, "dropout": 0.0},
        {"renoise_middle": 1.0, "dropout": 0.0},
    ],
)
def test_against_a_plain_loop(images, tmp_path, change):
    # with one channel a group the biases before it would have no gradient but rounding errors
    cfg = {**CFG, "norm_num_groups": 2, "max_epochs": 1, "batch_size": 4, **change}
    kept = {}

    class Keep(Callback):
        def on_train_end(self, trainer, pl_module):
            kept.update(unet=pl_module.unet, ema=pl_module.ema)

    train_denoiser(images, cfg, tmp_path / "out", callbacks=[Keep()])
    weights, average = by_hand(images, cfg, steps=4)
    for name, expected in (("unet", weights), ("ema", average)):
        for (key, ours), theirs in zip(kept[name].named_parameters(), expected, strict=True):
            if not key.endswith("to_k.bias"):  # without a gradient by construction, as above
                torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    # the two are far enough apart for the comparison to tell
    gap = max((a - b).abs().max() for a, b in zip(weights, average, strict=True))
    assert gap > 1e-3 or change.get("ema_decay") == 0.05
    assert denoiser_hash(load_denoiser(tmp_path / "out")[0], {}) == denoiser_hash(kept["ema"], {})


@pytest.mark.parametrize("stop", [Stop(2), Stop(3, batch=1)])
def test_a_resumed_run_equals_an_uninterrupted_one(images, tmp_path, stop):
    cfg = {**CFG, "renoise_middle": 0.5}
    whole = train_denoiser(images, cfg, tmp_path / "whole")
    with pytest.raises(ConnectionAbortedError):
        train_denoiser(images, cfg, tmp_path / "killed", callbacks=[stop])
    assert not (tmp_path / "killed").exists()
    torch.manual_seed(12345)  # another process has another global state
    spy = Spy()
    resumed = train_denoiser(images, cfg, tmp_path / "killed", callbacks=[spy])
    assert sorted(spy.indexes) == list(range(stop.epoch, 4))  # it did continue
    assert resumed["losses"] == whole["losses"]
    assert resumed["steps"] == whole["steps"] == 8
    names = [denoiser_hash(load_denoiser(tmp_path / name)[0], {}) for name in ("whole", "killed")]
    assert names[0] == names[1]


def test_a_run_killed_at_the_very_end_only_writes(images, tmp_path, monkeypatch):
    whole = train_denoiser(images, CFG, tmp_path / "whole")

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_denoiser", full_disk)
        with pytest.raises(OSError, match="No space"):
            train_denoiser(images, CFG, tmp_path / "out")
    spy = Spy()
    record = train_denoiser(images, CFG, tmp_path / "out", callbacks=[spy])
    assert spy.indexes == {}
    assert record["losses"] == whole["losses"]
    names = [denoiser_hash(load_denoiser(tmp_path / name)[0], {}) for name in ("whole", "out")]
    assert names[0] == names[1]


def test_what_is_written(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # what Lightning says on a machine that has SLURM
        warnings.filterwarnings("ignore", message=".*srun.*")
        record = train_denoiser(images, CFG, "runs/out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]  # no lightning_logs
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["out"]
    assert json.loads((tmp_path / "runs/out/training.json").read_text()) == record
    assert len(record["losses"]) == record["epochs"] == 4
    assert record["steps"] == 4 * (16 // 6)
    assert record["seconds"] > 0
    assert record["settings"]["batch_size"] == 6
    assert record["versions"]["torch"] == torch.__version__


def test_the_global_generator_is_left_alone(images):
    module = training._make_module(8, settings_of(TrainingSettings, CFG))
    module.on_train_epoch_start()
    state = torch.get_rng_state()
    batch = (torch.arange(4), images[:4])
    losses = [module.training_step(batch, number).item() for number in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1] != losses[2]  # dropout goes by the batch


def test_order(images, tmp_path):
    spy = Spy()
    train_denoiser(
        images, {**CFG, "max_epochs": 2, "batch_size": 8}, tmp_path / "a", callbacks=[spy]
    )
    first, second = ([i for b in spy.indexes[epoch] for i in b] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second
    assert spy.rates == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    again = Spy()
    train_denoiser(
        images, {**CFG, "max_epochs": 1, "batch_size": 4}, tmp_path / "b", callbacks=[again]
    )
    assert [
        i for b in again.indexes[0] for i in b
    ] == first  # the batch size does not change the order


def test_the_batch_size_counts_all_processes_and_is_at_most_the_data(images):
    def batches(rank, world_size, batch_size):
        settings = settings_of(TrainingSettings, {**CFG, "batch_size": batch_size})
        data = training._Data(images, settings)
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=world_size,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        return [batch.tolist() for batch in data.train_dataloader()]

    whole = batches(0, 1, 6)
    assert [len(batch) for batch in whole] == [6, 6]
    for alone, first, second in zip(whole, batches(0, 2, 6), batches(1, 2, 6), strict=True):
        assert sorted(first + second) == sorted(alone)
        assert len(first) == len(second)
    assert [len(batch) for batch in batches(0, 1, 99)] == [16]
    assert [len(batch) for batch in batches(1, 3, 99)] == [5]
    with pytest.raises(ClspError, match="does not divide"):
        batches(0, 4, 6)


def test_noise_and_flips_are_named_by_image_and_epoch(images, monkeypatch):
    module = DenoiserModule(build_unet(8, CFG_UNET), settings_of(TrainingSettings, CFG))
    indexes = torch.arange(16)
    x, noise, t = module._draw(indexes, images)
    part = module._draw(indexes[[5, 2]], images[[5, 2]])
    for whole, some in zip((x, noise, t), part, strict=True):
        assert torch.equal(whole[[5, 2]], some)
    with monkeypatch.context() as patch:
        patch.setattr(DenoiserModule, "current_epoch", 1)
        others = module._draw(indexes, images)
    for now, later in zip((x, noise, t), others, strict=True):
        assert not torch.equal(now, later)
    plain = images.permute(0, 3, 1, 2) / 127.5 - 1
    flipped = [torch.equal(x[i], plain[i].flip(-1)) for i in range(16)]
    kept = [torch.equal(x[i], plain[i]) for i in range(16)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 2 < sum(flipped) < 14
    many = torch.arange(4000)
    _, noise, t = module._draw(many, images[many % 16])
    assert (t.min(), t.max()) >= (0, 990)
    assert t.max() <= 999
    assert t.float().mean() == pytest.approx(499.5, abs=20)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    # neither the step nor the flip is a function of the noise
    assert abs(torch.corrcoef(torch.stack([t.float(), noise[:, 0, 0, 0]]))[0, 1]) < 0.06


CFG_UNET = {key: CFG[key] for key in ("block_out_channels", "layers_per_block", "dropout")} | {
    "attention_resolutions": []
}


def test_it_learns(tmp_path):
    images = torch.full((64, 8, 8, 3), 200, dtype=torch.uint8)
    images[:, :4] = 30
    cfg = {**CFG, "dropout": 0.0, "batch_size": 16, "max_epochs": 20, "checkpoint_every": 20}
    losses = train_denoiser(images, cfg, tmp_path / "out")["losses"]
    assert losses[0] > 0.7
    assert losses[-1] < 0.35


def test_another_setting_is_refused_by_name(images, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConnectionAbortedError):
        train_denoiser(images, CFG, out, callbacks=[Stop(2)])
    for change, message in [
        ({"lr": 0.5}, r"lr=0.01 \(now 0.5\); use the same settings"),
        ({"seed": 1}, r"seed=0 \(now 1\)"),
        ({"block_out_channels": [8, 8]}, r"block_out_channels=\[8, 16\] \(now \[8, 8\]\)"),
    ]:
        with pytest.raises(ClspError, match=message):
            train_denoiser(images, {**CFG, **change}, out)
    with pytest.raises(ClspError, match="images="):
        train_denoiser(images.flip(0), CFG, out)
    train_denoiser(images, {**CFG, "checkpoint_every": 3}, out)  # changes nothing that is learned


def test_an_unfinished_training_without_a_checkpoint_starts_anew(images, tmp_path):
    with pytest.raises(ConnectionAbortedError):
        train_denoiser(images, CFG, tmp_path / "out", callbacks=[Stop(0, batch=1)])
    train_denoiser(images, {**CFG, "max_epochs": 1}, tmp_path / "out")


def test_an_existing_out_is_refused_before_any_work(images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ClspError, match="already exists; choose another out= or delete it"):
        train_denoiser(images, CFG, tmp_path / "out")
    assert not (tmp_path / "out.training").exists()


def test_a_finished_training_is_left_as_it_is(images, tmp_path):
    out, workspace = tmp_path / "out", tmp_path / "out.training"
    record = train_denoiser(images, CFG, out)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    workspace.mkdir()  # it was killed before this was cleared away
    (workspace / "settings.json").write_text("{}")
    assert train_denoiser(images, CFG, out) == record
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == files
    assert not workspace.exists()
    with pytest.raises(ClspError, match="already exists; choose another out= or delete it"):
        train_denoiser(images, {**CFG, "seed": 7}, out)
    assert not workspace.exists()


def test_a_loss_that_is_not_finite_is_an_error(images, tmp_path):
    with pytest.raises(ClspError, match="loss of the denoiser is not finite in epoch"):
        train_denoiser(images, {**CFG, "lr": 1e38, "gradient_clip": 0, "warmup_steps": 0},
                       tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out").exists()
    with pytest.raises(ClspError) as refused:
        train_denoiser(images, {**CFG, "lr": 1e4, "gradient_clip": 0, "warmup_steps": 0,
                                "precision": "32-true"}, tmp_path / "out")  # fmt: skip
    assert "use a smaller lr (it is 10000)" in str(refused.value)


def test_a_training_that_was_stopped_is_not_written_as_whole(images, tmp_path):
    class Interrupt(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    with pytest.raises(ClspError, match="stopped after 1 of 4 epochs; start it again"):
        train_denoiser(images, CFG, tmp_path / "out", callbacks=[Interrupt()])
    assert not (tmp_path / "out").exists()
    assert len(train_denoiser(images, CFG, tmp_path / "out")["losses"]) == 4


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 8, 6, 3), "8x6; a denoiser needs square"), ((0, 8, 8, 3), "no images")],
)
def test_images_that_are_refused(tmp_path, shape, message):
    with pytest.raises(ClspError, match=message):
        train_denoiser(torch.zeros(shape, dtype=torch.uint8), CFG, tmp_path / "out")


def test_a_batch_that_does_not_divide_among_processes(images):
    data = training._Data(images, settings_of(TrainingSettings, CFG))

    @dataclasses.dataclass
    class Trainer:
        global_rank: int = 0
        world_size: int = 4

    data.trainer = Trainer()
    with pytest.raises(ClspError, match="batch_size=6 does not divide among 4"):
        data.train_dataloader()


def test_mixed_precision_clips_gradients(images, tmp_path):
    cfg = {**CFG, "max_epochs": 1, "precision": "bf16-mixed", "gradient_clip": 0.1}
    assert train_denoiser(images, cfg, tmp_path / "out")["epochs"] == 1


def test_sheets_of_samples_change_nothing(images, tmp_path):
    train_denoiser(images, CFG, tmp_path / "plain")
    train_denoiser(images, {**CFG, "sample_every": 3}, tmp_path / "watched")
    names = sorted(path.name for path in (tmp_path / "watched.samples").iterdir())
    assert names == ["epoch-00003.png", "epoch-00004.png"]
    with Image.open(tmp_path / "watched.samples" / names[1]) as sheet:
        assert sheet.size == (8 * 8, 4 * 8)
        assert len(sheet.getcolors(2048)) > 100  # it is not blank
    hashes = [denoiser_hash(load_denoiser(tmp_path / n)[0], {}) for n in ("plain", "watched")]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("number", [None, "RANK", "SLURM_PROCID"])
def test_two_trainings_of_one_denoiser(images, tmp_path, monkeypatch, number):
    if number:  # of the first of several processes; the others are let in, see test_torchrun
        monkeypatch.setenv(number, "0")
    workspace = tmp_path / "out.training"
    workspace.mkdir()
    with (
        locked(workspace / "lock"),
        pytest.raises(ClspError, match=r"Another process is training in .*out\.training"),
    ):
        train_denoiser(images, CFG, tmp_path / "out")
    train_denoiser(images, CFG, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
