"""The configuration reference: every key that is accepted or shipped has a line with a meaning."""

import importlib.util
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from clsp_plugin.candidates.oracle import Oracle
from clsp_plugin.config.rules import ranged
from clsp_plugin.config.shipped import shipped
from clsp_plugin.config.trainer_arguments import TrainerArguments
from clsp_plugin.config.training import Pretrain
from clsp_plugin.diffusion.autoencoder_training import AutoencoderSettings
from clsp_plugin.diffusion.drawer import GenerationSettings
from clsp_plugin.diffusion.module import TrainingSettings
from clsp_plugin.diffusion.verbs import OfAutoencoder, OfDenoiser, OfGenerate
from clsp_plugin.evaluation.finetune import Finetune
from clsp_plugin.evaluation.settings import Knn, Linear, Transfer
from clsp_plugin.methods import METHODS
from clsp_plugin.suites.suite import Suite

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/hooks/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def keys(reference):
    """The keys of each page."""
    return {
        page: [key for section in made() for key in section.keys]
        for page, (_, _, made) in reference.PAGES.items()
    }


# each verb's settings, the pages that list them, and the data block they share
SCHEMAS = {
    "pretrain": ((Pretrain, TrainerArguments), ("pretrain",)),
    "denoiser": ((OfDenoiser, TrainingSettings), ("denoiser", "pretrain")),
    "autoencoder": ((OfAutoencoder, AutoencoderSettings), ("autoencoder", "pretrain")),
    "generate": ((OfGenerate, GenerationSettings, Oracle), ("generate", "pretrain")),
    "linear": ((Linear,), ("evaluation", "pretrain")),
    "knn": ((Knn,), ("evaluation", "pretrain")),
    "transfer": ((Transfer,), ("evaluation",)),
    "finetune": ((Finetune,), ("evaluation", "pretrain")),
    "bench": ((Suite,), ("suites",)),
}


def listed(keys, verb):
    return {key.name for page in SCHEMAS[verb][1] for key in keys[page]}


def accepted(reference, schema, prefix=""):
    for one in fields(schema):
        yield prefix + one.name
        block = reference.nested(get_type_hints(schema)[one.name])
        if block is not None:
            yield from accepted(reference, block, f"{prefix}{one.name}.")


@pytest.mark.parametrize("verb", SCHEMAS)
def test_every_accepted_key_has_a_line(reference, keys, verb):
    for schema in SCHEMAS[verb][0]:
        assert set(accepted(reference, schema)) <= listed(keys, verb)


def test_every_line_has_a_type_a_default_and_a_meaning(keys):
    for page, lines in keys.items():
        for key in lines:
            assert key.kind, (page, key)
            assert key.meaning, (page, key)
            assert key.default or key.kind == "block", (page, key)


def test_every_method_and_its_settings_are_there(reference, keys):
    text = reference.page("methods")
    names = {key.name for key in keys["methods"]}
    for name, method in METHODS.items():
        assert f"`{name}`" in text
        assert {f"method_kwargs.{one.name}" for one in fields(method.Kwargs)} <= names


def settings(content, above=""):
    """The dotted keys of a YAML file; items of lists of blocks are called N."""
    for key, value in content.items():
        name = f"{above}{key}"
        yield name
        blocks = value if isinstance(value, list) else []
        for block in blocks:
            if isinstance(block, dict):
                yield from settings(block, f"{name}.N.")
        if isinstance(value, dict):
            yield from settings(value, f"{name}.")


def shipped_files(verb):
    """What the files of a verb say."""
    folder = shipped() / verb
    for file in folder.rglob("*.yaml"):
        if (verb, file.parent.name) == ("bench", "dataset"):
            continue
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if file.parent.name == "augmentations":
            content = {"augmentations": content}
        yield file, {k: v for k, v in content.items() if k not in ("defaults", "hydra")}


FREE = re.compile(r"(backbone\.kwargs|optimizer\.kwargs|variants|only|vary|datasets)\.")


@pytest.mark.parametrize("verb", SCHEMAS)
def test_every_shipped_key_has_a_line(keys, verb):
    known = listed(keys, verb) | {key.name for key in keys["methods"]}
    seen = 0
    for file, content in shipped_files(verb):
        for name in settings(content):
            block = name in ("augmentations", "data") or any(
                k.startswith(f"{name}.") for k in known
            )
            assert name in known or block or FREE.match(name), (file, name)
            seen += 1
    assert seen


def test_data_sets_of_suites_have_lines(keys):
    known = {key.name.removeprefix("datasets.NAME.") for key in keys["suites"]}
    for file in (shipped() / "bench/dataset").glob("*.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        names = [n for n in settings(content) if not n.startswith(("only.", "evaluations."))]
        assert set(names) <= known, file


@dataclass
class Example:
    """What a page is made of.

    More of it.

    Attributes:
        first, second: a text
            of two lines | with a bar.

            And a second paragraph.
        many: see :func:`~clsp_plugin.data.objects.as_images`.

    Raises:
        many: not an attribute.
    """

    first: int | None = ranged(None, low=1)
    second: float = ranged(2e-4, above=0, also=(-1,))
    many: tuple[int, ...] = ranged((1, 2), low=1)
    anything: Any = ranged("a", choices=("a", True))


def test_what_a_line_says(reference):
    first, second, many, anything = reference.keys_of(Example, "block.")
    text = "a text of two lines | with a bar. And a second paragraph."
    assert first == reference.Key(
        "block.first", "whole number, at least 1, or null", "`null`", text
    )
    assert second.kind == "number, above 0, or -1"
    assert second.default == "`0.0002`"
    assert (many.kind, many.default) == ("list of whole numbers, each at least 1", "`[1, 2]`")
    assert (anything.kind, anything.meaning) == ("a · True", "")
    (line,) = (line for line in reference._table([first]) if "block.first" in line)
    assert "lines \\| with" in line
    (line,) = (line for line in reference._table([many]) if "block.many" in line)
    assert 'identifier="clsp_plugin.data.objects.as_images"' in line
