"""What a person types as key=value arrives as it was typed."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from clsp_plugin.cli import compose
from clsp_plugin.errors import ClspError
from clsp_plugin.overrides import as_hydra_reads, quoted, told


def arrives(arg, multirun=False):
    (made,) = as_hydra_reads([arg], [], multirun)
    return OverridesParser.create().parse_override(made).value()


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00")))
def test_any_text_in_our_quotes_is_itself(text):
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1))
def test_any_path_is_taken_as_it_was_typed(path):
    in_quotes = path[0] in "'\"" and path[-1] == path[0] and len(path) > 1
    if path.strip() and "${" not in path and path not in ("null", "None") and not in_quotes:
        assert arrives(f"data.train_path={path}") == path


@pytest.mark.parametrize(
    "path",
    ["Bilder für uns", "images (1)", "a, b", "cats & dogs", "it's", "x[1]", "it's a=b", "#1",
     " lead", "007", "1e3", "~", "a\\", "a\\'b", "ep=99.ckpt", "{x}", "true", "$HOME", "*"],
)  # fmt: skip
def test_paths_of_real_folders(path):
    cfg = compose(
        "pretrain", "digits/simclr", [f"data.train_path={path}", f"checkpoint.dir={path}"]
    )
    assert cfg.data.train_path == path
    assert cfg.checkpoint.dir == path


def test_a_folder_whose_name_is_in_quotes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert arrives("data.train_path='a'") == "a"
    (tmp_path / "'a'").mkdir()
    assert arrives("data.train_path='a'") == "'a'"


@pytest.mark.parametrize(
    ("arg", "value"),
    [
        ("data.train_path=null", None),
        ("data.train_path=${oc.env:HOME}", "${oc.env:HOME}"),
        ("data.train_path='a, b'", "a, b"),
        ("max_epochs=3", 3),
        ("optimizer.lr=1e-3", 1e-3),
        ("k=[5,10]", [5, 10]),
        ("backbone.kwargs={in_chans: 1}", {"in_chans": 1}),
        ("unknown=Fußball", "Fußball"),  # not among the settings that are text
    ],
)
def test_what_hydra_reads_is_left_to_it(arg, value):
    assert arrives(arg) == value


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("optimizer.lr=1,2", "write -m to run one after the other"),
        ("k=[5,", "close its brackets"),
        ("data.train_path=", "write data.train_path=null for none"),
        ("data.train_path=  ", "is empty"),
        ("data.train_path=a\x00b", "character of number 0"),
    ],
)
def test_what_cannot_be_read_is_told(arg, message):
    with pytest.raises(ClspError, match=message) as error:
        as_hydra_reads([arg], [], multirun=False)
    assert "++" not in str(error.value)


def test_values_of_a_sweep():
    assert as_hydra_reads(["seed=0,1", "method=simclr,byol"], [], multirun=True) == [
        "++seed=0,1", "++method=simclr,byol",
    ]  # fmt: skip


def test_a_group_is_a_file_s_name(tmp_path):
    (tmp_path / "augmentations").mkdir()
    assert as_hydra_reads(["augmentations=none.yaml"], [tmp_path], False) == [
        "augmentations=none.yaml"
    ]
    with pytest.raises(ClspError, match="names a file, such as"):
        as_hydra_reads(["augmentations=[{crop_size: 16}]"], [tmp_path], False)


def test_errors_are_told_in_the_words_that_were_typed():
    error = ValueError("LexerNoViableAltException: ++a=\n   ^\nSee https://hydra.cc/docs/1.2/x")
    assert told(error, ["a=("]) == "a= ^"
    assert told(ValueError("++a"), ["++a=1"]) == "++a"
    assert len(told(ValueError("x" * 10_000), [])) == 600
