"""What is logged of every epoch: each number by its paper's formula, in a slow loop."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.engine.progress import History
from clsp_plugin.engine.watching import Watching, norm, rankme, uniformity
from clsp_plugin.methods import METHODS
from clsp_plugin.records.record import Record


def slow_rankme(features):
    """Garrido et al., ICML 2023, eq. 3."""
    values = torch.linalg.svd(features.double(), full_matrices=False).S
    total, entropy = sum(float(v) for v in values), 0.0
    for value in values:
        p = float(value) / total + 1e-7
        entropy -= p * math.log(p)
    return math.exp(entropy)


def slow_uniformity(features):
    """Wang and Isola, ICML 2020, as their pseudocode: pdist, t = 2."""
    x = [row / row.norm() for row in features.double()]
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    mean = sum(math.exp(-2 * float((x[i] - x[j]).square().sum())) for i, j in pairs) / len(pairs)
    return math.log(mean)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (30, 30)])
def test_the_formulas(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    assert float(rankme(features)) == pytest.approx(slow_rankme(features), rel=1e-5)
    assert float(uniformity(features)) == pytest.approx(slow_uniformity(features), rel=1e-5)


def test_cases_with_a_closed_form():
    line = torch.randn(20, 1) @ torch.ones(1, 8)
    assert float(rankme(line)) == pytest.approx(1, abs=1e-4)
    assert float(rankme(torch.eye(8) * 5)) == pytest.approx(8, abs=1e-4)
    assert float(uniformity(torch.ones(20, 8))) == pytest.approx(0, abs=1e-5)
    # e_1, .., e_8: all distances are sqrt(2)
    assert float(uniformity(torch.eye(8))) == pytest.approx(-4, abs=1e-5)
    assert float(norm([torch.full((4,), 1.5), torch.tensor(4.0)])) == 5


def test_dead_and_broken_features():
    zeros = torch.zeros(6, 4)
    assert float(rankme(zeros)) == pytest.approx(1, abs=1e-4)
    assert float(uniformity(zeros)) == pytest.approx(0, abs=1e-5)  # one point, not spread out
    assert math.isnan(rankme(torch.full((6, 4), torch.inf)))
    assert math.isnan(uniformity(torch.ones(1, 4)))


def test_the_numbers_of_an_epoch(tiny, store, monkeypatch):
    """Each equals what is computed here from the weights at the end of the epoch."""
    last = {}
    original = Watching.on_train_epoch_end

    def spy(self, trainer, module):
        val, _ = trainer.datamodule._on("val", module.device)
        with torch.no_grad():
            module.eval()
            last["out"] = module(trainer.datamodule.plain(val))
            module.train()
        last["views"] = [part.clone() for part in module.positives]
        last["weights"] = [w.detach().flatten() for w in module.parameters() if w.requires_grad]
        original(self, trainer, module)

    monkeypatch.setattr(Watching, "on_train_epoch_end", spy)
    given = (f"synthetic.path={store}", "synthetic.weight=0.4", "synthetic.warmup_epochs=4")
    finished = pretrain(tiny("clsp_simclr", "max_epochs=3", *given))
    row = Record.load(finished.record).curve[-1]
    feats, z = last["out"]["feats"], last["out"]["z"]
    assert row["val_rankme"] == pytest.approx(slow_rankme(feats), rel=1e-4)
    assert row["val_uniformity"] == pytest.approx(slow_uniformity(feats), rel=1e-4)
    for name, values in (("feats", feats), ("z", z)):
        expected = float(F.normalize(values, dim=1).std(0).mean())
        assert row[f"val_{name}_spread"] == pytest.approx(expected, rel=1e-4)
    one, two = (F.normalize(part, dim=1) for part in last["views"])
    expected = float((one - two).square().sum(1).mean())
    assert row["train_views_alignment"] == pytest.approx(expected, rel=1e-4)
    assert row["weight_norm"] == pytest.approx(float(torch.cat(last["weights"]).norm()), rel=1e-5)
    assert row["synthetic_weight"] == pytest.approx(0.4 * 2 / 4)
    assert row["grad_norm"] > 0
    assert row["lr"] == 0  # the end of the cosine
    assert row["train_alignment"] > 0


def test_at_most_so_many_images_evenly_spaced(tiny, monkeypatch):
    monkeypatch.setattr("clsp_plugin.engine.watching._MOST", 9)
    seen = []
    monkeypatch.setattr("clsp_plugin.engine.watching.rankme", lambda x: seen.append(len(x)) or 0)
    pretrain(tiny("simclr", "max_epochs=1", "data.num_val=40"))  # batches of 16, 16 and 8
    assert seen == [9]


HOOKS = ("on_train_batch_end", "on_validation_batch_end", "on_train_epoch_end")


def without_a_draw(hook):
    """The hook, which may not draw from the global generator."""

    def checked(*args, **keys):
        before = torch.get_rng_state()
        hook(*args, **keys)
        assert torch.equal(torch.get_rng_state(), before)

    return checked


def test_watching_changes_nothing(tiny, tmp_path, monkeypatch):
    """With or without it the weights are equal to the last bit, also of layers that draw."""
    extra = ("backbone.kwargs.drop_path_rate=0.5",)
    for name in HOOKS:
        monkeypatch.setattr(Watching, name, without_a_draw(getattr(Watching, name)))
    watched = pretrain(tiny("byol", *extra))
    for name in HOOKS:
        monkeypatch.setattr(Watching, name, lambda *args: None)
    alone = pretrain(tiny("byol", *extra, f"checkpoint.dir={tmp_path}/other"))
    states = [torch.load(run.checkpoint, weights_only=True) for run in (watched, alone)]
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key]), key
    files = [(run.run_dir / "metrics.csv").read_text() for run in (watched, alone)]
    assert ["val_rankme" in text for text in files] == [True, False]


@pytest.mark.parametrize("name", ["cl_gan", "dino", "swav", "deepclusterv2", "clsp_noaug"])
def test_any_method_is_watched(tiny, store, name):
    given = [f"synthetic.path={store}"] if name.startswith("clsp_") else []
    assert name in METHODS
    curve = Record.load(pretrain(tiny(name, "max_epochs=1", *given)).record).curve
    assert {"val_rankme", "val_feats_spread", "train_views_alignment", "lr"} <= curve[0].keys()


def test_a_history_has_what_was_added_to_its_epoch_alone():
    history = History()
    trainer = SimpleNamespace(callback_metrics={"loss": torch.tensor(2.0)}, current_epoch=0)
    history.on_train_epoch_start(trainer, None)
    history.add(frechet=1.5)
    history.on_train_epoch_end(trainer, None)
    trainer.current_epoch = 1
    history.on_train_epoch_start(trainer, None)
    history.on_train_epoch_end(trainer, None)
    assert history.curve == [{"epoch": 1, "frechet": 1.5, "loss": 2.0}, {"epoch": 2, "loss": 2.0}]
