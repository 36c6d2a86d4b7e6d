"""VDSD ("Dancing with Still Images", arXiv 2312.00362): a still image, a map of motion, one network for all clips.

Stage 1 distils images from single frames by gradient matching: Static-DC with a ConvNet of four blocks. In stage 2
they are frozen; the motion maps and the hallucinator are learnt by DM, MTT or FRePo. An instance has m images and m
maps and shows one of their m² pairs, drawn at each use: in matching, and when a student trains.

Its clips are clamped to the range of pixels wherever they are used, so that what is matched is what a student sees; the
published code feeds students floats of any size.

Shapes: B clips a batch, N instances, m of each, C colours, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.parameters import Parameters
from vidistill.storage.store import ArtifactRef
from vidistill.tasks.distil import distil_jobs
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.loop import Curve
from vidistill.tasks.learning.pixels import pixel_range
from vidistill.tasks.learning.training import Precision, role_seed
from vidistill.tasks.match import core, sets
from vidistill.tasks.match.core import Draw, Group, Learnt, Loop, Part
from vidistill.tasks.match.dm import DMLossParameters, dm_loss
from vidistill.tasks.match.frepo import FRePoLossParameters, Pool, as_logits, cosine, frepo_loss, initial_labels
from vidistill.tasks.match.mtt import FP32, MTTLossParameters, expert_inputs, match_trajectories
from vidistill.tasks.match.static_dc import StaticDCParameters, check_frames
from vidistill.tasks.methods import Given, Material, Method, find_method

if TYPE_CHECKING:
    from torch import Tensor


MAPS, HALLUCINATOR = 0.08, 0.01
"""How far Adam moves them an iteration. Maps begin as noise and say nothing until they are learned: on the validation
fifth of sprites 300 iterations of DM end near chance with maps at 0.01, and far above Random at 0.08 and 0.3."""
OF_SGD: Any = Field(0.95, ge=0, lt=1, description="Of SGD.")
Second = tuple[Curve, dict[str, Any]]
"""What stage 2 returns: the loss, and facts of its own."""


class MemoryParameters(Parameters):
    """What the three versions share (methods §4)."""

    static: StaticDCParameters = Field(
        StaticDCParameters(depth=4), description="Stage 1; published: 3,000 iterations; rates not seen, so Static-DC's."
    )
    memories: int = Field(2, ge=1, description="m: images, and motion maps, an instance.")
    hallucinator: Literal["torch", "copy"] = Field(
        "torch",
        description="copy: its colours begin as the image's own, its motion as torch's default (not published).",
    )
    iterations: int = Field(300, ge=0, description="Of stage 2, which begins as noise; published: 5,000.")
    step: core.Step = Field("adam", description="published: at the paper's rates for MiniUCF and ipc.")
    lr_dynamic: float | None = Field(
        None, ge=0, description="Of the motion maps; by default 0.08, or the published one for ipc."
    )
    lr_hallucinator: float | None = Field(None, ge=0, description="By default 0.01, or the published one.")
    precision: Precision = Field("auto", description="Of stage 2.")

    @field_validator("static")
    @classmethod
    def _of_memories(cls, static: StaticDCParameters) -> StaticDCParameters:
        if static.images != 1:
            raise ValueError("memories says how many images an instance has: leave images out")
        return static


@dataclass(frozen=True)
class Memory:
    """The parametrisation: random pairs of each instance's images and motion maps, hallucinated."""

    images_NCHW: Tensor
    memories: int
    low_C: Tensor
    high_C: Tensor

    def __call__(self, part: Part, slots_B: NDArray[np.int64], draw: Draw) -> Tensor:
        import torch

        from vidistill.models.hallucinator import hallucinate

        pairs_B2 = np.stack([draw(slot).integers(self.memories, size=2) for slot in slots_B.tolist()])
        image_B, motion_B = slots_B * self.memories + pairs_B2.T
        images_BCHW = self.images_NCHW[torch.from_numpy(image_B).to(self.images_NCHW.device)]
        x_BCTHW = hallucinate(images_BCHW, part.rows("motion", motion_B)[:, None], part["weight"], part["bias"])
        return x_BCTHW.clamp(self.low_C, self.high_C)


