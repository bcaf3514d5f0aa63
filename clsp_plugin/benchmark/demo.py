"""``clsp demo``: the whole way of the data on the offline data set, in minutes."""

import contextlib
import io
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import torch

from clsp_plugin.benchmark.figures import candidate_sheet, store_caption, training_curves
from clsp_plugin.benchmark.table import make_table
from clsp_plugin.cli import compose
from clsp_plugin.data.images import load_images
from clsp_plugin.data.store import CandidateStore
from clsp_plugin.diffusion.verbs import denoiser, generate
from clsp_plugin.engine.config import Data, typed
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.engine.record import Record, find_records
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.verbs import knn, linear

__all__ = ["METHODS", "demo"]

METHODS = ("simclr", "simclr_aug", "clsp_simclr", "mocov2plus", "clsp_mocov2")
_SHEET_ROWS = 8


class _Stages:
    """Numbers the stages, so that every bar says how far the whole is."""

    def __init__(self, total: int):
        self.total, self.number, self.started = total, 0, time.perf_counter()

    def next(self, text: str) -> str:
        self.number += 1
        return f"[{self.number}/{self.total}] {text}"

    @property
    def minutes(self) -> float:
        return (time.perf_counter() - self.started) / 60


def _workers() -> int:
    """Networks this small gain from a process a core, not from threads; a GPU is not shared."""
    return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8)


def _in_parallel(tasks: list[Callable[[], None]]) -> None:
    """Run tasks on a process a core, or one after another."""
    workers = min(len(tasks), _workers())
    if workers <= 1:
        for task in tasks:
            task()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()


def demo(out: Path, seeds: int = 2, scale: float = 1.0) -> None:
    """Run everything once and write a table and pictures; continues where it was stopped.

    Args:
        out: a directory; gets ``denoiser/``, ``candidates/``, ``trained/``, ``table.md``,
            ``table.csv``, ``candidates.png`` and ``curves.png``.
        seeds: runs of each method, from seed 0 on.
        scale: of the number of images and epochs; 1 takes minutes on two cores.

    Raises:
        ClspError: the directory holds a demo of another size.
    """
    if seeds < 1:
        raise ClspError(f"--seeds {seeds} must be at least 1.")
    if not 0 < scale <= 10:
        raise ClspError(f"--scale {scale} must be above 0 and at most 10.")
    _claim(out, {"seeds": seeds, "scale": scale})
    images = (f"data.num_train={max(160, round(2000 * scale))}",)
    images += (f"data.num_val={max(100, round(1000 * scale))}",)
    stages = _Stages(3 + len(METHODS) * seeds)

    _train_denoiser(out, stages, images, scale)
    title = stages.next("draw candidates")
    shares = _workers()
    _in_parallel([partial(_draw, out, images, title, rank, shares) for rank in range(shares)])
    runs = []
    for seed, method in product(range(seeds), METHODS):
        title = stages.next(f"{method}, seed {seed}")
        runs.append(partial(_run, out, images, method, seed, scale, len(runs) % shares, title))
    _in_parallel(runs)
    print(stages.next("table and pictures"))
    table = _report(out, images)
    print(f"\n{table}\nWritten to {out} in {stages.minutes:.1f} minutes:")
    for name in ("table.md", "table.csv", "candidates.png", "curves.png"):
        print(f"  {out / name}")


def _claim(out: Path, settings: dict) -> None:
    file = out / "demo.json"
    if file.exists():
        before = json.loads(file.read_text())
        if before != settings:
            raise ClspError(
                f"{out} holds a demo with {before}, asked for is {settings}; choose another --out "
                f"or delete that one."
            )
        print(f"Continuing the demo in {out}.")
    elif out.exists() and any(out.iterdir()):
        raise ClspError(f"{out} holds other files; choose another --out.")
    else:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))


def _epochs(epochs: int, scale: float) -> int:
    return max(1, round(epochs * scale))


def _train_denoiser(out: Path, stages: _Stages, images: tuple[str, ...], scale: float) -> None:
    title = stages.next("train the denoiser")
    if (out / "denoiser").exists():
        return
    cfg = compose("denoiser", "digits/denoiser", [*images, f"out={out / 'denoiser'}"])
    cfg.max_epochs = _epochs(cfg.max_epochs, scale)
    denoiser(cfg, title=title)


def _draw(out: Path, images: tuple[str, ...], title: str, rank: int, shares: int) -> None:
    """One process's share of the candidates; processes do not talk."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(shares))
    cfg = compose(
        "generate",
        "digits/generate",
        [*images, f"out={out / 'candidates'}", f"denoiser={out / 'denoiser'}"],
    )
    try:
        with _silenced():
            generate(cfg, title=title)
    finally:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]


def _run(
    out: Path,
    images: tuple[str, ...],
    method: str,
    seed: int,
    scale: float,
    position: int,
    title: str,
) -> None:
    """Pre-train one method with one seed and score it, unless that is done."""
    cfg = compose(
        "pretrain",
        f"digits/{method}",
        [*images, f"seed={seed}", f"checkpoint.dir={out / 'trained'}"],
    )
    cfg.max_epochs = _epochs(cfg.max_epochs, scale)
    if method.startswith("clsp_"):
        cfg.synthetic.path = str(out / "candidates")
    with _silenced():
        finished = pretrain(cfg, title=title, position=position)
        scored = {e["task"] for e in Record.load(finished.record).evaluations}
        for verb, task in ((linear, "linear"), (knn, "knn")):
            if task not in scored:
                verb(compose(task, task, [f"pretrained_feature_extractor={finished.run_dir}"]))


@contextmanager
def _silenced() -> Iterator[None]:
    """The table says it all at the end; bars go to the other stream."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _report(out: Path, images: tuple[str, ...]) -> str:
    records = find_records([out / "trained"])
    table = make_table(records)
    (out / "table.md").write_text(table.to_markdown())
    (out / "table.csv").write_text(table.to_csv())
    store = CandidateStore(out / "candidates")
    train = load_images(typed(compose("pretrain", "digits/simclr", images).data, Data), "train")
    # one anchor of each of the first classes; digits come in turn
    rows = list(range(_SHEET_ROWS))
    candidate_sheet(
        train.images[rows].numpy(),
        store.images(rows),
        out / "candidates.png",
        title="Anchors and their candidates",
        caption=store_caption(store.manifest),
    )
    training_curves(records, out / "curves.png")
    return table.to_markdown()
