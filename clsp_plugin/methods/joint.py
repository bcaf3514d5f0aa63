"""Several views through one forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from clsp_plugin.errors import ClspError

__all__ = ["JointForward"]


if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Module
else:
    _Module = object


class JointForward(_Module):
    """Mixin that can run several views through the network as one batch.

    For a module that maps images (B, ...) to a dict of (B, ...) tensors.
    ``with self.joint_forward([a, b, c])`` runs the views as one batch, so that batch normalisation
    sees them together, as the authors of CLSP do for SimCLR. Inside the block, ``self(a)`` returns
    the rows of ``a`` from that run, so a training step that calls the network once per view needs
    no change.
    """

    _joint: Sequence[tuple[torch.Tensor, dict[str, torch.Tensor]]] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._joint and len(args) == 1:
            for view, out in self._joint:
                if args[0] is view:
                    return dict(out)
        return super().__call__(*args, **kwargs)

    @contextmanager
    def joint_forward(self, views: Sequence[torch.Tensor]) -> Iterator[None]:
        """Run views of equal size in one forward pass; does nothing inside another such block."""
        if self._joint:
            yield
            return
        out = super().__call__(torch.cat(list(views)))
        sizes = [len(view) for view in views]
        for key, value in out.items():
            if len(value) != sum(sizes):
                raise ClspError(
                    f"joint_forward=True does not work with {type(self).__name__}, whose {key} has "
                    f"no row for each image; set joint_forward=False."
                )
        parts = {key: value.split(sizes) for key, value in out.items()}
        self._joint = [
            (view, {key: value[number] for key, value in parts.items()})
            for number, view in enumerate(views)
        ]
        try:
            yield
        finally:
            self._joint = ()
