"""What `gc` removes, and what it leaves: the work of runs that live, or that may yet be run again, is not garbage."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from vidistill.flows.housekeeping import console, counted, existing, short_key
from vidistill.storage.errors import RequestError, StoreError
from vidistill.storage.files import size_of
from vidistill.storage.leases import Lease, collecting, leases, remove
from vidistill.storage.store import ArtifactRef, Found, Store
from vidistill.tasks.report.tables import size

ROOTS = ("report", "pool", "pool-quality", "pool-part", "latte", "sprites")
"""Kinds that are kept, with what they were made from: reports, and what may have taken days to generate."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
FINISHED = "Checkpoints of finished stages"
DAMAGED = "Damaged"
UNREACHABLE = "Unreachable: no report, no pool and no run needs them"
NAMED_KEYS = 4

Survey: TypeAlias = dict[ArtifactRef, Found]


@dataclass
class Sorted:
    """What is kept for runs, and what is garbage, both by the words that say why; leases whose time is past."""

    kept: dict[str, list[ArtifactRef]] = field(default_factory=lambda: defaultdict(list))
    garbage: dict[str, list[ArtifactRef]] = field(default_factory=lambda: defaultdict(list))
    expired: list[Lease] = field(default_factory=list)


def collect(location: str | None, yes: bool, keep_interrupted: str) -> None:
    """Name what no report, no pool and no run in the store needs, and remove it if told so.

    Raises:
        RequestError: there is no such store, or `keep_interrupted` is no time.
        StoreError: something cannot be removed; how much was is said.
    """
    keep, store = interval(keep_interrupted), existing(location)
    with collecting(store) if yes else nullcontext(leases(store)) as others:
        survey = store.survey(content=True)
        found = sort_out(survey, [lease for lease in others if not lease.collecting], keep)
        _say(store, survey, found)
        garbage = [ref for refs in found.garbage.values() for ref in refs]
        if yes:
            _remove(store, survey, garbage)
            for lease in found.expired:
                remove(store, lease)
        elif garbage or store.dead_attempts():
            console.print("Nothing was removed: say --yes to do it.")
        else:
            console.print("There is nothing to remove.")


def interval(text: str) -> timedelta:
    """`7d`, `12h`, `30m`, `2w`, or `0`.

    Raises:
        RequestError: it is none of these.
    """
    told = re.fullmatch(r"(\d{1,5}) ?([smhdw])", "0s" if text.strip() == "0" else text.strip())
    if told is None:
        raise RequestError(f"--keep-interrupted takes a time such as 7d, 12h or 0; got {text!r}.")
    return timedelta(**{UNITS[told[2]]: int(told[1])})


def sort_out(survey: Survey, others: Iterable[Lease], keep: timedelta) -> Sorted:
    """Say of every artifact that no report or pool rests on why it stays or goes.

    What is damaged goes, but what it was made from stays, so that it can be made again.
    """
    made = Sorted()
    reached = _reachable(survey, (ref for ref in survey if ref.kind in ROOTS))
    holding: dict[ArtifactRef, str] = {}
    held_once: dict[ArtifactRef, str] = {}
    for lease in sorted(others, key=lambda lease: lease.alive):
        kept = lease.alive or lease.renewed + keep > datetime.now(UTC)
        words = _run(lease, keep)
        (holding if kept else held_once).update(dict.fromkeys(_claimed(survey, lease), words))
        if not kept:
            made.expired.append(lease)
    for ref, found in survey.items():
        parent = ref.parent
        if parent in survey and survey[parent].problem is None:
            made.garbage[FINISHED].append(ref)
        elif ref in holding:
            made.kept[holding[ref]].extend([] if ref in reached else [ref])
        elif found.problem is not None:
            made.garbage[DAMAGED].append(ref)
        elif ref not in reached:
            made.garbage[f"Of {held_once[ref]}" if ref in held_once else UNREACHABLE].append(ref)
    return made


def _reachable(survey: Survey, roots: Iterable[ArtifactRef]) -> set[ArtifactRef]:
    """Roots that are there, and what they were made from, as far as manifests can be read."""
    left, found = list(roots), set[ArtifactRef]()
    while left:
        ref = left.pop()
        if ref in survey and ref not in found:
            found.add(ref)
            manifest = survey[ref].manifest
            left += [need for needs in manifest.inputs.values() for need in needs] if manifest else []
    return found


def _claimed(survey: Survey, lease: Lease) -> set[ArtifactRef]:
    return _reachable(survey, lease.needs) | {ref for ref in survey if ref.parent in lease.needs}


def _run(lease: Lease, keep: timedelta) -> str:
    began = f"the run that began {_when(lease.began)}"
    if lease.alive:
        return f"{began} and is at work on {lease.owner['host']} ({lease.command})"
    until = lease.renewed + keep
    kept = f", until {_when(until)}" if until > datetime.now(UTC) else ""
    return f"{began} and was interrupted {_when(lease.renewed)}{kept} ({lease.command})"


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _say(store: Store, survey: Survey, found: Sorted) -> None:
    """Print what is kept for runs, and what may go."""
    for words, refs in found.kept.items():
        console.print(f"Kept for {words}: {counted(refs, survey)}", markup=False)
    for words, refs in found.garbage.items():
        console.print(f"{words}: {counted(refs, survey)}", markup=False)
        for line in _damages(refs, survey) if words == DAMAGED else _kinds(refs, survey):
            console.print(f"  {line}", markup=False)
    dead = store.dead_attempts()
    if dead:
        console.print(f"Left by attempts that died: {len(dead)} folders, {size(sum(map(size_of, dead)))}")
    garbage = [ref for refs in found.garbage.values() for ref in refs]
    console.print(f"May go: {counted(garbage, survey)}, of {counted(survey, survey)} in {store.location}", markup=False)


def _kinds(refs: list[ArtifactRef], survey: Survey) -> Iterator[str]:
    """A line a kind: how many, how large, and the first keys."""
    for kind in dict.fromkeys(ref.kind for ref in refs):
        own = [ref for ref in refs if ref.kind == kind]
        named = ", ".join(short_key(ref) for ref in own[:NAMED_KEYS])
        more = f" and {len(own) - NAMED_KEYS} more" if len(own) > NAMED_KEYS else ""
        yield f"{kind:20} {len(own):5} {size(sum(survey[ref].bytes for ref in own)):>9}  {named}{more}"


def _damages(refs: list[ArtifactRef], survey: Survey) -> Iterator[str]:
    return (f"{ref}  {size(survey[ref].bytes)}  {survey[ref].problem}" for ref in refs)


def _remove(store: Store, survey: Survey, garbage: list[ArtifactRef]) -> None:
    removed: list[ArtifactRef] = []
    try:
        for ref in garbage:
            store.discard(ref)
            removed.append(ref)
        swept = store.sweep()
    except StoreError:
        console.print(f"Removed before that failed: {counted(removed, survey)}")
        raise
    console.print(f"Removed {counted(removed, survey)}" + (f", and {len(swept)} dead attempts" if swept else ""))
