"""Every stage computes the numbers that were stored with its version of the numerics."""

import copy
import subprocess

import pytest

from tests.golden import compare, stages
from tests.golden.compare import TOLERANCE, difference, verdict

STORED = compare.stored()


@pytest.mark.parametrize("stage", stages.stages())
def test_numbers_are_those_of_their_version(stage):
    wrong = verdict(stage, compare.today(stage), STORED.get(stage))
    assert wrong is None, wrong


def test_every_stage_of_a_version_is_measured():
    measured = {key for said in STORED.values() for key in said["numerics"]}
    assert measured - {"method"} == set(stages.public("NUMERICS")) - {"quality"}
    assert set(STORED) == set(stages.stages())  # no removed stage is left


SAID = {"numerics": {"digits": 1, "knn": 1}, "numbers": {"loss": [2.0, 1.0], "hits": [3, 4]}}


def said(numbers=None, **numerics):
    out = copy.deepcopy(SAID)
    out["numbers"] |= numbers or {}
    out["numerics"] |= numerics
    return out


def test_a_change_is_told_with_what_to_do():
    assert verdict("knn", said(), SAID) is None
    assert verdict("knn", said({"loss": [2.0, 1.0 + TOLERANCE]}), SAID) is None  # 2.0 is the scale
    assert verdict("knn", said({"loss": [2.0, 1.0 + 3 * TOLERANCE]}), SAID) is not None
    changed = said({"loss": [2.0, 1.1]})
    told = verdict("knn", changed, SAID)
    assert "DIFFERENT in 'loss' by 5.0e-02 of it" in told
    assert "no version was bumped" in told
    assert "one of digits, knn" in told
    told = verdict("knn", said({"loss": [2.0, 1.1]}, knn=2), SAID)
    assert "was bumped (knn 1 -> 2); store the new numbers: python -m" in told
    assert "the numbers are the same" in verdict("knn", said(knn=2), SAID)
    assert "no numbers are stored" in verdict("knn", said(), None)


@pytest.mark.parametrize(
    "other",
    [{"hits": [3, 5]}, {"loss": [2.0]}, {"loss": [2.0, float("nan")]}, {"new": [1.0]}],
)
def test_what_is_no_small_number_apart_differs(other):
    for pair in ((said(other), SAID), (SAID, said(other))):
        assert difference(*(content["numbers"] for content in pair)).worst == float("inf")


def test_with_another_commit(capsys):
    inside = subprocess.run(["git", "rev-parse", "HEAD"], cwd=compare.ROOT, capture_output=True)
    if inside.returncode:
        pytest.skip("not in a git checkout, so there is no other commit")
    assert compare.main(["--against", "HEAD", "knn"]) == 0
    assert capsys.readouterr().out == "knn: equal to the bit\n"
