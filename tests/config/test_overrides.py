"""What is typed arrives as it was typed."""

import contextlib

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clsp_plugin.config.overrides import TEXTS, hydra_overrides
from clsp_plugin.errors import ClspError

_TYPED = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def _read(arg, folder, multirun=False):
    (override,) = hydra_overrides([arg], folder, multirun)
    return OverridesParser.create().parse_override(override).value()


@settings(max_examples=200, deadline=None)
@given(_TYPED)
@example("a, b/train")
@example("it's a=b")
@example("x[1]")
@example("#1")
@example("Bilder für uns (1) & \\'\" $x \\")
@example(" blanks ")
@example("1e5")
@example("[1,2]")
@example("true")
@example("\\")
@example("\\'")
def test_a_path_arrives_as_it_was_typed(tmp_path_factory, text):
    quoted = (
        len(text.strip()) > 1 and text.strip()[0] in "'\"" and text.strip()[0] == text.strip()[-1]
    )
    if "${" in text or text.strip().lower() == "null" or quoted:
        return  # Hydra's
    assert _read(f"data.train_path={text}", tmp_path_factory.getbasetemp()) == text


@settings(max_examples=100, deadline=None)
@given(_TYPED)
def test_any_value_is_read_or_refused_in_a_sentence(tmp_path_factory, text):
    with contextlib.suppress(ClspError):  # and no other error
        _read(f"seed={text}", tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("k=[1,2]", [1, 2]),
        ("stem={kernel_size: 3}", {"kernel_size": 3}),
        ("data.val_path=null", None),
        ("seed=3", 3),
        ("lr=1e-3", 1e-3),
        ("cache=False", False),
        ("data.train_path='quoted, text'", "quoted, text"),
        ("data.train_path=${oc.env:X}", "${oc.env:X}"),
        ("optimizer.name=lars", "lars"),
        ("name=1", "1"),
    ],
)
def test_what_is_hydra_s_stays_hydra_s(tmp_path, typed, value):
    read = _read(typed, tmp_path)
    assert read == value
    assert type(read) is type(value) or isinstance(read, str)


def test_sweeps_need_m(tmp_path):
    assert hydra_overrides(["seed=0,1"], tmp_path, multirun=True) == ["++seed=0,1"]
    with pytest.raises(ClspError, match="add -m"):
        hydra_overrides(["seed=0,1"], tmp_path)


def test_a_list_in_place_of_a_group_is_told(tmp_path):
    (tmp_path / "augmentations").mkdir()
    (tmp_path / "augmentations" / "plain.yaml").write_text("[]")
    assert hydra_overrides(["augmentations=plain"], tmp_path) == ["augmentations=plain"]
    with pytest.raises(ClspError, match=r"names one of the files .*plain, ") as told:
        hydra_overrides(["augmentations=[{crop_size: 16}]"], tmp_path)
    assert "++" not in str(told.value)


def test_texts_are_settings():
    assert {"train_path", "name", "dir", "path"} <= TEXTS
