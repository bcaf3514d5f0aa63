"""Configurations: solo-learn's keys and rules, and what is refused."""

import pytest
from omegaconf import OmegaConf

from clsp_plugin.config.compose import compose
from clsp_plugin.config.shipped import shipped
from clsp_plugin.config.training import Data, parse_cfg, trainer_kwargs
from clsp_plugin.config.typed import typed
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.settings import Linear
from clsp_plugin.methods import METHODS
from clsp_plugin.suites.suite import Suite


def test_rates_are_scaled_by_images_a_step_as_solo_learn_does(tiny):
    cfg = tiny("simclr", "optimizer.scale_lr=True", "optimizer.lr=0.4",
               "optimizer.classifier_lr=0.1", "optimizer.batch_size=64", "devices=[0,1]",
               "num_nodes=2", "accumulate_grad_batches=3")  # fmt: skip
    parsed = parse_cfg(cfg, METHODS)
    assert parsed.optimizer.lr == pytest.approx(0.4 * 64 * 2 * 2 / 256 * 3)
    assert parsed.optimizer.classifier_lr == pytest.approx(0.1 * 64 * 2 * 2 / 256 * 3)
    cfg.optimizer.scale_lr = False
    assert parse_cfg(cfg, METHODS).optimizer.lr == 0.4


def test_solo_learn_s_rule_holds_where_nothing_is_said(tiny):
    cfg = tiny("simclr", "optimizer.lr=0.4", "optimizer.batch_size=64")
    del cfg.optimizer.scale_lr
    assert parse_cfg(cfg, METHODS).optimizer.lr == pytest.approx(0.1)


def test_what_was_given_is_not_changed(tiny):
    cfg = tiny("simclr", "optimizer.scale_lr=True")
    before = OmegaConf.to_yaml(cfg)
    parse_cfg(cfg, METHODS)
    assert OmegaConf.to_yaml(cfg) == before


def test_large_and_small_crops_are_counted(tiny):
    cfg = tiny("simclr")
    small = OmegaConf.merge(cfg.augmentations[0], {"crop_size": 8, "num_crops": 4})
    cfg.augmentations = [cfg.augmentations[0], small]
    parsed = parse_cfg(cfg, METHODS)
    assert (parsed.data.num_large_crops, parsed.data.num_small_crops) == (2, 4)


def test_none_as_text_is_none():
    assert typed({"dataset": "digits", "val_path": "None"}, Data).val_path is None


def test_arguments_of_the_trainer_pass_through(tiny):
    cfg = parse_cfg(tiny("simclr", "gradient_clip_val=0.5", "log_every_n_steps=2"), METHODS)
    kwargs = trainer_kwargs(cfg)
    assert kwargs["gradient_clip_val"] == 0.5
    assert kwargs["log_every_n_steps"] == 2


def test_gpu_numbers_are_processes_on_the_cpu(tiny):
    cfg = parse_cfg(tiny("simclr", "devices=[0,1]", "accelerator=cpu", "strategy=ddp"), METHODS)
    kwargs = trainer_kwargs(cfg)
    assert (kwargs["devices"], kwargs["strategy"]) == (2, "ddp")
    cfg = parse_cfg(tiny("simclr", "devices=[0]", "accelerator=cpu", "strategy=ddp"), METHODS)
    assert trainer_kwargs(cfg)["strategy"] == "auto"


def test_more_processes_than_cores_are_refused(tiny, monkeypatch):
    monkeypatch.setattr("clsp_plugin.config.training.cores", lambda: 2)
    for devices, number in (("99", 99), ("[0,1,2]", 3)):
        cfg = parse_cfg(tiny("simclr", f"devices={devices}", "accelerator=cpu"), METHODS)
        with pytest.raises(ClspError, match=f"{number} processes on the CPU, which has 2 cores"):
            trainer_kwargs(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimzer.lr=1", "optimzer is not a setting; did you mean 'optimizer'"),
        ("optimizer.larning_rate=1", "optimizer.larning_rate is not a setting"),
        ("data.fracton=1", "did you mean 'fraction'"),
        ("max_epochs=soon", "max_epochs=soon must be a whole number"),
        ("max_epochs=0", "max_epochs=0 must be at least 1"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0 must be at least 0"),
        ("method=simclrr", "did you mean 'simclr'"),
        ("data.format=h5", "set data.format=image_folder"),
        ("knn_eval.enabled=True", "run `clsp knn`"),
        ("devices=many", "devices=many is neither"),
        ("augmentations.0.num_crops=1", "make 1 large crops"),
        ("performance.compile_augmentation=maybe", "compile_augmentation must be auto, True or"),
        ("performance.compile_network=maybe", "compile_network must be auto, True or False"),
    ],
)
def test_bad_values_are_told(tiny, override, message):
    with pytest.raises(ClspError, match=message):
        parse_cfg(tiny("simclr", override), METHODS)


