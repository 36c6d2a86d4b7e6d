"""What `ls`, `gc`, `verify`, `export` and `report` do to a store."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from vidistill.storage.errors import ArtifactDamaged, RequestError
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.report.export import export_set, said_of_loss
from vidistill.tasks.report.gather import HTML, JSON

console = Console(soft_wrap=True, highlight=False)
ROOTS = ("report", "pool", "pool-quality", "pool-part", "latte")
"""Kinds that are kept, with what they were made from: reports, and what may have taken days to generate."""


def _existing(location: str | None) -> Store:
    """The store, which must have been made by a run.

    Raises:
        RequestError: there is none at that place.
    """
    place = location or default_location()
    store = open_store(place)
    if "://" not in place and not store.root.is_dir():
        raise RequestError(f"There is no store at {store.root}: name one by --store, or make one by `vidistill run`.")
    return store


def list_artifacts(kind: str | None, location: str | None) -> None:
    """Print a line an artifact."""
    store = _existing(location)
    refs = store.refs(kind)
    if kind and not refs:
        kinds = ", ".join(sorted({ref.kind for ref in store.refs()})) or "nothing yet"
        raise RequestError(f"The store {store.location} has no artifact of the kind {kind!r}; it has {kinds}.")
    for ref in refs:
        problem = store.problem(ref)
        if problem is not None:
            console.print(f"{ref!s:48} [red]damaged: {problem}[/red]")
            continue
        manifest = store.manifest(ref)
        console.print(f"{ref!s:48} {manifest.bytes / 1e6:9.2f} MB {manifest.seconds:8.1f} s  {manifest.created}")
    console.print(f"{len(refs)} artifacts in {store.location}")


def verify(location: str | None) -> None:
    """Check every byte of every artifact.

    Raises:
        ArtifactDamaged: naming how many are damaged; each has been printed.
    """
    store = _existing(location)
    refs = store.refs()
    problems = {ref: store.problem(ref, thorough=True) for ref in refs}
    lost = {need: f"no artifact, and {ref} was made from it" for ref in refs for need in _lost(store, ref)}
    damaged = {ref: problem for ref, problem in (problems | lost).items() if problem is not None}
    for ref, problem in damaged.items():
        console.print(f"{ref} is damaged: {problem}")
    if damaged:
        raise ArtifactDamaged(
            f"{len(damaged)} of {len(refs)} artifacts in {store.location} are damaged or gone: "
            "run the experiment again to rebuild them, or `vidistill gc --yes` to remove them."
        )
    console.print(f"{len(refs)} artifacts in {store.location} are whole.")


def _lost(store: Store, ref: ArtifactRef) -> list[ArtifactRef]:
    """Inputs of a whole artifact that are no longer there."""
    if not store.has(ref):
        return []
    needs = [need for needs in store.manifest(ref).inputs.values() for need in needs]
    return [need for need in needs if store.problem(need) == "no artifact"]


def collect(location: str | None, yes: bool) -> None:
    """Remove, or name, what no whole report or pool in the store was made from."""
    store = _existing(location)
    used = _reachable(store)
    unused = [ref for ref in store.refs() if ref not in used]
    freed = 0
    for ref in unused:
        size = store.manifest(ref).bytes if store.has(ref) else 0
        freed += size
        console.print(f"{'removed' if yes else 'unused'} {ref} ({size / 1e6:.2f} MB)")
        if yes:
            store.discard(ref)
    swept = store.sweep() if yes else []
    console.print(f"{len(unused)} artifacts ({freed / 1e6:.1f} MB) and {len(swept)} dead attempts.")
    if unused and not yes:
        console.print("Nothing was removed: say --yes to do it.")


def _reachable(store: Store) -> set[ArtifactRef]:
    left = [ref for kind in ROOTS for ref in store.refs(kind) if store.has(ref)]
    found: set[ArtifactRef] = set()
    while left:
        ref = left.pop()
        if ref not in found and store.has(ref):
            found.add(ref)
            left += [need for needs in store.manifest(ref).inputs.values() for need in needs]
    return found | set(store.refs("sprites"))


SETS = ("recoded", "relabelled", "joined", "distilled")


def export(key: str, location: str | None, out: Path, fps: int, kind: str) -> None:
    """Write a distilled set as files, and say what they cost.

    Raises:
        RequestError: no set has this key, several begin with it, or the folder is not empty.
    """
    store = _existing(location)
    sets = [ref for kind in SETS for ref in store.refs(kind) if store.has(ref)]
    found = [ref for ref in sets if ref.key.startswith(key)]
    if not found:
        raise RequestError(f"The store {store.location} has no set {key!r}: see `vidistill ls distilled`.")
    if len(found) > 1:
        raise RequestError(f"{len(found)} sets begin with {key!r}: give more of the key (`vidistill ls distilled`).")
    facts = export_set(store, found[0], out, fps, kind)
    sizes = {name: f"{size / 1e6:.2f} MB" for name, size in facts["bytes"].items()}
    console.print(f"{found[0]} is {sizes['stored']} as stored, {sizes['exported']} as {kind} with all it needs: {out}")
    console.print("Nothing is lost." if facts["lossless"] else said_of_loss(facts["loss"]))


def write_report(key: str, location: str | None, out: Path) -> None:
    """Copy a report out of the store.

    Raises:
        RequestError: no report has this key, or several begin with it.
    """
    store = _existing(location)
    reports = [ref for ref in store.refs("report") if store.has(ref)]
    if key == "latest":
        found = sorted(reports, key=lambda ref: store.manifest(ref).created)[-1:]
    else:
        found = [ref for ref in reports if ref.key.startswith(key)]
    if not found:
        advice = "see `vidistill ls report`" if reports else "none was made yet, `vidistill run` makes one"
        raise RequestError(f"The store {store.location} has no report {key!r}: {advice}.")
    if len(found) > 1:
        raise RequestError(f"{len(found)} reports begin with {key!r}: give more of the key (`vidistill ls report`).")
    out.mkdir(parents=True, exist_ok=True)
    for name in (HTML, JSON):
        shutil.copyfile(store.folder(found[0]) / name, out / name)
    console.print(f"The report is {out / HTML}")
