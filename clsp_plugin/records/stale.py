"""Whether a number would come out the same with today's numerics and settings."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from clsp_plugin.config.compose import compose
from clsp_plugin.config.shipped import fingerprint
from clsp_plugin.errors import ClspError
from clsp_plugin.records.numerics import numerics_of, older_than_today
from clsp_plugin.records.numerics_before import made_by
from clsp_plugin.records.record import Record

__all__ = ["CHANGED", "STALE", "changed", "is_stale"]

STALE, CHANGED = "†", "‡"  # marks behind numbers
# Overrides that fingerprints ignore; without them all runs of a suite share one cached result.
_LEFT_OUT = re.compile(r"\+*(seed|name|pretrained_feature_extractor|record_dir|synthetic\.path)=")


def is_stale(record: Record, evaluation: Mapping[str, Any] | None = None) -> bool:
    """Whether a record's numbers were made by other versions of the numerics than today's.

    A number that names no versions does not count as stale, nor does one of an unknown method.

    Args:
        record: record of the run.
        evaluation: the evaluation to look at, besides the pre-training; by default all of them.
    """
    evaluations = record.evaluations if evaluation is None else [evaluation]
    trained = numerics_of("pretrain", record.dataset, record.method)
    made = [(made_by(record.versions), trained)]
    made += [(made_by(e), numerics_of(e["task"], e["dataset"])) for e in evaluations]
    return any(older_than_today(then, now) for then, now in made)


def changed(records: Sequence[Record], evaluations: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return the configurations that runs and evaluations named and that have other settings today.

    A configuration that is not known or does not exist any more is left out.

    Args:
        records: records, to look at the configurations of their pre-trainings.
        evaluations: evaluations, to look at their configurations.

    Returns:
        ``VERB CONFIGURATION`` for each, without repetitions.
    """
    sources = [("pretrain", record.source) for record in records]
    sources += [(evaluation["task"], evaluation.get("source")) for evaluation in evaluations]
    found = [(verb, source) for verb, source in sources if source and _differs(verb, source)]
    return list(dict.fromkeys(f"{verb} {source['config']}" for verb, source in found))


def _differs(verb: str, source: Mapping[str, Any]) -> bool:
    given = tuple(o for o in source["overrides"] if not _LEFT_OUT.match(o))
    return _today(verb, source["config"], given) not in (None, source["settings"])


@cache
def _today(verb: str, config: str, overrides: tuple[str, ...]) -> str | None:
    try:
        return fingerprint(compose(verb, config, overrides))
    except (ClspError, HydraException, OmegaConfBaseException):
        return None
