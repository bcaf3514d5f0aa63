import csv
import io
import re
from pathlib import Path

import pytest

from clsp_plugin.config.compose import compose
from clsp_plugin.config.shipped import fingerprint
from clsp_plugin.errors import ClspError
from clsp_plugin.records import numerics
from clsp_plugin.records.numerics import numerics_of
from clsp_plugin.records.record import Record, find_records
from clsp_plugin.records.stale import is_stale
from clsp_plugin.tables.make import make_table
from clsp_plugin.tables.published import PAPER_NAMES, load
from clsp_plugin.tables.rows import Absent, family_order


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
        "linear_n", "linear_mean", "linear_std", "linear_failed", "linear_stale",
        "knn_n", "knn_mean", "knn_std", "knn_failed", "knn_stale",
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


def test_one_is_singular():
    one = run(epochs=1, num_train=1, found=evaluations(60), hardware={"cpu": "A", "cores": 1})
    text = make_table([one]).to_markdown()
    assert "resnet18, 1 epoch, 1 image." in text
    assert "A (1 core)." in text


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
        ["simclr", "1", "90.0", "", "91.47 (-1.5)", "88.57", "55.0", ""],
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


def test_a_misspelt_setting_is_refused():
    with pytest.raises(ClspError, match=r"--by synthetic\.wieght: .*mean 'synthetic\.weight'"):
        make_table(SEEDS, by=["synthetic.wieght"])
    with pytest.raises(ClspError, match=r"--by x: .*valid names: optimizer"):
        make_table(SEEDS, by=["x"])
    # one that some records have, or the suite says, is there
    assert make_table([*SEEDS, run("byol", config={"byol": 1})], by=["byol"]).rows
    points = {path: {"generate.w": 0.1} for path, _ in SEEDS}
    assert make_table(SEEDS, by=["generate.w"], points=points).rows


@pytest.mark.parametrize(
    ("layout", "verb"), [("transfer", "transfer"), ("finetune", "finetune"), ("ablation", "linear")]
)
def test_a_layout_that_would_be_empty_is_refused(layout, verb):
    found = [] if layout == "ablation" else evaluations(60)
    with pytest.raises(ClspError, match=f"--layout {layout} would be empty: .*`clsp {verb}`"):
        make_table([run(found=found)], layout=layout, by=["optimizer.lr"])
    # a run that failed is something to show
    assert make_table([], layout="transfer", absent=[absent()]).rows


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


def configured(seed, dataset="digits", data=None, batch=128, **settings):
    config = {"data": {"seed": 0, "train_path": None, **(data or {})}, **settings}
    config["optimizer"] = {"lr": 0.5, "batch_size": batch}
    return run(seed=seed, dataset=dataset, found=evaluations(60, dataset=dataset), config=config)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data": {"seed": 7}}, r"data\.seed is 0 in one and 7"),
        ({"data": {"extra": "generated"}}, r"data\.extra is null"),
        ({"data": {"image_size": 8}}, r"data\.image_size"),
        ({"data": {"fraction": 0.1}}, r"data\.fraction"),
        ({"precision": "bf16-mixed"}, r"precision is \"32-true\" in one and \"bf16-mixed\""),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches is 1 in one and 2"),
        ({"devices": [0, 1]}, "batch_size, of all devices is 128 in one and 256"),
        ({"num_nodes": 2}, "batch_size, of all devices is 128 in one and 256"),
        ({"gradient_clip_val": 0.01}, r'gradient_clip_val is null in one and "0\.01 by norm"'),
        (
            {"continued": [{"checkpoint": "a", "epochs": 9, "changed": {"seed": 3}}]},
            r"continued is \[\] in one and",
        ),
    ],
)
def test_other_images_and_other_steps_are_other_recipes(settings, named):
    with pytest.raises(ClspError, match=named):
        make_table([configured(0), configured(1, **settings)])


def test_the_machine_is_no_part_of_the_recipe():
    here = configured(0, "cifar10", {"train_path": "datasets"}, precision="32-true")
    there = configured(
        1, "cifar10", {"train_path": "/data", "num_workers": 9, "extra": None}, batch=32,
        precision=32, devices=2, num_nodes=2,
    )  # fmt: skip
    assert len(make_table([here, there]).rows) == 1
    own = [configured(n, "custom", {"train_path": name}) for n, name in enumerate(("a", "b"))]
    with pytest.raises(ClspError, match=r"data\.train_path is \"a\" in one and \"b\""):
        make_table(own)


