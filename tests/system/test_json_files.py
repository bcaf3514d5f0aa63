"""What is read from JSON has the types it should have, or one sentence says what has not."""

import json
import math
import os
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsp_plugin.errors import ClspError
from clsp_plugin.records.checkpoint import read_checkpoint
from clsp_plugin.system.files import write_text
from clsp_plugin.system.json_files import checked, read_json


@dataclass
class Shelf:
    books: list[str]
    width: float
    name: str | None = None


def _read(path, kind=Shelf):
    return read_json(path, kind, "a shelf", "build another")


def test_what_has_its_types_is_read(tmp_path):
    file = tmp_path / "shelf.json"
    file.write_text('{"books": ["Faust"], "width": 2}', encoding="utf-8")
    assert _read(file) == Shelf(["Faust"], 2)
    assert _read(file, dict[str, object]) == {"books": ["Faust"], "width": 2}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"books": ["Faust"], "width": "2"}', "width='2'"),
        ('{"books": ["Faust", 5], "width": 2}', "books.1=5"),
        ('{"books": ["Faust"]}', "width"),
        ('{"books": [], "width": NaN}', "NaN"),
        ('{"books": [], "width": 2, "depth": 1}', "depth"),
        ("[1]", r"\[1\]"),
        ("", "Expecting value"),
        ("[" * 300_000, "nested too deeply"),
        ("9" * 5000, "digits"),
    ],
)
def test_a_sentence_names_the_file_and_the_field(tmp_path, content, told):
    file = tmp_path / "shelf.json"
    file.write_text(content)
    with pytest.raises(ClspError, match=told) as error:
        _read(file)
    assert str(file) in str(error.value)
    assert str(error.value).endswith("build another")
    assert len(str(error.value)) < 400 + len(str(file))


def test_bytes_that_are_no_text_are_damage(tmp_path):
    file = tmp_path / "shelf.json"
    file.write_bytes(b'{"books": ["\xff"]}')
    with pytest.raises(ClspError, match="is not a shelf"):
        _read(file)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        _read(tmp_path / "shelf.json")
    with pytest.raises(OSError, match="directory"):
        _read(tmp_path)


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(content=_ANYTHING | st.fixed_dictionaries({"books": _ANYTHING, "width": _ANYTHING}))
def test_any_content_is_a_shelf_or_refused(content):
    content = json.loads(json.dumps(content))
    try:
        shelf = checked(content, Shelf, "the file has", "build another")
    except ClspError:
        return
    assert all(type(book) is str for book in shelf.books)
    assert type(shelf.width) in (int, float)
    assert not math.isnan(shelf.width)


@pytest.mark.parametrize("read", ["json", "checkpoint"])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    path = tmp_path / "a"
    os.mkfifo(path)
    with pytest.raises(ClspError, match="a is not a file but a pipe"):
        read_json(path, dict, "a note", "remove it") if read == "json" else read_checkpoint(path)


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "shelf.json")
    with pytest.raises(ClspError, match=r"shelf\.json is not a file but a pipe"):
        write_text(tmp_path / "shelf.json", "{}")
