import csv
from importlib import resources

import pytest

from clsp_plugin.errors import ClspError
from clsp_plugin.tables.published import PAPER_NAMES, TABLES, Published, load, published


def test_the_main_table_by_engine_name():
    assert published("simclr", "cifar10") == Published("SimCLR", 1000, 91.47, 88.57)
    assert published("mocov2plus", "cifar100") == Published("MoCoV2", 1000, 69.89, 66.91)
    assert published("clsp_mocov2", "cifar10") == Published("CLSP-MoCoV2", 1000, 94.41, 93.90)
    assert published("simclr_aug", "cifar100") == Published("SimCLR-aug", 1000, 68.30, 66.75)
    assert published("mocov2_ft", "cifar10") == Published("MoCoV2-FT", 1000, 92.58, 92.60)


def test_the_longest_training_counts():
    # the paper has CLSP-SimCLR at 300 epochs too
    assert published("clsp_simclr", "cifar10") == Published("CLSP-SimCLR", 1000, 94.37, 93.59)
    assert published("dcl", "cifar10").epochs == 200
    assert published("cl_gan", "cifar100") == Published("CL-GAN", 300, 67.41, None)


def test_what_the_paper_does_not_have():
    assert published("simclr", "digits") is None
    assert published("mae", "cifar10") is None


def test_every_row_of_the_main_table_has_a_name_here():
    assert {row["method"] for row in load("linear_knn_cifar")} == set(PAPER_NAMES.values())


def test_all_tables_are_listed_and_rectangular():
    folder = resources.files("clsp_plugin.tables") / "published"
    assert {f.name.removesuffix(".csv") for f in folder.iterdir()} == set(TABLES)
    for name in TABLES:
        lines = list(csv.reader((folder / f"{name}.csv").read_text().splitlines()))
        assert {len(line) for line in lines} == {len(lines[0])}
        assert load(name)[0] == dict(zip(lines[0], lines[1], strict=True))


def test_an_unknown_table():
    with pytest.raises(ClspError, match="did you mean 'transfer_small'"):
        load("transfer_smal")
