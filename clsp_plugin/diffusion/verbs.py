"""The commands ``clsp denoiser`` and ``clsp generate``: their configurations and their output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import MISSING, DictConfig

from clsp_plugin.candidates.condition import condition_digest, load_condition
from clsp_plugin.candidates.oracle import Oracle, check_oracle, write_oracle
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.writer import check_export, export_npy
from clsp_plugin.config.plain import plain
from clsp_plugin.config.training import Data
from clsp_plugin.config.typed import settings_of, typed
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import load_images
from clsp_plugin.diffusion.autoencoder_training import AutoencoderSettings, train_autoencoder
from clsp_plugin.diffusion.denoiser import check_absent, fetch_pipeline
from clsp_plugin.diffusion.drawer import GenerationSettings
from clsp_plugin.diffusion.generation import estimate_generation, generate_candidates
from clsp_plugin.diffusion.module import TrainingSettings
from clsp_plugin.diffusion.training import (
    RECORD,
    estimate_training,
    train_denoiser,
)
from clsp_plugin.engine.progress import Bar
from clsp_plugin.errors import ClspError
from clsp_plugin.system.json_files import checked, read_json
from clsp_plugin.system.memory import in_bytes
from clsp_plugin.system.processes import process

__all__ = [
    "OfAutoencoder",
    "OfDenoiser",
    "OfGenerate",
    "autoencoder",
    "check_autoencoder",
    "check_denoiser",
    "check_generate",
    "denoiser",
    "generate",
]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support


def _split(given: DictConfig, *names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a configuration into the keys named, which must all be set, and the rest."""
    content = plain(given, resolve=True)
    own = {name: content.pop(name, None) for name in names}
    for name, value in own.items():
        if value in (None, "", "???"):
            raise ClspError(f"{name} is not set; give it in the YAML or as {name}=...")
        if name != "data":
            own[name] = str(value)  # a path may have been read as a number
    return own, content


@dataclass
class _OfImages:
    """What all three configurations have beside the settings of the training or the generation.

    Attributes:
        data: the training images, as in pre-training.
    """

    data: Data = field(default_factory=Data)


@dataclass
class OfAutoencoder(_OfImages):
    """What a configuration of ``clsp autoencoder`` has beside the settings of the training.

    Attributes:
        out: directory that the autoencoder is written to, in diffusers' format.
    """

    out: str = MISSING


@dataclass
class OfDenoiser(_OfImages):
    """What a configuration of ``clsp denoiser`` has beside the settings of the training.

    Attributes:
        out: directory that the denoiser is written to, in diffusers' format.
        condition: what the denoiser is told of an image: null for nothing, ``labels``, or a file of
            ``clsp embed``.
        fid: what measures the Frechet distance of samples at each sheet: ``inception``, or the
            checkpoint of an encoder; null for nothing.
        dry_run: whether only to estimate the time.
    """

    out: str = MISSING
    condition: Optional[str] = None
    fid: Optional[str] = None
    dry_run: bool = False


@dataclass
class OfGenerate(_OfImages):
    """What a configuration of ``clsp generate`` has beside the settings of the generation.

    Attributes:
        denoiser: directory of a denoiser, or a diffusers pipeline on the hub.
        out: the candidate store that is written.
        condition: for a conditional denoiser: a file of ``clsp embed``; null for the labels.
        export_npy: a file to write the authors' array to; null for none.
        dry_run: whether only to estimate the time and the size.
    """

    denoiser: str = MISSING
    out: str = MISSING
    condition: Optional[str] = None
    export_npy: Optional[str] = None
    dry_run: bool = False


_BESIDE = {
    verb: tuple(one.name for one in fields(schema))
    for verb, schema in (
        ("autoencoder", OfAutoencoder),
        ("denoiser", OfDenoiser),
        ("generate", OfGenerate),
    )
}


def _check(verb: str, cfg: DictConfig, settings: type) -> None:
    content = plain(cfg, resolve=True)
    typed({"data": content["data"]}, _OfImages)
    given = {key: value for key, value in content.items() if key not in _BESIDE[verb]}
    if "oracle" in given:
        check_oracle(settings_of(Oracle, given))
    else:
        settings_of(settings, given)


def check_autoencoder(cfg: DictConfig) -> None:
    """Refuse a configuration that :func:`autoencoder` would refuse for any images.

    Raises:
        ClspError: a setting is not valid; the message names it.
    """
    _check("autoencoder", cfg, AutoencoderSettings)


