"""Sheets of samples while a denoiser is trained."""

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image

from clsp_plugin.diffusion.denoiser import LINEAR_BETAS
from clsp_plugin.diffusion.sampling import make_scheduler, sample_candidates

__all__ = ["SampleSheets"]

_ROWS, _COLUMNS, _STEPS = 4, 8, 20


class SampleSheets(Callback):
    """Writes unconditional samples of the averaged weights every few epochs, and at the end.

    The noise is the same on every sheet, so that they can be laid beside each other. Training does
    not notice: its random numbers are its own.

    Args:
        folder: gets ``epoch-00001.png``, ..., 4 rows of 8 images each.
        every: epochs between sheets.
        prediction: what the network predicts, in diffusers' words.
    """

    def __init__(self, folder: Path, every: int, prediction: str):
        self.folder, self.every, self.prediction = folder, every, prediction

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if not trainer.is_global_zero or (done % self.every and done != trainer.max_epochs):
            return
        unet, number = pl_module.ema, _ROWS * _COLUMNS
        training = unet.training
        size = unet.config.sample_size
        config = {**LINEAR_BETAS, "prediction_type": self.prediction}
        drawn = sample_candidates(
            unet,
            make_scheduler(config, _STEPS, clip=True, sampler="dpmpp"),
            torch.zeros(number, size, size, 3, dtype=torch.uint8),
            seed=0,
            indexes=torch.arange(number),
            candidates=[0],
            w=1.0,
            eta=0.0,
        )
        unet.train(training)
        grid = drawn.cpu().view(_ROWS, _COLUMNS, size, size, 3).permute(0, 2, 1, 3, 4)
        sheet = grid.reshape(_ROWS * size, _COLUMNS * size, 3).numpy()
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(self.folder / f"epoch-{done:05d}.png")
