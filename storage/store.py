"""The artifact store: what a stage makes is there whole, or not there.

<root>/<kind>/<key>/            an artifact: its files and manifest.json
<root>/.staging/<key>.<uuid>/   an attempt, renamed to its place when it is complete
<root>/.locks/                  who is making which key
<root>/.leases/                 which run needs what
"""

from __future__ import annotations

import errno
import math
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vidistill.storage.causes import CAUSES, clear_errors, making
from vidistill.storage.errors import ArtifactDamaged, ArtifactNotFound, RequestError, StoreError
from vidistill.storage.files import files_of, listed, remove_folder, settled_digest, size_of, sync_folder, write_whole
from vidistill.storage.keys import is_key
from vidistill.storage.locks import abandoned, locked
from vidistill.storage.manifests import (
    ABSENT,
    CHECKPOINT,
    MANIFEST,
    ArtifactRef,
    FileRecord,
    Found,
    Manifest,
    damage,
    read_manifest,
    told,
    write_manifest,
)

__all__ = ["CHECKPOINT", "MANIFEST", "ArtifactRef", "Attempt", "FileRecord", "Found", "Manifest", "Store"]

FULL_CHECK_BYTES = 64 << 20
"""Artifacts up to this size are checked by content when a process first finds them; larger ones by their files' sizes,
and by content before a stage reads them."""