@pytest.mark.parametrize(
    ("name", "value"), [("epoch", 19), ("num_test", 5), ("settings", {"batch_size": 1, "seed": 0})]
)
def test_evaluations_of_another_kind_are_not_averaged(name, value):
    other = run(seed=7, found=[{**evaluations(60)[0], name: value}])
    with pytest.raises(ClspError, match=rf"differ in {name} \("):
        make_table([SEEDS[0], other])


def test_learning_rates_that_were_given_are_part_of_an_evaluation():
    def probed(protocol):
        found = [{**evaluations(60, protocol=protocol)[0], "chosen": {"lr": r}} for r in (1.0, 0.1)]
        return [run(seed=seed, found=[e]) for seed, e in enumerate(found)]

    with pytest.raises(ClspError, match=r"differ in learning rate \(1\.0 and 0\.1\)"):
        make_table(probed("paper"), protocol="paper")
    assert make_table(probed("strict")).rows[0].cells["linear"].n == 2  # it was chosen
    ks = [{**evaluations(None, 60, "paper")[0], "chosen": {"k": k}} for k in (5, 10)]
    by_k = [run(seed=seed, found=[e]) for seed, e in enumerate(ks)]
    assert make_table(by_k, protocol="paper").rows[0].cells["knn"].n == 2


def test_what_makes_no_difference_is_no_part_of_the_recipe():
    def continued(seed, **changed):
        path = {"synthetic.path": f"store {seed}", "candidates": f"digest {seed}"}
        parts = [{"checkpoint": f"run {seed}", "epochs": 9, "changed": path | changed}]
        return configured(seed, continued=parts)

    assert len(make_table([continued(0), continued(1)]).rows) == 1
    with pytest.raises(ClspError, match="continued is"):
        make_table([continued(0), continued(1, max_epochs=5)])
    alone = [configured(0), configured(1, sync_batchnorm=True, gradient_clip_algorithm="norm")]
    assert len(make_table(alone).rows) == 1
    for (_, record), synchronised in zip(alone, (False, True), strict=True):
        record.timings["processes"] = 2
        record.config["sync_batchnorm"] = synchronised
    with pytest.raises(ClspError, match="sync_batchnorm is false in one and true"):
        make_table(alone)


def test_what_was_chosen_from_is_part_of_an_evaluation():
    def chosen(*rates):
        candidates = [{"lr": rate, "top1": 1.0} for rate in rates]
        return {**evaluations(60)[0], "chosen": {"lr": rates[0]}, "candidates": candidates}

    both = [run(seed=0, found=[chosen(1.0, 0.1)]), run(seed=1, found=[chosen(1.0)])]
    with pytest.raises(ClspError, match=r"differ in what was chosen from \(\[1\.0, 0\.1\] and"):
        make_table(both)


def test_settings_that_older_evaluations_lack_are_not_compared():
    def flipped(seed, **more):
        found = evaluations(60)[0]
        return run(seed=seed, found=[{**found, "settings": {**found["settings"], **more}}])

    assert len(make_table([flipped(0), flipped(1, flip=True)]).rows) == 1
    with pytest.raises(ClspError, match=r"differ in mirrored images \(False and True\)"):
        make_table([flipped(0, flip=False), flipped(2), flipped(1, flip=True)])


def test_evaluations_of_an_earlier_epoch_are_told():
    early = run(seed=7, found=evaluations(60, epoch=10))
    text = make_table([early]).to_markdown()
    assert "Evaluated before the training ended: simclr on digits, seed 7 (linear, epoch 10" in text
    assert "before the training ended" not in make_table(SEEDS).to_markdown()


def test_the_seed_of_an_evaluation_may_differ():
    other = run(seed=7, found=[{**evaluations(62)[0], "settings": {"batch_size": 256, "seed": 77}}])
    assert body(make_table([SEEDS[0], other]))[1][2] == "61.0 ± 1.4 (n = 2)"


def test_the_latest_epoch_counts():
    found = [*evaluations(70, epoch=20), *evaluations(99, epoch=10)]
    assert body(make_table([run(found=found)]))[1][2] == "70.0"


