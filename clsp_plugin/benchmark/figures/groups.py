"""Which records are one line of a figure: those that differ in the seed alone."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clsp_plugin.benchmark.grid import counted
from clsp_plugin.benchmark.table import BUDGET, Records, family_order, recipe, varying
from clsp_plugin.engine.record import Record
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.synthetic import SyntheticPositives

__all__ = [
    "CANDIDATES", "WEIGHT", "Group", "families", "group", "settings", "symbol", "telling",
    "value_of",
]  # fmt: skip

CANDIDATES, WEIGHT = "synthetic.num_candidates", "synthetic.weight"
_SYMBOLS = {CANDIDATES: "K", WEIGHT: "λ", "candidates.w": "w", "optimizer.lr": "lr"}
_NOUNS = {"epochs": "epoch", "num_train": "image"}
_MOST = 3  # settings in a name


@dataclass(frozen=True, eq=False)
class Group:
    """Records of one line.

    Attributes:
        name: the method, and what tells this group from the others.
        records: with their paths.
    """

    name: str
    records: Records

    @property
    def method(self) -> str:
        return self.records[0][1].method

    @property
    def dataset(self) -> str:
        return self.records[0][1].dataset


def settings(record: Record) -> dict[str, str]:
    """What a record was made with, as JSON by dotted key; the candidates drawn from in one place.

    A run draws from the first ``synthetic.num_candidates`` of a store, or from all it has.
    """
    out = recipe(record)
    method = METHODS.get(record.method)
    if method is not None and not issubclass(method, SyntheticPositives):
        out = {key: value for key, value in out.items() if not key.startswith("synthetic")}
        return out  # its block is there and unused
    stored = out.pop("candidates.num_candidates", "null")
    if out.get(CANDIDATES, "null") == "null":
        out[CANDIDATES] = stored
    return out


def value_of(record: Record, key: str) -> Any:
    """One of the settings as a number, a string, ...; None where the record has none."""
    return json.loads(settings(record).get(key, "null"))


def group(records: Records, without: Collection[str] = (), several: bool | None = None
          ) -> list[Group]:  # fmt: skip
    """Records that agree in method, data set, budget and settings; families together.

    Args:
        records: with the paths they were loaded from.
        without: settings that may differ within a group; one that ends with a dot stands for all
            that begin with it.
        several: whether names say the data set; by default where there are several.
    """
    found: dict[tuple, list] = {}
    for path, record in records:
        found.setdefault(_key(record, without), []).append((path, record))
    if several is None:
        several = len({dataset for _, dataset, _, _ in found}) > 1
    order = family_order(method for method, *_ in found)
    keys = sorted(found, key=lambda key: order.index(key[0]))
    names = _names(keys, several)
    return [Group(name, found[key]) for name, key in zip(names, keys, strict=True)]


def _key(record: Record, without: Collection[str]) -> tuple:
    budget = tuple(getattr(record, name) for name in BUDGET)
    kept = ((k, v) for k, v in settings(record).items() if not _matches(k, without))
    return (record.method, record.dataset, budget, tuple(sorted(kept)))


def _matches(key: str, without: Collection[str]) -> bool:
    return any(key == name or (name[-1] == "." and key.startswith(name)) for name in without)


def _names(keys: Sequence[tuple], several: bool) -> list[str]:
    """A name for each group, no two on a data set alike."""
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
    """A few settings that tell all different ones apart; what the paper varies comes first.

    Args:
        flat: of each run or group, see :func:`settings`.
    """
    chosen: list[str] = []
    classes = 1
    for key in sorted({key for one in flat for key in one}, key=_rank):
        found = len({tuple(one.get(k, "null") for k in (*chosen, key)) for one in flat})
        if found > classes:
            chosen, classes = [*chosen, key], found
    return chosen


def _rank(key: str) -> tuple[int, str]:
    known = list(_SYMBOLS)
    return (known.index(key) if key in known else len(known), key)


def symbol(key: str) -> str:
    """What people call a setting."""
    return _SYMBOLS.get(key, key)


def _plain(text: str) -> str:
    value = json.loads(text)
    short = f"{value:g}" if isinstance(value, int | float) else str(value)
    return short if len(short) <= 16 else f"{short[:12]}.."


def families(records: Records, key: str) -> list[Group]:
    """Groups in which one setting takes several values and everything else agrees.

    Their names do not say the data set.

    A run whose synthetic positives weigh nothing draws from no store; it belongs to the families
    of lambda that differ from it only in the candidates, those of several values before others.

    Args:
        records: with the paths they were loaded from.
        key: of the setting.
    """
    zero = [
        (path, record)
        for path, record in records
        if key == WEIGHT and record.candidates is None and value_of(record, key) == 0
    ]
    apart = [key, CANDIDATES, "candidates."]
    own = [pair for pair in records if pair not in zero and value_of(pair[1], key) is not None]
    found = group(own, [key], several=False)
    found = [one for one in found if _several(one.records, key)] or (found if zero else [])
    out = []
    for one in found:
        first = _key(one.records[0][1], apart)
        joined = [(path, record) for path, record in zero if _key(record, apart) == first]
        out.append(Group(one.name, [*one.records, *joined]))
    return [one for one in out if _several(one.records, key)]


def _several(records: Records, key: str) -> bool:
    return len({value_of(record, key) for _, record in records}) > 1
