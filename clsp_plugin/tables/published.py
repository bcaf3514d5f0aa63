"""Published numbers of the paper and of its repository, to compare ours with.

All are from D. Zeng, Y. Wu, X. Hu, X. Xu and Y. Shi, "Contrastive Learning with Synthetic
Positives", ECCV 2024, and from its authors' repository, https://github.com/dewenzeng/clsp.
Accuracies are top-1 in percent on the test images, and the k of kNN was chosen on these. In
``published/``:

==============================  ==================================================================
``linear_knn_cifar.csv``        the paper's main table: linear and kNN, ResNet-18
``ablation_candidates.csv``     the paper: linear accuracy by number of candidates
``ablation_lambda.csv``         the paper: linear accuracy by weight of the synthetic positive
``transfer_small.csv``          the paper: linear accuracy on other data sets, from CIFAR and STL-10
``transfer_imagenet100.csv``    the paper: linear accuracy on other data sets, from ImageNet-100
``authors_repository.csv``      the repository's table: linear and kNN, ResNet-18 and ResNet-50
``authors_curves.csv``          the repository's runs: linear accuracy every 100 epochs
``authors_hours.csv``           the repository's runs: wall-clock hours on four A10 GPUs
==============================  ==================================================================
"""

import csv
from dataclasses import dataclass
from importlib import resources

from clsp_plugin.errors import ClspError, nearest

__all__ = [
    "BACKBONE", "PAPER_NAMES", "TABLES", "Published", "ablation_curve", "authors_curve", "load",
    "published", "published_ablation", "published_transfer",
]  # fmt: skip

TABLES = (
    "ablation_candidates",
    "ablation_lambda",
    "authors_curves",
    "authors_hours",
    "authors_repository",
    "linear_knn_cifar",
    "transfer_imagenet100",
    "transfer_small",
)
BACKBONE = "resnet18"  # of the main table
# A method's name in this package to its row in the main table.
PAPER_NAMES = {
    "all4one": "All4One",
    "barlow_twins": "Barlow Twins",
    "byol": "BYOL",
    "cl_gan": "CL-GAN",
    "clsp_mocov2": "CLSP-MoCoV2",
    "clsp_mocov2plus": "CLSP-MoCoV2",
    "clsp_noaug": "CLSP-noaug",
    "clsp_simclr": "CLSP-SimCLR",
    "dcl": "DCL",
    "dino": "DINO",
    "mocov2_aug": "MoCoV2-aug",
    "mocov2_ft": "MoCoV2-FT",
    "mocov2plus": "MoCoV2",
    "mocov3": "MoCoV3",
    "nnclr": "NNCLR",
    "simclr": "SimCLR",
    "simclr_aug": "SimCLR-aug",
    "simclr_ft": "SimCLR-FT",
    "supcon": "SupCon",
    "swav": "SwAV",
    "vibcreg": "VIbCReg",
    "vicreg": "VICReg",
}
# A setting that the paper varies, of CLSP-SimCLR, to its table and the column of its values.
_ABLATIONS = {
    "synthetic.num_candidates": ("ablation_candidates", "num_candidates"),
    "synthetic.weight": ("ablation_lambda", "lambda"),
}
# A method's name in this package to its name in the authors' repository.
_AUTHORS_NAMES = {
    "clsp_mocov2": "moco_clsp",
    "clsp_mocov2plus": "moco_clsp",
    "clsp_simclr": "simclr_clsp",
    "mocov2_aug": "moco_aug",
    "mocov2plus": "moco",
    "simclr": "simclr",
    "simclr_aug": "simclr_aug",
}


@dataclass(frozen=True)
class Published:
    """A method's numbers in one of the paper's tables, for one data set.

    Attributes:
        name: name of the method, as the paper writes it.
        epochs: epochs of pre-training; None where the table does not say.
        linear: top-1 of the linear probe in percent, None where the paper has none.
        knn: top-1 of kNN in percent, None where the paper has none.
        transfer: linear accuracy in percent on another data set, None where the paper has none.
    """

    name: str
    epochs: int | None
    linear: float | None = None
    knn: float | None = None
    transfer: float | None = None


