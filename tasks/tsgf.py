"""TSGF (paper S3, "Temporal Saliency-Guided Distillation", Eq. 4–8, Algorithm 1).

The teacher is trained once (Eq. 3, tasks/learning/teacher.py). Clips are then moved so that the teacher recognises them
(L_ce) and its batch-norm layers see the statistics of the training data (L_reg), while frames that move a lot are held
back by a mask (Eq. 6–8, tasks/learning/saliency.py). Labels and augmentation are in tasks/learning/relabel.py.

Shapes: B clips, C colours, T frames, H height, W width, K classes, L batch-norm layers. `x_BCTHW` is normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from vidistill.models import BATCH_NORMED, NETWORKS, parted
from vidistill.storage.distilled import DistilledSet
from vidistill.storage.errors import RequestError
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.learning import loop
from vidistill.tasks.learning.pixels import RATE, initial, pixel_range, to_pixels, total_variation
from vidistill.tasks.learning.rows import draw_rows
from vidistill.tasks.learning.saliency import SaliencyParameters, gradient_mask, saliency, threshold
from vidistill.tasks.learning.training import Precision
from vidistill.tasks.methods import Given, Material, Method

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vidistill.storage.clips import Clips

UNNORMALISED = "tsgf needs a teacher with batch norm (S3, Eq. 5): set teacher.network=minic3d_bn."


class TSGFParameters(Parameters):
    """Learning rates and r_bn are S3's Table 11 where it fits; what the paper leaves out is said here.

    The printed update, x ← x − η·M·∇L with η = 0.25, is plain gradient descent; from real clips that the teacher
    already knows its gradients are so small that nothing moves. Adam with betas (0.5, 0.9) and a cosine to zero is
    SRe2L's choice, which S3 follows elsewhere. Its step does not depend on the gradient's scale, so M multiplies the
    step, which is the printed rule for SGD and keeps its meaning for Adam.
    """

    iterations: int = Field(100, ge=0, description="K of Algorithm 1; not stated.")
    lr: float = Field(0.05, gt=0, description="η in standard deviations of a pixel; S3: 0.25 (0.3 on K400 and SSv2).")
    optimiser: Literal["adam", "sgd"] = "adam"
    alpha_ce: float = Field(1.0, ge=0, description="Eq. 4; Algorithm 1 prints no coefficient.")
    r_bn: float = Field(0.05, ge=0, description="α_reg of Eq. 4; S3's Table 11: 0.001–0.01, with its own lr.")
    mask: bool = Field(True, description="TSGF_O: the mask of Eq. 8. Off is the SRe2L-style base.")
    mask_sign: Literal["magnitude", "both"] = Field("magnitude", description="both: ε − s may be negative (Table 9).")
    saliency: SaliencyParameters = SaliencyParameters()
    init: Literal["real", "noise"] = Field("real", description="Table 5.")
    rate: float = RATE
    group_classes: int = Field(10, ge=1, description="Classes a task at most; L_reg sees a task's clips together.")
    precision: Precision = "auto"


@contextmanager
def batch_norm_losses(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect, at each forward pass, the terms of Eq. 5, a term a layer: ‖μ_l − RM_l‖₂ + ‖σ²_l − RV_l‖₂.

    μ and σ² (biased) are over clips, frames and, where there are any, pixels. Clear the list before each pass.

    Raises:
        RequestError: the network has no batch norm.
    """
    import torch

    layers = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d | torch.nn.BatchNorm1d)]
    if not layers:
        raise RequestError(UNNORMALISED)
    terms: list[Tensor] = []

    def note(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        dims = [0, *range(2, x.dim())]
        variance_C, mean_C = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), dim=dims, correction=0)
        terms.append((mean_C - layer.running_mean).norm() + (variance_C - layer.running_var).norm())

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield terms
    finally:
        for handle in handles:
            handle.remove()


