"""Keyed random numbers: a value depends on its key and on nothing else.

Every random decision of this package (order, augmentation, choice of a candidate,
sampling noise) is a hash of ``(seed, purpose, epoch, image index, ...)``. Batch size, the
number of processes, the device and earlier draws change nothing, so a resumed run equals
an uninterrupted one and no generator state has to be stored.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), on int64 tensors, whose products wrap.
"""

import math

import torch

__all__ = ["Purpose", "derive_key", "key_normal", "key_uniform", "keys_for", "seed_generators"]


class Purpose:
    """The independent random streams. The values are part of what a seed means: never renumber."""

    ORDER = 1
    AUGMENTATION = 2
    CANDIDATE = 3
    NOISE = 4
    ANCHOR_NOISE = 5
    DIGITS = 6
    TRAINING = 7
    PROBE = 8
    CLUSTERING = 9
    LATENT = 10
    SPLIT = 11
    ORACLE = 12
    REPLACE = 13
    DIRECTIONS = 14


_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_MASK_64 = (1 << 64) - 1


def _shift_right(x: torch.Tensor, n: int) -> torch.Tensor:
    """Shift int64 right logically; the operator shifts arithmetically."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    x &= _MASK_64
    x = ((x ^ (x >> 30)) * (_MIX_1 & _MASK_64)) & _MASK_64
    x = ((x ^ (x >> 27)) * (_MIX_2 & _MASK_64)) & _MASK_64
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= (1 << 63) else x


def derive_key(*parts: int) -> int:
    """Fold integers into one signed 64-bit key; the order of the parts matters.

    Args:
        parts: any integers, such as ``seed, Purpose.ORDER, epoch``.
    """
    key = 0
    for part in parts:
        key = _mix_int(key + (_GOLDEN & _MASK_64) + _mix_int(int(part) + 1))
    return _signed(key)


def keys_for(base: int | torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
    """Derive one key per index: ``(...)`` int64, on the device of ``indexes``.

    Args:
        base: a key from :func:`derive_key`, or a tensor of keys that broadcasts to ``indexes``.
        indexes: integers of any shape.
    """
    # unlike int64 tensors, Python's integers do not wrap around
    moved = _signed((base + _GOLDEN) & _MASK_64) if isinstance(base, int) else base + _GOLDEN
    return _mix(moved + _mix(indexes.to(torch.int64) + 1))


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators of torch that layers such as dropout draw from, on one device.

    Args:
        seed: any signed 64-bit integer; see :func:`derive_key`.
        device: where the layers compute.
    """
    if device.type == "cpu":  # torch.manual_seed would take a millisecond to prepare for GPUs
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _draws(keys: torch.Tensor, n: int) -> torch.Tensor:
    counter = torch.arange(1, n + 1, device=keys.device, dtype=torch.int64)
    return _mix(keys.unsqueeze(-1) + counter * _GOLDEN)


def key_uniform(keys: torch.Tensor, n: int) -> torch.Tensor:
    """Draw ``n`` uniform numbers in [0, 1) for every key: ``(..., n)`` float32.

    Args:
        keys: int64 keys of any shape.
        n: number of draws per key.
    """
    return _shift_right(_draws(keys, n), 40).to(torch.float32) * 2.0**-24


def key_normal(keys: torch.Tensor, n: int) -> torch.Tensor:
    """Draw ``n`` standard normal numbers for every key: ``(..., n)`` float32 (Box-Muller).

    Args:
        keys: int64 keys of any shape.
        n: number of draws per key.
    """
    half = (n + 1) // 2
    bits = _draws(keys, half)
    # (0, 1]: the logarithm of the first must be finite
    radius = (_shift_right(bits, 40).to(torch.float32) + 1.0) * 2.0**-24
    angle = (bits & 0xFFFFFF).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
    radius = torch.sqrt(-2.0 * torch.log(radius))
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)[..., :n]