def load(table: str) -> list[dict[str, str]]:
    """Read one of ``TABLES``: a dict of strings per row.

    Raises:
        ClspError: ``table`` is another name.
    """
    if table not in TABLES:
        raise ClspError(f"There is no published table {table}{nearest(table, TABLES)}")
    file = resources.files("clsp_plugin.tables") / "published" / f"{table}.csv"
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def _number(text: str) -> float | None:
    return float(text) if text else None


def published(method: str, dataset: str, epochs: int | None = None) -> Published | None:
    """Return a method's numbers in the main table (ResNet-18).

    Args:
        method: a name in ``METHODS``.
        dataset: name of the data set pre-trained and evaluated on.
        epochs: epochs of the wanted training. Where the table has no such training of the method,
            its longest is taken: 1000 epochs, but 200 for DCL and 300 for CL-GAN.

    Returns:
        None for a method or data set that the table does not have.
    """
    name = PAPER_NAMES.get(method)
    rows = [row for row in load("linear_knn_cifar") if row["method"] == name]
    if not rows or f"{dataset}_linear" not in rows[0]:
        return None
    row = max(rows, key=lambda row: (int(row["epochs"]) == epochs, int(row["epochs"])))
    linear, knn = (_number(row[f"{dataset}_{task}"]) for task in ("linear", "knn"))
    return Published(row["method"], int(row["epochs"]), linear, knn)


def published_ablation(method: str, key: str, value: float, dataset: str) -> Published | None:
    """Return the linear accuracy of CLSP-SimCLR at one value of a setting that the paper varies.

    Args:
        method: a name in ``METHODS``.
        key: ``synthetic.num_candidates`` or ``synthetic.weight``.
        value: value of that setting.
        dataset: name of the data set pre-trained and evaluated on.

    Returns:
        None for a method, setting or value that the paper does not have.
    """
    curve = ablation_curve(key, dataset) if method == "clsp_simclr" else {}
    return Published("CLSP-SimCLR", 1000, curve[value]) if value in curve else None


def ablation_curve(key: str, dataset: str) -> dict[float, float]:
    """Return the linear accuracy of CLSP-SimCLR after 1000 epochs, in percent, over a setting.

    Args:
        key: ``synthetic.num_candidates`` or ``synthetic.weight``.
        dataset: name of the data set pre-trained and evaluated on.

    Returns:
        Value to accuracy; empty for a setting that the paper did not vary.
    """
    if key not in _ABLATIONS:
        return {}
    table, column = _ABLATIONS[key]
    return {float(row[column]): float(row[dataset]) for row in load(table) if dataset in row}


def authors_curve(method: str, dataset: str, backbone: str) -> dict[int, float]:
    """Return the linear accuracy in percent by epoch, of the one run in the authors' repository.

    Args:
        method: a name in ``METHODS``.
        dataset: name of the data set pre-trained and evaluated on.
        backbone: name of the backbone.

    Returns:
        Epoch to accuracy; empty for a run that they did not publish.
    """
    wanted = (_AUTHORS_NAMES.get(method), dataset, backbone)
    return {
        int(row["epoch"]): float(row["linear_top1"])
        for row in load("authors_curves")
        if (row["method"], row["dataset"], row["backbone"]) == wanted
    }


def published_transfer(method: str, dataset: str, target: str) -> Published | None:
    """Return a method's accuracy on another data set than that of the pre-training.

    Args:
        method: a name in ``METHODS``.
        dataset: name of the data set pre-trained on.
        target: name of the data set evaluated on.

    Returns:
        None where the paper has no such number.
    """
    name = PAPER_NAMES.get(method)
    table, column = ("transfer_small", f"{dataset}_to_{target}")
    if dataset == "imagenet100":
        table, column = "transfer_imagenet100", target
    for row in load(table):
        if row["method"] == name and row.get(column):
            return Published(name, None, transfer=float(row[column]))
    return None
