"""A user's YAML is read, or one sentence names the file and the line."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from clsp_plugin.errors import ClspError
from clsp_plugin.yaml_files import read_yaml


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a:\n\t- b\n", r"cannot start any token \(line 2, column 1\)"),
        (b"a: [1\n", r"line 2"),
        (b"a: 1\na: 2\n", "duplicate key a"),
        (b"5\n", "not a block of"),
        (b"a: 1\nb: \xff\n", r"not UTF-8 text \(line 2\)"),
        ("a: 1".encode("utf-16"), "not UTF-8"),
        (b"a: \x00\n", "character"),
        (b"a: !!python/object:os.system x\n", "python/object"),
        (b"- a\n- b\n", "is a list"),
        (b"a: " + b"[" * 50_000, "nested too deeply"),
    ],
)
def test_a_sentence_names_the_file(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(ClspError, match=message) as error:
        read_yaml(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"a: 1\n", b"\xef\xbb\xbfa: 1\n", "a: 1 # für\r\n".encode()])
def test_utf_8_with_or_without_a_mark(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    assert read_yaml(file) == {"a": 1}


def test_an_empty_file_says_nothing(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("# nothing yet\n")
    assert read_yaml(file) == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_settings_or_a_sentence(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    try:
        assert OmegaConf.is_dict(read_yaml(file))
    except ClspError:
        return
