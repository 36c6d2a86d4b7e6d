"""The artifact store: what a stage makes is there whole, or not there.

<root>/<kind>/<key>/            an artifact: its files and manifest.json
<root>/.staging/<key>.<uuid>/   an attempt, renamed to its place when it is complete
<root>/.locks/                  who is making which key
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vidistill.storage.errors import ArtifactDamaged, ArtifactNotFound, RequestError, StoreError
from vidistill.storage.keys import file_digest
from vidistill.storage.locks import abandoned, locked
from vidistill.storage.parameters import Parameters

MANIFEST = "manifest.json"
FULL_CHECK_BYTES = 64 << 20
"""Artifacts up to this size are checked by content whenever they are found; larger ones by their files' sizes, and by
content before a stage reads them."""


class ArtifactRef(Parameters):
    """The name of an artifact: what tasks pass to each other."""

    kind: str
    key: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.key}"


class FileRecord(Parameters):
    bytes: int
    sha256: str


class Manifest(Parameters):
    """What an artifact is, what it was made from, with what, and at what cost."""

    kind: str
    key: str
    version: int
    parameters: dict[str, Any]
    inputs: dict[str, list[ArtifactRef]]
    files: dict[str, FileRecord] = Field(default_factory=dict)
    record: dict[str, Any] = Field(default_factory=dict)
    """Free facts: counts, seeds, device, threads, precision, versions, commit."""
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    created: str = ""

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef(kind=self.kind, key=self.key)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


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
        problem = self.problem(ref)
        if problem is None:
            return self._place(ref)
        if problem == "no artifact":
            raise ArtifactNotFound(f"{ref} is not in the store {self.location}: run the experiment that makes it.")
        raise ArtifactDamaged(f"{ref} in the store {self.location} is damaged ({problem}): run again to rebuild it.")

    def has(self, ref: ArtifactRef) -> bool:
        return self.problem(ref) is None

    def manifest(self, ref: ArtifactRef) -> Manifest:
        return _read_manifest(self.folder(ref))

    def problem(self, ref: ArtifactRef, *, thorough: bool = False) -> str | None:
        """What is wrong with an artifact: None, or a few words. `thorough` reads every byte, whatever its size."""
        place = self._place(ref)
        try:
            manifest = _read_manifest(place)
        except (FileNotFoundError, NotADirectoryError):
            return f"no {MANIFEST}" if place.exists() else "no artifact"
        except (ValidationError, ValueError):
            return f"{MANIFEST} cannot be read"
        if (manifest.kind, manifest.key) != (ref.kind, ref.key):
            return f"{MANIFEST} is that of {manifest.ref}"
        return _damage(place, manifest, thorough or manifest.bytes <= FULL_CHECK_BYTES)

    @contextmanager
    def writing(self, manifest: Manifest) -> Iterator[Attempt | None]:
        """Make an artifact: yields an attempt to fill, or None where another writer has just made it.

        The folder is committed (checksums, manifest, fsync, rename) when the block ends, removed when it raises.
        """
        ref = manifest.ref
        with clear_errors(self.root):
            lock = self.root / ".locks" / f"{ref.key}.{ref.kind}"
            with locked(lock):
                if self.has(ref):
                    yield None
                    return
                attempt = Attempt(self._stage(manifest.key), manifest)
                try:
                    yield attempt
                    self._commit(attempt)
                finally:
                    shutil.rmtree(attempt.folder, ignore_errors=True)

    def discard(self, ref: ArtifactRef) -> None:
        """Remove an artifact; its manifest goes first, so that nobody sees half of it."""
        place = self._place(ref)
        (place / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)

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
                if error.errno in _CAUSES and not taken:
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
        folders = sorted(self.root.glob(f"{kind or '[!.]*'}/*/"))
        return [ArtifactRef(kind=folder.parent.name, key=folder.name) for folder in folders]

    def sweep(self) -> list[str]:
        """Remove what dead attempts left in staging; those of living writers stay.

        Returns:
            The removed folders' names.
        """
        found = list((self.root / ".staging").glob("*"))  # before the locks: who begins now has nothing in it
        alive = {lock.name.split(".")[0] for lock in (self.root / ".locks").glob("*") if not abandoned(lock)}
        left = [path for path in found if path.name.split(".")[0] not in alive]
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return [path.name for path in left]

    def _place(self, ref: ArtifactRef) -> Path:
        return self.root / ref.kind / ref.key

    def _stage(self, name: str) -> Path:
        staging = self.root / ".staging"
        staging.mkdir(parents=True, exist_ok=True)
        for dead in staging.glob(f"{name}.*"):  # the lock is ours: whoever wrote there is gone
            shutil.rmtree(dead)
        folder = staging / f"{name}.{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def _commit(self, attempt: Attempt) -> None:
        folder, ref = attempt.folder, attempt.manifest.ref
        files = {path.relative_to(folder).as_posix(): _settle(path) for path in _files(folder)}
        attempt.note(files=files, created=datetime.now(UTC).isoformat(timespec="seconds"))
        manifest = folder / MANIFEST
        manifest.write_text(attempt.manifest.model_dump_json(indent=1))
        _settle(manifest)
        self.discard(ref)
        self._place(ref).parent.mkdir(parents=True, exist_ok=True)
        folder.rename(self._place(ref))
        _sync_folder(self._place(ref).parent)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _settle(path: Path) -> FileRecord:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileRecord(bytes=path.stat().st_size, sha256=file_digest(path))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(place: Path) -> Manifest:
    return Manifest.model_validate(json.loads((place / MANIFEST).read_text()))


def _damage(place: Path, manifest: Manifest, thorough: bool) -> str | None:
    for name, expected in manifest.files.items():
        path = place / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.bytes:
            return f"{name} has {path.stat().st_size} bytes instead of {expected.bytes}"
        if thorough and file_digest(path) != expected.sha256:
            return f"{name} does not have its checksum"
    return None


_CAUSES: dict[int | None, str] = {
    errno.ENOSPC: "its disk is full: free some space (`vidistill gc`) or name another --store",
    errno.EDQUOT: "the disk quota is used up: free some space or name another --store",
    errno.EACCES: "permission denied: name a --store that you may write to",
    errno.EPERM: "permission denied: name a --store that you may write to",
    errno.EROFS: "its file system is read-only: name another --store",
    errno.ENOTDIR: "a part of the path is a file: name another --store",
    errno.EEXIST: "a part of the path is a file: name another --store",
}


@contextmanager
def clear_errors(root: Path) -> Iterator[None]:
    """Say in one sentence why the store under `root` cannot be written; other errors pass."""
    try:
        yield
    except Exception as error:
        cause = _CAUSES.get(_error_number(error))
        if cause is None or _elsewhere(error, root):
            raise
        raise StoreError(f"The store {root} cannot be written: {cause}.") from error


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors writes its files in Rust
    return int(told[1]) if told else None


def _elsewhere(error: Exception, root: Path) -> bool:
    """Whether the error names a file that has nothing to do with the store, such as a stage's own video."""
    name = getattr(error, "filename", None)
    return isinstance(name, str) and not (Path(name).is_relative_to(root) or root.is_relative_to(name))
