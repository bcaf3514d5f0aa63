"""Means of metrics over an epoch."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from clsp_plugin.engine.trainer import new_trainer
from clsp_plugin.methods.epoch_means import EpochMeans


class Counting(EpochMeans, pl.LightningModule):
    """Logs the number of the step, its square in every second step, and a constant."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_at = stop_at

    def training_step(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, self.stop_at):
            raise KeyError("broken off")
        step = self.weight * 0 + self.current_epoch * 10 + batch_idx
        self.log_epoch(step=step, one=1.0)
        if batch_idx % 2:
            self.log_epoch(square=step * step)
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Reader(Callback):
    """Reads the metrics where the record's curve and the progress bar read them."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, module):
        self.seen.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def trainer(make, **kwargs):
    return make(
        accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=2, **kwargs
    )  # fmt: skip


def batches(n=4):
    return DataLoader(torch.zeros(n, 1))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_callbacks_read_the_means_of_each_epoch():
    reader = Reader()
    trainer(new_trainer, callbacks=[reader]).fit(Counting(), batches())
    assert reader.seen == [
        {"step": 1.5, "one": 1.0, "square": (1 + 9) / 2},
        {"step": 11.5, "one": 1.0, "square": (11**2 + 13**2) / 2},
    ]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_training_that_ends_within_an_epoch_has_the_mean_of_its_steps():
    reader = Reader()
    trainer(new_trainer, callbacks=[reader], max_steps=6).fit(Counting(), batches())
    assert [row["step"] for row in reader.seen] == [1.5, 10.5]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_any_trainer_gets_them_at_the_end_of_an_epoch():
    plain = trainer(pl.Trainer, enable_checkpointing=False, enable_model_summary=False)
    plain.fit(Counting(), batches())
    assert plain.callback_metrics["step"] == 11.5


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_an_epoch_that_was_broken_off_is_not_in_the_next_mean():
    module, reader = Counting(stop_at=2), Reader()
    with pytest.raises(KeyError):
        trainer(new_trainer).fit(module, batches())
    module.stop_at = None
    trainer(new_trainer, callbacks=[reader]).fit(module, batches())
    assert [row["step"] for row in reader.seen] == [1.5, 11.5]
