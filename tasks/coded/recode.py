"""Recode: any method's set with its clips as compressed video, so that a row says what that saves and what it costs.

Legend: V variants of each instance, N instances, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from vidistill.storage import coded
from vidistill.storage.distilled import VARIANTS, DistilledSet, materialised
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.coded.keep import Coding, psnr
from vidistill.tasks.stage import Job, Work, stage

RAW_BYTES, RAW_BYTES_HARD = "raw_bytes", "raw_bytes_hard"


class RecodeParameters(Parameters):
    coding: Coding
    variants: int = Field(1, ge=1, exclude_if=lambda variants: variants == 1)


def recode_job(distilled: ArtifactRef, coding: Coding, label: str, variants: int = 1) -> Job:
    """Of a set of which each instance has so many variants (`Method.variants`)."""
    return recode(RecodeParameters(coding=coding, variants=variants), {"distilled": distilled}, label=label)


@stage("recoded", version=2)  # 2: facts of the bytes without logits
def recode(work: Work) -> None:
    """The set of the input as its clips are decoded; facts say what it took before, with its logits and without."""
    coding = RecodeParameters.model_validate(work.job.parameters).coding
    made = recoded(DistilledSet.load(work.input("distilled")), coding)
    made.facts[RAW_BYTES] = DistilledSet.training_bytes(work.input("distilled"))
    if made.logits_NK is not None:
        made.facts[RAW_BYTES_HARD] = DistilledSet.training_bytes(work.input("distilled"), logits=False)
    made.save(work.folder)
    work.record(counts={"clips": len(made)})


def recoded(made: DistilledSet, coding: Coding) -> DistilledSet:
    """The same set in the form `coded`: the clips that a student sees, each variant of an instance as one of its own.

    So it serves every form, but where many clips are made from little (mosaics, memories with many variants) the clips
    can take more bytes than what they are made from. Facts say how many variants an instance had: its students take as
    many steps as those of the set itself.
    """
    raw_NTHWC, variants = made.clips_NTHWC, 1
    if made.others_VNTHWC is not None:
        every_NVTHWC = np.stack([made.clips_NTHWC, *made.others_VNTHWC], axis=1)
        raw_NTHWC, variants = every_NVTHWC.reshape(-1, *raw_NTHWC.shape[1:]), every_NVTHWC.shape[1]
    stream = coding.encode(raw_NTHWC)
    stored = coded.stored_of(stream)
    clips_NTHWC = materialised(coded.FORM, stored, raw_NTHWC.shape)
    facts: dict[str, Any] = coding.model_dump() | {
        "codec": stream.codec, "clips": len(raw_NTHWC), "psnr": psnr(raw_NTHWC, clips_NTHWC)
    }  # fmt: skip
    shown = {VARIANTS: variants} if variants > 1 else {}
    whole = replace(
        made, clips_NTHWC=clips_NTHWC, labels_N=made.labels_N.repeat(variants), logits_NK=None,
        sources=tuple(source for source in made.sources for _ in range(variants)),
        facts=made.facts | {"coded": facts} | shown, extras={}, form=coded.FORM, stored=stored, others_VNTHWC=None,
    )  # fmt: skip
    return whole if made.logits_NK is None else whole.with_logits(made.logits_NK.repeat(variants, axis=0))
