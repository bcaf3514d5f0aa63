import contextlib
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clsp_plugin
from clsp_plugin.errors import ClspError
from clsp_plugin.figures.groups import group
from clsp_plugin.records import environment as environments
from clsp_plugin.records import record as records
from clsp_plugin.records.environment import environment
from clsp_plugin.records.numerics import numerics_of
from clsp_plugin.records.record import (
    Record,
    add_evaluation,
    evaluated_on,
    find_records,
    read_index,
)
from clsp_plugin.tables.make import make_table


def make_record(**changes):
    fields = {
        "method": "clsp_simclr",
        "dataset": "digits",
        "backbone": "resnet18",
        "epochs": 3,
        "seed": 5,
        "num_train": 2000,
        "checkpoint": "last.ckpt",
        "curve": [{"epoch": 1, "train_loss": 0.1 + 0.2}],
        "timings": {"train_seconds": 1.5},
        "hardware": {"cpu": "prozessor ½", "cores": 2, "gpu": None, "memory_gib": 3.8},
        "versions": {"python": "3.11", "clsp_plugin": "0.1.0"},
        "commit": "a" * 40,
        "config": {"optimizer": {"lr": 0.5}, "crops": [1, 2]},
    }
    return Record(**fields | changes)


def evaluation(top1=50.0, **changes):
    name = {"task": "knn", "protocol": "strict", "dataset": "digits", "epoch": 3}
    return {**name, "top1": top1, **changes}


