"""FRePo (Zhou, Nezhadarya and Ba 2022, "Dataset Distillation using Neural Feature Regression"), for videos.

The set is right when kernel ridge regression on it, over the features of a network that was trained on it, predicts the
labels of real clips. Networks live in a pool: each is trained a step on the set whenever it was used, and begins anew
after a number of steps, so that the set meets networks of all ages. Labels are learnt with the clips.

Published for videos is only VDSD's version (methods §3.3): settings here are its own, where they are known.

Shapes: S clips of the set (N where it is told from a part of it), B real clips, C colours, T frames, H height, W width,
K classes, D features. `x_BCTHW` is normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vidistill.storage.distilled import DistilledSet
from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning import streams, training
from vidistill.tasks.learning.training import Precision, generator, role_seed
from vidistill.tasks.match import core, sets
from vidistill.tasks.match.core import Learnt, Loop, Loss, Parametrisation, Part, Valued
from vidistill.tasks.match.real import RealClips
from vidistill.tasks.methods import Material, Method

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CHUNK = 64  # real clips that are drawn together
FLOOR = 1e-4  # of a learnt label read as a probability


class FRePoLossParameters(Parameters):
    """VDSD's settings, where its code states them (methods §3.3)."""

    network: core.Fresh = Field("minic3d", description="As published with VDSD.")
    pool: int = Field(10, ge=1, description="Networks at a time; each takes three times its weights in memory.")
    age: int = Field(100, ge=1, description="Steps after which a network begins anew.")
    lr_network: float = Field(
        1e-3, gt=0, description="Adam; the code's default. Its scripts say 1e-4, at which young networks hardly learn."
    )
    warmup: int = Field(500, ge=1, description="Steps over which lr_network rises from its hundredth.")
    batch_real: int = Field(
        512, ge=1, description="Real clips an iteration, as many of each class (published: of all)."
    )
    batch_network: int = Field(500, ge=1, description="Clips of the set in a network's step; all, if fewer.")
    ridge: float = Field(1e-6, gt=0, description="λ, in units of the kernel's mean diagonal.")
    lr_labels: float = Field(1e-3, gt=0, description="Adam; VDSD gives the labels the hallucinator's rate.")


class FRePoParameters(FRePoLossParameters):
    """Pixels of videos were never published for FRePo: `lr` is ours, Adam's for pixels in standard deviations."""

    iterations: int = Field(200, ge=0, description="Published with VDSD: 10,000; 200 fit two cores.")
    lr: float = Field(core.PIXELS, gt=0)
    init: Literal["real", "noise"] = "real"
    precision: Precision = "auto"


class FRePo(Method):
    """Learn clips and labels from which kernel ridge regression predicts the real ones."""

    version = 5  # since a network's rate is that of its two schedulers, chained
    Parameters = FRePoParameters
    recipes = ("learned",)

    def distil(self, material: Material) -> DistilledSet:
        import torch

        parameters: FRePoParameters = self.parameters
        start = sets.start_clips(material, parameters.init)
        labels_NK = initial_labels(start.labels_N, len(material.clips.classes), material)
        learnt = {"clips": core.leaf(start.x_NCTHW), "labels": core.leaf(labels_NK)}
        clips, labels = ({"params": [learnt[name]]} for name in ("clips", "labels"))
        adam = torch.optim.Adam([clips | {"lr": parameters.lr}, labels | {"lr": parameters.lr_labels}])
        pool = Pool(material, parameters)
        loop = Loop(parameters.iterations, project=sets.keep_in_range(material.clips, material.device),
                    schedule=cosine(parameters.iterations), memory=pool)  # fmt: skip
        curve = core.optimise(learnt, frepo_loss(material, core.pixels, parameters, pool), adam, material, loop)
        made = sets.finished(material, start, learnt["clips"], curve)
        return made.with_logits(as_logits(learnt["labels"]))


def kernel_ridge(emb_SD: Tensor, y_SK: Tensor, emb_BD: Tensor, ridge: float) -> Tensor:
    """FRePo's prediction for real clips, K_BS (K_SS + λ·tr(K_SS)/S·1)⁻¹ y_S with K = ψψᵀ: (B, K) in float64.

    The kernel's condition is up to S/λ = 10⁸ and its gradient squares it, which float32 does not hold.
    """
    import torch

    support_SD, real_BD = emb_SD.double(), emb_BD.double()
    kernel_SS = support_SD @ support_SD.T
    size = len(kernel_SS)
    penalty_SS = ridge * kernel_SS.trace() / size * torch.eye(size, dtype=kernel_SS.dtype, device=kernel_SS.device)
    predicted_BK: Tensor = real_BD @ support_SD.T @ torch.linalg.solve(kernel_SS + penalty_SS, y_SK.double())
    return predicted_BK


