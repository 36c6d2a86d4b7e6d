"""Names of sets: what users load by `latest`, while the set that it stands for changes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from vidistill.storage.errors import ArtifactNotFound, StoreError
from vidistill.storage.opening import default_location, open_store
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef, Store

NAMES = ".names"


class Promoted(Parameters, extra="ignore"):
    """What a name stands for.

    Attributes:
        sets: the set of each seed; the name stands for the first.
        report: the report that scores them.
        index: the videos that they were made from.

    What earlier versions said besides is passed over.
    """

    sets: tuple[ArtifactRef, ...]
    report: ArtifactRef
    index: ArtifactRef
    since: datetime


def names(store: Store) -> dict[str, Promoted]:
    """What each name of a store stands for.

    Raises:
        StoreError: one cannot be read, so that nobody knows what it stands for.
    """
    found = {}
    for name, content in store.notes(NAMES).items():
        try:
            found[name.removesuffix(".json")] = Promoted.model_validate_json(content)
        except ValidationError as error:
            raise StoreError(
                f"The name {NAMES}/{name} in the store {store.location} cannot be read: "
                "remove the file, and the flow `refresh` gives the name again."
            ) from error
    return found


def promote(store: Store, name: str, promoted: Promoted) -> None:
    """Have a name stand for another set: a reader finds the one before or this one."""
    store.write_note(NAMES, f"{name}.json", promoted.model_dump_json(indent=1).encode())


def folder_of(name: str, location: str | None = None) -> Path:
    """Where the set of this name is, in this user's store or the one that is named.

    Raises:
        ArtifactNotFound: there is no such name, or its set is gone.
    """
    store = open_store(location or default_location())
    known = names(store)
    if name not in known or not store.has(known[name].sets[0]):
        raise ArtifactNotFound(
            f"There is no folder {name!r}, and no set of that name in the store {store.location}: "
            f"its names are {', '.join(known) or 'none'} (the flow `refresh` gives them)."
        )
    return store.folder(known[name].sets[0])
