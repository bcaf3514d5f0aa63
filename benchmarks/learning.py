"""Test whether methods learn: compare each run's kNN accuracy with that of its untrained backbone.

Reads the records of finished runs and evaluates, for each seed, the backbone as it was before the
first step, on the same images by the same protocol. The differences are paired by seed.

    clsp bench methods --out runs/methods
    python benchmarks/learning.py runs/methods
"""

import argparse
import json
import statistics
from pathlib import Path

import lightning.pytorch as pl
from scipy.stats import ttest_1samp

from clsp_plugin.config.training import Data
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.evaluation.features import extract_features
from clsp_plugin.evaluation.protocol import evaluate_knn
from clsp_plugin.methods.backbones import build_backbone
from clsp_plugin.records.belonging import images_of
from clsp_plugin.records.record import Record, find_records
from clsp_plugin.tables.rows import family_order


class Untrained:
    """Computes a run's kNN accuracy in percent, protocol strict, before the first training step."""

    def __init__(self) -> None:
        self.known: dict[str, float] = {}

    def __call__(self, path: Path, record: Record) -> float:
        config = record.config
        normalisation = channel_statistics(config["data"], config["augmentations"])
        # runs with the same seed, backbone and images begin with the same weights
        images = {key: config["data"].get(key) for key in Data.__dataclass_fields__}
        key = json.dumps([config["backbone"], images, *map(list, normalisation), record.seed])
        if key not in self.known:
            pl.seed_everything(record.seed, verbose=False)  # as at the start of a training
            module, _ = build_backbone(config["backbone"], record.dataset)
            mean, std = normalisation
            features = [
                extract_features(module, images_of(path, record, split).labelled(),
                                 mean=mean, std=std, flip=False)
                for split in ("train", "val")
            ]  # fmt: skip
            self.known[key] = evaluate_knn(*features)["top1"]
        return self.known[key]


def _trained(record: Record) -> float | None:
    wanted = ("knn", "strict", record.dataset)
    found = (e for e in record.evaluations if (e["task"], e["protocol"], e["dataset"]) == wanted)
    return next((evaluation["top1"] for evaluation in found), None)


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", help="records, or folders that hold some")
    found: dict[str, list[tuple[float, float]]] = {}
    untrained = Untrained()
    for path, record in find_records(parser.parse_args().paths):
        trained = _trained(record)
        if trained is not None:
            pair = (trained, untrained(path, record))
            found.setdefault(record.method, []).append(pair)
    print("| method | n | kNN | untrained | gain | p, one-sided |")
    print("|---|---:|---:|---:|---:|---:|")
    for method in family_order(found):
        pairs = found[method]
        gains = [after - before for after, before in pairs]
        p = ttest_1samp(gains, 0, alternative="greater").pvalue if len(gains) > 1 else float("nan")
        after, before = map(list, zip(*pairs, strict=True))
        shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
        print(f"| {method} | {len(pairs)} | {_mean(after)} | {_mean(before)} | {_mean(gains)} "
              f"| {shown} |")  # fmt: skip


if __name__ == "__main__":
    main()
