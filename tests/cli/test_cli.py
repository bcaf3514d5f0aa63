"""The command line as a person meets it: bad input is one sentence, exit code 2, no traceback."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from clsp_plugin.cli import records
from clsp_plugin.config.shipped import shipped
from clsp_plugin.records import stale
from clsp_plugin.records.record import Record, find_records

TINY = [
    "data.num_train=48", "data.num_val=20", "backbone.kwargs.channels=[8,8,8,8]",
    "optimizer.batch_size=16", "max_epochs=1", "auto_resume.enabled=False",
    "scheduler.warmup_epochs=0",
]  # fmt: skip
TINY_DENOISER = ["data.num_train=48", "block_out_channels=[8,8]", "max_epochs=1", "batch_size=16"]
TINY_GENERATE = ["data.num_train=48", "num_candidates=2", "steps=2", "shard_size=20"]


def the_run(root):
    (record,) = root.glob("trained_models/*/*/record.json")
    return record.parent


def test_a_verb_that_is_ended_before_it_trains_says_so(clsp, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(records, "table", lambda args: signal.raise_signal(signal.SIGTERM))
    code, _, err = clsp("table", "runs")
    assert (code, err) == (143, "clsp: stopped; the same command continues where it can.\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_memory_that_is_too_small_is_told(clsp, monkeypatch):
    monkeypatch.setattr(records, "table", lambda args: bytes(1 << 60))
    code, _, err = clsp("table", "runs")
    assert code == 2
    assert err.startswith("clsp: The memory is too small for this")


def test_help_names_every_verb_and_every_configuration(clsp):
    code, out, _ = clsp("--help")
    assert code == 0
    for verb in (
        "denoiser",
        "generate",
        "pretrain",
        "linear",
        "knn",
        "transfer",
        "finetune",
        "table",
        "demo",
        "import-denoiser",
        "inspect",
        "figures",
        "report",
    ):
        assert verb in out
        code, text, _ = clsp(verb, "--help")
        assert code == 0
        assert f"clsp {verb}" in text
    _, text, _ = clsp("pretrain", "--help")
    assert "cifar/clsp_simclr" in text
    assert "digits/byol" in text


def test_the_whole_way_by_hand(clsp, tmp_path):
    assert clsp("denoiser", *TINY_DENOISER)[0] == 0
    assert (tmp_path / "denoisers/digits/model_index.json").exists()
    code, out, _ = clsp("generate", *TINY_GENERATE, "export_npy=all.npy")
    assert code == 0
    assert np.load("all.npy").shape == (48, 2, 16, 16, 3)
    assert "already complete" in clsp("generate", *TINY_GENERATE)[1]
    code, out, err = clsp("inspect", "candidates/digits", "data.num_train=48")
    assert code == 0, err
    assert "nearer to its own in" in out
    assert (tmp_path / "candidates/digits/report/sheet.png").exists()
    assert "were made for 48 images" in clsp("inspect", "candidates/digits")[2]
    code, out, _ = clsp("generate", *TINY_GENERATE, "out=elsewhere", "dry_run=True")
    assert "96 candidates, of 48 images, in 2 steps would take about" in out
    assert not (tmp_path / "elsewhere").exists()
    for given, message in (
        ("dry_run=no", "dry_run='no' is neither True nor False"),
        ("out=", "out is not set"),
        ("data=5", "5 is not a block of settings"),
        ("denoiser=5", "There is no denoiser directory at 5"),
    ):
        code, _, err = clsp("generate", *TINY_GENERATE, given)
        assert (code, message in err) == (2, True), err
    # the images may take long to read, so what else is missing is told first
    missing = ("denoiser=none", "data.dataset=custom", "data.train_path=none")
    assert "no denoiser directory at none" in clsp("generate", *TINY_GENERATE, *missing)[2]
    assert clsp("pretrain", "--config-name", "clsp_simclr", *TINY)[0] == 0
    run = the_run(tmp_path)
    code, out, _ = clsp("linear", f"pretrained_feature_extractor={run}", "max_epochs=5",
                        "lr_decay_steps=[3]")  # fmt: skip
    assert code == 0
    assert "linear probe of clsp_simclr on digits: top-1" in out
    code, out, _ = clsp("knn", f"pretrained_feature_extractor={run}", "k=[1,5]", "protocol=paper")
    assert code == 0
    assert "paper protocol" in out
    code, out, _ = clsp("linear", "finetune=True", f"pretrained_feature_extractor={run}",
                        "max_epochs=1", "optimizer.batch_size=16")  # fmt: skip
    assert code == 0
    assert "fine-tuning of clsp_simclr on digits: top-1" in out
    ((_, record),) = find_records([tmp_path])
    assert {(e["task"], e["protocol"]) for e in record.evaluations} == {
        ("linear", "strict"), ("knn", "paper"), ("finetune", "strict")}  # fmt: skip
    code, out, _ = clsp("table", tmp_path)
    assert code == 0
    assert "clsp_simclr" in out
    assert clsp("table", tmp_path, "--format", "csv", "--out", "t.csv")[0] == 0
    assert clsp("table", tmp_path, "--format", "csv", "--out", "t.csv")[0] == 2  # never overwritten
    code, out, err = clsp("figures", "trained_models", "--out", "pictures")
    assert code == 0, err
    assert (tmp_path / "pictures/neighbours.svg").exists()
    assert "Not drawn: Accuracy against the number of candidates" in out
    assert clsp("report", "trained_models")[0] == 0
    assert clsp("report", "trained_models", "--out", "t.csv")[0] == 2


def test_a_configuration_of_the_user_s_own(clsp, tmp_path):
    text = (shipped() / "pretrain/digits/simclr.yaml").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/augmentations").mkdir()
    symmetric = (shipped() / "pretrain/digits/augmentations/symmetric.yaml").read_text()
    (tmp_path / "mine/augmentations/symmetric.yaml").write_text(symmetric)
    (tmp_path / "mine/my_simclr.yaml").write_text(text)
    code, _, err = clsp("pretrain", "--config-path", "mine", "--config-name", "my_simclr.yaml",
                        *TINY)  # fmt: skip
    assert code == 0, err
    assert json.loads((the_run(tmp_path) / "args.json").read_text())["method"] == "simclr"


def test_class_folders_of_one_s_own(clsp, tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(12):
                pixels = generator.integers(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    code, _, err = clsp("pretrain", "--config-name", "simclr", "data.dataset=custom",
                        "data.train_path=train", "data.val_path=val", "data.image_size=16",
                        *TINY)  # fmt: skip
    assert code == 0, err
    code, out, err = clsp("knn", f"pretrained_feature_extractor={the_run(tmp_path)}", "k=[3]")
    assert code == 0, err
    assert "24 test images" in out


BAD = {
    "unknown verb": (["pretrian"], "did you mean 'pretrain'"),
    "no configuration": (["pretrain"], "Name a configuration"),
    "unknown configuration": (["pretrain", "--config-name", "simclrr"], "simclr"),
    "unknown method": (["pretrain", "--config-name", "simclr", "method=simclrr"], "did you mean"),
    "misspelt key": (["pretrain", "--config-name", "simclr", "optimzer.lr=1"],
                     "did you mean 'optimizer'"),
    "not a key=value": (["pretrain", "--config-name", "simclr", "lr"], "lr"),
    "unknown group": (["pretrain", "--config-name", "simclr", "augmentations=nothing"],
                      "augmentations"),
    "missing folder": (["pretrain", "--config-name", "simclr", "data.dataset=custom",
                        "data.train_path=nowhere"], "nowhere does not exist"),
    "missing candidates": (["pretrain", "--config-name", "clsp_simclr"],
                           "clsp generate --config-name digits/generate"),
    "queue": (["pretrain", "--config-name", "mocov2plus", "optimizer.batch_size=100"],
              "queue_size=1000"),
    "no gpu": (["pretrain", "--config-name", "simclr", "accelerator=tpu"], "do not fit"),
    "denoiser key": (["denoiser", "larning_rate=1"], "larning_rate"),
    "denoiser value": (["denoiser", "lr=-1"], "lr"),
    "no denoiser": (["generate", "denoiser=nowhere"], "clsp denoiser"),
    "w": (["generate", "w=2"], "w=2"),
    "no checkpoint": (["linear", "pretrained_feature_extractor=nowhere"], "no checkpoint at"),
    "a checkpoint's name": (["knn", "pretrained_feature_extractor=a/b-ep=3.ckpt"],
                            "no checkpoint at a/b-ep=3.ckpt"),
    "checkpoint not named": (["knn"], "pretrained_feature_extractor is not set"),
    "fine-tuning of nothing": (["finetune"], "pretrained_feature_extractor is not set"),
    "no checkpoint to import": (["import-denoiser", "a.pt", "--out", "b"], "no file a.pt"),
    "no store": (["inspect", "nowhere"], "no candidate store at nowhere"),
    "unknown data set": (["transfer", "pretrained_feature_extractor=a", "datasets=[pets,flower]"],
                         "did you mean 'flowers'"),
    "no records": (["table", "."], "record"),
    "no records to draw": (["figures", ".", "--out", "pictures"], "record"),
    "no records to report": (["report", "."], "record"),
    "demo size": (["demo", "--seeds", "0"], "at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(clsp, tmp_path, name):
    args, message = BAD[name]
    code, out, err = clsp(*args)
    assert code == 2, (out, err)
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_checkpoint_of_another_architecture(clsp, tmp_path):
    clsp("pretrain", "--config-name", "simclr", *TINY)
    run = the_run(tmp_path)
    args = json.loads((run / "args.json").read_text())
    args["backbone"]["kwargs"]["channels"] = [8, 8, 8, 16]
    (run / "args.json").write_text(json.dumps(args))
    code, _, err = clsp("knn", f"pretrained_feature_extractor={run}")
    assert code == 2
    assert "was trained with other settings" in err
    (checkpoint,) = run.glob("*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    del content["clsp_plugin"]  # solo-learn's do not say what they were trained with
    torch.save(content, checkpoint)
    code, _, err = clsp("knn", f"pretrained_feature_extractor={run}")
    assert code == 2
    assert "another architecture" in err
    assert "layer4.0.bn1.bias (8,) instead of (16,)" in err
    args["backbone"]["kwargs"]["layers"] = [1, 1, 1, 2]
    args["backbone"]["kwargs"]["channels"] = [8, 8, 8, 8]
    (run / "args.json").write_text(json.dumps(args))
    assert "missing (layer4.1" in clsp("knn", f"pretrained_feature_extractor={run}")[2]


def test_truncated_checkpoint(clsp, tmp_path):
    clsp("pretrain", "--config-name", "simclr", *TINY)
    run = the_run(tmp_path)
    (checkpoint,) = run.glob("*.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    code, _, err = clsp("knn", f"pretrained_feature_extractor={run}")
    assert code == 2
    assert "not a readable checkpoint" in err
    torch.save({"weights": 1}, checkpoint)
    assert "no state_dict in it" in clsp("knn", f"pretrained_feature_extractor={run}")[2]


def test_settings_that_a_configuration_leaves_out_can_be_given(clsp, tmp_path):
    code, _, err = clsp("pretrain", "--config-name", "simclr", *TINY, "data.fraction=0.5",
                        "gradient_clip_val=1.0")  # fmt: skip
    assert code == 0, err
    ((_, record),) = find_records([tmp_path])
    assert record.num_train == 24


def test_the_help_names_every_figure(clsp):
    from clsp_plugin.figures.draw import KINDS

    _, out, _ = clsp("figures", "--help")
    told = out[out.index("Figures:") :]
    assert set(KINDS) <= set(told.replace(",", "").replace(".", "").split())


def test_a_sweep_runs_every_combination(clsp, tmp_path):
    code, _, err = clsp("pretrain", "--config-name", "simclr", "-m", *TINY, "seed=0,1",
                        "hydra.sweep.dir=.", "hydra.sweep.subdir=.")  # fmt: skip
    assert code == 0, err
    assert sorted(record.seed for _, record in find_records([tmp_path])) == [0, 1]


def test_a_configuration_that_was_changed_since_is_told(clsp, tmp_path):
    shutil.copytree(shipped() / "pretrain/digits", tmp_path / "mine")
    code, _, err = clsp("pretrain", "--config-path", "mine", "--config-name", "simclr", *TINY)
    assert code == 0, err
    record = next(tmp_path.glob("trained_models/*/*/record.json"))
    assert Record.load(record).source["config"] == "mine/simclr"
    assert clsp("knn", f"pretrained_feature_extractor={record.parent}", "k=[1,5]")[0] == 0
    assert Record.load(record).evaluations[0]["source"]["config"] == "knn"
    assert "‡" not in clsp("table", "trained_models")[1]
    file = tmp_path / "mine/simclr.yaml"
    file.write_text(file.read_text().replace("proj_output_dim: 64", "proj_output_dim: 32"))
    stale._today.cache_clear()  # of this process
    assert "(pretrain mine/simclr)" in clsp("table", "trained_models")[1]


def test_a_file_of_a_group_that_is_not_utf8_is_named(clsp, tmp_path):
    shutil.copytree(shipped() / "pretrain/digits", tmp_path / "mine")
    file = tmp_path / "mine/augmentations/latin.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes("# größer\n- crop_size: 16\n".encode("latin-1"))
    code, _, err = clsp("pretrain", "--config-path", "mine", "--config-name", "simclr",
                        "augmentations=latin.yaml", *TINY)  # fmt: skip
    assert code == 2
    assert f"{file.name} is not text in UTF-8; save it as UTF-8." in err


def test_a_place_that_cannot_be_written(clsp, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = clsp("denoiser", *TINY_DENOISER, "out=file/denoiser")
    assert code == 2
    assert "Not a directory. What was written whole is kept" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pretrain simclr", "simclr is no key=value; a configuration is named by --config-name"),
        ("pretrain -cn simclr max_epochs", "max_epochs is no key=value; write max_epochs=VALUE"),
        ("knn runs/one", "what is evaluated is named by pretrained_feature_extractor=runs/one."),
        (
            "knn --confg-name x",
            "--confg-name is no option of clsp knn; did you mean '--config-name'?",
        ),
        ("pretrain -cn clsp_simcl", "did you mean 'clsp_simclr'?"),
        ("pretrain -cn simclr seed=1.5", "seed=1.5 must be a whole number."),
        ("pretrain -cn simclr optimizer.lr=high", "optimizer.lr=high must be a number."),
        ("pretrain -cn simclr sync_batchnorm=maybe", "sync_batchnorm=maybe must be true or false."),
        ("import-candidates nowhere --out store", "There are no candidates at nowhere; name"),
    ],
)
def test_a_slip_is_told_in_the_words_that_were_typed(clsp, words, said):
    code, out, err = clsp(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("clsp: ")
    assert said in err
    assert len(err.splitlines()) == 1