def test_an_evaluation_without_a_number_is_refused():
    broken = run(found=[{**evaluations(60)[0], "top1": None}])
    with pytest.raises(ClspError, match=r"linear evaluation of runs/.*json has no number"):
        make_table([broken])


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
        ["dcl", "1", "50.0", "40.0", "85.90 (-35.9)", "84.40 (-44.4)"],
        ["clsp_simclr", "1", "50.0", "40.0", "94.37 (-44.4)", "93.59 (-53.6)"],
        ["cl_gan", "1", "50.0", "40.0", "92.94 (-42.9)", "none"],
        ["mine", "1", "50.0", "40.0", "", ""],
    ]
    assert "1000 epochs (DCL 200, CL-GAN 300)" in table.to_markdown()
    line = lines(table)[0]
    assert (line["paper_linear"], line["paper_knn"], line["paper_epochs"]) == (
        "85.9",
        "84.4",
        "200",
    )
    assert float(line["minus_paper_linear"]) == pytest.approx(50.0 - 85.9)
    assert lines(table)[2]["minus_paper_knn"] == ""  # the paper has none


@pytest.mark.parametrize("records", [SEEDS, [cifar("simclr", backbone="resnet50")]])
def test_where_the_paper_has_nothing_the_caption_says_so(records):
    text = make_table(records, published=True).to_markdown()
    assert "paper linear" not in text
    assert "The paper has no numbers for these" in text


def test_the_caption_tells_each_row_s_published_epochs():
    records = [cifar("clsp_simclr", epochs=300), cifar("clsp_simclr", epochs=1000), cifar("dcl")]
    text = make_table(records, published=True).to_markdown()
    assert "1000 epochs (DCL 200, CLSP-SimCLR 300 beside our 300)" in text


def test_published_numbers_are_not_shown_unasked():
    assert "aper" not in make_table([cifar("simclr")]).to_markdown()
    assert "paper_linear" not in make_table([cifar("simclr")]).to_csv()


