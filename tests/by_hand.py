"""The matching methods as a reader of their papers would write them: float64, every clip in one graph, no tricks.

A method learns a dict of tensors; `clips_of` turns it into clips, a loss turns those into a number, and `descend` or
`adam` takes steps. The draws are those of a seed (`streams`), written out once more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR

from vidistill.tasks.learning import streams
from vidistill.tasks.learning.training import generator
from vidistill.tasks.match import dsa

Learnt = dict[str, Tensor]
Loss = Callable[[int, Learnt], Tensor]
Draw = Callable[[int], np.random.Generator]
Schedule = Callable[[int, float], float]
ClipsOf = Callable[[Learnt, np.ndarray, Draw], Tensor]


def the_clips(learnt: Learnt, slots: np.ndarray, draw: Draw) -> Tensor:
    return learnt["clips"][slots]


@dataclass
class Hand:
    """The data, a seed, and the labels of the set's clips, class after class."""

    given: tiny.Tiny
    seed: int
    labels: list[int]
    strategy: dsa.Strategy = "none"

    def start(self) -> Tensor:
        """The real clips that a set of this seed begins with."""
        ipc = self.labels.count(0)
        rows = [generator(self.seed, label, streams.CORESET).permutation(self.given.clips.rows_of(label))[:ipc]
                for label in (0, 1)]  # fmt: skip
        return torch.stack([self.given.x(int(row)) for row in np.concatenate(rows)])

    def real(self, iteration: int, labels: list[int], count: int) -> tuple[Tensor, list[int]]:
        """Up to `count` clips of each class, each at a view of its own, half of them mirrored."""
        rows, own = [], []
        for label in labels:
            drawn = generator(self.seed, iteration, label, streams.REAL_ROWS).permutation(
                self.given.clips.rows_of(label)
            )[:count]
            rows += drawn.tolist()
            own += [label] * len(drawn)
        random = generator(self.seed, iteration, *labels, streams.REAL_VIEWS)
        views = random.integers(tiny.VIEWS, size=len(rows))
        clips = [self.given.x(row, int(view)) for row, view in zip(rows, views, strict=True)]
        mirrored = random.random(len(rows)) < 0.5
        return torch.stack([x.flip(-1) if flip else x for x, flip in zip(clips, mirrored, strict=True)]), own

    def fresh(self, number: int) -> nn.Module:
        torch.manual_seed(int(generator(self.seed, number, streams.FRESH_NETWORK).integers(2**31)))
        return tiny.TinyNet().double()

    def augmented(self, x_BCTHW: Tensor, *draw: int) -> Tensor:
        return dsa.apply(dsa.draw(self.strategy, True, self.seed, *draw), x_BCTHW)

    def of_class(self, label: int) -> np.ndarray:
        return np.array([n for n, own in enumerate(self.labels) if own == label])

    def variants(self, *draw: int) -> Draw:
        return lambda number: generator(self.seed, *draw, number, streams.SET_VARIANTS)


# --- losses ------------------------------------------------------------------------------------------------------


def dm(hand: Hand, clips_of: ClipsOf, count: int, reuse: int = 1) -> Loss:
    """Σ over classes of ‖ mean ψ(real) − mean ψ(synthetic) ‖², one ω a class; network, real clips and ω for `reuse`."""

    def loss(iteration: int, learnt: Learnt) -> Tensor:
        number, total = iteration // reuse, 0.0
        network = hand.fresh(number)
        real, owners = hand.real(number, [0, 1], count)
        x = clips_of(learnt, np.arange(len(hand.labels)), hand.variants(iteration))
        for label in (0, 1):
            theirs = torch.stack([clip for clip, own in zip(real, owners, strict=True) if own == label])
            theirs, ours = (hand.augmented(clips, number, label) for clips in (theirs, x[hand.of_class(label)]))
            apart = network.embed(theirs).mean(0).detach() - network.embed(ours).mean(0)
            total = total + (apart**2).sum()
        return total

    return loss


