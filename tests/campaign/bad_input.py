"""Damaged files, odd values and odd words: a command accepts them, or refuses in one sentence."""

import dataclasses
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from PIL import Image

from clsp_plugin.config.shipped import shipped
from clsp_plugin.config.trainer_arguments import TrainerArguments
from clsp_plugin.config.training import Pretrain
from clsp_plugin.diffusion.drawer import GenerationSettings
from clsp_plugin.diffusion.module import TrainingSettings
from clsp_plugin.evaluation.finetune import Finetune
from clsp_plugin.evaluation.settings import Knn, Linear, Transfer
from tests.campaign import works
from tests.campaign.commands import Broken, Told, check_told, run
from tests.campaign.damage import damage
from tests.campaign.works import WORKS, Base, Work

__all__ = ["KINDS", "bad_input"]

_MOST = 100  # seconds that a command may take; none needs ten
_RUNS, _RUN, _STORE, _DENOISER = works.RUNS, works.RUN, works.STORE, works.DENOISER_FOLDER
_OF_RUN = f"pretrained_feature_extractor={_RUN}"
_FINETUNE = ("finetune", _OF_RUN, "max_epochs=1", "optimizer.batch_size=16")
_TRANSFER = ("transfer", _OF_RUN, "datasets=[pets]")
_PLAIN = ("pretrain", "--config-name", "simclr", *works.TINY, "max_epochs=1")
_MINE = ("pretrain", "--config-path", "mine", *_PLAIN[1:])
_IMAGES = (*_PLAIN, "data.dataset=custom", "data.train_path=my", "data.image_size=16")


def _write_yaml(folder: Path) -> None:
    shutil.copytree(shipped() / "pretrain/digits", folder / "mine")


def _write_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "my" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "my" / name / f"{i}.png")


@dataclass(frozen=True)
class _Kind:
    """Files that can be damaged, and the command that reads them.

    Attributes:
        command: a command that works while nothing is damaged.
        files: patterns of the files.
        needs: as in a :class:`Work`.
        prepare: as in a :class:`Work`.
        left: returns what a flipped bit may not change if the command accepts it; None: not
            checked.
    """

    command: tuple[str, ...]
    files: tuple[str, ...]
    needs: tuple[Path, ...] = ()
    prepare: Callable[[Path], object] = lambda folder: None
    left: Callable[[Path], dict[str, str]] | None = None


_OF_A_RUN = (f"{_RUN}/*/*.ckpt", f"{_RUN}/*/*.json")
_OF_A_STORE = (f"{_STORE}/*",)
_OF_A_DENOISER = (f"{_DENOISER}/*.json", f"{_DENOISER}/*/*")
KINDS = {
    "knn": _Kind(works.KNN, (*_OF_A_RUN, f"{_RUN}/*/features/*"), (_RUN,), left=works.runs),
    "linear": _Kind(works.LINEAR, _OF_A_RUN, (_RUN,), left=works.runs),
    "finetune": _Kind(_FINETUNE, _OF_A_RUN, (_RUN,)),
    "table": _Kind(("table", str(_RUNS)), _OF_A_RUN, (_RUN,)),
    "figures": _Kind(works.FIGURES, _OF_A_RUN, (_RUN,)),
    "report": _Kind(("report", str(_RUNS), "--limit", "20"), _OF_A_RUN, (_RUN,)),
    "candidates": _Kind(works.PRETRAIN, _OF_A_STORE, (_STORE,)),
    "continue": _Kind((*works.PRETRAIN, "max_epochs=4"), _OF_A_RUN, (_STORE, _RUN)),
    "inspect": _Kind(("inspect", str(_STORE), "data.num_train=48"), _OF_A_STORE, (_STORE,)),
    "generate": _Kind(works.GENERATE, _OF_A_DENOISER, (_DENOISER,), left=works.store),
    "extend": _Kind((*works.GENERATE, "num_candidates=3"), (*_OF_A_DENOISER, *_OF_A_STORE),
                    (_DENOISER, _STORE)),
    "denoiser": _Kind(works.DENOISER, _OF_A_DENOISER, (_DENOISER,)),
    "yaml": _Kind(_MINE, ("mine/simclr.yaml", "mine/base/*", "mine/augmentations/symmetric.yaml"),
                  prepare=_write_yaml),
    "suite": _Kind(("bench", "suite.yaml", "--dry-run"), ("suite.yaml",),
                   prepare=WORKS["unit"].prepare),
    "images": _Kind(_IMAGES, ("my/*/*",), prepare=_write_images),
}  # fmt: skip


