"""Measure what each stage computes from a few images in a few steps, on one thread of the CPU.

Public names of the package are looked up in whichever module defines them, so that this also runs
with the package of another commit: ``python stages.py OUT.json [STAGE ..]`` with that package on
``PYTHONPATH``. Settings are written out here and not left to the package's defaults if a default
is a matter of convenience, such as the number of workers.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

Numbers = dict[str, list[float] | list[int]]  # integers are compared exactly

# One step per epoch: every further step amplifies rounding. With four steps of batches this small,
# it grows to a hundredth on some CPUs.
_TINY = (
    "seed=6",
    "data.num_train=16",
    "data.num_val=20",
    "backbone.kwargs.channels=[8,8,8,8]",
    "backbone.kwargs.stem_type=usual",  # of 64 channels: not deep
    "optimizer.batch_size=16",
    "max_epochs=2",
    "scheduler.warmup_epochs=1",
    "auto_resume.enabled=False",
    "accelerator=cpu",
    "checkpoint.dir=trained",
)
_COLOURS = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}
_VIEWS = (
    *(f"augmentations.0.color_jitter.{key}={value}" for key, value in _COLOURS.items()),
    "augmentations.0.grayscale.prob=0.4",
)
_MOCO = (
    "backbone.kwargs.norm_layer=batchnorm2d",
    "momentum.final_tau=0.999",
    "optimizer.lr=0.1",
)
_OWN = {
    "byol": (*_VIEWS, "momentum.base_tau=0.95", "momentum.final_tau=1.0"),
    "mocov2plus": (*_VIEWS, *_MOCO),
    "mocov2_ft": (*_VIEWS, *_MOCO),
    "clsp_noaug": ("synthetic.weight=0.3", "synthetic.warmup_epochs=5"),
}
# Small values for sizes among a method's settings, used if its configuration has them.
_SMALL = {
    "proj_hidden_dim": 16,
    "proj_output_dim": 8,
    "pred_hidden_dim": 16,
    "queue_size": 32,
    "whitening_size": 16,
    "num_prototypes": 12,
    "latent_dim": 8,
    "gan_width": 4,
    "num_generated": 8,
    "start_epoch": 1,
}
_DIGITS = {"dataset": "digits", "num_train": 16, "num_val": 20, "seed": 0, "fraction": -1}
# The methods with a third view that are measured: both kinds, and one with a predictor.
_THIRD = ("clsp_byol", "clsp_mocov2", "clsp_simclr", "mocov2_aug", "simclr_aug")
_NO_JITTER = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
# Each operation of the augmentation on its own; the last is a pipeline as methods use it.
_OPERATIONS: dict[str, dict[str, Any]] = {
    "resize": {},
    "crop": {"rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0}},
    "brightness": {"color_jitter": {**_NO_JITTER, "prob": 1.0, "brightness": 0.4}},
    "contrast": {"color_jitter": {**_NO_JITTER, "prob": 1.0, "contrast": 0.4}},
    "saturation": {"color_jitter": {**_NO_JITTER, "prob": 1.0, "saturation": 0.4}},
    "hue": {"color_jitter": {**_NO_JITTER, "prob": 1.0, "hue": 0.2}},
    "grayscale": {"grayscale": {"prob": 0.5}},
    "blur": {"gaussian_blur": {"prob": 0.5}},
    "solarization": {"solarization": {"prob": 0.5}},
    "equalization": {"equalization": {"prob": 0.5}},
    "flip": {"horizontal_flip": {"prob": 0.5}},
    "together": {
        "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
        "color_jitter": {
            "prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1,
        },
        "grayscale": {"prob": 0.2}, "gaussian_blur": {"prob": 0.5},
        "solarization": {"prob": 0.2}, "horizontal_flip": {"prob": 0.5},
    },
}  # fmt: skip


@cache
def _package() -> Path:
    return Path(importlib.util.find_spec("clsp_plugin").origin).parent


@cache
def public(*names: str) -> Any:
    """Return what a public name of the package stands for, from whichever module defines it.

    Args:
        names: today's name, then older names of the same thing, for other commits; the first that
            exists is used.
    """
    files = {file: file.read_text() for file in sorted(_package().rglob("*.py"))}
    files.pop(_package() / "api.py", None)  # which has functions of the same names for people
    for name in names:
        defined = re.compile(rf"^(?:def {name}\(|class {name}\b|{name}\b.* = )", re.MULTILINE)
        for file in (file for file, text in files.items() if defined.search(text)):
            parts = file.relative_to(_package().parent).with_suffix("").parts
            module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
            if name in getattr(module, "__all__", ()):
                return getattr(module, name)
    raise LookupError(f"clsp_plugin has no public {' nor '.join(names)}")


def _clsp(*arguments: str) -> None:
    """Run a command of ``clsp`` in this process; its output is shown only if it fails."""
    main = importlib.import_module("clsp_plugin.cli").main
    said = io.StringIO()
    told = (contextlib.redirect_stdout(said), contextlib.redirect_stderr(said))
    try:
        with told[0], told[1], mock.patch.object(sys, "argv", ["clsp", *arguments]):
            main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"clsp {' '.join(arguments)}\n{said.getvalue()}") from stop


def _fixed(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal numbers that do not depend on the package."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _digest(tensors: Iterable[torch.Tensor]) -> list[float]:
    """Return the norm of all entries, and their product with a fixed vector without zeros."""
    flat = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])
    direction = torch.cos(1.7 * torch.arange(len(flat), dtype=torch.float64)) * 2**0.5
    return [float(flat.norm()), float(flat @ direction)]


def _weights(state: dict[str, torch.Tensor]) -> Numbers:
    """Return digests of the parts of a network; a part is all below one top-level name."""
    parts: dict[str, list[torch.Tensor]] = {}
    for key, value in state.items():
        if value.is_floating_point() and value.numel():
            parts.setdefault(key.partition(".")[0], []).append(value)
    return {f"weights of {part}": _digest(tensors) for part, tensors in parts.items()}


# --------------------------------------------------------------------------------- the images


def digits() -> Numbers:
    images, targets = public("make_digits")(24, "train", seed=3, size=32)
    other, _ = public("make_digits")(8, "val", seed=3, size=16)
    return {
        "targets": targets.tolist(),
        "mean a channel": images.float().mean((0, 1, 2)).tolist(),
        "pixels": _digest([images]),
        "pixels of the validation images": _digest([other]),
    }


def images() -> Numbers:
    photographs = torch.randint(
        0, 256, (4, 24, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    statistics = public("channel_statistics")(
        {"dataset": "digits", "mean": None, "std": None}, [{}]
    )
    loaded = public("load_images")({**_DIGITS, "image_size": 16}, "train")
    return {
        "resized": _digest([public("squares", "resized")(photographs, 16)]),
        "mean and deviation": [float(value) for values in statistics for value in values],
        "targets": loaded.targets.tolist(),
        "pixels": _digest([loaded.images]),
    }


def augmentation() -> Numbers:
    pixels, _ = public("make_digits")(8, "train", seed=1, size=24)
    keys = public("keys_for")(public("derive_key")(5, 2, 1), torch.arange(8))
    out: Numbers = {}
    for name, blocks in _OPERATIONS.items():
        cfg = public("AugmentationConfig").from_cfg({"crop_size": 16, "num_crops": 1, **blocks})
        views = public("BatchAugmentation")(cfg, [0.4, 0.45, 0.5], [0.25, 0.3, 0.2])(pixels, keys)
        out[name] = [*_digest([views]), *(_digest([view])[1] for view in views)]
    return out


# ------------------------------------------------------------------------------ pre-training


def _configuration(method: str) -> str:
    """Return the shipped configuration, for the offline data set, that a method is trained from."""
    base = method.removeprefix("clsp_").removesuffix("_aug")
    base = "mocov2plus" if base == "mocov2" else base
    folder = public("shipped")() / "pretrain/digits"
    return base if (folder / f"{base}.yaml").is_file() else method


@cache
def _settings(configuration: str) -> dict[str, Any]:
    return dict(public("compose")("pretrain", f"digits/{configuration}").get("method_kwargs") or {})


def _train(method: str, *overrides: str) -> Path:
    """Train a method in the working directory and return the directory of the run."""
    name = _configuration(method)
    small = []
    for key, size in _SMALL.items():
        if key in _settings(name):
            given = _settings(name)[key]
            size = min(given, size) if isinstance(given, int) else [size] * len(given)
            small.append(f"method_kwargs.{key}={size}")
    _clsp("pretrain", "--config-name", f"digits/{name}", *_TINY, *small, *_OWN.get(name, _VIEWS),
          f"method={method}", "name=golden", *overrides)  # fmt: skip
    (run,) = Path("trained", method).iterdir()
    return run


def _state(folder: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = folder.glob("*.ckpt")
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]


def _pretrain(method: str) -> Numbers:
    overrides = []
    if method.startswith("clsp_"):
        _store(Path("candidates"))
        overrides = ["synthetic.path=candidates"]
    run = _train(method, *overrides)
    curve = json.loads((run / "record.json").read_text())["curve"]
    # not the validation: running means of only two steps amplify rounding once more
    measured = [key for key in curve[0] if re.fullmatch(r"train_.*(loss|std)", key)]
    return {key: [row[key] for row in curve] for key in measured} | _weights(_state(run))


def _store(path: Path) -> None:
    """Write random candidates, so that the methods do not depend on the sampler."""
    array = public("load_images")({**_DIGITS, "image_size": 16}, "train")
    height, width = array.size
    manifest = public("StoreManifest")(
        num_images=len(array), num_candidates=2, height=height, width=width,
        fingerprint=array.fingerprint, dataset=array.name, denoiser="none", w=0.1, sampler="ddim",
        steps=4, eta=0.1, seed=0, dtype="32-true", clip=False, share_anchor=False, shard_size=16,
    )  # fmt: skip
    writer = public("StoreWriter")(path, manifest, array.digests)
    generator = torch.Generator().manual_seed(0)
    for shard, _, _ in writer.missing():
        shape = manifest.shard_shape(shard)
        drawn = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        writer.write(shard, drawn.numpy())


# ------------------------------------------------------------------------------ the generator


def denoiser() -> Numbers:
    _clsp("denoiser", "--config-name", "digits/denoiser", "out=denoiser", "data.num_train=32",
          "block_out_channels=[8,16]", "max_epochs=2", "batch_size=16", "warmup_steps=2",
          "horizontal_flip=0.5", "accelerator=cpu")  # fmt: skip
    from safetensors.torch import load_file

    (file,) = Path("denoiser").rglob("*.safetensors")
    losses = json.loads((Path("denoiser") / "training.json").read_text())["losses"]
    return {"loss": losses} | _weights(load_file(file))


def sampling() -> Numbers:
    torch.manual_seed(0)
    unet = public("build_unet")(
        16, {"block_out_channels": [8, 16], "layers_per_block": 1, "attention_resolutions": [8]}
    )
    public("save_denoiser")(unet.eval(), Path("fixed"), beta_end=0.01)
    out: Numbers = {}
    ways = {
        "ddim": ("sampler=ddim", "eta=0.1", "clip=False", "share_anchor=False"),
        "ddim, shared anchors": ("sampler=ddim", "eta=1.0", "clip=True", "share_anchor=True"),
        "ddpm": ("sampler=ddpm", "eta=null", "clip=True", "share_anchor=False"),
        "dpmpp": ("sampler=dpmpp", "eta=null", "clip=False", "share_anchor=False"),
    }
    for number, (name, told) in enumerate(ways.items()):
        place = f"drawn{number}"
        _clsp("generate", "--config-name", "digits/generate", "denoiser=fixed", f"out={place}",
              "data.num_train=10", "num_candidates=2", "w=0.1", "steps=4", "batch_size=4",
              "shard_size=4", "device=cpu", *told)  # fmt: skip
        store = public("CandidateStore")(place)
        drawn = torch.from_numpy(store.images(range(10)))
        out[name] = [*_digest([drawn]), *drawn.float().mean((2, 3, 4)).reshape(-1).tolist()]
    return out


# -------------------------------------------------------------------------------- evaluations


def _network() -> Path:
    """Return the directory of a run with fixed weights, so that nothing depends on training."""
    run = _train("simclr", "max_epochs=1")
    (file,) = run.glob("*.ckpt")
    content = torch.load(file, map_location="cpu", weights_only=True)
    for number, (key, value) in enumerate(sorted(content["state_dict"].items())):
        if value.is_floating_point():
            wide = max(1, value[0].numel()) if value.ndim > 1 else 1
            drawn = _fixed(*value.shape, seed=number) / wide**0.5
            positive = value.ndim == 1 and key.endswith(("running_var", "weight"))
            content["state_dict"][key] = 1 + 0.1 * drawn.tanh() if positive else drawn
    torch.save(content, file)
    return run


def _clusters(number: int, seed: int, views: int = 1) -> Any:
    """Make features of six dimensions in five classes that overlap."""
    targets = torch.arange(number) % 5
    return public("Features")(
        _fixed(5, 6, seed=9)[targets] + 1.1 * _fixed(views, number, 6, seed=seed), targets
    )


def features() -> Numbers:
    run = _network()
    backbone, args, _ = public("load_backbone")(run, {})
    array = public("load_images")(args["data"], "val")
    found = public("extract_features")(
        backbone, array, mean=[0.4, 0.45, 0.5], std=[0.25, 0.3, 0.2], batch_size=8, flip=True
    )
    rows = {f"image {n}": found.feats[0, n].tolist() for n in range(2)}
    return {
        "targets": found.targets.tolist(),
        "plain": _digest([found.feats[0]]),
        "mirrored": _digest([found.feats[1]]),
        **rows,
    }


def knn() -> Numbers:
    train, test = _clusters(150, 0), _clusters(120, 1)
    out: Numbers = {}
    for temperature in (0.07, 1.0):
        votes = public("weighted_knn")(
            train.feats[0], train.targets, test.feats[0], test.targets, (1, 5, 20, 100), temperature
        )
        hits = [round(len(test) * part / 100) for pair in votes.values() for part in pair]
        out[f"hits at temperature {temperature}"] = hits
    for protocol in ("strict", "paper"):
        result = public("evaluate_knn")(train, test, protocol, (5, 20, 50), seed=1)
        out[protocol] = [int(result["chosen"]["k"]), *_hits(result)]
    return out


def _hits(result: dict[str, Any]) -> list[int]:
    return [round(result["num_test"] * result["top1"] / 100), result["num_train"]]


def linear() -> Numbers:
    train, test = _clusters(150, 0, views=2), _clusters(120, 1)
    told = {"epochs": 4, "milestones": (2, 3), "batch_size": 32, "seed": 1}
    probe = public("train_probe")(train, 5, [0.1, 1.0], **told)
    out: Numbers = {"weights": _digest([probe.weights]), "biases": probe.biases[0].tolist()}
    for protocol in ("strict", "paper"):
        lrs = [0.3] if protocol == "paper" else [0.01, 0.3]
        result = public("evaluate_linear")(train, test, protocol, lrs, **told)
        out[protocol] = [result["chosen"]["lr"], *map(float, _hits(result))]
    return out


def transfer() -> Numbers:
    parts = {"train": _clusters(100, 0, 2), "val": _clusters(50, 1, 2), "test": _clusters(80, 2)}
    fitted = public("fit_logistic")(parts["train"], 5, [1e-3, 0.1, 10.0])
    # not at 1e-3: the solver stops when it is good enough, at another place on another CPU
    out: Numbers = {f"weights at {v:g}": _digest([c.weight]) for v, c in fitted.items() if v > 1e-2}
    for protocol in ("strict", "paper"):
        result = public("evaluate_transfer")(
            parts, "mean_class", protocol, l2=(1e-3, 0.1, 10.0), lr=0.3, epochs=4, milestones=(2,),
            batch_size=32, seed=1,
        )  # fmt: skip
        out[protocol] = [float(v) for v in result["chosen"].values()] + [result["mean_class"]]
    return out


def finetune() -> Numbers:
    run = _network()
    _clsp("finetune", f"pretrained_feature_extractor={run}", "optimizer.batch_size=16",
          "max_epochs=2", "accelerator=cpu")  # fmt: skip
    (result,) = json.loads((run / "record.json").read_text())["evaluations"]
    state = torch.load(result["checkpoint"], map_location="cpu", weights_only=True)["state_dict"]
    return {"loss": [row["train_loss"] for row in result["curve"]]} | _weights(state)


STAGES: dict[str, Callable[[], Numbers]] = {
    "digits": digits,
    "images": images,
    "augmentation": augmentation,
    "denoiser": denoiser,
    "sampling": sampling,
    "features": features,
    "knn": knn,
    "linear": linear,
    "transfer": transfer,
    "finetune": finetune,
}


def stages() -> dict[str, Callable[[], Numbers]]:
    """Return every stage by its name; pre-training has one per method, ``pretrain METHOD``."""
    methods = sorted(m for m in public("METHODS") if m in _THIRD or not _is_variant(m))
    own = {f"pretrain {name}": lambda name=name: _pretrain(name) for name in methods}
    return {**STAGES, **own}


def _is_variant(method: str) -> bool:
    """Whether a method is another one with a third view.

    Only a few of these are measured, since their numbers follow from those of the other method
    and of the third view.
    """
    base = method.removeprefix("clsp_").removesuffix("_aug")
    return base != method and (base in public("METHODS") or base == "mocov2")


def measure(stage: str) -> Numbers:
    """Compute the numbers of a stage in a temporary folder."""
    before, threads = Path.cwd(), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        os.chdir(folder)
        torch.set_num_threads(1)
        try:
            return stages()[stage]()
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)


def main(out: str, *wanted: str) -> None:
    """Write the numbers of the wanted stages, or of all, to a JSON file.

    A stage that cannot be run has an error message in place of numbers.
    """
    found: dict[str, Any] = {}
    for stage in wanted or stages():
        try:
            found[stage] = measure(stage)
        except Exception as error:  # anything may be missing in another commit
            found[stage] = f"{type(error).__name__}: {error}"
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