class Attempt:
    """One attempt at an artifact: a folder to write in, and the manifest that it will have."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def note(self, **changes: Any) -> None:
        """Set fields of the manifest (`record`, `seconds`, `peak_memory_bytes`)."""
        self.manifest = self.manifest.model_copy(update=changes)


class Store:
    """A store in a local folder. `open_store` gives one over an object store with the same methods."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def location(self) -> str:
        return str(self.root)

    def folder(self, ref: ArtifactRef) -> Path:
        """Where the artifact's files are.

        Raises:
            ArtifactNotFound: it is not in the store.
            ArtifactDamaged: it is, but not whole.
        """
        problem = self._present(ref)
        if problem is None:
            return self._place(ref)
        if problem == ABSENT:
            raise ArtifactNotFound(f"{ref} is not in the store {self.location}: run the experiment that makes it.")
        raise ArtifactDamaged(f"{ref} in the store {self.location} is damaged ({problem}): run again to rebuild it.")

    def folders(self, refs: Iterable[ArtifactRef]) -> list[Path]:
        """The same of several, which come side by side where they come from elsewhere."""
        return [self.folder(ref) for ref in refs]

    def has(self, ref: ArtifactRef) -> bool:
        return self.problem(ref) is None

    def manifest(self, ref: ArtifactRef) -> Manifest:
        return read_manifest(self.folder(ref))

    def manifests(self, refs: Iterable[ArtifactRef]) -> dict[ArtifactRef, Manifest]:
        """Those of several; of the artifacts nothing else is fetched where they are elsewhere."""
        return {ref: self.manifest(ref) for ref in refs}

    def problem(self, ref: ArtifactRef, *, thorough: bool = False) -> str | None:
        """What is wrong with an artifact: None, or a few words. `thorough` reads every byte, whatever its size."""
        return (self._look(ref, "read") if thorough else self._look(ref, "once", FULL_CHECK_BYTES)).problem

    def problems(self, refs: Iterable[ArtifactRef]) -> dict[ArtifactRef, str | None]:
        """The same of several, which are asked for side by side where they are elsewhere."""
        return {ref: self.problem(ref) for ref in refs}

    def audit(self, ref: ArtifactRef) -> str | None:
        """What is wrong with an artifact, by every byte as the store itself keeps it."""
        return self.problem(ref, thorough=True)

    def survey(self, kind: str | None = None, *, content: bool = False) -> dict[ArtifactRef, Found]:
        """A look at every artifact, damaged ones too, sorted by kind and key.

        Files are compared by size; with `content`, those of artifacts of up to 64 MiB by checksum. A user's own
        folders, which may lie as deep, are none: what has neither a manifest nor a key.
        """
        looks = {ref: self._look(ref, "once", FULL_CHECK_BYTES if content else 0) for ref in self.refs(kind)}
        return {
            ref: found for ref, found in looks.items()
            if found.problem != ABSENT and (found.manifest or is_key(ref.key))  # gone meanwhile, or a user's
        }  # fmt: skip

    def contents(self, refs: Iterable[ArtifactRef], name: str) -> dict[ArtifactRef, bytes]:
        """One file of each of these artifacts, of those that have it."""
        found = {}
        for ref in refs:
            with suppress(FileNotFoundError):
                found[ref] = (self._place(ref) / name).read_bytes()
        return found

    def problem_once(self, ref: ArtifactRef) -> str | None:
        """Checked by content, whatever its size, once a process, and by its files' sizes and times from then on."""
        return self._look(ref, "once").problem

    def check_content(self, ref: ArtifactRef) -> None:
        """Check every byte of an artifact that is here, once a process: blocks, which lists of clips name, are read by
        jobs whose inputs they are not. A damaged one is removed, so that the next run has it made, or fetched, again.

        Raises:
            ArtifactDamaged: it is not whole.
        """
        problem = Store.problem_once(self, ref)
        if problem is not None:
            with suppress(StoreError):
                Store.discard(self, ref)  # on an object store the copy alone
            raise ArtifactDamaged(
                f"{ref} in the store {self.location} was damaged ({problem}): run again to rebuild it."
            )

    @contextmanager
    def writing(self, manifest: Manifest) -> Iterator[Attempt | None]:
        """Make an artifact: yields an attempt to fill, or None where another writer has just made it.

        The folder is committed (checksums, manifest, fsync, rename) when the block ends, removed when it raises.

        Raises:
            NotMade: the store could not be read or written: naming the artifact, and why.
        """
        ref = manifest.ref
        with making(ref), clear_errors(self.root), self._locked(ref):
            if self._settled(ref):
                yield None
                return
            attempt = Attempt(self._stage(manifest.key), manifest)
            try:
                yield attempt
                self._commit(attempt)
            finally:
                shutil.rmtree(attempt.folder, ignore_errors=True)

    def discard(self, ref: ArtifactRef) -> None:
        """Remove an artifact; its manifest goes first, so that nobody sees half of it.

        Raises:
            StoreError: it cannot be removed, and why.
        """
        place = self._place(ref)
        with clear_errors(self.root, removing=ref):
            (place / MANIFEST).unlink(missing_ok=True)
            remove_folder(place)

    def exists(self) -> bool:
        """Whether the folder is a run's, or empty; one that holds something else is no store."""
        if not self.root.is_dir():
            return False
        names = {path.name for path in listed(self.root)}
        return not names or ".locks" in names or any(self.has(ref) for ref in self.refs())

    def notes(self, folder: str) -> dict[str, bytes]:
        """The small documents of a folder beside the artifacts, by name."""
        found = {}
        for path in self._notes(folder):
            with suppress(FileNotFoundError):
                found[path.name] = path.read_bytes()
        return found

    def write_note(self, folder: str, name: str, content: bytes) -> None:
        """Write such a document, or another in its place: a reader sees the one or the other."""
        with clear_errors(self.root):
            write_whole(self.root / folder / name, content)

    def remove_note(self, folder: str, name: str) -> None:
        with clear_errors(self.root, removing=f"{folder}/{name}"):
            (self.root / folder / name).unlink(missing_ok=True)

    def note_times(self, folder: str) -> dict[str, float]:
        """When each of them was written, by the clock that `clock` asks."""
        found = {}
        for path in self._notes(folder):
            with suppress(FileNotFoundError):
                found[path.name] = path.stat().st_mtime
        return found

    def _notes(self, folder: str) -> list[Path]:
        return [path for path in listed(self.root / folder) if path.suffix == ".json"]

    def clock(self, folder: str) -> float:
        """The time that the store itself puts on what is written now; those of hosts differ, and jump.

        Where nothing can be written it is this host's.
        """
        probe = self.root / folder / f"clock.{uuid.uuid4().hex}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Find out early that the store cannot be written.

        Raises:
            RequestError: nothing can be made at that place.
            StoreError: it cannot be written, and why.
        """
        with clear_errors(self.root):
            staging = self.root / ".staging"
            try:
                staging.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                taken = error.errno in (errno.ENOTDIR, errno.EEXIST)
                if error.errno in CAUSES and not taken:
                    raise
                why = "a part of the path is a file" if taken else error.strerror
                raise RequestError(f"The store {self.root} cannot be written: {why}: name another --store.") from error
            probe = staging / f"probe.{uuid.uuid4().hex}"
            try:
                probe.write_bytes(bytes(4096))
            finally:
                probe.unlink(missing_ok=True)

    def refs(self, kind: str | None = None) -> list[ArtifactRef]:
        """Every artifact of the store, damaged ones too, sorted by kind and key."""
        kinds = [self.root / kind] if kind else listed(self.root)
        folders = (folder for place in kinds if place.name[0] != "." for folder in listed(place))
        return [ArtifactRef(kind=folder.parent.name, key=folder.name) for folder in folders
                if folder.name[0] != "." and folder.is_dir()]  # fmt: skip

    def dead_attempts(self) -> list[Path]:
        """What dead attempts left in staging."""
        found = listed(self.root / ".staging")  # before the locks: who begins now has nothing in it
        now = Store.clock(self, ".locks")
        alive = {lock.name.split(".")[0] for lock in listed(self.root / ".locks") if not abandoned(lock, now)}
        return [path for path in found if path.name.split(".")[0] not in alive]

    def sweep(self) -> list[str]:
        """Remove what dead attempts left in staging; those of living writers stay.

        Returns:
            The removed folders' names.
        """
        left = self.dead_attempts()
        for path in left:
            with clear_errors(self.root, removing=f"{path.parent.name}/{path.name}"):
                remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)
        return [path.name for path in left]

    def _present(self, ref: ArtifactRef) -> str | None:
        """What is wrong with an artifact whose files are about to be read."""
        return self.problem(ref)

    def _locked(self, ref: ArtifactRef) -> AbstractContextManager[None]:
        return locked(self.root / ".locks" / f"{ref.key}.{ref.kind}")

    def _settled(self, ref: ArtifactRef) -> bool:
        """Whether there is nothing left to do for an artifact, now that its lock is held."""
        return self.has(ref)

    def _look(self, ref: ArtifactRef, content: Literal["once", "read"], up_to_bytes: float = math.inf) -> Found:
        """A look at an artifact in the local folder, whose content is checked where it is not larger than that."""
        place = self._place(ref)
        try:
            manifest = told(ref, (place / MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return Found(None, f"no {MANIFEST}" if place.exists() else ABSENT, size_of(place))
        if isinstance(manifest, str):
            return Found(None, manifest, size_of(place))
        problem = damage(place, manifest, content if manifest.bytes <= up_to_bytes else "unread")
        return Found(manifest, problem, manifest.bytes)

    def _place(self, ref: ArtifactRef) -> Path:
        return self.root / ref.kind / ref.key

    def _stage(self, name: str) -> Path:
        staging = self.root / ".staging"
        staging.mkdir(parents=True, exist_ok=True)
        for dead in staging.glob(f"{name}.*"):  # the lock is ours: whoever wrote there is gone
            remove_folder(dead)
        folder = staging / f"{name}.{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def _commit(self, attempt: Attempt) -> None:
        folder, ref = attempt.folder, attempt.manifest.ref
        files = {
            path.relative_to(folder).as_posix(): FileRecord(bytes=path.stat().st_size, sha256=settled_digest(path))
            for path in files_of(folder)
            if path.name != MANIFEST
        }
        attempt.note(files=files, created=datetime.now(UTC).isoformat(timespec="seconds"))
        write_manifest(folder, attempt.manifest)
        settled_digest(folder / MANIFEST)
        Store.discard(self, ref)  # an object store may be down, and has it later
        self._take(folder, ref)

    def _take(self, folder: Path, ref: ArtifactRef) -> None:
        """Put a finished folder where it belongs; of one that is still read on NFS, what cannot go yet is put aside."""
        place = self._place(ref)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            place.rename(folder.with_name(f"{folder.name}.before"))
        folder.rename(place)
        sync_folder(place.parent)
