"""What an artifact says of itself: its name, its manifest, and what is wrong with the files that it describes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from vidistill.storage.keys import digest, file_digest
from vidistill.storage.parameters import Parameters

MANIFEST = "manifest.json"
CHECKPOINT = "-checkpoint"
"""What the kind of a stage's checkpoints has behind the stage's own kind; a step follows its key: `<key>-<step>`."""


def _inside(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise ValueError(f"the file {name!r} would lie outside its artifact")
    return name


OneName = Annotated[str, Field(pattern=r"^[^./\\\x00][^/\\\x00]*$")]
"""One step of a path: it leads nowhere else."""
FileName = Annotated[str, AfterValidator(_inside)]


_digests: dict[Path, tuple[int, str]] = {}
"""When a file was written whose content this process has seen to be right, and its checksum."""


class ArtifactRef(Parameters):
    """The name of an artifact: what tasks pass to each other."""

    kind: OneName
    key: OneName

    def __str__(self) -> str:
        return f"{self.kind}/{self.key}"

    @property
    def parent(self) -> ArtifactRef | None:
        """What a checkpoint is a checkpoint of; None: this is none."""
        if not self.kind.endswith(CHECKPOINT):
            return None
        return ArtifactRef(kind=self.kind.removesuffix(CHECKPOINT), key=self.key.rpartition("-")[0])


class FileRecord(Parameters):
    bytes: int
    sha256: str


class Manifest(Parameters):
    """What an artifact is, what it was made from, with what, and at what cost."""

    kind: OneName
    key: OneName
    version: int
    parameters: dict[str, Any]
    inputs: dict[str, list[ArtifactRef]]
    files: dict[FileName, FileRecord] = Field(default_factory=dict)
    record: dict[str, Any] = Field(default_factory=dict)
    """Free facts: counts, seeds, device, threads, precision, versions, commit."""
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    created: str = ""
    checksum: str = Field("", exclude_if=lambda checksum: not checksum)
    """Of all the rest."""

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef(kind=self.kind, key=self.key)

    @property
    def needs(self) -> list[ArtifactRef]:
        """All that it was made from."""
        return [ref for refs in self.inputs.values() for ref in refs]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


ABSENT, NOT_ENDED = "no artifact", f"no {MANIFEST}: its upload has not ended"
"""What is wrong with an artifact that is not there, and with one that another run is still writing."""


@dataclass(frozen=True)
class Found:
    """What a look at an artifact shows: its manifest, where that can be read, what is wrong with it, its size."""

    manifest: Manifest | None
    problem: str | None
    bytes: int


class AlteredError(ValueError):
    """A manifest that does not have its checksum."""


def write_manifest(place: Path, manifest: Manifest) -> None:
    sealed = manifest.model_copy(update={"checksum": digest(json.loads(manifest.model_dump_json()))})
    (place / MANIFEST).write_text(sealed.model_dump_json(indent=1), encoding="utf-8")


def read_manifest(place: Path) -> Manifest:
    """The manifest in a folder.

    Raises:
        OSError: there is none.
        ValueError: it is no manifest; AlteredError: its checksum is another.
    """
    return parsed((place / MANIFEST).read_bytes())


def parsed(content: bytes) -> Manifest:
    """A manifest by what its file holds; those of older versions have no checksum.

    Raises:
        ValueError: it is no manifest; AlteredError: its checksum is another.
    """
    plain = json.loads(content)
    manifest = Manifest.model_validate(plain)
    if plain.pop("checksum", None) not in (None, digest(plain)):
        raise AlteredError
    return manifest.model_copy(update={"checksum": ""})


def told(ref: ArtifactRef, content: bytes) -> Manifest | str:
    """The manifest of an artifact by what its file holds, or what is wrong with it."""
    try:
        manifest = parsed(content)
    except AlteredError:
        return f"{MANIFEST} does not have its checksum"
    except ValueError:
        return f"{MANIFEST} cannot be read"
    return manifest if manifest.ref == ref else f"{MANIFEST} is that of {manifest.ref}"


def found_by_size(ref: ArtifactRef, content: bytes | None, sizes: dict[str, int]) -> Found:
    """What the manifest of an artifact, and the sizes of its files by name, show."""
    size = sum(sizes.values())
    if content is None:
        return Found(None, NOT_ENDED, size)
    manifest = told(ref, content)
    if isinstance(manifest, str):
        return Found(None, manifest, size)
    for name, expected in manifest.files.items():
        if name not in sizes:
            return Found(manifest, f"{name} is missing", size)
        if sizes[name] != expected.bytes:
            return Found(manifest, f"{name} has {sizes[name]} bytes instead of {expected.bytes}", size)
    return Found(manifest, None, manifest.bytes)


def damage(place: Path, manifest: Manifest, content: Literal["unread", "once", "read"]) -> str | None:
    """What is wrong with the files of an artifact: none missing, each as long as it was.

    Args:
        place: the artifact's folder.
        manifest: what it should be.
        content: whether its checksums are looked at; `once`: those of files that this process has not read since they
            were written.
    """
    for name, expected in manifest.files.items():
        path = place / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            status = path.stat()
            if status.st_size != expected.bytes:
                return f"{name} has {status.st_size} bytes instead of {expected.bytes}"
            known = _digests.get(path) if content == "once" else None
            if content != "unread" and known != (status.st_mtime_ns, expected.sha256):
                if file_digest(path) != expected.sha256:
                    return f"{name} does not have its checksum"
                _digests[path] = (status.st_mtime_ns, expected.sha256)
        except FileNotFoundError:  # removed meanwhile
            return f"{name} is missing"
    return None
