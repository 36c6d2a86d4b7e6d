"""TSGF (paper S3, Eq. 4–8, Algorithm 1) on sequences of feature vectors instead of clips of pixels.

S3's App. F applies its method to 50Salads, "as it does not rely on any task-specific supervision", and says no more.
Our reading: the points of a video, in the order of time, are the frames f_i of Eq. 6; the teacher sees each of them
for as long as its part of its segment lasts; L_ce is its cross-entropy on the frames' classes; L_reg is that of each
video, as the teacher was trained on one video at a time. Labels are made afterwards (condense.py). TSGF_A, which
pastes boxes of pixels, has no counterpart. As for clips (tasks/tsgf.py), the update is Adam's with a cosine to zero,
the mask multiplies the step, and what is optimised begins as real frames and stays within the range of the training
data.

Legend: B one, D features, T points or frames of a video, M points of all videos, K classes, L batch-norm layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning import loop
from vidistill.tasks.learning.saliency import SaliencyParameters, gradient_mask, saliency, threshold
from vidistill.tasks.segment.sequences import Sequences
from vidistill.tasks.segment.sets import SegmentSet
from vidistill.tasks.tsgf import batch_norm_losses

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vidistill.tasks.learning.training import Device


class SegmentTSGFParameters(Parameters):
    """The paper's, where it is silent the values of tasks/tsgf.py, for features as for pixels."""

    iterations: int = Field(100, ge=0, description="K of Algorithm 1; not stated.")
    lr: float = Field(0.05, gt=0, description="η in standard deviations of a feature; not stated for features.")
    alpha_ce: float = Field(1.0, ge=0, description="Eq. 4.")
    r_bn: float = Field(0.05, ge=0, description="α_reg of Eq. 4.")
    mask: bool = Field(True, description="TSGF_O: the mask of Eq. 8.")
    saliency: SaliencyParameters = SaliencyParameters()


def distil_sequences(
    start: SegmentSet, teacher: nn.Module, sequences: Sequences, parameters: SegmentTSGFParameters, device: Device,
    keeper: loop.Keeper,
) -> tuple[SegmentSet, dict[str, Any]]:  # fmt: skip
    """K steps of x ← x − η·M·∇(α_ce·L_ce + r_bn·L_reg), kept within the range of the training features; resumes.

    Raises:
        RunError: the loss diverges.
    """
    import torch

    start_MD = torch.from_numpy(sequences.standard(start.points_MD)).to(device.torch_device)
    points_MD = start_MD.clone().requires_grad_(True)
    low_D, high_D = (torch.from_numpy(limit_D).to(device.torch_device) for limit_D in sequences.limits())
    adam = torch.optim.Adam([points_MD], lr=parameters.lr, betas=(0.5, 0.9))
    videos = [_Video.of(start, video, device) for video in range(len(start.names))]
    with batch_norm_losses(teacher) as terms:

        def step(k: int) -> float:
            adam.param_groups[0]["lr"] = parameters.lr * 0.5 * (1 + math.cos(math.pi * k / parameters.iterations))
            adam.zero_grad()
            total = 0.0
            for video in videos:
                terms.clear()
                logits_TK = teacher(points_MD[video.shown_T].T[None])[-1, 0].T
                ce = torch.nn.functional.cross_entropy(logits_TK, video.labels_T)
                loss = parameters.alpha_ce * ce + parameters.r_bn * torch.stack(terms).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            _masked_step(points_MD, adam, videos, parameters)
            with torch.no_grad():
                points_MD.copy_(points_MD.maximum(low_D).minimum(high_D))
            return total / len(videos)

        curve = loop.run(step, parameters.iterations, {"points": points_MD, "adam": adam}, keeper)
    moved = float((points_MD.detach() - start_MD).abs().mean())
    made_MD = points_MD.detach().cpu().numpy() * sequences.std_D + sequences.mean_D
    return start.with_points(made_MD), {**curve.facts, "moved_in_std": moved}


class _Video:
    """A video's points, the point that each of its frames shows, and the frames' classes, on the device."""

    def __init__(self, points_T: Tensor, shown_T: Tensor, labels_T: Tensor) -> None:
        self.points_T, self.shown_T, self.labels_T = points_T, shown_T, labels_T

    @staticmethod
    def of(made: SegmentSet, video: int, device: Device) -> _Video:
        import torch

        arrays: tuple[NDArray[np.int64], ...] = (made.points_of(video), made.shown(video), made.labels(video))
        return _Video(*(torch.from_numpy(array).to(device.torch_device) for array in arrays))


def _masked_step(
    points_MD: Tensor, steps: torch.optim.Optimizer, videos: list[_Video], parameters: SegmentTSGFParameters
) -> None:
    """One step of the optimiser, of each point as much as Eq. 8 lets through."""
    import torch

    with torch.no_grad():
        before_MD = points_MD.clone()
        steps.step()
        if not parameters.mask:
            return
        for video in videos:
            own_TD = before_MD[video.points_T]
            mask_T = mask_of(own_TD, parameters.saliency)
            points_MD[video.points_T] = own_TD + mask_T[:, None] * (points_MD[video.points_T] - own_TD)


def mask_of(points_TD: Tensor, parameters: SaliencyParameters) -> Tensor:
    """Eq. 6–8 of one video's points: (T,)."""
    s_BT = saliency(points_TD.T[None, :, :, None, None], parameters)
    return gradient_mask(s_BT, threshold(s_BT, parameters))[0]
