"""The commands that are tried, at tiny sizes: what they need, and what they must leave."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from clsp_plugin.suites.planner import make_plan
from clsp_plugin.suites.suite import read_suite
from clsp_plugin.suites.worker import describe
from tests.campaign.commands import Broken, Told, check_told, run

__all__ = ["WORKS", "Base", "Work"]

RUNS = Path("trained_models")
RUN = RUNS / "clsp_simclr"
_OF_RUN = f"pretrained_feature_extractor={RUN}"
STORE = Path("candidates/digits")
DENOISER_FOLDER = Path("denoisers/digits")
_UNIT = Path("suite.yaml")
TINY = (
    "data.num_train=48", "data.num_val=20", "backbone.kwargs.channels=[8,8,8,8]",
    "optimizer.batch_size=16", "scheduler.warmup_epochs=1", "checkpoint.frequency=1",
)  # fmt: skip
SUITE = """
title: A campaign
datasets: {digits: {configs: digits}}
methods: [simclr]
seeds: [0]
overrides: [max_epochs=2, linear.max_epochs=3, "linear.lr_decay_steps=[2]", OVERRIDES]
"""
DENOISER = (
    "denoiser", "data.num_train=48", "block_out_channels=[8,8]", "layers_per_block=1",
    "attention_resolutions=[]", "max_epochs=4", "batch_size=16",
)  # fmt: skip
GENERATE = (
    "generate", "data.num_train=48", "num_candidates=2", "steps=4", "shard_size=8", "batch_size=8",
)  # fmt: skip
PRETRAIN = ("pretrain", "--config-name", "clsp_simclr", *TINY, "max_epochs=3", "name=clsp_simclr")
KNN = ("knn", _OF_RUN, "k=[1,5]")
LINEAR = ("linear", _OF_RUN, "max_epochs=3", "lr_decay_steps=[2]")
FIGURES = ("figures", str(RUNS), "--out", "figures", "--only", "epochs", "--limit", "20")


@dataclass(frozen=True)
class Work:
    """Commands of one kind, and what they must leave whatever happens to them.

    Attributes:
        name: its name.
        commands: words of each command; those of one work may run at the same time.
        needs: paths of what is copied from a :class:`Base`.
        left: returns what a folder holds afterwards, as texts that can be compared.
        prepare: what else is done to a folder beforehand.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[Path, ...]
    left: Callable[[Path], dict[str, str]]
    prepare: Callable[[Path], object] = lambda folder: None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _weights(state: dict[str, torch.Tensor]) -> str:
    summed = hashlib.sha256()
    for key, value in sorted(state.items()):
        summed.update(key.encode() + value.contiguous().numpy().tobytes())
    return summed.hexdigest()[:16]


def store(folder: Path) -> dict[str, str]:
    """Return a hash of every file of a store."""
    files = (file for file in (folder / STORE).iterdir() if file.is_file())
    return {f"bytes of {file.name}": _hash(file.read_bytes()) for file in files}


def _denoiser(folder: Path) -> dict[str, str]:
    (file,) = (folder / DENOISER_FOLDER / "unet").glob("*.safetensors")
    files = (file for file in (folder / DENOISER_FOLDER).rglob("*") if file.is_file())
    names = " ".join(sorted(str(file.relative_to(folder)) for file in files))
    return {"weights of the denoiser": _weights(load_file(file)), "files of the denoiser": names}


def _evaluations(record: dict) -> str:
    kept = ("task", "protocol", "acc1", "acc5", "top1", "top5", "metrics", "k", "lr")
    told = [{key: one[key] for key in kept if key in one} for one in record["evaluations"]]
    return json.dumps(sorted(told, key=json.dumps), sort_keys=True)


def runs(folder: Path) -> dict[str, str]:
    """Return weights, curve and evaluations of every run; a method and seed has one."""
    out = {}
    for file in (folder).rglob("record.json"):
        record = json.loads(file.read_text())
        curve = [{k: v for k, v in row.items() if "time" not in k and "second" not in k}
                 for row in record["curve"]]  # fmt: skip
        checkpoints = list(file.parent.glob("*.ckpt"))
        if len(checkpoints) != 1:
            raise Broken(f"{file.parent} has {len(checkpoints)} checkpoints")
        state = torch.load(checkpoints[0], weights_only=True)["state_dict"]
        about = f"{record['method']}, seed {record['seed']}"
        if f"weights of {about}" in out:
            raise Broken(f"{folder} has two runs of {about}")
        out[f"weights of {about}"] = _weights(state)
        out[f"curve of {about}"] = json.dumps(curve, sort_keys=True)
        out[f"evaluations of {about}"] = _evaluations(record)
    return out


