"""Pictures of a training: images side by side, and a sheet of the views of the first epoch."""

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.loader import PretrainData
from clsp_plugin.engine.progress import History
from clsp_plugin.methods.synthetic import SyntheticPositives

__all__ = ["ViewSheet", "side_by_side"]

_ROWS = 8


def side_by_side(images: np.ndarray, gap: int = 0) -> np.ndarray:
    """Put images into one picture.

    Args:
        images: uint8 (R, C, H, W, 3).
        gap: white pixels between two images.

    Returns:
        uint8, R rows of C images each.
    """
    rows, columns, height, width, _ = images.shape
    shape = (rows, columns, height + gap, width + gap, 3)
    cells = np.full(shape, 255, np.uint8)
    cells[:, :, :height, :width] = images
    sheet = cells.transpose(0, 2, 1, 3, 4).reshape(shape[0] * shape[2], shape[1] * shape[3], 3)
    return sheet[: len(sheet) - gap, : sheet.shape[1] - gap]


class ViewSheet(Callback):
    """Adds to the history, after the first epoch, a picture of what the network saw.

    A row is an image: itself, its large views in that epoch and, if the method has one, the third
    view, a candidate. The images are evenly spaced in the training set. Nothing of the training
    changes, because its random numbers are keyed.

    Args:
        history: receives the picture ``views``.
    """

    def __init__(self, history: History):
        self.history = history

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if (
            trainer.current_epoch
            or not trainer.is_global_zero
            or not isinstance(data, PretrainData)
        ):
            return
        held = data.arrays["train"]
        assert held is not None  # it is trained on
        number = len(held) if data.places is None else len(data.places)
        places = torch.linspace(0, number - 1, min(_ROWS, number), dtype=torch.float64).long()
        rows = places if data.places is None else data.places.cpu()[places]
        # what is compiled runs as it is written: no graph for a batch of this size
        with torch.compiler.set_stance("force_eager"):
            views = data.views_of(places, module.device)
            if isinstance(module, SyntheticPositives) and module.uses_candidates:
                views += module.synthetic_views(rows.to(module.device))
        large = [view for view in views if view.shape == views[0].shape]
        shown = [_pixels(view, data) for view in large]
        if isinstance(held, ImageArray) and held.size == shown[0].shape[1:3]:
            shown.insert(0, held.images[rows].cpu().numpy())
        self.history.pictures["views"] = side_by_side(np.stack(shown, axis=1), gap=2)


def _pixels(view: torch.Tensor, data: PretrainData) -> np.ndarray:
    """Undo the normalisation: float32 (B, 3, H, W) to uint8 (B, H, W, 3)."""
    mean, std = (view.new_tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    pixels = ((view * std + mean).clamp(0, 1) * 255).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
