"""A hook of mkdocs: the reference of every configuration key, made from the dataclasses.

Types, ranges and defaults are those that ``config.typed`` checks, meanings those of the
docstrings, under "Attributes:". So the pages cannot differ from what is accepted.
"""

import inspect
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from mkdocs.structure.files import File, Files
from omegaconf import MISSING

from clsp_plugin.candidates.oracle import Oracle
from clsp_plugin.config import training
from clsp_plugin.config.rules import Rule
from clsp_plugin.config.trainer_arguments import TrainerArguments
from clsp_plugin.data.augmentation import config as augmentation
from clsp_plugin.diffusion.autoencoder_training import AutoencoderSettings
from clsp_plugin.diffusion.denoiser import UNetSettings
from clsp_plugin.diffusion.drawer import GenerationSettings
from clsp_plugin.diffusion.module import TrainingSettings
from clsp_plugin.diffusion.sampling import Sampling
from clsp_plugin.diffusion.verbs import OfAutoencoder, OfDenoiser, OfGenerate
from clsp_plugin.evaluation import settings as evaluation
from clsp_plugin.evaluation.finetune import Finetune
from clsp_plugin.methods import METHODS
from clsp_plugin.suites import suite

_NAMES = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    Any: "see the meaning",
}
_ROLE = re.compile(r":(?:class|func|meth|mod|data):`~?([\w.]+)`")


@dataclass(frozen=True)
class Key:
    """One line of the reference."""

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A heading, what is said below it, and a table of keys."""

    title: str
    text: str
    keys: Sequence[Key]


def attributes(schema: type) -> dict[str, str]:
    """Return what the docstrings of a class and of its bases say of their attributes."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        _, _, block = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("Attributes:\n")
        names: list[str] = []
        for line in block.splitlines():
            if line and not line.startswith("    "):
                break  # the next section
            begins = re.match(r" {4}(\w[\w, ]*): *(.*)", line)
            names = begins[1].split(", ") if begins else names
            for name in names:
                before = "" if begins else found[name]
                found[name] = f"{before} {begins[2] if begins else line.strip()}".strip()
    return found


def _summary(schema: type) -> str:
    """Return what a class says of itself, without its attributes."""
    text = inspect.cleandoc(schema.__dict__.get("__doc__") or "")
    return _markdown(re.split(r"^(?:Attributes|Raises):$", text, flags=re.MULTILINE)[0].strip())


def _markdown(text: str) -> str:
    text = _ROLE.sub(lambda match: _reference(match[1]), text)
    return text.replace("|", r"\|")


def _reference(name: str) -> str:
    label = name.rsplit(".", 1)[-1]
    return f'<autoref identifier="{name}" optional><code>{label}</code></autoref>'


def nested(hint: Any) -> type | None:
    """Return the dataclass of a field that is a block of settings; None for other fields."""
    options = [hint, *get_args(hint)]
    return next((one for one in options if isinstance(one, type) and is_dataclass(one)), None)


def _kind(hint: Any, rule: Rule) -> str:
    """Say in words what a field accepts."""
    if get_origin(hint) in (Union, types.UnionType):
        options = [one for one in get_args(hint) if one is not type(None)]
        kind = " or ".join(_kind(one, rule) for one in options)
        return f"{kind}, or null" if "," in kind else f"{kind} or null"
    if nested(hint):
        return "block"
    if rule.choices:
        return str(rule).removeprefix("one of ").replace(", ", " · ")
    if get_origin(hint) in (list, tuple):
        inner = get_args(hint)[0]
        many = {int: "whole numbers", float: "numbers", str: "texts"}.get(inner, "anything")
        return f"list of {many}" + (f", each {rule}" if str(rule) else "")
    if get_origin(hint) is dict or hint is dict:
        return "block of any keys"
    return ", ".join(filter(None, (_NAMES[hint], str(rule))))


