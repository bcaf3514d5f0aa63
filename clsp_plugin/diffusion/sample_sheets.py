"""Write sheets of samples while a denoiser is trained, and score samples against real images."""

import csv
import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image

from clsp_plugin.diffusion.autoencoder import Autoencoder
from clsp_plugin.diffusion.sampling import Sampling, sample_candidates
from clsp_plugin.diffusion.schedulers import LINEAR_BETAS, make_scheduler
from clsp_plugin.engine.pictures import side_by_side
from clsp_plugin.engine.progress import History
from clsp_plugin.system.files import write_whole

__all__ = ["SampleSheets"]

_ROWS, _COLUMNS, _BATCH = 4, 8, 256
_UNCONDITIONAL = Sampling(w=1.0, sampler="dpmpp", steps=20, clip=True)  # w = 1: without anchors


class SampleSheets(Callback):
    """Writes samples of the averaged weights every few epochs, and at the end.

    The noise is the same on every sheet, so that sheets can be compared. A conditional denoiser
    gets the conditions of images evenly spaced in the training set. Training is not affected,
    because its random numbers are keyed.

    Args:
        folder: the folder for ``epoch-00001.png``, ..., each with 4 rows of 8 images; and, if
            there is a ``score``, for ``scores.csv`` with one line per sheet.
        every: epochs between sheets.
        prediction: what the network predicts, in diffusers' words.
        score: function of samples, uint8 (M, H, W, 3), such as their Frechet distance from the
            training images.
        num_scored: M, the number of samples to score.
        history: receives the picture ``samples``, and the score as ``frechet``.
        autoencoder: that of a latent denoiser.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        prediction: str,
        *,
        score: Callable[[torch.Tensor], float] | None = None,
        num_scored: int = 1000,
        history: History | None = None,
        autoencoder: Autoencoder | None = None,
    ):
        self.folder, self.every = folder, every
        self.score, self.num_scored = score, num_scored
        self.history = history or History()
        self.autoencoder = autoencoder
        self.sampling = replace(_UNCONDITIONAL, clip=autoencoder is None)
        self.scheduler = make_scheduler(
            {**LINEAR_BETAS, "prediction_type": prediction},
            self.sampling.steps,
            self.sampling.clip,
            self.sampling.sampler,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if not trainer.is_global_zero or (done % self.every and done != trainer.max_epochs):
            return
        training = pl_module.ema.training
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_sheet(pl_module, done)
        if self.score is not None:
            self._write_score(pl_module, done, self.score)
        pl_module.ema.train(training)

    def _draw(self, module: LightningModule, number: int) -> torch.Tensor:
        """Draw samples with the averaged weights: uint8 (number, H, W, 3)."""
        condition, size = module.condition, module.ema.config.sample_size
        if self.autoencoder is not None:
            size *= self.autoencoder.to(module.device).factor
        if condition is not None:
            rows = torch.linspace(0, len(condition) - 1, number, dtype=torch.float64).round().long()
            condition = condition[rows.to(condition.device)].cpu()
        parts = [
            sample_candidates(
                module.ema,
                self.scheduler,
                torch.zeros(len(indexes), size, size, 3, dtype=torch.uint8),
                self.sampling,
                indexes=indexes,
                candidates=[0],
                condition=None if condition is None else condition[indexes],
                autoencoder=self.autoencoder,
            )
            for indexes in torch.arange(number).split(_BATCH)
        ]
        return torch.cat(parts)[:, 0].cpu()

    def _write_sheet(self, module: LightningModule, done: int) -> None:
        drawn = self._draw(module, _ROWS * _COLUMNS)
        sheet = side_by_side(drawn.unflatten(0, (_ROWS, _COLUMNS)).numpy())
        self.history.pictures["samples"] = sheet
        Image.fromarray(sheet).save(self.folder / f"epoch-{done:05d}.png")

    def _write_score(
        self, module: LightningModule, done: int, score: Callable[[torch.Tensor], float]
    ) -> None:
        began = time.perf_counter()
        distance = score(self._draw(module, self.num_scored))
        self.history.add(frechet=distance)
        row = {"epoch": done, "frechet": f"{distance:.4f}", "samples": self.num_scored}
        row |= {"seconds": f"{time.perf_counter() - began:.1f}"}
        file, rows = self.folder / "scores.csv", []
        if file.exists():  # a resumed training may repeat an epoch
            with open(file, encoding="utf-8", newline="") as lines:
                rows = [line for line in csv.DictReader(lines) if int(line["epoch"]) < done]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
        write_whole(file, lambda out: out.write(text.getvalue().encode()))
