"""Relabel: augmentation guided by saliency (S3 §3.3, TSGF_A) and the teacher's labels (Algorithm 1's last lines).

Shapes: B clips, C colours, T frames, H height, W width, K classes. `x_BCTHW` is normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.clips import Clips
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.saliency import SaliencyParameters, saliency, threshold
from vidistill.tasks.learning.teacher import load_teacher
from vidistill.tasks.learning.training import Device, Precision
from vidistill.tasks.learning.views import draw_box, in_batches
from vidistill.tasks.methods import Recipe
from vidistill.tasks.stage import Job, Work, stage

if TYPE_CHECKING:
    from torch import Tensor, nn


class MixParameters(Parameters):
    """VideoMix on the frames of low saliency. The paper leaves the law of the box and the partner open.

    CutMix's law: a box of the picture's shape whose area share is 1 − λ, λ ~ Beta(α, α) with α = 1, at a place drawn
    uniformly; the partner is another clip of the set, by a random permutation. Half of the clips are mixed: on the
    validation fifth of sprites (8×56×56, IPC 1, four seeds, MiniC3D-BN, 100 steps) mixing all of them took Random from
    45.7 % to 26.6 % with soft labels and to 33.2 % with online ones.
    """

    alpha: float = Field(1.0, gt=0, description="λ ~ Beta(α, α).")
    probability: float = Field(0.5, ge=0, le=1, description="Share of clips that are mixed.")


class GuidedMix(MixParameters):
    """VideoMix with the saliency of TSGF's mask: the paper has one s and one ε."""

    saliency: SaliencyParameters = SaliencyParameters()


def videomix(x_BCTHW: Tensor, parameters: GuidedMix, kind: Literal["tsgf", "image"], *seed: int) -> Tensor:
    """Paste a box of a partner clip into each clip.

    `tsgf`: the same box in every frame with s_i ≤ ε, salient frames untouched (S3 §3.3). `image`: another box in each
    frame, the image augmentation of Table 6.
    """
    import torch

    still_BT = unsalient(x_BCTHW, parameters)
    partner_B, paste_BTHW = pastes(still_BT, (x_BCTHW.shape[3], x_BCTHW.shape[4]), parameters, kind, *seed)
    chosen = torch.from_numpy(paste_BTHW).to(x_BCTHW.device)[:, None]
    return torch.where(chosen, x_BCTHW[torch.from_numpy(partner_B).to(x_BCTHW.device)], x_BCTHW)


def unsalient(x_BCTHW: Tensor, parameters: GuidedMix) -> NDArray[np.bool_]:
    """(B, T): the frames with s_i ≤ ε."""
    s_BT = saliency(x_BCTHW, parameters.saliency)
    return np.asarray((s_BT <= threshold(s_BT, parameters.saliency)).cpu().numpy())


def pastes(
    still_BT: NDArray[np.bool_], size_HW: tuple[int, int], parameters: GuidedMix, kind: Literal["tsgf", "image"],
    *seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:  # fmt: skip
    """Each clip's partner, and which of its pixels (B, T, H, W) are to be the partner's."""
    random = training.generator(*seed, streams.MIX)
    partner_B = derangement(len(still_BT), random)
    paste_BTHW = np.zeros((*still_BT.shape, *size_HW), dtype=bool)
    for b in np.flatnonzero(random.random(len(still_BT)) < parameters.probability):
        box = draw_box(random, parameters.alpha, *size_HW)
        for t in np.flatnonzero(still_BT[b] | (kind == "image")):
            paste_BTHW[b, t][draw_box(random, parameters.alpha, *size_HW) if kind == "image" else box] = True
    return partner_B, paste_BTHW


def derangement(n: int, random: np.random.Generator) -> np.ndarray:
    """A random cyclic permutation: nobody is their own partner, unless alone."""
    order = random.permutation(n)
    partner = np.empty(n, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner


class RelabelParameters(Parameters):
    recipe: Recipe
    seed: int
    precision: Precision = "auto"


def relabel_job(
    distilled: ArtifactRef, clips: ArtifactRef, teacher: ArtifactRef, recipe: Recipe, seed: int, label: str,
    precision: Precision = "auto",
) -> Job:  # fmt: skip
    inputs = {"distilled": distilled, "clips": clips, "teacher": teacher}
    return relabel(RelabelParameters(recipe=recipe, seed=seed, precision=precision), inputs, label=label)


@stage("relabelled", version=1, threads="one")
def relabel(work: Work) -> None:
    parameters = RelabelParameters.model_validate(work.job.parameters)
    clips = Clips(work.store, work.ref("clips"))
    device = Device.of(work, parameters.precision)
    teacher = load_teacher(work.store, work.ref("teacher"), clips, device)
    distilled = DistilledSet.load(work.input("distilled"))
    made = mixed(distilled, parameters.recipe, parameters.seed, clips, device)
    made.with_logits(teacher_logits(teacher, made, clips, device)).save(work.folder)
    work.record(seeds=[parameters.seed], counts={"clips": len(made)}, **device.facts())


def mixed(distilled: DistilledSet, recipe: Recipe, seed: int, clips: Clips, device: Device) -> DistilledSet:
    """The set with its clips mixed as the recipe says, once and for all.

    Raises:
        RequestError: its clips have variants, of which one alone could be kept.
    """
    if recipe.augmentation == "none":
        return distilled
    if distilled.others_VNTHWC is not None:
        raise RequestError(
            "Each clip of this set has variants, and mixed clips are stored once: take the recipe soft, or "
            f"online+{recipe.augmentation}, which mixes at every step."
        )
    mix, clips_NTHWC = GuidedMix.model_validate(recipe.settings), distilled.clips_NTHWC
    still_NT = np.concatenate([unsalient(x_BCTHW, mix) for x_BCTHW in _batches(clips_NTHWC, clips, device)])
    partner_N, paste_NTHW = pastes(still_NT, clips_NTHWC.shape[2:4], mix, recipe.augmentation, seed)
    made_NTHWC = clips_NTHWC.copy()
    for made_THWC, partner, paste_THW in zip(made_NTHWC, partner_N, paste_NTHW, strict=True):
        made_THWC[paste_THW] = clips_NTHWC[partner][paste_THW]
    return distilled.with_clips(made_NTHWC)


def _batches(clips_NTHWC: NDArray[np.uint8], clips: Clips, device: Device) -> Iterator[Tensor]:
    return in_batches(clips_NTHWC.__getitem__, len(clips_NTHWC), clips.table, device)


def teacher_logits(teacher: nn.Module, made: DistilledSet, clips: Clips, device: Device) -> NDArray[np.float32]:
    """The teacher's outputs (N, K); of a set with variants the logarithm of their mean probability."""
    import torch

    def of(clips_NTHWC: NDArray[np.uint8]) -> Tensor:
        return training.predict(teacher, _batches(clips_NTHWC, clips, device), device)

    logits_NK = of(made.clips_NTHWC)
    if made.others_VNTHWC is not None:
        every_VNK = torch.stack([logits_NK, *(of(other_NTHWC) for other_NTHWC in made.others_VNTHWC)])
        logits_NK = every_VNK.log_softmax(2).logsumexp(0) - math.log(len(every_VNK))
    return np.asarray(logits_NK.numpy(), dtype=np.float32)