def _default(one: Field) -> str:
    made = one.default
    if one.default_factory is not NO_DEFAULT:
        made = one.default_factory()
    if made is NO_DEFAULT or (isinstance(made, str) and made == MISSING):
        return "required"
    if is_dataclass(made):
        return ""
    made = list(made) if isinstance(made, tuple) else made
    text = yaml.safe_dump(made, default_flow_style=True, width=1000).replace("...", "").strip()
    return f"`{text}`"


def keys_of(schema: type, prefix: str = "", own: bool = False) -> list[Key]:
    """List the fields of a settings dataclass, without those of nested blocks.

    Args:
        schema: the dataclass.
        prefix: what stands before each key, such as ``optimizer.``.
        own: whether to leave out the fields of its bases that it does not state anew.
    """
    hints, meanings = get_type_hints(schema), attributes(schema)
    stated = inspect.get_annotations(schema)
    return [
        Key(
            prefix + one.name,
            _kind(hints[one.name], one.metadata.get("rule", Rule())),
            _default(one),
            meanings.get(one.name, ""),
        )
        for one in fields(schema)
        if not own or one.name in stated
    ]


def _blocks(schema: type, prefix: str = "") -> Iterator[Section]:
    """Make a section of every nested block of a settings dataclass."""
    for one in fields(schema):
        block = nested(get_type_hints(schema)[one.name])
        if block is not None:
            name = f"{prefix}{one.name}"
            yield Section(f"`{name}`", _summary(block), keys_of(block, f"{name}."))
            yield from _blocks(block, f"{name}.")


def _section(title: str, schema: type, prefix: str = "", own: bool = False) -> Section:
    return Section(title, _summary(schema), keys_of(schema, prefix, own))


def augmentation_keys(prefix: str) -> list[Key]:
    """List the keys of a pipeline, whose blocks set the fields of ``AugmentationConfig``."""
    meanings = attributes(augmentation.AugmentationConfig)
    idle = "not used: `prob` alone decides"
    found = []
    for key in keys_of(augmentation._PIPELINE):
        if key.name not in augmentation._BLOCKS:
            meaning = key.meaning or meanings[key.name]
            found.append(Key(prefix + key.name, key.kind, key.default, meaning))
            continue
        of = augmentation._BLOCKS[key.name]
        block = nested(get_type_hints(augmentation._PIPELINE)[key.name])
        assert block is not None
        for inner in keys_of(block, f"{prefix}{key.name}."):
            name = inner.name.rsplit(".", 1)[-1]
            meaning = meanings[of[name]] if name in of else idle
            found.append(Key(inner.name, inner.kind, inner.default, meaning))
    return found


def _pretrain() -> list[Section]:
    pipelines = Section(
        "`augmentations`",
        "A list of pipelines; `N` counts them from 0. A block that is left out is switched off.",
        augmentation_keys("augmentations.N."),
    )
    trainer = _section("Arguments of Lightning's Trainer", TrainerArguments)
    top = Section("Top level", _summary(training.Pretrain), keys_of(training.Pretrain))
    return [top, *_blocks(training.Pretrain), pipelines, trainer]


def _methods() -> list[Section]:
    """One section a class of settings, with the names of the methods that have it."""
    names: dict[type, list[str]] = {}
    for name, method in METHODS.items():
        names.setdefault(method.Kwargs, []).append(name)
    return [
        Section(
            names[schema][0],
            " ".join([_summary(schema), "Of " + ", ".join(f"`{name}`" for name in whose) + "."]),
            keys_of(schema, "method_kwargs."),
        )
        for schema, whose in names.items()
    ]


def _denoiser() -> list[Section]:
    return [
        _section("What is trained", OfDenoiser),
        _section("The network", UNetSettings),
        _section("The training", TrainingSettings, own=True),
    ]


def _autoencoder() -> list[Section]:
    return [
        _section("What is trained", OfAutoencoder),
        _section("The network and its training", AutoencoderSettings),
    ]


