"""What the report shows of OptDistill: how many videos gave a crop, some of them from box to crop, every mosaic.

Legend: T frames, H height, W width; clips are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vidistill.storage.distilled import DistilledSet, mark_of
from vidistill.storage.store import ArtifactRef, Store
from vidistill.tasks.crops.pictures import SHOWN
from vidistill.tasks.report.data import CropSet, CropShown, RowPlan
from vidistill.tasks.report.naming import named_sets

PICTURES = {"first_frame", "track", "crop", "score"}


def crop_sets(store: Store, plans: Iterable[RowPlan]) -> list[CropSet]:
    """The seed-0 set of each method and variant that left pictures of crops, at each budget."""
    chosen: dict[tuple[str, int], ArtifactRef] = {}
    for name, plan in named_sets(plans):
        if plan.ipc is not None:
            chosen.setdefault((name, plan.ipc), plan.sets[0])
    return [
        _crop_set(name, ipc, DistilledSet.load(store.folder(ref)))
        for (name, ipc), ref in chosen.items() if DistilledSet.extras_of(store.folder(ref)) >= PICTURES
    ]  # fmt: skip


def _crop_set(name: str, ipc: int, made: DistilledSet) -> CropSet:
    mosaics_MTHWC = made.stored.get("mosaics", made.clips_NTHWC)
    labels_M = made.labels_N[:: made.clips_an_instance]
    firsts = [int(np.flatnonzero(made.labels_N == label)[0]) for label in np.unique(made.labels_N)[:SHOWN]]
    rows = {clip: row for row, clip in enumerate(made.extras.get("clip", range(len(made))))}  # once a row a clip
    return CropSet(
        method=name,
        ipc=ipc,
        counts=made.facts["counts"],
        detector=made.facts.get("detector", {}),
        shown=[
            CropShown(
                video=made.sources[clip],
                class_name=made.classes[made.labels_N[clip]],
                score=float(made.extras["score"][clip]),
                first_HWC=np.asarray(made.extras["first_frame"][rows[clip]], dtype=np.uint8),
                track_THWC=np.asarray(made.extras["track"][rows[clip]], dtype=np.uint8),
                crop_THWC=np.asarray(made.extras["crop"][rows[clip]], dtype=np.uint8),
            )
            for clip in firsts
        ],
        mosaics=[(made.classes[label], mosaic) for label, mosaic in zip(labels_M, mosaics_MTHWC, strict=True)],
    )


def row_mark(store: Store, sets: Iterable[ArtifactRef]) -> str:
    """What a row's sets say of themselves, such as how few videos gave a crop; empty where they say nothing."""
    return next(filter(None, (mark_of(DistilledSet.facts_of(store.folder(ref))) for ref in sets)), "")
