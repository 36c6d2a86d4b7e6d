"""What `gc` removes, and what it leaves: the work of runs that live, or that may yet be run again, is not garbage."""

from __future__ import annotations

import errno
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from vidistill.flows.housekeeping import console, counted, existing, short_key
from vidistill.storage.errors import RequestError, StoreError
from vidistill.storage.files import size_of
from vidistill.storage.leases import Lease, collecting, leases, remove
from vidistill.storage.manifests import NOT_ENDED
from vidistill.storage.names import names
from vidistill.storage.store import ArtifactRef, Found, Store
from vidistill.tasks.report.tables import size

ROOTS = ("report", "pool", "pool-quality", "pool-part", "latte", "sprites", "segment-report")
"""Kinds that are kept, with what they were made from: reports, and what may have taken days to generate."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SIZES = {"": 1e9, "MB": 1e6, "GB": 1e9, "TB": 1e12}
PAST = "Reports past --older-than or --max-size"
FINISHED = "Checkpoints of finished stages"
DAMAGED = "Damaged"
UNREACHABLE = "Unreachable: no report, no pool and no run needs them"
UNREAD = (
    "Nothing is removed as unreachable while a manifest cannot be read, which may have named it: what is damaged goes; "
    "run gc again after the next run."
)
NAMED_KEYS = 4

Survey: TypeAlias = dict[ArtifactRef, Found]


@dataclass
class Sorted:
    """What is kept for runs, and what is garbage, both by the words that say why; leases whose time is past."""

    kept: dict[str, list[ArtifactRef]] = field(default_factory=lambda: defaultdict(list))
    garbage: dict[str, list[ArtifactRef]] = field(default_factory=lambda: defaultdict(list))
    expired: list[Lease] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """Which reports are kept: the newest always, others while they are young enough and all is small enough."""

    older_than: timedelta | None = None
    max_bytes: float = math.inf


def collect(
    location: str | None, yes: bool, keep_interrupted: str, older_than: str | None = None, max_size: str | None = None
) -> None:
    """Name what no report, no pool and no run in the store needs, and remove it if told so.

    Raises:
        RequestError: there is no such store, or what is given is no time, or no size.
        StoreError: something cannot be removed; how much was is said.
    """
    keep = interval(keep_interrupted, "--keep-interrupted")
    limits = Limits(interval(older_than, "--older-than") if older_than else None, amount(max_size))
    store = existing(location)
    if yes:
        _make_room(store)
        if "://" not in store.location:  # of a bucket no content is read, nor remembered
            store.survey(content=True)  # what is read now is not while new runs wait
    with collecting(store) if yes else nullcontext(leases(store)) as others:
        survey = store.survey(content=True)
        named = {ref for one in names(store).values() for ref in (*one.sets, one.report)}
        found = sort_out(survey, [lease for lease in others if not lease.collecting], keep, limits, named)
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


def _make_room(store: Store) -> None:
    """On a disk so full that not even a lease can be written, remove what no run can need: dead attempts, and the
    checkpoints of what is finished.
    """
    try:
        store.check_writable()
    except StoreError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        store.sweep()
        survey = store.survey()
        for ref in survey:
            if _finished(ref, survey):
                store.discard(ref)


def _finished(ref: ArtifactRef, survey: Survey) -> bool:
    """Whether it is a checkpoint of what is made and whole."""
    return ref.parent in survey and survey[ref.parent].problem is None


def interval(text: str, option: str) -> timedelta:
    """`7d`, `12h`, `30m`, `2w`, or `0`.

    Raises:
        RequestError: it is none of these.
    """
    told = re.fullmatch(r"(\d{1,5}) ?([smhdw])", "0s" if text.strip() == "0" else text.strip())
    if told is None:
        raise RequestError(f"{option} takes a time such as 7d, 12h or 0; got {text!r}.")
    return timedelta(**{UNITS[told[2]]: int(told[1])})


def amount(text: str | None) -> float:
    """Bytes: `50GB`, `500MB`, `1.5TB`, or gigabytes where no unit is told; no text: no limit.

    Raises:
        RequestError: it is none of these.
    """
    if text is None:
        return math.inf
    told = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(MB|GB|TB|)", text.strip().upper())
    if told is None:
        raise RequestError(f"--max-size takes a size such as 50GB or 500MB; got {text!r}.")
    return float(told[1]) * SIZES[told[2]]


def sort_out(
    survey: Survey, others: Iterable[Lease], keep: timedelta, limits: Limits, named: AbstractSet[ArtifactRef]
) -> Sorted:
    """Say of every artifact that no report, pool or name (storage/names.py) rests on why it stays or goes.

    What is damaged goes, but what it was made from stays, so that it can be made again: while a manifest
    cannot be read, that is all that there is.
    """
    made = Sorted()
    unread = _unread(survey)
    holding: dict[ArtifactRef, str] = {}
    held_once: dict[ArtifactRef, str] = {}
    for lease in sorted(others, key=lambda lease: lease.alive):
        kept = lease.alive or _left(lease, keep) > timedelta()
        words = _run(lease, keep)
        (holding if kept else held_once).update(dict.fromkeys(_claimed(survey, lease), words))
        if not kept:
            made.expired.append(lease)
    reached, past = _kept(survey, limits, set(holding), named)
    for ref, found in survey.items():
        if _finished(ref, survey):
            made.garbage[FINISHED].append(ref)
        elif ref in holding:
            made.kept[holding[ref]].extend([] if ref in reached else [ref])
        elif found.problem is not None:
            made.garbage[DAMAGED].append(ref)
        elif ref in past:
            made.garbage[PAST].append(ref)
        elif ref not in reached and not unread:
            made.garbage[f"Of {held_once[ref]}" if ref in held_once else UNREACHABLE].append(ref)
    return made


def _kept(
    survey: Survey, limits: Limits, held: set[ArtifactRef], named: AbstractSet[ArtifactRef]
) -> tuple[set[ArtifactRef], set[ArtifactRef]]:
    """What pools, names and reports within the limits rest on, and the reports past them, which are the oldest."""
    made = {ref: found.manifest.created for ref, found in survey.items() if ref.kind == "report" and found.manifest}
    oldest = "" if limits.older_than is None else (datetime.now(UTC) - limits.older_than).isoformat()
    reached = _reachable(survey, [*named, *(ref for ref in survey if ref.kind in ROOTS and ref not in made)])
    past: set[ArtifactRef] = set()
    for number, ref in enumerate(sorted(made, key=lambda ref: made[ref], reverse=True)):
        more = _reachable(survey, [ref], reached)
        large = sum(survey[one].bytes for one in reached | more | held) > limits.max_bytes
        if number and ref not in named and (past or large or made[ref] < oldest):
            past.add(ref)
        else:
            reached |= more
    return reached, past


def _reachable(
    survey: Survey, roots: Iterable[ArtifactRef], known: AbstractSet[ArtifactRef] = frozenset()
) -> set[ArtifactRef]:
    """Roots that are there, and what they were made from, as far as manifests can be read, without what is known."""
    left, found = list(roots), set[ArtifactRef]()
    while left:
        ref = left.pop()
        if ref in survey and ref not in found and ref not in known:
            found.add(ref)
            manifest = survey[ref].manifest
            left += manifest.needs if manifest else []
    return found


def _unread(survey: Survey) -> bool:
    """Whether something does not say any more what it was made from; what is still uploaded never did."""
    return any(found.manifest is None and found.problem != NOT_ENDED for found in survey.values())


def _claimed(survey: Survey, lease: Lease) -> set[ArtifactRef]:
    return _reachable(survey, lease.needs) | {ref for ref in survey if ref.parent in lease.needs}


def _run(lease: Lease, keep: timedelta) -> str:
    began = f"the run that began {_when(lease.began)}"
    if lease.alive:
        return f"{began} and is at work on {lease.owner['host']} ({lease.command})"
    left, now = _left(lease, keep), datetime.now(UTC)
    kept = f", until {_when(now + left)}" if left > timedelta() else ""
    return f"{began} and was interrupted {_when(now + left - keep)}{kept} ({lease.command})"


def _left(lease: Lease, keep: timedelta) -> timedelta:
    """How long an interrupted run is kept yet, by the store's clock: that of its host may be wrong."""
    return keep - timedelta(seconds=lease.silent_seconds)


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
    if _unread(survey):
        console.print(UNREAD)
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