def regression_loss(predicted_BK: Tensor, labels_B: Tensor) -> Tensor:
    """mean_b Σ_k (prediction − (one-hot − 1/K))²."""
    import torch

    classes = predicted_BK.shape[1]
    target_BK = torch.nn.functional.one_hot(labels_B, classes).to(predicted_BK) - 1 / classes
    return (predicted_BK - target_BK).square().sum(1).mean()


def margin_loss(y_SK: Tensor) -> Tensor:
    """−mean min(top1 − top2, 1/K): keeps each learnt label a label of something."""
    top_S2 = y_SK.topk(2, dim=1).values
    return -(top_S2[:, 0] - top_S2[:, 1]).clamp(max=1 / y_SK.shape[1]).mean()


def initial_labels(labels_N: NDArray[np.int64], classes: int, material: Material) -> Tensor:
    """(one-hot − 1/K) / √(K/10)."""
    return (training.one_hot(labels_N, classes, material.device) - 1 / classes) / math.sqrt(classes / 10)


def as_logits(y_NK: Tensor) -> NDArray[np.float32]:
    """Learnt labels as logits: their scale and shift undone, cut off below and normalised, as logarithms.

    Labels as they began become one-hot. FRePo trains its students by regression on y, under a protocol of its own;
    here they learn by cross-entropy as all students do (recipe `learned`).
    """
    classes = y_NK.shape[1]
    p_NK = (y_NK.detach() * math.sqrt(classes / 10) + 1 / classes).clamp(min=FLOOR)
    logits_NK: NDArray[np.float32] = (p_NK / p_NK.sum(1, keepdim=True)).log().float().cpu().numpy()
    return logits_NK


def cosine(iterations: int, lowest: float | None = None) -> Callable[[int, float], float]:
    """A rate that falls over the run, by default to a tenth of its own."""

    def rate_at(iteration: int, rate: float) -> float:
        last = rate / 10 if lowest is None else lowest
        return last + (rate - last) / 2 * (1 + math.cos(math.pi * iteration / iterations))

    return rate_at


