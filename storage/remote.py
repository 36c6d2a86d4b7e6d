"""A store in object storage: a local mirror to work in, and an upload that the manifest, written last, commits."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from contextlib import suppress

from platformdirs import user_cache_path
from pydantic import ValidationError

from vidistill.storage.errors import StoreError
from vidistill.storage.locks import locked
from vidistill.storage.store import MANIFEST, ArtifactRef, Attempt, Manifest, Store, clear_errors


class RemoteStore(Store):
    """Artifacts under a URL that fsspec knows.

    Stages read and write a mirror on the local disk. `has` asks the remote store; an artifact is fetched when it is
    first read, and checked against its manifest. Two hosts that make the same key at once both do the work, and one
    whole artifact stays: an object store has no lock that this relies on.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        super().__init__(user_cache_path("vidistill") / "mirror" / hashlib.sha256(url.encode()).hexdigest()[:16])
        self._url = url.rstrip("/")
        self._files, self._prefix = fsspec.core.url_to_fs(self._url)  # type: ignore[no-untyped-call]

    @property
    def location(self) -> str:
        return self._url

    def problem(self, ref: ArtifactRef, *, thorough: bool = False) -> str | None:
        published = self._published(ref)
        if published is None:
            return "no artifact"
        if not self._current(ref, published, thorough):
            with clear_errors(self.root), locked(self.root / ".locks" / f"fetch-{ref.key}.{ref.kind}"):
                if not self._current(ref, published, thorough):  # nobody fetched it while this one waited
                    super().discard(ref)
                    self._fetch(ref, published)
        return super().problem(ref, thorough=thorough)

    def discard(self, ref: ArtifactRef) -> None:
        remote = self._remote(ref)
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{remote}/{MANIFEST}")
        self._files.invalidate_cache(remote)
        if self._files.exists(remote):
            self._files.rm(remote, recursive=True)
        super().discard(ref)

    def refs(self, kind: str | None = None) -> list[ArtifactRef]:
        self._files.invalidate_cache()
        found = self._files.glob(f"{self._prefix}/{kind or '*'}/*/{MANIFEST}")
        places = [path.rstrip("/").split("/")[-3:-1] for path in found]
        return [ArtifactRef(kind=place[0], key=place[1]) for place in sorted(places)]

    def check_writable(self) -> None:
        super().check_writable()
        probe = f"{self._prefix}/.probe.{uuid.uuid4().hex}"
        try:
            self._files.pipe_file(probe, b"")
            self._files.rm_file(probe)
        except Exception as error:
            raise StoreError(f"The store {self._url} cannot be written ({error}): check its access.") from error

    def _remote(self, ref: ArtifactRef) -> str:
        return f"{self._prefix}/{ref.kind}/{ref.key}"

    def _published(self, ref: ArtifactRef) -> bytes | None:
        try:
            return bytes(self._files.cat_file(f"{self._remote(ref)}/{MANIFEST}"))
        except FileNotFoundError:
            return None

    def _current(self, ref: ArtifactRef, published: bytes, thorough: bool) -> bool:
        """Whether the mirror holds what the remote manifest describes."""
        mirrored = self._place(ref) / MANIFEST
        same = mirrored.is_file() and mirrored.read_bytes() == published
        return same and super().problem(ref, thorough=thorough) is None

    def _commit(self, attempt: Attempt) -> None:
        """Commit to the mirror and upload, both under the key's lock; the manifest, last, commits remotely."""
        super()._commit(attempt)
        place, remote = self._place(attempt.manifest.ref), self._remote(attempt.manifest.ref)
        for path in sorted(place.rglob("*"), key=lambda path: path.name == MANIFEST):
            if path.is_file():
                self._files.put_file(str(path), f"{remote}/{path.relative_to(place).as_posix()}")

    def _fetch(self, ref: ArtifactRef, published: bytes) -> None:
        """Download into staging and rename: the mirror never shows half an artifact. It lacks what the remote lacks."""
        folder = self._stage(f"fetch-{ref.key}")
        try:
            for name in _names(published):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    self._files.get_file(f"{self._remote(ref)}/{name}", str(folder / name))
            (folder / MANIFEST).write_bytes(published)
            self._place(ref).parent.mkdir(parents=True, exist_ok=True)
            folder.rename(self._place(ref))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _names(published: bytes) -> list[str]:
    try:
        return list(Manifest.model_validate_json(published).files)
    except ValidationError:  # a damaged manifest is fetched too, and named for what it is
        return []
