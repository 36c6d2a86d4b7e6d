"""Why a job has to run: what distinguishes it from what the store has of the same kind, data and split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from vidistill.storage.store import ArtifactRef, Manifest
from vidistill.tasks.stage import Job

NOTHING = "no artifact of this kind yet"
NOTHING_LIKE_IT = "no artifact like it of this data yet"
FEW = 8
"""Sets of videos, of which a union is remembered; `clips` are made of hundreds, once."""
IDENTITY = {
    "clips": ("split",), "teacher": ("network", "seed"), "expert": ("seed",),
    "distilled": ("method", "ipc", "kb", "seed", "labels"), "score": ("network", "seed"), "relabelled": ("seed",),
    "pool-part": ("seed", "label", "first"), "crops": ("label",), "coded-search": ("kb",),
}  # fmt: skip
"""The parameters by which two jobs of a kind are the same job, done otherwise; a recipe's labels are one, too."""


class Reasons:
    """What the store has, by what it was made of.

    Args:
        jobs: those that are planned.
        known: the manifests of the store.
    """

    def __init__(self, jobs: Sequence[Job], known: Sequence[Manifest]) -> None:
        self._nodes = {manifest.ref: manifest for manifest in known} | {job.ref: job.manifest for job in jobs}
        self._videos: dict[ArtifactRef, frozenset[str]] = {}
        self._unions: dict[frozenset[int], frozenset[str]] = {}
        self._indexed: dict[ArtifactRef, set[str]] = defaultdict(set)
        for ref, node in self._nodes.items():
            if node.kind == "clips":
                self._indexed[node.inputs["index"][0]] |= self._videos_of(ref)
        self._known: dict[str, list[Manifest]] = defaultdict(list)
        self._alike: dict[str, dict[Hashable, list[Manifest]]] = {}
        self._blocks: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
        for manifest in known:
            self._known[manifest.kind].append(manifest)
            for video in _own_videos(manifest):
                self._blocks[manifest.kind, video].append(manifest)

    def of(self, job: Job, missing: set[ArtifactRef]) -> str:
        """Why a job whose artifact is not there has to run: changed inputs, changed parameters, a newer stage, or
        nothing like it before.
        """
        needed = sorted({ref.kind for ref in job.needs if ref in missing})
        if not self._known[job.stage]:
            return NOTHING
        own = [self._blocks[job.stage, video] for video in _own_videos(job.manifest)]
        near = {made.ref: made for block in own for made in block}.values() if own else self._by_name(job.manifest)
        alike = [made for made in near if self._same(made, job.manifest)]
        if not alike:
            return NOTHING_LIKE_IT
        if needed:
            return f"its input is made anew: {', '.join(needed)}"
        found = min((list(differences(made, job)) for made in alike), key=len)
        return ", ".join(found[:3]) + (" …" if len(found) > 3 else "")

    def _by_name(self, job: Manifest) -> list[Manifest]:
        """What is known of a job's kind, identity and split; put in order once, for there may be thousands of each."""
        if job.kind not in self._alike:
            self._alike[job.kind] = defaultdict(list)
            for made in self._known[job.kind]:
                self._alike[job.kind][self._name(made)].append(made)
        return self._alike[job.kind][self._name(job)]

    def _name(self, one: Manifest) -> Hashable:
        return self._identity(one), self._split(one)

    def _same(self, made: Manifest, job: Manifest) -> bool:
        """Whether two are the same job, done otherwise."""
        if self._name(made) != self._name(job):
            return False
        mine, theirs = (self._videos_of(one.ref) for one in (job, made))
        return not mine or bool(mine & theirs)

    def _identity(self, one: Manifest) -> Hashable:
        own = [str(one.parameters.get(name)) for name in IDENTITY.get(one.kind, ())]
        recipe = one.parameters.get("recipe") or {}
        sets = [self._nodes.get(ref) for ref in one.inputs.get("distilled", [])]
        return (
            *own,
            recipe.get("labels"),
            recipe.get("augmentation"),
            *(self._identity(made) for made in sets if made),
        )

    def _split(self, one: Manifest) -> str | None:
        if one.kind == "index":
            return str(one.parameters["index"]["split"])
        above = (self._nodes.get(ref) for name in ("index", "train", "clips") for ref in one.inputs.get(name, []))
        return next((self._split(node) for node in above if node), None)

    def _videos_of(self, ref: ArtifactRef) -> frozenset[str]:
        """The content of the videos that an artifact was made of; empty for what was made of none."""
        if ref not in self._videos:
            node = self._nodes.get(ref)
            self._videos[ref] = frozenset() if node is None else self._found(node)
        return self._videos[ref]

    def _found(self, node: Manifest) -> frozenset[str]:
        """Most jobs see the same few sets of videos: each of those is held once, however many see it."""
        own = {*_own_videos(node), *(self._indexed[node.ref] if node.kind == "index" else ())}
        needs = [ref for name, refs in node.inputs.items() if name != "index" or node.kind != "clips" for ref in refs]
        above = {id(videos): videos for videos in map(self._videos_of, needs) if videos}
        if own or len(above) > FEW:
            return frozenset(own.union(*above.values()))
        seen = frozenset(above)
        if seen not in self._unions:
            self._unions[seen] = next(iter(above.values())) if len(above) == 1 else frozenset().union(*above.values())
        return self._unions[seen]


def _own_videos(node: Manifest) -> Iterator[str]:
    """The content of the videos that a block's own parameters name."""
    videos = node.parameters.get("videos")
    if isinstance(videos, list | tuple):
        yield from (video["sha256"] for video in videos)


def differences(manifest: Manifest, job: Job) -> Iterator[str]:
    """What distinguishes a job from an artifact of its kind, in words."""
    if manifest.version != job.version:
        yield f"stage version {manifest.version} → {job.version}"
    for name, refs in job.inputs.items():
        if manifest.inputs.get(name, []) != refs:
            yield f"another {name}"
    yield from _changed(manifest.parameters, job.parameters, "")


def _changed(before: Any, after: Any, name: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from _changed(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif name == "videos" and isinstance(before, list | tuple) and isinstance(after, list | tuple):
        yield from _changed_videos(before, after)
    elif before != after:
        short = len(str(before)) + len(str(after)) < 60
        yield f"{name} {before} → {after}" if short else f"another {name}"


def _changed_videos(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Which videos of a block are new, gone or changed."""
    old, new = ({video["path"]: video for video in videos} for videos in (before, after))
    changed = [path for path in new.keys() & old.keys() if new[path] != old[path]]
    for what, paths in (("new", new.keys() - old.keys()), ("gone", old.keys() - new.keys()), ("changed", changed)):
        if paths:
            more = f" and {len(paths) - 1} more videos are" if len(paths) > 1 else " is"
            yield f"{min(paths)}{more} {what}"