class VDSD(Method):
    """Stage 2, over the images of Static-DC, which all that ask for the same ones share.

    A version says what is matched, and how it is optimised.
    """

    version = 6  # since a cutout may lie at the far edge

    @property
    def variants(self) -> int:
        return int(self.parameters.memories**2)

    @property
    def unmixed(self) -> str:
        return "each clip has variants, of which one alone would be kept" if self.variants > 1 else ""

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        p: MemoryParameters = self.parameters
        source, options, ipc = find_method("static_dc"), static_of(p), given.ipc * p.memories
        check_frames(options, given.decode.frames, given.decode.size)
        label = f"distil images ipc {ipc} seed {given.seed}"
        jobs = distil_jobs(source, options, ipc, given.seed, len(given.table.classes), {"clips": [given.train]}, label)
        return super().inputs(given) | {"images": [given.add(job) for job in jobs][-1:]}

    def distil(self, material: Material) -> DistilledSet:
        parameters: MemoryParameters = self.parameters
        (folder,) = material.inputs("images")
        first, sources = DistilledSet.arrays_of(folder), DistilledSet.sources_of(folder)
        images_NHWC, table = first["stored_images"], material.clips.table
        images_NCHW = training.to_input(images_NHWC[:, None], table.mean, table.std, material.device).squeeze(2)
        each = slice(None, None, parameters.memories)
        labels_N = first["labels"][each]
        memory = Memory(images_NCHW, parameters.memories, *pixel_range(material.clips, material.device))
        learnt = begin(material, parameters, images_NCHW)
        curve, facts = self.second(material, labels_N, memory, learnt)
        stored = {name: learnt[name].detach().cpu().numpy() for name in ("motion", "weight", "bias")}
        stored |= {"images": images_NHWC, **sets.norm_arrays(material)}
        made = sets.kept(material, "memory", stored, labels_N, sources[each], curve, **facts)
        return made.with_logits(as_logits(learnt["labels"])) if "labels" in learnt else made

    @abstractmethod
    def second(self, material: Material, labels_N: NDArray[np.int64], memory: Memory, learnt: Learnt) -> Second:
        """Stage 2: matches, and may add to `learnt`."""


def static_of(parameters: MemoryParameters) -> StaticDCParameters:
    """Static-DC's settings for the images of stage 1."""
    return parameters.static.model_copy(update={"images": parameters.memories})


def begin(material: Material, parameters: MemoryParameters, images_NCHW: Tensor) -> Learnt:
    """Motion N(0, 1), and the hallucinator as torch initialises it."""
    import torch

    from vidistill.models.hallucinator import drawn_weights

    count, _, height, width = images_NCHW.shape
    random = torch.Generator().manual_seed(role_seed(material.seed, streams.HALLUCINATOR))
    motion_NTHW = torch.randn((count, material.clips.shape_THWC[0], height, width), generator=random)
    weight, bias = drawn_weights(random)
    if parameters.hallucinator == "copy":
        weight[:, :3] = 0
        weight[range(3), range(3), 1, 1, 1] = 1
    tensors = {"motion": motion_NTHW, "weight": weight, "bias": bias}
    return {name: core.leaf(tensor.to(images_NCHW.device)) for name, tensor in tensors.items()}


def groups_of(learnt: Learnt, p: MemoryParameters, published: tuple[float, float]) -> list[Group]:
    """The two groups of stage 2's optimiser: the motion maps and the hallucinator."""
    return [
        {"params": [learnt["motion"]], "lr": core.rate(p.lr_dynamic, p.step, MAPS, published[0])},
        {
            "params": [learnt["weight"], learnt["bias"]],
            "lr": core.rate(p.lr_hallucinator, p.step, HALLUCINATOR, published[1]),
        },
    ]


