"""``clsp inspect``: what a candidate store holds, and how good its candidates are.

Without an encoder: a sheet, and how near candidates are to their anchors in colour and layout.
With one, a checkpoint that the evaluation reads: the similarity of positive pairs (figure 2 of
Zeng et al., ECCV 2024), the agreement of labels, and a Frechet distance. With a denoiser: what w
does (figure 4a), and what the middle feature holds (figure 1).
"""

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import nn
from torchmetrics import Metric

from clsp_plugin.benchmark.alone import alone
from clsp_plugin.benchmark.figures import candidate_sheet, similarity_histogram, store_caption
from clsp_plugin.benchmark.hardness import hardness, looks, others
from clsp_plugin.benchmark.middle import masked_samples, masked_sheet, middle_report
from clsp_plugin.data.augmentation import AugmentationConfig, BatchAugmentation
from clsp_plugin.data.condition import condition_digest, load_condition
from clsp_plugin.data.files import write_text
from clsp_plugin.data.images import ImageArray, channel_statistics, squares
from clsp_plugin.data.random import Purpose, derive_key, keys_for
from clsp_plugin.data.store import CandidateStore, StoreManifest
from clsp_plugin.diffusion.denoiser import denoiser_hash, load_denoiser
from clsp_plugin.diffusion.interpolation import is_conditional
from clsp_plugin.diffusion.sampling import make_scheduler, sample_candidates
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.backbone import load_backbone
from clsp_plugin.evaluation.features import extract_features, input_size
from clsp_plugin.evaluation.knn import weighted_knn

__all__ = [
    "Encoder",
    "closeness",
    "first_candidates",
    "frechet_distance",
    "frechet_from",
    "inspect_store",
    "label_agreement",
    "open_store",
    "summary",
    "verify_store",
]

WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
_SHEET_ROWS = 8
_NEIGHBOURS = 20
# What is drawn beside the sheet, and the part of the report that it belongs to.
_PICTURES = {
    "similarity.png": "similarity", "weights.png": "weights", "masked.png": "masked",
    "middle.png": "middle",
}  # fmt: skip
_REDRAWN = 64  # anchors whose candidates are drawn again, under several weights


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Encoder(nn.Module):
    """A frozen backbone, on uint8 images and a GPU if there is one; its features, those of the
    evaluation, are given on the CPU.

    Args:
        path: a checkpoint or a run's directory, all that the evaluation takes.
        data: what the user says of the images, which the authors' checkpoints need.
    """

    def __init__(self, path: str | Path, data: Mapping[str, Any] | None = None):
        super().__init__()
        self.backbone, self.args, checkpoint = load_backbone(path, data)
        self.device = torch.device(_device())
        self.backbone.eval().to(self.device)
        self.mean, self.std = channel_statistics(self.args["data"], self.args.get("augmentations"))
        self.size = input_size(self.args)
        self.name = f"{self.args['method']} ({self.args['backbone']['name']}, {checkpoint.name})"
        self.num_features = self.backbone.num_features

    def pipelines(self, size: int) -> list[BatchAugmentation]:
        """The augmentations of its first two views; to so many pixels where nothing says more."""
        blocks = [
            block
            for block in self.args["augmentations"]
            for _ in range(int(block.get("num_crops", 1)))
        ]
        configs = [
            AugmentationConfig.from_cfg({"crop_size": size, **block}) for block in (blocks * 2)[:2]
        ]
        return [BatchAugmentation(config, self.mean, self.std) for config in configs]

    @torch.no_grad()
    def views(self, pipeline: BatchAugmentation, images: torch.Tensor, view: int) -> torch.Tensor:
        """Features of augmented images: uint8 (N, H, W, 3) to float32 (N, D)."""
        keys = keys_for(derive_key(0, Purpose.AUGMENTATION, 0, view), torch.arange(len(images)))
        parts = zip(images.split(256), keys.split(256), strict=True)
        return torch.cat(
            [
                self.backbone(pipeline(part.to(self.device), own.to(self.device))).float().cpu()
                for part, own in parts
            ]
        )

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images without augmentation: uint8 (N, 3, H, W) to float32 (N, D)."""
        pixels = squares(images.permute(0, 2, 3, 1).cpu(), self.size or images.shape[2])
        no_labels = torch.zeros(len(pixels), dtype=torch.int64)
        array = ImageArray(pixels, no_labels, (), self.name)
        keys = {"mean": self.mean, "std": self.std, "device": self.device}
        return extract_features(self.backbone, array, **keys, flip=False).feats[0]


def closeness(anchors: torch.Tensor, candidates: torch.Tensor) -> dict[str, dict[str, float]]:
    """How near candidates are to their anchors, and to images they were not made for.

    Each candidate is held against its own anchor and against another one, drawn at random.

    Args:
        anchors: uint8 (A, H, W, 3), A at least 2.
        candidates: uint8 (A, K, H, W, 3).

    Returns:
        For ``colour`` and ``layout``: ``own`` and ``other``, the root mean square differences in
        levels of a pixel, ``ratio`` of the two, ``closer``, the share of candidates that are
        nearer to their own anchor (0.5 is chance), and ``error``, its standard error over the
        anchors.
    """
    theirs, ours = looks(anchors), looks(candidates)
    another, out = others(len(anchors)), {}
    for name in ("colour", "layout"):
        own = (ours[name] - theirs[name][:, None]).square().mean(2)
        other = (ours[name] - theirs[name][another][:, None]).square().mean(2)
        closer = (own < other).float() + 0.5 * (own == other).float()
        distances = own.mean().sqrt().item(), other.mean().sqrt().item()
        out[name] = {
            "own": distances[0],
            "other": distances[1],
            "ratio": distances[0] / max(distances[1], 1e-9),
            "closer": closer.mean().item(),
            "error": (closer.mean(1).std() / len(anchors) ** 0.5).item(),
        }
    return out


def _hardness(anchors: torch.Tensor, candidates: torch.Tensor) -> dict[str, dict[str, float]]:
    """In colour, layout and background, see :func:`~clsp_plugin.benchmark.hardness.hardness`."""
    theirs, ours = looks(anchors), looks(candidates)
    return {name: hardness(theirs[name], ours[name]) for name in theirs}


def _feature_hardness(
    encoder: Encoder, anchors: torch.Tensor, candidates: torch.Tensor
) -> dict[str, float]:
    """The same in an encoder's features, each of length 1."""
    theirs = F.normalize(encoder(anchors.permute(0, 3, 1, 2)), dim=1)
    ours = F.normalize(encoder(candidates.flatten(0, 1).permute(0, 3, 1, 2)), dim=1)
    return hardness(theirs, ours.unflatten(0, candidates.shape[:2]))


def pair_similarities(
    encoder: Encoder, anchors: torch.Tensor, candidates: torch.Tensor
) -> dict[str, np.ndarray]:
    """Cosine similarities of the features of positive pairs, as in the paper's figure 2.

    Args:
        encoder: of the features.
        anchors: uint8 (A, H, W, 3).
        candidates: uint8 (A, K, H, W, 3); the first of each counts.

    Returns:
        float32 (A,) each: two augmented views of an image, a view and an augmented candidate,
        and a view and the candidate of another image.
    """
    first, second = encoder.pipelines(anchors.shape[1])
    view = F.normalize(encoder.views(first, anchors, 0), dim=1)
    other = F.normalize(encoder.views(second, anchors, 1), dim=1)
    third = F.normalize(encoder.views(first, candidates[:, 0], 2), dim=1)
    pairs = {
        "two augmented views": other,
        "a view and a candidate": third,
        "a view and another image's candidate": third[others(len(anchors))],
    }
    return {name: (view * features).sum(1).numpy() for name, features in pairs.items()}


