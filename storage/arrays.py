"""Arrays of artifacts that are read part by part, from an artifact that may be removed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore

from vidistill.storage.errors import ArtifactDamaged

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class _Whole(LocalStore):
    """A folder whose arrays have all their chunks: where one is missing Zarr reads zeros, which are black clips."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and "/c/" in key:
            raise ArtifactDamaged(
                f"{self.root} was removed, or a part of it, while it was read: run the same command again."
            )
        return found


def open_whole(folder: Path, name: str) -> zarr.Array[Any]:
    """An array to read, of an artifact that keeps every chunk (`write_empty_chunks`), or a value in each.

    Reading raises `ArtifactDamaged` where a chunk is gone.
    """
    return zarr.open_array(_Whole(folder, read_only=True), path=name, mode="r")
