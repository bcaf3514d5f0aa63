"""Means of metrics over an epoch, which cost a training step next to nothing."""

from typing import TYPE_CHECKING

import torch

__all__ = ["EpochMeans"]


if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Module
else:
    _Module = object


class EpochMeans(_Module):
    """Mixin of a LightningModule that logs the means of metrics over each epoch and validation.

    Each step only adds the metrics to sums on the device. Lightning gets the means once, at the end
    of the epoch; its own ``log(on_epoch=True)`` would take about a millisecond of every step.
    """

    # False where a callback passes the metrics to the loggers, and Lightning must not do it too;
    # otherwise Lightning does what it does by default
    for_loggers: bool | None = None
    _sums: dict[str, tuple[torch.Tensor, int]] | None = None  # of each metric, and its count

    def log_epoch(self, **metrics: torch.Tensor | float) -> None:
        """Log the means of scalar metrics over the steps of an epoch and over all processes.

        All processes have to log the same metrics.
        """
        sums = self._sums = {} if self._sums is None else self._sums
        for name, value in metrics.items():
            value = torch.as_tensor(value, dtype=torch.float32, device=self.device).detach()
            total, count = sums.get(name, (0.0, 0))
            sums[name] = (total + value, count + 1)

    def watched(self) -> dict[str, float]:
        """Return settings that change from epoch to epoch, as they are in the current one."""
        return {}

    def log_means(self) -> None:
        """Give Lightning the means of the epoch, if there are any that it does not have yet."""
        sums, self._sums = self._sums, None
        if sums:
            means = {name: total / count for name, (total, count) in sums.items()}
            self.log_dict(
                means, on_step=False, on_epoch=True, sync_dist=True, batch_size=1,
                logger=self.for_loggers,
            )  # fmt: skip

    def add_to_validation(self, number: int | torch.Tensor, **metrics: torch.Tensor) -> None:
        """Log means over all images of a validation, of all processes.

        Lightning's own ``log(sync_dist=True)`` would be wrong where the processes do not have
        equally many images: it rounds their mean number.

        Args:
            number: how many images the metrics are means of; may be 0. Metrics that are means of
                none in the whole validation are not logged.
            metrics: scalars. All processes have to log the same ones.
        """
        for name, value in metrics.items():
            total, count = self._validated.get(name, (0.0, 0))
            self._validated[name] = (total + value.detach().float() * number, count + number)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._validated: dict[str, tuple[torch.Tensor, int | torch.Tensor]] = {}

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        means = {}
        for name, (total, count) in self._validated.items():
            counts = torch.as_tensor(count, device=total.device)
            total, counts = (
                self.trainer.strategy.reduce(part, reduce_op="sum") for part in (total, counts)
            )
            if counts:
                means[name] = total / counts
        if means:
            self.log_dict(means, sync_dist=True, batch_size=1, logger=self.for_loggers)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._sums = None  # of an epoch that was broken off

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.log_means()
