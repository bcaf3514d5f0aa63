"""A suite is planned from what its runs are made from, and survives what happens to them."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
from omegaconf import OmegaConf

from clsp_plugin.cli import records as cli_records
from clsp_plugin.config.compose import compose
from clsp_plugin.config.shipped import shipped
from clsp_plugin.config.typed import settings_of
from clsp_plugin.diffusion.drawer import GenerationSettings
from clsp_plugin.diffusion.module import TrainingSettings
from clsp_plugin.errors import ClspError
from clsp_plugin.figures import training_curves
from clsp_plugin.figures.groups import group
from clsp_plugin.methods import METHODS
from clsp_plugin.records import numerics
from clsp_plugin.records.belonging import read_reports, reports_of_suites
from clsp_plugin.records.record import Record, find_records
from clsp_plugin.suites import bench as benching
from clsp_plugin.suites.bench import (
    Outcome,
    _write_index,
    _write_quality,
    bench,
    show_plan,
    write_results,
)
from clsp_plugin.suites.planner import make_plan
from clsp_plugin.suites.pool import Rates
from clsp_plugin.suites.suite import read_suite
from clsp_plugin.suites.unit import Unit
from clsp_plugin.suites.worker import _alone, run_unit
from clsp_plugin.system.locks import is_locked
from clsp_plugin.tables.make import listing, make_table
from clsp_plugin.tables.published import PAPER_NAMES, load

DIGITS = {
    "title": "A test",
    "datasets": {
        "digits": {
            "configs": "digits",
            "candidates": {"denoiser": "digits/denoiser", "generate": "digits/generate"},
        }
    },
    "methods": ["simclr", "clsp_simclr"],
    "seeds": [0, 1],
}


@pytest.fixture
def plan(tmp_path):
    """Plan a suite that differs from ``DIGITS`` in some keys."""

    def make(overrides=(), keep_stale=False, **changes):
        file = tmp_path / "mine.yaml"
        OmegaConf.save({**DIGITS, **changes}, file)
        return make_plan(*read_suite(file, overrides), tmp_path / "out", keep_stale)

    return make


def paths(plan):
    return [unit.path for unit in plan.units]


def test_a_plan_is_what_it_needs_before_what_needs_it(plan):
    made = plan()
    kinds = [unit.kind for unit in made.units]
    assert kinds == ["denoiser", "candidates", "run", "run", "run", "run"]
    denoiser, store, *runs = made.units
    assert store.needs == (denoiser.path,)
    for run in runs:
        assert run.needs == ((store.path,) if run.about["method"] == "clsp_simclr" else ())
    assert {(run.about["method"], run.about["seed"]) for run in runs} == {
        ("simclr", 0), ("simclr", 1), ("clsp_simclr", 0), ("clsp_simclr", 1)}  # fmt: skip
    assert [step.verb for step in runs[0].steps] == ["pretrain", "linear", "knn"]
    assert not (made.out).exists()  # planning writes nothing


def test_an_encoder_from_elsewhere_is_evaluated_on_the_images_of_the_runs(plan):
    verbs = ["linear", "transfer", "finetune"]
    changes = {"encoders": ["timm:resnet18", "vit_b_16"], "table": {"protocol": "paper"}}
    made = plan(["data.num_train=60", "transfer.dataset=dtd"], evaluate=verbs, **changes)
    unit = next(unit for unit in made.runs if unit.about["method"] == "timm:resnet18")
    linear, transfer = unit.steps  # nothing to fine-tune with
    assert linear.paths["data.num_train"] == 60
    assert linear.paths["data.image_size"] == 16
    assert linear.overrides == ("protocol=paper",)
    assert transfer.paths["datasets"] == ["dtd"]
    assert "data.num_train" not in transfer.paths
    other = plan(["data.num_train=50"], encoders=["timm:resnet18"])
    assert unit.path not in paths(other)
    assert sum(unit.about["method"] == "timm:resnet18" for unit in made.runs) == 1  # has no seeds
    with pytest.raises(ClspError, match="encoders names simclr, which is no encoder from"):
        plan(encoders=["simclr"])


SUITES = sorted(file.stem for file in (shipped() / "bench").glob("*.yaml"))


@pytest.mark.parametrize("name", SUITES)
def test_every_shipped_suite_can_be_planned_and_costs_something(name, tmp_path):
    made = make_plan(*read_suite(name), tmp_path)
    assert made.runs
    steps = [unit.steps[0] for unit in made.units if unit.kind != "quality"]
    assert all(step.cost for step in steps if not step.config.endswith("/oracle"))
    assert "training images" in show_plan(made, 1)
    # a run's place is its own, whichever suite it is of
    assert len(set(paths(made))) == len(made.units)


def test_the_paper_s_suites_hold_the_paper_s_rows():
    for dataset in ("cifar10", "cifar100"):
        made = make_plan(*read_suite(dataset), Path("out"))
        rows = {(PAPER_NAMES[r.about["method"]], r.about["budget"]["epochs"]) for r in made.runs}
        table = {(row["method"], int(row["epochs"])) for row in load("linear_knn_cifar")}
        assert rows == table
        (store,) = (unit for unit in made.units if unit.kind == "candidates")
        assert f"data.dataset={dataset}" in store.steps[0].overrides or dataset == "cifar10"
    moco = next(r for r in made.runs if r.about["method"] == "clsp_mocov2")
    assert "synthetic.weight=0.2" in moco.steps[0].overrides
    assert moco.steps[1].config == "cifar/linear"
    assert "lr=[10.0,1.0,0.1]" in moco.steps[1].overrides
    for suite, key in (("candidates", "synthetic.num_candidates"), ("lambda", "synthetic.weight")):
        made = read_suite(f"ablation_{suite}")[1]
        column = {"candidates": "num_candidates"}.get(suite, suite)
        table = [float(row[column]) for row in load(f"ablation_{suite}")]
        assert [float(value) for value in made.vary[key]] == table


def test_probes_on_imagenet_have_the_rates_of_their_files():
    own = {file.stem for file in (shipped() / "linear/imagenet-100").glob("*.yaml")} - {"linear"}
    suite = read_suite("imagenet100")[1]
    suite.methods = [*own, "byol"]
    for run in make_plan("imagenet100", suite, Path("out")).runs:
        method = run.about["method"]
        step = run.steps[1]
        file = f"imagenet-100/{method if method in own else 'linear'}"
        assert compose("linear", step.config, step.overrides).lr == compose("linear", file).lr


def test_the_suite_of_all_methods_has_them_all():
    own = {m for m in METHODS if not m.startswith("clsp_") and not m.endswith("_aug")}
    paper = {"clsp_simclr", "clsp_mocov2", "clsp_noaug", "simclr_aug", "mocov2_aug"}
    assert set(read_suite("methods")[1].methods) == own | paper


def test_the_suite_of_uses_has_each_over_four_methods():
    suite = read_suite("uses")[1]
    assert len(suite.seeds) == 5
    for base in ("simclr", "mocov2", "byol", "vicreg"):
        own = {name for name in suite.methods if name.startswith(f"{base}_")}
        uses = {"aug", "align", "replace", "multi", "quality"}
        assert own >= {f"{base}_{use}" for use in uses}
        assert (f"{base}_view" in own) == (base != "mocov2")
        for name in own & {f"{base}_{use}" for use in ("replace", "view", "multi")}:
            assert f"synthetic.use={name.rpartition('_')[2]}" in suite.only[name]
            variant = suite.variants[name]
            trained = [variant.config, *variant.overrides]
            assert {f"clsp_{base}", f"method=clsp_{base}"} & set(trained)


def test_every_method_has_a_configuration_for_every_data_set():
    methods = read_suite("methods")[1].methods
    for folder in ("digits", "cifar", "stl10", "imagenet-100"):
        there = {file.stem for file in (shipped() / "pretrain" / folder).glob("*.yaml")}
        assert not set(methods) - there, folder


def test_suites_share_what_they_have_in_common():
    cifar = set(paths(make_plan(*read_suite("cifar10"), Path("a"), artifacts=Path("shared"))))
    ablation = make_plan(*read_suite("ablation_lambda"), Path("b"), artifacts=Path("shared"))
    common = cifar & set(paths(ablation))
    # the denoiser, its candidates, and the run of three seeds at the paper's weight
    assert len(common) == 5
    assert ablation.out == Path("b")
    alone = make_plan(*read_suite("digits"), Path("a"))
    assert all(path.is_relative_to("a") for path in paths(alone))


def test_an_ablation_on_the_offline_data_set_with_other_values():
    suite = read_suite(
        "generator_quality", ["denoiser.max_epochs=[1,4]", "max_epochs=2"], ["digits"]
    )
    made = make_plan(*suite, Path("out"))
    kinds = [unit.kind for unit in made.units]
    assert kinds.count("denoiser") == kinds.count("quality") == 2
    assert kinds.count("candidates") == 2
    assert kinds.count("encoder") == 1
    assert {run.about["point"]["denoiser.max_epochs"] for run in made.runs} == {1, 4}
    assert {run.about["budget"]["epochs"] for run in made.runs} == {2}
    quality, store = made.units[-1], made.runs[-1].needs[0]
    assert quality.needs[0] == store
    assert quality.product == quality.path / "report"
    others = make_plan(*suite[:1], OmegaConf.merge(suite[1], {"seeds": [7]}), Path("out")).units
    judged = {
        (unit.path, unit.product) for unit in (*made.units, *others) if unit.kind == "quality"
    }
    assert len({path for path, _ in judged}) == len({product for _, product in judged}) == 4
    one = read_suite("ablation_lambda", ["synthetic.weight=0.5"], ["digits"])[1]
    assert list(one.vary["synthetic.weight"]) == [0.5]
    with pytest.raises(ClspError, match="no data set digts for suites; did you mean 'digits'"):
        read_suite("ablation_w", [], ["digts"])


def test_a_variant_is_a_method_run_twice(plan):
    variants = {"long": {"config": "simclr", "overrides": ["max_epochs=77"]}}
    made = plan(methods=["simclr", "long"], variants=variants, seeds=[0])
    assert [run.about["budget"]["epochs"] for run in made.runs] == [45, 77]
    assert {run.about["method"] for run in made.runs} == {"simclr"}
    # the command line has the last word
    made = plan(["max_epochs=3"], methods=["simclr", "long"], variants=variants, seeds=[0])
    assert {run.about["budget"]["epochs"] for run in made.runs} == {3}


def test_a_variant_may_have_candidates_of_its_own(plan):
    variants = {
        name: {
            "config": "clsp_simclr",
            "candidates": {"generate": "digits/oracle"},
            "overrides": [f"generate.oracle={name}"],
        }
        for name in ("class", "other")
    }
    methods = ["clsp_simclr", "class", "other"]
    made = plan(methods=methods, variants=variants, seeds=[0, 1])
    stores = [unit for unit in made.units if unit.kind == "candidates"]
    assert [len(store.needs) for store in stores] == [1, 0, 0]  # these two need no denoiser
    assert [store.label for store in stores[1:]] == [f"candidates, digits, {n}" for n in variants]
    assert stores[1].steps[0].cost is None
    drawn_from = [run.needs for run in made.runs]
    assert len(set(drawn_from)) == 3  # each from its own, whatever the seed
    assert drawn_from[:3] == drawn_from[3:] == [(store.path,) for store in stores]
    assert "digits/oracle oracle=class" in stores[1].steps[0].command
    with pytest.raises(ClspError, match="generate: oracle=klass is not known; did you mean 'clas"):
        plan(["generate.oracle=klass"], methods=methods[1:], variants=variants)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("optimizer.lr=0.3", {"run"}),
        ("data.num_train=100", {"denoiser", "candidates", "run"}),
        ("denoiser.max_epochs=3", {"denoiser", "candidates", "clsp run"}),
        ("generate.w=0.3", {"candidates", "clsp run"}),
        ("linear.max_epochs=3", set()),  # the same run, evaluated anew
        ("name=other", set()),  # a name is not what is run
        ("data.num_workers=1", set()),
    ],
)
def test_what_a_unit_is_made_from_names_it(plan, override, changed):
    before, after = plan(), plan([override])
    found = set()
    for old, new in zip(before.units, after.units, strict=True):
        if old.path != new.path:
            clsp = old.kind == "run" and old.about["method"].startswith("clsp")
            found.add("clsp run" if clsp and changed - {"run"} == changed else old.kind)
    assert found == changed
    steps = [unit.steps[-2].key for unit in (before.units[-1], after.units[-1])]
    assert (steps[0] != steps[1]) == override.startswith("linear.")


def test_other_numerics_are_another_run_unless_the_old_is_wanted(plan, monkeypatch):
    before = plan()
    for unit in before.units:
        unit.path.mkdir(parents=True)
        for step in unit.steps:
            unit.finish(step, 1.0)
    for stage in numerics.NUMERICS:
        monkeypatch.setitem(numerics.NUMERICS, stage, 2)
    assert not set(paths(plan())) & set(paths(before))
    assert paths(plan(keep_stale=True)) == paths(before)
    keys = [[step.key for step in unit.steps] for unit in before.units]
    assert [[step.key for step in unit.steps] for unit in plan(keep_stale=True).units] == keys
    assert [[step.key for step in unit.steps[1:]] for unit in plan().units[2:]] != keys[2:]
    changed = plan(["optimizer.lr=0.3"], keep_stale=True)
    assert not set(paths(changed)[2:]) & set(paths(before))  # other settings are never taken


def test_units_named_by_the_sources_that_made_them_are_taken_where_these_are_known(plan):
    for known in (False, True):
        run = plan(methods=["simclr"], seeds=[0]).units[0]
        assert run.path.name.endswith("-v1")  # nothing older was taken
        code = "46efe8be" if known else "00000000"  # of SimCLR at 1e32542, and of nothing
        older = dataclasses.replace(run, path=run.path.with_name(run.path.name[:-2] + code))
        older.path.mkdir(parents=True)
        for step in run.steps:
            key = step.key.replace("-v1", f"-{code}")  # any known one does for an evaluation
            older.finish(dataclasses.replace(step, key=key), 1.0)
    (taken,) = plan(methods=["simclr"], seeds=[0]).units
    assert taken.path == older.path
    assert [step.key for step in taken.steps] == list(older.done)
    shutil.rmtree(older.path.parent)


def test_what_is_varied_reaches_its_verb(plan):
    made = plan(
        methods=["clsp_simclr"], seeds=[0], vary={"generate.w": [0.1, 0.5], "optimizer.lr": [1, 2]}
    )
    kinds = [unit.kind for unit in made.units]
    assert kinds == ["denoiser", "candidates", "candidates", "run", "run", "run", "run"]
    assert [run.about["point"] for run in made.runs] == [
        {"generate.w": w, "optimizer.lr": lr} for w in (0.1, 0.5) for lr in (1, 2)
    ]
    assert "w=0.5" in made.units[2].steps[0].overrides
    assert "optimizer.lr=2" in made.runs[-1].steps[0].overrides
    assert made.runs[-1].needs == (made.units[2].path,)


def test_overrides_of_one_method(plan):
    made = plan(only={"clsp_simclr": ["synthetic.weight=0.7"], "digits/simclr": ["max_epochs=3"]})
    for run in made.runs:
        clsp = run.about["method"] == "clsp_simclr"
        assert ("synthetic.weight=0.7" in run.steps[0].overrides) == clsp
        assert ("max_epochs=3" in run.steps[0].overrides) == (not clsp)


def test_a_control_and_a_weight_of_zero_need_no_candidates(plan):
    assert [u.kind for u in plan(methods=["simclr_aug"], seeds=[0]).units] == ["run"]
    made = plan(["synthetic.weight=0"], methods=["clsp_simclr"], seeds=[0])
    assert [unit.kind for unit in made.units] == ["run"]


BAD = {
    "misspelt": ({"metods": ["simclr"]}, "did you mean 'methods'"),
    "no title": ({"title": "???"}, "title is not set"),
    "no methods": ({"methods": []}, "methods is empty"),
    "twice": ({"seeds": [1, 1]}, "names one twice"),
    "no such method": ({"methods": ["simclrr"]}, "simclr"),
    "verb": ({"evaluate": ["liner"]}, "did you mean 'linear'"),
    "only": ({"only": {"byol": ["seed=1"]}}, "only names byol"),
    "override": ({"overrides": ["lr"]}, "lr is not a setting"),
    "protocol": ({"table": {"protocol": "honest"}}, "protocol=honest"),
    "layout": ({"table": {"layout": "wide"}}, "table.layout=wide"),
    "block": ({"datasets": {"digits": {"config": "digits"}}}, "did you mean 'configs'"),
    "candidates": ({"datasets": {"digits": {"configs": "digits"}}}, "says for digits none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_suites_are_refused(plan, name):
    changes, message = BAD[name]
    with pytest.raises(ClspError, match=message):
        plan(**changes)


def test_quality_is_collected_from_the_reports_of_the_stores(tmp_path):
    suite = read_suite("generator_quality", ["denoiser.max_epochs=[1,4]"], ["digits"])
    made = make_plan(*suite, tmp_path)
    for number, unit in enumerate(unit for unit in made.units if unit.kind == "quality"):
        assert unit.missing
        unit.product.mkdir(parents=True)
        report = {
            "manifest": {"denoiser": "abc", "num_images": 9, "num_candidates": 2, "w": 0.1},
            "drawn": 9, "anchors": 4, "closeness": {}, "encoder": "a",
            "frechet": {"candidates": 2.5 + number, "anchors": 1.0, "images": 5},
        }  # fmt: skip
        (unit.product / "report.json").write_text(json.dumps(report))
        unit.finish(unit.steps[0], 1.0)
        assert not unit.missing
    _write_quality(made)
    assert (tmp_path / "quality.csv").read_text().splitlines() == [
        "dataset,denoiser.max_epochs,denoiser,fid,frechet",
        "digits,1,abc,,2.5",
        "digits,4,abc,,3.5",
    ]
    # `clsp figures` and `clsp report` find them by the suite's folder
    _write_index(made, {}, [])
    (first, second) = reports_of_suites([tmp_path, tmp_path])
    assert [r["frechet"]["candidates"] for r in read_reports([first, second])] == [2.5, 3.5]
    second.unlink()
    assert reports_of_suites([tmp_path, tmp_path / "runs"]) == [first]


def test_two_suites_that_share_a_unit_wait_for_each_other(plan):
    unit = plan(methods=["simclr"], seeds=[0]).units[0]
    done = Unit(unit.kind, unit.label, unit.path, ())  # nothing left to do
    unit.path.mkdir(parents=True)
    with _alone(unit.path):
        other = threading.Thread(target=run_unit, args=(done,))
        other.start()
        other.join(0.3)
        assert other.is_alive()
    other.join(10)
    assert not other.is_alive()


def test_a_launcher_that_is_not_there(tmp_path):
    with pytest.raises(ClspError, match="--launcher joblip is not known; did you mean 'joblib'"):
        bench("digits", tmp_path, launcher="joblip")
    with pytest.raises(ClspError, match="is for a launcher"):
        bench("digits", tmp_path, overrides=["hydra.launcher.n_jobs=2"])
    if find_spec("hydra_plugins.hydra_ray_launcher") is None:
        with pytest.raises(ClspError, match="pip install hydra-ray-launcher"):
            bench("digits", tmp_path, launcher="ray")
    assert not list(tmp_path.iterdir())


def test_an_unknown_suite_and_what_is_no_yaml(tmp_path):
    with pytest.raises(ClspError, match="There is no suite digts; did you mean 'digits'"):
        read_suite("digts")
    with pytest.raises(ClspError, match=r"none\.yaml cannot be read"):
        read_suite(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ClspError, match="not YAML"):
        read_suite(tmp_path / "bad.yaml")


def test_a_suite_extends_another(tmp_path):
    OmegaConf.save({**DIGITS, "only": {"simclr": ["seed=1"], "clsp_simclr": ["a=1"]}},
                   tmp_path / "base.yaml")  # fmt: skip
    OmegaConf.save({"extends": "base.yaml", "methods": ["clsp_simclr"],
                    "only": {"digits/clsp_simclr": ["b=2"]}}, tmp_path / "mine.yaml")  # fmt: skip
    name, suite = read_suite(tmp_path / "mine.yaml")
    assert (name, suite.title, suite.seeds) == ("mine", "A test", [0, 1])
    assert suite.methods == ["clsp_simclr"]
    assert suite.only == {"clsp_simclr": ["a=1"], "digits/clsp_simclr": ["b=2"]}
    assert list(suite.datasets) == ["digits"]


def test_a_suite_extends_one_that_ships():
    small, large = (read_suite(name)[1] for name in ("cifar10_small", "cifar10_gpu"))
    assert set(large.methods) - set(small.methods) == {"clsp_large"}
    assert all(large.variants[name] == small.variants[name] for name in small.variants)
    assert large.overrides == small.overrides
    assert large.title != small.title


@pytest.mark.parametrize(
    ("extends", "said"),
    [("mine.yaml", "extends itself"), ("digts", "no suite digts; did you mean"),
     ("none.yaml", r"none\.yaml cannot be read"), (["digits"], "name or the path of one suite")],
)  # fmt: skip
def test_what_no_suite_can_extend(tmp_path, extends, said):
    OmegaConf.save({**DIGITS, "extends": extends}, tmp_path / "mine.yaml")
    with pytest.raises(ClspError, match=said):
        read_suite(tmp_path / "mine.yaml")


SMALL = [
    "data.num_train=48", "data.num_val=20", "backbone.kwargs.channels=[8,8,8,8]",
    "optimizer.batch_size=16", "max_epochs=20", "scheduler.warmup_epochs=0",
    "method_kwargs.proj_hidden_dim=16", "checkpoint.frequency=1", "linear.max_epochs=2",
    "linear.lr_decay_steps=[1]", "knn.k=[1,5]",
]  # fmt: skip


def lines(out):
    """The table without the caption, whose hardware and commit may differ, and without links."""
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", (out / "table.md").read_text())
    return [line for line in text.splitlines() if line.startswith("|")]


def test_killed_and_started_again_it_ends_with_the_same_table(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    suite = {**DIGITS, "methods": ["simclr", "byol"], "seeds": [0]}
    suite["only"] = {"byol": ["resume_from_checkpoint=nowhere.ckpt"]}  # fails
    timm.models.save_for_hf(timm.create_model("test_resnet"), "elsewhere", safe_serialization=True)
    suite["encoders"] = ["elsewhere"]
    OmegaConf.save(suite, "mine.yaml")
    with pytest.raises(ClspError, match="1 of 3 runs failed"):
        bench("mine.yaml", Path("alone"), jobs=1, overrides=SMALL)
    table = lines(Path("alone"))
    names = ["| simclr", "| byol", "| timm:elsewhere"]
    assert [line.split(" | ")[0] for line in table[2:]] == names
    assert len(table[0].split("|")) == len(
        ["", "method", "n", "linear", "kNN", ""]
    )  # on the same images
    assert not Path("elsewhere/record.json").exists()  # it is the suite's
    assert "| failed | failed |" in table[3]
    assert "nowhere.ckpt" in (Path("alone") / "table.md").read_text()
    made = {file.name for file in Path("alone").iterdir()}
    assert made >= {"table.md", "table.csv", "table.tex", "table.html", "curves.png", "curves.svg"}

    command = [sys.executable, "-m", "clsp_plugin.cli", "bench", "mine.yaml", "--out", "killed",
               "--methods", "simclr", "--jobs", "1", *SMALL]  # fmt: skip
    suite_process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: list(Path("killed").glob("runs/*/simclr/*/*.ckpt")))
    finally:
        os.kill(suite_process.pid, signal.SIGKILL)
        suite_process.wait()
    (unit,) = Path("killed/runs").iterdir()
    until(lambda: not locked(unit))  # the run ends by itself
    assert not list(unit.glob("*/*/record.json"))
    # with a setting that Hydra's configuration does not list
    given = [*SMALL, "hydra.job.env_set.CLSP_TRIED=1"]
    with pytest.raises(ClspError, match="1 of 3 runs failed"):
        bench("mine.yaml", Path("killed"), launcher="basic", overrides=given)
    assert "Continuing from" in (unit / "log.txt").read_text()
    assert lines(Path("killed")) == table
    curves = [find_records([out / "runs"])[0][1].curve for out in (Path("alone"), Path("killed"))]
    assert [row["train_loss"] for row in curves[0]] == [row["train_loss"] for row in curves[1]]

    # what is done is not run again, and a record that was edited is not believed
    (record,) = Path("alone").glob("runs/*/simclr/*/record.json")
    before = record.stat().st_mtime_ns
    outcome = bench("mine.yaml", Path("alone"), methods=["simclr"], overrides=SMALL)
    assert outcome.runs[0].record == record
    assert record.stat().st_mtime_ns == before
    assert Record.load(record).evaluations
    content = json.loads(record.read_text())
    content["evaluations"][0]["top1"] = 99.0
    record.write_text(json.dumps(content))
    with pytest.raises(ClspError, match="edited by hand"):
        bench("mine.yaml", Path("alone"), methods=["simclr"], overrides=SMALL)
    with pytest.raises(ClspError, match="holds the suite mine"):
        bench("digits", Path("alone"), jobs=1)


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def locked(unit):
    return is_locked(unit / "lock")


@pytest.mark.parametrize(
    ("verb", "settings"), [("denoiser", TrainingSettings), ("generate", GenerationSettings)]
)
def test_shipped_denoisers_and_candidates_are_complete(verb, settings):
    files = sorted((shipped() / verb).glob("*/*.yaml"))
    files = [file for file in files if file.stem != "oracle"]  # which has settings of its own
    assert {file.parent.name for file in files} >= {"digits", "cifar", "stl10", "imagenet-100"}
    for file in files:
        cfg = OmegaConf.to_container(compose(verb, f"{file.parent.name}/{file.stem}"))
        data = cfg.pop("data")
        own = {field.name for field in fields(settings)}
        paths = {"out", "denoiser", "export_npy", "dry_run", "condition", "fid"}
        settings_of(settings, {key: value for key, value in cfg.items() if key not in paths - own})
        # images are those of the pre-training, by which a store is known
        name = "imagenet-100" if data["dataset"] == "imagenet100" else file.parent.name
        training = compose("pretrain", f"{name}/simclr").data
        # where whole photographs are trained on, candidates have the size of the views
        size = 224 if name in ("imagenet-100", "custom") else training.get("image_size")
        assert data.get("image_size") == size
        assert data.get("train_path") == training.get("train_path")


def test_another_evaluation_takes_the_place_of_what_was_noted(plan):
    run = plan().runs[0]
    run.path.mkdir(parents=True)
    one, other = (
        next(step for step in made.runs[0].steps if step.verb == "linear")
        for made in (plan(), plan(["linear.max_epochs=3"]))
    )
    knn = next(step for step in run.steps if step.verb == "knn")
    for step in (knn, one, other):
        run.finish(step, 1.0)
    # the record has the last of them alone, so the first is to do again
    assert set(run.done) == {knn.key, other.key}


def test_estimates_use_all_that_was_measured_there(plan):
    one, other = (plan([f"max_epochs={epochs}"]).runs[0] for epochs in (20, 40))
    for unit, seconds in ((one, 20.0), (other, 60.0)):
        unit.path.mkdir(parents=True)
        unit.finish(unit.steps[0], seconds)
    changes = ["max_epochs=10", "transfer.datasets=[pets]"]
    with_transfer = plan(changes, evaluate=["transfer"], seeds=[3])
    simclr, clsp = (
        next(run for run in with_transfer.runs if run.about["method"] == method)
        for method in ("simclr", "clsp_simclr")
    )
    rates = Rates(with_transfer.artifacts)
    # 80 s of 20 + 40 epochs, of other suites' runs
    assert rates.of(simclr.steps[0]) == pytest.approx(10 * 80 / 60)
    assert rates.of(clsp.steps[0]) == pytest.approx(10 * 80 / 60)  # as another of its folder
    assert simclr.steps[1].cost is None
    assert rates.of(simclr.steps[1]) is None
    assert "Not measured here yet: denoiser, generate, transfer." in show_plan(with_transfer, 1)
    for unit, seconds in ((one, 3.0), (other, 5.0)):
        unit.finish(simclr.steps[1], seconds)
    assert Rates(with_transfer.artifacts).of(clsp.steps[1]) == pytest.approx(4.0)


@pytest.mark.parametrize(
    "other",
    [
        "backbone.kwargs.layers=[2,2,2,2]",
        "augmentations.0.crop_size=32",
        "generate.data.image_size=32",
    ],
)
def test_another_network_or_image_size_tells_no_time(plan, other):
    made, elsewhere = plan(seeds=[0]), plan([other, "denoiser.data.image_size=32"], seeds=[1])
    for unit in made.units:
        unit.path.mkdir(parents=True)
        for step in unit.steps:
            unit.finish(step, 10.0)
    rates = Rates(made.artifacts)
    again = plan(["max_epochs=7"], seeds=[1])
    assert all(rates.of(step) for unit in again.units for step in unit.steps)
    told = {step.verb for unit in elsewhere.units for step in unit.steps if rates.of(step)}
    ours = {"pretrain", "linear", "knn"} if other.startswith("generate") else set()
    assert told == ours


def test_the_start_of_a_run_is_no_part_of_its_rate(plan):
    short = plan(["max_epochs=10"], methods=["simclr"], seeds=[0]).runs[0]
    put_record(short, 10.0)
    record = Record.load(short.record)
    record.timings = {"train_seconds": 20.0}
    record.save(short.record)
    short.finish(short.steps[0], 30.0)
    made = plan(["max_epochs=40"], methods=["simclr"], seeds=[0])
    assert Rates(made.artifacts).of(made.runs[0].steps[0]) == pytest.approx(4 * 20 + 10)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_epoch=3", "did you mean 'max_epochs'"),
        ("linear.foo=1", "foo"),
        ("max_epochs=-1", "max_epochs"),
        ("method_kwargs.temprature=1", "temprature is not a setting"),
        ("seed=5", "--seeds 5"),
        ("max_epochs=abc", "max_epochs=abc must be a whole number"),
        ("max_epochs=[1", r"no list or mapping that can be read"),
        ("data.dataset=digts", "did you mean 'digits'"),
        ("denoiser.max_epochs=abc", "denoiser: max_epochs"),
        ("denoiser.dat.seed=1", "dat is not a setting"),
        ("generate.wx=0.1", "did you mean 'w'"),
        ("generate.data.imagesize=8", "generate: data.imagesize is not a setting"),
    ],
)
def test_what_a_verb_would_refuse_is_refused_before_anything_runs(plan, override, message):
    with pytest.raises(ClspError, match=message):
        plan([override])


def test_what_has_to_be_fetched_by_hand_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Before it can be run: cars is not complete" in show_plan(
        make_plan(*read_suite("imagenet100"), tmp_path / "out"), 1
    )
    with pytest.raises(ClspError, match=r"fetch cars_train, .* put them in datasets/stanford_cars"):
        bench("imagenet100", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    others = read_suite("imagenet100", ["transfer.datasets=[pets]"])
    assert make_plan(*others, tmp_path / "out").absent == ()
    for part in ("cars_train", "cars_test", "devkit", "cars_test_annos_withlabels.mat"):
        (tmp_path / "datasets/stanford_cars" / part).mkdir(parents=True)
    assert make_plan(*read_suite("imagenet100"), tmp_path / "out").absent == ()


def test_transfer_to_no_data_set_is_refused_before_anything_runs(plan):
    with pytest.raises(ClspError, match="transfer: No data set is named"):
        plan(evaluate=["transfer"])
    with pytest.raises(ClspError, match="transfer: dataset=pet is not known; did you mean 'pets'"):
        plan(["transfer.datasets=[pet]"], evaluate=["transfer"])


def test_the_digits_keep_early_checkpoints_and_their_places():
    name, suite = read_suite("digits")
    kept = make_plan(name, suite, Path("out"))
    assert all("checkpoint.keep_prev=True" in run.steps[0].overrides for run in kept.runs)
    suite.overrides = [o for o in suite.overrides if not o.startswith("checkpoint.")]
    assert paths(make_plan(name, suite, Path("out"))) == paths(kept)


def test_runs_that_would_be_the_same_are_refused(plan):
    with pytest.raises(ClspError, match="are the same run"):
        plan(vary={"linear.max_epochs": [1, 5]})


def put_record(run, knn, candidates=None, **config):
    """What a run would leave: its record, with one number."""
    about = run.about
    folder = run.path / about["method"] / "a"
    folder.mkdir(parents=True)
    found = {"task": "knn", "protocol": "strict", "dataset": "digits", "epoch": 1, "top1": knn}
    found |= {"top5": 50.0, "num_train": 9, "num_test": 9, "settings": {}, "chosen": {"k": 5}}
    names = {key: about[key] for key in ("method", "dataset", "seed")}
    record = Record(
        **names, **about["budget"], checkpoint=None, evaluations=[found], config=config,
        candidates=candidates, curve=[{"epoch": 1, "train_loss": 1.0, "val_acc1": knn}],
    )  # fmt: skip
    record.save(folder / "record.json")


def test_variants_that_differ_in_a_recipe_are_rows(plan):
    variants = {"simclr_slow": {"config": "simclr", "overrides": ["optimizer.lr=0.01"]}}
    made = plan(methods=["simclr", "simclr_slow"], variants=variants)
    *ran, last = made.runs
    assert last.about["variant"] == "simclr_slow"
    for run in ran:
        slow = bool(run.about["variant"])
        put_record(
            run, 10.0 * (1 + slow) + run.about["seed"], optimizer={"lr": 0.01 if slow else 1}
        )
    text = write_results(made, Outcome(runs=ran, failures=[(last, "there is no room")]))
    assert "| simclr | 2 |  | 10.5 ± 0.7 |" in text
    assert "| simclr_slow | 1 | failed | 20.0 (1 failed) |" in text
    assert "Failed: simclr_slow on digits, seed 1: there is no room." in text
    (line,) = [row for row in (made.out / "table.csv").read_text().splitlines() if "slow" in row]
    assert line.startswith("simclr,simclr_slow,digits")
    # one run of two names has the method's own
    made = plan(["optimizer.lr=0.5"], methods=["simclr_slow", "simclr"], variants=variants)
    assert [run.about["variant"] for run in made.runs] == ["", ""]


def test_variants_are_named_in_figures_and_in_the_report(plan, tmp_path):
    variants = {"simclr_wd": {"config": "simclr", "overrides": ["optimizer.weight_decay=0.01"]}}
    made = plan(methods=["simclr", "simclr_wd"], variants=variants, seeds=[0])
    for run in made.runs:
        put_record(run, 10.0)
    write_results(made, Outcome(runs=list(made.runs)))
    found = find_records([made.out])
    told = listing([made.out], found)
    assert [one.name for one in group(found, told=told)] == ["simclr", "simclr_wd"]
    with pytest.raises(ClspError, match="with seed 0"):  # without their names they are one
        training_curves(found, tmp_path / "curves.png")
    pages = [made.out / "report.html", tmp_path / "report.html"]
    cli_records.report([str(made.out), "--out", str(pages[1])])
    for page in pages:
        assert "<td>simclr_wd</td>" in page.read_text()
        assert "No table" not in page.read_text()


def test_what_a_suite_varies_is_named_and_not_its_hash(plan):
    made = plan(methods=["clsp_simclr"], seeds=[0], vary={"denoiser.max_epochs": [1, 5]})
    for run in made.runs:
        epochs = run.about["point"]["denoiser.max_epochs"]
        put_record(run, 10.0 * epochs, {"denoiser": f"hash{epochs}", "w": 0.1, "dataset": "digits"})
    write_results(made, Outcome(runs=list(made.runs)))
    found = find_records([made.out])
    told = listing([made.out], found)
    names = [f"clsp_simclr, denoiser.max_epochs = {epochs}" for epochs in (1, 5)]
    assert [one.name for one in group(found, told=told)] == names
    assert len(group(found, ["candidates."], told=told)) == 1  # a line of accuracy by quality
    tables = (made.out / "report.html").read_text().partition("<h2 id=figures>")[0]
    assert "<th>denoiser.max_epochs</th>" in tables
    assert "hash" not in tables


def test_the_folder_of_a_suite_stands_for_its_records(tmp_path):
    file = tmp_path / "mine.yaml"
    vary = {"generate.w": [0.1, 0.5]}
    OmegaConf.save({**DIGITS, "methods": ["clsp_simclr"], "seeds": [0], "vary": vary}, file)
    place = tmp_path / "a"
    made = make_plan(*read_suite(file), place / "mine", artifacts=place / "artifacts")
    for number, run in enumerate(made.runs):
        put_record(run, 10.0 + number, lr=run.about["point"]["generate.w"])
    text = write_results(made, Outcome(runs=list(made.runs)))
    assert "report.html" in {path.name for path in made.out.iterdir()}
    assert not list(made.out.rglob("record.json"))
    place.rename(tmp_path / "b")
    found = find_records([tmp_path / "b/mine"])
    told = listing([tmp_path / "b/mine"], found)
    assert make_table(found, **vars(told)).to_markdown() == text
    assert [row.budget["generate.w"] for row in make_table(found, **vars(told)).rows] == [0.1, 0.5]
    shutil.rmtree(found[0][0].parent)
    with pytest.raises(ClspError, match=r"records\.json names .* which is not there any more"):
        find_records([tmp_path / "b/mine"])
    (tmp_path / "b/mine/records.json").write_text("[]")
    with pytest.raises(ClspError, match="not the index of a suite"):
        find_records([tmp_path / "b/mine"])


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_record_edited_by_hand_is_refused_before_anything_runs(tmp_path, dry_run):
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    OmegaConf.save({**DIGITS, "methods": ["simclr"]}, file)
    done = make_plan(*read_suite(file), out).runs[0]
    put_record(done, 10.0)
    done.record.write_text(done.record.read_text().replace("10.0", "99.0"))
    before = sorted(out.rglob("*"))
    with pytest.raises(ClspError, match="was edited by hand"):
        bench(str(file), out, dry_run=dry_run)
    assert sorted(out.rglob("*")) == before


def test_sheets_of_several_stores_say_what_differs(plan, monkeypatch):
    """The candidates are not drawn: what stands above a sheet is looked at."""
    made = plan(methods=["clsp_simclr"], seeds=[0], vary={"generate.w": [0.1, 0.5]})
    for unit in made.units:
        if unit.kind == "candidates":
            unit.product.mkdir(parents=True)
            (unit.product / "manifest.json").touch()
    titles = []
    monkeypatch.setattr(benching, "CandidateStore", lambda path: Store())
    monkeypatch.setattr(benching, "store_caption", lambda manifest: "")
    monkeypatch.setattr(benching, "candidate_sheet", lambda *a, **k: titles.append(k["title"]))
    for run in made.runs:
        put_record(run, 10.0)
    write_results(made, Outcome(runs=list(made.runs)))
    place = "Anchors and their candidates: digits, generate.w="
    assert titles == [f"{place}0.1", f"{place}0.5"]
    assert str(made.out / "figures") + os.sep in benching._written(made)


class Store:
    def need_manifest(self):
        return None

    def images(self, rows):
        return np.zeros((len(rows), 1, 16, 16, 3), np.uint8)


def test_numbers_that_were_measured_before_a_failure_stay(plan):
    made = plan(methods=["simclr"], seeds=[0])
    run = made.runs[0]
    put_record(run, 12.5)
    for step in run.steps:
        if step.verb != "linear":
            run.finish(step, 1.0)
    text = write_results(made, Outcome(failures=[(run, "there is no room")]))
    assert "| failed | 12.5 " in text
    assert "there is no room" in text


def test_failures_stay_with_the_folder_of_a_suite(plan, capsys, tmp_path):
    made = plan(methods=["simclr"], seeds=[0, 1], vary={"synthetic.weight": [0.2, 1.0]})
    *ran, last = made.runs
    for run in ran:
        put_record(run, 10.0, synthetic={"weight": run.about["point"]["synthetic.weight"]})
    write_results(made, Outcome(runs=ran, failures=[(last, "there is no room")]))
    capsys.readouterr()
    cli_records.table([str(made.out)])
    table = capsys.readouterr().out
    assert "| simclr | 1.0 | 1 | failed | 10.0 (1 failed) |" in table
    pages = [made.out / "report.html", tmp_path / "report.html"]
    cli_records.report([str(made.out), "--out", str(pages[1])])
    for text in (table, *(page.read_text() for page in pages)):
        assert "10.0 (1 failed)" in text
        assert "seed 1, synthetic.weight=1.0: there is no room." in text
    # evaluations by one protocol that failed are there by another
    put_record(last, 30.0, synthetic={"weight": 1.0})
    suite = made.suite.copy()
    suite.table.protocol = "paper"
    again = dataclasses.replace(made, suite=suite)
    write_results(again, Outcome(runs=ran, failures=[(last, "there is no room")]))
    capsys.readouterr()
    cli_records.table([str(made.out)])
    assert "failed" not in capsys.readouterr().out
