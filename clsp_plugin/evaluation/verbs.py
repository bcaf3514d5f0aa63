"""``clsp linear``, ``knn``, ``transfer`` and ``finetune``: evaluate a checkpoint and record it."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clsp_plugin.config.plain import plain
from clsp_plugin.config.training import Data, training_cfg
from clsp_plugin.config.typed import typed
from clsp_plugin.data.datasets import DOWNSTREAM
from clsp_plugin.data.downstream import Downstream, load_downstream
from clsp_plugin.data.holder import LABELLED, Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.objects import given_images
from clsp_plugin.data.splits import named_images
from clsp_plugin.errors import ClspError, nearest, short
from clsp_plugin.evaluation.encoders import Frozen, load_encoder
from clsp_plugin.evaluation.features import Features, load_labelled
from clsp_plugin.evaluation.finetune import Finetune, finetune_cfg, train_and_test
from clsp_plugin.evaluation.names import check_protocol
from clsp_plugin.evaluation.network import Network
from clsp_plugin.evaluation.protocol import evaluate_knn, evaluate_linear
from clsp_plugin.evaluation.settings import Knn, Linear, Transfer, complete
from clsp_plugin.evaluation.transfer import PAPER_TARGETS, evaluate_transfer
from clsp_plugin.records import safe_pickle as inert
from clsp_plugin.records.backbone import load_backbone
from clsp_plugin.records.checkpoint import bound, epoch_of, read_checkpoint
from clsp_plugin.records.elsewhere import is_from_elsewhere
from clsp_plugin.records.environment import environment
from clsp_plugin.records.record import (
    ELSEWHERE,
    Record,
    add_evaluation,
    check_record,
    record_path,
)
from clsp_plugin.system.processes import device_of

__all__ = [
    "check_finetune",
    "check_knn",
    "check_linear",
    "check_transfer",
    "evaluate",
    "finetune",
    "knn",
    "linear",
    "targets_of",
    "transfer",
]


def check_linear(cfg: DictConfig) -> None:
    """Refuse a configuration that :func:`linear` would refuse, whatever the checkpoint."""
    _check_rates(complete(Linear, cfg))


def check_knn(cfg: DictConfig) -> None:
    """Refuse a configuration that :func:`knn` would refuse, whatever the checkpoint."""
    complete(Knn, cfg)


def check_transfer(cfg: DictConfig) -> None:
    """Refuse a configuration that :func:`transfer` would refuse, whatever the checkpoint."""
    _downstream_names(complete(Transfer, cfg))


def check_finetune(cfg: DictConfig) -> None:
    """Refuse a configuration that :func:`finetune` would refuse, whatever the checkpoint."""
    given = plain(cfg)
    data = {"dataset": "digits", **(given.get("data") or {})}  # a stand-in for the pre-training's
    training_cfg({**given, "data": data, "pretrained_feature_extractor": "."}, Finetune)


def linear(given: DictConfig) -> dict[str, Any] | None:
    """Linear probe on frozen features; prints the score and adds it to the run's record.

    ``finetune=True``, a key of solo-learn's, runs :func:`finetune` instead.
    """
    if given.get("finetune") not in (None, False, True):
        raise ClspError(f"finetune={short(given.finetune)} must be True or False.")
    if given.get("finetune"):
        return finetune(given)
    cfg = typed(given, Linear)
    _check_rates(cfg)
    return evaluate(cfg)


def _check_rates(cfg: DictConfig) -> None:
    rates = [cfg.lr] if not OmegaConf.is_list(cfg.lr) else cfg.lr
    if not rates or not all(type(rate) in (int, float) for rate in rates):
        raise ClspError(f"lr={short(cfg.lr)} is neither a rate above 0 nor a list of some.")


def knn(given: DictConfig) -> dict[str, Any]:
    """Weighted nearest neighbours; prints the score and adds it to the run's record."""
    return evaluate(typed(given, Knn))