def rewrite(path, **changes):
    """Edit a record as a person would; None removes a field."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_a_record_comes_back_as_it_was(tmp_path):
    record = make_record(evaluations=[evaluation()])
    record.save(tmp_path / "runs" / "record.json")
    assert len(record.digest) == 64
    assert Record.load(tmp_path / "runs" / "record.json") == record


def test_layout_does_not_count_but_every_value_does(tmp_path):
    path = tmp_path / "record.json"
    make_record(evaluations=[evaluation(50.0)]).save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert Record.load(path).seed == 5
    content["evaluations"][0]["top1"] = 60.0
    path.write_text(json.dumps(content))
    with pytest.raises(ClspError, match="edited by hand"):
        Record.load(path)


@pytest.mark.parametrize("field", ["seed", "epochs", "curve", "config", "commit", "digest"])
def test_edited_fields_are_detected(tmp_path, field):
    path = tmp_path / "record.json"
    make_record().save(path)
    rewrite(path, **{field: "x"})
    with pytest.raises(ClspError, match="edited by hand"):
        Record.load(path)


def test_values_of_torch_and_numpy_and_numbers_that_are_not_finite(tmp_path):
    curve = [{"epoch": np.int64(1), "train_loss": torch.tensor(0.25), "val_acc1": float("nan")}]
    record = make_record(curve=curve, config={"out": tmp_path, "sizes": (1, 2), 3: np.inf})
    record.save(tmp_path / "record.json")
    assert "NaN" not in (tmp_path / "record.json").read_text()
    loaded = Record.load(tmp_path / "record.json")
    assert loaded.curve == [{"epoch": 1, "train_loss": 0.25, "val_acc1": None}]
    assert loaded.config == {"out": str(tmp_path), "sizes": [1, 2], "3": None}
    assert loaded.digest == record.digest


def test_other_formats_are_refused(tmp_path):
    path = tmp_path / "record.json"
    make_record(format=2).save(path)
    with pytest.raises(ClspError, match=r"has format 2 .* \(clsp-plugin 0\.1\.0\)"):
        Record.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '["format"]', "{}", "\xff", '{"format": 1}'])
def test_what_is_not_a_record(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ClspError, match=str(path)):
        Record.load(path)


def test_fields_of_another_version(tmp_path):
    path = tmp_path / "record.json"
    make_record().save(path)
    content = json.loads(path.read_text())
    del content["timings"]
    content["digest"] = records._digest(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ClspError, match="differs in the fields timings"):
        Record.load(path)


def test_a_record_that_is_absent(tmp_path):
    with pytest.raises(ClspError, match="not a readable record"):
        Record.load(tmp_path / "record.json")


def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    make_record().save(path)

    def fail(handle):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        make_record(seed=6).save(path)
    assert Record.load(path).seed == 5
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_an_evaluation_replaces_its_like_and_keeps_the_others(tmp_path):
    path = tmp_path / "record.json"
    others = [
        evaluation(1.0, task="linear"),
        evaluation(2.0, protocol="paper"),
        evaluation(3.0, dataset="cifar10"),
        evaluation(4.0, epoch=2),
    ]
    make_record(evaluations=[evaluation(0.0), *others]).save(path)
    returned = add_evaluation(path, evaluation(9.0))
    loaded = Record.load(path)
    assert loaded == returned
    assert [e["top1"] for e in loaded.evaluations] == [1.0, 2.0, 3.0, 4.0, 9.0]
    assert loaded.evaluations[-1]["numerics"] == numerics_of("knn", "digits")
    assert loaded.curve == make_record().curve


def of_images(name, part="", **changes):
    images = {"train": name, "test": "t", "size": 8, "part": part}
    return evaluation(**{"num_train": 4, "num_test": 2, "images": images, **changes})


def test_evaluations_of_other_images_stay_and_can_be_told_apart(tmp_path):
    path = tmp_path / "record.json"
    make_record().save(path)
    half, all_of_it = of_images("half", "data.fraction=0.5"), of_images("all")
    for made in (half, all_of_it, of_images("other content"), of_images("all", top1=60.0)):
        add_evaluation(path, made)
    found = {evaluated_on(e): e for e in Record.load(path).evaluations}
    assert len(found) == 3
    assert found["digits [data.fraction=0.5]"]["top1"] == 50.0
    assert found["digits"]["top1"] == 60.0  # made again
    (other,) = (on for on in found if "images " in on)
    add_evaluation(path, of_images("other content", top1=70.0))  # keeps its name
    again = {evaluated_on(e): e["top1"] for e in Record.load(path).evaluations}
    assert again.keys() == found.keys()
    assert again[other] == 70.0


def test_an_evaluation_that_does_not_say_its_images_is_told_by_their_number(tmp_path):
    path = tmp_path / "record.json"
    old = [evaluation(num_train=4, num_test=2), evaluation(num_train=9, num_test=2)]
    make_record(evaluations=old).save(path)
    add_evaluation(path, of_images("all"))
    assert [e["num_train"] for e in Record.load(path).evaluations] == [9, 4]


def _add(arguments):
    path, epoch = arguments
    add_evaluation(path, evaluation(epoch=epoch))


def test_evaluations_that_end_together_are_all_kept(tmp_path):
    path = tmp_path / "record.json"
    make_record().save(path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(_add, [(path, epoch) for epoch in range(24)]))
    assert sorted(e["epoch"] for e in Record.load(path).evaluations) == list(range(24))


def test_an_edited_record_takes_no_evaluation(tmp_path):
    path = tmp_path / "record.json"
    make_record().save(path)
    rewrite(path, seed=7)
    with pytest.raises(ClspError, match="edited by hand"):
        add_evaluation(path, evaluation())


def test_find_records_in_files_and_directories(tmp_path):
    for place in ("b/deep/er", "a"):
        make_record(dataset=place).save(tmp_path / place / "record.json")
    make_record(dataset="c").save(tmp_path / "other.json")
    found = find_records([tmp_path / "other.json", tmp_path, tmp_path / "b" / ".." / "a"])
    assert [record.dataset for _, record in found] == ["c", "a", "b/deep/er"]
    assert found[1][0] == tmp_path / "a" / "record.json"


def test_find_records_finds_none(tmp_path):
    with pytest.raises(ClspError, match=rf"no record\.json under {tmp_path}"):
        find_records([tmp_path])
    with pytest.raises(ClspError, match="does not exist"):
        find_records([tmp_path / "absent"])


def test_environment():
    assert environment()["versions"]["numerics"] is None
    out = environment("simclr", "digits")
    assert out["versions"]["numerics"] == numerics_of("pretrain", "digits", "simclr")
    assert set(out) == {"hardware", "versions", "commit", "source"}
    assert out["source"] is None
    assert out["versions"]["clsp_plugin"] == clsp_plugin.__version__
    assert out["versions"]["torch"] == torch.__version__
    assert set(out["versions"]) == {
        "python", "torch", "lightning", "timm", "diffusers", "clsp_plugin", "numerics",
    }  # fmt: skip
    hardware = out["hardware"]
    assert hardware["cpu"]
    assert hardware["cores"] == len(os.sched_getaffinity(0))
    assert hardware["memory_gib"] > 0.1
    assert (hardware["gpu"] is None) == (not torch.cuda.is_available())
    make_record(**out)


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=clean).stdout


@pytest.fixture
def checkout(tmp_path):
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / "notes.md").write_text("")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    return package


def test_commit_of_a_checkout(checkout, monkeypatch, tmp_path):
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert environments._commit(checkout) == head
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as inside a hook
    assert environments._commit(checkout) == head


@pytest.mark.parametrize("file", ["__init__.py", "new.py"])
def test_a_changed_package_is_dirty(checkout, file):
    (checkout / file).write_text("x = 1\n")
    assert environments._commit(checkout) == git(checkout, "rev-parse", "HEAD").strip() + "-dirty"


def test_changes_beside_the_package_are_not(checkout):
    (checkout.parent / "notes.md").write_text("more")
    assert not environments._commit(checkout).endswith("-dirty")


def test_a_package_installed_inside_another_checkout_has_no_commit(checkout):
    installed = checkout.parent / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert environments._commit(installed) is None


def test_outside_a_checkout_or_without_git_there_is_no_commit(checkout, tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "__init__.py").write_text("")
    assert environments._commit(tmp_path / "plain") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environments._commit(checkout) is None
    assert environments._cpu_model()


def test_versions_of_what_is_not_installed():
    assert environments._version("no-such-distribution-here") is None


def test_a_record_from_before_a_field_was_added_is_still_read(tmp_path):
    path = tmp_path / "record.json"
    make_record().save(path)
    content = json.loads(path.read_text())
    del content["candidates"]
    content["digest"] = records._digest(content)
    path.write_text(json.dumps(content))
    assert Record.load(path).candidates is None


def written(folder, content):
    """A record of any content, with a digest that matches."""
    content = {**content, "digest": records._digest(content)}
    (folder / "record.json").write_text(json.dumps(content))
    return folder / "record.json"


def whole():
    manifest = {"num_images": 9, "num_candidates": 2, "dataset": "digits/train", "denoiser": "d",
                "w": 0.1, "sampler": "ddim", "steps": 2, "eta": 1.0, "seed": 0}  # fmt: skip
    source = {"config": "digits/simclr", "overrides": ["seed=1"], "settings": "a"}
    one = evaluation(chosen={"k": 5}, settings={"seed": 5}, source=source, code="c")
    synthetic = {"path": "x", "num_candidates": None, "weight": 1.0}
    config = {"data": {"dataset": "digits"}, "optimizer": {"batch_size": 64}, "devices": 1}
    record = make_record(evaluations=[one], candidates=manifest, source=source)
    return json.loads(json.dumps({**vars(record), "config": {**config, "synthetic": synthetic}}))


def places(content, place=()):
    """Every place in nested JSON."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS)


