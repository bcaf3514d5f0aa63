"""Every method learns: seconds of training make its backbone better at classifying digits.

With their whole budget on the offline data set all methods gain more (docs/methods/learning.md,
three seeds). Here most get a ninth of it, and the methods that need more two to four ninths. There
is only one seed, so the test asks for a part of the gain only.
"""

import functools

import lightning.pytorch as pl
import pytest

from clsp_plugin.config.compose import compose
from clsp_plugin.config.training import parse_cfg
from clsp_plugin.data.images import channel_statistics, load_images
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.evaluation.features import extract_features
from clsp_plugin.evaluation.knn import weighted_knn
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.backbones import build_backbone
from clsp_plugin.methods.synthetic import SyntheticPositives
from clsp_plugin.records.backbone import load_backbone

LEARNERS = sorted(name for name in METHODS if not issubclass(METHODS[name], SyntheticPositives))
SHORT = ("data.num_train=1000", "max_epochs=10")
LONGER = ("data.num_train=1000", "max_epochs=20")
LONGEST = ("max_epochs=20",)
# these mix features from the tenth epoch on
EARLIER = ("method_kwargs.mix_start_epoch=5",)
BUDGET = {
    **dict.fromkeys(LEARNERS, SHORT),
    "simclr_ft": (*LONGER, *EARLIER),
    "mocov2_ft": (*SHORT, *EARLIER),
    "barlow_twins": LONGER,
    "all4one": ("max_epochs=12",),
    **dict.fromkeys(("byol", "nnbyol", "ressl"), LONGEST),
}
K = 20
# Percentage points. For two accuracies of 25 % on 1,000 images, two standard errors of the
# difference are 3.9.
MARGIN = 4.0


def configuration(method, *overrides):
    return compose("pretrain", f"digits/{method}", ["data.num_val=1000", "seed=0", *overrides])


def accuracy(backbone, data, mean, std):
    """Return the kNN top-1 accuracy in percent on the validation images."""
    train, val = (
        extract_features(backbone, load_images(data, split), mean=mean, std=std, flip=False)
        for split in ("train", "val")
    )
    classified = weighted_knn(train.feats[0], train.targets, val.feats[0], val.targets, ks=[K])
    return classified[K][0]


@functools.cache
def untrained(*overrides):
    """Return the accuracy of the untrained backbone, from which all methods start."""
    cfg = parse_cfg(configuration("simclr", *overrides), METHODS)
    pl.seed_everything(cfg.seed, verbose=False)
    backbone, _ = build_backbone(cfg.backbone, cfg.data.dataset)
    return accuracy(backbone, cfg.data, *channel_statistics(cfg.data, cfg.augmentations))


@pytest.mark.parametrize("method", LEARNERS)
def test_learns(method, tmp_path):
    budget = BUDGET[method]
    run = pretrain(configuration(method, *budget, f"checkpoint.dir={tmp_path}"))
    backbone, args, _ = load_backbone(run.checkpoint)
    data = args["data"]
    trained = accuracy(backbone, data, data["mean"], data["std"])
    assert trained > untrained(*budget[:2]) + MARGIN
