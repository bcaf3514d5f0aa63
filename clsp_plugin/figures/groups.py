"""Group records into the lines of a figure: records of a line differ in the seed alone."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsp_plugin.methods import METHODS
from clsp_plugin.methods.synthetic import SyntheticPositives
from clsp_plugin.records.recipe import BUDGET, Records, holds, recipe
from clsp_plugin.records.record import Record
from clsp_plugin.tables.formats import counted
from clsp_plugin.tables.make import Listing
from clsp_plugin.tables.rows import family_order, varying

__all__ = [
    "CANDIDATES", "WEIGHT", "Group", "families", "group", "settings", "symbol", "telling",
    "value_of",
]  # fmt: skip

CANDIDATES, WEIGHT = "synthetic.num_candidates", "synthetic.weight"
_SYMBOLS = {CANDIDATES: "K", WEIGHT: "λ", "candidates.w": "w", "optimizer.lr": "lr"}
_NOUNS = {"epochs": "epoch", "num_train": "image"}
_MOST = 3  # largest number of settings in a name


@dataclass(frozen=True, eq=False)
class Group:
    """The records of one line.

    Attributes:
        name: the method, and what tells this group from the others.
        records: pairs of a path and its record.
        variant: a suite's name for a method with settings of its own.
    """

    name: str
    records: Records
    variant: str = ""

    @property
    def method(self) -> str:
        return self.records[0][1].method

    @property
    def dataset(self) -> str:
        return self.records[0][1].dataset


def settings(record: Record, point: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the settings that a record was made with, as JSON by dotted key.

    The number of candidates drawn from is always ``synthetic.num_candidates``: a run draws from the
    first so many of a store, or from all that it has.

    Args:
        record: record of the run.
        point: values that a suite varied; those that the record does not hold itself are added.
    """
    apart = {k: json.dumps(v) for k, v in (point or {}).items() if not holds(record, k)}
    out = recipe(record) | apart
    method = METHODS.get(record.method)
    if method is not None and not issubclass(method, SyntheticPositives):
        # the method ignores its synthetic block, but what a suite varies in it tells runs apart
        return {
            key: value
            for key, value in out.items()
            if not key.startswith("synthetic") or key in (point or {})
        }
    stored = out.pop("candidates.num_candidates", "null")
    if out.get(CANDIDATES, "null") == "null":
        out[CANDIDATES] = stored
    return out


def value_of(record: Record, key: str) -> Any:
    """Return one of the settings as a number, a string, ...; None where the record has none."""
    return json.loads(settings(record).get(key, "null"))


def group(
    records: Records,
    without: Collection[str] = (),
    several: bool | None = None,
    told: Listing | None = None,
) -> list[Group]:
    """Group records by method, variant, data set, budget and settings, with families together.

    Args:
        records: pairs of a path and its record.
        without: settings that may differ within a group; one that ends with a dot stands for all
            that begin with it.
        several: whether names say the data set; by default where there are several.
        told: what suites say of the records, such as their variants' names.
    """
    found: dict[tuple, list] = {}
    for path, record in records:
        found.setdefault(_key(path, record, without, told), []).append((path, record))
    if several is None:
        several = len({dataset for _, dataset, *_ in found}) > 1
    order = family_order(record.method for _, record in records)
    keys = sorted(found, key=lambda key: order.index(found[key][0][1].method))
    names = _names(keys, several)
    return [
        Group(name, found[key], _variant(found[key][0][0], told))
        for name, key in zip(names, keys, strict=True)
    ]


def _variant(path: Path, told: Listing | None) -> str:
    return told.variants.get(path, "") if told else ""


def _key(path: Path, record: Record, without: Collection[str], told: Listing | None) -> tuple:
    budget = tuple(getattr(record, name) for name in BUDGET)
    own = settings(record, told.points.get(path) if told else None)
    kept = ((k, v) for k, v in own.items() if not _matches(k, without))
    name = _variant(path, told) or record.method
    return (name, record.dataset, budget, tuple(sorted(kept)))