def variation(x_BCTHW: Tensor) -> Tensor:
    """Between each two neighbours in time, height and width: the mean of the absolute differences, added up."""
    total = torch.zeros((), dtype=torch.float64)
    for axis in (2, 3, 4):
        layers = x_BCTHW.unbind(axis)
        total = total + torch.stack([(b - a).abs().mean() for a, b in itertools.pairwise(layers)]).mean()
    return total


def rated(loss: Loss, rate: float) -> Loss:
    """With the total variation of the clips that are learnt."""
    return lambda iteration, learnt: loss(iteration, learnt) + rate * variation(learnt["clips"])


def row_distance(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """1 − cos of the gradients of all weights that lead to one output, output by output."""
    total = torch.zeros((), dtype=torch.float64)
    for r, s in zip(real, synthetic, strict=True):
        if r.dim() > 1:
            for one, other in zip(r.flatten(1), s.flatten(1), strict=True):
                total = total + 1 - (one @ other) / (one.norm() * other.norm() + 1e-6)
    return total


@dataclass
class DC:
    """Algorithm 1 of DC: a network is used for `outer` steps and learns the set for `inner` epochs after each."""

    hand: Hand
    outer: int
    inner: int
    lr_net: float
    network_of: Callable[[int], nn.Module]
    real_of: Callable[[int, int], Tensor]
    batch: int = 256

    def learn(self, step: int, turn: int, learnt: Learnt) -> None:
        """One step on a batch, each clip under an ω of its own."""
        n, seed = len(self.hand.labels), int(generator(self.hand.seed, step, streams.DC_INNER).integers(2**31))
        epoch, place = divmod(turn, math.ceil(n / min(self.batch, n)))
        order = generator(seed, epoch, streams.EPOCH_ORDER).permutation(n)
        rows = np.sort(np.array_split(order, math.ceil(n / min(self.batch, n)))[place])
        shown = [self.hand.augmented(learnt["clips"].detach()[[row]], step, turn, int(row)) for row in rows]
        logits = self.network(torch.cat(shown))
        value = F.cross_entropy(logits, torch.tensor([self.hand.labels[row] for row in rows]))
        weights = list(self.network.parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(value, weights), strict=True):
            weight.data -= self.lr_net * gradient

    def __call__(self, step: int, learnt: Learnt) -> Tensor:
        number, place = divmod(step, self.outer)
        if place == 0:
            self.network = self.network_of(number)
        else:
            n = len(self.hand.labels)
            for turn in range(self.inner * math.ceil(n / min(self.batch, n))):
                self.learn(step, turn, learnt)
        total = torch.zeros((), dtype=torch.float64)
        for label in (0, 1):
            real, x = self.real_of(step, label), learnt["clips"][self.hand.of_class(label)]
            real, x = (self.hand.augmented(clips, step, label) for clips in (real, x))
            theirs = [gradient.detach() for gradient in self.gradients(real, label)]
            total = total + row_distance(theirs, self.gradients(x, label))
        return total

    def gradients(self, x: Tensor, label: int) -> list[Tensor]:
        value = F.cross_entropy(self.network(x), torch.full((len(x),), label))
        return list(torch.autograd.grad(value, list(self.network.parameters()), create_graph=True))


def mtt(hand: Hand, clips_of: ClipsOf, experts_ESP: np.ndarray, p: Any) -> Loss:
    """Eq. 2 of MTT: N steps of the student in one graph; `learnt["lr"]` is α."""
    torch.manual_seed(hand.seed)
    network = tiny.TinyNet().double()
    shapes = {name: weight.shape for name, weight in network.named_parameters()}

    def weights(vector_P: np.ndarray) -> dict[str, Tensor]:
        vector = torch.from_numpy(vector_P.astype(np.float32)).double()
        parts = torch.split(vector, [math.prod(shape) for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def rows(iteration: int, step: int) -> np.ndarray:
        n = len(hand.labels)
        if (p.batch_syn or n) >= n:
            return np.arange(n)
        seed = int(generator(hand.seed, iteration, streams.STUDENT_ORDER).integers(2**31))
        epoch, place = divmod(step, math.ceil(n / p.batch_syn))
        order = generator(seed, epoch, streams.EPOCH_ORDER).permutation(n)
        return np.array_split(order, math.ceil(n / p.batch_syn))[place]

    def loss(iteration: int, learnt: Learnt) -> Tensor:
        random = generator(hand.seed, iteration, streams.EXPERT_START)
        expert, epoch = int(random.integers(len(experts_ESP))), int(random.integers(p.max_start_epoch))
        start, target = (weights(experts_ESP[expert, at]) for at in (epoch, epoch + p.expert_epochs))
        theta = {name: weight.clone().requires_grad_(True) for name, weight in start.items()}
        for step in range(p.syn_steps):
            slots = rows(iteration, step)
            x = hand.augmented(clips_of(learnt, slots, hand.variants(iteration, step)), iteration, step)
            at = theta
            if p.gradient == "tesla":  # which holds where the student is, and not what it is told there
                at = {name: weight.detach().requires_grad_(True) for name, weight in theta.items()}
            logits = torch.func.functional_call(network, at, (x,))
            value = F.cross_entropy(logits, torch.tensor([hand.labels[slot] for slot in slots]))
            gradients = torch.autograd.grad(value, list(at.values()), create_graph=True)
            theta = {name: weight - learnt["lr"] * gradient
                     for (name, weight), gradient in zip(theta.items(), gradients, strict=True)}  # fmt: skip

        def apart(one: dict[str, Tensor]) -> Tensor:
            return torch.stack([((weight - target[name]) ** 2).sum() for name, weight in one.items()]).sum()

        return apart(theta) / apart(start)

    return loss


def chained_rates(p: Any) -> list[float]:
    """Those of a network's steps, by torch's own schedulers in the order of the published code."""
    adam = torch.optim.Adam([torch.zeros(1)], lr=p.lr_network)
    linear = LinearLR(adam, start_factor=0.01, total_iters=p.warmup)
    chained = ChainedScheduler([linear, CosineAnnealingLR(adam, T_max=p.age, eta_min=0.01 * p.lr_network)])
    rates = []
    for _ in range(p.age):
        rates.append(adam.param_groups[0]["lr"])
        adam.step()
        chained.step()
    return rates


@dataclass
class FRePo:
    """Regression of real clips on the set's features and its own labels, over a pool of networks that learn the set.

    Real clips are drawn for some classes at a time.
    """

    hand: Hand
    clips_of: ClipsOf
    p: Any
    drawn: Sequence[list[int]] = ([0, 1],)

    def __post_init__(self) -> None:
        self.ages = [number * self.p.age // self.p.pool for number in range(self.p.pool)]
        self.births, self.steps = [0] * self.p.pool, [0] * self.p.pool
        self.networks = [self.born(number) for number in range(self.p.pool)]
        self.adams = [Adam(list(network.parameters())) for network in self.networks]

    def born(self, number: int) -> nn.Module:
        draw = generator(self.hand.seed, number, self.births[number], streams.FREPO_BIRTH)
        torch.manual_seed(int(draw.integers(2**31)))
        return tiny.TinyNet().double()

    def pick(self, iteration: int) -> int:
        return int(generator(self.hand.seed, iteration, streams.FREPO_PICK).integers(self.p.pool))

    def learn(self, number: int, iteration: int, learnt: Learnt) -> None:
        """A step of a network on the set as it is now; after `age` of them another is born."""
        n = len(self.hand.labels)
        slots = generator(self.hand.seed, iteration, streams.FREPO_ROWS).permutation(n)[: self.p.batch_network]
        x = self.clips_of(
            learnt, slots, lambda slot: generator(self.hand.seed, iteration, slot, streams.FREPO_VARIANTS)
        ).detach()
        network = self.networks[number]
        value = ((network(x) - learnt["labels"].detach()[slots]) ** 2).mean()
        gradients = torch.autograd.grad(value, list(network.parameters()))
        rate = chained_rates(self.p)[self.steps[number]]
        self.adams[number].step([rate] * len(gradients), list(gradients))
        self.ages[number] += 1
        self.steps[number] += 1
        if self.ages[number] == self.p.age:
            self.ages[number], self.steps[number], self.births[number] = 0, 0, self.births[number] + 1
            self.networks[number] = self.born(number)
            self.adams[number] = Adam(list(self.networks[number].parameters()))

    def __call__(self, iteration: int, learnt: Learnt) -> Tensor:
        if iteration:
            self.learn(self.pick(iteration - 1), iteration, learnt)
        network, classes = self.networks[self.pick(iteration)], 2
        count = max(1, self.p.batch_real // classes)
        parts = [self.hand.real(iteration, labels, count) for labels in self.drawn]
        real, owners = torch.cat([part for part, _ in parts]), [own for _, labels in parts for own in labels]
        x = self.clips_of(learnt, np.arange(len(self.hand.labels)), self.hand.variants(iteration))
        psi_b, psi_s = network.embed(real).detach(), network.embed(x)
        kernel = psi_s @ psi_s.T
        ridge = self.p.ridge * kernel.diagonal().sum() / len(kernel)
        y = learnt["labels"]
        predicted = psi_b @ psi_s.T @ torch.linalg.inv(kernel + ridge * torch.eye(len(kernel), dtype=x.dtype)) @ y
        wanted = torch.eye(classes, dtype=x.dtype)[owners] - 1 / classes
        best = y.sort(dim=1, descending=True).values
        margin = torch.minimum(best[:, 0] - best[:, 1], torch.tensor(1 / classes, dtype=x.dtype))
        return ((predicted - wanted) ** 2).sum(1).mean() - margin.mean()


# --- steps -------------------------------------------------------------------------------------------------------


class Adam:
    def __init__(self, tensors: list[Tensor], eps: float = 1e-8) -> None:
        self.tensors, self.count, self.eps = tensors, 0, eps
        self.first, self.second = ([torch.zeros_like(tensor) for tensor in tensors] for _ in range(2))

    def step(self, rates: list[float], gradients: list[Tensor]) -> None:
        self.count += 1
        for tensor, rate, g, m, v in zip(self.tensors, rates, gradients, self.first, self.second, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g**2)
            unbiased = m / (1 - 0.9**self.count), v / (1 - 0.999**self.count)
            tensor.data -= rate * unbiased[0] / (unbiased[1].sqrt() + self.eps)


class SGD:
    def __init__(self, tensors: list[Tensor], momenta: list[float]) -> None:
        self.tensors, self.momenta = tensors, momenta
        self.velocity = [torch.zeros_like(tensor) for tensor in tensors]

    def step(self, rates: list[float], gradients: list[Tensor]) -> None:
        for tensor, rate, g, v, m in zip(self.tensors, rates, gradients, self.velocity, self.momenta, strict=True):
            v.mul_(m).add_(g)
            tensor.data -= rate * v


def minimised(
    learnt: Learnt, loss: Loss, rates: dict[str, float], iterations: int, *, momentum: float | None = 0.5,
    schedule: Schedule = lambda _, rate: rate, keep: str | None = "clips", lr_min: float = 0.0,
    eps: float = 1e-15, momentum_lr: float | None = None,
) -> list[float]:  # fmt: skip
    """The loss of each step of SGD, or of Adam where there is no momentum; `learnt` moves in place.

    α may have a momentum of its own.
    """
    moved = [learnt[name].requires_grad_(True) for name in rates]
    own = {} if momentum_lr is None else {"lr": momentum_lr}
    optimiser = Adam(moved, eps) if momentum is None else SGD(moved, [own.get(name, momentum) for name in rates])
    values = []
    for iteration in range(iterations):
        value = loss(iteration, learnt)
        gradients = torch.autograd.grad(value, moved, allow_unused=True)
        filled = [torch.zeros_like(t) if g is None else g for t, g in zip(moved, gradients, strict=True)]
        optimiser.step([schedule(iteration, rate) for rate in rates.values()], filled)
        if keep is not None:
            learnt[keep].data = tiny.in_range(learnt[keep].data)
        if "lr" in learnt:
            learnt["lr"].data.clamp_(min=lr_min)
        values.append(float(value.detach()))
    return values
