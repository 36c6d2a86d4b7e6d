"""The distilled set: what a method returns, what is stored, and what a student trains on.

Shapes: N clips, T frames, H height, W width, K classes. `clips_NTHWC` is uint8 RGB.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from vidistill.storage.clips import create_clip_array, open_clip_array

SET = "set.json"


@dataclass(frozen=True)
class DistilledSet:
    """A few clips a class with their labels.

    Attributes:
        clips_NTHWC: uint8 RGB, the clips that a student sees.
        labels_N: int64, the class of each clip.
        classes: class names; a label is an index into them.
        logits_NK: float32, the teacher's outputs for the clips, where the set carries soft labels.
        sources: where each clip began (paths relative to the data root), "" for none.
        facts: what the method wants to tell the report (JSON).
        extras: arrays, one row a clip, that the report draws and no student needs (saliency); not in `training_bytes`.
    """

    clips_NTHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    classes: tuple[str, ...]
    logits_NK: NDArray[np.float32] | None = None
    sources: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, k = len(self.labels_N), len(self.classes)
        if self.clips_NTHWC.ndim != 5 or self.clips_NTHWC.dtype != np.uint8 or len(self.clips_NTHWC) != n:
            got = f"{self.clips_NTHWC.dtype} {self.clips_NTHWC.shape}"
            raise ValueError(f"clips must be uint8 ({n}, T, H, W, 3), one a label; got {got}")
        if n and not 0 <= self.labels_N.min() <= self.labels_N.max() < k:
            raise ValueError(f"labels must lie in 0…{k - 1}; got {self.labels_N.min()}…{self.labels_N.max()}")
        if self.logits_NK is not None and self.logits_NK.shape != (n, k):
            raise ValueError(f"logits must have shape ({n}, {k}); got {self.logits_NK.shape}")

    def __len__(self) -> int:
        return len(self.labels_N)

    def with_logits(self, logits_NK: NDArray[np.float32]) -> DistilledSet:
        return replace(self, logits_NK=logits_NK)

    def with_clips(self, clips_NTHWC: NDArray[np.uint8]) -> DistilledSet:
        return replace(self, clips_NTHWC=clips_NTHWC)

    def save(self, folder: Path) -> None:
        """Write the set as one Zarr group and `set.json`."""
        group = zarr.open_group(folder, mode="a")
        create_clip_array(folder, self.clips_NTHWC.shape)[:] = self.clips_NTHWC
        arrays: dict[str, NDArray[Any]] = {"labels": self.labels_N, **{f"extra_{n}": a for n, a in self.extras.items()}}
        if self.logits_NK is not None:
            arrays["logits"] = self.logits_NK
        for name, array in arrays.items():
            group.create_array(name, data=array, chunks=array.shape, compressors=ZstdCodec(level=1, checksum=True))
        facts = {"classes": self.classes, "sources": self.sources, "facts": self.facts, "arrays": list(arrays)}
        (folder / SET).write_text(json.dumps(facts, indent=1))

    @staticmethod
    def load(folder: Path) -> DistilledSet:
        """Read a set that `save` wrote (an artifact's folder)."""
        facts = json.loads((folder / SET).read_text())
        arrays = {name: np.asarray(zarr.open_array(folder, path=name, mode="r")[...]) for name in facts["arrays"]}
        return DistilledSet(
            clips_NTHWC=np.asarray(open_clip_array(folder)[...]),
            labels_N=arrays["labels"],
            classes=tuple(facts["classes"]),
            logits_NK=arrays.get("logits"),
            sources=tuple(facts["sources"]),
            facts=facts["facts"],
            extras={name.removeprefix("extra_"): a for name, a in arrays.items() if name.startswith("extra_")},
        )

    @staticmethod
    def training_bytes(folder: Path) -> int:
        """Bytes on disk of what a student needs: clips, labels and logits, compressed as stored."""
        kept = [path for path in folder.rglob("*") if path.is_file() and "extra_" not in str(path.relative_to(folder))]
        return sum(path.stat().st_size for path in kept if path.name not in {SET, "manifest.json"})


def joined(parts: list[DistilledSet]) -> DistilledSet:
    """Sets of different classes as one, in class order."""
    if len(parts) == 1:
        return parts[0]
    labels_N = np.concatenate([part.labels_N for part in parts])
    order = np.argsort(labels_N, kind="stable")
    logits = [part.logits_NK for part in parts if part.logits_NK is not None]
    sources = [source for part in parts for source in part.sources]
    return DistilledSet(
        clips_NTHWC=np.concatenate([part.clips_NTHWC for part in parts])[order],
        labels_N=labels_N[order],
        classes=parts[0].classes,
        logits_NK=np.concatenate(logits)[order] if logits else None,
        sources=tuple(sources[index] for index in order) if sources else (),
        facts={"parts": [part.facts for part in parts]},
        extras={name: np.concatenate([part.extras[name] for part in parts])[order] for name in parts[0].extras},
    )