def check_denoiser(cfg: DictConfig) -> None:
    """Refuse a configuration that :func:`denoiser` would refuse for any images.

    Raises:
        ClspError: a setting is not valid; the message names it.
    """
    _check("denoiser", cfg, TrainingSettings)


def check_generate(cfg: DictConfig) -> None:
    """Refuse a configuration that :func:`generate` would refuse for any images.

    Raises:
        ClspError: a setting is not valid; the message names it.
    """
    _check("generate", cfg, GenerationSettings)


def _images(data: dict[str, Any]) -> ImageArray:
    return load_images(typed(data, Data), "train")


def autoencoder(
    given: DictConfig,
    *,
    title: str = "train the autoencoder",
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train an autoencoder on the training images and write it in diffusers' format.

    Args:
        given: the configuration: ``data`` as in pre-training, ``out`` and the keys of
            ``AutoencoderSettings``.
        title: label of the progress bar.
        callbacks: further callbacks of Lightning.

    Returns:
        The content of ``training.json``.
    """
    own, rest = _split(given, "data", "out")
    settings = settings_of(AutoencoderSettings, rest)
    finished = (Path(own["out"]) / RECORD).exists()
    if not finished:
        check_absent(Path(own["out"]))
    bars = [Bar(title, metrics=("loss",)), *callbacks]
    array = _images(own["data"])
    record = train_autoencoder(
        array.images, settings, own["out"], callbacks=bars, sha256=array.sha256
    )
    trained = f"{record['epochs']} epochs, {record['seconds']:.0f} s"
    print(
        f"Autoencoder: {own['out']} ({'already complete: ' if finished else ''}{trained}; "
        f"PSNR {record['psnr']:.2f} dB on images held out)"
    )
    return record


def denoiser(
    given: DictConfig,
    *,
    title: str = "train the denoiser",
    frechet: Callable[[str, torch.Tensor, Any], Callable[[torch.Tensor], float]] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> dict[str, Any]:
    """Train a denoiser on the training images and write it in diffusers' format.

    Args:
        given: the configuration: keys of :class:`OfDenoiser` and of ``TrainingSettings``.
        title: label of the progress bar.
        frechet: function of ``fid``, the training images and their ``data`` block; it returns a
            function from samples to their Frechet distance from these images.
        callbacks: further callbacks of Lightning.
        loggers: further loggers of Lightning.

    Returns:
        The content of ``training.json``; with ``dry_run`` what ``estimate_training`` returns.
    """
    own, rest = _split(given, "data", "out")
    dry_run = _flag(rest, "dry_run")
    condition, fid = rest.pop("condition", None), rest.pop("fid", None)
    settings = settings_of(TrainingSettings, rest)
    if dry_run:
        array = _images(own["data"])
        found = estimate_training(array.images, settings, load_condition(condition, array))
        print(_training_estimate(found, settings))
        return found
    finished = (Path(own["out"]) / RECORD).exists()
    if not finished:
        check_absent(Path(own["out"]))
    if fid is not None and not settings.sample_every:
        raise ClspError(f"fid={fid} is computed beside the sample sheets; set sample_every too.")
    array = _images(own["data"])
    score = None
    if fid is not None and frechet is not None:
        score = frechet(fid, array.images, typed(own["data"], Data))
    record = train_denoiser(
        array.images,
        settings,
        own["out"],
        condition=load_condition(condition, array),
        callbacks=[Bar(title, metrics=("loss",)), *callbacks],
        loggers=loggers,
        score=score,
        sha256=array.sha256,
    )
    trained = f"{record['epochs']} epochs, {record['seconds']:.0f} s"
    print(f"Denoiser: {own['out']} ({'already complete: ' if finished else ''}{trained})")
    return record


def generate(given: DictConfig, *, title: str = "draw candidates") -> dict[str, Any]:
    """Draw candidates for the training images, continuing an unfinished store.

    Args:
        given: the configuration: keys of :class:`OfGenerate` and of ``GenerationSettings``. If it
            has a key ``oracle``: ``data``, ``out`` and the keys of ``Oracle``.
        title: label of the progress bar.

    Returns:
        What ``generate_candidates`` returns; with ``dry_run`` what ``estimate_generation``, and
        with ``oracle`` what ``write_oracle`` returns.
    """
    if "oracle" in given:
        return _oracle(given)
    export = given.get("export_npy")
    own, rest = _split(given, "data", "denoiser", "out")
    rest.pop("export_npy", None)
    dry_run, condition = _flag(rest, "dry_run"), rest.pop("condition", None)
    settings = settings_of(GenerationSettings, rest)
    if export is not None:
        export = check_export(str(export), own["out"])
    fetch_pipeline(own["denoiser"])  # what is missing is told before all images are read
    array = _images(own["data"])
    given_condition = load_condition(condition, array)
    _check_condition(Path(own["denoiser"]), array, given_condition)
    what: dict[str, Any] = {
        "dataset": array.name,
        "labels": array.targets,
        "condition": given_condition,
    }
    work = (array.images, array.fingerprint, own["denoiser"], own["out"], settings)
    if dry_run:
        found = estimate_generation(*work, **what)
        print(_estimate(found, settings))
        return found
    summary = generate_candidates(*work, desc=title, digests=array.digests, **what)
    drawn = f"{summary['candidates']} drawn in {summary['seconds']:.0f} s"
    print(f"Candidates: {own['out']} ({drawn if summary['candidates'] else 'already complete'})")
    if export is not None:
        _export(own["out"], export)
    return summary


def _oracle(given: DictConfig) -> dict[str, Any]:
    """Make the oracle candidates of a configuration, which need no denoiser."""
    own, rest = _split(given, "data", "out")
    data, settings = typed(own["data"], Data), settings_of(Oracle, rest)
    summary = write_oracle(load_images(data, "train"), data, own["out"], settings)
    made = f"{summary['candidates']} made" if summary["candidates"] else "already complete"
    print(f"Candidates: {own['out']} ({made})")
    return summary


def _export(out: str, export: str) -> None:
    """Write the authors' array, once all processes have drawn their shares."""
    rank, world_size = process()
    if rank:
        return
    if world_size > 1:
        print(f"No array yet: once all are done, the same command in one process writes {export}.")
        return
    export_npy(CandidateStore(out), export)
    print(f"The authors' array: {export}")


def _check_condition(denoiser: Path, array: ImageArray, condition: torch.Tensor | None) -> None:
    """Refuse another condition than the denoiser was trained with, if it was on these images.

    Clusters and labels have the same form, so no other check would find the difference.

    Raises:
        ClspError: the conditions differ, or the record of the training is damaged.
    """
    if not (denoiser / RECORD).is_file():
        return  # not trained by this package
    advice = "take it from a copy, or train the denoiser again."
    record = read_json(denoiser / RECORD, dict[str, Any], "a training's record", advice)
    name = f"{denoiser / RECORD} is not a training's record: it has settings"
    settings = checked(record.get("settings"), dict[str, Any], name, advice)
    trained, images = settings.get("condition"), settings.get("images")
    if trained is None:
        return  # not conditional
    given = condition_digest(array.targets if condition is None else condition)
    if images == array.sha256 and trained != given:
        raise ClspError(
            f"{denoiser} was trained on these images with another condition; give condition=FILE, "
            f"the file of `clsp embed` that it was trained with, or leave it out for labels."
        )


def _flag(content: dict[str, Any], name: str) -> bool:
    """Take a setting out of a configuration that is True or False, False where it is not set."""
    value = content.pop(name, False)
    if not isinstance(value, bool):
        raise ClspError(f"{name}={value!r} is neither True nor False.")
    return value


def _duration(seconds: float) -> str:
    unit, name = next(
        u for u in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= 1.5 * u[0] or u[0] == 1
    )
    return f"{seconds / unit:.1f} {name}"


def _training_estimate(found: dict[str, Any], settings: TrainingSettings) -> str:
    """Return the sentence that a dry run of a training prints."""
    encoding = f", {_duration(found['encoding'])} of it to encode the images"
    return (
        f"Dry run: {settings.max_epochs} epochs of {found['steps'] // settings.max_epochs} steps "
        f"of a network of {found['weights'] / 1e6:.1f} million weights would take about "
        f"{_duration(found['seconds'])} on one device ({found['device']}"
        f"{encoding if found['encoding'] else ''}); nothing was written."
    )


def _estimate(found: dict[str, Any], settings: GenerationSettings) -> str:
    """Return the sentence that a dry run prints."""
    seconds, left, total = found["seconds"], found["candidates"], found["total"]
    there = f" that are left of {total}" if left < total else ""
    room = "" if found["no_room"] is None else f" {found['no_room']}"
    return (
        f"Dry run: {left} candidates{there}, of {found['images']} images, in {settings.steps} "
        f"steps would take about {_duration(seconds)} on one process ({found['device']}) "
        f"and {in_bytes(found['bytes'])}; nothing was written.{room}"
    )
