"""bf16 gradients on the CPU, with memory that was freed full of NaN: what is not written shows."""

from __future__ import annotations

import pytest
import torch

from vidistill.models import build, compute


@pytest.mark.parametrize(("frames", "size"), [(4, 48), (8, 32), (8, 56), (2, 64)])
def test_bf16_gradients_are_finite_and_near_those_of_fp32(frames: int, size: int) -> None:
    torch.manual_seed(0)
    network = build("minic3d_bn", classes=3, frames=frames, size=size).to(memory_format=torch.channels_last_3d).eval()
    for batch in (2, 3, 8) * 3:
        x_BCTHW = torch.randn(batch, frames, size, size, 3).permute(0, 4, 1, 2, 3)
        gradients = []
        for precision in ("bf16", "fp32"):
            poison = torch.full((300_000,), float("nan"))
            del poison
            network.zero_grad()
            with compute.autocast(torch.device("cpu"), precision):
                logits_BK = network(x_BCTHW)
            logits_BK.float().square().sum().backward()
            gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
        assert torch.isfinite(gradients[0]).all()
        assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[1].norm()