def label_agreement(
    encode: Callable[[torch.Tensor], torch.Tensor],
    array: ImageArray,
    candidates: torch.Tensor,
    rows: Sequence[int],
) -> dict[str, float]:
    """Whether the nearest real images give candidates the labels of their anchors.

    Args:
        encode: uint8 (N, 3, H, W) to features (N, D).
        array: the labelled images; those that are not anchors here are the neighbours.
        candidates: uint8 (A, K, H, W, 3).
        rows: the anchors' indexes, A of them.

    Returns:
        Percent: ``candidates`` whose label by nearest neighbours is their anchor's; the same for
        the ``anchors`` themselves, which is as good as the encoder gets; and ``chance``, for
        candidates held against another anchor's label. And the number of ``neighbours``, 20 or
        as many as there are, and the standard ``error`` of ``candidates``, at most: those of an
        anchor count as one.
    """
    rest = np.setdiff1d(np.arange(len(array)), rows)
    train = encode(array.images[rest].permute(0, 3, 1, 2))
    labels, targets = array.targets[rest], array.targets[list(rows)]
    count = candidates.shape[1]
    feats = encode(candidates.flatten(0, 1).permute(0, 3, 1, 2))
    anchors = encode(array.images[list(rows)].permute(0, 3, 1, 2))

    def score(features: torch.Tensor, wanted: torch.Tensor) -> float:
        number = int(array.targets.max()) + 1
        keys = {"ks": [_NEIGHBOURS], "num_classes": number}
        return weighted_knn(train, labels, features, wanted, **keys)[_NEIGHBOURS][0]

    strangers = targets[others(len(targets))].repeat_interleave(count)
    found = {
        "candidates": score(feats, targets.repeat_interleave(count)),
        "anchors": score(anchors, targets),
        "chance": score(feats, strangers),
        "neighbours": min(_NEIGHBOURS, len(rest)),
    }
    share = found["candidates"] / 100
    return found | {"error": 100 * (share * (1 - share) / len(targets)) ** 0.5}


Images = torch.Tensor | Iterable[torch.Tensor]  # all of them, or batch after batch


def frechet_distance(feature: int | nn.Module, real: torch.Tensor, drawn: Images) -> float:
    """Frechet distance of two sets of images, see :func:`frechet_from`; drawn is (M, H, W, 3)."""
    return frechet_from(feature, real)(drawn)


def frechet_from(feature: int | nn.Module, real: torch.Tensor) -> Callable[[Images], float]:
    """Frechet distance of sets of images from one set in the features of a network.

    Args:
        feature: 2048 for the Inception network of the FID, whose weights torch-fidelity fetches,
            on a GPU if there is one; or a module with ``num_features``, uint8 (N, 3, H, W) to
            features (N, D), and then the number is no FID.
        real: uint8 (N, H, W, 3); their features are computed once, when they are needed.

    Returns:
        uint8 (M, H, W, 3), or batches of them, to their distance from them.

    Raises:
        ClspError: torch-fidelity or its weights are not there.
    """
    metric = _frechet_metric(feature)

    def update(images: Images, is_real: bool) -> None:
        for part in images.split(256) if isinstance(images, torch.Tensor) else images:
            metric.update(part.permute(0, 3, 1, 2).to(metric.device), real=is_real)

    def distance(drawn: Images) -> float:
        metric.reset()  # the real ones stay
        if metric.real_features_num_samples == 0:
            update(real, True)
        update(drawn, False)
        return float(metric.compute())

    return distance


def _frechet_metric(feature: int | nn.Module) -> Metric:
    from torchmetrics.image.fid import FrechetInceptionDistance

    try:
        metric = FrechetInceptionDistance(feature=feature, reset_real_features=False)
    except ModuleNotFoundError as error:
        raise ClspError(
            "The FID needs torch-fidelity: `pip install 'clsp-plugin[fid]'`, or leave the FID out "
            "and name an encoder instead."
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        file = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rsplit("/", 1)[1])
        raise ClspError(
            f"The weights of the FID's network could not be fetched or read "
            f"({str(error).splitlines()[0]}); put the file {URL_INCEPTION_V3} at {file}, or leave "
            f"the FID out and name an encoder instead."
        ) from error
    # an encoder of ours is on its device already, and its features are on the CPU
    return metric.to(_device()) if isinstance(feature, int) else metric


