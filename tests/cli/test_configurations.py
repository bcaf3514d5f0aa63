"""``clsp configs`` and ``clsp show``."""

import re

import pytest
import yaml
from omegaconf import OmegaConf

from clsp_plugin.config.compose import compose, names_of
from clsp_plugin.config.shipped import shipped
from clsp_plugin.verbs import EXPERIMENTS

WHOLE = [(verb, name) for verb in EXPERIMENTS for name in names_of(verb)]


def leaves(content, above=""):
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def test_every_configuration_and_suite_is_listed_with_a_line(clsp):
    code, out, _ = clsp("configs")
    assert code == 0
    listed = dict(line.split(maxsplit=1) for line in out.splitlines())
    suites = [f"bench/{file.stem}" for file in (shipped() / "bench").glob("*.yaml")]
    assert listed.keys() == {*(f"{verb}/{name}" for verb, name in WHOLE), *suites}
    assert all(len(line) > 10 for line in listed.values())
    assert listed["pretrain/cifar/clsp_simclr"].startswith("CLSP-SimCLR: SimCLR with a synthetic")


def test_words_choose_among_them(clsp):
    code, out, _ = clsp("configs", "CIFAR", "linear")
    names = [line.split()[0] for line in out.splitlines()]
    assert code == 0
    assert "linear/cifar/linear" in names
    assert all("cifar" in line.lower() and "linear" in line.lower() for line in out.splitlines())
    code, _, errors = clsp("configs", "no-such")
    assert code == 2
    assert "no configuration has no-such" in errors


@pytest.mark.parametrize("verb", EXPERIMENTS)
def test_what_is_shown_is_what_is_composed(clsp, verb):
    for name in names_of(verb)[::7]:  # every seventh has all kinds
        code, out, _ = clsp("show", f"{verb}/{name}")
        assert code == 0
        expected = OmegaConf.to_container(compose(verb, name), resolve=False)
        assert yaml.safe_load(out) == yaml.safe_load(OmegaConf.to_yaml(expected)), name


@pytest.mark.parametrize("name", ["cifar/clsp_mocov2", "digits/swav", "custom/dino"])
def test_the_file_that_is_named_has_the_value(clsp, name):
    code, out, _ = clsp("show", name)
    assert code == 0
    cfg = OmegaConf.to_container(compose("pretrain", name), resolve=False)
    above, named = [], {}
    for line in out.splitlines():
        match = re.match(r"( *)(\w+):.*?(?:  # (\S+))?$", line)
        if match and not line.lstrip().startswith("- "):
            above = [*above[: len(match[1]) // 2], match[2]]
            named[".".join(above)] = match[3]
    settings = dict(leaves(cfg))
    assert len(settings) > 20
    for key, value in settings.items():
        file = named[key]
        content = yaml.safe_load((shipped() / file).read_text())
        if key == "augmentations":
            assert content == value
            continue
        for part in key.split("."):
            content = content[part]
        written = value if isinstance(content, type(value)) else type(value)(content)
        assert (written if isinstance(value, float) else content) == value, (key, file)


def test_arguments_are_named_and_a_mapping_from_one_replaces_its_parts(clsp):
    code, out, _ = clsp(
        "show", "clsp_simclr", "optimizer.lr=0.5", "data.image_size=8", "new.key={a: 1, b: x y}"
    )
    assert code == 0
    assert re.search(r"^  lr: 0.5 +# command line$", out, re.MULTILINE)
    assert re.search(r"^    a: 1 +# command line$", out, re.MULTILINE)
    assert re.search(r"^  scale_lr: false +# pretrain/shared/per_dataset/digits.yaml$", out, re.M)


def test_a_file_of_the_user_is_named_by_its_path(clsp, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("defaults:\n  - /per_method/simclr\n  - _self_\noptimizer:\n  lr: 0.7\n")
    code, out, _ = clsp("show", str(file))
    assert code == 0
    assert re.search(rf"^  lr: 0.7 +# {re.escape(str(file))}$", out, re.MULTILINE)
    assert "temperature: 0.2" in out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("cifar/simcrl", "did you mean 'cifar/simclr'"),
        ("bench/digits", "clsp bench digits --dry-run"),
        ("digits", "there is no configuration digits"),
    ],
)
def test_what_is_not_there_is_refused(clsp, given, told):
    code, out, errors = clsp("show", given)
    assert code == 2
    assert not out
    assert told in errors


def test_a_name_of_several_verbs_is_asked_for(clsp):
    names = [name for _, name in WHOLE]
    double = next((name for name in names if names.count(name) > 1), None)
    assert double is not None
    code, _, errors = clsp("show", double)
    assert code == 2
    assert "give one of these" in errors
