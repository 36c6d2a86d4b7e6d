"""Where a setting is looked for: `0.001..0.1:log`, `10..200`, `a|b|c`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from vidistill.flows.parameters import Experiment, checked, put
from vidistill.flows.rows import options_of, rows_of
from vidistill.storage.errors import RequestError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = re.compile(r"(?P<low>[-+.\w]+?)\.\.(?P<high>[-+.\w]+?)(?P<log>:log)?")


def within(name: str, text: str) -> BaseDistribution:
    """The distribution that a range stands for.

    Raises:
        RequestError: it is none, or Optuna is not installed.
    """
    try:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    except ImportError as error:
        raise RequestError("tune needs Optuna: pip install 'vidistill[tune]'.") from error
    found = RANGE.fullmatch(text)
    try:
        if "|" in text:
            return CategoricalDistribution([yaml.safe_load(choice) for choice in text.split("|")])
        if not found:
            raise ValueError("it has no ..")
        low, high = found["low"], found["high"]
        if float(low) > float(high):
            raise ValueError(f"{low} is above {high}")
        if found["log"] and float(low) <= 0:
            raise ValueError(f"a logarithm has no {low}")
        whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (low, high))
        if whole:
            return IntDistribution(int(low), int(high), log=bool(found["log"]))
        return FloatDistribution(float(low), float(high), log=bool(found["log"]))
    except (ValueError, yaml.YAMLError) as error:
        raise RequestError(
            f"{name}={text} is no range ({error}): write 0.001..0.1, 0.001..0.1:log, 10..200, or a|b|c."
        ) from error


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    """All choices, or both ends."""
    if hasattr(distribution, "choices"):
        return tuple(distribution.choices)
    return distribution.low, distribution.high  # type: ignore[attr-defined]


def is_range(text: str) -> bool:
    """Whether a setting says where to look instead of a value."""
    return "|" in text or RANGE.fullmatch(text) is not None


def checked_request(
    experiment: Experiment, ranges: Mapping[str, str]
) -> tuple[Experiment, dict[str, BaseDistribution]]:
    """The experiment on the group-aware fifth of the training split, and where each setting is looked for.

    Raises:
        RequestError: there is nothing to look for, there are several methods, or a setting is none of the method's.
    """
    if len(experiment.cells) != 1:
        raise RequestError("tune takes one method at a time: --method mtt.")
    if not ranges:
        raise RequestError("tune needs a range to look in, such as --set mtt.lr=0.003..0.1:log.")
    space = {name: within(name, text) for name, text in ranges.items()}
    held = experiment.model_copy(update={"index": experiment.index.model_copy(update={"holdout": True})})
    first = {name: _ends(one)[0] for name, one in space.items()}
    for name, one in space.items():
        for value in _ends(one):
            trial_of(held, first | {name: value})
    return held, space


def trial_of(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with these values.

    Raises:
        RequestError: it has no such setting, or does not take such a value.
    """
    plain = experiment.model_dump(mode="json", exclude_unset=True)
    for name, value in values.items():
        put(plain, name, value)
    asked = checked(Experiment, plain, "The experiment")
    for row in rows_of(asked):
        if row.source is not None:
            options_of(row.source, row.cell)
    return asked