def _matches(key: str, without: Collection[str]) -> bool:
    verb, _, rest = key.partition(".")
    if verb in ("generate", "denoiser"):  # recorded in the candidates' manifest
        key = f"candidates.{rest}" if verb == "generate" else "candidates.denoiser"
        key = CANDIDATES if key == "candidates.num_candidates" else key
    return any(key == name or (name[-1] == "." and key.startswith(name)) for name in without)


def _names(keys: Sequence[tuple], several: bool) -> list[str]:
    """Return a name for each group, with no two alike on a data set."""
    budgets = [dict(zip(BUDGET, budget, strict=True)) for _, _, budget, _ in keys]
    shown = varying((key[1], budget) for key, budget in zip(keys, budgets, strict=True))
    flat = [dict(items) for *_, items in keys]
    names = []
    for (method, dataset, _, _), budget, own in zip(keys, budgets, flat, strict=True):
        rivals = [f for k, f in zip(keys, flat, strict=True) if k[:2] == (method, dataset)]
        differ = telling(rivals)
        parts = [dataset] * several + [_budget(name, budget[name]) for name in shown]
        told = [k for k in differ if own.get(k, "null") != "null"]
        parts += [f"{symbol(k)} = {_plain(own[k])}" for k in told[:_MOST]]
        names.append(", ".join([method, *parts]))
    seen: dict[tuple[str, str], int] = {}
    alike = [(key[1], name) for key, name in zip(keys, names, strict=True)]
    for place, one in enumerate(alike):
        if alike.count(one) > 1:
            seen[one] = seen.get(one, 0) + 1
            names[place] = f"{names[place]} ({seen[one]})"
    return names


def _budget(name: str, value: Any) -> str:
    return counted(value, _NOUNS[name]) if name in _NOUNS else str(value)


def telling(flat: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a few settings that tell all runs apart; what the paper varies comes first.

    Args:
        flat: settings of each run or group, see :func:`settings`.
    """
    chosen: list[str] = []
    classes = 1
    for key in sorted({key for one in flat for key in one}, key=_rank):
        found = len({tuple(one.get(k, "null") for k in (*chosen, key)) for one in flat})
        if found > classes:
            chosen, classes = [*chosen, key], found
    return chosen


def _rank(key: str) -> tuple[int, str]:
    known = [*_SYMBOLS, "generate", "denoiser"]  # what a suite varies comes before hashes
    name = key if key in known else key.partition(".")[0]
    return (known.index(name) if name in known else len(known), key)


def symbol(key: str) -> str:
    """Return the usual symbol of a setting, or its key if it has none."""
    return _SYMBOLS.get(key, key)


def _plain(text: str) -> str:
    value = json.loads(text)
    number = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)
    short = f"{value:g}" if number else str(value)
    return short if len(short) <= 16 else f"{short[:12]}.."


def families(records: Records, key: str, told: Listing | None = None) -> list[Group]:
    """Return groups in which one setting takes several values and everything else agrees.

    Their names do not say the data set.

    A run with weight 0 (lambda) on its synthetic positives draws from no store. It joins the
    families of lambda that differ from it only in the candidates. Families with a single value of
    lambda count only where none has several.

    Args:
        records: pairs of a path and its record.
        key: dotted key of the setting.
        told: what suites say of the records.
    """
    zero = [
        (path, record)
        for path, record in records
        if key == WEIGHT and record.candidates is None and value_of(record, key) == 0
    ]
    apart = [key, CANDIDATES, "candidates."]
    own = [pair for pair in records if pair not in zero and value_of(pair[1], key) is not None]
    found = group(own, [key], several=False, told=told)
    found = [one for one in found if _several(one.records, key)] or (found if zero else [])
    out = []
    for one in found:
        first = _key(*one.records[0], apart, told)
        joined = [pair for pair in zero if _key(*pair, apart, told) == first]
        out.append(Group(one.name, [*one.records, *joined], one.variant))
    return [one for one in out if _several(one.records, key)]


def _several(records: Records, key: str) -> bool:
    return len({value_of(record, key) for _, record in records}) > 1
