"""Pre-training of CLSP-SimCLR on CIFAR: all of `clsp pretrain` against the bare network.

The bare network goes forward, backward and through its optimiser on random data that lie on the
device already. Nothing can train faster, so its rate is the limit, and the share of it is what the
package is judged by.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.report import Rows
from benchmarks.gpu.stage import Options
from benchmarks.gpu.timing import peak_flops, rates
from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.candidates.writer import StoreWriter
from clsp_plugin.config.compose import compose
from clsp_plugin.config.training import parse_cfg
from clsp_plugin.data.augmentation.pipeline import can_compile_augmentation
from clsp_plugin.data.images import load_images
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.methods import METHODS

FORWARD = 2 * 0.555e9  # operations of ResNet-18's forward pass for an image of 32x32


def settings(options: Options, *changed: str) -> list[str]:
    """Return the settings of a run on images that need no download."""
    small = [
        "+backbone.kwargs={channels:[8,8,8,8]}",
        "method_kwargs.proj_hidden_dim=16",
        "method_kwargs.proj_output_dim=8",
        "data.image_size=16",
        "augmentations.0.crop_size=16",
    ]
    return [
        "data.dataset=digits",
        f"data.num_train={options.pick(20_480, 64)}",
        f"data.num_val={options.pick(4_096, 20)}",
        "data.image_size=32",
        f"optimizer.batch_size={options.pick(1024, 16)}",
        "scheduler.warmup_epochs=1",
        f"max_epochs={options.pick(6, 2)}",
        "auto_resume.enabled=False",
        f"accelerator={options.accelerator}",
        "devices=1",
        f"checkpoint.dir={options.out / 'runs'}",
        f"performance.compile_augmentation={worth(options)}",
        *(small if options.small else []),
        *changed,
    ]


def configuration(options: Options, name: str) -> DictConfig:
    """Return a complete configuration."""
    return parse_cfg(compose("pretrain", name, settings(options)), METHODS)


def worth(options: Options) -> bool:
    """Whether to compile the augmentation, as a long run does by itself."""
    return can_compile_augmentation(options.device) and not options.small


def store(options: Options, data) -> Path:
    """Write random candidates for the images of a configuration."""
    path = options.out / "candidates"
    array = load_images(data, "train")
    manifest = StoreManifest(
        num_images=len(array), num_candidates=2, height=array.size[0], width=array.size[1],
        fingerprint=array.fingerprint, dataset=array.name, denoiser="none", w=0.1, sampler="ddim",
        steps=100, eta=0.1, seed=0, dtype="32-true", clip=False, share_anchor=False,
        shard_size=8192,
    )  # fmt: skip
    writer = StoreWriter(path, manifest, array.digests)
    generator = np.random.default_rng(0)
    for shard, _, _ in writer.missing():
        shape = manifest.shard_shape(shard)
        writer.write(shard, generator.integers(0, 256, shape, dtype=np.uint8))
    return path


def bare(options: Options, name: str, compiled: bool) -> Callable[[], None]:
    """Return one step of the bare network on the views of a batch."""
    cfg = configuration(options, name)
    cfg.data.num_classes = 10
    model = METHODS[cfg.method](cfg).to(options.device, memory_format=torch.channels_last)
    if compiled:
        model.compile_networks()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    third = 0 if cfg.method == "simclr" else 1
    side, batch = cfg.augmentations[0].crop_size, cfg.optimizer.batch_size
    shape = ((cfg.data.num_large_crops + third) * batch, 3, side, side)
    views = torch.randn(shape, device=options.device).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(options.device.type, torch.bfloat16):
            out = model(views)
            loss = out["z"].float().square().mean() + out["logits"].float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def whole(options: Options, name: str, *changed: str) -> list[float]:
    """Return images/s of a whole pre-training: by its median epoch, validation included."""
    cfg = compose("pretrain", name, settings(options, *changed))
    record = json.loads(pretrain(cfg).record.read_text())
    seconds = record["timings"]["epoch_seconds"]
    batch = cfg.optimizer.batch_size
    return [cfg.data.num_train // batch * batch / seconds]


def measure(options: Options, rows: Rows) -> None:
    peak = max(peak_flops(options.device, torch.bfloat16, options.pick(8192, 64)))
    rows.add("product of 8192x8192 matrices, bf16", peak / 1e12, "TFLOP/s", "780")
    path = store(options, configuration(options, "cifar/clsp_simclr").data)
    given = f"synthetic.path={path}"
    compared(options, rows, given, peak, compiled=False)
    if options.compiles:
        compared(options, rows, given, peak, compiled=True)
    base = whole(options, "cifar/simclr")
    rows.add("clsp pretrain, simclr, network eager", base, "images/s", "1.5 of clsp_simclr")
    profiled(options, rows)


def compared(options: Options, rows: Rows, given: str, peak: float, compiled: bool) -> None:
    """Add the rates of the bare network and of the whole training, and their ratio."""
    words = "network compiled" if compiled else "network eager"
    batch, name = options.pick(1024, 16), "cifar/clsp_simclr"
    step = bare(options, name, compiled)
    limit = rates(step, options.device, number=batch, steps=options.pick(15, 1))
    share = 3 * 3 * FORWARD * max(limit) / peak  # three views, forward and twice that backward
    expected = "28,000" if compiled else "20,000"
    note = f"{share:.2f} of the device's rate"
    rows.add(f"bare loop, three views, {words}", limit, "images/s", expected, note)
    run = whole(options, name, given, f"performance.compile_network={compiled}")
    note = f"{run[0] / max(limit):.2f} of the bare loop"
    rows.add(f"clsp pretrain, clsp_simclr, {words}", run, "images/s", "0.9 of the bare loop", note)
    hours = 1000 * 50_000 / run[0] / 3600
    note = "the authors on four A10: 5.37 h"
    rows.add(f"1000 epochs of CIFAR-10, clsp_simclr, {words}", hours, "h", "1", note)


def profiled(options: Options, rows: Rows) -> None:
    """Count what the device and the host do in a step.

    Two short runs are profiled that differ in their number of steps alone, so that what they do
    besides steps, such as the validation, falls out of the difference.
    """
    few, many = options.pick(4, 2), options.pick(12, 4)
    profile_of(options, few)  # unprofiled work that only a first run does falls on this one
    first, second = profile_of(options, few), profile_of(options, many)
    cuda = options.device.type == "cuda"
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    text = second.table(sort_by=key, row_limit=60, max_name_column_width=80)
    (options.out / "training-profile.txt").write_text(text)

    def a_step(which: Callable[[Any], bool]) -> float:
        counts = [sum(e.count for e in events if which(e)) for events in (first, second)]
        return max(0, counts[1] - counts[0]) / (many - few)

    note = "simclr_aug; operators, those inside of others too"
    found = a_step(lambda e: e.key.startswith("aten::"))
    rows.add("operators in a step", found, "", "5,000", note)
    if cuda:
        found = a_step(lambda e: e.device_type.name == "CUDA")
        rows.add("kernels in a step", found, "", "1,500", "simclr_aug")
    for name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpyAsync"):
        rows.add(f"{name} in a step", a_step(lambda e, name=name: e.key == name), "", "below 1")


def profile_of(options: Options, steps: int) -> Any:
    """Profile a pre-training of so many steps; return the events with their counts."""
    changed = (
        f"data.num_train={steps * options.pick(1024, 16)}",
        f"data.num_val={options.pick(1024, 20)}",
        "max_epochs=1",
        "scheduler.warmup_epochs=0",
        "method=simclr_aug",  # has a third view and needs no candidates
    )
    cfg = compose("pretrain", "cifar/clsp_simclr", settings(options, *changed))
    cfg.synthetic.path = None
    activities = [ProfilerActivity.CPU]
    if options.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        pretrain(cfg)
    return seen.key_averages()