def _numbers(schema: type, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the keys of all numbers of a schema and its blocks, and whether each is a list."""
    for field in dataclasses.fields(schema):
        hint = get_type_hints(schema)[field.name]
        inner = {hint, *get_args(hint), *(k for arg in get_args(hint) for k in get_args(arg))}
        block = next((kind for kind in inner if dataclasses.is_dataclass(kind)), None)
        if block is not None:
            yield from _numbers(block, f"{prefix}{field.name}.")
        elif inner & {int, float}:
            yield f"{prefix}{field.name}", any(get_origin(kind) in (list, tuple) for kind in inner)


_FREE = ("method_kwargs.temperature", "method_kwargs.proj_hidden_dim", "optimizer.kwargs.momentum",
         "method_kwargs.proj_output_dim", "optimizer.kwargs.nesterov")  # fmt: skip
_SETTINGS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (Pretrain, _PLAIN), (TrainerArguments, _PLAIN), (Finetune, _FINETUNE), (Linear, works.LINEAR),
    (Knn, works.KNN), (Transfer, _TRANSFER), (GenerationSettings, works.GENERATE),
    (TrainingSettings, works.DENOISER),
)  # fmt: skip
_VALUES = (
    "nan", "inf", "-inf", "-1", "0", "-0.0", "1", "2", "3", "0.5", "1e-320", "1e308", "1e400",
    "7e7", "2147483647", "2147483648", "4294967296",
    "9223372036854775808", "1" + "0" * 40, "null", "True",
    "x", "[]", "[1,nan]", "{}", "{a:1}", "''", "1_000", "0x10", "\uff11", "$", "???", "${seed}",
)  # fmt: skip


def _numeric(random_: random.Random) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return a command, the same command with an odd number, and what is odd."""
    schema, words = random_.choice(_SETTINGS)
    keys = [*_numbers(schema)] + [(key, False) for key in _FREE if schema is Pretrain]
    key, many = random_.choice(keys)
    value = random_.choice(_VALUES)
    given = f"{key}=[{value}]" if many and random_.random() < 0.7 else f"{key}={value}"
    rest = tuple(word for word in words if word.partition("=")[0] != key)
    return words, (*rest, given), f"{words[0]} {given}"


def _large(given: str) -> bool:
    """Whether a number is so large that a command may take long."""
    try:
        return float(given.partition("=")[2].strip("[]")) > 1000
    except ValueError:
        return False


def bad_input(base: Base, random_: random.Random, where: Path, only: str | None = None) -> str:
    """Run one round: a command meets bad input, and afterwards works on good input.

    Returns:
        What was done, for people.

    Raises:
        Broken: the command ends neither well nor with one sentence, or does not work afterwards.
    """
    name = only or random_.choice((*KINDS, *("numbers",) * len(KINDS)))
    log = where.with_name("log")
    if name == "numbers":
        right, wrong, said = _numeric(random_)
        needs = (_STORE, _RUN, _DENOISER) if right[0] in ("knn", "linear", "finetune") else ()
        needs = (_DENOISER,) if right[0] == "generate" else needs
        base.copy(Work(name, (), needs, works.runs), where)
        told = run(wrong, where, log, 20 if _large(wrong[-1]) else _MOST)
        if told.code is None and _large(wrong[-1]):
            return f"{said}: runs on"
        _check(told, said)
        if told.code and right[0] != "transfer":
            _right(base, right, where, said)
        return f"{said}: {_outcome(told)}"
    kind = KINDS[name]
    base.copy(Work(name, (), kind.needs, works.runs, kind.prepare), where)
    if kind.left is works.runs:
        works.forget(where)
    files = sorted(file for pattern in kind.files for file in where.glob(pattern))
    file = random_.choice([file for file in files if file.is_file() and file.stat().st_size])
    content = file.read_bytes()
    said = f"{name}, {file.relative_to(where)}: {damage(file, random_)}"
    told = run(kind.command, where, log, _MOST)
    _check(told, said)
    if told.code == 0:
        if kind.left is not None and "flipped" in said:
            _compare(base, kind, where, said)
        return f"{said}: taken"
    _restore(file, content)
    _right(base, kind.command, where, said)
    return f"{said}: {_outcome(told)}"


def _check(told: Told, said: str) -> None:
    try:
        check_told(told)
    except Broken as error:
        raise Broken(f"{said}: {error}") from None


def _outcome(told: Told) -> str:
    last = told.err.strip().splitlines()[-1] if told.err.strip() else ""
    return last[:160] if told.code else "taken"


def _restore(file: Path, content: bytes) -> None:
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)
    file.write_bytes(content)


def _right(base: Base, words: tuple[str, ...], where: Path, said: str) -> None:
    """Check that the right command works after a refusal."""
    try:
        base.command(words, where)
    except Broken as error:
        raise Broken(f"{said}: and then the right command {error}") from None


def _compare(base: Base, kind: _Kind, where: Path, said: str) -> None:
    """Check that a flipped bit that the command accepted has not changed its results."""
    about = Work(f"{said.partition(',')[0]} in peace", (kind.command,), kind.needs, kind.left,
                 works.forget if kind.left is works.runs else kind.prepare)  # fmt: skip
    wanted, left = base.undisturbed(about)[0], kind.left(where)
    changed = {key for key in wanted if wanted[key] != left.get(key) and "weights" not in key}
    if changed:
        raise Broken(f"{said}: is taken without a word, and changes {sorted(changed)}")
