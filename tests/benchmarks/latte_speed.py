"""CPU seconds of a training step of Latte on one thread: its own attention for CPUs, torch's fused one, and compiled.

And of an update of the weights by AdamW, and by Muon and AdamW.

    python tests/benchmarks/latte_speed.py

Sixteen clips of 8×8×8 latents through `mini` in bf16, as in the presets' pools. The error is that of the gradient
against a step in fp32.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from vidistill.models import latte
from vidistill.models.diffusion import diffusion_loss, noised
from vidistill.tasks.generate.diffusion import compile_network
from vidistill.tasks.generate.optimising import AdamParameters, optimisers_of
from vidistill.tasks.learning.training import Device

STEPS = 10


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = latte.Latte(10, 8, 8, latte.SIZES["mini"], patch=1, velocity=True)
    for weight in network.parameters():
        if not weight.any():  # gates start closed
            torch.nn.init.normal_(weight, std=0.02)
    z_BCTHW, noise_BCTHW = torch.randn(2, 16, 4, 8, 8, 8)
    batch = z_BCTHW, noise_BCTHW, torch.randint(1000, (16,)), torch.randint(10, (16,))
    exact = gradient(network, batch, bf16=False)
    own = latte.attended
    for name, attended in {"plain": own, "fused": F.scaled_dot_product_attention, "compiled": own}.items():
        latte.attended = attended
        if name == "compiled":
            compile_network(network, Device(torch.device("cpu"), "bf16", 1))
        gradient(network, batch, bf16=True)
        began = time.process_time()
        found = [gradient(network, batch, bf16=True) for _ in range(STEPS)]
        seconds = (time.process_time() - began) / STEPS
        print(f"{name}: {seconds:.2f} s a step, error {(found[0] - exact).norm() / exact.norm():.4f}")
    for name, muon_lr in {"AdamW": 0.0, "Muon": 0.01}.items():
        optimisers = optimisers_of(network, AdamParameters(), muon_lr).values()
        began = time.process_time()
        for _ in range(STEPS):
            for optimiser in optimisers:
                optimiser.step()
        print(f"{name}: {(time.process_time() - began) / STEPS:.3f} s an update")


def gradient(network: latte.Latte, batch: tuple[Tensor, ...], *, bf16: bool) -> Tensor:
    z_BCTHW, noise_BCTHW, steps_B, labels_B = batch
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = network(noised(z_BCTHW, noise_BCTHW, steps_B), steps_B, labels_B)
    diffusion_loss(output, z_BCTHW, noise_BCTHW, steps_B, velocity=True).backward()
    return torch.cat([weight.grad.flatten() for weight in network.parameters()])


if __name__ == "__main__":
    main()