class TSGF(Method):
    """Algorithm 1 up to the labels.

    The recipe `soft+tsgf` is Algorithm 1 to the letter: augment once, label once. `online+tsgf` is §3.3's "dynamic
    video data augmentation during post-evaluation": another mix, and the teacher's labels for it, at every step.
    """

    version = 3  # 2: without the mask, the one that is kept holds no frame back; 3: an ensemble's L_reg is its mean
    needs = ("teacher",)
    Parameters = TSGFParameters
    recipes = ("soft+tsgf", "online+tsgf")

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        body = parted(given.teacher.parameters["network"])[1]
        if body in NETWORKS and body not in BATCH_NORMED:
            raise RequestError(UNNORMALISED)
        return super().inputs(given)

    def groups(self, classes: int, ipc: int) -> list[tuple[int, ...]]:  # noqa: ARG002
        count = math.ceil(classes / self.parameters.group_classes)
        return [tuple(group.tolist()) for group in np.array_split(np.arange(classes), count)]

    def distil(self, material: Material) -> DistilledSet:
        import torch

        clips, parameters = material.clips, self.parameters
        rows = draw_rows(clips, material.labels, material.ipc, material.seed)
        start_BCTHW = initial(clips, rows, parameters.init, material.seed, material.device)
        x_BCTHW, facts = optimise(start_BCTHW, clips.labels_N[rows], material.teacher(), clips, parameters, material)
        s_BT = saliency(x_BCTHW, parameters.saliency)
        epsilon_B1 = threshold(s_BT, parameters.saliency)
        mask_BT = gradient_mask(s_BT, epsilon_B1, parameters.mask_sign) if parameters.mask else torch.ones_like(s_BT)
        real = parameters.init == "real"
        return DistilledSet(
            clips_NTHWC=to_pixels(x_BCTHW, clips),
            labels_N=clips.labels_N[rows],
            classes=clips.classes,
            sources=tuple(clips.table.videos[row].path if real else "" for row in rows),
            facts=facts,
            extras={
                "saliency": s_BT.cpu().numpy(),
                "epsilon": epsilon_B1.cpu().numpy(),
                "mask": mask_BT.cpu().numpy(),
            },
        )


def optimise(
    start_BCTHW: Tensor, labels_N: np.ndarray, teacher: nn.Module, clips: Clips, parameters: TSGFParameters,
    material: Material,
) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """K steps of x ← x − η·M·∇(α_ce·L_ce + r_bn·L_reg + rate·TV), kept within the range of pixels; resumes.

    Raises:
        RunError: the loss diverges.
    """
    import torch

    from vidistill.models.ensemble import Ensemble

    device = material.device
    low_C, high_C = pixel_range(clips, device)
    x_BCTHW = start_BCTHW.clone().requires_grad_(True)
    labels_B = torch.from_numpy(labels_N).to(device.torch_device)
    optimiser = _optimiser(x_BCTHW, parameters)
    members = len(teacher.members) if isinstance(teacher, Ensemble) else 1
    with batch_norm_losses(teacher) as terms:

        def step(k: int) -> float:
            optimiser.param_groups[0]["lr"] = parameters.lr * 0.5 * (1 + math.cos(math.pi * k / parameters.iterations))
            terms.clear()
            with device.autocast():
                logits_BK = teacher(x_BCTHW)
            ce = torch.nn.functional.cross_entropy(logits_BK.float(), labels_B)
            loss = parameters.alpha_ce * ce + parameters.r_bn * torch.stack(terms).sum() / members
            if parameters.rate:
                loss = loss + parameters.rate * total_variation(x_BCTHW)
            (x_BCTHW.grad,) = torch.autograd.grad(loss, x_BCTHW)
            _masked_step(x_BCTHW, optimiser, parameters, low_C, high_C)
            return float(loss.detach())

        curve = loop.run(step, parameters.iterations, {"clips": x_BCTHW, "optimiser": optimiser}, material)
    moved = float((x_BCTHW.detach() - start_BCTHW).abs().mean())
    return x_BCTHW.detach(), {**curve.facts, "moved_in_std": moved}


def _masked_step(
    x_BCTHW: Tensor, steps: torch.optim.Optimizer, parameters: TSGFParameters, low_C: Tensor, high_C: Tensor
) -> None:
    import torch

    with torch.no_grad():
        before_BCTHW = x_BCTHW.clone() if parameters.mask else x_BCTHW
        steps.step()
        if parameters.mask:
            s_BT = saliency(before_BCTHW, parameters.saliency)
            mask_BT = gradient_mask(s_BT, threshold(s_BT, parameters.saliency), parameters.mask_sign)
            x_BCTHW.sub_(before_BCTHW).mul_(mask_BT[:, None, :, None, None]).add_(before_BCTHW)
        x_BCTHW.clamp_(low_C, high_C)


def _optimiser(x_BCTHW: Tensor, parameters: TSGFParameters) -> torch.optim.Optimizer:
    import torch

    if parameters.optimiser == "sgd":
        return torch.optim.SGD([x_BCTHW], lr=parameters.lr)
    return torch.optim.Adam([x_BCTHW], lr=parameters.lr, betas=(0.5, 0.9))
