import csv
import io
import re
from pathlib import Path

import pytest

from clsp_plugin.benchmark.table import family_order, make_table
from clsp_plugin.engine.record import Record
from clsp_plugin.errors import ClspError


def evaluations(linear, knn=None, protocol="strict", dataset="digits", epoch=20):
    numbers = {"linear": linear, "knn": knn}
    return [
        {
            "task": task,
            "protocol": protocol,
            "dataset": dataset,
            "epoch": epoch,
            "top1": top1,
            "num_train": 2000,
            "num_test": 1000,
            "settings": {"batch_size": 256, "seed": number},
        }
        for number, (task, top1) in enumerate(numbers.items())
        if top1 is not None
    ]


def run(method="simclr", seed=0, found=(), **changes):
    name = f"{method}-{changes.get('dataset', 'digits')}-{seed}-{changes.get('epochs', 20)}"
    fields = {
        "dataset": "digits", "backbone": "resnet18", "epochs": 20, "num_train": 2000,
        "checkpoint": "last.ckpt", "commit": "0123456789abcdef", "evaluations": list(found),
        "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None},
        "config": {"optimizer": {"lr": 0.5}, "synthetic": {"weight": 1.0, "path": name}},
    }  # fmt: skip
    return Path(f"runs/{name}/record.json"), Record(method=method, seed=seed, **fields | changes)


def body(table):
    """The cells of a Markdown table, without the rule: headings first."""
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line
    ]


def lines(table):
    return list(csv.DictReader(io.StringIO(table.to_csv())))


SEEDS = [
    run(seed=seed, found=evaluations(*both))
    for seed, both in enumerate([(60, 50), (61, 50), (63.3, 53)])
]


def test_mean_and_sample_deviation_over_seeds():
    table = make_table(SEEDS)
    assert body(table) == [
        ["method", "n", "linear", "kNN"],
        ["simclr", "3", "61.4 ± 1.7", "51.0 ± 1.7"],
    ]
    (line,) = lines(table)
    assert line["linear_n"] == "3"
    assert float(line["linear_mean"]) == pytest.approx(184.3 / 3)
    # sqrt(((60 - m)^2 + (61 - m)^2 + (63.3 - m)^2) / 2)
    assert float(line["linear_std"]) == pytest.approx(1.69213, abs=1e-5)
    assert float(line["knn_std"]) == pytest.approx(3**0.5)


def test_one_seed_has_no_deviation():
    table = make_table(SEEDS[:1])
    assert body(table)[1] == ["simclr", "1", "60.0", "50.0"]
    assert lines(table)[0]["linear_std"] == ""
    assert "One seed" in table.to_markdown()


def test_csv_columns():
    assert list(lines(make_table(SEEDS))[0]) == [
        "method", "dataset", "evaluated_on", "backbone", "epochs", "num_train", "protocol",
        "linear_n", "linear_mean", "linear_std", "knn_n", "knn_mean", "knn_std",
    ]  # fmt: skip


def test_caption_says_how_the_numbers_came_about():
    other = run(seed=9, found=evaluations(60), commit="f" * 40 + "-dirty",
                hardware={"cpu": "Some CPU", "cores": 8, "gpu": "Some GPU"})  # fmt: skip
    caption = make_table([*SEEDS, other]).to_markdown().splitlines()[-1]
    for phrase in (
        "Protocol strict: k and learning rate chosen on a held-out tenth",
        "n = 3 to 4 seeds",
        "digits: resnet18, 20 epochs, 2,000 images",
        "Commit: 0123456789, ffffffffff-dirty.",
        "Hardware: Some CPU (2 cores), Some GPU, Some CPU (8 cores).",
    ):
        assert phrase in caption


def test_cells_with_other_numbers_of_seeds_say_so():
    table = make_table([*SEEDS, run(seed=9, found=evaluations(61.7))])
    assert body(table)[1][1:] == ["3 to 4", "61.5 ± 1.4 (n = 4)", "51.0 ± 1.7 (n = 3)"]


