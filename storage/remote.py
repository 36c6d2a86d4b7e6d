"""A store in object storage: a local mirror to work in, and an upload that the manifest, written last, commits."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from platformdirs import user_cache_path

from vidistill.storage.errors import ArtifactDamaged
from vidistill.storage.store import MANIFEST, ArtifactRef, Attempt, Manifest, Store


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
        remote = f"{self._remote(ref)}/{MANIFEST}"
        self._files.invalidate_cache(self._remote(ref))
        if not self._files.exists(remote):
            super().discard(ref)
            return "no artifact"
        local = super().problem(ref)
        if local is not None or self._files.cat_file(remote) != (self._place(ref) / MANIFEST).read_bytes():
            super().discard(ref)
            self._fetch(ref)
        return super().problem(ref, thorough=thorough)

    @contextmanager
    def writing(self, manifest: Manifest) -> Iterator[Attempt | None]:
        if self.has(manifest.ref):
            yield None
            return
        with super().writing(manifest) as attempt:
            yield attempt
        self._upload(manifest.ref)

    def discard(self, ref: ArtifactRef) -> None:
        remote = self._remote(ref)
        if self._files.exists(f"{remote}/{MANIFEST}"):
            self._files.rm_file(f"{remote}/{MANIFEST}")
            self._files.rm(remote, recursive=True) if self._files.exists(remote) else None
        super().discard(ref)

    def refs(self, kind: str | None = None) -> list[ArtifactRef]:
        self._files.invalidate_cache()
        found = self._files.glob(f"{self._prefix}/{kind or '*'}/*/{MANIFEST}")
        places = [path.rstrip("/").split("/")[-3:-1] for path in found]
        return [ArtifactRef(kind=place[0], key=place[1]) for place in sorted(places)]

    def check_writable(self) -> None:
        super().check_writable()
        probe = f"{self._prefix}/.probe"
        self._files.pipe_file(probe, b"")
        self._files.rm_file(probe)

    def _remote(self, ref: ArtifactRef) -> str:
        return f"{self._prefix}/{ref.kind}/{ref.key}"

    def _upload(self, ref: ArtifactRef) -> None:
        place, remote = self._place(ref), self._remote(ref)
        for path in sorted(place.rglob("*"), key=lambda path: path.name == MANIFEST):
            if path.is_file():
                self._files.put_file(str(path), f"{remote}/{path.relative_to(place).as_posix()}")

    def _fetch(self, ref: ArtifactRef) -> None:
        """Download into staging, check, rename: the mirror never shows half an artifact either."""
        remote = self._remote(ref)
        manifest = Manifest.model_validate_json(self._files.cat_file(f"{remote}/{MANIFEST}"))
        attempt = self._stage(manifest)
        try:
            for name in manifest.files:
                (attempt.folder / name).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{remote}/{name}", str(attempt.folder / name))
            (attempt.folder / MANIFEST).write_bytes(self._files.cat_file(f"{remote}/{MANIFEST}"))
            self._place(ref).parent.mkdir(parents=True, exist_ok=True)
            attempt.folder.rename(self._place(ref))
        except FileNotFoundError as error:
            raise ArtifactDamaged(f"{ref} in {self._url} lacks a file ({error}): `vidistill gc` removes it.") from error
        finally:
            shutil.rmtree(attempt.folder, ignore_errors=True)