def _figures(folder: Path) -> dict[str, str]:
    files = [*(folder / "figures").iterdir()]
    for file in files:
        whole = {".svg": b"</svg>", ".png": b"IEND\xaeB`\x82", ".json": b"}"}[file.suffix]
        if not file.read_bytes().rstrip().endswith(whole):
            raise Broken(f"{file} is not whole")
    return {"figures": " ".join(sorted(file.name for file in files))}


def forget(folder: Path) -> None:
    """Delete a run's record and features, as if its checkpoint were another program's."""
    for file in (folder / RUN).glob("*/record.json"):
        file.unlink()
    for kept in (folder / RUN).glob("*/features"):
        shutil.rmtree(kept)


def _describe_unit(folder: Path) -> None:
    text = SUITE.replace("OVERRIDES", ", ".join(f'"{word}"' for word in TINY))
    (folder / _UNIT).write_text(text)
    (unit,) = make_plan(*read_suite(folder / _UNIT), folder / "suite").units
    (folder / "unit.json").symlink_to(describe(unit))


WORKS = {
    work.name: work
    for work in (
        Work("generate", (GENERATE,), (DENOISER_FOLDER,), store),
        Work("pretrain", (PRETRAIN,), (STORE,), runs),
        Work("denoiser", (DENOISER,), (), _denoiser),
        Work("knn", (KNN, LINEAR), (RUN,), runs, forget),
        Work("figures", (FIGURES,), (RUN,), _figures),
        Work("unit", (("unit", "unit.json"),), (), runs, _describe_unit),
    )
}


class Base:
    """What commands begin from, and what they leave when nothing happens to them; made once.

    Attributes:
        folder: the folder that all of it lies in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._left, self._seconds = folder, {}, {}
        self._made: set[str] = set()

    def command(self, words: tuple[str, ...], where: Path, seconds: float = 300) -> Told:
        """Run a command and check that it ends well."""
        told = run(words, where, self.folder / "log", seconds)
        check_told(told, refusable=False)
        return told

    def _make(self, needed: Path) -> None:
        place = self.folder / "base"
        place.mkdir(parents=True, exist_ok=True)
        if (place / needed).exists():
            return
        if needed == DENOISER_FOLDER:
            self.command(DENOISER, place)
        elif needed == STORE:
            self._make(DENOISER_FOLDER)
            self.command(GENERATE, place)
        else:
            self._make(STORE)
            for words in (PRETRAIN, KNN, LINEAR):
                self.command(words, place)

    def copy(self, work: Work, where: Path) -> Path:
        """Make a new folder with what a work needs; an old one is deleted."""
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        for needed in work.needs:
            self._make(needed)
            shutil.copytree(self.folder / "base" / needed, where / needed)
        work.prepare(where)
        return where

    def undisturbed(self, work: Work) -> tuple[dict[str, str], float]:
        """Return what a work leaves when nothing happens to it, and the seconds that it takes."""
        if work.name not in self._left:
            where = self.copy(work, self.folder / f"undisturbed-{work.name}")
            self._seconds[work.name] = sum(self.command(w, where).seconds for w in work.commands)
            self._left[work.name] = work.left(where)
        return self._left[work.name], self._seconds[work.name]

    def check(self, work: Work, where: Path) -> None:
        """Check that a folder holds what the undisturbed one does, and no unfinished files.

        Raises:
            Broken: it does not.
        """
        wanted, left = self.undisturbed(work)[0], work.left(where)
        for key in sorted({*wanted, *left}):
            if wanted.get(key) != left.get(key):
                raise Broken(f"{key}: {left.get(key)} instead of {wanted.get(key)}"[:1500])
        unfinished = sorted(str(file.relative_to(where)) for file in where.rglob("*.tmp"))
        if unfinished:
            raise Broken(f"unfinished files are left: {unfinished}")
