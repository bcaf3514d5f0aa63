"""Another view of an image, from which a denoiser learns what candidates take from their anchor.

Where the middle feature is computed from such a view, it can only tell the rest of the network
what the image and the view share. Views may be stronger than those of contrastive learning, since
they are only looked at: what is drawn are images as those of the training (bottleneck diffusion:
Hudson et al., "SODA", CVPR 2024).
"""

import torch
import torch.nn.functional as F

from clsp_plugin.data.keyed_random import key_normal, key_uniform, keys_for

__all__ = ["other_view"]

# How far a view goes at most: radians, a share of its size, natural logarithms of scales.
_TURN, _SHEAR, _SHIFT, _SCALE, _ASPECT = 0.2, 0.2, 0.1, 0.18, 0.15
_BEND, _BENDS = 0.03, 5  # standard deviation, and places a side, of an elastic deformation
_CELLS = 4  # a side, of what counts as low frequencies


def other_view(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Bend images, change their colours, and replace their low frequencies.

    Args:
        x: float (B, 3, H, W) in [-1, 1]; H and W are multiples of 4.
        keys: int64 (B,), one an image.

    Returns:
        Float (B, 3, H, W) in [-1, 1].
    """
    place, colour, ground = (keys_for(keys, torch.full_like(keys, part)) for part in range(3))
    return _on_other_ground(_recoloured(_bent(x, place), colour), ground).clamp(-1.0, 1.0)


def _bent(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """An affine and an elastic deformation; beyond the edge an image is mirrored."""
    u = 2 * key_uniform(keys, 6) - 1
    cos, sin = (_TURN * u[:, 0]).cos(), (_TURN * u[:, 0]).sin()
    wide, high = ((_SCALE * u[:, 1] + sign * _ASPECT * u[:, 2]).exp() for sign in (1, -1))
    zero = torch.zeros_like(cos)
    turn = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    stretch = torch.stack([wide, _SHEAR * u[:, 3], zero, high], 1).view(-1, 2, 2)
    affine = torch.cat([turn @ stretch, _SHIFT * u[:, 4:6, None]], dim=2)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    bend = key_normal(keys, 2 * _BENDS**2).view(-1, 2, _BENDS, _BENDS)
    bend = F.interpolate(_BEND * bend, size=x.shape[2:], mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _recoloured(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Mix the channels, so that light stays light, and change contrast and each channel's level."""
    u = key_uniform(keys, 14)
    mix = u[:, 9, None, None] * torch.eye(3, device=x.device) + u[:, :9].view(-1, 3, 3)
    mix = mix / mix.sum(2, keepdim=True)
    contrast = 0.6 + 0.8 * u[:, 10, None, None, None]
    level = 0.5 * (u[:, 11:14, None, None] - 0.5)
    return contrast * torch.einsum("bij,bjhw->bihw", mix, x) + level


def _on_other_ground(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Random colours in place of what a grid of cells still shows."""
    cells = F.adaptive_avg_pool2d(x, _CELLS)
    u = key_uniform(keys, 3 + 3 * _CELLS**2) - 0.5
    other = 1.2 * u[:, :3, None, None] + 0.8 * u[:, 3:].view(-1, 3, _CELLS, _CELLS)
    change = F.interpolate(other - cells, size=x.shape[2:], mode="bilinear", align_corners=False)
    return x + change