def finetune(given: DictConfig) -> dict[str, Any] | None:
    """Train a checkpoint's backbone and a classifier on labels; prints and records the score.

    Args:
        given: keys of :class:`~clsp_plugin.evaluation.finetune.Finetune`.

    Returns:
        The evaluation, as it stands in the record; None on every process but the first.

    Raises:
        ClspError: a checkpoint of another architecture, images without labels, divergence, ...
    """
    content = plain(given, resolve=True)
    if content.get("pretrained_feature_extractor") in (None, "???"):
        raise ClspError("pretrained_feature_extractor is not set; give a .ckpt or a run's folder.")
    if content.get("finetune") is False:
        raise ClspError("finetune=False is the linear probe: `clsp linear`.")
    own = content.get("data") or {}
    if is_from_elsewhere(content["pretrained_feature_extractor"]):
        raise ClspError(
            f"clsp finetune takes the settings of a pre-training, and "
            f"{content['pretrained_feature_extractor']} comes without one; evaluate it by "
            f"`clsp linear`, `clsp knn` or `clsp transfer`."
        )
    backbone, args, checkpoint = load_backbone(content["pretrained_feature_extractor"], own)
    check_record(record_path(checkpoint))
    cfg = finetune_cfg({**content, "pretrained_feature_extractor": str(checkpoint)}, args)
    result = train_and_test(cfg, backbone)
    if result is None:
        return None
    result = {"dataset": cfg.data.dataset, "epoch": epoch_of(checkpoint) + 1, **result}
    result["images"]["part"] = _part(cfg.data, args)
    record = record_path(checkpoint)
    own = result["dataset"] == args["data"]["dataset"] and not result["images"]["part"]
    images = _said_by(checkpoint, record, result["num_train"] if own else None)
    make = partial(_record_of, args, checkpoint, images)
    add_evaluation(record, result, make)
    print(
        f"fine-tuning of {args['method']} on {result['dataset']}: top-1 {result['top1']:.2f} %, "
        f"top-5 {result['top5']:.2f} % (after {cfg.max_epochs} epoch{'s' * (cfg.max_epochs != 1)}, "
        f"{result['num_test']} test images) -> {record}"
    )
    return result


def _score_linear(cfg: DictConfig, train: Features, test: Features) -> dict[str, Any]:
    rates = [cfg.lr] if isinstance(cfg.lr, int | float) else list(cfg.lr)
    return evaluate_linear(
        train,
        test,
        cfg.protocol,
        rates[:1] if cfg.protocol == "paper" else rates,
        epochs=cfg.max_epochs,
        milestones=tuple(cfg.lr_decay_steps),
        batch_size=cfg.batch_size,
        seed=cfg.seed,
    )


