"""What a step of `clsp pretrain` costs the processor besides the network, with a small network.

    OMP_NUM_THREADS=1 python benchmarks/host.py

All of a pre-training on the offline data set, by the difference of a long run and a short one,
against a bare loop of forward, backward and optimiser on views that are there already. Processor
time of one thread, so that other work on the machine matters little; in turns, in one process.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from omegaconf import OmegaConf

from clsp_plugin.config.compose import compose
from clsp_plugin.config.training import parse_cfg
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.methods import METHODS

STEPS = 16  # of an epoch


def settings(batch: int, epochs: int, folder: str) -> list[str]:
    return [
        f"data.num_train={STEPS * batch}", "data.num_val=20", f"optimizer.batch_size={batch}",
        f"max_epochs={epochs}", "scheduler.warmup_epochs=1", "auto_resume.enabled=False",
        "accelerator=cpu", "devices=1", "precision=32-true", f"checkpoint.dir={folder}",
    ]  # fmt: skip


def bare(name: str, batch: int) -> Callable[[], None]:
    """Return one step of the network alone."""
    cfg = parse_cfg(compose("pretrain", name, settings(batch, 2, ".")), METHODS)
    OmegaConf.set_struct(cfg, False)
    cfg.data.num_classes = 10
    model = METHODS[cfg.method](cfg).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    side = cfg.augmentations[0].crop_size
    views = torch.randn(2 * batch, 3, side, side).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        out = model(views)
        loss = out["z"].square().mean() + out["logits"].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def processor_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config-name", default="digits/simclr")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, nargs=2, default=[2, 6], help="short and long run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    few, many = args.epochs
    for batch in args.batch:
        measure(args.config_name, batch, args.rounds, few, many)


def measure(name: str, batch: int, rounds: int, few: int, many: int) -> None:
    """Print the processor's milliseconds a step of both, and their difference."""
    step, steps = bare(name, batch), STEPS * (many - few)
    step()

    def loop() -> None:
        for _ in range(steps):
            step()

    def run(epochs: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pretrain(compose("pretrain", name, settings(batch, epochs, folder)))

    alone, whole = [], []
    for _ in range(rounds):
        alone.append(1000 * processor_seconds(loop) / steps)
        short, long = (processor_seconds(partial(run, epochs)) for epochs in (few, many))
        whole.append(1000 * (long - short) / steps)
    ours = [a - b for a, b in zip(whole, alone, strict=True)]
    for what, values in (("bare loop", alone), ("clsp pretrain", whole), ("ours", ours)):
        print(
            f"batch {batch}, {what}: {statistics.median(values):.1f} "
            f"({min(values):.1f}..{max(values):.1f}) ms of a processor a step"
        )


if __name__ == "__main__":
    main()
