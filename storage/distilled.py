"""The distilled set: what a method returns, what is stored, and what a student trains on.

Shapes: N clips, T frames, H height, W width, K classes. `clips_NTHWC` is uint8 RGB.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from vidistill.storage import coded
from vidistill.storage.clips import create_clip_array, open_clip_array
from vidistill.storage.errors import ArtifactDamaged, VidistillError

SET = "set.json"
CLIPS = "clips"
VARIANTS = "variants_as_clips"
"""The fact of a set that keeps the variants of each instance as clips of their own: how many an instance has."""
FORMS: dict[str, str] = {
    "still": "vidistill.models.forms:still",
    "regions": "vidistill.models.regions:regions",
    "memory": "vidistill.models.forms:memory",
    "interpolated": "vidistill.models.forms:interpolated",
    "reshaped": "vidistill.models.forms:reshaped",
    "fused": "vidistill.models.forms:fused",
    coded.FORM: "vidistill.storage.coded:clips",
}
"""How clips are made from what a set keeps, by the form's name: functions (stored, shape_NTHWC) → clips_NTHWC, or
VNTHWC where an instance has variants. They may need networks, so they are looked up only when such a set is loaded.
`clips` is the form that keeps the clips; `coded` is one file, of which every byte counts."""


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
        extras: arrays that the report draws and no student needs (saliency), a row a clip where sets are joined; not in
            `training_bytes`.
        form: `clips`, or a name of `FORMS`: then `stored` lasts and the clips are made from it when the set is loaded.
        stored: what the form keeps.
        others_VNTHWC: uint8, the other variants of each clip, where the form has any: at each use a student is shown
            one of them all, drawn at random.
    """

    clips_NTHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    classes: tuple[str, ...]
    logits_NK: NDArray[np.float32] | None = None
    sources: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    form: str = CLIPS
    stored: dict[str, NDArray[Any]] = field(default_factory=dict)
    others_VNTHWC: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        labels_N: object = self.labels_N
        if not isinstance(labels_N, np.ndarray) or labels_N.ndim != 1 or labels_N.dtype.kind not in "iu":
            raise ValueError(f"labels must be an array (N,) of whole numbers; got {_kind(labels_N)}")
        n, k = len(self.labels_N), len(self.classes)
        clips: object = self.clips_NTHWC
        fits = isinstance(clips, np.ndarray) and clips.dtype == np.uint8 and clips.ndim == 5
        if not fits or (len(self.clips_NTHWC), self.clips_NTHWC.shape[4]) != (n, 3):
            raise ValueError(f"clips must be uint8 ({n}, T, H, W, 3), one a label; got {_kind(clips)}")
        if n and not 0 <= self.labels_N.min() <= self.labels_N.max() < k:
            raise ValueError(f"labels must lie in 0…{k - 1}; got {self.labels_N.min()}…{self.labels_N.max()}")
        logits: object = self.logits_NK
        if logits is not None and not (isinstance(logits, np.ndarray) and logits.dtype == np.float32):
            raise ValueError(f"logits must be float32 ({n}, {k}); got {_kind(logits)}")
        if self.logits_NK is not None and self.logits_NK.shape != (n, k):
            raise ValueError(f"logits must have shape ({n}, {k}); got {self.logits_NK.shape}")
        others: object = self.others_VNTHWC
        if isinstance(others, np.ndarray) and (others.dtype != np.uint8 or others.shape[1:] != self.clips_NTHWC.shape):
            raise ValueError(f"variants must be uint8 (V, {n}, T, H, W, 3), as the clips are; got {_kind(others)}")
        if self.form != CLIPS and self.form not in FORMS:
            raise ValueError(f"form must be {CLIPS} or one of {', '.join(FORMS)}; got {self.form!r}")

    def __len__(self) -> int:
        return len(self.labels_N)

    def with_logits(self, logits_NK: NDArray[np.float32]) -> DistilledSet:
        return replace(self, logits_NK=coded.rounded(logits_NK) if self.form == coded.FORM else logits_NK)

    def with_clips(self, clips_NTHWC: NDArray[np.uint8]) -> DistilledSet:
        """With other clips, which only the form `clips` can keep."""
        return replace(self, clips_NTHWC=clips_NTHWC, form=CLIPS, stored={}, others_VNTHWC=None)

    @property
    def values(self) -> int:
        """How many numbers the set keeps besides labels; papers count four bytes for each."""
        return sum(array.size for array in self.stored.values()) if self.stored else self.clips_NTHWC.size

    @property
    def clips_an_instance(self) -> int:
        """How many clips one instance of the budget gives: the regions of a mosaic, the views of a coded clip, one."""
        if self.form == coded.FORM:
            return int(self.stored["boxes"].shape[1]) + 1
        return len(self) // len(self.stored["mosaics"]) if self.form == "regions" else 1

    def save(self, folder: Path) -> None:
        """Write the set as a Zarr group or a coded file, and `set.json`; clips where nothing smaller makes them.

        Raises:
            ValueError: clips have variants that no form makes.
        """
        if self.form == CLIPS and self.others_VNTHWC is not None:
            raise ValueError("variants are kept by a form that makes them, not beside clips: give each as a clip")
        arrays = self._save_coded(folder) if self.form == coded.FORM else self._save_arrays(folder)
        facts = {"classes": self.classes, "sources": self.sources, "facts": self.facts, "arrays": arrays}
        if self.form != CLIPS:
            facts |= {"form": self.form, "shape": self.clips_NTHWC.shape}
        (folder / SET).write_text(json.dumps(facts, indent=1))

    def _save_coded(self, folder: Path) -> list[str]:
        data = coded.to_bytes(self.labels_N, self.logits_NK, len(self.classes), self.stored)
        (folder / coded.FILE).write_bytes(data)
        return []

    def _save_arrays(self, folder: Path) -> list[str]:
        group = zarr.open_group(folder, mode="a")
        if self.form == CLIPS:
            create_clip_array(folder, self.clips_NTHWC.shape)[:] = self.clips_NTHWC
        arrays: dict[str, NDArray[Any]] = {"labels": self.labels_N, **{f"extra_{n}": a for n, a in self.extras.items()}}
        arrays |= {f"stored_{name}": array for name, array in self.stored.items()}
        if self.logits_NK is not None:
            arrays["logits"] = self.logits_NK
        for name, array in arrays.items():
            group.create_array(name, data=array, chunks=array.shape, compressors=ZstdCodec(level=1, checksum=True))
        return list(arrays)

    @staticmethod
    def load(folder: str | Path, store: str | None = None) -> DistilledSet:
        """Read a set that `save` wrote (an artifact's folder), or a folder that `vidistill export` wrote.

        Args:
            folder: the folder, or a name that the flow `refresh` gives, such as `latest`.
            store: where the name is known; this user's store by default.

        Raises:
            ArtifactNotFound: the folder is neither, and there is no such name.
            ArtifactDamaged: what it holds is not what was written.
        """
        if isinstance(folder, str) and folder.isidentifier() and not Path(folder).exists():
            from vidistill.storage.names import folder_of

            folder = folder_of(folder, store)
        folder = Path(folder)
        try:
            if not (folder / SET).is_file():
                from vidistill.storage.exported import load_exported

                return load_exported(folder)
            return DistilledSet._load(folder)
        except VidistillError:
            raise
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ArtifactDamaged(f"The set in {folder} cannot be read ({why}): make or export it again.") from error

    @staticmethod
    def _load(folder: Path) -> DistilledSet:
        facts, arrays = json.loads((folder / SET).read_text()), DistilledSet.arrays_of(folder)
        form, stored = facts.get("form", CLIPS), _named(arrays, "stored_")
        if form == coded.FORM:
            arrays["labels"], logits_NK, stored = coded.read(folder / coded.FILE)
            arrays |= {} if logits_NK is None else {"logits": logits_NK}
        clips = open_clip_array(folder)[...] if form == CLIPS else materialised(form, stored, tuple(facts["shape"]))
        return DistilledSet(
            **variants(np.asarray(clips)),
            labels_N=arrays["labels"],
            classes=tuple(facts["classes"]),
            logits_NK=arrays.get("logits"),
            sources=tuple(facts["sources"]),
            facts=facts["facts"],
            extras=_named(arrays, "extra_"),
            form=form,
            stored=stored,
        )

    @staticmethod
    def arrays_of(folder: Path) -> dict[str, NDArray[Any]]:
        """A stored set's arrays but its clips: `labels`, `logits`, and what makes the clips as `stored_NAME`."""
        names = json.loads((folder / SET).read_text())["arrays"]
        return {name: np.asarray(zarr.open_array(folder, path=name, mode="r")[...]) for name in names}

    @staticmethod
    def facts_of(folder: Path) -> dict[str, Any]:
        """A stored set's facts, without reading its clips."""
        facts: dict[str, Any] = json.loads((folder / SET).read_text())["facts"]
        return facts

    @staticmethod
    def extras_of(folder: Path) -> set[str]:
        """The names of a stored set's `extras`, without reading them."""
        names = json.loads((folder / SET).read_text())["arrays"]
        return {name.removeprefix("extra_") for name in names if name.startswith("extra_")}

    @staticmethod
    def sources_of(folder: Path) -> tuple[str, ...]:
        """Where a stored set's clips began, without reading them."""
        return tuple(json.loads((folder / SET).read_text())["sources"])

    @staticmethod
    def training_bytes(folder: Path, *, logits: bool = True) -> int:
        """Bytes on disk of what a student needs: clips or what makes them, labels, logits, compressed as stored.

        Without `logits`, those that a student of hard labels needs.
        """
        left_out = ["extra_"] if logits else ["extra_", "logits"]
        names = {path: path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        kept = [path for path, name in names.items() if not name.startswith(tuple(left_out))]
        size = sum(path.stat().st_size for path in kept if path.name not in {SET, "manifest.json"})
        file = folder / coded.FILE
        return size - (coded.logits_bytes(file) if file.is_file() and not logits else 0)


def _kind(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _named(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def materialised(form: str, stored: dict[str, NDArray[Any]], shape_NTHWC: tuple[int, ...]) -> NDArray[np.uint8]:
    """The clips that a form makes from what it keeps: NTHWC, or VNTHWC where an instance has variants."""
    module, _, name = FORMS[form].partition(":")
    made: NDArray[np.uint8] = getattr(importlib.import_module(module), name)(stored, shape_NTHWC)
    return made


def variants(clips: NDArray[np.uint8]) -> dict[str, Any]:
    """NTHWC or VNTHWC as arguments of a set, which has no others where there is one variant."""
    if clips.ndim == 5:
        return {"clips_NTHWC": clips}
    return {"clips_NTHWC": clips[0], "others_VNTHWC": clips[1:] if len(clips) > 1 else None}


def joined(parts: list[DistilledSet]) -> DistilledSet:
    """Sets of different classes as one, in class order.

    Raises:
        ValueError: the parts differ in form, or keep what belongs to no one clip.
    """
    if len(parts) == 1:
        return parts[0]
    shared = {name for part in parts for name, array in part.stored.items() if len(array) != len(part)}
    if len({part.form for part in parts}) > 1 or shared:
        raise ValueError(f"parts of one form, a row a clip, can be joined; {sorted(shared)} belong to a whole part")
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
        facts=joined_facts([part.facts for part in parts]),
        extras={name: np.concatenate([part.extras[name] for part in parts])[order] for name in parts[0].extras},
        form=parts[0].form,
        stored={name: np.concatenate([part.stored[name] for part in parts])[order] for name in parts[0].stored},
    )


def joined_facts(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The facts of each part, their mean curve where they have the same steps, and all that they say of themselves."""
    made: dict[str, Any] = {"parts": parts}
    curves = [curve_of(facts) for facts in parts]
    if all(curves) and len({tuple(curve["steps"]) for curve in curves}) == 1:
        mean_loss = np.mean([curve["loss"] for curve in curves], axis=0)
        made |= {"steps": curves[0]["steps"], "loss": mean_loss.round(6).tolist()}
    marks = dict.fromkeys(filter(None, map(mark_of, parts)))
    return made | ({"mark": "; ".join(marks)} if marks else {})


def curve_of(facts: dict[str, Any]) -> dict[str, list[Any]]:
    """`steps`, `loss` and `alpha` of a set's training; empty where its facts, which are free, hold no such lists."""
    curve = {name: values for name in ("steps", "loss", "alpha") if isinstance(values := facts.get(name), list)}
    numbers = all(isinstance(value, int | float) for values in curve.values() for value in values)
    whole = {"steps", "loss"} <= curve.keys() and all(isinstance(step, int) for step in curve["steps"])
    return curve if whole and curve["steps"] and numbers and len(set(map(len, curve.values()))) == 1 else {}


def mark_of(facts: dict[str, Any]) -> str:
    """What a set says of itself; empty where it says nothing."""
    mark = facts.get("mark")
    return mark if isinstance(mark, str) else ""
