"""YAML that people write: one sentence with the file, and the line where there is one."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from clsp_plugin.config.user_yaml import read_yaml
from clsp_plugin.errors import ClspError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a:\n\t- b\n", "line 2"),
        (b"a: [1\n", "line 2"),
        (b"a: 1\na: 2\n", "line 2, is not YAML .*duplicate key"),
        (b"5\n", "holds the single value 5"),
        (b"- 1\n", "holds a list"),
        (b"b: 1\na: \xff\n", "line 2, is not text in UTF-8"),
        ("a: ü\n".encode("utf-16"), "not text in UTF-8"),
        (b"defaults: x\n", "defaults is the single value 'x'"),
        (b"b: 1\na: \0\n", "line 2"),
        (b"a: !!python/object/apply:os.system [ls]\n", "line 1"),
        (b"a: 1\n---\nb: 2\n", "line 2"),
        (b"[" * 100_000, "not YAML"),
        (b"a: &a [*a]\n", "c.yaml"),
    ],
)
def test_mistakes_are_told(tmp_path, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ClspError, match=message) as told:
        read_yaml(tmp_path / "c.yaml")
    assert "c.yaml" in str(told.value)
    assert len(str(told.value)) < 600


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "c.yaml").write_bytes("name: für\n".encode("utf-8-sig"))
    assert OmegaConf.to_container(read_yaml(tmp_path / "c.yaml")) == {"name": "für"}


def test_no_file_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ClspError, match="cannot be read"):
            read_yaml(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.text("a:-[]{}&*!#|>'\"%@\t\n 1", max_size=60).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with contextlib.suppress(ClspError):  # and no other error
        assert OmegaConf.is_dict(read_yaml(path))