class DMVDSDParameters(MemoryParameters, DMLossParameters):
    """DM+VDSD; published rates (1e-4, 1e-5) for IPC 1, (1e3, 1e-6) for more."""

    momentum: float = OF_SGD


class DMVDSD(VDSD):
    """Stage 2 by DM."""

    Parameters = DMVDSDParameters

    def second(self, material: Material, labels_N: NDArray[np.int64], memory: Memory, learnt: Learnt) -> Second:
        parameters: DMVDSDParameters = self.parameters
        groups = groups_of(learnt, parameters, (1e-4, 1e-5) if material.ipc == 1 else (1e3, 1e-6))
        optimiser = core.stepper(parameters.step, groups, parameters.momentum)
        loss = dm_loss(material, labels_N, memory, parameters)
        return core.optimise(learnt, loss, optimiser, material, Loop(parameters.iterations)), {}


class MTTVDSDParameters(MemoryParameters, MTTLossParameters):
    """MTT+VDSD; published rates (1e4, 1e-3), 10 steps of the student for IPC 1, 5 of 128 clips and α held for IPC 5.

    With `step=published` the rates follow, and α is held above IPC 1; `syn_steps` and `batch_syn` do not, and are for a
    preset to set.
    """

    momentum: float = OF_SGD
    momentum_lr: float = Field(0.9, ge=0, lt=1, description="Of SGD over α.")
    iterations: int = Field(500, ge=0, description="Of stage 2, which begins as noise; published: 10,000.")
    precision: Precision = FP32


class MTTVDSD(VDSD):
    """Stage 2 by MTT."""

    version = 7  # since a cutout may lie at the far edge
    Parameters = MTTVDSDParameters

    def inputs(self, given: Given) -> dict[str, list[ArtifactRef]]:
        return super().inputs(given) | {"experts": expert_inputs(given, self.parameters)}

    def second(self, material: Material, labels_N: NDArray[np.int64], memory: Memory, learnt: Learnt) -> Second:
        parameters: MTTVDSDParameters = self.parameters
        optimiser = core.stepper(parameters.step, groups_of(learnt, parameters, (1e4, 1e-3)), parameters.momentum)
        if parameters.step == "published" and parameters.lr_lr is None and material.ipc > 1:
            parameters = parameters.model_copy(update={"lr_lr": 0.0})
        return match_trajectories(material, labels_N, memory, parameters, learnt, optimiser)


class FRePoVDSDParameters(MemoryParameters, FRePoLossParameters):
    """FRePo+VDSD: one image and one map an instance; Adam, published rates (1e2, 1e-3)."""

    memories: int = Field(1, ge=1, description="Published: 1.")
    iterations: int = Field(3_000, ge=0, description="Of stage 2, which begins as noise; published: 10,000.")


class FRePoVDSD(VDSD):
    """Stage 2 by FRePo, with learnt labels.

    Published rates fall to a tenth of the hallucinator's, that of the maps too, from 1e2 to 1e-4.
    """

    version = 7  # since a network's rate is that of its two schedulers, chained
    Parameters = FRePoVDSDParameters
    recipes = ("learned",)

    def second(self, material: Material, labels_N: NDArray[np.int64], memory: Memory, learnt: Learnt) -> Second:
        import torch

        parameters: FRePoVDSDParameters = self.parameters
        learnt["labels"] = core.leaf(initial_labels(labels_N, len(material.clips.classes), material))
        groups = groups_of(learnt, parameters, (1e2, 1e-3))
        adam = torch.optim.Adam([*groups, {"params": [learnt["labels"]], "lr": parameters.lr_labels}])
        pool = Pool(material, parameters)
        lowest = groups[1]["lr"] / 10 if parameters.step == "published" else None
        loop = Loop(parameters.iterations, schedule=cosine(parameters.iterations, lowest), memory=pool)
        return core.optimise(learnt, frepo_loss(material, memory, parameters, pool), adam, material, loop), {}
