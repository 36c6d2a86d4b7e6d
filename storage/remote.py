"""A store in object storage: a local mirror to work in, and an upload that the manifest, written last, commits."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from platformdirs import user_cache_path
from pydantic import ValidationError

from vidistill.storage.causes import clear_errors
from vidistill.storage.errors import StoreError
from vidistill.storage.locks import locked
from vidistill.storage.store import MANIFEST, ArtifactRef, Attempt, Found, Manifest, Store


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
        files, self._prefix = fsspec.core.url_to_fs(self._url)  # type: ignore[no-untyped-call]
        self._files: Any = _Told(files, self._url)

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
            why = error.__cause__ or error
            raise StoreError(f"The store {self._url} cannot be written ({why}): check its access.") from error

    def exists(self) -> bool:
        self._files.invalidate_cache()
        return bool(self._files.exists(self._prefix))

    def survey(self, kind: str | None = None, *, content: bool = False) -> dict[ArtifactRef, Found]:
        """By the objects' sizes alone, whatever `content` says: nothing is fetched but manifests.

        What was never uploaded to the end is there, too.
        """
        del content
        sizes = self._sizes(kind)
        published = self.contents(sizes, MANIFEST)
        return {ref: _found(ref, published.get(ref), own) for ref, own in sizes.items()}

    def contents(self, refs: Iterable[ArtifactRef], name: str) -> dict[ArtifactRef, bytes]:
        paths = {f"{self._remote(ref)}/{name}": ref for ref in refs}
        return {paths[path]: content for path, content in self._read(list(paths)).items()}

    def notes(self, folder: str) -> dict[str, bytes]:
        self._files.invalidate_cache()
        found = self._read(self._files.glob(f"{self._prefix}/{folder}/*.json"))
        return {path.rpartition("/")[2]: content for path, content in sorted(found.items())}

    def write_note(self, folder: str, name: str, content: bytes) -> None:
        self._files.pipe_file(f"{self._prefix}/{folder}/{name}", content)

    def remove_note(self, folder: str, name: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{self._prefix}/{folder}/{name}")

    def _sizes(self, kind: str | None) -> dict[ArtifactRef, dict[str, int]]:
        """The size of every object, by artifact and name."""
        self._files.invalidate_cache()
        sizes: dict[ArtifactRef, dict[str, int]] = defaultdict(dict)
        listed = self._files.find(f"{self._prefix}/{kind}" if kind else self._prefix, detail=True)
        for path, facts in listed.items():
            own_kind, _, rest = path.removeprefix(self._prefix).lstrip("/").partition("/")
            key, _, name = rest.partition("/")
            if name and not own_kind.startswith("."):
                sizes[ArtifactRef(kind=own_kind, key=key)][name] = facts["size"]
        return dict(sorted(sizes.items(), key=lambda item: str(item[0])))

    def _read(self, paths: list[str]) -> dict[str, bytes]:
        """The content of those objects that are there, read side by side."""
        found: dict[str, bytes | Exception] = self._files.cat(paths, on_error="return") if paths else {}
        failed = [one for one in found.values() if isinstance(one, Exception)]
        for error in failed:
            if not isinstance(error, FileNotFoundError):
                raise _unreachable(self._url, error) from error
        return {path: content for path, content in found.items() if isinstance(content, bytes)}

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


def _found(ref: ArtifactRef, published: bytes | None, sizes: dict[str, int]) -> Found:
    size = sum(sizes.values())
    if published is None:
        return Found(None, f"no {MANIFEST}: its upload has not ended", size)
    try:
        manifest = Manifest.model_validate_json(published)
    except ValidationError:
        return Found(None, f"{MANIFEST} cannot be read", size)
    if manifest.ref != ref:
        return Found(None, f"{MANIFEST} is that of {manifest.ref}", size)
    for name, expected in manifest.files.items():
        if name not in sizes:
            return Found(manifest, f"{name} is missing", size)
        if sizes[name] != expected.bytes:
            return Found(manifest, f"{name} has {sizes[name]} bytes instead of {expected.bytes}", size)
    return Found(manifest, None, manifest.bytes)


class _Told:
    """A file system whose every failure is one sentence; that what is read is not there stays a FileNotFoundError."""

    def __init__(self, files: Any, url: str) -> None:
        self._files, self._url = files, url

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._files, name)

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except Exception as error:
                if isinstance(error, FileNotFoundError) and name not in {"pipe_file", "put_file"}:
                    raise
                raise _unreachable(self._url, error) from error

        return call


def _unreachable(url: str, error: Exception) -> StoreError:
    why = " ".join(str(error).split()) or type(error).__name__
    return StoreError(f"The store {url} cannot be reached ({why}): check its address, the endpoint and your access.")