def _generate() -> list[Section]:
    return [
        _section("What is drawn", OfGenerate),
        _section("How a candidate is drawn", Sampling),
        Section("How many, and how fast", "", keys_of(GenerationSettings, own=True)),
        _section("Candidates without a denoiser", Oracle),
    ]


def _evaluation() -> list[Section]:
    return [
        _section("`clsp linear`", evaluation.Linear),
        _section("`clsp knn`", evaluation.Knn),
        _section("`clsp transfer`", evaluation.Transfer),
        *(Section(f"`{name}` of `clsp transfer`", s.text, s.keys) for name, s in _of_transfer()),
        _section("`clsp finetune`", Finetune, own=True),
    ]


def _of_transfer() -> Iterator[tuple[str, Section]]:
    for section in _blocks(evaluation.Transfer):
        yield section.title.strip("`"), section


def _suites() -> list[Section]:
    return [
        _section("A suite", suite.Suite),
        _section("`table`", suite._Table, "table."),
        _section("A variant", suite._Variant, "variants.NAME."),
        _section("A data set", suite._DataSet, "datasets.NAME."),
        _section("Candidates of a data set or a variant", suite._Candidates, "candidates."),
    ]


# name of a page: its title, what it begins with, its sections
PAGES = {
    "pretrain": (
        "clsp pretrain",
        "Settings of [`clsp pretrain`](../index.md#the-way-of-the-data). What is particular to a "
        "method, its `method_kwargs`, is on [a page of its own](methods.md).",
        _pretrain,
    ),
    "methods": (
        "Settings of the methods",
        "The block `method_kwargs` of [`clsp pretrain`](pretrain.md). `clsp_<method>` and "
        "`<method>_aug` have the settings of their method.",
        _methods,
    ),
    "denoiser": (
        "clsp denoiser",
        "Settings of `clsp denoiser`; [Candidates](../candidates.md) says what to choose. The keys "
        "of `data` are those of [`clsp pretrain`](pretrain.md#data).",
        _denoiser,
    ),
    "autoencoder": (
        "clsp autoencoder",
        "Settings of `clsp autoencoder`; [Candidates](../candidates.md) says what it is for. The "
        "keys of `data` are those of [`clsp pretrain`](pretrain.md#data).",
        _autoencoder,
    ),
    "generate": (
        "clsp generate",
        "Settings of `clsp generate`; [Candidates](../candidates.md) says what to choose. The keys "
        "of `data` are those of [`clsp pretrain`](pretrain.md#data).",
        _generate,
    ),
    "evaluation": (
        "clsp linear, knn, transfer, finetune",
        "Settings of the evaluations. The keys of `data` are those of "
        "[`clsp pretrain`](pretrain.md#data); only what differs from the pre-training needs to be "
        "given. `clsp finetune` also has all settings of `clsp pretrain` but `method`, "
        "`method_kwargs`, `backbone`, `momentum`, `synthetic` and what follows them there.",
        _evaluation,
    ),
    "suites": (
        "clsp bench",
        "What the YAML of a suite may say; [Suites](../benchmark.md) has an example. A data set is "
        "a file in `scripts/bench/dataset`, or stands in the suite itself.",
        _suites,
    ),
}


def _table(keys: Sequence[Key]) -> Iterator[str]:
    yield '<div class="keys" markdown>'
    yield ""
    yield "| setting | accepts | default | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        kind = key.kind.replace("|", r"\|")
        yield f"| `{key.name}` | {kind} | {key.default} | {_markdown(key.meaning)} |"
    yield ""
    yield "</div>"


def page(name: str) -> str:
    """Return one page of the reference as Markdown."""
    title, text, sections = PAGES[name]
    lines = ["---", "search: {boost: 2}", "---", "", f"# {title}", "", text, ""]
    for section in sections():
        lines += [f"## {section.title}", "", section.text, ""]
        lines += [*_table(section.keys), ""] if section.keys else []
    return "\n".join(lines)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the reference."""
    for name in PAGES:
        files.append(File.generated(config, f"configuration/{name}.md", content=page(name)))
    return files