def test_families_stay_together():
    given = [
        "mocov2plus",
        "my_method",
        "clsp_mocov2",
        "clsp_simclr",
        "simclr_aug",
        "byol",
        "simclr",
    ]
    expected = [
        "simclr",
        "simclr_aug",
        "clsp_simclr",
        "mocov2plus",
        "clsp_mocov2",
        "byol",
        "my_method",
    ]
    assert family_order(given) == expected
    table = make_table([run(m, found=evaluations(60)) for m in given])
    assert [row[0] for row in body(table)[1:]] == expected


def test_data_sets_stand_side_by_side():
    cifar = [
        run(m, dataset="cifar10", num_train=50000, found=evaluations(90, dataset="cifar10"))
        for m in ("simclr", "byol")
    ]
    table = make_table([*SEEDS, *cifar])
    assert body(table) == [
        ["method", "n", "digits linear", "digits kNN", "cifar10 linear", "cifar10 kNN"],
        ["simclr", "1 to 3", "61.4 ± 1.7 (n = 3)", "51.0 ± 1.7 (n = 3)", "90.0 (n = 1)", ""],
        ["byol", "1", "", "", "90.0", ""],
    ]
    caption = table.to_markdown()
    assert "cifar10: resnet18, 20 epochs, 50,000 images" in caption
    assert [line["dataset"] for line in lines(table)] == ["digits", "cifar10", "cifar10"]


def test_other_data_sets_than_that_of_the_training_are_named():
    found = [*evaluations(90, dataset="cifar10"), *evaluations(55, dataset="cifar100")]
    table = make_table([run(dataset="cifar10", found=found)], published=True)
    assert body(table) == [
        ["method", "n", "cifar10 linear", "cifar10 kNN", "cifar10 paper linear",
         "cifar10 paper kNN", "cifar10 → cifar100 linear", "cifar10 → cifar100 kNN"],
        ["simclr", "1", "90.0", "", "91.47", "88.57", "55.0", ""],
    ]  # fmt: skip
    assert [line["evaluated_on"] for line in lines(table)] == ["cifar10", "cifar100"]


@pytest.mark.parametrize(
    ("name", "value", "heading"),
    [("epochs", 40, "epochs"), ("backbone", "resnet50", "backbone"), ("num_train", 500, "images")],
)
def test_other_budgets_are_other_rows(name, value, heading):
    found = evaluations(70, 60, epoch=20)
    table = make_table([*SEEDS, run(seed=0, found=found, **{name: value})])
    assert body(table)[0] == ["method", heading, "n", "linear", "kNN"]
    usual = str(getattr(SEEDS[0][1], name))
    rows = {tuple(row[:2]): row[2:] for row in body(table)[1:]}
    assert rows == {
        ("simclr", usual): ["3", "61.4 ± 1.7", "51.0 ± 1.7"],
        ("simclr", str(value)): ["1", "70.0", "60.0"],
    }
    assert len(lines(table)) == 2


def test_shorter_trainings_come_first():
    table = make_table(
        [run(epochs=100, found=evaluations(9)), run(epochs=20, found=evaluations(9))]
    )
    assert [row[1] for row in body(table)[1:]] == ["20", "100"]


def test_by_tells_rows_apart():
    found = [
        run(seed=seed, found=evaluations(60 + weight), config={"synthetic": {"weight": weight}})
        for seed in (0, 1)
        for weight in (0.5, 1.0)
    ]
    table = make_table(found, by=["synthetic.weight"])
    assert [row[:4] for row in body(table)] == [
        ["method", "synthetic.weight", "n", "linear"],
        ["simclr", "0.5", "2", "60.5 ± 0.0"],
        ["simclr", "1.0", "2", "61.0 ± 0.0"],
    ]
    assert [line["synthetic.weight"] for line in lines(table)] == ["0.5", "1.0"]


def test_the_same_seed_twice_names_both_files():
    path, record = run(found=evaluations(60))
    with pytest.raises(
        ClspError, match=r"runs/simclr-digits-0-20/record.json and again.json .* seed 0"
    ):
        make_table([(path, record), (Path("again.json"), record)])


