"""What a network says of third views: which are hard, and how much each pair counts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from clsp_plugin.candidates.choice import at_quantile
from clsp_plugin.losses.distributed import gather
from clsp_plugin.losses.pair_quality import foreground_background, quality_weights
from clsp_plugin.methods.feature_maps import check_maps, feature_map
from clsp_plugin.methods.modes import evaluating
from clsp_plugin.methods.schedules import quantile_at
from clsp_plugin.methods.third_views import ThirdViews
from clsp_plugin.system.compiling import uncompiled

__all__ = ["FrozenEncoder", "Judging"]


class FrozenEncoder:
    """A trained backbone that looks at the views of another training.

    Args:
        backbone: images (B, 3, H, W) to features (B, D).
        expects: mean and deviation per channel, for pixels in [0, 1], of the images that it was
            trained on.
        gets: those of the views that it is given.
        size: H = W in pixels that views are resized to; None for views as they are.
        interpolation: of that resizing, ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        expects: tuple[Sequence[float], Sequence[float]],
        gets: tuple[Sequence[float], Sequence[float]],
        size: int | None = None,
        interpolation: str = "bicubic",
    ):
        self.size, self.interpolation = size, interpolation
        self.backbone = backbone.eval().requires_grad_(False)
        (mean, std), (own_mean, own_std) = (torch.tensor(pair).view(2, 1, 3, 1, 1) for pair in
                                            (expects, gets))  # fmt: skip
        self.scale, self.shift = own_std / std, (own_mean - mean) / std

    def to(self, device: torch.device) -> None:
        """Move the backbone to a device, in place."""
        self.backbone.to(device)
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)

    def expected(self, views: torch.Tensor) -> torch.Tensor:
        """Resize and normalise views (B, 3, crop, crop) as the backbone expects them."""
        if self.size not in (None, views.shape[2]):
            smooth = self.interpolation != "nearest"
            views = F.interpolate(
                views, size=(self.size, self.size), mode=self.interpolation, antialias=smooth
            )
        return views * self.scale + self.shift


class Judging(ThirdViews):
    """Mixin that chooses among third views and weighs pairs, by the network in training.

    The network is asked as it is before a step, in evaluation mode and without a gradient. Its
    answers depend on weights and running statistics alone, so a continued run gets the same. With
    :meth:`judge_by` it is another network, which stays as it is.
    """

    _encoder: FrozenEncoder | None = None

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self._check_maps(self.backbone, None)

    def judge_by(self, encoder: FrozenEncoder) -> None:
        """Ask an encoder, not the network in training.

        Raises:
            ClspError: pairs are to be weighed, and it has no feature map.
        """
        self._check_maps(encoder.backbone, encoder.size)
        self._encoder = encoder

    def _check_maps(self, backbone: nn.Module, size: int | None) -> None:
        if self.cfg.synthetic.pair_weight == "quality":
            check_maps(backbone, size or self.cfg.augmentations[0].crop_size)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._encoder is not None:
            self._encoder.to(self.device)

    def chosen(self, anchor: torch.Tensor, drawn: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the third views that a step uses, as ``synthetic.choice`` says.

        Other than ``uniform`` it compares the features of view 1 with those of the views drawn.

        Args:
            anchor: view 1, (B, 3, crop, crop).
            drawn: the views drawn, (B, 3, crop, crop) each.
        """
        settings = self.cfg.synthetic
        if settings.choice == "uniform":
            return drawn
        together = torch.cat([anchor, *drawn])
        with self._looking():
            if self._encoder is None:
                feats = self(together)["feats"]
            else:
                feats = self._encoder.backbone(self._encoder.expected(together))
        own, *others = F.normalize(feats.float(), dim=1).split(len(anchor))
        similarity = torch.stack([(own * other).sum(1) for other in others], dim=1)
        quantile = quantile_at(settings, self.current_epoch, self.cfg.get("max_epochs") or 1)
        places = at_quantile(similarity, quantile, self.number)
        stacked, rows = torch.stack(list(drawn)), torch.arange(len(anchor), device=anchor.device)
        return [stacked[place, rows] for place in places.T]

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """A block in which the network in training is used without being trained."""
        compiled = getattr(self, "_compiled", False)  # methods of other packages are not
        with torch.no_grad(), evaluating(self), uncompiled(compiled):
            yield

    def _parts(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features of the views' foregrounds and backgrounds, unit norm, (V * B, D) each."""
        together = torch.cat(list(views))
        with self._looking():
            if self._encoder is None:
                maps = feature_map(self.backbone, together)
            else:
                maps = feature_map(self._encoder.backbone, self._encoder.expected(together))
        foreground, background = foreground_background(maps)
        return F.normalize(foreground, dim=1), F.normalize(background, dim=1)

    def weights_of(self, first: torch.Tensor, other: torch.Tensor) -> torch.Tensor | None:
        """Return the weights (B,) of the pairs of two views, None where all are alike.

        Args:
            first: (B, 3, crop, crop).
            other: (B, 3, crop, crop).
        """
        if self.cfg.synthetic.pair_weight == "equal":
            return None
        of_front, of_back = (
            torch.linalg.vecdot(*part.chunk(2)) for part in self._parts([first, other])
        )
        return quality_weights(of_front, of_back, self.cfg.synthetic.gamma)

    def weigher_of(
        self, views: Sequence[torch.Tensor]
    ) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Return what weighs all positive pairs among views; see ``multi_positive_loss``."""
        if self.cfg.synthetic.pair_weight == "equal":
            return None
        parts = self._parts(views)

        def weigh(positive: torch.Tensor) -> torch.Tensor:
            of_front, of_back = (part @ gather(part).T for part in parts)
            of_front = of_front.masked_fill(~positive, -torch.inf)
            return quality_weights(of_front, of_back, self.cfg.synthetic.gamma)

        return weigh
