"""Every number of every schema is finite and in its range."""

import dataclasses
import math
from typing import get_args, get_type_hints

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clsp_plugin.config.rules import SEED, Rule, check_name
from clsp_plugin.config.trainer_arguments import TrainerArguments
from clsp_plugin.config.training import Data, Pretrain
from clsp_plugin.config.typed import typed
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.finetune import Finetune
from clsp_plugin.evaluation.settings import Knn, Linear, Transfer


def _numbers(schema, prefix=""):
    """(key, field) of every number in a schema and its blocks."""
    for field in dataclasses.fields(schema):
        hint = get_type_hints(schema)[field.name]
        kinds = {hint, *get_args(hint), *(k for arg in get_args(hint) for k in get_args(arg))}
        block = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if block is not None:
            yield from _numbers(block, f"{prefix}{field.name}.")
        elif kinds & {int, float}:
            yield (
                f"{prefix}{field.name}",
                any(list in (k, getattr(k, "__origin__", 0)) for k in kinds),
            )


_SCHEMAS = (Pretrain, Finetune, Linear, Knn, Transfer, TrainerArguments)
_WALKED = (Pretrain, Linear, Knn, Transfer, TrainerArguments)
_ALL = [(schema, *one) for schema in _WALKED for one in _numbers(schema)]


def _block(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(("schema", "key", "many"), _ALL, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("value", [math.nan, -math.inf, -2, "x"])
def test_what_no_number_may_be_is_refused(schema, key, many, value):
    if value == -2 and key.rpartition(".")[2] == "mean":
        return  # of normalised images it may be below 0
    whole = {f.name for f in dataclasses.fields(schema)}
    given = _block(key, [value] if many else value)
    own = key.split(".")[0]
    # what else is missing is told later, so a complaint must name the key
    with pytest.raises(ClspError) as told:
        typed(_filled(schema, given), schema)
    assert own in whole
    assert key.rpartition(".")[2] in str(told.value)


@pytest.mark.parametrize(("schema", "key"), [one[:2] for one in _ALL if one[2]])
@pytest.mark.parametrize("value", [[[]], [[1]], [{}], {"a": 1}, [None, {}]])
def test_what_no_list_of_numbers_may_be_is_refused(schema, key, value):
    with pytest.raises(ClspError, match=key.split(".")[0]):
        typed(_filled(schema, _block(key, value)), schema)


def _filled(schema, given):
    """With a value for all that has no default."""
    needed = {
        "name": "x", "method": "simclr", "max_epochs": 1, "augmentations": [], "dataset": "digits",
        "pretrained_feature_extractor": "x",
    }  # fmt: skip
    blocks = {
        "optimizer": {"name": "sgd", "batch_size": 2, "lr": 0.1},
        "backbone": {"name": "resnet18"},
        "data": {"dataset": "digits"},
    }
    names = {f.name for f in dataclasses.fields(schema)}
    out = {k: v for k, v in {**needed, **blocks}.items() if k in names}
    for key, value in given.items():
        out[key] = {**out.get(key, {}), **value} if isinstance(value, dict) else value
    return out


@pytest.mark.parametrize("schema", _SCHEMAS)
def test_what_is_filled_in_is_accepted(schema):
    typed(_filled(schema, {}), schema)


@pytest.mark.parametrize("value", [-1, -1.0, 0.5])
def test_fractions(value):
    assert typed({"dataset": "x", "fraction": value}, Data).fraction == value


@pytest.mark.parametrize("value", [0, -0.5, math.nan, 1, 2])
def test_what_is_no_fraction(value):
    with pytest.raises(ClspError, match=r"data|fraction=.* above 0 and below 1, or -1"):
        typed({"dataset": "x", "fraction": value}, Data)


@given(st.integers())
@example(2**32)
@example(2**32 - 1)
def test_seeds(value):
    assert SEED.accepts(value) == (0 <= value < 2**32)


def test_rules_in_words():
    assert str(Rule(low=1)) == "at least 1"
    assert str(Rule(above=0, below=1, also=(-1,))) == "above 0 and below 1, or -1"
    assert str(Rule(choices=("a", "b"))) == "one of a, b"


@given(st.text(max_size=300))
@example("a/b")
@example("../x")
@example("..")
@example("")
@example("a\0")
@example("a\nb")
@example("x" * 201)
def test_a_name_is_one_part_of_a_path(text):
    try:
        check_name("name", text)
    except ClspError as error:
        assert len(str(error)) < 400  # noqa: PT017  most texts are names
    else:
        assert "/" not in text
        assert text.isprintable()
        assert text.strip() not in ("", ".", "..")
        assert len(f"{text}-offline-abcd1234-ep=100000.ckpt".encode(errors="replace")) < 255


@pytest.mark.parametrize(
    ("schema", "key", "value"),
    [
        (Pretrain, "checkpoint.dir", ""),  # $DIR of a shell, unset, is the folder one stands in
        (Pretrain, "data.train_path", " "),
        (Knn, "pretrained_feature_extractor", ""),
        (Finetune, "name", "a/b"),
        (Knn, "k", 5),
        (Knn, "k", None),
        (Knn, "cache", 5),
        (Pretrain, "joint_forward", 2),
        (Pretrain, "augmentations", 5),
    ],
)
def test_what_would_be_read_as_another_value_is_refused_with_its_key(schema, key, value):
    with pytest.raises(ClspError, match=key) as told:
        typed(_filled(schema, _block(key, value)), schema)
    assert "AnyNode" not in str(told.value)
