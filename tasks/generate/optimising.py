"""AdamW with clipped gradients and an average of the weights: how the autoencoder and the transformer are trained.

Muon may train the matrices of the transformer's blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning import loop
from vidistill.tasks.learning.loop import Curve
from vidistill.tasks.learning.training import Device

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vidistill.tasks.stage import Work

Average = dict[str, "Tensor"]


class AdamParameters(Parameters):
    """AdamW. Latte's published values are a constant 1e-4, no decay, and clipping at 0.1 after 100,000 steps."""

    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(100, ge=0, description="Steps over which the rate rises from zero.")
    decay_share: float = Field(0.0, ge=0, le=1, description="Last share of the steps over which it falls to zero.")
    clip_norm: float = Field(1.0, gt=0, description="Largest norm of the gradients, from the first step on.")

    def lr_at(self, step: int, steps: int) -> float:
        rising = (step + 1) / (self.warmup_steps + 1)
        falling = (steps - step) / (self.decay_share * steps) if self.decay_share else 1.0
        return self.lr * min(1.0, rising, falling)

    def falls_at(self, step: int, steps: int) -> bool:
        """Whether this is one of the last steps, over which the rate falls."""
        return steps - step < self.decay_share * steps


def averaged(average: Average, network: nn.Module, step: int, decay: float) -> None:
    """Move the average of the weights towards the network's, in place.

    The first steps average over few: the decay is (1 + step)/(10 + step) until that reaches `decay`.
    """
    import torch

    now = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            average[name].lerp_(weight, 1 - now)


def fit(
    network: nn.Module,
    losses_of: Callable[[int], Iterable[Tensor]],
    steps: int,
    adam: AdamParameters,
    device: Device,
    work: Work,
    *,
    checkpoint_every: int,
    ema_decay: float = 0.0,
    muon_lr: float = 0.0,
) -> tuple[Average, Curve]:
    """Train on the sum of `losses_of(step)`, of which one graph at a time is held; resumes from the last checkpoint.

    Where `muon_lr` is not 0, Muon (Jordan et al. 2024) trains the matrices of the network's `blocks` at that rate,
    which rises and falls with AdamW's.

    Returns:
        The averaged weights by name (the last ones where `ema_decay` is 0), and the loss curve.

    Raises:
        RunError: the loss diverges.
    """
    import torch

    network.to(device.torch_device).train()
    optimisers = optimisers_of(network, adam, muon_lr)
    average = {name: weight.detach().clone() for name, weight in network.named_parameters()}

    def step(number: int) -> float:
        total = 0.0
        for loss in losses_of(number):
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(network.parameters(), adam.clip_norm)
        for optimiser in optimisers.values():
            optimiser.param_groups[0]["lr"] = optimiser.defaults["lr"] / adam.lr * adam.lr_at(number, steps)
            optimiser.step()
        network.zero_grad(set_to_none=True)
        averaged(average, network, number, ema_decay)
        return total

    averages = {f"average.{name}": weight for name, weight in average.items()}
    state: loop.State = {"network": network, **optimisers, **averages}
    return average, loop.run(step, steps, state, work, every=checkpoint_every)


def optimisers_of(network: nn.Module, adam: AdamParameters, muon_lr: float) -> dict[str, torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of the blocks where its rate is not 0."""
    import torch

    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in network.named_parameters():
        hidden = name.startswith("blocks.") and weight.ndim == 2
        (matrices if muon_lr and hidden else rest).append(weight)
    made: dict[str, torch.optim.Optimizer] = {
        "optimiser": torch.optim.AdamW(rest, adam.lr, weight_decay=adam.weight_decay, fused=True)
    }
    if matrices:
        made["muon"] = torch.optim.Muon(matrices, muon_lr, adam.weight_decay)
    return made