def _score_knn(cfg: DictConfig, train: Features, test: Features) -> dict[str, Any]:
    return evaluate_knn(
        train, test, cfg.protocol, tuple(cfg.k), temperature=cfg.temperature, seed=cfg.seed
    )


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score a checkpoint by a linear probe or by kNN; prints and records the score.

    Args:
        cfg: a complete :class:`Linear` or :class:`Knn` configuration.

    Returns:
        The evaluation, as it stands in the record.

    Raises:
        ClspError: a checkpoint of another architecture, images without labels, ...
    """
    check_protocol(cfg.protocol)
    device_of(cfg.device)  # before a checkpoint is read
    if not cfg.get("k", [1]):
        raise ClspError("k is an empty list; give at least one number of neighbours, as k=[20].")
    is_linear = "lr" in cfg
    encoder = load_encoder(cfg.pretrained_feature_extractor, plain(cfg.data), cfg.record_dir)
    args = encoder.args
    check_record(encoder.record)
    flip = False
    if is_linear:
        flip = _flips(args) if cfg.flip is None else cfg.flip
    network = Network(cfg, encoder)
    data, train, test = _features(cfg, network, flip)
    score: Callable = _score_linear if is_linear else _score_knn
    result = score(cfg, train[1], test[1])
    result = {"dataset": data["dataset"], "epoch": encoder.epoch, **result}
    held = train[0]
    size = network.size or (held.size[0] if isinstance(held, ImageArray) else None)
    named = {**named_images(train[0], test[0]), "size": size}
    result["images"] = {**named, "part": _part(data, args)}
    record = _note(result, encoder, _as_trained_on(result, args, train[0]))
    what = "linear probe" if is_linear else "kNN"
    chosen = ", ".join(f"{key}={value:g}" for key, value in result["chosen"].items())
    print(
        f"{what} of {args['method']} on {result['dataset']}: top-1 {result['top1']:.2f} %, "
        f"top-5 {result['top5']:.2f} % ({cfg.protocol} protocol, {chosen}, "
        f"{result['num_test']} test images) -> {record}"
    )
    return result


def _flips(args: dict[str, Any]) -> bool:
    """Whether the pre-training mirrored images; only then an evaluation does so by default."""
    blocks = args.get("augmentations") or [{}]
    return any((block.get("horizontal_flip") or {}).get("prob", 0) > 0 for block in blocks)


def _features(cfg: DictConfig, network: Network, flip: bool):
    """Return the ``data`` block, and (images, features) of the training and of the test images."""
    encoder = network.encoder
    own = {k: v for k, v in encoder.args["data"].items() if k in Data.__dataclass_fields__}
    dataset = cfg.data.get("dataset", own["dataset"])
    if dataset == ELSEWHERE:
        raise ClspError(
            f"{encoder.where} does not say which images to evaluate on; give data.dataset=NAME, "
            f"and data.train_path and data.val_path where they are."
        )
    same = dataset == own["dataset"]
    data = typed({**(own if same else {}), **plain(cfg.data)}, Data)
    train, test = load_labelled(data)
    return data, (train, network.features(train, flip)), (test, network.features(test, False))


# Settings of a ``data`` block that choose the images; with dataset=custom, folders do too.
_WHICH = (
    "fraction", "image_size", "packed", "pack_size", "pack_format", "skip_damaged", "num_train",
    "num_val", "seed", "no_labels", "image_column", "label_column",
)  # fmt: skip
_FOLDERS = ("train_path", "val_path")


def _part(data: Mapping[str, Any], args: Mapping[str, Any]) -> str:
    """Return the settings in which an evaluation's images differ from the pre-training's."""
    usual, own = Data(dataset=data["dataset"]), args["data"]
    if own["dataset"] != data["dataset"]:
        own = {}
    names = [*_WHICH, *(_FOLDERS if data["dataset"] == "custom" else ())]
    values = {name: (data[name], own.get(name, getattr(usual, name))) for name in names}
    said = [f"data.{name}={value}" for name, (value, its) in values.items() if value != its]
    # a pre-training on images that were given is of dataset=custom without a folder
    both = own.get("dataset") == "custom" and own.get("train_path") is None
    if given_images("train")[0] and not both:
        said.insert(0, "images given from Python")
    return ", ".join(said)


def _note(result: dict[str, Any], encoder: Frozen, images: int | None) -> Path:
    """Add an evaluation to the encoder's record, created if there is none; return its path.

    ``images`` is the number of images pre-trained on, as far as the evaluation can tell.
    """
    images = _said_by(encoder.checkpoint, encoder.record, images)
    make = partial(_record_of, encoder.args, encoder.checkpoint, images)
    encoder.record.parent.mkdir(parents=True, exist_ok=True)
    add_evaluation(encoder.record, result, make, images)
    return encoder.record


def _as_trained_on(result: Mapping[str, Any], args: Mapping[str, Any], train: Images) -> int | None:
    """Return the number of an evaluation's training images if they are the pre-training's."""
    same = result["dataset"] == args["data"]["dataset"] and not result["images"]["part"]
    return len(train) if same and not train.name.endswith(LABELLED) else None


def _said_by(checkpoint: Path | None, record: Path, otherwise: int | None) -> int | None:
    """Return the number of images that a checkpoint was pre-trained on, for a record without it."""
    if checkpoint is None or (record.exists() and Record.load(record).num_train is not None):
        return otherwise
    try:
        content = read_checkpoint(checkpoint, foreign=inert)
    except ClspError:  # it was replaced since its backbone was read
        return otherwise
    images = bound(content).get("images")
    count = images.get("count") if isinstance(images, dict) else None
    return count if isinstance(count, int) else otherwise


def transfer(given: DictConfig) -> list[dict[str, Any]]:
    """Linear evaluation on other data sets; prints the scores and adds them to the run's record.

    Returns:
        The evaluations, as they stand in the record.

    Raises:
        ClspError: an unknown data set, or one that is not on disk and cannot be downloaded, ...
    """
    cfg = typed(given, Transfer)
    check_protocol(cfg.protocol)
    device_of(cfg.device)
    _downstream_names(cfg)  # before a checkpoint is read
    said = {key: value for key, value in cfg.data.items() if key != "path" and value is not None}
    encoder = load_encoder(cfg.pretrained_feature_extractor, said, cfg.record_dir)
    args = encoder.args
    check_record(encoder.record)
    network = Network(cfg, encoder, cfg.data.image_size)
    size = _check_said(said, encoder, network.size)
    names = targets_of(cfg, args["data"]["dataset"])
    # all are opened first, so that a missing one is refused before anything is computed
    root, how = Path(cfg.data.path), network.prepare.resizing
    opened = [load_downstream(name, root, size, cfg.partition, how) for name in names]
    flip = cfg.protocol == "paper" and (_flips(args) if cfg.flip is None else cfg.flip)
    results = []
    for number, target in enumerate(opened, 1):
        title = f"[{number}/{len(opened)}] {target.name}"
        result = _transferred(cfg, network, target, flip, title)
        result = {"dataset": target.name, "epoch": encoder.epoch, **result}
        record = _note(result, encoder, None)
        print(_told(result, args["method"], record))
        results.append(result)
    return results


def targets_of(cfg: DictConfig, dataset: str) -> list[str]:
    """Return the data sets to transfer to.

    Args:
        cfg: a complete :class:`Transfer`.
        dataset: name of the data set pre-trained on.

    Raises:
        ClspError: a named one is unknown, or none is named and the paper has none for ``dataset``.
    """
    names = _downstream_names(cfg) or list(PAPER_TARGETS.get(dataset, ()))
    if not names:
        raise ClspError(
            f"No data set is named, and the paper has none for {dataset}; give dataset=NAME or "
            f"datasets=[NAME,..] of {', '.join(DOWNSTREAM)}."
        )
    return names


def _check_said(said: Mapping[str, Any], encoder: Frozen, size: int | None) -> int:
    """Refuse settings that the checkpoint contradicts; return the size, which must be known."""
    for key, value in said.items():
        own = encoder.args["data"].get(key)
        free = ("image_size",) if encoder.checkpoint else ("image_size", "mean", "std")
        if key not in free and value != own:
            raise ClspError(
                f"data.{key}={value} is of the pre-training, of which {encoder.where} says {own}; "
                f"leave it out, and name what to transfer to as dataset=NAME."
            )
    if size is None:
        raise ClspError(
            f"{encoder.where} does not say at which size it was pre-trained; give "
            f"data.image_size=PIXELS."
        )
    return size


def _downstream_names(cfg: DictConfig) -> list[str]:
    names = list(dict.fromkeys([*([cfg.dataset] if cfg.dataset else []), *cfg.datasets]))
    for name in names:
        if name not in DOWNSTREAM:
            raise ClspError(f"dataset={name} is not known{nearest(name, DOWNSTREAM)}")
    return names


def _transferred(
    cfg: DictConfig, network: Network, target: Downstream, flip: bool, title: str
) -> dict[str, Any]:
    """Compute the features of a data set's images and score them."""
    parts = {
        part: network.features(images, flip and part != "test", f"{title}, {part}")
        for part, images in target.parts.items()
    }
    result = evaluate_transfer(
        parts,
        target.metric,
        cfg.protocol,
        **({} if cfg.l2 is None else {"l2": list(cfg.l2)}),
        max_iter=cfg.max_iter,
        lr=cfg.lr,
        epochs=cfg.max_epochs,
        milestones=tuple(cfg.lr_decay_steps),
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        device=network.device,
        desc=title,
    )
    more = {} if target.partition is None else {"partition": target.partition}
    result["settings"] |= {"image_size": network.size, "flip": flip, **more}
    # a stream of files is not hashed, so only what was asked for identifies the images
    said = {"size": network.size, **more}
    usual = {"size": network.encoder.prepare.image_size, "partition": 1}
    apart = [f"{key}={value}" for key, value in said.items() if usual[key] not in (None, value)]
    result["images"] = {**said, "part": ", ".join(apart)}
    return result


def _told(result: Mapping[str, Any], method: str, record: Path) -> str:
    metric = result["metric"]
    what = "mean per class" if metric == "mean_class" else "top-1"
    chosen = ", ".join(f"{key}={value:.3g}" for key, value in result["chosen"].items())
    slow = "" if result.get("converged", True) else "; the solver stopped early: raise max_iter"
    return (
        f"transfer of {method} to {result['dataset']}: {what} {result[metric]:.2f} % "
        f"({result['protocol']} protocol, {chosen}, {result['num_train']} training and "
        f"{result['num_test']} test images{slow}) -> {record}"
    )


def _record_of(args: dict[str, Any], checkpoint: Path | None, num_train: int | None) -> Record:
    """Return a record for a checkpoint that came without one, such as solo-learn's."""
    return Record(
        method=args["method"],
        dataset=args["data"]["dataset"],
        backbone=args["backbone"]["name"],
        epochs=args["max_epochs"],
        seed=args.get("seed", 0),
        num_train=num_train,
        checkpoint=None if checkpoint is None else checkpoint.name,
        curve=[],
        timings={},
        config=args,
        evaluations=[],
        **environment(),
    )
