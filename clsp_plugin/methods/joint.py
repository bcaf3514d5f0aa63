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
    """Mixin over a module whose forward maps images (B, ...) to a dict of (B, ...) tensors.

    Inside ``with self.joint_forward([a, b, c])`` the views go through the network as one batch,
    so batch normalisation sees them together, as the authors of CLSP do for SimCLR. A later
    ``self(a)`` is answered with ``a``'s rows, so the method's own step, which calls the
    network once a view, is left as it is.
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
        """Run views of equal size through one forward; inside another such block, do nothing."""
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
