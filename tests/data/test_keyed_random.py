"""The hash behind every random decision: what a seed means, and that it looks random.

All samples here are fixed by their keys, so no test can fail by bad luck. Tolerances are five
standard errors of the statistic, or the 99.9% point of its distribution.
"""

import math

import pytest
import torch

from clsp_plugin.data.keyed_random import Purpose, derive_key, key_normal, key_uniform, keys_for

N = 100_000


@pytest.fixture(scope="module")
def keys():
    return keys_for(derive_key(0, Purpose.AUGMENTATION, 0), torch.arange(N))


def correlation(x, y):
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return ((x * y).mean() / (x.std() * y.std())).item()


# What a seed means must never change: these literals were computed once and stay.


def test_pinned_keys():
    assert derive_key(0) == -4616330145664149646
    assert derive_key(7, Purpose.ORDER, 3) == -2085134151402402763
    assert keys_for(derive_key(0), torch.arange(3)).tolist() == [
        1217618374079820064,
        8314919509031096729,
        -4379051880401965929,
    ]


# multiples of 2**-24, hence exact
UNIFORM = [
    [0.5060871839523315, 0.3991508483886719, 0.24403142929077148],
    [0.09489297866821289, 0.06031125783920288, 0.5425366759300232],
]
NORMAL = [
    [-0.7843232154846191, -0.7674046754837036, -0.8642507791519165],
    [1.6023179292678833, -1.9012681245803833, 1.463757872581482],
]


def test_pinned_draws():
    keys = keys_for(derive_key(0), torch.arange(2))
    torch.testing.assert_close(key_uniform(keys, 3), torch.tensor(UNIFORM), atol=0, rtol=0)
    torch.testing.assert_close(key_normal(keys, 3), torch.tensor(NORMAL), atol=1e-6, rtol=0)


def test_pinned_purposes():
    first = [Purpose.ORDER, Purpose.AUGMENTATION, Purpose.CANDIDATE, Purpose.NOISE]
    then = [Purpose.ANCHOR_NOISE, Purpose.DIGITS, Purpose.TRAINING, Purpose.PROBE]
    assert first + then == [1, 2, 3, 4, 5, 6, 7, 8]


def test_matches_splitmix64_in_python_integers():
    mask = (1 << 64) - 1

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    for key in (0, 1, -1, 2**63 - 1, -(2**63), 123456789):
        expected = [(mix((key + i * 0x9E3779B97F4A7C15) & mask) >> 40) / 2**24 for i in (1, 2, 3)]
        assert key_uniform(torch.tensor(key), 3).tolist() == expected


# Keys