class Pool:
    """Networks of all ages, each with its Adam; everything in its state, so that a run resumes as if never stopped.

    As in the published code all start fresh, number i of n with its counter at i/n of the age, so that they begin anew
    one after the other. Their rates go by the steps that they took.
    """

    def __init__(self, material: Material, parameters: FRePoLossParameters) -> None:
        self.material, self.parameters = material, parameters
        self.ages = [number * parameters.age // parameters.pool for number in range(parameters.pool)]
        self.births, self.steps = [0] * parameters.pool, [0] * parameters.pool
        self.networks, self.adams = [], []
        for number in range(parameters.pool):
            network, adam = self._born(number)
            self.networks.append(network)
            self.adams.append(adam)

    def _born(self, number: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        import torch

        clips = self.material.clips
        seed = role_seed(self.material.seed, number, self.births[number], streams.FREPO_BIRTH)
        network = training.build_network(self.parameters.network, len(clips.classes), clips.shape_THWC, seed)
        training.placed(network, self.material.device).eval()
        return network, torch.optim.Adam(network.parameters(), lr=self.parameters.lr_network)

    def pick(self, iteration: int) -> int:
        return int(generator(self.material.seed, iteration, streams.FREPO_PICK).integers(self.parameters.pool))

    def train(self, number: int, iteration: int, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        """One step of network `number` by regression on clips of the set; then perhaps another takes its place.

        Args:
            number: of the network.
            iteration: of the set, by which dropout is drawn.
            parts: as many clips (B, C, T, H, W) as go through the network together, and their labels (B, K).
        """
        from vidistill.models.dropout import seed_dropout

        network, adam = self.networks[number].train(), self.adams[number]
        seed_dropout(network, role_seed(self.material.seed, iteration, streams.FREPO_DROPOUT))
        for group in adam.param_groups:
            group["lr"] = self.rate(self.steps[number])
        clips = 0
        for x_BCTHW, y_BK in parts:
            with self.material.device.autocast():
                predicted_BK = network(x_BCTHW)
            (predicted_BK.float() - y_BK).square().mean(1).sum().backward()
            clips += len(x_BCTHW)
        for weight in network.parameters():
            if weight.grad is not None:
                weight.grad /= clips
        adam.step()
        adam.zero_grad(set_to_none=True)
        network.eval()
        self.ages[number] += 1
        self.steps[number] += 1
        if self.ages[number] >= self.parameters.age:
            self.ages[number], self.steps[number], self.births[number] = 0, 0, self.births[number] + 1
            self.networks[number], self.adams[number] = self._born(number)

    def rate(self, steps: int) -> float:
        """Of a network's step after so many: a warm-up from a hundredth and a cosine to that over its life, chained as
        torch's LinearLR and CosineAnnealingLR are: at each step one goes on from where the other has left the rate.
        """
        p = self.parameters
        warm = [min(1, 0.01 + 0.99 * step / p.warmup) for step in range(steps + 1)]
        fall = [1 + math.cos(math.pi * step / p.age) for step in range(steps + 1)]
        rate = lowest = 0.01 * p.lr_network
        for step in range(1, steps + 1):
            rate = lowest + (rate * warm[step] / warm[step - 1] - lowest) * fall[step] / fall[step - 1]
        return rate

    def state_dict(self) -> dict[str, Any]:
        return {
            "ages": self.ages,
            "steps": self.steps,
            "births": self.births,
            "networks": [network.state_dict() for network in self.networks],
            "adams": [adam.state_dict() for adam in self.adams],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ages, self.steps, self.births = state["ages"], state["steps"], state["births"]
        for number in range(len(self.networks)):
            self.networks[number].load_state_dict(state["networks"][number])
            self.adams[number].load_state_dict(state["adams"][number])


def frepo_loss(material: Material, clips_of: Parametrisation, parameters: FRePoLossParameters, pool: Pool) -> Loss:
    """Regression on real clips plus the margin of the labels; what is learnt holds `labels`.

    The network that was used last is trained on the set as it has become since, before another one is drawn.
    """
    import torch

    real = RealClips(material.clips, material.seed, material.device)

    def shown(iteration: int, learnt: Learnt) -> Iterator[tuple[Tensor, Tensor]]:
        """What a network learns from: clips of the set with their labels, a pass at a time."""
        y_SK, order = learnt["labels"].detach(), generator(material.seed, iteration, streams.FREPO_ROWS)
        slots_B = order.permutation(len(y_SK))[: parameters.batch_network]
        draw = core.draws(material.seed, iteration, streams.FREPO_VARIANTS)
        for own_B in core.passes(material, slots_B):
            yield clips_of(Part(learnt, fixed=True), own_B, draw), y_SK[own_B]

    def loss(iteration: int, learnt: Learnt) -> Valued:
        y_SK = learnt["labels"]
        if iteration:
            pool.train(pool.pick(iteration - 1), iteration, shown(iteration, learnt))
        network = pool.networks[pool.pick(iteration)]
        emb_BD, labels_B = _real_features(network, real, material, parameters.batch_real, iteration)

        def embedded(first: int, *, fixed: bool = False) -> tuple[Tensor, Part]:
            """The set's embeddings from a clip on, as many as go together."""
            part = Part(learnt, fixed=fixed)
            slots_B = np.arange(first, min(first + size, len(y_SK)))
            x_BCTHW = clips_of(part, slots_B, core.draws(material.seed, iteration, streams.SET_VARIANTS))
            with material.device.autocast():
                return network.embed(x_BCTHW).float(), part  # type: ignore[operator]

        size, gradients = core.a_pass(material, len(y_SK)), Learnt()
        with torch.no_grad():
            emb_SD = torch.cat([embedded(first, fixed=True)[0] for first in range(0, len(y_SK), size)])
        emb_SD, y_part = emb_SD.requires_grad_(True), Part(learnt)
        y_SK = y_part["labels"]
        value = regression_loss(kernel_ridge(emb_SD, y_SK, emb_BD, parameters.ridge), labels_B) + margin_loss(y_SK)
        by_emb_SD, by_y_SK = torch.autograd.grad(value, [emb_SD, y_SK])
        y_part.add([by_y_SK], gradients)
        for first in range(0, len(y_SK), size):
            emb_BD, part = embedded(first)
            part.differentiate((emb_BD * by_emb_SD[first : first + size]).sum(), gradients)
        return value.detach(), gradients

    return loss


def _real_features(
    network: nn.Module, real: RealClips, material: Material, count: int, iteration: int
) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of a random batch, as many clips of each class, a few clips a pass."""
    import torch

    per_class = max(1, count // len(material.labels))
    at_once = max(1, CHUNK // per_class)
    features, labels = [], []
    for first in range(0, len(material.labels), at_once):
        own = material.labels[first : first + at_once]
        size = core.a_pass(material, per_class * len(own))
        for x_BCTHW, labels_B in real.chunks(iteration, own, per_class, size):
            with torch.no_grad(), material.device.autocast():
                features.append(network.embed(x_BCTHW).float())  # type: ignore[operator]
            labels.append(torch.from_numpy(labels_B).to(x_BCTHW.device))
    return torch.cat(features), torch.cat(labels)
