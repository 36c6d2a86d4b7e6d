"""What `verify`, `export` and `report` do to a store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from vidistill.storage.errors import ArtifactDamaged, RequestError
from vidistill.storage.files import copy_out
from vidistill.storage.manifests import ABSENT, NOT_ENDED
from vidistill.storage.names import names
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.store import ArtifactRef, Found, Store
from vidistill.tasks.report.export import export_set, said_of_loss
from vidistill.tasks.report.gather import HTML, JSON
from vidistill.tasks.report.tables import size

CHECKS = 2 * (os.cpu_count() or 1)
"""Artifacts that are read at a time: the one waits for its disk while another is summed up."""

console = Console(soft_wrap=True, highlight=False, markup=False)


def existing(location: str | None) -> Store:
    """The store, which must have been made by a run.

    Raises:
        RequestError: there is none at that place.
    """
    place = location or default_location()
    store = open_store(place)
    if not store.exists():
        raise RequestError(
            f"There is no store at {store.location}: name one by --store, or make one by `vidistill run`."
        )
    return store


def short_key(ref: ArtifactRef) -> str:
    """As much of a key as a person needs to name it; a checkpoint's with its step."""
    key, dash, step = ref.key.partition("-")
    return f"{key[:12]}{dash}{step}"


def counted(refs: Iterable[ArtifactRef], survey: Mapping[ArtifactRef, Found]) -> str:
    """How many artifacts, and how large."""
    sizes = [survey[ref].bytes for ref in refs]
    return f"{len(sizes)} artifact{'s' * (len(sizes) != 1)}, {size(sum(sizes))}"


def verify(location: str | None) -> None:
    """Check every byte of every artifact; what was never uploaded to the end is none.

    Raises:
        ArtifactDamaged: naming how many are damaged; each has been printed.
    """
    store = existing(location)
    survey = {ref: found for ref, found in store.survey().items() if found.problem != NOT_ENDED}
    refs = list(survey)
    with ThreadPoolExecutor(CHECKS) as pool:
        problems = dict(zip(refs, pool.map(store.audit, refs), strict=True))
    damaged = {
        ref: problem
        for ref, first in problems.items()
        if first not in {None, ABSENT}  # a checkpoint that a run has removed meanwhile
        and (problem := store.audit(ref)) not in {None, ABSENT}  # it may have been on its way out
    } | _lost(survey)
    for ref, problem in damaged.items():
        console.print(f"{ref} is damaged: {problem}", markup=False)
    if damaged:
        raise ArtifactDamaged(
            f"{len(damaged)} of {len(refs)} artifacts in {store.location} are damaged or gone: "
            "run the experiment again to rebuild them, or see by `vidistill gc` what may be removed."
        )
    console.print(f"{len(refs)} artifacts in {store.location} are whole.")


def _lost(survey: Mapping[ArtifactRef, Found]) -> dict[ArtifactRef, str]:
    """What artifacts were made from, and is no longer there."""
    return {
        need: f"{ABSENT}, and {ref} was made from it"
        for ref, found in survey.items()
        if found.manifest and found.problem is None
        for need in found.manifest.needs
        if need not in survey
    }


def set_of(store: Store, key: str) -> ArtifactRef:
    """The set of this name, of this key, or of these first letters of it.

    Raises:
        RequestError: no set has this key, or several begin with it.
    """
    known = names(store)
    if key in known:
        return known[key].sets[0]
    if not (key := _bare(key, SETS)):
        raise RequestError("Which set? Give the first letters of its key (`vidistill ls distilled`).")
    sets = [ref for kind in SETS for ref, look in store.survey(kind).items() if look.problem is None]
    found = [ref for ref in sets if ref.key.startswith(key)]
    if not found:
        raise RequestError(
            f"The store {store.location} has no set {key!r}: see `vidistill ls distilled`; its names are "
            f"{', '.join(known) or 'none'} (the flow `refresh` gives them)."
        )
    if len(found) > 1:
        raise RequestError(f"{len(found)} sets begin with {key!r}: give more of the key (`vidistill ls distilled`).")
    return found[0]


SETS = ("recoded", "relabelled", "joined", "distilled")


def _bare(key: str, kinds: Sequence[str]) -> str:
    """The key alone where it is given as `vidistill ls` has it, after one of these kinds."""
    kind, _, rest = key.partition("/")
    return rest if kind in kinds else key


def export(key: str, location: str | None, out: Path, fps: int, kind: str) -> None:
    """Write a distilled set as files, and say what they cost.

    Raises:
        RequestError: no set has this key, several begin with it, or the folder is not empty.
    """
    store = existing(location)
    ref = set_of(store, key)
    facts = export_set(store, ref, out, fps, kind)
    sizes = {name: size(stored) for name, stored in facts["bytes"].items()}
    needed = f", but for its teacher's weights, {sizes['teacher']}" if "teacher" in sizes else " with all it needs"
    console.print(f"{ref} is {sizes['stored']} as stored, {sizes['exported']} as {kind}{needed}: {out}")
    console.print("Nothing is lost." if facts["lossless"] else said_of_loss(facts["loss"]))


def write_report(key: str, location: str | None, out: Path) -> None:
    """Copy a report out of the store.

    Raises:
        RequestError: no report has this key, or several begin with it.
    """
    store = existing(location)
    looks = store.survey("report").items()
    reports = {ref: found.manifest.created for ref, found in looks if found.manifest and found.problem is None}
    if key == "latest":
        found = sorted(reports, key=lambda ref: reports[ref])[-1:]
    else:
        letters = _bare(key, ("report",))
        found = [ref for ref in reports if letters and ref.key.startswith(letters)]
    if not found:
        advice = "see `vidistill ls report`" if reports else "none was made yet, `vidistill run` makes one"
        raise RequestError(f"The store {store.location} has no report {key!r}: {advice}.")
    if len(found) > 1:
        raise RequestError(f"{len(found)} reports begin with {key!r}: give more of the key (`vidistill ls report`).")
    copy_out(store.folder(found[0]), (HTML, JSON), out)
    console.print(f"The report is {out / HTML}")
