"""AdamW with clipped gradients and an average of the weights: the loop of the autoencoder and of the transformer.

Every draw is a function of (seed, step), so that a run which was killed and resumed takes the very same steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from vidistill.storage.errors import RunError
from vidistill.storage.parameters import Parameters
from vidistill.tasks.learning.training import STATES, Curve, Device

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vidistill.tasks.stage import Work

STATE, CURVE = "state.safetensors", "curve.json"
MOMENTS = tuple(STATES["adamw"])
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
    loss_of: Callable[[int], Tensor],
    steps: int,
    adam: AdamParameters,
    device: Device,
    work: Work,
    *,
    checkpoint_every: int,
    ema_decay: float = 0.0,
) -> tuple[Average, Curve]:
    """Train on `loss_of(step)`, resuming from the job's last checkpoint.

    Returns:
        The averaged weights by name (the last ones where `ema_decay` is 0), and the loss curve.

    Raises:
        RunError: the loss is not finite; says the step, the learning rate and what to try.
    """
    import torch

    network.to(device.torch_device).train()
    weights = list(network.parameters())
    optimiser = torch.optim.AdamW(weights, lr=adam.lr, weight_decay=adam.weight_decay, fused=True)
    average = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    first, curve = _resume(network, optimiser, average, work)
    for step in range(first, steps):
        lr = adam.lr_at(step, steps)
        optimiser.param_groups[0]["lr"] = lr
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, adam.clip_norm)
        optimiser.step()
        averaged(average, network, step, ema_decay)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"The loss is {value} at step {step} (lr {lr:.3g}): try a smaller lr or precision=fp32.")
        curve.add(step, steps, value)
        work.progress(step + 1, steps, f"loss {value:.4f}")
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            work.checkpoint(step + 1, lambda folder: _save(folder, network, optimiser, average, curve))
    return average, curve


def write_curve(folder: Path, curve: Curve) -> None:
    (folder / CURVE).write_text(json.dumps({"steps": curve.steps, "loss": curve.loss}))


def _save(folder: Path, network: nn.Module, optimiser: torch.optim.Optimizer, average: Average, curve: Curve) -> None:
    from safetensors.torch import save_file

    tensors = {f"network.{name}": weight.detach() for name, weight in network.named_parameters()}
    tensors |= {f"average.{name}": weight for name, weight in average.items()}
    for name, weight in network.named_parameters():
        tensors |= {f"{moment}.{name}": optimiser.state[weight][moment] for moment in MOMENTS}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / STATE)
    (folder / CURVE).write_text(json.dumps(asdict(curve)))


def _resume(network: nn.Module, optimiser: torch.optim.Optimizer, average: Average, work: Work) -> tuple[int, Curve]:
    import torch
    from safetensors.torch import load_file

    found = work.last_checkpoint()
    if found is None:
        return 0, Curve()
    step, folder = found
    tensors = load_file(folder / STATE)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(tensors[f"network.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
            optimiser.state[weight] = {
                moment: tensors[f"{moment}.{name}"].to(weight.device, copy=True) for moment in MOMENTS
            }
    return step, Curve(**json.loads((folder / CURVE).read_text()))