def test_recipes_are_not_averaged():
    other = run(seed=7, found=evaluations(60), config={"optimizer": {"lr": 0.3}})
    with pytest.raises(ClspError, match=r"optimizer\.lr is 0\.5 in one and 0\.3 in the other"):
        make_table([SEEDS[0], other])
    # the seeds' own files lie elsewhere, which is no difference
    assert len({record.config["synthetic"]["path"] for _, record in SEEDS}) == 3


@pytest.mark.parametrize(
    ("name", "value"), [("epoch", 19), ("num_test", 5), ("settings", {"batch_size": 1, "seed": 0})]
)
def test_evaluations_of_another_kind_are_not_averaged(name, value):
    other = run(seed=7, found=[{**evaluations(60)[0], name: value}])
    with pytest.raises(ClspError, match=rf"differ in {name} \("):
        make_table([SEEDS[0], other])


def test_the_seed_of_an_evaluation_may_differ():
    other = run(seed=7, found=[{**evaluations(62)[0], "settings": {"batch_size": 256, "seed": 77}}])
    assert body(make_table([SEEDS[0], other]))[1][2] == "61.0 ± 1.4 (n = 2)"


def test_the_latest_epoch_counts():
    found = [*evaluations(70, epoch=20), *evaluations(99, epoch=10)]
    assert body(make_table([run(found=found)]))[1][2] == "70.0"


def test_protocols_are_never_mixed():
    both = run(found=[*evaluations(60, protocol="strict"), *evaluations(99, protocol="paper")])
    only_paper = run("byol", found=evaluations(98, protocol="paper"))
    assert body(make_table([both, only_paper])) == [
        ["method", "n", "linear", "kNN"],
        ["simclr", "1", "60.0", ""],
        ["byol", "", "", ""],
    ]
    assert [row[2] for row in body(make_table([both, only_paper], protocol="paper"))[1:]] == [
        "99.0",
        "98.0",
    ]
    with pytest.raises(ClspError, match="strict protocol, only of paper"):
        make_table([only_paper])


def test_records_without_an_evaluation_have_empty_cells():
    table = make_table([run()])
    assert body(table)[1] == ["simclr", "", "", ""]
    assert lines(table)[0]["linear_n"] == "0"
    assert lines(table)[0]["linear_mean"] == ""


def test_unknown_protocol():
    with pytest.raises(ClspError, match="did you mean 'paper'"):
        make_table(SEEDS, protocol="papr")


def cifar(method, **changes):
    return run(method, dataset="cifar10", found=evaluations(50, 40, dataset="cifar10"), **changes)


def test_published_numbers_stand_beside_ours():
    table = make_table([*map(cifar, ("clsp_simclr", "dcl", "cl_gan", "mine"))], published=True)
    assert body(table) == [
        ["method", "n", "linear", "kNN", "paper linear", "paper kNN"],
        ["dcl", "1", "50.0", "40.0", "85.90", "84.40"],
        ["clsp_simclr", "1", "50.0", "40.0", "94.37", "93.59"],
        ["cl_gan", "1", "50.0", "40.0", "92.94", ""],
        ["mine", "1", "50.0", "40.0", "", ""],
    ]
    assert "1000 epochs (DCL 200, CL-GAN 300)" in table.to_markdown()
    line = lines(table)[0]
    assert (line["paper_linear"], line["paper_knn"], line["paper_epochs"]) == (
        "85.9",
        "84.4",
        "200",
    )


@pytest.mark.parametrize("records", [SEEDS, [cifar("simclr", backbone="resnet50")]])
def test_where_the_paper_has_nothing_the_caption_says_so(records):
    text = make_table(records, published=True).to_markdown()
    assert "paper linear" not in text
    assert "The paper has no numbers for these" in text


def test_published_numbers_are_not_shown_unasked():
    assert "aper" not in make_table([cifar("simclr")]).to_markdown()
    assert "paper_linear" not in make_table([cifar("simclr")]).to_csv()


def test_markdown_is_rectangular():
    text = make_table([*SEEDS, cifar("clsp_simclr")], published=True).to_markdown()
    counts = {len(re.findall(r"\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert len(counts) == 1
