"""``clsp inspect``: what a candidate store holds, and how good its candidates are.

Without an encoder: a sheet, and how near candidates are to their anchors in colour and layout.
With an encoder, which is a checkpoint that the evaluation can read: also the similarity of
positive pairs (figure 2 of Zeng et al., ECCV 2024), the agreement of labels, and a Frechet
distance. With a denoiser: also the effect of w (figure 4a), and what the middle feature holds
(figure 1).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clsp_plugin.candidates.condition import load_condition
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.diffusion.interpolation import is_conditional
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.frozen import Encoder
from clsp_plugin.evaluation.similarity import label_agreement, pair_similarities
from clsp_plugin.figures import candidate_sheet, similarity_histogram, store_caption
from clsp_plugin.inspection.frechet import frechet_from
from clsp_plugin.inspection.hardness import closeness, hardness, looks
from clsp_plugin.inspection.middle_features import middle_report
from clsp_plugin.inspection.redrawn import (
    SHEET_ROWS,
    denoiser_of,
    denoiser_report,
    draw_like,
    spread_rows,
)
from clsp_plugin.system.alone import alone
from clsp_plugin.system.files import write_text

__all__ = ["first_candidates", "inspect_store", "open_store", "verify_store"]

# The pictures beside the sheet, and the part of the report that each belongs to.
_PICTURES = {
    "similarity.png": "similarity", "weights.png": "weights", "masked.png": "masked",
    "middle.png": "middle",
}  # fmt: skip
_AT_ONCE = 256  # images that are read at a time
_REDRAWN = 64  # largest number of anchors that are redrawn with several w


def _hardness(anchors: torch.Tensor, candidates: torch.Tensor) -> dict[str, dict[str, float]]:
    """Compute the hardness in colour, layout and background, see ``hardness.hardness``."""
    theirs, ours = looks(anchors), looks(candidates)
    return {name: hardness(theirs[name], ours[name]) for name in theirs}


def _feature_hardness(
    encoder: Encoder, anchors: torch.Tensor, candidates: torch.Tensor
) -> dict[str, float]:
    """Compute the hardness in an encoder's features, each scaled to length 1."""
    theirs = F.normalize(encoder(anchors.permute(0, 3, 1, 2)), dim=1)
    ours = F.normalize(encoder(candidates.flatten(0, 1).permute(0, 3, 1, 2)), dim=1)
    return hardness(theirs, ours.unflatten(0, candidates.shape[:2]))


def first_candidates(store: CandidateStore, batch_size: int = 256) -> Iterator[torch.Tensor]:
    """Yield the first candidate of every image that has one, in batches: uint8 (B, H, W, 3)."""
    for indexes in torch.from_numpy(store.drawn).split(batch_size):
        yield store.gather(indexes, torch.zeros_like(indexes))


def open_store(path: str | Path) -> CandidateStore:
    """Open a store to report on, which may be unfinished.

    Raises:
        ClspError: there is no store, or it has no manifest.
    """
    if not Path(path).exists():
        raise ClspError(f"There is no candidate store at {path}; `clsp generate` makes one.")
    store = CandidateStore(path, partial=True)
    store.need_manifest()
    return store


def verify_store(path: str | Path) -> str:
    """Read all shards of a store and compare them with their digests.

    Returns:
        A sentence about what was found.

    Raises:
        ClspError: shards changed since they were written; the message names them.
    """
    store = open_store(path)
    shards = store.need_manifest().num_shards
    whole, without = store.verify()
    missing = shards - whole - without
    parts = [f"{whole} of {shards} shards are as they were written"]
    if without:
        parts.append(f"{without} have no digest, being of an earlier version")
    if missing:
        parts.append(f"{missing} are still to be drawn")
    return f"{path}: {'; '.join(parts)}."


