"""The pool of generated clips: a clip set like any other, with the latents that its clips were decoded from.

Shapes: N clips, T frames, H height, W width; C channels, h, w height and width of the latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from vidistill.storage.arrays import open_whole
from vidistill.storage.clips import Clips
from vidistill.storage.store import ArtifactRef, Store

LATENTS = "latents"
LATENT_NAMES = ("channel", "time", "y", "x")


class Pool(Clips):
    """Generated clips, read as `Clips` are; each is its class's clip number `index_of(row)`.

    Args:
        store: where the artifact is.
        ref: a `pool` artifact.

    Attributes:
        facts: the parameters that it was made with: the sampler's, seed, clips a class, clips a part.
    """

    def __init__(self, store: Store, ref: ArtifactRef) -> None:
        super().__init__(store, ref)
        manifest = store.manifest(ref)
        self.facts: dict[str, Any] = manifest.parameters
        self._parts = manifest.inputs[LATENTS]
        self._latents: dict[int, zarr.Array[Any]] = {}

    @property
    def shape_CTHW(self) -> tuple[int, int, int, int]:
        """The shape of a clip's latents."""
        _, *shape = self._latent_array(0).shape
        return tuple(shape)  # type: ignore[return-value]

    def _latent_array(self, part: int) -> zarr.Array[Any]:
        """A part's latents, opened when they are first read: most methods read none."""
        if part not in self._latents:
            folder = self._store.folder(self._parts[part])
            self._store.check_content(self._parts[part])
            self._latents[part] = open_latent_array(folder)
        return self._latents[part]

    def latents(self, rows: Iterable[int]) -> NDArray[np.float32]:
        """The latents of these rows, of mean zero and variance about one: float32 (N, C, T, h, w)."""
        rows = list(rows)
        z_NCTHW = np.empty((len(rows), *self.shape_CTHW), dtype=np.float32)
        for slot, row in enumerate(rows):
            video = self.table.videos[row]
            z_NCTHW[slot] = self._latent_array(video.block)[video.row]
        return z_NCTHW

    def index_of(self, row: int) -> int:
        """The number of a clip in its class, which with the seed and the class drew its noise."""
        return int(self.table.videos[row].path.rpartition("/")[2])


def create_latent_array(folder: Path, shape: tuple[int, ...]) -> zarr.Array[Any]:
    """A float16 array of latents, (N, C, T, h, w) or with views after N; a row a chunk."""
    names = ("clip", "view")[: len(shape) - 4]
    return zarr.create_array(
        folder, name=LATENTS, shape=shape, chunks=(1, *shape[1:]), dtype="float16",
        compressors=ZstdCodec(level=1, checksum=True), dimension_names=(*names, *LATENT_NAMES),
        config={"write_empty_chunks": True},
    )  # fmt: skip


def open_latent_array(folder: Path) -> zarr.Array[Any]:
    return open_whole(folder, LATENTS)