def test_missing_values_are_named(tiny):
    cfg = tiny("simclr")
    del cfg.optimizer.lr
    with pytest.raises(ClspError, match=r"optimizer\.lr is not set"):
        parse_cfg(cfg, METHODS)


def test_half_precision_needs_a_gpu(tiny):
    cfg = parse_cfg(tiny("simclr", "precision=16-mixed", "accelerator=cpu"), METHODS)
    with pytest.raises(ClspError, match="needs a GPU"):
        trainer_kwargs(cfg)


@pytest.mark.parametrize(
    "path",
    sorted((shipped() / "pretrain").glob("*/*.yaml")),
    ids=lambda p: f"{p.parent.name}-{p.stem}",
)
def test_shipped_configurations_are_complete(path):
    cfg = compose("pretrain", f"{path.parent.name}/{path.stem}")
    parsed = parse_cfg(OmegaConf.to_container(cfg), METHODS)
    assert f"{path.stem}_".startswith(f"{parsed.method}_")  # a variant has a longer name
    script = path.parent / f"{path.stem}.sh"
    assert script.exists() or path.stem not in ("clsp_simclr", "clsp_mocov2")
    METHODS[parsed.method].add_and_assert_specific_cfg(parsed)


@pytest.mark.parametrize(
    "path",
    sorted((shipped() / "linear").rglob("*.yaml")),
    ids=lambda p: f"{p.parent.name}-{p.stem}",
)
def test_shipped_linear_evaluations_are_complete(path):
    name = path.relative_to(shipped() / "linear").with_suffix("")
    cfg = typed(compose("linear", str(name), ["pretrained_feature_extractor=x"]), Linear)
    assert cfg.lr[0] > 0
    assert cfg.max_epochs == 100


@pytest.mark.parametrize("dataset", ["digits", "cifar", "stl10", "imagenet-100", "custom"])
@pytest.mark.parametrize("method", ["swav", "dino", "deepclusterv2"])
def test_multi_crop_is_one_setting(dataset, method):
    cfg = compose("pretrain", f"{dataset}/{method}", ["augmentations=multicrop"])
    parsed = parse_cfg(cfg, METHODS)
    assert parsed.data.num_large_crops == 2
    assert parsed.data.num_small_crops == (4 if dataset == "digits" else 6)


def test_the_authors_rates_reach_the_optimiser():
    parsed = parse_cfg(compose("pretrain", "cifar/clsp_simclr"), METHODS)
    assert (parsed.optimizer.lr, parsed.optimizer.batch_size) == (0.5, 1024)
    parsed = parse_cfg(compose("pretrain", "cifar/clsp_mocov2"), METHODS)
    assert (parsed.optimizer.lr, parsed.optimizer.batch_size) == (0.3, 512)
    assert parsed.synthetic.weight == 0.5


@pytest.mark.parametrize("key", ["crop_size", "num_crops"])
@pytest.mark.parametrize("value", [-1, 0, 16.5, "a", True, 10**9])
def test_sizes_and_numbers_of_crops_are_whole_numbers(key, value):
    cfg = compose("pretrain", "digits/simclr", [])
    cfg.augmentations[0][key] = value
    with pytest.raises(ClspError, match=f"augmentations.0.{key}"):
        parse_cfg(cfg, METHODS)


def test_a_mapping_of_lists_is_a_mapping():
    suite = typed({"title": "a", "datasets": ["digits"], "methods": ["simclr"],
                   "vary": {"synthetic.weight": [0, 1]}}, Suite)  # fmt: skip
    assert suite.vary == {"synthetic.weight": [0, 1]}
    with pytest.raises(ClspError, match="methods=simclr is not a list"):
        typed({"title": "a", "datasets": "digits", "methods": "simclr"}, Suite)