def first_candidates(store: CandidateStore, batch_size: int = 256) -> Iterator[torch.Tensor]:
    """The first candidate of every image that has some, in batches: uint8 (B, H, W, 3) each."""
    for indexes in torch.from_numpy(store.drawn).split(batch_size):
        yield store.gather(indexes, torch.zeros_like(indexes))


def _denoiser_of(
    manifest: StoreManifest, denoiser: str | Path, condition: torch.Tensor
) -> tuple[UNet2DModel, dict[str, Any]]:
    """The denoiser that a store was made with, and the configuration of its scheduler."""
    unet, config = load_denoiser(denoiser)
    name = denoiser_hash(unet, config)
    if name != manifest.denoiser:
        raise ClspError(
            f"{denoiser} is not the denoiser of this store ({name} instead of "
            f"{manifest.denoiser}); name that one."
        )
    if manifest.condition not in (None, condition_digest(condition)):
        raise ClspError(
            "The store was made with another condition; give --condition what `clsp generate` was "
            "given as condition=."
        )
    return unet.to(_device()), config


def _draw_like(
    manifest: StoreManifest,
    unet: UNet2DModel,
    config: dict[str, Any],
    array: ImageArray,
    rows: Sequence[int],
    condition: torch.Tensor,
) -> Callable[[float], torch.Tensor]:
    """w to the first candidate of each anchor, drawn as the store's: uint8 (A, H, W, 3)."""
    keys = {
        "seed": manifest.seed,
        "eta": manifest.eta,
        "precision": manifest.dtype,
        "guidance": manifest.guidance,
        "share_anchor": manifest.share_anchor,
        "labels": condition[rows],
        "indexes": torch.tensor(rows),
        "candidates": [0],
    }
    scheduler = make_scheduler(config, manifest.steps, manifest.clip, manifest.sampler)

    def draw(w: float) -> torch.Tensor:
        drawn = sample_candidates(unet, scheduler, array.images[rows], w=w, **keys)
        return drawn[:, 0].cpu()

    return draw


def _weight_report(
    drawn: torch.Tensor, anchors: torch.Tensor, encoder: Encoder | None
) -> list[dict[str, float]]:
    out = []
    for column, w in enumerate(WEIGHTS):
        images = drawn[:, column : column + 1]
        row = {"w": w}
        for name, found in closeness(anchors, images).items():
            row |= {f"{name}_own": found["own"], f"{name}_closer": found["closer"]}
        if encoder is not None:
            feats = [
                F.normalize(encoder(x.permute(0, 3, 1, 2)), dim=1) for x in (anchors, images[:, 0])
            ]
            row["similarity"] = (feats[0] * feats[1]).sum(1).mean().item()
        out.append(row)
    return out


def open_store(path: str | Path) -> CandidateStore:
    """A store that can be reported on, as far as it is made.

    Raises:
        ClspError: there is none, or it does not say how it was made.
    """
    if not Path(path).exists():
        raise ClspError(f"There is no candidate store at {path}; `clsp generate` makes one.")
    store = CandidateStore(path, partial=True)
    if store.manifest is None:
        raise ClspError(f"{path} has no manifest; name a store that `clsp generate` wrote.")
    return store


def verify_store(path: str | Path) -> str:
    """Read all of a store and hold it against its digests.

    Returns:
        What was found, for people.

    Raises:
        ClspError: naming the shards that changed since they were written.
    """
    store = open_store(path)
    whole, without = store.verify()
    missing = store.manifest.num_shards - whole - without
    parts = [f"{whole} of {store.manifest.num_shards} shards are as they were written"]
    if without:
        parts.append(f"{without} have no digest, being of an earlier version")
    if missing:
        parts.append(f"{missing} are still to be drawn")
    return f"{path}: {'; '.join(parts)}."


