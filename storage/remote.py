"""A store in object storage: a local mirror to work in, and an upload that the manifest, written last, commits."""

from __future__ import annotations

import hashlib
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from pydantic import ValidationError

from vidistill.storage.causes import clear_errors
from vidistill.storage.errors import StoreError
from vidistill.storage.files import files_of
from vidistill.storage.keys import file_digest, is_key
from vidistill.storage.locks import locked
from vidistill.storage.manifests import ABSENT, found_by_size, parsed
from vidistill.storage.mirror import Mirror
from vidistill.storage.object_locks import locked_for_all
from vidistill.storage.objects import Objects
from vidistill.storage.store import MANIFEST, ArtifactRef, Attempt, FileRecord, Found, Manifest, Store

FETCH_TO_CHECK_BYTES = 8 << 20
"""Artifacts up to this size are fetched and checked by content when they are found; of larger ones the sizes of their
objects, until they are read."""
TRIES = 3
"""At what comes over the network and is not what it should be."""

log = getLogger("vidistill")


class RemoteStore(Store):
    """Artifacts under a URL that fsspec knows.

    Stages read and write a mirror on the local disk. `has` asks the remote store; an artifact is fetched when it is
    first read, and checked against its manifest. Hosts that make the same key at once do the work once where the
    store knows conditional writes; elsewhere both do it, and one whole artifact stays.
    """

    def __init__(self, url: str) -> None:
        url = url.rstrip("/")
        super().__init__(user_cache_path("vidistill") / "mirror" / hashlib.sha256(url.encode()).hexdigest()[:16])
        self._objects = Objects(url)
        self._prefix = self._objects.prefix
        self._mirror = Mirror(self.root)

    @property
    def location(self) -> str:
        return self._objects.url

    def folders(self, refs: Iterable[ArtifactRef]) -> list[Path]:
        return self._objects.each(self.folder, refs)

    def manifests(self, refs: Iterable[ArtifactRef]) -> dict[ArtifactRef, Manifest]:
        made: dict[ArtifactRef, Manifest] = {}
        published = self.contents(asked := list(refs), MANIFEST)
        for ref in asked:
            try:
                made[ref] = parsed(published[ref])
            except (KeyError, ValueError):  # it came half, or else this says what is wrong
                made[ref] = self.manifest(ref)
        return made

    def problems(self, refs: Iterable[ArtifactRef]) -> dict[ArtifactRef, str | None]:
        return dict(zip(asked := list(refs), self._objects.each(self.problem, asked), strict=True))

    def problem(self, ref: ArtifactRef, *, thorough: bool = False) -> str | None:
        published = self._published(ref)
        if published is None:
            return ABSENT
        if not thorough and not self._current(ref, published, thorough=False):
            glance = self._glance(ref, published)
            if glance.problem is not None or glance.bytes > FETCH_TO_CHECK_BYTES:
                return glance.problem
        return self._here(ref, published, thorough)

    def audit(self, ref: ArtifactRef) -> str | None:
        """By the objects themselves. What is damaged there, and whole in the mirror, is uploaded again."""
        published = self._published(ref)
        if published is None:
            return ABSENT
        problem = self._damage(ref, published)
        if problem is None or not self._current(ref, published, thorough=True):
            return problem
        self._publish(ref)
        log.warning("%s was damaged in %s (%s): its copy on this host was whole, and is there now.", ref,
                    self.location, problem)  # fmt: skip
        return None

    def problem_once(self, ref: ArtifactRef) -> str | None:
        return self._present(ref) or super().problem_once(ref)

    def discard(self, ref: ArtifactRef) -> None:
        self._clear(ref)
        super().discard(ref)

    def refs(self, kind: str | None = None) -> list[ArtifactRef]:
        return [ref for ref, names in self._sizes(kind).items() if MANIFEST in names]

    def check_writable(self) -> None:
        super().check_writable()
        probe = f"{self._prefix}/.probe.{uuid.uuid4().hex}"
        try:
            self._objects.pipe_file(probe, b"")
            self._objects.rm_file(probe)
        except Exception as error:
            why = error.__cause__ or error
            raise StoreError(f"The store {self.location} cannot be written ({why}): check its access.") from error

    def exists(self) -> bool:
        """As of a folder: whether it is a run's, or empty; asked by the names of kinds and keys alone."""
        self._objects.invalidate_cache()
        if not self._objects.exists(self._prefix):
            return False
        found = self._objects.find(self._prefix, maxdepth=2, withdirs=True)
        names = {path.removeprefix(self._prefix).strip("/") for path in found} - {""}
        return not names or any(name == ".locks" or is_key(name.partition("/")[2]) for name in names)

    def survey(self, kind: str | None = None, *, content: bool = False) -> dict[ArtifactRef, Found]:
        """By the objects' sizes alone, whatever `content` says: nothing is fetched but manifests.

        What was never uploaded to the end is there, too.
        """
        del content
        sizes = self._sizes(kind)
        published = self.contents(sizes, MANIFEST)
        looks = {ref: found_by_size(ref, published.get(ref), own) for ref, own in sizes.items()}
        half = [ref for ref in published if looks[ref].manifest is None]
        looks |= {ref: found_by_size(ref, self._published(ref), sizes[ref]) for ref in half}
        return {ref: found for ref, found in looks.items() if found.manifest or is_key(ref.key)}

    def contents(self, refs: Iterable[ArtifactRef], name: str) -> dict[ArtifactRef, bytes]:
        paths = {f"{self._remote(ref)}/{name}": ref for ref in refs}
        return {paths[path]: content for path, content in self._objects.read(list(paths)).items()}

    def notes(self, folder: str) -> dict[str, bytes]:
        found = self._objects.read(list(self._listed(folder, ".json")))
        return {path.rpartition("/")[2]: content for path, content in sorted(found.items())}

    def write_note(self, folder: str, name: str, content: bytes) -> None:
        self._objects.pipe_file(f"{self._prefix}/{folder}/{name}", content)

    def remove_note(self, folder: str, name: str) -> None:
        self._remove(f"{self._prefix}/{folder}/{name}")

    def note_times(self, folder: str) -> dict[str, float]:
        found = {}
        for path in self._listed(folder, ".json"):
            with suppress(FileNotFoundError):
                found[path.rpartition("/")[2]] = self._objects.modified(path).timestamp()
        return found

    def clock(self, folder: str) -> float:
        probe = f"{self._prefix}/{folder}/clock.{uuid.uuid4().hex}"
        try:
            self._objects.pipe_file(probe, b"")
            moment = self._objects.modified(probe).timestamp()
            self._objects.rm_file(probe)
        except (StoreError, FileNotFoundError):
            return time.time()
        return float(moment)

    def _present(self, ref: ArtifactRef) -> str | None:
        published = self._published(ref)
        if published is None:
            return ABSENT
        self._mirror.use(self._place(ref))
        problem = self._here(ref, published, thorough=False)
        if problem is not None and self._published(ref) == published:  # fetched anew, and wrong: the objects are
            self.discard(ref)
        return problem

    @contextmanager
    def _locked(self, ref: ArtifactRef) -> Iterator[None]:
        with super()._locked(ref), locked_for_all(self._objects, f"{self._prefix}/.locks/{ref.key}.{ref.kind}"):
            yield

    def _settled(self, ref: ArtifactRef) -> bool:
        """Also what was made here, and did not reach the store: it is uploaded again, not made again."""
        made = self._unpublished(ref)
        if not super()._settled(ref):
            with self._mirror.held(self._place(ref)):
                if not made.exists() or Store.problem(self, ref, thorough=True) is not None:
                    return False
                self._publish(ref)
        made.unlink(missing_ok=True)
        return True

    def _here(self, ref: ArtifactRef, published: bytes, thorough: bool) -> str | None:
        """Have the artifact in the mirror; what is wrong with it there."""
        if self._current(ref, published, thorough):
            return None
        with self._mirror.held(self._place(ref)):
            with clear_errors(self.root), locked(self.root / ".locks" / f"fetch-{ref.key}.{ref.kind}"):
                if not self._current(ref, published, thorough):  # nobody fetched it while this one waited
                    super().discard(ref)
                    self._fetch(ref, published)
                    thorough = True
            problem = super().problem(ref, thorough=thorough)
        self._mirror.trim()
        return problem

    def _sizes(self, below: str | None) -> dict[ArtifactRef, dict[str, int]]:
        """The size of every object, by artifact and name."""
        sizes: dict[ArtifactRef, dict[str, int]] = defaultdict(dict)
        for path, facts in self._listed(below).items():
            own_kind, _, rest = path.removeprefix(self._prefix).lstrip("/").partition("/")
            key, _, name = rest.partition("/")
            if name:
                with suppress(ValidationError):  # somebody's own object, whose name is none of ours
                    sizes[ArtifactRef(kind=own_kind, key=key)][name] = facts["size"]
        return dict(sorted(sizes.items(), key=lambda item: str(item[0])))

    def _listed(self, below: str | None, ending: str = "") -> dict[str, dict[str, Any]]:
        """The objects below a part of the store, by path; listed flat, a request a thousand."""
        self._objects.invalidate_cache()
        found = self._objects.find(f"{self._prefix}/{below}" if below else self._prefix, detail=True)
        return {path: facts for path, facts in found.items() if path.endswith(ending)}

    def _remote(self, ref: ArtifactRef) -> str:
        return f"{self._prefix}/{ref.kind}/{ref.key}"

    def _unpublished(self, ref: ArtifactRef) -> Path:
        return self._mirror.only_copy(self._place(ref))

    def _published(self, ref: ArtifactRef) -> bytes | None:
        """The manifest in the store; one that came half is asked for again."""
        content = b""
        for _ in range(TRIES):
            try:
                content = self._objects.content(f"{self._remote(ref)}/{MANIFEST}")
                parsed(content)
            except FileNotFoundError:
                return None
            except ValueError:
                continue
            break
        return content

    def _damage(self, ref: ArtifactRef, published: bytes) -> str | None:
        """What is wrong with an artifact's objects."""

        def problem(name: str) -> str | None:
            try:
                found = self._objects.digest(f"{self._remote(ref)}/{name}", files[name].bytes)
            except FileNotFoundError:
                return f"{name} is missing"
            return None if found == files[name].sha256 else f"{name} does not have its checksum"

        glance = self._glance(ref, published)
        files = glance.manifest.files if glance.manifest else {}
        return glance.problem or next(filter(None, self._objects.each(problem, files)), None)

    def _glance(self, ref: ArtifactRef, published: bytes) -> Found:
        """What the sizes of an artifact's objects show."""
        return found_by_size(ref, published, self._sizes(f"{ref.kind}/{ref.key}").get(ref, {}))

    def _current(self, ref: ArtifactRef, published: bytes, thorough: bool) -> bool:
        """Whether the mirror holds what the remote manifest describes."""
        mirrored = self._place(ref) / MANIFEST
        with suppress(FileNotFoundError):
            return mirrored.read_bytes() == published and super().problem(ref, thorough=thorough) is None
        return False

    def _commit(self, attempt: Attempt) -> None:
        """Commit to the mirror and upload, both under the key's lock."""
        ref = attempt.manifest.ref
        with suppress(StoreError):  # a store that is down is waited for below, when the mirror has it
            if self.has(ref):  # where no lock can be held: another host was quicker, and its artifact is in use
                return
        with self._mirror.held(self._place(ref)):  # till it is in the store this is the only copy
            super()._commit(attempt)
            self._publish(ref)
        self._mirror.trim()

    def _publish(self, ref: ArtifactRef) -> None:
        """Upload the mirror's copy, which till then is marked as the only one; the manifest, last, commits."""
        place, remote, unpublished = self._place(ref), self._remote(ref), self._unpublished(ref)

        def put(path: Path) -> None:
            self._objects.put_file(str(path), f"{remote}/{path.relative_to(place).as_posix()}")

        unpublished.parent.mkdir(exist_ok=True)
        unpublished.touch()
        self._clear(ref)  # of what was damaged there, or of an upload that never ended
        self._objects.each(put, [path for path in files_of(place) if path != place / MANIFEST])
        put(place / MANIFEST)
        unpublished.unlink(missing_ok=True)

    def _clear(self, ref: ArtifactRef) -> None:
        """Remove its objects, the manifest first: what is there without one is none."""
        self._remove(f"{self._remote(ref)}/{MANIFEST}")
        self._objects.each(self._remove, self._listed(f"{ref.kind}/{ref.key}"))

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._objects.rm_file(path)

    def _fetch(self, ref: ArtifactRef, published: bytes) -> None:
        """Download into staging and rename: the mirror never shows half an artifact. It lacks what the remote lacks."""
        folder = self._stage(f"fetch-{ref.key}")
        try:
            self._objects.each(lambda item: self._fetch_file(ref, *item, folder), _files(published).items())
            (folder / MANIFEST).write_bytes(published)
            self._take(folder, ref)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _fetch_file(self, ref: ArtifactRef, name: str, expected: FileRecord, folder: Path) -> None:
        """Fetch one file, and again where what came is not what its manifest describes."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            try:
                self._objects.get_file(f"{self._remote(ref)}/{name}", str(path))
            except FileNotFoundError:
                path.unlink(missing_ok=True)  # fsspec leaves an empty file
                return
            if path.stat().st_size == expected.bytes and file_digest(path) == expected.sha256:
                return


def _files(published: bytes) -> dict[str, FileRecord]:
    try:
        return parsed(published).files
    except ValueError:  # a damaged manifest is fetched too, and named for what it is
        return {}