def test_markdown_is_rectangular():
    text = make_table([*SEEDS, cifar("clsp_simclr")], published=True).to_markdown()
    counts = {len(re.findall(r"\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert len(counts) == 1


def published_as_records(folder):
    """The paper's main table as records on disk, one a method, length of training and data set."""
    names = {paper: ours for ours, paper in PAPER_NAMES.items() if ours != "clsp_mocov2plus"}
    for row in load("linear_knn_cifar"):
        for dataset in ("cifar10", "cifar100"):
            numbers = [row[f"{dataset}_{task}"] for task in ("linear", "knn")]
            found = evaluations(*(float(n) if n else None for n in numbers), "paper", dataset)
            method, epochs = names[row["method"]], int(row["epochs"])
            _, record = run(method, dataset=dataset, epochs=epochs, num_train=50000, found=found)
            record.save(folder / method / f"{dataset}-{epochs}" / "record.json")
    return find_records([folder])


def test_published_numbers_as_records_give_the_paper_s_table(tmp_path):
    records = published_as_records(tmp_path)
    assert len(records) == 44
    table = make_table(records, protocol="paper", published=True, decimals=2)
    head, *rows = body(table)
    assert head == [
        "method", "epochs", "n",
        "cifar10 linear", "cifar10 kNN", "cifar10 paper linear", "cifar10 paper kNN",
        "cifar100 linear", "cifar100 kNN", "cifar100 paper linear", "cifar100 paper kNN",
    ]  # fmt: skip
    made = {(PAPER_NAMES[row[0]], row[1]): row[3:5] + row[7:9] for row in rows}
    wanted = {
        (row["method"], row["epochs"]): [
            row[f"{dataset}_{task}"]
            for dataset in ("cifar10", "cifar100")
            for task in ("linear", "knn")
        ]
        for row in load("linear_knn_cifar")
    }
    assert made == wanted
    # beside each stands the same number with no difference, and "none" in exactly two cells
    cells = [(row[0], cell) for row in rows for cell in row[5:7] + row[9:11]]
    assert [method for method, cell in cells if cell == "none"] == ["cl_gan", "cl_gan"]
    assert all(cell.endswith("(+0.00)") for _, cell in cells if cell != "none")
    empty = "The paper leaves empty: CL-GAN on cifar10, kNN; CL-GAN on cifar100, kNN."
    assert table.to_markdown().count(empty) == 1
    assert empty in make_table(records, protocol="paper").to_markdown()  # ours are missing, too
    assert "leaves empty" not in make_table([cifar("cl_gan")]).to_markdown()


def seeds(method, *values, **changes):
    return [run(method, n, evaluations(v), **changes) for n, v in enumerate(values)]


def test_bold_only_where_the_difference_exceeds_the_noise():
    clear = [*seeds("simclr", 60, 61, 62), *seeds("byol", 70, 72, 71)]
    assert [row[2] for row in body(make_table(clear))[1:]] == ["61.0 ± 1.0", "**71.0 ± 1.0**"]
    assert "(paired t-test over seeds, two-sided p < 0.05 against each)" in (
        make_table(clear).to_markdown()
    )
    # paired t of the differences 0, 1, 2 is sqrt(3): p = 0.23
    noise = [*seeds("simclr", 60, 61, 62), *seeds("byol", 60, 62, 64)]
    assert "**" not in make_table(noise).to_markdown()
    assert "No number is bold" in make_table(noise).to_markdown()
    # one row that is not told apart is enough
    third = [*clear, *seeds("dcl", 69, 70, 72)]
    assert "**" not in make_table(third).to_markdown()
    # and so is one that has no spread, or differences that have none
    assert "**" not in make_table([*clear, *seeds("dcl", 10)]).to_markdown()
    assert "**" not in make_table([*clear, *seeds("dcl", 60, 62, 61)]).to_markdown()


def test_runs_of_the_same_seeds_are_compared_in_pairs():
    # the seeds differ by more than the methods do: t = 1.5 / 0.1 * sqrt(3) of 1.4, 1.5, 1.6
    paired = [*seeds("simclr", 50, 60, 70), *seeds("byol", 51.4, 61.6, 71.5)]
    assert "**61.5" in make_table(paired).to_markdown()
    # with another seed in its place there are no pairs, and Welch's t is 0.18
    other = [*paired[:5], run("byol", 7, evaluations(71.5))]
    text = make_table(other).to_markdown()
    assert "**" not in text
    assert "a t-test, paired where both have the same seeds and else Welch's, over seeds" in text


def test_stale_numbers_are_marked():
    now = {name: numerics_of("pretrain", "digits", name) for name in ("simclr", "byol")}
    new, old = {"numerics": now["simclr"]}, {"numerics": {**now["byol"], "method": 2}}
    records = [*seeds("simclr", 60, 61, versions=new), *seeds("byol", 60, 61, versions=old)]
    table = make_table(records)
    assert [row[2] for row in body(table)[1:]] == ["60.5 ± 0.7", "60.5 ± 0.7†"]
    assert "† made by other numerics" in table.to_markdown()
    assert "†" not in make_table(records[:2]).to_markdown()
    # the evaluation's versions count as well
    for _, record in records[:2]:
        task = record.evaluations[0]["task"]
        record.evaluations[0]["numerics"] = numerics_of(task, "digits")
    assert "†" not in make_table(records[:2]).to_markdown()
    records[0][1].evaluations[0]["numerics"]["features"] = 7
    assert "60.5 ± 0.7†" in make_table(records[:2]).to_markdown()
    (line,) = lines(make_table(records[:2]))
    assert (line["linear_stale"], line["knn_stale"]) == ("numerics", "")
    assert is_stale(records[0][1])
    assert not is_stale(records[1][1])


@pytest.mark.parametrize(
    ("versions", "stage", "stale"),
    [
        ({"code": "46efe8be58023c77"}, None, False),  # of sources that are known
        ({"code": "46efe8be58023c77"}, "pretrain", True),
        ({"code": "46efe8be58023c77"}, "denoiser", False),  # which it does not go through
        ({"code": "0" * 16}, None, True),
        ({"code": None}, "pretrain", False),  # what does not say it is not accused
        ({}, "pretrain", False),
        ({"numerics": {"pretrain": 1}}, None, False),  # its other stages were not told apart
        ({"numerics": {"pretrain": 1}}, "images", True),
    ],
)
def test_what_was_recorded_before_there_were_versions(monkeypatch, versions, stage, stale):
    if stage is not None:
        monkeypatch.setitem(numerics.NUMERICS, stage, 2)
    ((_, record),) = seeds("simclr", 60, versions=versions)
    record.evaluations = []
    assert is_stale(record) == stale


def test_the_records_of_the_documentation_are_of_today_s_numerics():
    suites = {path.parent for path in (Path(__file__).parents[2] / "docs").glob("*/records.json")}
    assert {path.name for path in suites} == {"cifar10", "demo", "ladder", "methods", "uses"}
    records = find_records(suites)
    assert [str(path) for path, record in records if is_stale(record)] == []


def test_numbers_of_other_settings_than_today_s_are_marked():
    def source(verb, config, settings=None):
        settings = settings or fingerprint(compose(verb, config, ["seed=3"]))
        return {"config": config, "overrides": ["++seed=4"], "settings": settings}

    records = seeds("simclr", 60, 61, source=source("pretrain", "digits/simclr"))
    records[0][1].evaluations[0]["source"] = source("linear", "linear")
    assert "‡" not in make_table(records).to_markdown()
    gone = seeds("byol", 60, 61, source=source("pretrain", "mine/byol", "0" * 16))
    assert "‡" not in make_table(gone).to_markdown()  # not known is not accused
    records[0][1].evaluations[0]["source"] = source("linear", "linear", "0" * 16)
    table = make_table(records)
    assert body(table)[1][2] == "60.5 ± 0.7‡"
    assert "‡ made by other settings than its configuration has today (linear linear)" in (
        table.to_markdown()
    )
    assert lines(table)[0]["linear_stale"] == "settings"
    records[1][1].source = source("pretrain", "digits/simclr", "0" * 16)
    assert "(pretrain digits/simclr, linear linear)" in make_table(records).to_markdown()


def absent(method="simclr", seed=9, **point):
    budget = {"backbone": "resnet18", "epochs": 20, "num_train": None}
    return Absent(method, "digits", seed, budget, "out of memory", point)


def test_failed_runs_stand_in_their_cells():
    table = make_table(SEEDS, absent=[absent(), absent("byol")])
    assert [row[2:] for row in body(table)[1:]] == [
        ["61.4 ± 1.7 (1 failed)", "51.0 ± 1.7 (1 failed)"],
        ["failed", "failed"],
    ]
    text = table.to_markdown()
    assert [line["linear_failed"] for line in lines(table)] == ["1", "1"]
    assert "Failed: simclr on digits, seed 9: out of memory." in text
    assert "Failed: byol on digits, seed 9: out of memory." in text
    assert body(make_table([], absent=[absent()]))[1] == ["simclr", "", "failed", "failed"]


def test_only_other_protocols_and_strange_data_sets_are_named():
    only_paper = run("byol", found=evaluations(98, protocol="paper"))
    text = make_table([*SEEDS, only_paper]).to_markdown()
    assert "another protocol alone and left out: byol on digits, seed 0." in text
    mixed = [*evaluations(60), *evaluations(None, 50, protocol="paper")]
    text = make_table([*SEEDS, run(seed=9, found=mixed)]).to_markdown()
    assert "another protocol alone and left out: simclr on digits, seed 9 (kNN)." in text
    strange = run(dataset="digts", found=evaluations(60, dataset="digts"))
    assert "Not data sets that this version knows: digts." in make_table([strange]).to_markdown()


def test_ablation_is_a_row_a_value():
    found = [
        run(method, found=evaluations(60 + weight), config={"synthetic": {"weight": weight}})
        for weight in (1.0, 0.2)
        for method in ("clsp_simclr", "clsp_mocov2")
    ]
    assert body(make_table(found, by=["synthetic.weight"], layout="ablation")) == [
        ["synthetic.weight", "n", "clsp_simclr digits linear", "clsp_simclr digits kNN",
         "clsp_mocov2 digits linear", "clsp_mocov2 digits kNN"],
        ["0.2", "1", "60.2", "", "60.2", ""],
        ["1.0", "1", "61.0", "", "61.0", ""],
    ]  # fmt: skip
    assert (
        "Method:"
        not in make_table(found, by=["synthetic.weight"], layout="ablation").grid().caption
    )
    alone = make_table(found[::2], by=["synthetic.weight"], layout="ablation")
    assert "Method: clsp_simclr." in alone.grid().caption
    with pytest.raises(ClspError, match="--by"):
        make_table(found, layout="ablation")


def test_values_of_any_kind_are_rows():
    key = "synthetic.num_candidates"
    found = [
        run(
            "clsp_simclr",
            seed,
            evaluations(60, 50),
            config={"synthetic": {key.split(".")[1]: value}},
        )
        for seed, value in enumerate((None, 2, 10))
    ]
    rows = body(make_table(found, by=[key], layout="ablation"))[1:]
    assert [row[0] for row in rows] == ["2", "10", "None"]

    budget = {"backbone": "resnet18", "epochs": 20, "num_train": None}
    lost = Absent("clsp_simclr", "digits", 9, budget, "killed", {key: None})
    points = {path: {key: record.config["synthetic"]["num_candidates"]} for path, record in found}
    rows = body(make_table(found[1:], by=[key], points=points, absent=[lost], layout="ablation"))
    assert [row[0] for row in rows[1:]] == ["2", "10", "None"]
    assert rows[-1][-1] == "failed"

    steps = {path: {"scheduler.lr_decay_steps": [1, seed]} for seed, (path, _) in enumerate(found)}
    rows = body(make_table(found, by=list(steps[found[0][0]]), points=steps, layout="ablation"))
    assert [row[0] for row in rows[1:]] == [rf"\[1, {seed}\]" for seed in range(3)]  # Markdown


def test_ablation_beside_the_paper_s():
    config = {"synthetic": {"num_candidates": 4}}
    found = evaluations(90.15, dataset="cifar10")
    record = run("clsp_simclr", dataset="cifar10", found=found, config=config)
    table = make_table([record], by=["synthetic.num_candidates"], layout="ablation", published=True)
    assert body(table)[1] == ["4", "1", "90.2", "", "93.95 (-3.8)", "none"]


def test_transfer_has_a_column_a_data_set():
    found = [
        {"task": "transfer", "protocol": "strict", "dataset": target, "epoch": 20, "top1": top1,
         "mean_class": 1.0, "metric": metric}
        for target, top1, metric in (("cifar100", 50.0, "top1"), ("pets", 9.0, "mean_class"))
    ]  # fmt: skip
    record = run("clsp_simclr", dataset="cifar10", found=[*evaluations(90), *found])
    table = make_table([record], layout="transfer", published=True)
    assert body(table) == [
        ["method", "n", "cifar10 → cifar100", "cifar10 → cifar100 paper", "cifar10 → pets"],
        ["clsp_simclr", "1", "50.0", "61.64 (-11.6)", "1.0"],
    ]
    assert "mean per class for pets" in table.to_markdown()


def test_candidates_are_part_of_the_recipe():
    stores = [{"w": 0.1, "seed": 0}, {"w": 0.3, "seed": 0}]
    records = [
        run("clsp_simclr", seed, evaluations(60 + seed), candidates=store)
        for seed, store in enumerate(stores)
    ]
    with pytest.raises(ClspError, match=r"candidates\.w is 0\.1 in one and 0\.3"):
        make_table(records)
    table = make_table(records, by=["candidates.w"])
    assert [row[1] for row in body(table)[1:]] == ["0.1", "0.3"]
    points = {path: {"generate.w": n} for n, (path, _) in enumerate(records)}
    table = make_table(records, by=["generate.w"], points=points)
    assert [row[1] for row in body(table)[1:]] == ["0", "1"]


def test_cells_link_to_their_records():
    text = make_table(SEEDS[:2]).to_markdown(Path("runs/tables"))
    assert "[60.5 ± 0.7](../simclr-digits-0-20/record.json) [2](../simclr-digits-1-20/r" in text
    assert 'href="./simclr-digits-0-20/record.json"' in make_table(SEEDS[:1]).render(
        "html", Path("runs")
    )


def test_latex_is_booktabs_with_every_special_sign_written():
    text = make_table([*SEEDS, run("simclr_aug", found=evaluations(9))]).render("latex")
    for line in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrr}"):
        assert line in text
    assert r"simclr & 3 & 61.4 $\pm$ 1.7 (n = 3) & 51.0 $\pm$ 1.7 (n = 3) \\" not in text
    assert r"simclr & 3 & 61.4 $\pm$ 1.7 & 51.0 $\pm$ 1.7 \\" in text
    assert r"simclr\_aug & 1" in text
    assert text.isascii()
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in rows} == {3}


def test_a_bracket_at_the_start_of_a_latex_line_is_no_length():
    blocks = [{"backbone": {"kwargs": {"layers": [n]}}} for n in (1, 2)]
    records = [run(found=evaluations(60), config=block) for block in blocks]
    by = ["backbone.kwargs.layers"]
    text = make_table(records, by=by, layout="ablation").render("latex")
    assert [line for line in text.splitlines() if line.startswith("[")] == []
    assert "{}[1] & 1 & 60.0" in text


def test_html_is_escaped():
    record = run("<b>", found=evaluations(60))
    text = make_table([record]).render("html")
    assert "<td>&lt;b&gt;</td>" in text
    assert "<b>" not in text