def test_the_order_of_the_parts_matters():
    parts = [(1, 2, 3), (3, 2, 1), (2, 1, 3), (1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (0,), (0, 0)]
    assert len({derive_key(*p) for p in parts}) == len(parts)


def test_derived_keys_fit_in_int64():
    values = [derive_key(seed, Purpose.NOISE) for seed in range(-500, 500)]
    assert len(set(values)) == 1000
    assert all(-(2**63) <= v < 2**63 for v in values)
    assert any(v < 0 for v in values)
    assert any(v > 0 for v in values)


def test_keys_are_distinct_and_keep_the_shape(keys):
    assert keys.dtype == torch.int64
    assert keys.unique().numel() == N
    assert keys_for(3, torch.zeros(2, 5, dtype=torch.int32)).shape == (2, 5)


def test_a_key_depends_on_its_index_alone(keys):
    base = derive_key(0, Purpose.AUGMENTATION, 0)
    order = torch.tensor([77, 3, 99_999, 3])
    assert torch.equal(keys_for(base, order), keys[order])


def test_a_base_may_be_a_tensor():
    bases = torch.tensor([derive_key(0), derive_key(1)])
    expected = torch.stack([keys_for(int(b), torch.arange(4)) for b in bases])
    assert torch.equal(keys_for(bases[:, None], torch.arange(4)), expected)


@pytest.mark.parametrize("base", [-(2**63), -1, 0, 2**63 - 1])
def test_every_base_is_allowed(base):
    index = torch.tensor([0, 1, 2**63 - 1, -(2**63)])
    assert torch.equal(keys_for(base, index), keys_for(torch.tensor(base), index))


def test_more_draws_only_append(keys):
    assert torch.equal(key_uniform(keys[:100], 7)[:, :3], key_uniform(keys[:100], 3))


@pytest.mark.parametrize("draw", [key_uniform, key_normal])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_shape_and_dtype(draw, n):
    out = draw(torch.zeros(2, 3, dtype=torch.int64), n)
    assert out.shape == (2, 3, n)
    assert out.dtype == torch.float32


# Distribution


def test_uniform_moments_and_bounds(keys):
    u = key_uniform(keys, 2).double()
    assert u.min() >= 0
    assert u.max() < 1
    n = u.numel()
    assert abs(u.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    # the variance of (u - 1/2)^2 is 1/80 - 1/144
    assert abs(u.var().item() - 1 / 12) < 5 * math.sqrt((1 / 80 - 1 / 144) / n)


@pytest.mark.parametrize("draw", range(4))
def test_uniform_fills_its_bins_evenly(keys, draw):
    u = key_uniform(keys, 4)[:, draw]
    count = torch.histc(u, bins=100, min=0, max=1)
    chi_square = ((count - N / 100) ** 2 / (N / 100)).sum().item()
    assert 61.1 < chi_square < 148.2  # 0.1% and 99.9% points at 99 degrees of freedom


def test_low_bits_are_used(keys):
    low = (key_uniform(keys, 1) * 2**24).long() % 16
    count = low.flatten().bincount(minlength=16).double()
    assert ((count - N / 16) ** 2 / (N / 16)).sum() < 37.7  # 99.9%, 15 degrees of freedom


def test_normal_is_finite_where_uniform_is_zero():
    key = torch.tensor(5618432)  # found by search: its first draw has 24 leading zeros
    assert key_uniform(key, 1).item() == 0
    assert torch.isfinite(key_normal(key, 2)).all()


def test_normal_moments(keys):
    x = key_normal(keys, 3).double()
    assert torch.isfinite(x).all()
    n = x.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((x**power).mean().item() - moment) < 5 * math.sqrt(variance / n)


def test_normal_distribution_function(keys):
    x = key_normal(keys, 2).double().flatten().sort().values
    uniform = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    empirical = torch.arange(1, x.numel() + 1) / x.numel()
    # 99.9% point of the Kolmogorov-Smirnov statistic
    assert (uniform - empirical).abs().max() < 1.95 / math.sqrt(x.numel())


@pytest.mark.parametrize("draw", [key_uniform, key_normal])
def test_neighbours_are_independent(keys, draw):
    x = draw(keys, 4)
    bound = 5 / math.sqrt(N)
    for a in range(4):
        for b in range(a):
            assert abs(correlation(x[:, a], x[:, b])) < bound  # draws of one key
        for lag in (1, 2, 32):
            assert abs(correlation(x[lag:, a], x[:-lag, a])) < bound  # neighbouring keys


def test_neighbouring_seeds_epochs_and_purposes_are_independent():
    index = torch.arange(N)
    first = key_uniform(keys_for(derive_key(0, 1, 0), index), 1)[:, 0]
    for parts in [(1, 1, 0), (0, 2, 0), (0, 1, 1), (1, 0, 0)]:
        other = key_uniform(keys_for(derive_key(*parts), index), 1)[:, 0]
        assert abs(correlation(first, other)) < 5 / math.sqrt(N)


def test_pairs_of_draws_fill_the_square(keys):
    u = (key_uniform(keys, 2) * 16).long()
    count = (u[:, 0] * 16 + u[:, 1]).bincount(minlength=256).double()
    chi_square = ((count - N / 256) ** 2 / (N / 256)).sum().item()
    assert chi_square < 330.5  # 99.9%, 255 degrees of freedom