def _spread_rows(number: int, total: int) -> list[int]:
    """So many indexes, evenly spaced: class folders come one class after another."""
    return [int(row) for row in np.linspace(0, total - 1, min(number, total)).round()]


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
        path: of the store; of one in the making, what is there of it is looked at.
        array: the images that it was made for.
        out: a folder; files of an earlier report in it are replaced.
        encoder: a checkpoint: adds ``similarity.png``, the agreement of labels and
            Frechet distances in its features, from the images that are not looked at to the first
            candidates and to as many real images (which is what a perfect generator would get).
        denoiser: that of the store: adds ``weights.png``, anchors under several w; ``masked.png``,
            samples without their middle feature; and ``middle.png``, a t-SNE of middle features.
        condition: of a conditional denoiser, a file of ``clsp embed``; None for the labels.
        fid: adds the FID of the first candidates against all images.
        limit: anchors that are looked at, at most half of the images.
        data: the configuration's block of the images, for an encoder of the authors.

    Returns:
        What ``report.json`` says.

    Raises:
        ClspError: the store is incomplete or for other images, a shard that is looked at changed
            since it was written, or what was asked for is missing.
    """
    store, out = open_store(path), Path(out)
    store.check(len(array), *array.size, array.fingerprint, array.name)
    if condition is not None and denoiser is None:
        raise ClspError(f"--condition {condition} goes with --denoiser; name that too.")
    if limit < 2:
        raise ClspError(f"--limit {limit} must be at least 2: anchors are held against others.")
    inception = frechet_from(2048, array.images) if fid else None  # tells at once what it lacks
    network = None if encoder is None else Encoder(encoder, data)
    if len(store.drawn) < 2:
        raise ClspError(f"{path} has candidates of one image, and anchors are held against others.")
    number = min(limit, max(2, len(array) // 2))
    rows = store.drawn[_spread_rows(number, len(store.drawn))].tolist()
    store.verify(rows)
    anchors, candidates = array.images[rows], torch.from_numpy(store.images(rows))
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, f"writes a report to {out}"):
        report: dict[str, Any] = {
            "store": str(path),
            "manifest": vars(store.manifest),
            "drawn": len(store.drawn),
            "anchors": len(rows),
            "closeness": closeness(anchors, candidates),
            "hardness": _hardness(anchors, candidates),
        }
        sheet = _spread_rows(_SHEET_ROWS, len(rows))
        candidate_sheet(
            anchors[sheet].numpy(),
            candidates[sheet].numpy(),
            out / "sheet.png",
            title="Anchors and their candidates",
            caption=store_caption(store.manifest),
        )
        if network is not None:
            report["encoder"] = network.name
            report |= _encoder_report(network, array, anchors, candidates, rows, out)
        if inception is not None:
            report["fid"] = inception(first_candidates(store))
        if denoiser is not None:
            told = array.targets if condition is None else load_condition(condition, array)
            unet, config = _denoiser_of(store.manifest, denoiser, told)
            some = [rows[i] for i in _spread_rows(_REDRAWN, len(rows))]
            draw = _draw_like(store.manifest, unet, config, array, some, told)
            report |= _denoiser_report(
                draw, unet, array.images[some], store.manifest.w, network, out
            )
            told = told if is_conditional(unet) else None
            report["middle"] = middle_report(unet, config, array, rows, told, out / "middle.png")
        for name, part in _PICTURES.items():
            if not report.get(part):
                (out / name).unlink(missing_ok=True)  # of an earlier report, which showed more
        write_text(out / "report.json", json.dumps(report, indent=2))
        return report


def _denoiser_report(
    draw: Callable[[float], torch.Tensor],
    unet: UNet2DModel,
    anchors: torch.Tensor,
    w: float,
    encoder: Encoder | None,
    out: Path,
) -> dict[str, Any]:
    """What w does, and what is left where the middle feature is masked."""
    drawn = torch.stack([draw(weight) for weight in WEIGHTS], dim=1)
    shown = _spread_rows(_SHEET_ROWS, len(anchors))
    candidate_sheet(
        anchors[shown].numpy(),
        drawn[shown].numpy(),
        out / "weights.png",
        title="One candidate under several weights of the sample's middle feature",
        caption="w = 0 is the anchor's middle feature alone, 1 an unconditional sample.",
        columns=[f"w = {weight:g}" for weight in WEIGHTS],
    )
    columns = masked_samples(unet, draw, w)
    masked_sheet(anchors[shown], columns[shown], w, out / "masked.png")
    return {
        "weights": _weight_report(drawn, anchors, encoder),
        "masked": closeness(anchors, columns[:, 2:]),
    }


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
    rest = array.images[np.setdiff1d(np.arange(len(array)), rows)]
    if len(rest) < 2:
        return found  # there is nothing to hold them against
    distance = frechet_from(encoder, rest)
    found["frechet"] = {
        "candidates": distance(candidates[:, 0]),
        "anchors": distance(anchors),
        "images": len(rest),
    }
    if bool((array.targets >= 0).all()):
        found["agreement"] = label_agreement(encoder, array, candidates, rows)
    return found


def _hard(found: Mapping[str, float]) -> str:
    text = f"{found['share']:.2f} +- {found['error']:.2f}"
    if "variety" in found:
        among = f"{found['variety']:.2f} +- {found['variety_error']:.2f}"
        text += f", among the candidates of an anchor {among}"
    return text


def summary(report: dict[str, Any]) -> str:
    """A report in lines for people."""
    lines = [f"{name:<15} {value}" for name, value in report["manifest"].items()]
    lines.append("")
    if report["drawn"] < report["manifest"]["num_images"]:
        lines.append(f"In the making: {report['drawn']} images have their candidates.")
    lines.append(f"{report['anchors']} anchors with their candidates:")
    for name, found in report["closeness"].items():
        lines.append(
            f"  {name}: differs by {found['own']:.1f} levels from its own anchor and by "
            f"{found['other']:.1f} from another; nearer to its own in "
            f"{100 * found['closer']:.1f} +- {100 * found['error']:.1f} % (chance: 50)"
        )
    lines.append("  hardness (0 a copy of the anchor, 1 an unrelated image):")
    lines += [f"    {name}: {_hard(found)}" for name, found in report["hardness"].items()]
    if "similarity" in report:
        lines.append(f"  in the features of {report['encoder']}:")
        for name, found in report["similarity"].items():
            lines.append(f"    {name}: similarity {found['mean']:.3f} +- {found['std']:.3f} (std)")
        lines.append(f"    hardness {_hard(report['features'])}")
    if "frechet" in report:
        frechet = report["frechet"]
        lines.append(
            f"    Frechet distance (no FID) {frechet['candidates']:.2f}; of as many real images "
            f"{frechet['anchors']:.2f}"
        )
    if "agreement" in report:
        agreement = report["agreement"]
        lines.append(
            f"    label by {agreement['neighbours']} nearest neighbours agrees with the anchor's "
            f"in {agreement['candidates']:.1f} +- {agreement['error']:.1f} % (real images: "
            f"{agreement['anchors']:.1f}, chance: {agreement['chance']:.1f})"
        )
    if "fid" in report:
        lines.append(f"  FID {report['fid']:.2f}")
    for row in report.get("weights", ()):
        lines.append("  " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    if "masked" in report:
        near = [f"{name} {100 * one['closer']:.1f} %" for name, one in report["masked"].items()]
        lines.append(f"  samples with the middle feature masked: nearer in {', '.join(near)}")
    if report.get("middle"):
        middle = report["middle"]
        lines.append(
            f"  middle features at step {middle['step']}: {middle['neighbours']} nearest "
            f"neighbours agree on the label in {middle['agreement']:.1f} % (the largest class has "
            f"{middle['largest_class']:.1f})"
        )
    return "\n".join(lines)
