"""``clsp demo``: the suite ``digits`` in a folder of its own, at any size."""

from pathlib import Path

from clsp_plugin.config.compose import compose
from clsp_plugin.errors import ClspError
from clsp_plugin.suites.bench import bench
from clsp_plugin.suites.suite import read_suite

__all__ = ["demo"]


def demo(out: Path, seeds: int | None = None, scale: float = 1.0) -> None:
    """Run everything once and write a table and pictures; continues where it was stopped.

    Args:
        out: a directory for the tables, ``candidates.png`` and ``curves.png``, the denoiser, its
            candidates and the runs.
        seeds: number of runs of each method, with seeds from 0 on; by default the suite's.
        scale: factor of the number of images and epochs; 1 takes minutes on two cores.

    Raises:
        ClspError: ``seeds`` or ``scale`` is out of range, or see ``bench``.
    """
    if seeds is not None and seeds < 1:
        raise ClspError(f"--seeds {seeds} must be at least 1.")
    if not 0 < scale <= 10:
        raise ClspError(f"--scale {scale} must be above 0 and at most 10.")
    # at 1 nothing is changed, so that the runs are those of `clsp bench digits`
    sizes = [] if scale == 1 else _sizes(scale)
    bench("digits", out, seeds=range(seeds or 0), overrides=sizes)


def _sizes(scale: float) -> list[str]:
    _, suite = read_suite("digits")
    own = suite.datasets.digits
    training = compose("pretrain", f"{own.configs}/{suite.methods[0]}", list(suite.overrides))
    denoiser = compose("denoiser", own.candidates.denoiser)
    return [
        f"data.num_train={max(160, round(2000 * scale))}",
        f"data.num_val={max(100, round(1000 * scale))}",
        f"max_epochs={max(1, round(training.max_epochs * scale))}",
        f"denoiser.max_epochs={max(1, round(denoiser.max_epochs * scale))}",
    ]
