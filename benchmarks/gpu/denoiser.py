"""Training of the paper's denoiser: all of `clsp denoiser` against the bare network."""

import shutil
import time

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from benchmarks.gpu.report import Rows
from benchmarks.gpu.stage import Options
from benchmarks.gpu.timing import rates, synchronize
from clsp_plugin.diffusion.denoiser import build_unet
from clsp_plugin.diffusion.training import train_denoiser


class Epochs(Callback):
    """Notes the seconds of every epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        synchronize(pl_module.device)
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        synchronize(pl_module.device)
        self.seconds.append(time.perf_counter() - self._began)


def measure(options: Options, rows: Rows) -> None:
    size, batch = options.pick(32, 16), options.pick(128, 4)
    number = options.pick(2_560, 8)
    network = {"block_out_channels": [8, 8], "layers_per_block": 1, "attention_resolutions": []}
    network = network if options.small else {}
    images = torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8)
    folder = options.out / "denoisers"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier call: it would go on from there
    runs = [("bf16-mixed", False, "4,000"), ("32-true", False, "2,000")]
    if options.compiles:
        runs.insert(1, ("bf16-mixed", True, "8,000"))
    for precision, compiled, expected in runs:
        name = f"{precision}{', compiled' if compiled else ''}, batch {batch}"
        if not compiled:
            limit = bare(options, network, size, batch, precision)
            rows.add(f"bare loop, {name}", limit, "images/s", expected)
        epochs = Epochs()
        train_denoiser(
            images,
            {**network, "max_epochs": 3, "batch_size": batch, "precision": precision,
             "accelerator": options.accelerator, "compile": compiled},
            folder / f"{precision}-{compiled}",
            callbacks=[epochs],
        )  # fmt: skip
        whole = [number / seconds for seconds in epochs.seconds[1:]]
        hours = 2000 * 50_000 / max(whole) / 3600
        note = (
            f"{max(whole) / max(limit):.2f} of the bare loop uncompiled; the paper's 2000 epochs "
            f"of CIFAR-10: {hours:.1f} h; in nine minutes {540 * max(whole) / 50_000:.0f} epochs"
        )
        rows.add(f"clsp denoiser, {name}", whole, "images/s", "0.9 of it", note)


def bare(options: Options, network: dict, size: int, batch: int, precision: str) -> list[float]:
    """Return images/s of forward, backward and optimiser on random data."""
    unet = build_unet(size, network).to(options.device)
    adam = torch.optim.Adam(unet.parameters(), lr=2e-4, fused=True)
    x = torch.randn(batch, 3, size, size, device=options.device)
    t = torch.randint(0, 1000, (batch,), device=options.device)

    def step() -> None:
        with torch.autocast(options.device.type, torch.bfloat16, enabled=precision != "32-true"):
            estimate = unet(x, t).sample
        loss = F.mse_loss(estimate.float(), x)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        adam.step()

    return rates(step, options.device, number=batch, steps=options.pick(20, 1))