@settings(max_examples=60, deadline=None)
@given(place=st.sampled_from(list(places(whole()))), value=VALUES)
def test_a_value_of_any_type_anywhere_is_a_table_or_a_sentence(tmp_path_factory, place, value):
    content = whole()
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = written(tmp_path_factory.mktemp("any"), content)
    with contextlib.suppress(ClspError):
        found = find_records([path])
        for layout in ("markdown", "csv", "html", "latex"):
            make_table(found).render(layout, path.parent)
        group(found)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("evaluations", [1], r"evaluations\.0=1"),
        ("evaluations", [{"task": "knn"}], r"evaluations\.0\.protocol.*required"),
        ("evaluations", [evaluation("50")], r"evaluations\.0\.top1='50'"),
        ("evaluations", [evaluation(metric="mean_class")], "mean_class should be its result"),
        ("config", None, "config=None"),
        ("config", {"optimizer": 5}, r"config\.optimizer=5"),
        ("curve", [{"train_loss": 1.0}], "epoch should be"),
        ("timings", {"train_seconds": "x"}, r"timings\.train_seconds='x'"),
        ("candidates", {"w": 1}, r"candidates\."),
        ("source", "x", "source='x'"),
        ("seed", True, "seed=True"),
    ],
)
def test_a_field_of_another_type_is_named_with_the_file(tmp_path, place, value, told):
    path = written(tmp_path, {**whole(), place: value})
    with pytest.raises(ClspError, match=f"{path} is not a record: it has .*{told}"):
        Record.load(path)


def test_what_later_versions_add_is_let_through(tmp_path):
    content = whole()
    content["evaluations"][0] |= {"later": "f", "classes": ["a"]}
    content["candidates"] |= {"digests": ["a"]}
    content["hardware"]["nodes"] = 2
    assert Record.load(written(tmp_path, content)).evaluations[0]["classes"] == ["a"]


def test_nested_too_deeply(tmp_path):
    path = tmp_path / "record.json"
    nested = '{"format": 1, "a": ' + "[" * 900 + "]" * 900 + "}"
    for text in ("[" * 100_000, '{"format":' * 100_000, nested):
        path.write_text(text)
        with pytest.raises(ClspError, match="record"):
            Record.load(path)


def test_what_may_not_be_read_is_no_damage(tmp_path):
    (tmp_path / "record.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        Record.load(tmp_path / "record.json")


def test_folders_that_may_not_be_read_are_told(tmp_path, monkeypatch):
    make_record().save(tmp_path / "a" / "record.json")
    (tmp_path / "b").mkdir()
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError):
        find_records([tmp_path])


def test_first_evaluations_that_end_at_once_make_one_record(tmp_path):
    path = tmp_path / "record.json"
    made = []

    def make():
        made.append(1)
        time.sleep(0.05)
        return make_record(num_train=None)

    def add(number):
        add_evaluation(path, evaluation(1.0, epoch=number), make, 9 if number == 3 else None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert made == [1]
    record = Record.load(path)
    assert sorted(e["epoch"] for e in record.evaluations) == list(range(8))
    assert record.num_train == 9


def test_half_a_surrogate_is_no_text(tmp_path):
    with pytest.raises(ClspError, match="invalid JSON"):
        Record.load(written(tmp_path, {**whole(), "method": "\ud800"}))


@pytest.mark.parametrize(
    "content",
    [
        {"by": [], "records": [{"path": 5}]}, {"by": "x", "records": []}, {"records": []},
        {"by": [], "records": [], "failed": [{"method": 5}]}, [], {"by": [], "records": [5]},
    ],
)  # fmt: skip
def test_an_index_of_other_types_is_told(tmp_path, content):
    (tmp_path / "records.json").write_text(json.dumps(content))
    with pytest.raises(ClspError, match=r"records\.json is not the index of a suite"):
        read_index(tmp_path)