def inspect_store(
    path: str | Path,
    array: ImageArray,
    out: str | Path,
    *,
    encoder: str | Path | None = None,
    denoiser: str | Path | None = None,
    condition: str | None = None,
    fid: bool = False,
    limit: int = 1000,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a report about a store: ``report.json``, ``sheet.png`` and further pictures.

    Args:
        path: path of the store; of an unfinished one, the finished shards are examined.
        array: the images that it was made for.
        out: a folder; files of an earlier report in it are replaced.
        encoder: a checkpoint: adds ``similarity.png``, the agreement of labels and Frechet
            distances in its features. The distances are those of the first candidates and, for
            comparison, of the anchors (what a perfect generator would get) from the other images.
        denoiser: the store's denoiser: adds ``weights.png``, candidates with several w;
            ``masked.png``, samples with the middle feature masked; and ``middle.png``, a t-SNE of
            middle features.
        condition: the condition of a conditional denoiser: a file of ``clsp embed``; None for the
            labels.
        fid: whether to add the FID of the first candidates against all images.
        limit: number of anchors to examine, at least 2; capped at half of the images, so that the
            other half is left to compare with.
        data: the configuration's ``data`` block, for an encoder of the authors.

    Returns:
        The content of ``report.json``.

    Raises:
        ClspError: the store is for other images or has no manifest, it has candidates of fewer
            than two images, a shard that is read changed since it was written, or an argument is
            not valid.
    """
    store, out = open_store(path), Path(out)
    manifest = store.need_manifest()
    store.check(len(array), *array.size, array.fingerprint, array.name)
    if condition is not None and denoiser is None:
        raise ClspError(f"--condition {condition} goes with --denoiser; name that too.")
    if limit < 2:
        raise ClspError(f"--limit {limit} must be at least 2: anchors are held against others.")
    inception = frechet_from(2048, array.images) if fid else None  # first: it may be unavailable
    network = None if encoder is None else Encoder(encoder, data)
    if len(store.drawn) < 2:
        raise ClspError(f"{path} has candidates of one image, and anchors are held against others.")
    number = min(limit, max(2, len(array) // 2))
    rows = store.drawn[spread_rows(number, len(store.drawn))].tolist()
    store.verify(rows)
    anchors, candidates = array.images[rows], torch.from_numpy(store.images(rows))
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, f"writes a report to {out}"):
        report: dict[str, Any] = {
            "store": str(path),
            "manifest": vars(manifest),
            "drawn": len(store.drawn),
            "anchors": len(rows),
            "closeness": closeness(anchors, candidates),
            "hardness": _hardness(anchors, candidates),
        }
        sheet = spread_rows(SHEET_ROWS, len(rows))
        candidate_sheet(
            anchors[sheet].numpy(),
            candidates[sheet].numpy(),
            out / "sheet.png",
            title="Anchors and their candidates",
            caption=store_caption(manifest),
        )
        if network is not None:
            report["encoder"] = network.name
            report |= _encoder_report(network, array, anchors, candidates, rows, out)
        if inception is not None:
            report["fid"] = inception(first_candidates(store))
        if denoiser is not None:
            given = array.targets if condition is None else load_condition(condition, array)
            unet, config, autoencoder = denoiser_of(manifest, denoiser, given)
            some = [rows[i] for i in spread_rows(_REDRAWN, len(rows))]
            draw = draw_like(manifest, unet, config, array, some, given, autoencoder)
            report |= denoiser_report(draw, unet, array.images[some], manifest.w, network, out)
            own = given if is_conditional(unet) else None
            report["middle"] = middle_report(
                unet, config, array, rows, own, out / "middle.png", autoencoder
            )
        for name, part in _PICTURES.items():
            if not report.get(part):
                (out / name).unlink(missing_ok=True)  # left by an earlier report
        write_text(out / "report.json", json.dumps(report, indent=2))
        return report


def _encoder_report(
    encoder: Encoder,
    array: ImageArray,
    anchors: torch.Tensor,
    candidates: torch.Tensor,
    rows: Sequence[int],
    out: Path,
) -> dict[str, Any]:
    pairs = pair_similarities(encoder, anchors, candidates)
    similarity_histogram(
        pairs,
        out / "similarity.png",
        title="Feature similarity of positive pairs",
        caption=f"features of {encoder.name}, {len(rows)} anchors",
    )
    found: dict[str, Any] = {
        "similarity": {
            name: {"mean": float(values.mean()), "std": float(values.std(ddof=1))}
            for name, values in pairs.items()
        },
    }
    found["features"] = _feature_hardness(encoder, anchors, candidates)
    rest = torch.from_numpy(np.setdiff1d(np.arange(len(array)), rows))
    if len(rest) < 2:
        return found  # too few other images to compare with
    distance = frechet_from(encoder, (array.images[part] for part in rest.split(_AT_ONCE)))
    found["frechet"] = {
        "candidates": distance(candidates[:, 0]),
        "anchors": distance(anchors),
        "images": len(rest),
    }
    if bool((array.targets >= 0).all()):
        found["agreement"] = label_agreement(encoder, array, candidates, rows)
    return found
